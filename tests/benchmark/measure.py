# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One command measured: seconds, seconds until its output is on disk, CPU by who used it, peak memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

PROC = Path("/proc")
ENGINE_PROCESSES = ("dockerd", "containerd", "containerd-shim")
# The parent of all the containers' control groups, which also remembers those that are gone.
CONTAINERS_CPU = (
    (Path("/sys/fs/cgroup/cpuacct/docker/cpuacct.usage"), lambda text: int(text) / 1e9),
    (Path("/sys/fs/cgroup/docker/cpu.stat"), lambda text: int(text.split()[1]) / 1e6),
)
TICKS = os.sysconf("SC_CLK_TCK")
IDLE = 0.15
IDLE_SAMPLE = 0.5
MEMORY_INTERVAL = 0.03
INTERRUPTED_WITHIN = 10


@dataclasses.dataclass
class Run:
    """What was measured. Seconds of CPU; ``containers`` is None where the engine's control groups aren't found."""

    seconds: float
    on_disk: float
    own: float
    containers: float | None
    engine: float
    others: float
    peak: int
    idle: bool
    code: int
    stdout: str
    stderr: str
    output: int = 0


def measure(argv, dest, patience, stdin=None, env=None):
    """Run a command that writes into the folder ``dest``, which no process but its own has mounted.

    It begins when the machine idles, or after so many seconds of ``patience``.
    """
    idle = _settle(patience)
    before = _cpu()
    memory = _MemoryWatch(str(dest))
    started = time.monotonic()
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    with memory.of(process.pid), _ended(process):
        stdout, stderr = process.communicate(stdin)
    seconds = time.monotonic() - started
    cpu = {who: after and after - before[who] for who, after in _cpu().items()}
    subprocess.run(["sync", "-f", str(dest)], check=True)
    return Run(
        seconds=seconds,
        on_disk=time.monotonic() - started,
        own=cpu["own"],
        containers=cpu["containers"],
        engine=cpu["engine"],
        others=cpu["all"] - cpu["own"] - (cpu["containers"] or 0) - cpu["engine"],
        peak=memory.peak,
        idle=idle,
        code=process.returncode,
        stdout=stdout,
        stderr=stderr,
    )


@contextlib.contextmanager
def _ended(process):
    """Leave no process behind; interrupted, a module of ours has the time to remove its helper container."""
    try:
        yield
    except BaseException:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(INTERRUPTED_WITHIN)
        process.kill()
        process.wait()
        raise


def _settle(patience):
    """Write out what is waiting to be written, then wait until the machine idles; tell whether it does."""
    os.sync()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = _busy()
        time.sleep(IDLE_SAMPLE)
        if _busy() - before < IDLE * IDLE_SAMPLE:
            return True
    return False


def _cpu():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return dict(
        own=children.ru_utime + children.ru_stime,
        containers=next((read(path.read_text()) for path, read in CONTAINERS_CPU if path.exists()), None),
        engine=sum(_engine_cpu(pid) for pid in _pids()),
        all=_busy(),
    )


def _busy():
    """Return the seconds that all the CPUs have worked."""
    user, nice, system, _idle, _waiting, *interrupts = map(int, (PROC / "stat").read_text().split("\n")[0].split()[1:8])
    return (user + nice + system + sum(interrupts[:2])) / TICKS


def _engine_cpu(pid):
    with contextlib.suppress(OSError):
        name, fields = _stat(pid)
        if name in ENGINE_PROCESSES:
            return (int(fields[11]) + int(fields[12])) / TICKS
    return 0


def _pids():
    return sorted(int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _stat(pid):
    """Return a process's name and the fields behind it: state, parent, …"""
    start, _bracket, rest = (PROC / str(pid) / "stat").read_text().rpartition(")")
    return start.partition("(")[2], rest.split()


class _MemoryWatch:
    """Looks at a command, its children, and what containers that mount ``marker`` run: no page cache.

    The peak is the largest sum of the high-water marks of those that live at the same time.
    """

    def __init__(self, marker):
        self.peak = 0
        self._marker = marker
        self._known = dict.fromkeys(_pids(), False)
        self._done = threading.Event()

    @contextlib.contextmanager
    def of(self, pid):
        """Watch while the block runs."""
        self._known[pid] = True
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _watch(self):
        while not self._done.wait(MEMORY_INTERVAL):
            self.peak = max(self.peak, sum(self._high_water(pid) for pid in _pids()))

    def _high_water(self, pid):
        with contextlib.suppress(OSError, IndexError):
            if pid not in self._known:
                self._known[pid] = self._parent(pid) in self._ours() or self._is_in_container(pid)
            if self._known[pid] and not self._is_mere_fork(pid):
                status = (PROC / str(pid) / "status").read_text()
                return int(status.partition("VmHWM:")[2].split()[0]) * 1024
        return 0

    def _ours(self):
        return {pid for pid, is_ours in self._known.items() if is_ours}

    def _is_in_container(self, pid):
        return self._marker in (PROC / str(pid) / "mountinfo").read_text()

    def _is_mere_fork(self, pid):
        """Tell whether a process still is the copy of its parent, whose pages it shares."""
        own, parent = ((PROC / str(number) / "cmdline").read_bytes() for number in (pid, self._parent(pid)))
        return own == parent

    @staticmethod
    def _parent(pid):
        return int(_stat(pid)[1][1])
