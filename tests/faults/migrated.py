# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bystander sees of a pair of hosts: who serves, and whether every play that a client was promised is there once.

    python tests/faults/migrated.py --old migrate-old1 --new migrate-new1 [--player player1.json] --expect new

The hosts are the containers of tests/playbooks/hosts.yml; only the docker client and psql are asked, none of our code.
"""

from __future__ import annotations

import argparse
import json
import subprocess

LIVE = "docker ps --filter label=com.docker.compose.oneoff=False --filter status=running --format '{{.Label \"com.docker.compose.service\"}}'"
POLICIES = "docker ps --all --quiet | xargs --no-run-if-empty docker inspect --format '{{.HostConfig.RestartPolicy.Name}}' | sort -u"
DATABASE = "docker ps --all --filter label=com.docker.compose.service=postgres --format '{{.Names}}'"
APPS = ("echo", "echo-app")
PLAYS = "SELECT coalesce(json_agg(id), '[]') FROM play_history"
STATS = "SELECT coalesce(sum(plays), 0)::int FROM user_play_stats"
SEEDED = 2000
IN_FLIGHT = 3


def run(host, command, check=True):
    done = subprocess.run(["docker", "exec", host, "sh", "-c", command], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit("%s: %s: %s" % (host, command, done.stderr))
    return done.stdout.strip()


def serves(host):
    """Tell whether the app of a host runs, where its clients find it."""
    return any(service in APPS for service in run(host, LIVE, check=False).splitlines())


def look(host):
    """Return what is there."""
    record = run(host, "cat /var/lib/echo_music.ops/*.migration.json 2>/dev/null || true", check=False)
    return dict(
        serves=serves(host),
        running=sorted(run(host, LIVE, check=False).splitlines()),
        policies=run(host, POLICIES, check=False).splitlines(),
        volumes=run(host, "docker volume ls --quiet", check=False).splitlines(),
        phase=json.loads(record)["phase"] if record else None,
        keys=int(run(host, "cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys 2>/dev/null | grep -c echo_music.ops: || true")),
    )


def sql(host, statement):
    database = run(host, DATABASE).splitlines()[0]
    command = "docker exec %s sh -c 'psql -X -A -t -U \"$POSTGRES_USER\" -d \"${POSTGRES_DB:-$POSTGRES_USER}\" -c \"%s\"'"
    return json.loads(run(host, command % (database, statement.replace("'", "'\\''"))))


def judge(host, player):
    """Return what is wrong with the plays of a host, against what a client was promised."""
    plays, wrong = sql(host, PLAYS), []
    promised, there = player["acknowledged"], set(plays)
    missing = [play for play in promised if play not in there]
    if missing:
        wrong.append("%d of %d acknowledged plays are missing" % (len(missing), len(promised)))
    if len(plays) != len(there) or len(promised) != len(set(promised)):
        wrong.append("a play is there twice")
    # A request whose answer was lost was written once, or not at all. Nearly all of them met no app any more.
    more = len(plays) - SEEDED - len(promised)
    if not missing and not 0 <= more <= min(player["unknown"], IN_FLIGHT):
        wrong.append("%d plays more than were acknowledged, %d answers were lost" % (more, player["unknown"]))
    counted = sql(host, STATS)
    if counted != len(plays):
        wrong.append("%d plays were counted, %d are there" % (counted, len(plays)))
    return wrong


def check(old, new, expect, player=None):
    """Return what is seen of a pair, and what is wrong with it."""
    seen = dict(old=look(old), new=look(new))
    wrong = []
    if seen["old"]["serves"] and seen["new"]["serves"]:
        wrong.append("two live copies")
    if expect and not seen[expect]["serves"]:
        wrong.append("the %s host doesn't serve" % expect)
    if expect == "new" and (seen["old"]["running"] or seen["old"]["policies"] != ["no"]):
        wrong.append("the old host is not wholly stopped")
    if expect == "old" and seen["old"]["policies"] != ["unless-stopped"]:
        wrong.append("the restart policies of the old host are %s" % seen["old"]["policies"])
    if seen["old"]["keys"] or seen["new"]["keys"]:
        wrong.append("a key is left")
    if expect and player:
        wrong += judge(old if expect == "old" else new, player)
    return dict(seen, wrong=wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True)
    parser.add_argument("--new", required=True)
    parser.add_argument("--expect", choices=["old", "new"])
    parser.add_argument("--player")
    options = parser.parse_args()
    player = None
    if options.player:
        with open(options.player, encoding="utf-8") as file:
            player = json.load(file)
    seen = check(options.old, options.new, options.expect, player)
    print(json.dumps(seen))
    if seen["wrong"]:
        raise SystemExit("; ".join(seen["wrong"]))


if __name__ == "__main__":
    main()
