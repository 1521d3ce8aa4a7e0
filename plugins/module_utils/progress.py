# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a long module is, in a small file on the host, for those who asked.

Whoever runs a module asks by naming it in the environment. Then a thread looks twice a second how
far each phase is, so the work itself does no more than count what it counts anyway. Nobody
asked: there is no thread, no file, and a phase costs nothing. A progress that can't be told
never hinders the work that it is about.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import threading
import time

# Set by the action plugins; the files of all modules that one run has at work on a host begin so.
VARIABLE = "ECHO_PROGRESS_NAME"
NAME = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
# Folders of the one user who runs the module; root's goes with a reboot.
ROOTS_FOLDER = "/run/echo_music.ops"
USERS_FOLDER = "/tmp/echo_music.ops-%d"
INTERVAL = 0.5
# What a module that was killed left behind.
STALE = 24 * 60 * 60


class Phase:
    """One thing that takes long: what it is about, how many bytes are done, of how many.

    ``total`` is None where nobody can tell, ``done`` is asked for the bytes; without it they
    are those that :meth:`add` was told, which several threads may do. Both may be set later.
    """

    def __init__(self, label, total=None, done=None):
        self.label = label
        self.total = total
        self.done = done
        self._added = None
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def add(self, size):
        """Count bytes."""
        with self._lock:
            self._added = (self._added or 0) + size

    def told(self):
        """Return ``{"label", "done", "total", "seconds"}``; done is None where it can't be told."""
        done = self._added
        if self.done:
            # A file that is not there yet, a server that doesn't answer: the next look may tell.
            with contextlib.suppress(Exception):
                done = self.done()
        return dict(label=self.label, done=done, total=self.total, seconds=round(time.monotonic() - self._began, 3))


class Reporter(threading.Thread):
    """Writes how far the phases under way are to one file, which is there only while one is.

    A daemon: it must not keep a module from ending.
    """

    def __init__(self, path):
        super(Reporter, self).__init__(daemon=True)
        self.path = path
        self._phases = []
        self._lock = threading.Lock()
        self._wake = threading.Event()

    def begin(self, phase):
        """Take a phase up."""
        with self._lock:
            self._phases.append(phase)
        self._wake.set()

    def end(self, phase):
        """Tell no more of a phase."""
        with self._lock:
            self._phases.remove(phase)
            if not self._phases:
                self._wake.clear()
                self._remove()

    def run(self):
        """Write while there is something to tell, and sleep while there isn't."""
        while self._wake.wait():
            self.write()
            time.sleep(INTERVAL)

    def write(self):
        """Replace the file; one that can't be written is none."""
        # Asked without the lock: an answer may take its time, and must not keep a phase from ending.
        told = dict(id=os.getpid(), phases=[phase.told() for phase in list(self._phases)])
        with self._lock:
            if self._phases:
                with contextlib.suppress(OSError):
                    _replace(self.path, (json.dumps(told) + "\n").encode("utf-8"))

    def _remove(self):
        for path in (self.path, self.path + ".new"):
            with contextlib.suppress(OSError):
                os.unlink(path)


def wanted():
    """Tell whether anybody asked, for those who would have to find a total first."""
    return bool(NAME.match(os.environ.get(VARIABLE, "")))


@contextlib.contextmanager
def phase(label, total=None, done=None):
    """Let a block of work be followed; yield its :class:`Phase`."""
    told, reporter = Phase(label, total, done), _reporter()
    if reporter is None:
        yield told
        return
    reporter.begin(told)
    try:
        yield told
    finally:
        reporter.end(told)


def seldom(seconds, ask):
    """Return a function that asks no more often than every so many seconds, for answers that cost."""
    known = []

    def answer():
        now = time.monotonic()
        if not known or now - known[0] >= seconds:
            known[:] = [now, ask()]
        return known[1]

    return answer


def folder():
    """Return where this user's files are."""
    return USERS_FOLDER % os.geteuid() if os.geteuid() else ROOTS_FOLDER


_reporters = {}
_reporters_lock = threading.Lock()


def _reporter():
    """Return the one of this process, None if nobody asked or there is no place for its file."""
    if not wanted():
        return None
    with _reporters_lock:
        pid = os.getpid()
        if pid not in _reporters:
            _reporters[pid] = _started(folder(), "%s.%d.json" % (os.environ[VARIABLE], pid))
        return _reporters[pid]


def _started(place, name):
    try:
        _prepare(place)
    except OSError:
        return None
    reporter = Reporter(os.path.join(place, name))
    reporter.start()
    return reporter


def _prepare(place):
    """Have the folder, which is ours alone, and none of what was left long ago."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(place, 0o700)
    status = os.lstat(place)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(place)
    for entry in os.scandir(place):
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_mtime < time.time() - STALE:
                os.unlink(entry.path)


def _replace(path, data):
    """Replace a file so that a reader finds the old or the new one; it need not outlive a crash."""
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as target:
        target.write(data)
    os.replace(path + ".new", path)
