# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cause a fault at one exact moment of a backup: its pg_dump has written its first bytes and is held there.

    python tests/faults/interrupt.py kill_helper --project echo --root /var/backups/echo -- ansible-playbook ...

Prints JSON: the moment, the backup's exit code and output, and what the fault itself said.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import signal
import subprocess
import time

import bystander

PATIENCE = 60
PG_DUMP = b"pg_dump\0--format=custom\0"


def kill_pg_dump(moment):
    os.kill(moment["pg_dump"], signal.SIGKILL)


def kill_helper(moment):
    for container in bystander.helpers(moment["root"]):
        bystander.docker("kill", container)


def remove_database(moment):
    bystander.docker("rm", "--force", moment["database"])


def fill_disk(moment):
    """Fill the file system that holds the root, from beside it."""
    with open(os.path.join(os.path.dirname(moment["root"]), "filler"), "wb", buffering=0) as filler:
        with contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))


def second_backup(moment):
    return run(moment["command"])


FAULTS = dict(
    (fault.__name__, fault) for fault in (kill_pg_dump, kill_helper, remove_database, fill_disk, second_backup)
)


def interrupt(fault, project, root, command):
    """Run the command; hold its pg_dump at its first bytes, cause the fault, and let it go on."""
    database = project + "-postgres"
    backup = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        moment = dict(hold(backup, network_of(database), root), root=root, database=database, command=command)
        try:
            said = FAULTS[fault](moment)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(moment["pg_dump"], signal.SIGCONT)
        output = backup.communicate(timeout=PATIENCE)[0]
    finally:
        backup.kill()
    return dict(bytes=moment["bytes"], found=moment["found"], rc=backup.returncode, output=output, fault=said)


def hold(backup, network, root):
    """Wait for the pg_dump in a network namespace, and stop it as soon as its dump has bytes."""
    deadline = time.monotonic() + PATIENCE
    pid = None
    while backup.poll() is None and time.monotonic() < deadline:
        pid = pid or find_pg_dump(network)
        size = written(root) if pid else 0
        if size:
            os.kill(pid, signal.SIGSTOP)
            return dict(pg_dump=pid, bytes=size, found=sorted(os.listdir(root)))
        time.sleep(0.001)
    backup.kill()
    raise SystemExit("No pg_dump was seen at work: %s" % backup.communicate()[0])


def find_pg_dump(network):
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open("/proc/%s/cmdline" % name, "rb") as command_line:
                if command_line.read().startswith(PG_DUMP) and os.readlink("/proc/%s/ns/net" % name) == network:
                    return int(name)
    return None


def network_of(container):
    pid = bystander.docker("inspect", "--format", "{{.State.Pid}}", container).strip()
    return os.readlink("/proc/%s/ns/net" % pid)


def written(root):
    found = glob.glob(os.path.join(root, ".*.partial", "postgres_dump.backup.partial"))
    return sum(os.path.getsize(path) for path in found)


def run(command):
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return dict(rc=done.returncode, output=done.stdout + done.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=sorted(FAULTS))
    parser.add_argument("--project", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("command", nargs="+")
    print(json.dumps(interrupt(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
