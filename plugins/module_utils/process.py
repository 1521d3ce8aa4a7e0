# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which process did something, so that a later one can tell whether it still lives.

An identity is ``<machine> <pid> <start time>``. The machine is its boot id and the PID
namespace, so that neither a reboot nor a container's own numbering misleads; the start time
(field 22 of :manpage:`proc_pid_stat(5)`, clock ticks since boot) tells a process from a
later one that got the same number.
"""

from __future__ import annotations

import contextlib
import os


def identity(pid=None):
    """Return the identity of a process, of this one by default."""
    pid = pid or os.getpid()
    return "%s %d %s" % (_machine(), pid, _start_time(pid))


def is_local(who):
    """Tell whether an identity was made on this machine, so that its life can be judged."""
    return bool(who) and who.split(" ")[0] == _machine()


def is_alive(who):
    """Tell whether the process still runs; one of another machine counts as alive."""
    if not is_local(who):
        return True
    pid, start_time = who.split(" ")[1:3]
    return _start_time(int(pid)) == start_time


def _machine():
    with open("/proc/sys/kernel/random/boot_id") as boot_id:
        return boot_id.read().strip() + "/" + os.readlink("/proc/self/ns/pid")


def _start_time(pid):
    try:
        with open("/proc/%d/stat" % pid) as stat:
            # The command's name, in brackets, may hold blanks and brackets of its own.
            fields = stat.read().rpartition(")")[2].split()
            # What has ended stays in the table until its parent asks, which some never do.
            return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def leave_behind(work):
    """Call a function in a process that outlives this one; return at once."""
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        return
    try:
        # A session of its own: the end of the connection must not take it along.
        os.setsid()
        if os.fork() == 0:
            _let_go_of_files()
            os.chdir("/")
            work()
    finally:
        os._exit(0)


def _let_go_of_files():
    """Close what came from the module: its caller waits until nobody holds its output."""
    for descriptor in os.listdir("/proc/self/fd"):
        # The folder's own descriptor is in the list, and closed by now.
        with contextlib.suppress(OSError):
            os.close(int(descriptor))
    for unused in range(3):
        os.open(os.devnull, os.O_RDWR)
