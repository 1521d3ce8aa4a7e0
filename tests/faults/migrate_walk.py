# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Break a migration in every phase: the controller killed, a host lost, a network cut. Then run it again, and judge.

    python tests/faults/migrate_walk.py --inventory INVENTORY --key KEY --scratch FOLDER [--only NAME]

The pair is migrate_faults-old and migrate_faults-new. A client plays music all along. At no moment may both serve; when
the fault is over and the playbook has run again, exactly one serves, and it has every play that was acknowledged.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import migrated
import player

OLD, NEW, NETWORK = "migrate_faults-old", "migrate_faults-new", "echo-test-migrate_faults"
ADDRESSES = {OLD: "172.29.6.11", NEW: "172.29.6.21"}
PLAYBOOK = Path(__file__).resolve().parents[2] / "playbooks" / "migrate.yml"
PATIENCE = 600
# The guard's time, where it is to bring the old host back, and where it isn't.
SHORT, LONG = 20, 1800
GUARDED = "controller killed while nobody serves"

CUT = "docker network disconnect %s %%s" % NETWORK
MEND = "docker network connect --ip {address} %s {host}" % NETWORK
BOOT = "docker start {host}"
DROP = "docker exec %s iptables --insert INPUT --source %s --jump DROP" % (OLD, ADDRESSES[NEW])
PASS = "docker exec %s iptables --delete INPUT --source %s --jump DROP" % (OLD, ADDRESSES[NEW])

# name: (task, which start of it, fault, what mends it, who serves before it is mended, who after the next run)
FAULTS = {
    "controller killed while files are copied": ("Copy the files while the old host serves", 1, "KILL", None, "old", "old"),
    "controller killed while nobody serves": ("Open a set", 1, "KILL", None, "old", "old"),
    "controller killed after the grant": ("Start the new app, and compare", 1, "KILL", None, None, "old"),
    "controller killed once the new host serves": ("Let it serve for good", 1, "KILL", None, "new", "new"),
    "new host lost while nobody serves": (
        "Restore the database, and compare its rows", 1, "docker kill " + NEW, BOOT.format(host=NEW), "old", "old",
    ),
    "old host lost while nobody serves": ("Dump the database", 1, "docker kill " + OLD, BOOT.format(host=OLD), None, "old"),
    "network between the hosts cut while nobody serves": (
        "Copy the set, and what has changed in the files", 1, DROP, PASS, "old", "old",
    ),
    "network to the new host cut after the grant": (
        "Start the new app, and compare", 1, CUT % NEW, MEND.format(host=NEW, address=ADDRESSES[NEW]), None, "old",
    ),
    "network to the old host cut once the new host serves": (
        "Keep the old host stopped and complete", 1, CUT % OLD, MEND.format(host=OLD, address=ADDRESSES[OLD]), "new", "new",
    ),
}


