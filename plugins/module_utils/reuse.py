# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive of an earlier set once more, by a hard link, where its folder is as it was then.

A folder is known again by a fingerprint of the names, inodes, sizes and times of change of all
that is in it, and of how it is archived. Sets stay independent of each other: a file is on the disk
until its last name is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.proof import read_proofs
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import MANIFEST, sha256_of, sync_folder
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import read_manifest
from ansible_collections.echo_music.ops.plugins.module_utils.version import VERSION

# Two changes within one tick of a file system's clock look like one. The coarsest ticks are of two seconds.
TICK_NS = 2 * 10**9
# Where the machine's own clock says when something changed. A file server has a clock of its own.
LOCAL_TYPES = frozenset("bcachefs btrfs ext2 ext3 ext4 f2fs jfs overlay reiserfs tmpfs xfs zfs".split())
MOUNTS = "/proc/self/mountinfo"
ESCAPE = re.compile(r"\\([0-7]{3})")


def fingerprint(found, source, codec, exclude):
    """Return what a folder is known by in 64 characters, None where that can't be told.

    ``found`` is its survey. What is mounted inside the folder may come and go without a trace.
    """
    if found["mounts"] or _file_system(source) not in LOCAL_TYPES:
        return None
    facts = [VERSION, os.path.realpath(source), os.statvfs(source).f_fsid, codec, sorted(exclude), found["digest"]]
    return hashlib.sha256(json.dumps(facts).encode("utf-8")).hexdigest()


def is_settled(found, begun_ns):
    """Tell whether a change since ``begun_ns``, when the survey began, would show in the fingerprint."""
    return found["last_change"] < begun_ns - TICK_NS


def unchanged(forerunner, name, known, rehash=False):
    """Return the artifact of an earlier set that a fingerprint stands for, with its ``path`` and set; or None.

    The archive must still be what the set's manifest says, by size and time of change, and with
    ``rehash`` by its contents; a set whose last verification failed is not trusted. Second is a
    warning, if there is one.
    """
    if not known or not forerunner:
        return None, None
    folder = os.path.realpath(forerunner)
    try:
        manifest = read_manifest(os.path.join(folder, MANIFEST))
    except SetError:
        return None, None
    artifacts = [a for a in manifest["artifacts"] if a["file"] == name and a.get("fingerprint") == known]
    proofs = read_proofs(folder)
    if not artifacts or not _is_untouched(folder, artifacts[0]) or (proofs and not proofs[-1]["passed"]):
        return None, None
    path = os.path.join(folder, name)
    if rehash and sha256_of(path)[0] != artifacts[0]["sha256"]:
        return None, "%s is damaged: its SHA-256 is not that of its manifest. It is not used again." % path
    return dict(artifacts[0], path=path, set=manifest["id"]), None


def link(path, dest):
    """Give a file the second name ``dest``, in place of what is there; tell whether that was possible."""
    fresh = dest + ".linked"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        os.link(path, fresh, follow_symlinks=False)
        os.rename(fresh, dest)
        # Renamed onto a name of the same file, it would keep both.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        sync_folder(os.path.dirname(dest) or ".")
    except OSError:
        # Another file system, too many names, none by its rules: the archive is written as ever.
        return False
    return True


def vouched(folder, artifact, path):
    """Return ``(SHA-256, bytes)`` of a file that is, as one, in a published set's folder and unchanged there; or None."""
    try:
        manifest = read_manifest(os.path.join(folder, MANIFEST))
        same = os.path.samestat(os.lstat(path), os.lstat(os.path.join(folder, artifact["file"])))
    except (SetError, OSError):
        return None
    for theirs in manifest["artifacts"]:
        if same and theirs["file"] == artifact["file"] and _is_untouched(folder, theirs):
            return theirs["sha256"], theirs["bytes_out"]
    return None


def _is_untouched(folder, artifact):
    """Tell whether an archive is a file of the right size that wasn't written to since its manifest was."""
    try:
        status = os.lstat(os.path.join(folder, artifact["file"]))
        written = os.lstat(os.path.join(folder, MANIFEST))
    except OSError:
        return False
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_size == artifact["bytes_out"]
        and status.st_mtime_ns <= written.st_mtime_ns
    )


def _file_system(folder):
    """Return the type of the file system that a folder lies on, "" if that can't be told."""
    path = os.path.realpath(folder)
    found = ("", "")
    try:
        with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                before, unused, after = line.partition(" - ")
                point = ESCAPE.sub(lambda code: chr(int(code.group(1), 8)), before.split(" ")[4])
                # The last one of several on the same point lies above the others.
                if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(found[0]):
                    found = (point, after.split(" ")[0])
    except (OSError, IndexError):
        return ""
    return found[1]
