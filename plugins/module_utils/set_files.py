# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of backup sets: names, durable files, and what its errors mean for a person."""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError, SpaceError

MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
INFO = "backup_info.txt"
PROOF = "proof.json"
# What may appear in a published set, and is no part of it.
PINNED = "pinned"
ACCEPTED = "accepted"
SIDECARS = (PROOF, PINNED, ACCEPTED)
SNAPSHOT = ".snapshot.json"
LATEST = "latest"
LOCK = ".lock"
MUTEX = ".mutex"

ID = re.compile(r"backup_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\Z")
ID_TIME = "backup_%Y-%m-%d_%H-%M-%S"
LEFTOVER = re.compile(r"\.(backup_.*\.partial|trash_.*)\Z")
KNOWN = re.compile(r"\.?(backup_|failed_|trash_|offsite_).*|latest|\.latest\.new|\.(lock|lock\.new|mutex)|lost\+found")
BLOCK = 1024 * 1024
DISCARD_TRIES = 5


def checked_id(set_id):
    """Return the id; one that isn't a set's name could point outside the root."""
    if not isinstance(set_id, str) or not ID.match(set_id):
        raise SetError(
            "%r is not the id of a backup set." % (set_id,),
            "An id looks like backup_2026-11-24_03-00-00; state=open returns it as set.id.",
        )
    return set_id


def published(root, set_id):
    """Return where a published set lies."""
    return os.path.join(root, set_id)


def staging(root, set_id):
    """Return where a set is put together."""
    return os.path.join(root, ".%s.partial" % set_id)


def new_id(root, removed=()):
    """Return the first id, from now on, that no set in the root has.

    Nor had: a writer that outlived a folder just removed must not find it again.
    """
    moment = int(time.time())
    while True:
        set_id = time.strftime(ID_TIME, time.gmtime(moment))
        places = (published(root, set_id), staging(root, set_id), os.path.join(root, ".failed_" + set_id))
        if not any(os.path.lexists(path) for path in places) and not any(set_id in name for name in removed):
            return set_id
        moment += 1


def timestamp(moment=None):
    """Return ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def human(size):
    """Return a number of bytes as people read it."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            break
        size /= 1024.0
    else:
        unit = "TiB"
    return "%d bytes" % size if unit == "bytes" else "%.1f %s" % (size, unit)


# -- the root ---------------------------------------------------------------------------------


def inspect_root(root):
    """Check that sets can be kept in the root, which need not exist yet; change nothing.

    Returns None, or the mode of a root that others can read and that is to become 0700.
    """
    with explained("look at", root):
        try:
            status = os.stat(root)
        except FileNotFoundError:
            _check_writable(nearest(root))
            return None
        if not stat.S_ISDIR(status.st_mode):
            raise SetError("%s is not a folder." % root, "Move the file away, or name another root.")
        if status.st_uid != os.geteuid():
            raise SetError(
                "%s belongs to user %d, the backup runs as user %d." % (root, status.st_uid, os.geteuid()),
                "Change its owner (chown), name another root, or run as its owner.",
            )
        _check_writable(root)
        if not status.st_mode & 0o077:
            return None
        foreign = sorted(name for name in os.listdir(root) if not KNOWN.match(name))
    if foreign:
        raise SetError(
            "%s is open to other users and holds more than backup sets (%s)." % (root, ", ".join(foreign[:5])),
            "Sets hold secrets: name a folder of their own as root, or make this one 0700 yourself.",
        )
    return stat.S_IMODE(status.st_mode)


def prepare_root(root):
    """Make the root a folder that only its owner can read; return warnings."""
    open_mode = inspect_root(root)
    with explained("create", root):
        os.makedirs(root, mode=0o700, exist_ok=True)
        if open_mode is None:
            return []
        os.chmod(root, 0o700)
    return ["%s was open to other users (mode %04o); it is 0700 now." % (root, open_mode)]


def nearest(path):
    """Return the path, or the nearest folder above it that exists."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def free_bytes(path):
    """Return what may still be written to the path's file system."""
    with explained("ask for the free space of", path):
        status = os.statvfs(nearest(path))
    return status.f_bavail * status.f_frsize


def leftovers(root):
    """Return the names of staging folders in the root, and of what was being removed."""
    try:
        with os.scandir(root) as entries:
            folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(name for name in folders if LEFTOVER.match(name))


