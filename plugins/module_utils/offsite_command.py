# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that carry sets off the host: run without a terminal, within a time, their secrets kept.

A secret reaches a program through its environment or a file, never through its arguments, and
is blotted out of what it says.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.progress import wanted

BLOCK = 1024 * 1024
OUTPUT_LIMIT = 64 * BLOCK
STDERR_KEPT = 4096
# The last figures that a program told of its progress are at the end of what it said.
TAIL = 16 * 1024
LONGEST_PAUSE = 600
VERSION = re.compile(r"\d+(\.\d+)+")
CREDENTIALS = re.compile(r"(?<=//)[^/@\s:]*:[^/@\s]+(?=@)")
# No program asks a person for anything: it would wait for ever.
SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4")


class OffsiteError(EchoError):
    """A copy off the host failed, in a way that another try won't mend."""


class LinkError(OffsiteError):
    """The way to the far end failed, or the far end for now: another try may succeed."""


class Finished:
    """What a program that ended left: ``code``, ``stdout``, ``stderr``."""

    def __init__(self, code, stdout, stderr):
        self.code = code
        self.stdout = stdout
        self.stderr = stderr


class Programs:
    """Runs the programs of one destination.

    ``environment`` is added to ours, ``secrets`` are the texts that no message may show,
    ``keep_open`` a descriptor that the programs inherit: a lock on it lives as long as they do.
    """

    def __init__(self, environment=None, secrets=(), timeout=None, keep_open=None, run=None):
        self.environment = dict(environment or {})
        self.keep_open = keep_open
        self.phase = None
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)
        self._timeout = timeout
        self._run = run or run_program

    def __call__(self, argv, cwd=None, consume=None, figures=None):
        """Run a program to its end, whatever that is; ``consume`` is handed its output block by block.

        ``figures`` finds how far it is in what it says, for the phase under way: the groups ``done`` and ``total``.
        """
        environment = dict(_base_environment(), **self.environment)
        kept = () if self.keep_open is None else (self.keep_open,)
        listener = dict(listener=Listener(self.phase, figures)) if figures and self.phase and wanted() else {}
        code, stdout, stderr = self._run(
            argv, environment=environment, cwd=cwd, consume=consume, timeout=self._timeout, pass_fds=kept, **listener
        )
        return Finished(code, stdout.decode("utf-8", "replace"), self.hide(stderr.decode("utf-8", "replace")).strip())

    def hide(self, text):
        """Return a text without the secrets, and without credentials in the URLs of it."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return CREDENTIALS.sub("***", text)

    def require(self, program, minimum, package=None, ask=("--version",)):
        """Return the program's version as numbers; raise if it is missing or too old."""
        package = package or program
        remedy = "Install the package %s (apt-get install %s)." % (package, package)
        try:
            finished = self([program] + list(ask))
        except FileNotFoundError:
            raise OffsiteError("There is no program %s on this host." % program, remedy)
        found = VERSION.search(finished.stdout or finished.stderr)
        if finished.code or not found:
            raise OffsiteError(
                "%s doesn't tell its version: %s" % (program, _tail(finished.stderr) or finished.stdout[:200]), remedy
            )
        version = tuple(int(number) for number in found.group().split("."))
        if version < minimum:
            wanted = ".".join(str(number) for number in minimum)
            raise OffsiteError(
                "%s is of version %s; at least %s is needed." % (program, found.group(), wanted),
                "Upgrade the package %s." % package,
            )
        return version


class Listener:
    """Finds in what a program says how far it is, when the phase that it is part of is asked."""

    def __init__(self, phase, figures):
        self.errors = None
        self._phase = phase
        self._figures = figures
        self._output = b""
        phase.done = self._done

    def hear(self, block):
        """Take what comes on the program's output."""
        self._output = (self._output + block)[-TAIL:]

    def _done(self):
        said = self._output
        if self.errors is not None:
            said += os.pread(self.errors, TAIL, max(0, os.fstat(self.errors).st_size - TAIL))
        found = list(self._figures.finditer(said))[-1].groupdict()
        self._phase.total = int(found.get("total") or 0) or self._phase.total
        return int(found["done"].replace(b",", b""))


def run_program(argv, environment, cwd=None, consume=None, timeout=None, pass_fds=(), listener=None):
    """Run a program in a session of its own; return ``(exit code, output, end of the error output)``.

    Without a terminal none can ask for a password. After ``timeout`` seconds the whole session is killed.
    """
    # Of a program that isn't there nothing but its name is told, wherever the error comes from.
    if not shutil.which(argv[0], path=environment.get("PATH")):
        raise FileNotFoundError(argv[0])
    collected, size = [], 0
    with tempfile.TemporaryFile() as errors:
        if listener:
            listener.errors = errors.fileno()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        late = threading.Event()
        timer = threading.Timer(timeout or threading.TIMEOUT_MAX, _expire, (process, late))
        timer.daemon = True
        timer.start()
        try:
            for block in iter(lambda: process.stdout.read1(BLOCK), b""):
                (consume or collected.append)(block)
                size += len(block)
                if listener:
                    listener.hear(block)
                if not consume and size > OUTPUT_LIMIT:
                    raise OffsiteError("%s says more than it should." % argv[0])
            code = process.wait()
        finally:
            timer.cancel()
            # Whatever interrupts us ends the program as well.
            _kill(process)
            process.stdout.close()
            process.wait()
            if listener:
                listener.errors = None
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - STDERR_KEPT))
        stderr = errors.read()
    if late.is_set():
        raise LinkError("%s was not done after %d seconds." % (argv[0], timeout), "Raise timeout, or mend the link.")
    return code, b"".join(collected), stderr


def persist(action, retries, delay, sleep=time.sleep):
    """Do something, and again after a growing pause while the link fails; return ``(result, tries)``."""
    tries = 0
    while True:
        tries += 1
        try:
            return action(), tries
        except LinkError as error:
            if tries > retries:
                error.details["attempts"] = tries
                raise
        sleep(min(delay * 2 ** (tries - 1), LONGEST_PAUSE))


def failure(what, finished, lasting=False, remedy=None):
    """Return the error for a program that ended badly; a ``lasting`` one is not tried again."""
    kind = OffsiteError if lasting else LinkError
    return kind("%s: %s" % (what, _tail(finished.stderr) or "exit code %d" % finished.code), remedy)


def ssh_command(port=None, key=None, options=()):
    """Return the arguments of SSH up to the host's name."""
    command = ["ssh"]
    # Of repeated options SSH takes the first: those of the user come before ours.
    for option in list(options) + list(SSH_OPTIONS):
        command += ["-o", option]
    if port:
        command += ["-p", str(port)]
    if key:
        command += ["-i", key, "-o", "IdentitiesOnly=yes"]
    return command


def _base_environment():
    environment = dict(os.environ, LC_ALL="C")
    if not environment.get("HOME"):
        environment["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir
    return environment


def _expire(process, late):
    late.set()
    _kill(process)


def _kill(process):
    # A process that was waited for has left its number to others.
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _tail(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-3:])[-600:]
