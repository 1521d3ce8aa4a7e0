# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is backed up, the ways to do it, and what must come of each.

A subject is a context manager: inside, its data exists. It has

* ``ways``: how to back it up, by name. ``script`` is what the 2024 script does, ``floor`` the least that any way does;
* ``check(way, run, dest, thorough)``: raises :class:`WrongOutput`, else returns the output's bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "echo-bench-"
MODULES = "ansible_collections.echo_music.ops.plugins.modules."
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(ROOT / ".ansible" / "collections"))
SCRIPT_IMAGE = "echo-test-base:12"
KIB = 1 << 10
MIB = 1 << 20
SEED = 4567
READY_WITHIN = 60


class WrongOutput(Exception):
    """A way did not write what it should have."""


class Way:
    """One command that backs a subject up."""

    def __init__(self, title, argv, stdin=None):
        self.title = title
        self.argv = argv
        self.stdin = stdin


def command(*argv, **options):
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(argv, text=True, capture_output=True, check=False, **options)
    if done.returncode:
        raise SystemExit(f"{shlex.join(argv)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def remove(kind, names):
    """Remove containers or volumes. What can't go yet, the clean-up at the end will meet again."""
    options = ["-f", "-v"] if kind == "container" else ["-f"]
    subprocess.run(["docker", kind, "rm", *options, *names], capture_output=True, check=False)


def module(name, **arguments):
    """Return the way of one of our modules: a process of its own, as Ansible starts it on the host."""
    return Way(
        name,
        [sys.executable, "-m", MODULES + name],
        json.dumps(dict(ANSIBLE_MODULE_ARGS=arguments)),
    )


def demand(condition, complaint):
    """Raise ``WrongOutput`` unless the condition holds."""
    if not condition:
        raise WrongOutput(complaint)


class Volume:
    """A Docker volume full of files."""

    titles = ("the 2024 script", "plain tar cf")

    def __init__(self, name, fill, scale):
        self.name = name
        self.bytes = 0
        self.members = 0
        self._fill = fill
        self._scale = scale
        self._volume = PREFIX + name
        self.folder = None

    def __str__(self):
        return f"volume {self.name}: {self.bytes / MIB:,.0f} MiB in {self.members:,} members"

    def __enter__(self):
        command("docker", "volume", "create", self._volume)
        self.folder = Path(command("docker", "volume", "inspect", "-f", "{{.Mountpoint}}", self._volume).strip())
        self._fill(self.folder, self._scale)
        entries = [self.folder, *self.folder.rglob("*")]
        self.members = len(entries)
        self.bytes = sum(entry.stat().st_size for entry in entries if entry.is_file())
        return self

    def __exit__(self, *_unused):
        remove("volume", [self._volume])

    def ways(self, dest):
        """Return the ways into a folder."""
        binds = ["-v", f"{self._volume}:/source:ro", "-v", f"{dest}:/backup"]
        pack = ["tar", "czf", "/backup/out.tar.gz", "-C", "/source", "."]
        return dict(
            script=Way("docker run … tar czf", ["docker", "run", "--rm", "--name", PREFIX + "script", *binds, SCRIPT_IMAGE, *pack]),
            floor=Way("tar cf", ["tar", "cf", f"{dest}/out.tar", "-C", str(self.folder), "."]),
            ours=module("echo_volume_backup", volume=self._volume, dest=f"{dest}/out.tar.gz"),
        )

    def check(self, way, run, dest, thorough):
        """Look at the one archive."""
        archive = dest / ("out.tar" if way == "floor" else "out.tar.gz")
        size = archive.stat().st_size
        if way == "floor":
            demand(size > self.bytes, f"{archive.name} is smaller than its contents")
        if way == "ours":
            artifact = json.loads(run.stdout)["artifact"]
            demand(artifact["members"] == self.members, f"{artifact['members']} members reported, not {self.members}")
            demand(artifact["bytes_out"] == size, "bytes_out is not the archive's size")
            demand(not thorough or artifact["sha256"] == _sha256(archive), "sha256 is not the archive's")
        if thorough:
            listed = command("tar", "tf", str(archive)).count("\n")
            demand(listed == self.members, f"{listed} members in {archive.name}, not {self.members}")
        return size


def fill_uploads(folder, scale):
    """1 GiB of covers that don't compress, and 20,000 small files: thumbnails and their descriptions."""
    source = random.Random(SEED)
    for number in range(round(2048 * scale)):
        _write(folder / f"covers/{number % 64:02x}/{number}.jpg", _jpeg(source, source.randrange(256 * KIB, 768 * KIB)))
    for number in range(round(10000 * scale)):
        stem = folder / f"thumbnails/{number % 64:02x}/{number}"
        _write(stem.with_suffix(".jpg"), _jpeg(source, source.randrange(512, 4 * KIB)))
        album = dict(album=number, artist=source.choice(WORDS), title=" ".join(source.choices(WORDS, k=20)))
        _write(stem.with_suffix(".json"), json.dumps(album, indent=2).encode())


def fill_logs(folder, scale):
    """300 MiB of an application's logs."""
    source = random.Random(SEED)
    for number in range(round(30 * scale) or 1):
        lines = []
        for second in range(8250):
            lines.append(
                f"2026-11-{number % 30 + 1:02d}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z INFO "
                f'{{"request":"{source.randbytes(8).hex()}","path":"/api/tracks/{source.randrange(10**6)}",'
                f'"status":{source.choice((200, 200, 200, 304, 404))},"ms":{source.randrange(900)},'
                f'"agent":"{" ".join(source.choices(WORDS, k=2))}"}}\n'
            )
        _write(folder / f"echo-{number:02d}.log", "".join(lines).encode() * 10)


WORDS = "Rock Jazz Blue Night Drum Song Fiesta Jóga Ænima River Stone Heart Light Dance Moon Summer".split()


def _jpeg(source, size):
    return b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01" + source.randbytes(size) + b"\xff\xd9"


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _sha256(path):
    with open(path, "rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


class Postgres:
    """A PostgreSQL container with a database shaped like Echo's."""

    titles = ("the 2024 script", "pg_dump -Z0 to nowhere")
    user = "music_admin"
    database = "music_server"
    sql = Path(__file__).with_name("database.sql")

    def __init__(self, major, scale):
        self.name = f"PostgreSQL {major}"
        self._scale = scale
        self._container = f"{PREFIX}postgres-{major}"
        self._image = f"echo-test-postgres:{major}"
        self._rows = {}
        self._bytes = 0

    def __str__(self):
        return f"{self.name}: {self._bytes / 1e6:,.0f} MB in {sum(self._rows.values()):,} rows"

    def __enter__(self):
        settings = {"POSTGRES_USER": self.user, "POSTGRES_PASSWORD": "bench", "POSTGRES_DB": self.database}
        env = [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
        command("docker", "run", "-d", "--name", self._container, *env, self._image)
        deadline = time.monotonic() + READY_WITHIN
        while self._exec("pg_isready", "-q", "-h", "127.0.0.1").returncode:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self._container} is not ready after {READY_WITHIN} s")
            time.sleep(0.5)
        sizes = ["-v", f"tracks={round(200000 * self._scale)}", "-v", f"plays={round(3300000 * self._scale)}"]
        self._psql(*sizes, stdin=self.sql.read_text())
        self._bytes = int(self._psql("-c", "SELECT pg_database_size(current_database())"))
        for table in ("users", "tracks", "play_history"):
            self._rows["public." + table] = int(self._psql("-c", f"SELECT count(*) FROM {table}"))
        return self

    def __exit__(self, *_unused):
        remove("container", [self._container])

    def ways(self, dest):
        """Return the ways into a folder."""
        pg_dump = f"docker exec {self._container} pg_dump -U {self.user} -d {self.database}"
        script = (
            f"{pg_dump} -F c -f /tmp/postgres_dump.backup",
            f"docker cp {self._container}:/tmp/postgres_dump.backup {dest}/postgres_dump.backup",
            f"docker exec {self._container} rm /tmp/postgres_dump.backup",
            f"{pg_dump} > {dest}/postgres_dump.sql",
        )
        return dict(
            script=Way("pg_dump -F c; docker cp; pg_dump", ["sh", "-ec", "\n".join(script)]),
            floor=Way("pg_dump -F c -Z 0 to nowhere", f"{pg_dump} -F c -Z 0 --no-sync -f /dev/null".split()),
            ours=module("echo_pg_dump", database_container=self._container, dest=str(dest)),
        )

    def check(self, way, run, dest, thorough):
        """Look at the dump in both its forms."""
        if way == "floor":
            return 0
        dump, plain = dest / "postgres_dump.backup", dest / "postgres_dump.sql"
        sizes = {path.name: path.stat().st_size for path in (dump, plain)}
        if way == "ours":
            result = json.loads(run.stdout)
            demand(result["tables"] == self._rows, f"rows reported: {result['tables']}, not {self._rows}")
            for artifact in result["artifacts"]:
                written = dest / artifact["file"]
                demand(artifact["bytes_out"] == written.stat().st_size, f"bytes_out is not the size of {written.name}")
                demand(not thorough or artifact["sha256"] == _sha256(written), f"sha256 is not that of {written.name}")
        if thorough:
            rows = _rows_of(plain)
            demand(rows == self._rows, f"rows in {plain.name}: {rows}, not {self._rows}")
            bind = f"{dest}:/backup:ro"
            read = ["pg_restore", "--file=/dev/null", "/backup/postgres_dump.backup"]
            command("docker", "run", "--rm", "--user", "0", "--entrypoint", "", "-v", bind, self._image, *read)
        return sum(sizes.values())

    def _exec(self, *argv, stdin=""):
        return subprocess.run(
            ["docker", "exec", "-i", self._container, *argv], input=stdin, text=True, capture_output=True, check=False
        )

    def _psql(self, *arguments, stdin=""):
        done = self._exec("psql", "-XAtq", "-U", self.user, "-d", self.database, *arguments, stdin=stdin)
        if done.returncode:
            raise SystemExit(f"psql in {self._container}: {done.stderr}")
        return done.stdout


def _rows_of(plain):
    """Return the rows of each table that a plain dump loads."""
    rows = {}
    table = None
    with open(plain, "rb") as lines:
        for line in lines:
            if table:
                if line == b"\\.\n":
                    table = None
                else:
                    rows[table] += 1
            elif line.startswith(b"COPY "):
                table = line.split()[1].decode()
                rows[table] = 0
    return rows
