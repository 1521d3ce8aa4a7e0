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
import marshal
import os
import re
import stat

from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError

# stat's own functions are slow enough to be seen among tens of thousands of files.
S_IFMT = 0o170000
S_IFREG = 0o100000
S_IFDIR = 0o040000
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
    has holes. And how to know the folder again: ``digest`` of all names, inodes, sizes and times
    of change, ``last_change`` (the newest of these times, in nanoseconds), and ``mounts``: whether
    something is mounted in it.
    """
    files = size = last_change = 0
    special, sparse = [], False
    linked, devices = set(), set()
    digest = hashlib.sha256()
    for above, entries in _walk(folder, exclude):
        seen = [above]
        for name, status in entries:
            mode, inode, device, links, unused_owner, unused_group, length = status[:7]
            # Contents, owner, mode, times, links, attributes, ACL: what changes one sets st_ctime too, which can't be set by itself.
            changed = status.st_ctime_ns
            seen += (name, inode, length, changed)
            devices.add(device)
            if changed > last_change:
                last_change = changed
            kind = mode & S_IFMT
            if kind == S_IFREG:
                if links > 1:
                    if (device, inode) in linked:
                        continue
                    linked.add((device, inode))
                files += 1
                size += length
                # A file system that compresses needs few blocks too; only a look tells holes apart.
                if status.st_blocks * 512 < length and not sparse:
                    sparse = _has_hole(os.path.join(folder, _inside(above, name)), length)
            elif kind in KINDS:
                special.append((_inside(above, name), KINDS[kind]))
        # Its version 2 says equal values in equal bytes, in half the time of repr().
        digest.update(marshal.dumps(seen, 2))
    return dict(
        bytes=size,
        files=files,
        special=special,
        sparse=sparse,
        digest=digest.hexdigest(),
        last_change=last_change,
        mounts=len(devices) > 1,
    )


def is_excluded(name, patterns):
    """Tell whether a name relative to the root, or a folder above it, matches a pattern as GNU tar has it."""
    return bool(patterns) and _excluder(tuple(patterns))(name) is not None


@functools.lru_cache(maxsize=16)
def _excluder(patterns):
    """Return what matches all that the patterns do; what is below something excluded is excluded as well."""
    # What translate() puts at the end, \Z, would only take the whole name.
    return re.compile("|".join(r"%s(?:/|\Z)" % fnmatch.translate(relative(pattern))[:-2] for pattern in patterns)).match


def relative(pattern):
    """Return a pattern without the ``/`` or ``./`` it may begin with, and without a last ``/``."""
    return re.sub(r"^(\.?/)+", "", pattern).rstrip("/")


def shown(name):
    """Make any file name printable: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _walk(folder, exclude):
    """Yield ``(folder relative to the root, [(name in it, status)])``, first the root itself in ``None``.

    Entries are in the order of their names; what vanishes is left out.
    """
    with contextlib.ExitStack() as opened:
        try:
            root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(folder, error) from error
        opened.callback(os.close, root)
        yield None, [(".", os.fstat(root))]
        waiting = [""]
        while waiting:
            above = waiting.pop()
            try:
                found = _entries(root, above, exclude)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise _unreadable(os.path.join(folder, above), error) from error
            waiting += [_inside(above, name) for name, status in found if status.st_mode & S_IFMT == S_IFDIR]
            yield above, found


def _entries(root, above, exclude):
    """Return ``[(name, status)]`` of a folder below an open one; asked by descriptor, the kernel needs half the time."""
    found, prefix = [], _inside(above, "")
    excluded = _excluder(tuple(exclude)) if exclude else None
    fd = os.open(above or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        for name in sorted(os.listdir(fd)):
            if excluded and excluded(prefix + name):
                continue
            try:
                found.append((name, os.lstat(name, dir_fd=fd)))
            except FileNotFoundError:
                continue
    finally:
        os.close(fd)
    return found


def _inside(above, name):
    return above + "/" + name if above else name


def _unreadable(folder, error):
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ArchiveError("There is no folder %s." % shown(folder))
    return ArchiveError("Could not read the folder %s: %s." % (shown(folder), error.strerror), "Run this as root (become).")


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
