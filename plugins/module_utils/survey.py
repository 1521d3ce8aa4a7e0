# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an archive of a folder would hold: bytes, files, what is left out, and why."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import stat

from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError

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
    has holes.
    """
    found = dict(bytes=0, files=0, special=[], sparse=False)
    linked = set()
    for name, path, status in _walk(folder, exclude):
        if stat.S_ISREG(status.st_mode):
            if status.st_nlink > 1:
                if (status.st_dev, status.st_ino) in linked:
                    continue
                linked.add((status.st_dev, status.st_ino))
            found["files"] += 1
            found["bytes"] += status.st_size
            # A file system that compresses needs few blocks too; only a look tells holes apart.
            if not found["sparse"] and status.st_blocks * 512 < status.st_size:
                found["sparse"] = _has_hole(path, status.st_size)
        elif stat.S_IFMT(status.st_mode) in KINDS:
            found["special"].append((name, KINDS[stat.S_IFMT(status.st_mode)]))
    return found


def is_excluded(name, patterns):
    """Tell whether a name relative to the root, or a folder above it, matches a pattern as GNU tar has it."""
    if not patterns:
        return False
    parts = name.split("/")
    names = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(part, relative(pattern)) for pattern in patterns for part in names)


def relative(pattern):
    """Return a pattern without the ``/`` or ``./`` it may begin with, and without a last ``/``."""
    return re.sub(r"^(\.?/)+", "", pattern).rstrip("/")


def shown(name):
    """Make any file name printable: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _walk(folder, exclude):
    """Yield ``(name relative to the root, path, status)`` of everything below a folder; what vanishes is left out."""
    waiting = [""]
    while waiting:
        above = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, above)) as entries:
                for entry in entries:
                    name = os.path.join(above, entry.name)
                    if is_excluded(name, exclude):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        yield name, entry.path, entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(name)
        except FileNotFoundError as error:
            if not above:
                raise ArchiveError("There is no folder %s." % folder) from error
        except OSError as error:
            raise ArchiveError(
                "Could not read the folder %s: %s." % (shown(os.path.join(folder, above)), error.strerror),
                "Run this as root (become).",
            )


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
