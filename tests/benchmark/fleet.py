# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a fleet costs its controller: CPU seconds, remote tasks and wall time of a playbook, by number of hosts and of forks.

    ansible-playbook -i tests/benchmark/fleet/inventory.yml tests/benchmark/fleet/up.yml
    python tests/benchmark/fleet.py --real old1 old2 old3 old4
    python tests/benchmark/fleet.py --real old1 old2 old3 old4 --check --hosts 4 50
    python tests/benchmark/fleet.py --real new1 new2 new3 new4 --playbook migrate.yml --check --hosts 4 50
    python tests/benchmark/fleet.py --real new1 new2 new3 new4 --playbook migrate.yml --forks 5

In check mode the real hosts stand in the inventory under as many names as are asked for: for the controller 50 names are 50
hosts. What the machines do is not measured; where they are few, or share their processors with the controller as test hosts
do, it is they who are waited for, so read the CPU seconds and not the wall time. An Echo is backed up by one at a time, and
a pair moves once, so what changes something has no more names than there are hosts.
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
FLEET = ROOT / "tests" / "benchmark" / "fleet"
RECAP = re.compile(r"^(?P<host>\S+)\s+: ok=\d+\s+changed=\d+\s+unreachable=(?P<lost>\d+)\s+failed=(?P<failed>\d+)", re.M)
REMOTE = re.compile(r"^REMOTE TASKS (\d+)$", re.M)


def aliases(real, variables, count):
    """Return an inventory of ``count`` names that stand for the real hosts in turn, with the old hosts of pairs."""
    hosts, sources = {}, {}
    for number in range(count):
        name, own = "host%03d" % number, dict(variables[real[number % len(real)]])
        if own.get("echo_migrate_source"):
            sources["old%03d" % number] = variables[own["echo_migrate_source"]]
            own["echo_migrate_source"] = "old%03d" % number
        root = "/var/backups/echo-fleet/" + name
        hosts[name] = dict(own, echo_backup_root=root, echo_backup_metrics=root + "/metrics")
    return {"fleet": {"hosts": hosts}, "fleet_sources": {"hosts": sources}}


def variables_of(inventory):
    """Return the variables of the hosts, as Ansible has them before it knows of other inventories."""
    told = subprocess.run(["ansible-inventory", "-i", inventory, "--list"], check=True, capture_output=True, text=True)
    return json.loads(told.stdout.replace("{{ inventory_dir }}", os.path.dirname(inventory)))["_meta"]["hostvars"]


def measure(inventory, playbook, options, forks):
    """Run a playbook; return what it took."""
    command = ["ansible-playbook", "-i", inventory, "-e", "echo_hosts=fleet", "--forks", str(forks), *options]
    env = dict(
        os.environ,
        ANSIBLE_NOCOLOR="true",
        ANSIBLE_PIPELINING="true",
        ANSIBLE_CALLBACK_PLUGINS=str(FLEET / "callback_plugins"),
        ANSIBLE_CALLBACKS_ENABLED="remote_tasks",
    )
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([*command, str(ROOT / "playbooks" / playbook)], env=env, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    recap = [match.groupdict() for match in RECAP.finditer(done.stdout)]
    if done.returncode or not recap or any(int(host["failed"]) or int(host["lost"]) for host in recap):
        raise SystemExit("The playbook failed:\n%s" % (done.stdout + done.stderr)[-4000:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return dict(wall=wall, cpu=cpu, tasks=int(REMOTE.search(done.stdout).group(1)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", default=str(FLEET / "inventory.yml"))
    parser.add_argument("--real", nargs="+", required=True, help="names in the inventory")
    parser.add_argument("--hosts", nargs="+", type=int, default=[4])
    parser.add_argument("--forks", nargs="+", type=int, default=[1, 5, 20])
    parser.add_argument("--playbook", default="backup.yml")
    parser.add_argument("--check", action="store_true", help="in check mode")
    chosen = parser.parse_args()
    if not chosen.check and max(chosen.hosts) > len(chosen.real):
        parser.error("Without --check no more hosts than real ones.")
    if not chosen.check and chosen.playbook == "migrate.yml" and len(chosen.forks) > 1:
        parser.error("A pair moves once: one number of forks.")
    known = variables_of(chosen.inventory)
    print("load before: %.1f, processors: %d\n" % (os.getloadavg()[0], os.cpu_count()))
    print("| hosts | forks | wall s | CPU s of the controller | CPU s per host | remote tasks per host |")
    print("|--:|--:|--:|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for count in chosen.hosts:
            inventory = os.path.join(folder, "%d.yml" % count)
            with open(inventory, "w", encoding="utf-8") as file:
                yaml.safe_dump(aliases(chosen.real, known, count), file)
            for forks in chosen.forks:
                took = measure(inventory, chosen.playbook, ["--check"] if chosen.check else [], forks)
                values = (count, forks, took["wall"], took["cpu"], took["cpu"] / count, took["tasks"] / count)
                print("| %d | %d | %.0f | %.0f | %.2f | %.1f |" % values, flush=True)


if __name__ == "__main__":
    main()
