# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A dump of one moment of a database: custom format, its SQL, the globals, the row counts.

Built on what the PostgreSQL manual promises:

* "Snapshot Synchronization Functions": what ``pg_export_snapshot()`` returns can be imported
  until the exporting transaction ends. Ours ends with this process at the latest, because
  its psql reads from a standard input that dies with us.
* "pg_dump", option ``--snapshot``: the dump shows that moment.
* "pg_restore", option ``--file``: turns a custom-format dump into SQL. That reads the dump to
  its end, so it is done even where nobody wants the SQL.

Two ways carry the bytes. The fast one is a helper container of the database's own image with
the destination mounted: no byte passes through the Engine. It sees the processes of the
database's container, and so its files below ``/proc/1/root`` (proc(5)), among them the server's
Unix socket, which takes a tenth less time than TCP. Where the Engine is remote, or the helper
gets nowhere, the output of commands in the database's container is streamed. Neither writes
anything inside that container.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.echo_music.ops.plugins.module_utils.dump_relay import PIPES, READ, WRITTEN, Relay, as_it_is
from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    DatabaseError,
    EchoError,
    EngineError,
    SetError,
    SpaceError,
)
from ansible_collections.echo_music.ops.plugins.module_utils.pg_archive import can_recompress, recompressed
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import (
    COUNT_ROWS,
    COUNT_TABLES,
    DESCRIBE,
    Database,
)
from ansible_collections.echo_music.ops.plugins.module_utils.progress import phase, wanted
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    LEFTOVER,
    replace_file,
    sha256_of,
    sync_file,
    sync_folder,
)
from ansible_collections.echo_music.ops.plugins.module_utils.stack import find_containers

DUMP_FILE = "postgres_dump.backup"
PLAIN_FILE = "postgres_dump.sql"
GLOBALS_FILE = "postgres_globals.sql"
FILES = (DUMP_FILE, PLAIN_FILE, GLOBALS_FILE)
SNAPSHOT_FILE = ".snapshot.json"
PARTIAL = ".partial"

BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"
EXPORT_SNAPSHOT = """
SELECT json_build_object(
    'id', pg_export_snapshot(),
    'wal_lsn', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
    'time', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'));
"""
SERVER = """
SELECT json_build_object(
    'version', current_setting('server_version_num')::int,
    'port', current_setting('port'));
"""
TABLE_BYTES = """
SELECT coalesce(sum(pg_table_size(c.oid)), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema';
"""
ZSTD_SINCE = 160000

# One pass: what pg_dump writes goes through a relay to the file and to pg_restore at once.
# Where the server's files can be seen, pg_dump runs among them, and finds the server's socket.
HELPER_SCRIPT = """
set -e
umask 077
cd /backup
if test -n "$SERVER_FILES" && chroot "$SERVER_FILES" true 2>/dev/null; then
    set -- chroot "$SERVER_FILES" "$@"
else
    export PGHOST=127.0.0.1
fi
pg_restore --file="$PLAIN" <"$READ" &
reader=$!
"$@" >"$WRITTEN"
wait $reader
"""
FILES_OF_PROCESS_1 = "/proc/1/root"

MAGIC = b"PGDMP"
PLAIN_END = b"\n-- PostgreSQL database dump complete\n"
GLOBALS_END = b"\n-- PostgreSQL database cluster dump complete\n"
# What follows the closing line: newer servers add one that ends psql's restricted mode.
TAIL_SIZE = 1024
READ_SIZE = 4 << 20
NO_SPACE = os.strerror(errno.ENOSPC)


def run(
    engine,
    dest,
    project=None,
    database_container=None,
    app_container=None,
    user=None,
    database=None,
    snapshot_file=None,
    check_mode=False,
    **options
):
    """Find the database and dump it; in check mode say what would be dumped.

    Where that fails before the moment of the dump is fixed, ``snapshot_file`` says
    ``{"error": ...}`` to those who wait for it.
    """
    snapshot_file = snapshot_file or os.path.join(dest, SNAPSHOT_FILE)
    with contextlib.nullcontext() if check_mode else _waiters_told(dest, snapshot_file):
        parts = find_containers(engine, project, database_container, app_container)
        source = Database(engine, parts["database"]["name"], user, database)
        return forecast(source) if check_mode else dump(engine, source, dest, snapshot_file=snapshot_file, **options)


def forecast(database):
    """Return what a dump would hold: ``{"database": {...}, "table_count"}``. Only reads."""
    description, count = database.query(DESCRIBE, COUNT_TABLES)
    return dict(database=dict(json.loads(description), container=database.container), table_count=int(count))


