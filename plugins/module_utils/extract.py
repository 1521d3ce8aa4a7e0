# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive from anywhere, unpacked to a staging folder: whole, checked and durable, or not there at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import threading

from ansible_collections.echo_music.ops.plugins.module_utils.codec import BLOCK, read_archive
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, SpaceError
from ansible_collections.echo_music.ops.plugins.module_utils.exchange import create_staging, remove_folder
from ansible_collections.echo_music.ops.plugins.module_utils.progress import phase
from ansible_collections.echo_music.ops.plugins.module_utils.tar_guard import TarGuard
from ansible_collections.echo_music.ops.plugins.module_utils.tar_scan import RECORD

TAR_NAMES = ("gtar", "tar")
TAR_OPTIONS = (
    "--extract",
    "--file=-",
    "--numeric-owner",
    "--same-owner",
    "--preserve-permissions",
    "--xattrs",
    "--xattrs-include=user.*",
    "--acls",
    "--warning=no-timestamp",
    "--quoting-style=escape",
)
MESSAGES_SHOWN = 5
NO_SPACE = (b"No space left on device", b"Disk quota exceeded", b": Wrote only ")
F_SETPIPE_SZ = 1031


def unpack(archive, staging, strip="", expected=None, bytes_free=None, like=None, places=None, contain=False):
    """Unpack an archive of any codec to ``staging``, which must not exist, and make it durable.

    ``strip`` is what :func:`root_of` returned. ``expected`` may have ``sha256`` (of the
    file), ``bytes_in`` and ``members``; ``bytes_free`` is what may be written, by default
    all that is free; ``like`` is the folder whose owner, mode and attributes the staging
    folder has if the archive doesn't tell, and whose owner owns what the archive's root
    folder's owner owned. ``places`` and ``contain`` are :class:`TarGuard`'s. Returns
    ``{"members", "bytes", "files", "remarks", "unplaced"}``. After any failure there is no
    staging folder, and nothing else was touched.
    """
    create_staging(staging, like)
    try:
        status = os.statvfs(staging)
        if bytes_free is None:
            bytes_free = status.f_bavail * status.f_frsize
        # Some file systems make inodes as they need them, and count none.
        guard = TarGuard(archive, strip, bytes_free, status.f_favail if status.f_files else None, places, contain)
        digest = _Digest(archive)
        try:
            with _followed(archive, guard, expected):
                _run_tar(_safe(archive, guard), archive, staging, guard)
        except BaseException:
            digest.stop()
            raise
        found = dict(sha256=digest.result(), bytes_in=guard.bytes, members=guard.members)
        _compare(archive, found, expected or {})
        if like and guard.owner:
            _hand_over(staging, guard.owner, like)
        sync_tree(staging)
    except BaseException:
        remove_folder(staging)
        raise
    found = dict(members=guard.members, bytes=guard.bytes, files=guard.files)
    return dict(found, remarks=guard.remarks, unplaced=guard.unplaced)


def examine(archive, strip="", expected=None, contain=False):
    """Read an archive to its end with all the checks of :func:`unpack`, and write nothing.

    ``expected`` may have ``bytes_in`` and ``members``; ``contain`` is :class:`TarGuard`'s.
    Returns ``{"members", "bytes"}``.
    """
    guard = TarGuard(archive, strip, contain=contain)
    with _followed(archive, guard, expected):
        for unused in _safe(archive, guard):
            pass
    _compare(archive, dict(bytes_in=guard.bytes, members=guard.members), expected or {})
    return dict(members=guard.members, bytes=guard.bytes)


def root_of(archive, folders=("data",)):
    """Return which of ``folders`` holds everything in an archive, as its first member tells; else ``""``.

    ``./`` or ``./covers/`` first: ``""``; ``./data/`` or ``data/``: ``"data"``.
    """
    guard = TarGuard(archive)
    for piece in read_archive(archive):
        for at in range(0, len(piece), RECORD):
            guard.feed(piece[at : at + RECORD])
            if guard.members:
                first = guard.member[2:] if guard.member.startswith("./") else guard.member
                return next((folder for folder in folders if (first + "/").startswith(folder + "/")), "")
    guard.finish()
    return ""


def _followed(archive, guard, expected):
    """Have the progress of an archive that is read told to those who asked."""
    return phase(os.path.basename(archive), (expected or {}).get("bytes_in"), lambda: guard.bytes)


def _safe(archive, guard):
    """Yield what tar may be handed."""
    try:
        for piece in _grouped(read_archive(archive)):
            yield guard.feed(piece)
    except ArchiveError as error:
        if guard.member and guard.member not in error.what:
            error.what += " The last member read was %s." % guard.member
        error.details.setdefault("archive", archive)
        raise
    yield guard.finish()


