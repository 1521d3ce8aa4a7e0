# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL a backup at ten moments spread over its run; after each, nothing half is listed and the next run mends all.

    python tests/faults/kill_walk.py --project echo --root /var/backups/echo --url http://127.0.0.1:4567/health \
        -- ansible-playbook -i inventory playbooks/backup.yml

Killed are the controller and every process that it started here. Every second time what detached itself is spared, as
it is when a controller dies: above all the job that dumps the database. It is held until the next run has cleaned up
and opened its own set, and then writes on. In half of the runs the app is paused when the blow falls. Containers are
the engine's children, so they always live on. The dead are buried only after the next run, as on a machine whose init
leaves zombies: they must not count as alive.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bystander

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".ansible" / "collections"))
from ansible_collections.echo_music.ops.plugins.module_utils.set_list import list_sets  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 120
POLL = 0.002
TOLD = 2000
ROW = "%-18s %-6s %4s %6s   %-48s %s"
MAKING = 8


class Walk:
    """The backups of one Echo into one root."""

    def __init__(self, project, root, url, command):
        self.project = project
        self.root = root
        self.url = url
        self.command = command

    def measure(self):
        """Run one backup undisturbed; return the seconds until its set was opened, was published, and it ended."""
        started = time.monotonic()
        with self.backup("pause") as run:
            opened = self.await_open(run) - started
            while run.poll() is None and self.staging():
                time.sleep(POLL)
            published = time.monotonic() - started
            if run.wait(PATIENCE):
                raise SystemExit("The undisturbed backup failed.")
        return opened, published, time.monotonic() - started

    def backup(self, quiesce):
        """Start a backup."""
        command = self.command + ["-e", "echo_backup_quiesce=" + quiesce]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self, delay, after_open, quiesce, spare):
        """Kill a backup some seconds after it started, or opened its set; return who died and who sleeps."""
        run = self.backup(quiesce)
        if after_open:
            self.await_open(run)
        time.sleep(delay)
        asleep = family(*(pid for pid in children(os.getpid()) if pid != run.pid)) if spare else set()
        send(signal.SIGSTOP, asleep)
        killed = set()
        while True:
            doomed = family(*children(os.getpid())) - asleep
            if not doomed:
                break
            send(signal.SIGKILL, doomed)
            killed |= doomed
        run.returncode = -signal.SIGKILL
        return killed, asleep

    def run_next(self, asleep):
        """Run the backup that has to clean up, and wake the sleepers once it has; return it with its output."""
        left = self.staging()
        run = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while run.poll() is None and not self.staging() - left:
            time.sleep(POLL)
        send(signal.SIGCONT, asleep)
        output = run.communicate(timeout=PATIENCE)[0]
        return subprocess.CompletedProcess(run.args, run.returncode, output)

    def await_open(self, run):
        """Wait for a run's staging folder and return the time."""
        while not self.staging():
            if run.poll() is not None:
                raise SystemExit("A backup ended before it opened a set.")
            time.sleep(POLL)
        return time.monotonic()

    def staging(self):
        """Return the folders in which sets are put together."""
        return {name for name in os.listdir(self.root) if name.endswith(".partial")}

    def look(self):
        """Return what a bystander sees; a set that only our own list takes for whole is a problem too."""
        seen = bystander.look(self.project, self.root, self.url)
        for listed in list_sets(self.root):
            if not listed["complete"]:
                seen["sets"][listed["id"]] = listed["problem"]
        return seen


def children(parent):
    """Return the processes that have this parent and live."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open("/proc/%s/stat" % name) as stat:
                state, its_parent = stat.read().rpartition(")")[2].split()[:2]
            if int(its_parent) == parent and state not in "ZX":
                found.add(int(name))
    return found


def family(*ancestors):
    """Return processes and all that descend from them."""
    found = set(ancestors)
    for ancestor in ancestors:
        found |= family(*children(ancestor))
    return found


def send(number, processes):
    """Send a signal to processes that may have ended."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def settle():
    """Wait until no process of a killed run is left, and bury them."""
    deadline = time.monotonic() + PATIENCE
    while children(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def moments(opened, published, ended):
    """Yield ten ``(delay, after_open)``: one while it looks around, eight in the set's making, one at the end."""
    making = published - opened
    yield opened / 2, False
    for step in range(MAKING):
        yield making * step / MAKING, True
    yield (making + ended - opened) / 2, True


def summary(seen):
    """Return a sight in a few words."""
    broken = [name for name, problem in seen["sets"].items() if problem]
    paused = [name for name, state in seen["containers"].items() if state != "running"]
    words = ["%d sets" % len(seen["sets"])]
    words += ["BROKEN " + name for name in broken]
    words += [".partial" if name.endswith(".partial") else name for name in seen["leftovers"]]
    words += ["helper"] * len(seen["helpers"])
    words += ["%s %s" % (name, seen["containers"][name]) for name in paused]
    return ", ".join(words)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("command", nargs="+")
    walk = Walk(**vars(parser.parse_args()))
    # What detaches itself becomes our child when its parent ends, so that only what we started is ever killed.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    measured = walk.measure()
    print("undisturbed: opened after %.1f s, published after %.1f s, ended after %.1f s" % measured)
    print(ROW % ("killed", "app", "died", "asleep", "found", "after the next run"))
    wrong = 0
    for number, (delay, after_open) in enumerate(moments(*measured)):
        quiesce = ("none", "pause")[number // 2 % 2]
        spare = bool(number % 2)
        killed, asleep = walk.kill(delay, after_open, quiesce, spare)
        found = walk.look()
        repair = walk.run_next(asleep)
        settle()
        bystander.health(walk.url, wait=bystander.HEALTH_TIMEOUT)
        after = walk.look()
        good = (
            not any(found["sets"].values())
            and found["latest"] in found["sets"]
            and repair.returncode == 0
            and bystander.is_calm(after)
        )
        wrong += not good
        moment = "%.2f s after %s" % (delay, "open" if after_open else "start")
        print(ROW % (moment, quiesce, len(killed), len(asleep), summary(found), summary(after)), flush=True)
        if not good:
            print("WRONG, the next run ended with %d:\n%s" % (repair.returncode, repair.stdout[-TOLD:]), flush=True)
    raise SystemExit("%d of 10 moments ended wrong" % wrong if wrong else 0)


if __name__ == "__main__":
    main()