def dump(
    engine,
    database,
    dest_dir,
    plain=True,
    globals=True,
    role_passwords=False,
    compression="auto",
    compression_level=1,
    snapshot_file=None,
):
    """Dump one moment of a database into a folder; return what came of it.

    Writes ``postgres_dump.backup``, with ``plain`` its SQL ``postgres_dump.sql``, and
    ``globals`` the cluster's roles and tablespaces ``postgres_globals.sql``. The files
    get their names once all of them are whole and on disk; on failure none does.

    ``snapshot_file``, by default ``.snapshot.json`` beside them, is written as soon as the
    moment is fixed, for those who read files that must not be older than the dump.

    Returns ``{"snapshot": {"id", "wal_lsn", "time"}, "database": {...}, "tables": {...},
    "artifacts": [...]}``. An artifact's ``members`` are tables, for the globals roles.
    """
    with folder_errors(dest_dir), database.session() as session, StagedFiles(dest_dir) as files:
        session.ask(BEGIN)
        snapshot = json.loads(session.ask(EXPORT_SNAPSHOT)[0])
        _announce(snapshot_file or os.path.join(dest_dir, SNAPSHOT_FILE), snapshot)
        server = json.loads(session.ask(SERVER)[0])
        session.send(DESCRIBE, COUNT_ROWS)
        task = Task(engine, database, files, snapshot["id"], server, plain, _sql_bytes(database))
        with ThreadPoolExecutor(max_workers=1) as beside:
            roles = [beside.submit(task.write_globals, role_passwords)] if globals else []
            codec = task.write_dump(codecs(compression, compression_level, server["version"]))
            for written in roles:
                written.result()
        description, tables = (json.loads(answer) for answer in session.receive())
        return dict(
            snapshot=snapshot,
            database=dict(description, container=database.container),
            tables=tables,
            artifacts=files.publish(database.source, description["bytes"], len(tables), codec),
        )


