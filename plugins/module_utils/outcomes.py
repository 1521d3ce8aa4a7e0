# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the operations on a root of backup sets ended, counted over all runs.

A set tells of a backup that went well; of one that failed, only this does. What can't be read
is counted anew, because nothing but metrics and the status page depend on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained, read_small, replace_file

FOLDER = "/var/lib/echo_music.ops/outcomes"
FORMAT = "echo-outcomes/1"
LIMIT = 1024 * 1024
OUTCOMES = ("success", "failure")
SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~")


def name_of(root):
    """Return a file name for a root, another one for every other root: ``var-backups-echo``."""
    path = os.path.abspath(root).strip("/").encode("utf-8", "surrogateescape")
    letters = ("-" if byte == 0x2F else chr(byte) if chr(byte) in SAFE else "%%%02X" % byte for byte in path)
    return "".join(letters) or "-"


def read_outcomes(root, folder=FOLDER):
    """Return the outcomes by operation; an empty dict where nothing readable tells of any."""
    path = _path(root, folder)
    if not os.path.lexists(path):
        return {}
    try:
        content = json.loads(read_small(path, LIMIT).decode("utf-8"))
        if content["format"] != FORMAT:
            return {}
        return dict((name, _checked(entry)) for name, entry in content["operations"].items())
    except (SetError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}


def with_outcome(outcomes, operation, outcome, time, seconds=None, alarms=0):
    """Return the outcomes with one more run; those of other operations stay, and so does the last success."""
    before = outcomes.get(operation) or dict(runs={}, last={}, finished={})
    runs = dict((kind, before["runs"].get(kind, 0) + (kind == outcome)) for kind in OUTCOMES)
    entry = dict(
        runs=runs,
        last=dict(outcome=outcome, seconds=seconds, alarms=alarms),
        finished=dict(before["finished"], **{outcome: time}),
    )
    return dict(outcomes, **{operation: entry})


def record(root, operation, outcome, time, seconds=None, alarms=0, folder=FOLDER):
    """Bring one more run down to the disk; return the outcomes."""
    with explained("create", folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    with _locked(folder):
        outcomes = with_outcome(read_outcomes(root, folder), operation, outcome, time, seconds, alarms)
        content = dict(format=FORMAT, root=root, operations=outcomes)
        replace_file(_path(root, folder), (json.dumps(content, indent=2, sort_keys=True) + "\n").encode("utf-8"))
    return outcomes


def _path(root, folder):
    return os.path.join(folder, name_of(root) + ".json")


@contextlib.contextmanager
def _locked(folder):
    """A backup and a drill may end at once; the kernel frees the lock when we end."""
    with explained("lock", folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _checked(entry):
    """Return an operation's entry with numbers where they belong, or raise ``ValueError`` or its like."""
    numbers = list(entry["runs"].values()) + list(entry["finished"].values()) + [entry["last"]["alarms"]]
    if entry["last"]["seconds"] is not None:
        numbers.append(entry["last"]["seconds"])
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers):
        raise ValueError("not a number")
    named = set(entry["runs"]) | set(entry["finished"]) | {entry["last"]["outcome"]}
    if not entry["finished"] or not named <= set(OUTCOMES):
        raise ValueError("not an outcome")
    return entry