class Pair:
    """The two hosts, and the playbook for them."""

    def __init__(self, inventory, key, scratch):
        self.inventory = inventory
        self.key = key
        self.scratch = Path(scratch)

    def play(self, *options, fault=None):
        """Run the playbook; return its exit code and what it said."""
        env = dict(os.environ, ANSIBLE_PIPELINING="true", ANSIBLE_NOCOLOR="true")
        if fault:
            task, number, command = fault
            env.update(
                ANSIBLE_CALLBACK_PLUGINS=str(Path(__file__).parent / "callback_plugins"),
                ANSIBLE_CALLBACKS_ENABLED="fault",
                ECHO_FAULT_TASK=task,
                ECHO_FAULT_NUMBER=str(number),
                ECHO_FAULT=command,
                ECHO_FAULT_MARK=str(self.scratch / "mark"),
            )
        command = ["ansible-playbook", "--inventory", self.inventory, *options, str(PLAYBOOK)]
        done = subprocess.run(command, env=env, cwd=self.scratch, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return done.returncode, done.stdout + done.stderr

    def reset(self):
        """Have the old host serve and the new one empty, whatever was."""
        migrated.run(NEW, "docker compose --project-name echo down --volumes --timeout 2; rm -rf /opt/echo /var/lib/echo_music.ops", False)
        migrated.run(OLD, "rm -rf /var/lib/echo_music.ops; docker update --restart unless-stopped $(docker ps --all --quiet)")
        migrated.run(OLD, "docker compose --project-directory /opt/echo --project-name echo up --detach --wait")


class Watch(threading.Thread):
    """Looks all the time whether both hosts serve."""

    def __init__(self):
        super().__init__(daemon=True)
        self.twice = 0
        self.looks = 0
        self.over = False

    def run(self):
        while not self.over:
            # The old one first: it stops before the new one starts, so both are seen only where both are.
            old, new, again = migrated.serves(OLD), migrated.serves(NEW), migrated.serves(OLD)
            self.twice += old and new and again
            self.looks += 1
            time.sleep(0.5)


def walk(pair, name):
    """Cause one fault, run again, and return what is wrong."""
    task, number, fault, mend, before, after = FAULTS[name]
    mark, stop, out = (pair.scratch / file for file in ("mark", "stop", "player.json"))
    for file in (mark, stop, out):
        file.unlink(missing_ok=True)
    migrated.SEEDED = len(migrated.sql(OLD, migrated.PLAYS))
    places = ["root@%s:4567" % ADDRESSES[host] for host in (OLD, NEW)]
    client = threading.Thread(target=player.play, args=(places, pair.key, str(stop), str(out)), daemon=True)
    watch = Watch()
    client.start()
    watch.start()
    wrong = []
    code, said = pair.play("--extra-vars", "echo_migrate_lease=%d" % (SHORT if name == GUARDED else LONG), fault=(task, number, fault))
    if not mark.exists():
        wrong.append("the fault never happened")
    if code == 0:
        wrong.append("the run says that all is well")
    if before and not await_served(OLD if before == "old" else NEW):
        wrong.append("before the next run, the %s host doesn't serve" % before)
    if mend:
        subprocess.run(mend, shell=True, check=True, stdout=subprocess.DEVNULL)
        await_engines()
    code, again = pair.play("--extra-vars", "echo_migrate_resume_only=true")
    if code:
        wrong.append("the next run failed")
    stop.touch()
    client.join(PATIENCE)
    watch.over = True
    watch.join(PATIENCE)
    with open(out, encoding="utf-8") as file:
        promised = json.load(file)
    wrong += migrated.check(OLD, NEW, after, promised)["wrong"]
    if watch.twice:
        wrong.append("two live copies, %d times" % watch.twice)
    if wrong:
        print(said[-6000:], again[-6000:], sep="\n-----\n", file=sys.stderr)
    return wrong, len(promised["acknowledged"]), watch.looks


def await_served(host):
    deadline = time.monotonic() + 6 * SHORT
    while time.monotonic() < deadline:
        if migrated.serves(host):
            return True
        time.sleep(1)
    return False


def await_engines():
    for host in (OLD, NEW):
        for unused in range(120):
            done = subprocess.run(["docker", "exec", host, "sh", "-c", "docker ps && systemctl is-active ssh"], capture_output=True, check=False)
            if done.returncode == 0:
                break
            time.sleep(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--only", choices=sorted(FAULTS), action="append")
    options = parser.parse_args()
    os.makedirs(options.scratch, exist_ok=True)
    pair = Pair(options.inventory, options.key, options.scratch)
    failed = False
    for name in options.only or FAULTS:
        began = time.monotonic()
        wrong, promised, looks = walk(pair, name)
        failed = failed or bool(wrong)
        verdict = "; ".join(wrong) or "all is well, %s serves" % FAULTS[name][5]
        print("%s: %s (%d plays acknowledged, %d looks, %.0f s)" % (name, verdict, promised, looks, time.monotonic() - began), flush=True)
        if wrong or FAULTS[name][5] == "new":
            pair.reset()
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