def codecs(compression, level, server_version):
    """Return the codecs to try in turn: the one asked for, or the best that the server's release has."""
    if compression == "none":
        return ["none"]
    if compression == "zstd" and server_version < ZSTD_SINCE:
        raise DatabaseError(
            "pg_dump of PostgreSQL %d can't compress with zstd." % (server_version // 10000),
            "zstd is there from PostgreSQL 16 on; choose gzip or auto.",
        )
    if compression == "auto":
        return ["%s:%d" % (name, level) for name in (["zstd", "gzip"] if server_version >= ZSTD_SINCE else ["gzip"])]
    return ["%s:%d" % (compression, level)]


def _sql_bytes(database):
    """Return about how large the SQL will be, for those who asked for progress: it is close to the tables' rows."""
    if wanted():
        with contextlib.suppress(EchoError, IndexError, ValueError):
            return int(database.query(TABLE_BYTES)[0]) or None
    return None


class Task:
    """One dump under way: from which snapshot, by which commands, into which files."""

    def __init__(self, engine, database, files, snapshot_id, server, plain, sql_bytes=None):
        self._engine = engine
        self._database = database
        self._files = files
        self._snapshot_id = snapshot_id
        self._server = server
        self._plain = plain
        self._sql_bytes = sql_bytes

    def write_dump(self, choices):
        """Write the dump, and its SQL if wanted, with the first codec that pg_dump was built with."""
        for codec in choices[:-1]:
            try:
                self._write_dump(codec)
                return codec
            except DatabaseError as error:
                if "does not support compression" not in error.what:
                    raise
        self._write_dump(choices[-1])
        return choices[-1]

    def write_globals(self, role_passwords):
        """Write the roles and tablespaces of the server."""
        argv = ["pg_dumpall", "--globals-only"] + ([] if role_passwords else ["--no-role-passwords"])
        with self._files.timed(GLOBALS_FILE):
            self._stream(argv, GLOBALS_FILE)
        self._files.must_end(GLOBALS_FILE, GLOBALS_END)

    def _write_dump(self, codec):
        if not (self._engine.is_local() and self._by_helper(codec)):
            self._by_exec(codec)
        self._files.must_start(DUMP_FILE, MAGIC)
        if self._plain:
            self._files.must_end(PLAIN_FILE, PLAIN_END)

    def _command(self, codec):
        """Return pg_dump's command line; before release 16 a codec is a gzip level, 0 for none."""
        if self._server["version"] < ZSTD_SINCE:
            codec = "0" if codec == "none" else codec.partition(":")[2]
        return ["pg_dump", "--format=custom", "--snapshot=" + self._snapshot_id, "--compress=" + codec]

    def _by_helper(self, codec):
        """Dump in a helper container; tell whether it got as far as writing.

        One that didn't may lack a way to the server or to the folder, which the other way
        doesn't need; what else was wrong, the other way will meet too.
        """
        names = [DUMP_FILE] + ([PLAIN_FILE] if self._plain else [])
        rewritten = as_it_is
        if can_recompress(codec, self._server["version"]):
            codec, rewritten = "none", recompressed
        try:
            with self._files.timed(*names), self._followed(names[-1]), self._files.open(DUMP_FILE) as output:
                with Relay(self._files.folder, output, rewritten):
                    self._help(self._command(codec), names)
        except (EchoError, OSError):
            if self._files.size(DUMP_FILE):
                raise
        return self._files.size(DUMP_FILE) > 0

    def _help(self, argv, names):
        container = self._database.inspected()
        # Of a container among the host's processes, process 1 would be the host's.
        sees_server = not container["pid_mode"]
        env = dict(
            PGPORT=self._server["port"],
            PGSSLMODE="allow",
            WRITTEN=WRITTEN,
            READ=READ,
            PLAIN=PLAIN_FILE + PARTIAL if self._plain else "/dev/null",
            SERVER_FILES=FILES_OF_PROCESS_1 if sees_server else "",
        )
        with self._database.explained("dump"):
            with self._engine.helper(
                container["image_id"],
                argv,
                env=self._database.environment(env),
                binds={self._files.folder: {"bind": "/backup", "mode": "rw"}},
                network_mode="container:" + container["id"],
                processes_of=container["id"] if sees_server else None,
                user="0",
                entrypoint=["sh", "-c", HELPER_SCRIPT, "sh"],
            ) as command:
                for unused in command.chunks():
                    pass
                # All programs have ended. The Engine takes its time to end the container.
                for name in names:
                    self._files.seal(name)
                command.finish()

    def _by_exec(self, codec):
        """Dump through the Engine's streams."""
        with self._files.timed(DUMP_FILE), self._followed(DUMP_FILE):
            self._stream(self._command(codec), DUMP_FILE)
        # A length in place of an end: TLS can't end one direction alone.
        read = ["sh", "-c", 'head -c "$1" | pg_restore --file=-', "sh", str(self._files.size(DUMP_FILE))]
        with self._files.timed(PLAIN_FILE), self._followed(PLAIN_FILE):
            self._stream(read, PLAIN_FILE if self._plain else None, DUMP_FILE)

    def _followed(self, name):
        """Have a file's progress told to those who asked; how large a dump will be, nobody knows."""
        return phase(name, self._sql_bytes if name == PLAIN_FILE else None, lambda: self._files.size(name))

    def _stream(self, argv, into, from_file=None):
        """Run a client program in the database's container, its output into a file, its input from one."""
        with self._database.explained("dump"), self._files.open(into) as output:
            with self._database.run(argv, stdin=bool(from_file)) as command:
                if from_file:
                    self._files.feed(from_file, command)
                for chunk in command.chunks():
                    output.write(chunk)
                command.finish()


class StagedFiles:
    """Files of one folder that get their names together, when all are whole and on disk.

    A context manager: what hasn't been published when it is left, goes.
    """

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self._seconds = {}
        self._sealed = {}

    def __enter__(self):
        self._remove_partial()
        return self

    def __exit__(self, *unused):
        self._remove_partial()

    def path(self, name):
        """Return the path of a file as it is named while it is written."""
        return os.path.join(self.folder, name)

    def open(self, name):
        """Open a new file for writing, or what swallows everything for no name."""
        if name is None:
            return open(os.devnull, "wb")
        # What a try before this one began to hash is no longer the file.
        self._sealed.pop(name, None)
        return os.fdopen(os.open(self.path(name + PARTIAL), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")

    def size(self, name):
        """Return a file's bytes, 0 where there is none."""
        try:
            return os.stat(self.path(name + PARTIAL)).st_size
        except FileNotFoundError:
            return 0

    def feed(self, name, command):
        """Write a file to a command's input, beside the thread that reads its output.

        A command that stops reading says why by its exit code, so that error isn't ours.
        """

        source = open(self.path(name + PARTIAL), "rb")

        def pump():
            with source, contextlib.suppress(EngineError):
                for block in iter(lambda: source.read(READ_SIZE), b""):
                    command.write(block)
                command.close_stdin()

        threading.Thread(target=pump, daemon=True).start()

    @contextlib.contextmanager
    def timed(self, *names):
        """Note the seconds of a block as those of each of the files that it writes."""
        start = time.monotonic()
        yield
        for name in names:
            self._seconds[name] = round(time.monotonic() - start, 3)

    def must_start(self, name, magic):
        """Raise ``DatabaseError`` unless a file starts with the magic of its kind."""
        with open(self.path(name + PARTIAL), "rb") as dump_file:
            if dump_file.read(len(magic)) != magic:
                raise self._damaged(name, "it doesn't start as a dump does")

    def must_end(self, name, marker):
        """Raise ``DatabaseError`` unless a file has the closing line of its kind."""
        if marker not in self._tail(name):
            raise self._damaged(name, "its closing line is missing")

    def seal(self, name):
        """Begin to make a file durable and to hash it; nothing may be written to it from now on."""
        self._sealed[name] = _Sealing(self.path(name + PARTIAL))

    def publish(self, source, database_bytes, tables, codec):
        """Make the files durable, give them their names and return their artifacts."""
        names = [name for name in FILES if name in self._seconds and os.path.exists(self.path(name + PARTIAL))]
        for name in names:
            if name not in self._sealed:
                self.seal(name)
        artifacts = []
        for name in names:
            digest, size = self._sealed[name].result()
            artifacts.append(
                dict(
                    role="database",
                    file=name,
                    source=source,
                    bytes_in=size if name == GLOBALS_FILE else database_bytes,
                    bytes_out=size,
                    members=self._roles() if name == GLOBALS_FILE else tables,
                    codec=codec if name == DUMP_FILE else "none",
                    sha256=digest,
                    seconds=self._seconds[name],
                )
            )
        for name in names:
            os.rename(self.path(name + PARTIAL), self.path(name))
        sync_folder(self.folder)
        return artifacts

    def _remove_partial(self):
        for name in [name + PARTIAL for name in FILES] + list(PIPES):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(name))

    def _tail(self, name):
        with open(self.path(name + PARTIAL), "rb") as written:
            written.seek(max(0, self.size(name) - TAIL_SIZE))
            return written.read()

    def _roles(self):
        with open(self.path(GLOBALS_FILE + PARTIAL), "rb") as globals_file:
            return sum(line.startswith(b"CREATE ROLE ") for line in globals_file)

    def _damaged(self, name, how):
        return DatabaseError(
            "The dump for %s is not whole: %s." % (self.path(name), how),
            "Nothing of it was kept. Try again; 'docker logs' of the database has the server's side.",
        )


def _announce(path, content):
    """Write what those who wait for the snapshot look for."""
    replace_file(os.path.abspath(path), json.dumps(content).encode("utf-8"))


@contextlib.contextmanager
def _waiters_told(dest, snapshot_file):
    """Remove an older dump's snapshot file, and let it tell of an error before there is a snapshot."""
    with folder_errors(dest):
        # A set's staging folder that is gone was given up; made anew by a job that outlived its
        # run, it would be a leftover that nobody looks for.
        if not LEFTOVER.match(os.path.basename(os.path.abspath(dest))):
            os.makedirs(dest, 0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(snapshot_file)
    try:
        yield
    except EchoError as error:
        if not os.path.exists(snapshot_file):
            with contextlib.suppress(SetError):
                _announce(snapshot_file, dict(error=str(error)))
        raise


@contextlib.contextmanager
def folder_errors(folder):
    """Turn an error of the destination's file system, ours or a client program's, into one that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(folder)
        raise SetError(
            "Could not write the dump to %s: %s." % (folder, error.strerror or error),
            "Is it a folder on a file system that is mounted for writing, and may this user write there?",
            path=folder,
        )
    except DatabaseError as error:
        if NO_SPACE in error.what:
            raise _no_space(folder)
        raise


def _no_space(folder):
    return SpaceError("No space left while writing the dump to %s." % folder, "Make room there.", path=folder)


class _Sealing(threading.Thread):
    """A file on its way to the disk and through SHA-256. A daemon, so that no failure elsewhere has to wait for it."""

    def __init__(self, path):
        super(_Sealing, self).__init__(daemon=True)
        self._path = path
        self._result = None
        self._error = None
        self.start()

    def run(self):
        """Flush and hash the file."""
        try:
            os.chmod(self._path, 0o600)
            self._result = sha256_of(self._path)
            sync_file(self._path)
        except (OSError, SetError) as error:
            self._error = error

    def result(self):
        """Wait until it is done; return the SHA-256 and the bytes."""
        self.join()
        if self._error:
            raise self._error
        return self._result
