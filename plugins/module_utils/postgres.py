# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A PostgreSQL database in a container: how to reach it, and what it is.

User, database and password reach psql and its like as the environment variables that the
manual lists for libpq ("Environment Variables"), so that no password is an argument, and no
name is taken for a connection string.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time

from ansible_collections.echo_music.ops.plugins.module_utils.engine import Gone
from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    CommandError,
    DatabaseError,
    EngineError,
)

DESCRIBE = """
SELECT json_build_object(
    'user', current_user,
    'name', d.datname,
    'owner', pg_get_userbyid(d.datdba),
    'server_version', split_part(current_setting('server_version'), ' ', 1),
    'server_version_num', current_setting('server_version_num')::int,
    'encoding', pg_encoding_to_char(d.encoding),
    'collate', d.datcollate,
    'ctype', d.datctype,
    'bytes', pg_database_size(d.oid),
    'extensions', (
        SELECT coalesce(json_agg(json_build_object('name', extname, 'version', extversion) ORDER BY extname), '[]')
        FROM pg_extension))
FROM pg_database d WHERE d.datname = current_database();
"""

# All tables in one statement, so in one snapshot. Only tables that hold rows of their own: a
# partitioned table's rows are its partitions', and ONLY keeps an inheriting table's apart.
# What belongs to an extension is not in a dump, and neither is a temporary table.
USER_TABLES = """
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
  AND NOT EXISTS (SELECT FROM pg_depend p WHERE p.classid = 'pg_class'::regclass AND p.objid = c.oid AND p.deptype = 'e')
"""
COUNT_ROWS = (
    """
SELECT coalesce(json_object_agg(n.nspname || '.' || c.relname,
    (xpath('/row/c/text()', query_to_xml(format('SELECT count(*) AS c FROM ONLY %I.%I', n.nspname, c.relname),
        false, true, '')))[1]::text::bigint ORDER BY n.nspname, c.relname), '{}')"""
    + USER_TABLES
    + ";"
)
COUNT_TABLES = "SELECT count(*)" + USER_TABLES + ";"

LIST_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname;"

PSQL = ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
PSQL_NO_CONNECTION = 2
# The database that each server has, to ask it for the others.
TEMPLATE = "template1"
KILLED = 128 + signal.SIGKILL
GRACE = 1
# A database's own settings must neither end our session early nor hide rows from the counts.
# A function of the database that hides behind the name of a built-in one must not run as us (CVE-2018-1058).
SESSION_SETTINGS = (
    "statement_timeout=0",
    "lock_timeout=0",
    "idle_in_transaction_session_timeout=0",
    "row_security=off",
    "search_path=pg_catalog",
)
SESSION_ENVIRONMENT = dict(
    PGCLIENTENCODING="UTF8",
    PGOPTIONS=" ".join("-c " + setting for setting in SESSION_SETTINGS),
)
END_OF_ROWS = b"\\.\n"
END_OF_ANSWER = b"--echo-music-end-of-answer--\n"


