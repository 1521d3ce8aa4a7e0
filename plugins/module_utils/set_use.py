# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who reads a set keeps it from being pruned meanwhile.

A lock of the operating system on a file of the set, shared by its readers: it ends with its
process, however that ends, and costs nothing. Where a file system has no such locks, sets are
read and pruned without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import INFO, MANIFEST

LOCKED = (MANIFEST, INFO)
BUSY = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def reading(folder):
    """Keep a set where it is; raise ``SetError`` if it is being deleted."""
    # Waits for a deletion under way, after which the set is gone, or a look that takes a moment.
    descriptor = _lock(folder, fcntl.LOCK_SH)
    try:
        if descriptor is not None and not _is_at(descriptor, folder):
            raise SetError("The set %s is being deleted." % folder, "Use another one; echo_info lists them.")
        yield
    finally:
        if descriptor:
            os.close(descriptor)


@contextlib.contextmanager
def unread(folder):
    """Keep readers away from a set; gives whether nobody reads it."""
    descriptor = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield descriptor is not False
    finally:
        if descriptor:
            os.close(descriptor)


def _lock(folder, kind):
    """Return a descriptor that holds the lock, False if others hold it, None where there is nothing to lock."""
    for name in LOCKED:
        try:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, kind)
            return descriptor
        except OSError as error:
            os.close(descriptor)
            return False if error.errno in BUSY else None
    return None


def _is_at(descriptor, folder):
    """Tell whether the locked file still lies in the folder of that name."""
    return any(
        os.path.samestat(os.fstat(descriptor), os.lstat(os.path.join(folder, name)))
        for name in LOCKED
        if os.path.lexists(os.path.join(folder, name))
    )
