# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL a restore before and after every step of its journal, or PostgreSQL at every step; then all is old or new.

    python tests/faults/restore_walk.py --project restoretest --source /var/backups/echo/backup_2026-11-24_03-00-00

Other blows are a restart of the Docker Engine, and a full disk: the file systems named by --fill, which are not to be
those of the machine. A child process runs the restore as the module does and kills itself at the step, or lets another
blow fall and goes on. The next run ends what broke off. What is live is then judged by psql and by hashes of the files;
roles that the set has besides the app's must be there with the new data, and gone without it. The stack is one
of tests/playbooks/stack.yml in the classic layout; its data is changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".ansible" / "collections"))
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Engine  # noqa: E402
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError  # noqa: E402
from ansible_collections.echo_music.ops.plugins.module_utils.journal import Journal  # noqa: E402
from ansible_collections.echo_music.ops.plugins.module_utils.restore import ensure_restored  # noqa: E402

USER, DATABASE = "music_admin", "music_server"
COUNTS = """SELECT n.nspname || '.' || c.relname, (xpath('/row/c/text()',
    query_to_xml(format('SELECT count(*) AS c FROM %I.%I', n.nspname, c.relname), false, true, '')))[1]
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND n.nspname = 'public' ORDER BY 1"""
DATABASES = "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1') ORDER BY 1"
ROLES = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'music_admin' ORDER BY 1"
HEALTH_TIMEOUT = 120
BEFORE, AFTER, POSTGRES, ENGINE, DISK = "before the write", "after the write", "PostgreSQL", "engine", "disk"
KILLS = (BEFORE, AFTER)
HIT = 77


class Walk:
    """The restores of one set into one Echo."""

    def __init__(self, project, source, fill=()):
        self.project = project
        self.source = source
        self.fillers = [Path(folder) / "filler" for folder in fill]
        self.folders = [Path("/var/lib/docker/volumes/%s-%s/_data" % (project, name)) for name in ("uploads", "config")]

    def restore(self, state):
        """Do what the module does."""
        return ensure_restored(
            Engine(), state=state, source=self.source, keep_previous=0, health_timeout=HEALTH_TIMEOUT, project=self.project
        )

    def hit(self, number, blow):
        """Run the restore in a child and let the blow fall at the journal's write of that number; tell whether it fell."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (HIT, -signal.SIGKILL)
        write, seen = Journal._write, 0

        def watched(journal):
            nonlocal seen
            # After its last write the restore is over, and a server that dies is nobody's here.
            is_step = bool(journal.operation or blow in KILLS)
            seen += is_step
            if blow != BEFORE:
                write(journal)
            if is_step and seen == number:
                self.strike(blow)
            if blow == BEFORE:
                write(journal)

        Journal._write = watched
        try:
            self.restore("committed")
        except EchoError as error:
            print(error)
        finally:
            sys.stdout.flush()
            os._exit(HIT if seen >= number else 0)

    def strike(self, blow):
        """Let the blow fall."""
        if blow == POSTGRES:
            run("docker", "kill", self.project + "-postgres")
        elif blow == ENGINE:
            # systemd lets nothing be restarted so often, unless it forgets.
            run("systemctl", "reset-failed", "docker.service", "docker.socket")
            run("systemctl", "restart", "docker")
        elif blow == DISK:
            for filler in self.fillers:
                fill(filler)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def make_room(self):
        """Let the disks have room again."""
        for filler in self.fillers:
            filler.unlink(missing_ok=True)

    def drift(self):
        """Make the live data differ from the set in the database, in both volumes, and in the roles."""
        self.psql("DELETE FROM play_history")
        for role in self.psql(ROLES).splitlines():
            self.psql("DROP OWNED BY %s; DROP ROLE %s" % (role, role))
        for folder in self.folders:
            (folder / "drifted").write_text("drifted")

    def live(self):
        """Return what is live: rows by table, the roles, and every file's hash."""
        return self.psql(COUNTS), self.psql(ROLES), [self.hashes(folder) for folder in self.folders]

    def left(self):
        """Return what a restore left: other databases, hidden folders in the volumes."""
        databases = [name for name in self.psql(DATABASES).splitlines() if name != DATABASE]
        return databases + [str(path) for folder in self.folders for path in folder.glob(".echo*")]

    def containers(self):
        """Return the state of each container."""
        names = ["%s-%s" % (self.project, name) for name in ("postgres", "redis", "app")]
        return run("docker", "inspect", "--format", "{{.Name}} {{.State.Status}}", *names).splitlines()

    def psql(self, statement):
        return run(
            "docker", "exec", self.project + "-postgres", "psql", "-U", USER, "-d", DATABASE, "-XAtqc", statement
        )

    @staticmethod
    def hashes(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and ".echo" not in str(path))
        return [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def fill(path):
    """Leave no room on a file system."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as filler:
        for size in (1 << 20, 1):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)):
                    pass


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--project", default="restoretest")
    parser.add_argument("--source", required=True)
    parser.add_argument("--blows", nargs="+", choices=(BEFORE, AFTER, POSTGRES, ENGINE, DISK), default=(*KILLS, POSTGRES))
    parser.add_argument("--fill", nargs="+", default=(), metavar="FOLDER")
    options = parser.parse_args()
    walk = Walk(options.project, options.source, options.fill)

    walk.restore("committed")
    new = walk.live()
    walk.drift()
    old = walk.live()
    containers = walk.containers()
    failures = blows = 0
    for blow in options.blows:
        for number in itertools.count(1):
            if walk.live() != old:
                walk.drift()
            started = time.monotonic()
            if not walk.hit(number, blow):
                break
            blows += 1
            walk.make_room()
            told = walk.restore("reconciled")["reconciled"]
            live, left = walk.live(), walk.left()
            problems = ["neither old nor new"] if live not in (old, new) else []
            problems += ["left: %s" % left] if left else []
            problems += ["containers: %s" % walk.containers()] if walk.containers() != containers else []
            failures += bool(problems)
            print(
                "%-16s %2d: broken off at %-9s -> %s, %s (%.1f s)"
                % (
                    blow,
                    number,
                    told["step"] if told else "no step",
                    "new" if live == new else "old" if live == old else "MIXED",
                    "; ".join(problems) or "good",
                    time.monotonic() - started,
                ),
                flush=True,
            )
    print("%d blows, %d bad" % (blows, failures))
    return 1 if failures or not blows else 0


if __name__ == "__main__":
    sys.exit(main())
