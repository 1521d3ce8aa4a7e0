# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an archive of a folder would hold: bytes, files, what is left out, and why."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import operator
import os
import re
import stat

from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError

S_IFMT = 0o170000
KINDS = {
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def survey(folder, exclude=()):
    """Walk a folder and return what an archive of it would hold.

    ``bytes`` and ``files`` (regular files, hard links counted once), ``special``
    (``[(name, kind)]``, what is no file, folder or link) and ``sparse``: whether any file
    has holes. And how to know the folder again: ``digest`` of all metadata, ``last_change``
    (the newest time of change, in nanoseconds), and ``mounts``: whether something is mounted in it.
    """
    found = dict(bytes=0, files=0, special=[], sparse=False, last_change=0)
    linked = set()
    digest = hashlib.sha256()
    devices = set()
    for above, entries in _walk(folder, exclude):
        # Mode, inode, device, links, owner, group, size. Whatever changes a file's contents, owner, mode, attributes
        # or ACL changes st_ctime too, which nobody can set.
        seen = [(name, status[:7], status.st_mtime_ns, status.st_ctime_ns) for name, unused, status in entries]
        digest.update(repr((above, seen)).encode("utf-8"))
        devices.update(facts[2] for unused, facts, unused_mtime, unused_ctime in seen)
        found["last_change"] = max([found["last_change"]] + [change for unused, unused_facts, unused_mtime, change in seen])
        for name, path, status in entries:
            kind = status.st_mode & S_IFMT
            if kind == stat.S_IFREG:
                if status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in linked:
                        continue
                    linked.add((status.st_dev, status.st_ino))
                found["files"] += 1
                found["bytes"] += status.st_size
                # A file system that compresses needs few blocks too; only a look tells holes apart.
                if status.st_blocks * 512 < status.st_size and not found["sparse"]:
                    found["sparse"] = _has_hole(path, status.st_size)
            elif kind in KINDS:
                found["special"].append((name, KINDS[kind]))
    return dict(found, digest=digest.hexdigest(), mounts=len(devices) > 1)


def is_excluded(name, patterns):
    """Tell whether a name relative to the root, or a folder above it, matches a pattern as GNU tar has it."""
    return bool(patterns) and _excluder(tuple(patterns)).match(name) is not None


@functools.lru_cache(maxsize=16)
def _excluder(patterns):
    """Return one expression for all patterns; what is below something excluded is excluded as well."""
    # What translate() puts at the end, \Z, would only take the whole name.
    return re.compile("|".join(r"%s(?:/|\Z)" % fnmatch.translate(relative(pattern))[:-2] for pattern in patterns))


def relative(pattern):
    """Return a pattern without the ``/`` or ``./`` it may begin with, and without a last ``/``."""
    return re.sub(r"^(\.?/)+", "", pattern).rstrip("/")


def shown(name):
    """Make any file name printable: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _walk(folder, exclude):
    """Yield ``(folder relative to the root, [(name relative to the root, path, status)])``, the root itself first.

    Entries are in the order of their names; what vanishes is left out.
    """
    try:
        yield None, [(".", folder, os.stat(folder))]
    except FileNotFoundError as error:
        raise ArchiveError("There is no folder %s." % folder) from error
    waiting = [""]
    while waiting:
        above = waiting.pop()
        found = []
        try:
            with os.scandir(os.path.join(folder, above)) as entries:
                for entry in entries:
                    name = above + "/" + entry.name if above else entry.name
                    if exclude and is_excluded(name, exclude):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        found.append((name, entry.path, entry.stat(follow_symlinks=False)))
        except FileNotFoundError as error:
            if not above:
                raise ArchiveError("There is no folder %s." % folder) from error
        except OSError as error:
            raise ArchiveError(
                "Could not read the folder %s: %s." % (shown(os.path.join(folder, above)), error.strerror),
                "Run this as root (become).",
            )
        # By name, which no two entries share.
        found.sort(key=operator.itemgetter(0))
        waiting.extend(name for name, unused, status in found if stat.S_ISDIR(status.st_mode))
        yield above, found


def _has_hole(path, size):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False
    finally:
        os.close(fd)