def allocated(*folders):
    """Return the bytes on disk that removing folders would free: not those of files that have names elsewhere too."""
    links = collections.Counter()
    statuses = {}
    for path in folders:
        for folder, unused_folders, files in os.walk(path):
            for name in files:
                with contextlib.suppress(OSError):
                    status = os.lstat(os.path.join(folder, name))
                    statuses[(status.st_dev, status.st_ino)] = status
                    links[(status.st_dev, status.st_ino)] += 1
    return sum(status.st_blocks * 512 for key, status in statuses.items() if links[key] >= status.st_nlink)


def marks(folder):
    """Return what people said of a set: ``{"pinned", "accepted"}``."""
    return dict((name, os.path.lexists(os.path.join(folder, name))) for name in (PINNED, ACCEPTED))


def discard(root, name):
    """Remove a folder of the root.

    It is renamed first: a writer of a dead run that still lives finds its folder gone instead
    of adding to one that is being emptied.
    """
    trash = name if name.startswith(".trash_") else ".trash_" + name.lstrip(".")
    with explained("remove", os.path.join(root, name)):
        if trash != name:
            shutil.rmtree(os.path.join(root, trash), ignore_errors=True)
            os.rename(os.path.join(root, name), os.path.join(root, trash))
            # Or a power cut could bring half of it back under its old name.
            sync_folder(root)
        # A straggler that works inside the folder may add a file while it is being emptied.
        for unused in range(DISCARD_TRIES):
            shutil.rmtree(os.path.join(root, trash), ignore_errors=True)
            if not os.path.lexists(os.path.join(root, trash)):
                return
        shutil.rmtree(os.path.join(root, trash))


def _check_writable(folder):
    if os.access(folder, os.W_OK | os.X_OK):
        return
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise SetError("%s is on a read-only file system." % folder, "Remount it for writing, or name another root.")
    raise SetError(
        "User %d may not write to %s." % (os.geteuid(), folder), "Become root (become: true), or name another root."
    )


# -- files ------------------------------------------------------------------------------------


def write_file(path, data):
    """Write a file that only its owner can read, down to the disk."""
    with explained("write", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            target.write(data)
            target.flush()
            os.fsync(descriptor)


def replace_file(path, data):
    """Write a file so that every reader, also after a power cut, finds the old or the new one."""
    try:
        write_file(path + ".new", data)
    except SetError:
        with contextlib.suppress(OSError):
            os.unlink(path + ".new")
        raise
    with explained("write", path):
        os.replace(path + ".new", path)
        sync_folder(os.path.dirname(path))


def sync_file(path):
    """Have the disk hold what a file holds."""
    _sync(path, os.O_RDONLY)


def sync_folder(path):
    """Have the disk hold a folder's names."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def sha256_of(path, progress=lambda: None):
    """Return ``(SHA-256, bytes)`` of a file; ``progress`` is called at every block."""
    digest, size = hashlib.sha256(), 0
    with explained("read", path), os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as source:
        for block in iter(lambda: source.read(BLOCK), b""):
            digest.update(block)
            size += len(block)
            progress()
    return digest.hexdigest(), size


def read_small(path, limit):
    """Return a regular file's bytes; refuse what is larger, or would block or mislead a reader."""
    with explained("read", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as source:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SetError("%s is not a regular file." % path)
            if status.st_size > limit:
                raise SetError("%s is larger (%s) than it can be." % (path, human(status.st_size)))
            return source.read(limit)


@contextlib.contextmanager
def explained(action, path):
    """Turn an error of the file system into one that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        what = "Could not %s %s: %s." % (action, path, error.strerror or error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(
                what,
                "%s are free there; remove old sets or name another root." % human(free_bytes(path)),
                path=path,
            )
        raise SetError(what, REMEDIES.get(error.errno), path=path)


REMEDIES = {
    errno.ENOENT: "Did something else remove it, or is a disk not mounted?",
    errno.EROFS: "The file system is read-only: remount it for writing, or name another root.",
    errno.EACCES: "Become root (become: true), or name another root.",
    errno.EPERM: "Is something there immutable (lsattr), or is it a mount that refuses root?",
    errno.ENOTDIR: "A part of the path is a file: move it away, or name another root.",
    errno.EIO: "The disk reports an error: see dmesg, and keep backups on another one.",
}


def _sync(path, flags):
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