def _grouped(pieces):
    """Yield pieces of about ``BLOCK``: some codecs deliver very small ones."""
    group, size = [], 0
    for piece in pieces:
        group.append(piece)
        size += len(piece)
        if size >= BLOCK:
            yield b"".join(group)
            group, size = [], 0
    yield b"".join(group)


def _run_tar(pieces, archive, staging, guard):
    said = []
    process = _tar_process(staging)
    listener = threading.Thread(target=_listen, args=(process.stderr, said), daemon=True)
    listener.start()
    whole = False
    try:
        # A tar that gave up has told why.
        with contextlib.suppress(BrokenPipeError):
            for piece in pieces:
                process.stdin.write(piece)
            process.stdin.close()
            whole = True
    except BaseException:
        process.kill()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        listener.join()
        process.stderr.close()
        exit_code = process.wait()
    if exit_code or not whole:
        raise _tar_failed(archive, staging, exit_code, said, guard)


def _tar_process(staging):
    name = next(filter(shutil.which, TAR_NAMES), TAR_NAMES[-1])
    try:
        process = subprocess.Popen(
            [name] + list(TAR_OPTIONS) + ["--directory=" + staging],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(os.environ, LC_ALL="C", TAR_OPTIONS=""),
        )
    except OSError as error:
        raise ArchiveError("Could not start %s: %s." % (name, error.strerror), "Install GNU tar.")
    with contextlib.suppress(OSError):
        fcntl.fcntl(process.stdin, F_SETPIPE_SZ, BLOCK)
    return process


def _listen(stream, said):
    for line in stream:
        if len(said) < MESSAGES_SHOWN:
            said.append(line.rstrip(b"\n"))


def _tar_failed(archive, staging, exit_code, said, guard):
    words = "; ".join(line.decode("ascii", "backslashreplace") for line in said) or "it said nothing"
    what = "tar could not unpack %s to %s (exit code %s, near %s): %s." % (
        archive,
        staging,
        exit_code,
        guard.member,
        words,
    )
    if any(reason in line for line in said for reason in NO_SPACE):
        return SpaceError(what, "Make room there.", archive=archive)
    return ArchiveError(what, "Mend what it names, or use another backup.", archive=archive)


def _compare(archive, found, expected):
    for key, name in (("sha256", "SHA-256"), ("bytes_in", "number of bytes"), ("members", "number of members")):
        if expected.get(key) is not None and expected[key] != found[key]:
            raise ArchiveError(
                "%s is not the file that its manifest tells of: its %s is %s and should be %s."
                % (archive, name, found[key], expected[key]),
                "Use another copy of this set, or another backup.",
                archive=archive,
            )


def _hand_over(staging, owner, like):
    """Give what the app owned elsewhere to the user that it runs as here; root's stays root's."""
    status = os.stat(like)
    for was, is_now, form in ((owner[0], status.st_uid, "%d"), (owner[1], status.st_gid, ":%d")):
        if was and is_now and was != is_now:
            ids = ["--from=" + form % was, form % is_now]
            _have_done("give to the app", staging, ["chown", "--recursive", "--no-dereference"] + ids + ["--", staging])


def sync_tree(folder):
    """Bring all that a folder holds down to the disk."""
    _have_done("make durable", folder, ["sync", "--file-system", folder])


def _have_done(doing, folder, argv):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise ArchiveError(
            "Could not %s %s: %s" % (doing, folder, done.stderr[-200:].decode("ascii", "backslashreplace")),
            "Look at the disk and at the kernel's log.",
        )


class _Digest(threading.Thread):
    """The SHA-256 of a file, found while others read the same file."""

    def __init__(self, path):
        super(_Digest, self).__init__(daemon=True)
        self._path = path
        self._hash = hashlib.sha256()
        self._error = None
        self._stopped = False
        self.start()

    def run(self):
        """Read until the end, or until stopped."""
        try:
            with open(self._path, "rb") as file:
                for block in iter(lambda: file.read(BLOCK), b""):
                    if self._stopped:
                        break
                    self._hash.update(block)
        except OSError as error:
            self._error = error

    def stop(self):
        """End early."""
        self._stopped = True
        self.join()

    def result(self):
        """Wait for the end; return the sum in hexadecimal digits."""
        self.join()
        if self._error:
            raise ArchiveError("%s can't be read: %s." % (self._path, self._error), "Use another backup.")
        return self._hash.hexdigest()
