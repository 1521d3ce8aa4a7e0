# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet costs its controller: CPU seconds, tasks and wall time of a playbook, by number of hosts and of forks.

    python tests/benchmark/fleet.py --inventory INVENTORY --real new1 new2 new3 --hosts 10 50 --forks 1 5 20
    python tests/benchmark/fleet.py --inventory INVENTORY --real new1 new2 new3 --playbook migrate.yml --check

The hosts of the inventory stand under many names, each with a folder of sets of its own, so that 50 hosts may be three
machines: what the controller does for a name is what it does for a machine. What the machines do is not measured here;
where they are few, forks beyond their number wait for them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RECAP = re.compile(r"^(?P<host>\S+)\s+: ok=(?P<ok>\d+)\s+changed=\d+\s+unreachable=(?P<lost>\d+)\s+failed=(?P<failed>\d+)", re.M)


def aliases(real, variables, count):
    """Return an inventory of ``count`` names that stand for the real hosts in turn."""
    hosts = {}
    for number in range(count):
        name = "host%03d" % number
        hosts[name] = dict(
            variables[real[number % len(real)]],
            echo_backup_root="/var/backups/echo-fleet/" + name,
            echo_backup_metrics="/var/backups/echo-fleet/%s/metrics" % name,
        )
    return {"echo": {"hosts": hosts}}


def variables_of(inventory, real):
    """Return the variables of the real hosts, as Ansible has them."""
    told = subprocess.run(["ansible-inventory", "-i", inventory, "--list"], check=True, capture_output=True, text=True)
    known = json.loads(told.stdout)["_meta"]["hostvars"]
    return dict((name, known[name]) for name in real)


def measure(inventory, playbook, options, forks):
    """Run a playbook; return what it took."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = ["ansible-playbook", "-i", inventory, "--forks", str(forks), *options, str(ROOT / "playbooks" / playbook)]
    env = dict(os.environ, ANSIBLE_NOCOLOR="true", ANSIBLE_PIPELINING="true")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    recap = [match.groupdict() for match in RECAP.finditer(done.stdout)]
    if not recap or any(int(host["failed"]) or int(host["lost"]) for host in recap):
        raise SystemExit("The playbook failed:\n%s" % (done.stdout + done.stderr)[-4000:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tasks = sum(int(host["ok"]) for host in recap)
    return dict(hosts=len(recap), forks=forks, wall=wall, cpu=cpu, tasks=tasks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", required=True)
    parser.add_argument("--real", nargs="+", required=True, help="names in the inventory")
    parser.add_argument("--hosts", nargs="+", type=int, default=[1, 10, 50])
    parser.add_argument("--forks", nargs="+", type=int, default=[1, 5, 20])
    parser.add_argument("--playbook", default="backup.yml")
    parser.add_argument("--check", action="store_true", help="in check mode")
    chosen = parser.parse_args()
    known = variables_of(chosen.inventory, chosen.real)
    print("| hosts | forks | wall s | CPU s of the controller | per host | tasks per host |")
    print("|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for count in chosen.hosts:
            inventory = os.path.join(folder, "%d.yml" % count)
            with open(inventory, "w", encoding="utf-8") as file:
                yaml.safe_dump(aliases(chosen.real, known, count), file)
            for forks in chosen.forks:
                took = measure(inventory, chosen.playbook, ["--check"] if chosen.check else [], forks)
                values = (took["hosts"], forks, took["wall"], took["cpu"], took["cpu"] / count, took["tasks"] / count)
                print("| %d | %d | %.0f | %.0f | %.1f | %.0f |" % values, flush=True)


if __name__ == "__main__":
    main()