class Database:
    """One database of a PostgreSQL container, which is asked on first use.

    User, name and password come from the container's settings as the official image reads
    them: ``POSTGRES_USER``, ``POSTGRES_DB`` and ``POSTGRES_PASSWORD``, or the file that
    ``<variable>_FILE`` names.
    """

    def __init__(self, engine, container, user=None, name=None):
        self.engine = engine
        self.container = container
        self._user = user
        self._name = name
        self._inspected = None
        self._settings = {}

    @property
    def user(self):
        """The role that connects."""
        return self._user or self._setting("POSTGRES_USER") or "postgres"

    @property
    def name(self):
        """The database's name."""
        return self._name or self._setting("POSTGRES_DB") or self._setting("POSTGRES_USER") or "postgres"

    @property
    def source(self):
        """``container:database``, as artifacts name where they come from."""
        return "%s:%s" % (self.container, self.name)

    def describe(self, tables=True):
        """Return what the database is; ``tables=False`` leaves the exact row counts out.

        ``{"container", "user", "name", "owner", "server_version", "server_version_num",
        "encoding", "collate", "ctype", "bytes", "extensions": [{"name", "version"}],
        "tables": {"public.users": 3}}``. One round trip.
        """
        answers = self.query(*([DESCRIBE, COUNT_ROWS] if tables else [DESCRIBE]))
        described = dict(json.loads(answers[0]), container=self.container)
        if tables:
            described["tables"] = json.loads(answers[1])
        return described

    def query(self, *statements):
        """Return the one-line answers of statements that one psql runs."""
        argv = list(PSQL)
        for statement in statements:
            argv += ["-c", statement]
        with self.explained("ask"):
            with self.run(argv, SESSION_ENVIRONMENT) as command:
                return command.output().decode("utf-8").splitlines()

    @contextlib.contextmanager
    def session(self, doing="hold the snapshot of"):
        """Open a :class:`Session` that ends with the block, or with this process; ``doing`` is what fails then."""
        with self.explained("open a session in"):
            command = self.run(PSQL, SESSION_ENVIRONMENT, stdin=True)
        with command:
            yield Session(self, command, doing)

    def run(self, argv, env=None, stdin=False):
        """Start a client program in the database's container; return its ``Command``."""
        return self.engine.run_in(self.inspected()["name"], argv, env=self.environment(env), stdin=stdin)

    def inspected(self):
        """Return the running container as the engine describes it."""
        if self._inspected is None:
            found = self.engine.container(self.container)
            if found["state"] != "running":
                raise self._not_running(found["state"])
            self._inspected = found
        return self._inspected

    def environment(self, more=None):
        """Return the libpq variables that name and open the database."""
        env = dict(PGUSER=self.user, PGDATABASE=self.name, LC_ALL="C")
        password = self._setting("POSTGRES_PASSWORD")
        if password:
            env["PGPASSWORD"] = password
        env.update(more or {})
        return env

    @contextlib.contextmanager
    def explained(self, doing):
        """Turn what the engine says of a client program into a ``DatabaseError`` with its cause."""
        try:
            yield
        except EngineError as error:
            raise self._explanation(doing, error)

    def _explanation(self, doing, error):
        if self._inspected is None:
            return error
        failed = "Could not %s the database %s in the container %s" % (doing, self.name, self.container)
        try:
            if error.details.get("exit_code") == KILLED:
                # A container's end kills its programs first, and shows a moment later.
                time.sleep(GRACE)
            now = self.engine.container(self.container)
        except Gone:
            return DatabaseError(
                "%s: the container was removed." % failed,
                "Bring the stack up again ('docker compose up -d'), then try again.",
            )
        except EngineError:
            return error
        if now["state"] != "running":
            return self._not_running(now["state"])
        if (now["id"], now["started_at"]) != (self.inspected()["id"], self.inspected()["started_at"]):
            return DatabaseError("%s: the container was restarted meanwhile." % failed, "Try again.")
        said = last_lines(error.what)
        if error.details.get("stderr"):
            said = last_lines(error.details["stderr"])
            if error.details.get("exit_code"):
                said += " (exit code %d)" % error.details["exit_code"]
        if error.details.get("exit_code") == KILLED:
            return DatabaseError("%s: %s" % (failed, said), "It was killed; for want of memory? 'dmesg' tells.")
        if error.details.get("exit_code") == PSQL_NO_CONNECTION:
            names = self._database_names()
            if names and self.name not in names and self.name != TEMPLATE:
                return DatabaseError(
                    "There is no database %s in the container %s." % (self.name, self.container),
                    "Databases there: %s." % ", ".join(names),
                    databases=names,
                )
            return DatabaseError(
                "%s: %s" % (failed, said),
                "User %s and its password come from the container's POSTGRES_USER and POSTGRES_PASSWORD; "
                "'docker logs %s' has the server's side." % (self.user, self.container),
            )
        return DatabaseError("%s: %s" % (failed, said), "'docker logs %s' has the server's side." % self.container)

    def _not_running(self, state):
        return DatabaseError(
            "The container %s with the database is not running: its state is %s." % (self.container, state),
            "'docker %s %s' lets it go on." % ("unpause" if state == "paused" else "start", self.container),
        )

    def _database_names(self):
        """Return the databases that exist, none where the server lets us in nowhere."""
        try:
            with self.run(PSQL + ["-c", LIST_DATABASES], dict(SESSION_ENVIRONMENT, PGDATABASE=TEMPLATE)) as command:
                return command.output().decode("utf-8").splitlines()
        except EngineError:
            return []

    def _setting(self, variable):
        """Return a setting of the image, from the environment or the file that it names."""
        if variable not in self._settings:
            env = self.inspected()["env"]
            value = env.get(variable)
            if not value and env.get(variable + "_FILE"):
                argv = ["cat", env[variable + "_FILE"]]
                with self.engine.run_in(self.inspected()["name"], argv, user="0") as command:
                    value = command.output().decode("utf-8").rstrip("\n")
            self._settings[variable] = value
        return self._settings[variable]


class Session:
    """A psql that waits for statements, for what must happen in one transaction."""

    def __init__(self, database, command, doing):
        self._database = database
        self._doing = doing
        self._command = command
        self._chunks = command.chunks()
        self._received = b""

    def ask(self, *statements):
        """Run statements and return their one-line answers."""
        self.send(*statements)
        return self.receive()

    def send(self, *statements):
        """Hand over statements without waiting; :meth:`receive` gets the answers."""
        text = "%s\n\\echo %s" % ("\n".join(statements), END_OF_ANSWER.decode("ascii"))
        with self._database.explained("ask"):
            self._command.write(text.encode("utf-8"))

    def copy(self, statement, blocks):
        """Have a ``COPY … FROM STDIN`` take blocks of rows as ``COPY … TO STDOUT`` writes them."""
        with self._database.explained(self._doing):
            self._command.write(statement.encode("utf-8") + b"\n")
            for block in blocks:
                self._command.write(block)
            self._command.write(END_OF_ROWS)
        self.ask()

    def receive(self):
        """Return the one-line answers of what was sent last."""
        with self._database.explained(self._doing):
            while END_OF_ANSWER not in self._received:
                chunk = next(self._chunks, None)
                if chunk is None:
                    self._command.finish()
                    raise CommandError("psql ended before its answer was complete.")
                self._received += chunk
        answer, unused, self._received = self._received.partition(END_OF_ANSWER)
        return answer.decode("utf-8").splitlines()


def last_lines(said, count=5):
    """Return the end of what a program said: its last lines, as one."""
    return " ".join(said.strip().splitlines()[-count:])
