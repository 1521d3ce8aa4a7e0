# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Staged data becomes live data, and back, by renames.

The root of a volume is a mount point and can't be renamed, so its entries are. Staged and
previous data lie in one hidden folder of the root, ``.echo-restore-<id>/new`` and ``…/old``.
What an exchange was doing is told by the disk alone:

* while ``old`` is there, what the root holds is new;
* while it is not, what the root holds is old, and ``old.part`` what has left it so far.

An exchange may be of some names of the root alone. The others are then neither old nor new:
they stay where they are, and several such exchanges of other names don't meet.

Both :func:`swap` and :func:`swap_back` go from any such state to their end, so either may
follow a crash of either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import threading

from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, SpaceError
from ansible_collections.echo_music.ops.plugins.module_utils.survey import shown
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import sync_folder
from ansible_collections.echo_music.ops.plugins.module_utils.tar_guard import RESERVED

PART = ".part"
MAKING = ".making"
GOING = ".going"
ROOT_ATTRIBUTES = ("user.", "system.posix_acl_")


def swap(live_folder, staging_name, previous_name, names=None):
    """Make the staged data the live one; what was live is kept as ``previous_name``.

    Both names are relative to the live folder, in one hidden folder whose name begins with
    ``.echo-restore-``. The folder itself takes over owner, mode and attributes as well.
    ``names`` are those of the root that take part, by default all. Does nothing if it was
    done; goes on where an exchange broke off.
    """
    new, old = _hidden(live_folder, staging_name), _hidden(live_folder, previous_name)
    if not os.path.lexists(old):
        if not os.path.isdir(new):
            raise ArchiveError("There is nothing staged in %s." % new, "Stage the restore again.")
        with _told(live_folder):
            _require_movable(live_folder, new, names)
            if not os.path.lexists(old + PART):
                _make_like(old + PART, live_folder)
            _move_entries(live_folder, old + PART, names)
            _rename(old + PART, old)
    if os.path.lexists(new):
        with _told(live_folder):
            _copy_attributes(new, live_folder)
            _move_entries(new, live_folder)
            _remove_empty(new)


def swap_back(live_folder, staging_name, previous_name, names=None):
    """Make the previous data live again; what was live goes back to ``staging_name``.

    Does nothing if there was no exchange; goes on where one of either direction broke off.
    """
    new, old = _hidden(live_folder, staging_name), _hidden(live_folder, previous_name)
    with _told(live_folder):
        if os.path.lexists(old):
            if not os.path.lexists(new):
                _make_like(new, live_folder)
            _move_entries(live_folder, new, names)
            _rename(old, old + PART)
        if os.path.lexists(old + PART):
            _copy_attributes(old + PART, live_folder)
            _move_entries(old + PART, live_folder)
            _remove_empty(old + PART)


def is_swapped(live_folder, previous_name):
    """Tell whether an exchange was begun, so that going back has something to do."""
    old = _hidden(live_folder, previous_name)
    return os.path.lexists(old) or os.path.lexists(old + PART)


def discard(live_folder, name):
    """Remove staged or previous data for good; only between exchanges."""
    path = _hidden(live_folder, name)
    if os.path.lexists(path + PART):
        raise ArchiveError("%s holds live data." % (path + PART), "End the exchange first: forward or back.")
    remove_folder(path)


def _hidden(live_folder, name):
    parts = name.split("/")
    if len(parts) < 2 or not parts[0].startswith(RESERVED) or ".." in parts:
        raise ArchiveError("%s is no name of staged or previous data." % name)
    return os.path.join(live_folder, name)


def _entries(folder, names=None):
    found = (name for name in os.listdir(folder) if not name.startswith(RESERVED))
    return sorted(name for name in found if names is None or name in names)


