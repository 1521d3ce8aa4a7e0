# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long nobody serves while an Echo moves, as a client sees it, by size of the uploads and of the database.

    ansible-playbook -i tests/benchmark/fleet/inventory.yml tests/benchmark/fleet/up.yml
    python tests/benchmark/migrate.py [--uploads 10 500] [--database 1 10] [--repetitions 1]

The client plays all the time, at the old host and then at the new one, and remembers its longest silence. Each size is
measured on its own, with the other at its first; hosts are emptied between.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fleet import FLEET, ROOT, variables_of

INVENTORY = str(FLEET / "inventory.yml")
PLAYER = str(ROOT / "tests" / "faults" / "player.py")
VOLUME = "/var/lib/docker/volumes/echo-uploads/_data/music/bench"
# 5 MiB are a song; what doesn't compress is what uploads are.
UPLOADS = "mkdir -p {volume} && for n in $(seq {files}); do head -c 5242880 /dev/urandom > {volume}/$n.mp3; done; sync"
PLAYS = (
    "INSERT INTO play_history (user_id, track_id) "
    "SELECT (SELECT id FROM users LIMIT 1), (SELECT id FROM tracks LIMIT 1) FROM generate_series(1, {rows})"
)
SQL = "docker exec echo-postgres psql -X -A -t -U music_admin -d music_server -c \"{statement}\""
# What a play takes in the database, with its three indexes.
PLAY_BYTES = 144


def ansible(*argv):
    """Run one of Ansible's commands; end with what it said if it fails."""
    env = dict(os.environ, ANSIBLE_NOCOLOR="true", ANSIBLE_PIPELINING="true")
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit("%s failed:\n%s" % (argv[0], (done.stdout + done.stderr)[-4000:]))
    return done.stdout


def on(host, command):
    """Run a command on a host; return what it said."""
    said = ansible("ansible", "-i", INVENTORY, host, "--one-line", "-m", "ansible.builtin.shell", "-a", command)
    return said.rpartition("(stdout)")[2].strip()


def prepare(pair, uploads, factor):
    """Bring up a fresh Echo of a size; return the database's bytes."""
    old, new = pair
    ansible("ansible-playbook", "-i", INVENTORY, "--limit", "localhost,%s,%s" % pair, str(FLEET / "up.yml"))
    on(old, UPLOADS.format(volume=VOLUME, files=max(1, uploads * 1000000 // 5242880)))
    size = SQL.format(statement="SELECT pg_database_size(current_database())")
    more = (factor - 1) * int(on(old, size))
    if more:
        on(old, SQL.format(statement=PLAYS.format(rows=more // PLAY_BYTES)))
    return int(on(old, size))


def migrate(pair, known):
    """Move it while a client plays; return its longest silence and the report."""
    old, new = pair
    with tempfile.TemporaryDirectory() as folder:
        stop, out = os.path.join(folder, "stop"), os.path.join(folder, "player.json")
        places = ["--host=root@%s:4567" % known[name]["ansible_host"] for name in pair]
        key = str(ROOT / "tests" / "output" / "hosts" / "fleet" / "id_ed25519")
        player = subprocess.Popen([sys.executable, PLAYER, *places, "--key=" + key, "--stop=" + stop, "--out=" + out])
        try:
            reports = "echo_migrate_report_dir=" + folder
            ansible("ansible-playbook", "-i", INVENTORY, "--limit", new, "-e", reports, str(ROOT / "playbooks" / "migrate.yml"))
        finally:
            Path(stop).touch()
            player.wait()
        told = json.loads(Path(out).read_text(encoding="utf-8"))
        if not all(told["by_host"]):
            raise SystemExit("The client didn't play at both hosts: %s." % told["by_host"])
        return told["longest_silence"], json.loads(Path(folder, new + ".json").read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", nargs="+", type=int, default=[10, 500], help="megabytes")
    parser.add_argument("--database", nargs="+", type=int, default=[1, 10], help="times the size of the tests' Echo")
    parser.add_argument("--repetitions", type=int, default=1)
    chosen = parser.parse_args()
    pair, known = ("old1", "new1"), variables_of(INVENTORY)
    cases = [(uploads, chosen.database[0]) for uploads in chosen.uploads]
    cases += [(chosen.uploads[0], factor) for factor in chosen.database[1:]]
    print("processors: %d\n" % os.cpu_count())
    print("| uploads MB | database MB | client's silence s | downtime of the report s | whole run s | load |")
    print("|--:|--:|--:|--:|--:|--:|", flush=True)
    for uploads, factor in cases:
        runs = []
        for _unused in range(chosen.repetitions):
            size, load = prepare(pair, uploads, factor), os.getloadavg()[0]
            silence, report = migrate(pair, known)
            runs.append((silence, report["downtime"], report["seconds"], load))
        middle = [statistics.median(values) for values in zip(*runs)]
        print("| %d | %.0f | %.1f | %.1f | %.0f | %.1f |" % (uploads, size / 1e6, *middle), flush=True)


if __name__ == "__main__":
    main()
