# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure a restore against that of the 2024 script: how long it takes, and for how long the app refuses requests.

    .venv/bin/python tests/benchmark/restore.py [--repetitions 3] [--scale 0.1] [--only uploads]

``--only load`` looks at one step of a database's restore: its dump loaded, by the script into the live database, by us
into one beside it.

Needs root, a local Docker Engine with the test images, and 10 GB of disk space. Ends with 1 if the data that came back
is not the data of the backup.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from subjects import ENVIRONMENT, ROOT, SCRIPT_IMAGE, command, demand, fill_uploads, module

sys.path.insert(0, str(ROOT / ".ansible" / "collections"))

PROJECT = "echo-bench-restore"
PORT = 4690
HEALTH = f"http://127.0.0.1:{PORT}/health"
COUNTS = f"http://127.0.0.1:{PORT}/api/counts"
VOLUMES = Path("/var/lib/docker/volumes")
COMPONENTS = ["database", "uploads", "config"]
ALBUMS = 4000
# Each play of the seed becomes so many.
PLAYS = 48
PROBE_INTERVAL = 0.05
TIMEOUT = 1800
MORE_PLAYS = """
DO $$
DECLARE names text;
BEGIN
    SELECT string_agg(quote_ident(attname), ', ') INTO names FROM pg_attribute
    WHERE attrelid = 'play_history'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'id';
    EXECUTE format('INSERT INTO play_history (%s) SELECT %s FROM play_history, generate_series(2, {plays})', names, names);
END $$;
"""
CHECKSUM = "SELECT sum(hashtextextended(play::text, 0)) FROM public.play_history play"
# As the script of 2024 does it.
SCRIPT = """
set -e
docker stop {app}
{database}
{volumes}
docker start {app}
"""
SCRIPT_DATABASE = """
docker exec {postgres} psql -U music_admin -d postgres -qc "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = 'music_server' AND pid <> pg_backend_pid()" >/dev/null
docker exec -i {postgres} pg_restore -U music_admin -d music_server --clean --if-exists < {folder}/postgres_dump.backup
"""
SCRIPT_VOLUMES = """
for name in {names}; do
    docker run --rm -v {project}-$name:/target -v {folder}:/backup:ro {image} \
        sh -c "rm -rf /target/* && tar xzf /backup/$name.tar.gz -C /target"
done
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1, help="size of the data; 1 is about 1 GiB of each kind")
    parser.add_argument("--only", choices=["database", "uploads", "load"], help="one component, or one step, alone")
    options = parser.parse_args()
    components = [options.only] if options.only else COMPONENTS
    with stack(options.scale), tempfile.TemporaryDirectory(prefix="echo-bench-", dir="/var/tmp") as folder:
        back_up(folder)
        if options.only == "load":
            show_loads([loads(f"{folder}/postgres_dump.backup") for _unused in range(options.repetitions)])
            return
        expected = state()
        ours = module("echo_restore", source=folder, project=PROJECT, components=components, keep_previous=0)
        ways = dict(script=script(folder, components), ours=ours)
        figures = {name: [] for name in ways}
        order = random.Random(1)
        for repetition in range(options.repetitions):
            for name in order.sample(sorted(ways), len(ways)):
                damage(components)
                figures[name].append(measure(ways[name]))
                demand(state() == expected, f"{name}: what came back is not what was backed up")
                print(name, repetition + 1, *(f"{value:.2f}" for value in figures[name][-1]), file=sys.stderr, flush=True)
        show(expected, figures)


@contextlib.contextmanager
def stack(scale):
    """Give a classic Echo with about 1 GiB in its database and in its uploads."""
    play = ["ansible-playbook", "-i", str(ROOT / "tests/inventory/local.yml")]
    variables = ["-e", f"project={PROJECT}", "-e", f"app_port={PORT}", "-e", f"size={round(ALBUMS * scale)}"]
    run(*play, str(ROOT / "tests/playbooks/stack.yml"), *variables)
    try:
        psql(MORE_PLAYS.replace("{plays}", str(PLAYS)))
        fill_uploads(VOLUMES / f"{PROJECT}-uploads" / "_data", scale)
        yield
    finally:
        run(*play, str(ROOT / "tests/playbooks/stack_down.yml"), "-e", f"project={PROJECT}")


def back_up(folder):
    """Write what the script of 2024 leaves, with its commands."""
    dump = ["docker", "exec", f"{PROJECT}-postgres", "pg_dump", "-U", "music_admin", "-d", "music_server", "-F", "c"]
    with open(f"{folder}/postgres_dump.backup", "wb") as output:
        subprocess.run(dump, stdout=output, check=True)
    for name in ("uploads", "config"):
        run("tar", "czf", f"{folder}/{name}.tar.gz", "-C", str(VOLUMES / f"{PROJECT}-{name}" / "_data"), ".")


def script(folder, components):
    """Return the script's way, which ends when the containers are started."""
    places = dict(postgres=f"{PROJECT}-postgres", project=PROJECT, folder=folder, image=SCRIPT_IMAGE)
    names = " ".join(name for name in components if name != "database")
    text = SCRIPT.format(
        app=f"{PROJECT}-app",
        database=SCRIPT_DATABASE.format(**places) if "database" in components else "",
        volumes=SCRIPT_VOLUMES.format(names=names, **places) if names else "",
    )
    return argparse.Namespace(argv=["bash", "-c", text], stdin=None)