def _require_movable(live_folder, new, names):
    """Find out before the first rename what would stop a later one."""
    taken = [name for name in os.listdir(new) if name.startswith(RESERVED)]
    if taken:
        raise ArchiveError("%s holds %s, a name that restores use." % (new, shown(taken[0])), "Use another backup.")
    device = os.lstat(live_folder).st_dev
    for folder in (live_folder, new):
        for name in [""] + _entries(folder, names):
            path = os.path.join(folder, name)
            if os.lstat(path).st_dev != device or (name and os.path.ismount(path)):
                raise ArchiveError(
                    "%s is another file system than %s." % (shown(path), live_folder),
                    "Unmount it, then restore again.",
                )


def _move_entries(source, target, names=None):
    for name in _entries(source, names):
        path = os.path.join(target, name)
        # A rename would put a file of this name out of the world without a word.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "it is in %s as well" % source, path)
        os.rename(os.path.join(source, name), path)
    sync_folder(target)
    sync_folder(source)


def _rename(source, target):
    os.rename(source, target)
    sync_folder(os.path.dirname(target))


def _make_like(path, model):
    """Create a folder with another one's attributes; it is not there before it has them."""
    os.makedirs(path + MAKING, mode=0o700, exist_ok=True)
    _copy_attributes(model, path + MAKING)
    _rename(path + MAKING, path)


def _copy_attributes(model, folder):
    status = os.stat(model)
    os.chown(folder, status.st_uid, status.st_gid)
    os.chmod(folder, stat.S_IMODE(status.st_mode))
    wanted = _attributes(model)
    for name in set(_attributes(folder)) - set(wanted):
        os.removexattr(folder, name)
    for name in wanted:
        os.setxattr(folder, name, os.getxattr(model, name))


def _attributes(folder):
    try:
        return [name for name in os.listxattr(folder) if name.startswith(ROOT_ATTRIBUTES)]
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []


def _remove_empty(folder):
    os.rmdir(folder)
    sync_folder(os.path.dirname(folder))


# -- folders -------------------------------------------------------------------------------------

# Parts that are staged at the same time may share their hidden parent, which goes with the last one.
_folders_lock = threading.Lock()


def create_staging(staging, like=None):
    """Create a staging folder, with the owner, mode and attributes of ``like``."""
    parent = os.path.dirname(staging)
    with _folders_lock, _told(staging):
        if os.path.basename(parent).startswith(RESERVED):
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, 0o700)
        if os.path.islink(parent):
            raise ArchiveError("%s is a symbolic link." % parent, "Find out who made it, and remove it.")
        if os.path.lexists(staging):
            raise ArchiveError("There is a %s already." % staging, "Discard it, or end the restore that it is of.")
        if like:
            _make_like(staging, like)
        else:
            os.mkdir(staging, 0o700)


def remove_folder(path):
    """Remove a folder, at once as far as anyone can see, and its hidden parent if that was the last."""
    parent = os.path.dirname(path)
    with _folders_lock, _told(path):
        if os.path.lexists(path):
            # What is half removed must not be taken for whole after a crash.
            if os.path.lexists(path + GOING):
                _delete(path + GOING)
            _rename(path, path + GOING)
        if not os.path.basename(parent).startswith(RESERVED):
            _delete(path + GOING)
        elif os.path.isdir(parent):
            # A crash may have left more than one of those that are not data yet or any more.
            for name in os.listdir(parent):
                if name.endswith((MAKING, GOING)):
                    _delete(os.path.join(parent, name))
            if not os.listdir(parent):
                _remove_empty(parent)


def _delete(path):
    """Remove a tree of any depth, which :func:`shutil.rmtree` can't."""
    done = subprocess.run(["rm", "-rf", "--", path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise ArchiveError("Could not remove %s: %s" % (path, done.stderr[-200:].decode("ascii", "backslashreplace")))


@contextlib.contextmanager
def _told(folder):
    """Turn an error of the file system into one that says that nothing is lost."""
    try:
        yield
    except OSError as error:
        kind = SpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else ArchiveError
        raise kind(
            "Could not arrange the data in %s: %s (%s)." % (folder, error.strerror, shown(error.filename or folder)),
            "Nothing is lost: mend this, and run it again, forward or back.",
        )
