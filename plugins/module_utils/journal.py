# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is under way on a host, durable, so that a crash leaves nothing half done for long.

One file per stack, replaced whole at every step: the operation under way, with each step
recorded *before* it changes live data, the last operation whose old data is still kept, and what
is left of older ones because their server didn't answer when it was to go.
Whoever holds the journal open holds a lock that the kernel frees when the process ends, so a
journal that can be opened and names an operation tells of a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
import uuid

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained, read_small, replace_file

FOLDER = "/var/lib/echo_music.ops"
FORMAT = "echo-journal/1"
LIMIT = 16 * 1024 * 1024
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
ID = re.compile(r"[0-9a-f]{8}\Z")


class JournalError(EchoError):
    """The journal can't be opened, or what stands in it is not ours."""


class JournalBusy(JournalError):
    """A living process has the journal open."""


class Journal:
    """The journal of one stack; use it as a context manager.

    ``operation`` is the one under way, or None: ``{"id", "kind", "facts", "steps": [{"step",
    "time", "data"}]}``. ``kept`` is an ended one whose old data is still there, or None.
    ``owed`` are ended ones, with those parts alone whose old data could not be removed yet.
    ``unstarted`` tells that a restore was to start the whole stack, and none has yet.
    """

    def __init__(self, name, folder=FOLDER):
        if not NAME.match(name):
            raise JournalError("%.80r is not a name for a journal." % name)
        self.path = os.path.join(folder, name + ".json")
        self.operation = None
        self.kept = None
        self.owed = []
        self.unstarted = False
        self._lock = None

    def __enter__(self):
        folder = os.path.dirname(self.path)
        with explained("create", folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        with explained("lock", self.path), contextlib.ExitStack() as undo:
            lock = os.open(self.path[:-5] + ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self._busy()
            self._load(read(self.path))
            undo.pop_all()
        self._lock = lock
        return self

    def __exit__(self, *unused):
        os.close(self._lock)
        self._lock = None

    def begin(self, kind, operation_id=None, **facts):
        """Start an operation, of the id of an ended one if it undoes that; return the id."""
        self.operation = dict(id=operation_id or uuid.uuid4().hex[:8], kind=kind, facts=facts, steps=[])
        self.record("begin")
        return self.operation["id"]

    def record(self, step, **data):
        """Bring the next step down to the disk, before it is taken."""
        self.operation["steps"].append(dict(step=step, time=time.time(), data=data))
        self._write()

    def last(self, step):
        """Return the data of a step if it was recorded, else None."""
        for recorded in reversed(self.operation["steps"]):
            if recorded["step"] == step:
                return recorded["data"]
        return None

    def end(self, kept=None, owed=(), unstarted=False):
        """End the operation; ``kept`` is the ended one whose old data is there from now on, ``owed`` is owed as well."""
        self.operation, self.kept, self.owed, self.unstarted = None, kept, self.owed + list(owed), unstarted
        self._write()

    def forget(self, owed):
        """Drop what is told of an ended operation but what is owed of it."""
        self.kept, self.owed = None, self.owed + owed
        self._write()

    def pay(self, owed):
        """Tell what is owed from now on."""
        self.owed = owed
        self._write()

    def look(self):
        """Read what stands there, for a prediction: nothing is created, and what opening it would refuse is refused."""
        if self.is_held():
            raise self._busy()
        self._load(read(self.path))

    def is_held(self):
        """Tell whether a living process has it open; nothing is created for that."""
        with explained("lock", self.path):
            try:
                lock = os.open(self.path[:-5] + ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(lock)

    def _busy(self):
        return JournalBusy("Another restore is at work here (%s)." % self.path, "Wait for its end.")

    def _load(self, content):
        self.operation, self.kept, self.owed = content["operation"], content["kept"], content["owed"]
        self.unstarted = content["unstarted"]

    def _write(self):
        content = dict(format=FORMAT, operation=self.operation, kept=self.kept, owed=self.owed, unstarted=self.unstarted)
        replace_file(self.path, (json.dumps(content, sort_keys=True) + "\n").encode("utf-8"))


def read(path):
    """Return ``{"operation", "kept", "owed", "unstarted"}``; without a file there is none of them, and a foreign one is refused.

    A write that broke off left its text beside the journal, never in it, so what can't be
    understood was not written by us.
    """
    if not os.path.lexists(path):
        return dict(operation=None, kept=None, owed=[], unstarted=False)
    try:
        content = json.loads(read_small(path, LIMIT).decode("utf-8"))
        _need(isinstance(content, dict) and content.get("format") == FORMAT, "it is not of the format %s." % FORMAT)
        content.setdefault("owed", [])
        content.setdefault("unstarted", False)
        _need(set(content) == {"format", "operation", "kept", "owed", "unstarted"}, "its keys are others.")
        _need(isinstance(content["unstarted"], bool), "unstarted is wrong.")
        _need(isinstance(content["owed"], list) and None not in content["owed"], "owed is wrong.")
        for key, operation in [(key, content[key]) for key in ("operation", "kept")] + [("owed", item) for item in content["owed"]]:
            _check_operation(operation, key)
    except (ValueError, RecursionError) as error:
        raise JournalError(
            "The journal %s can't be understood: %s" % (path, error),
            "It tells how to end what was under way. Look at it, and move it away only if you know that nothing was.",
        )
    return dict((key, content[key]) for key in ("operation", "kept", "owed", "unstarted"))


def _check_operation(operation, key):
    if operation is None:
        return
    _need(isinstance(operation, dict) and set(operation) == {"id", "kind", "facts", "steps"}, "%s is wrong." % key)
    _need(isinstance(operation["id"], str) and ID.match(operation["id"]), "%s.id is wrong." % key)
    _need(isinstance(operation["kind"], str) and isinstance(operation["facts"], dict), "%s is wrong." % key)
    _need(isinstance(operation["steps"], list) and operation["steps"], "%s.steps is wrong." % key)
    for step in operation["steps"]:
        _need(
            isinstance(step, dict)
            and set(step) == {"step", "time", "data"}
            and isinstance(step["step"], str)
            and isinstance(step["time"], (int, float))
            and isinstance(step["data"], dict),
            "a step of %s is wrong." % key,
        )


def _need(condition, problem):
    if not condition:
        raise ValueError(problem)