def loads(dump):
    """Return the seconds that the script takes to load a dump, and those that we take."""
    from ansible_collections.echo_music.ops.plugins.module_utils.engine import Engine
    from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
    from ansible_collections.echo_music.ops.plugins.module_utils.side_database import SideDatabase

    before = psql(CHECKSUM)
    live = Database(Engine(), f"{PROJECT}-postgres")
    run("docker", "stop", f"{PROJECT}-app")
    os.sync()
    began = time.monotonic()
    target = ["docker", "exec", "-i", live.container, "pg_restore", "-U", "music_admin", "-d", "music_server"]
    with open(dump, "rb") as source:
        subprocess.run([*target, "--clean", "--if-exists"], stdin=source, check=True)
    script = time.monotonic() - began
    demand(psql(CHECKSUM) == before, "script: what was loaded is not what was backed up")
    side = SideDatabase(live, "bench")
    os.sync()
    began = time.monotonic()
    side.create(live.describe(tables=False))
    side.load(dump, "custom")
    ours = time.monotonic() - began
    demand("\n".join(side.query(CHECKSUM)) == before.strip(), "ours: what was loaded is not what was backed up")
    side.drop_side()
    run("docker", "start", f"{PROJECT}-app")
    print(f"script {script:.2f} ours {ours:.2f}", file=sys.stderr, flush=True)
    return script, ours


def show_loads(pairs):
    print("| way | the dump is loaded after, s |\n|---|--:|")
    for name, values in zip(("script", "ours"), zip(*pairs)):
        print(f"| {name} | {spread(values)} |")
    print(f"\n{spread([script / ours for script, ours in pairs])} times as fast, in pairs.")


def damage(components):
    """Make the live data differ from the backup."""
    if "database" in components:
        psql("DELETE FROM play_history WHERE id IN (SELECT id FROM play_history LIMIT 100)")
    if "uploads" in components:
        (VOLUMES / f"{PROJECT}-uploads" / "_data" / "damaged").write_text("damaged")


def state():
    """Return the rows by table, a checksum of the plays, and the number and bytes of the uploads."""
    counts = json.loads(urllib.request.urlopen(COUNTS, timeout=60).read())
    files = [path.stat().st_size for path in (VOLUMES / f"{PROJECT}-uploads" / "_data").rglob("*") if path.is_file()]
    return counts, psql(CHECKSUM), len(files), sum(files)


def measure(way):
    """Return seconds: until the app serves on the restored data, until the command ends, and those of refused requests."""
    os.sync()
    with Prober() as prober:
        started = time.monotonic()
        done = subprocess.run(
            way.argv, input=way.stdin, text=True, env=ENVIRONMENT, capture_output=True, check=False, timeout=TIMEOUT
        )
        ended = time.monotonic()
        demand(not done.returncode, f"exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        prober.wait_until_served()
    demand(prober.refused, "the app refused no request")
    return prober.served_at - started, ended - started, prober.refused


class Prober(threading.Thread):
    """Asks the app for its health all the time.

    ``refused`` is for how many seconds it did not answer well, ``served_at`` when it did for the first time after that.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.refused = 0.0
        self.served_at = None
        self._served = threading.Event()
        self._over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_unused):
        self._over.set()
        self.join()

    def wait_until_served(self):
        """Wait for an answer to a request that is made from now on."""
        self._served.clear()
        demand(self._served.wait(TIMEOUT), "the app did not come back")

    def run(self):
        last = time.monotonic()
        while not self._over.wait(PROBE_INTERVAL):
            well = answers()
            now = time.monotonic()
            if not well:
                self.refused += now - last
                self.served_at = None
            else:
                self.served_at = self.served_at or now
                self._served.set()
            last = now


def answers():
    try:
        return urllib.request.urlopen(HEALTH, timeout=2).status == 200
    except (urllib.error.URLError, OSError):
        return False


def show(expected, figures):
    counts, unused_checksum, files, size = expected
    print(f"{sum(counts.values()):,} rows, {size / (1 << 20):,.0f} MiB of uploads in {files:,} files\n")
    print("| way | app serves the restored data after, s | command ends after, s | app refuses requests for, s |\n|---|--:|--:|--:|")
    for name, pairs in figures.items():
        print(f"| {name} | {' | '.join(spread(values) for values in zip(*pairs))} |")
    for number, title in ((0, "as fast until the app serves"), (2, "as short a downtime")):
        shares = [a[number] / b[number] for a, b in zip(figures["script"], figures["ours"])]
        print(f"\n{spread(shares)} times {title}, in pairs.")


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def psql(statements):
    target = ["docker", "exec", "-i", f"{PROJECT}-postgres", "psql", "-U", "music_admin", "-d", "music_server", "-qAt"]
    return command(*target, "-v", "ON_ERROR_STOP=1", input=statements)


def run(*argv):
    tools = os.path.dirname(sys.executable)
    command(*argv, env=dict(os.environ, ANSIBLE_HOME=str(ROOT / ".ansible"), PATH=f"{tools}:{os.environ['PATH']}"))


if __name__ == "__main__":
    main()
