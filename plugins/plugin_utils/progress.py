# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action plugins of long modules: in a terminal they show how far the module is.

Without a terminal, and wherever somebody else reads what Ansible says, they do what Ansible's own
action plugin does, and nothing else. The module runs the same way in both cases: all that
differs is a variable in its environment, and a thread that now and then reads a small file on
the host through the task's own kind of connection.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import hashlib
import os
import shutil
import threading
import time
import uuid

from ansible import constants as C
from ansible import context
from ansible.plugins.action.normal import ActionModule as NormalAction
from ansible.utils.display import Display

from ansible_collections.echo_music.ops.plugins.module_utils.progress import ROOTS_FOLDER, USERS_FOLDER, VARIABLE
from ansible_collections.echo_music.ops.plugins.plugin_utils.progress_text import Pace, line, parse

display = Display()

# On the controller: `ECHO_PROGRESS=0` for quiet.
SWITCH = "ECHO_PROGRESS"
OFF = ("0", "false", "no", "off", "never")
# Others draw on the screen by themselves, or write what programs read.
CALLBACKS = ("default", "ansible.builtin.default", "minimal", "ansible.builtin.minimal")
# From here on Ansible tells of every command that it runs, and ours would be among them.
CONNECTION_DEBUG = 3
ERASE_LINE, LINE_ABOVE = "\r\033[K", "\033[A\r\033[K"
LINES = 4
# Tasks are carried out by processes without a terminal, which come of the one that imports this.
RUN = uuid.uuid4().hex[:12]
TERMINAL = os.dup(1) if os.isatty(1) else None


class ActionModule(NormalAction):
    """Runs the module of its name, and shows meanwhile how far it is."""

    def run(self, tmp=None, task_vars=None):
        """Run the module."""
        if self._task.check_mode or not is_wanted():
            return super(ActionModule, self).run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname", "")
        name = "%s-%s" % (RUN, hashlib.sha256(host.encode("utf-8")).hexdigest()[:12])
        with self._asking(name), contextlib.ExitStack() as stack:
            # One in the background is left at once; the tasks beside it, and echo_job after them, show its progress.
            if not self._task.async_val:
                alone = len((task_vars or {}).get("ansible_play_batch") or []) == 1
                screen = Screen() if alone else Log(host)
                stack.enter_context(Watch(self._reader(name), screen))
            return super(ActionModule, self).run(tmp, task_vars)

    @contextlib.contextmanager
    def _asking(self, name):
        """Have the module's environment name the file."""
        before = self._task.environment
        given = before if isinstance(before, list) else [before] if before else []
        self._task.environment = list(given) + [{VARIABLE: name}]
        try:
            yield
        finally:
            self._task.environment = before

    def _reader(self, name):
        """Return a function that reads what the host's files say, beside the command under way."""
        files = ["%s/%s.*.json" % (place, name) for place in (ROOTS_FOLDER, USERS_FOLDER.replace("%d", "$(id -u)"))]
        twin = copy.copy(self)
        # What a connection and its become plugin know of a command under way is theirs alone.
        twin._connection = copy.copy(self._connection)
        if twin._connection.become:
            twin._connection.become = copy.copy(twin._connection.become)

        def read():
            return twin._low_level_execute_command("cat %s 2>/dev/null || true" % " ".join(files))["stdout"]

        return read


def is_wanted():
    """Tell whether a person looks at a terminal on which nobody else draws."""
    return (
        TERMINAL is not None
        and os.environ.get(SWITCH, "").strip().lower() not in OFF
        and not os.environ.get("CI")
        and os.environ.get("TERM", "dumb") != "dumb"
        and C.DEFAULT_STDOUT_CALLBACK in CALLBACKS
        and not context.CLIARGS.get("one_line")
        and display.verbosity < CONNECTION_DEBUG
    )


class Watch(threading.Thread):
    """Reads and shows, again and again, while a block of work goes on. A daemon, so it delays nobody."""

    def __init__(self, read, screen):
        super(Watch, self).__init__(daemon=True)
        self._read = read
        self._screen = screen
        self._paces = {}
        self._ended = threading.Event()
        self._lock = threading.Lock()
        # What Ansible knows of the task under way is known in a thread that it started itself.
        self._context = contextvars.copy_context()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *unused):
        # An answer under way is not waited for: a link may be slow, and the result is there.
        with self._lock:
            self._ended.set()
            self._screen.clear()

    def run(self):
        """Look until the work has ended, or a look fails; the work will tell of that link itself."""
        with contextlib.suppress(Exception):
            self._context.run(self._look)

    def _look(self):
        began = time.monotonic()
        while not self._ended.wait(self._screen.pause(time.monotonic() - began)):
            self.show(self._read())

    def show(self, text):
        """Show what the files of the host say."""
        with self._lock:
            if not self._ended.is_set():
                self._screen.show(self._living(parse(text)))

    def _living(self, phases):
        """Return ``[(phase, rate)]`` without those whose module was killed."""
        living, now = [], time.monotonic()
        for key, phase in phases.items():
            pace = self._paces.setdefault(key, Pace())
            if not pace.is_dead(phase, now):
                living.append((phase, pace.rate(phase, now)))
        return living


class Screen:
    """A few lines at the bottom, drawn over again and again: for one host, beside whose task nothing else is said."""

    def __init__(self):
        self._drawn = 0

    @staticmethod
    def pause(elapsed):
        """Return the seconds until the next look: seldom where it takes long, for a look costs the host a command."""
        return min(10.0, max(1.0, elapsed / 20))

    def show(self, phases):
        """Draw a line for each phase, in place of those that were drawn before."""
        self._draw([line(phase, rate, columns()) for phase, rate in phases[:LINES]])

    def clear(self):
        """Leave no trace."""
        self._draw([])

    def _draw(self, lines):
        if lines or self._drawn:
            say(ERASE_LINE + LINE_ABOVE * (self._drawn - 1) + "\n".join(lines), newline=False)
            self._drawn = len(lines)


class Log:
    """Lines that stay, with the host's name, now and then: for several hosts, of which any may say something."""

    def __init__(self, host):
        self._host = host

    @staticmethod
    def pause(elapsed):
        """Return the seconds until the next look."""
        return min(60.0, max(10.0, elapsed / 10))

    def show(self, phases):
        """Say how far each phase is."""
        for phase, rate in phases[:LINES]:
            say(line(phase, rate, columns(), self._host))

    def clear(self):
        """What was said stays."""


def say(text, newline=True):
    """Have the screen show a text, and no log."""
    display.display(text, screen_only=True, newline=newline)


def columns():
    """Return how many columns a line may have, as the terminal is now."""
    try:
        width = os.get_terminal_size(TERMINAL).columns
    except (OSError, TypeError):
        width = 0
    # A terminal that doesn't tell has 80; the last column would have some begin a new line.
    return (width or shutil.get_terminal_size().columns) - 1
