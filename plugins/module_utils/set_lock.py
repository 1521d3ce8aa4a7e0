# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may write a set: a lock that tells all of the set under way, and outlives nobody.

Between the module runs of one backup no process of ours lives on the host, so the lock is a
file, ``<root>/.lock``. It is held while

- its owner, the controlling process, lives (when that can be judged: it ran on this machine), or
- within its lease there was a sign of life: the lock renewed, or a file of the set written.

An owner that is known to be dead loses it at once. The lock records which container was paused
or stopped *before* that is done; whoever ends the set, or takes over, lets it run again.
``<root>/.mutex`` guards the short moments in which the lock changes hands.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time

from ansible_collections.echo_music.ops.plugins.module_utils.engine import Gone
from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.migration import leave_stopped
from ansible_collections.echo_music.ops.plugins.module_utils.process import is_alive, is_local
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    ID,
    LOCK,
    MUTEX,
    explained,
    read_small,
    replace_file,
    staging,
    sync_folder,
    timestamp,
)

LEASE = 900
LOCK_LIMIT = 16 * 1024 * 1024
OWNER = re.compile(r"\S+ \d{1,10} \d+\Z")


@contextlib.contextmanager
def guarded(root):
    """Keep other processes from changing the lock meanwhile."""
    path = os.path.join(root, MUTEX)
    with explained("lock", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        os.close(descriptor)


def read_lock(root):
    """Return the record of the set under way, or None.

    A record that can't be understood (not ours: ours are replaced whole) has no id and no
    owner, and is held for the lease since its last change like any other.
    """
    path = os.path.join(root, LOCK)
    if not os.path.lexists(path):
        return None
    try:
        record = json.loads(read_small(path, LOCK_LIMIT).decode("utf-8"))
        understood = (
            ID.match(record["id"])
            and isinstance(record["owner"], str)
            and isinstance(record["taken"], str)
            and isinstance(record["lease"], int)
            and isinstance(record["parts"], list)
            and isinstance(record["stack"], dict)
            and (record["quiesced"] is None or isinstance(record["quiesced"]["container"], str))
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        understood = False
    return record if understood else dict(id=None, owner="", taken=None, lease=LEASE, quiesced=None, parts=[], stack={})


def write_lock(root, record):
    """Record the set under way, durably."""
    replace_file(os.path.join(root, LOCK), json.dumps(record, sort_keys=True).encode("utf-8"))


def renew(root):
    """Show a sign of life."""
    with contextlib.suppress(OSError):
        os.utime(os.path.join(root, LOCK))


def release(root):
    """Give the lock up."""
    path = os.path.join(root, LOCK)
    with explained("remove", path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sync_folder(root)


def holder(root, record, now=None):
    """Return who holds the lock, or None if nobody alive does.

    Keys: ``id owner since last_sign_of_life``, and ``free`` tells when it can be taken over.
    """
    if record is None:
        return None
    now = time.time() if now is None else now
    owner = record["owner"]
    last = _last_sign_of_life(root, record)
    if OWNER.match(owner) and is_local(owner):
        if not is_alive(owner):
            return None
        free = "as soon as the process %s here has ended" % owner.split(" ")[1]
    # A sign of life from the future is one from before the clock was set back.
    elif abs(now - last) < record["lease"]:
        free = "after %s, unless it shows a sign of life" % timestamp(last + record["lease"])
    else:
        return None
    return dict(
        id=record["id"], owner=owner or None, since=record["taken"], last_sign_of_life=timestamp(last), free=free
    )


def refuse(root, held):
    """Raise the error that names the set under way."""
    raise SetError(
        "The set %s has been under way in %s since %s (owner: %s; last sign of life: %s)."
        % (held["id"], root, held["since"], held["owner"] or "not recorded", held["last_sign_of_life"]),
        "Wait for it to end. If it is dead, the next run takes over %s; "
        "state=abandoned with its id ends it now." % held["free"],
        under_way=held,
    )


def own(root, set_id):
    """Return the lock's record, or raise ``SetError`` if it isn't held for this set."""
    record = read_lock(root) if os.path.isdir(root) else None
    if record is None:
        raise SetError(
            "The set %s is not under way in %s: nothing is." % (set_id, root),
            "Open a set first (state=open), and pass on the id it returns.",
        )
    if record["id"] != set_id:
        raise SetError(
            "The set %s is not under way in %s any more: %s is." % (set_id, root, record["id"]),
            "It was taken over for want of a sign of life; make a new one, with a longer lease.",
        )
    return record


def quiesce(engine, root, record, mode, container, guard=None):
    """Pause or stop a running container; recorded and guarded first, so that it can't stay so for ever."""
    if engine.container(container)["state"] != "running":
        return
    record["quiesced"] = dict(mode=mode, container=container)
    write_lock(root, record)
    if guard:
        guard(engine, root, record["id"])
    if mode == "pause":
        engine.pause(container)
    else:
        engine.stop(container)


def resume(engine, record):
    """Let the container run again that was paused or stopped for the set; return its name, or None.

    Where a migration holds the app back it stays as it is, and the migration decides.
    May be repeated, so the caller decides when the record is to forget it.
    """
    if not record["quiesced"]:
        return None
    container = record["quiesced"]["container"]
    if leave_stopped(record["stack"].get("project") or "echo", container):
        record["quiesced"] = None
        return None
    with contextlib.suppress(Gone):
        state = engine.container(container)["state"]
        if state == "paused":
            engine.unpause(container)
        elif state != "running":
            engine.start(container)
    record["quiesced"] = None
    return container


def _last_sign_of_life(root, record):
    times = [0.0]
    paths = [os.path.join(root, LOCK)]
    if record["id"]:
        folder = staging(root, record["id"])
        paths.append(folder)
        with contextlib.suppress(OSError):
            paths.extend(os.path.join(folder, name) for name in os.listdir(folder))
    for path in paths:
        with contextlib.suppress(OSError):
            times.append(os.lstat(path).st_mtime)
    return max(times)
