# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tar stream of the Docker Engine, member by member as GNU tar would have written it."""

from __future__ import annotations

import os
import tarfile

from ansible_collections.echo_music.ops.plugins.module_utils.codec import BLOCK
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError
from ansible_collections.echo_music.ops.plugins.module_utils.survey import is_excluded, shown
from ansible_collections.echo_music.ops.plugins.module_utils.tar_scan import TarScan

KINDS_OF_MEMBERS = {
    tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
}


def rename_members(chunks, staged, source, path, exclude):
    """Copy the engine's members (``uploads/a``) as tar would name them (``./a``).

    Returns how many there are, and which special files were left out (``[(name, kind)]``).
    A stream that is damaged or cut is an ``ArchiveError``.
    """
    incoming = _Incoming(chunks, TarScan("The engine's stream of %s" % source))
    base = os.path.basename(path.rstrip("/"))
    count = 0
    special = []
    names = dict(encoding="utf-8", errors="surrogateescape")
    try:
        with tarfile.open(fileobj=incoming, mode="r|", bufsize=BLOCK, **names) as theirs:
            with tarfile.open(fileobj=staged, mode="w|", bufsize=BLOCK, format=tarfile.PAX_FORMAT, **names) as ours:
                for member in iter(theirs.next, None):
                    # Both objects keep a list of all members, which would grow with the archive.
                    theirs.members, ours.members = [], []
                    name = _inside(member.name, base, source)
                    if is_excluded(name, exclude):
                        continue
                    if member.type in KINDS_OF_MEMBERS:
                        special.append((name, KINDS_OF_MEMBERS[member.type]))
                        continue
                    member.name = "./" + name if name else "."
                    if member.islnk():
                        member.linkname = "./" + _linked(member, base, source, exclude)
                    # These would outdo the new names.
                    member.pax_headers = dict(
                        (key, value) for key, value in member.pax_headers.items() if key not in ("path", "linkpath")
                    )
                    ours.addfile(member, theirs.extractfile(member) if member.isreg() else None)
                    count += 1
            incoming.finish()
    except tarfile.TarError as error:
        raise ArchiveError("The engine's stream of %s is damaged: %s." % (source, error), "Try again.")
    return count, special


class _Incoming:
    """The engine's stream as a file, followed by a scan on its way."""

    def __init__(self, chunks, scan):
        self._chunks = iter(chunks)
        self._scan = scan

    def read(self, unused_size):
        """Return the next piece, of whatever size it comes in: :mod:`tarfile` takes any."""
        piece = next(self._chunks, b"")
        self._scan.feed(piece)
        return piece

    def finish(self):
        """Read what stands behind the last member; raise ``ArchiveError`` if the end is missing."""
        while self.read(BLOCK):
            pass
        self._scan.finish()


def _inside(name, base, source):
    if name == base:
        return ""
    if not name.startswith(base + "/"):
        raise ArchiveError("The engine's stream of %s holds %s, which lies outside." % (source, shown(name)))
    return name[len(base) + 1 :]


def _linked(member, base, source, exclude):
    target = _inside(member.linkname, base, source)
    if is_excluded(target, exclude):
        raise ArchiveError(
            "In %s, %s is a hard link to %s, which is excluded." % (source, shown(member.name), shown(target)),
            "Exclude both or neither.",
        )
    return target
