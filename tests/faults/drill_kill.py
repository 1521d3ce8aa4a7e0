# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL a drill at the moment when all of its servers are there, and tell what it leaves.

    python tests/faults/drill_kill.py --project verifytest --source /var/backups/echo/backup_2026-11-24_03-00-00
    python tests/faults/drill_kill.py --look-for '{"containers": [...], "networks": [...], "volumes": [...]}'

A child process runs the drill as the module does. The second call tells what of the first one's output is still there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".ansible" / "collections"))
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Engine  # noqa: E402
from ansible_collections.echo_music.ops.plugins.module_utils.verify import ensure_verified  # noqa: E402

LABEL = "echo_music.ops.helper"
LISTS = {
    "containers": ["ps", "--all", "--format", '{{.Names}}\t{{.Label "%s"}}' % LABEL],
    "networks": ["network", "ls", "--format", '{{.Name}}\t{{.Label "%s"}}' % LABEL],
    "volumes": ["volume", "ls", "--format", '{{.Name}}\t{{.Label "%s"}}' % LABEL],
}
PATIENCE = 120


def kill(project, source):
    """Kill a drill as soon as its app is there; return what it made."""
    child = os.fork()
    if not child:
        # What it prints must not mix with the result.
        os.dup2(2, 1)
        ensure_verified(Engine(), source, project=project)
        os._exit(0)
    deadline = time.monotonic() + PATIENCE
    while not any(name.endswith("-app") for name in made_by(child)["containers"]):
        if time.monotonic() > deadline or os.waitpid(child, os.WNOHANG)[0]:
            raise SystemExit("The drill ended before it could be killed.")
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return made_by(child)


def made_by(pid):
    """Return the names of what carries a process's label."""
    return dict(
        (kind, sorted(name for name, maker in listed(kind) if " %d " % pid in maker)) for kind in LISTS
    )


def still_there(names):
    """Return those of the names that exist."""
    return dict((kind, sorted(set(names[kind]) & {name for name, unused in listed(kind)})) for kind in LISTS)


def listed(kind):
    done = subprocess.run(["docker"] + LISTS[kind], check=True, capture_output=True, text=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project")
    parser.add_argument("--source")
    parser.add_argument("--look-for", type=json.loads)
    options = parser.parse_args()
    print(json.dumps(still_there(options.look_for) if options.look_for else kill(options.project, options.source)))


if __name__ == "__main__":
    main()
