# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A database that is loaded beside the live one, and takes its name in one transaction.

A dump is SQL that somebody else wrote, and so it is contained:

* It runs as a role that owns the side database and nothing else. The role can log in only
  while a load runs, with a password made for it, and no more often than the load needs: plain
  SQL that tries a second connection, into the live database for one, gets none. Programs and
  files of the server are refused to such a role by PostgreSQL.
* What runs its SQL does so in a throwaway container; of a custom dump, rows are unpacked by us
  (``dump_shares``) and nothing else. psql, which knows commands of its own that start programs,
  runs as nobody, without a file of the host or the superuser's password, and restricted where
  its release can be (``\\restrict``). Its container has a network address of its own, because
  PostgreSQL's images let everybody in who comes from the server's own 127.0.0.1; where the
  server does so for others too, plain SQL is refused unless psql can be restricted.
* Privileges are granted by that same role, as its own SQL (``dump_privileges``).
* What the superuser does in the side database finds only names of ``pg_catalog``.

Once it has the live name, the functions and triggers of a dump are the application's own,
as they were in the database that was dumped.

The swap relies on what ``RenameDatabase()`` and ``InitPostgres()`` of PostgreSQL do: a rename
locks the database against new sessions, then waits five seconds for those that are there.
They are ended meanwhile. Who comes later waits for the lock, and finds the other database.
So nothing but the renames changes, and which databases exist tells how far a restore got.
Where there is no live database, an empty one of a third name says so, as the previous would.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from concurrent.futures import ThreadPoolExecutor, wait

from ansible_collections.echo_music.ops.plugins.module_utils.dump_file import (
    opened,
    raw_blocks,
    require_loadable,
    sql_blocks,
)
from ansible_collections.echo_music.ops.plugins.module_utils.dump_shares import Shares
from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    CommandError,
    DatabaseError,
    EchoError,
    EngineError,
    SpaceError,
)
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import PSQL, SESSION_ENVIRONMENT, Database

LIVE, STAGED, SWAPPED, ABSENT = "live", "staged", "swapped", "absent"

LOADER = "echo_restore_loader"
RIGHTS = "NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE INHERIT NOREPLICATION NOBYPASSRLS PASSWORD NULL"
SUFFIXES = ("_echo_restore", "_echo_previous")
NOTHING = "_echo_nothing"
NAME_LIMIT = 63
TABLES_LISTED = 40
# Everybody may connect to it, nobody renames it, and the live database may be any other.
MAINTENANCE = "template1"
NOBODY = "65534:65534"
SCRAM_ROUNDS = 4096
END_SESSIONS_EVERY = 0.1
# As many sessions as processors; of more than four the rest is for whoever else is served.
JOBS = min(4, max(2, os.cpu_count() or 1))
# To ask how far a load is costs a command in the container.
SIZE_EVERY = 2
LOCK_TIMEOUT = "30s"
PUBLIC_IS_THE_DATABASE_OWNERS = 150000
# The first minor releases whose psql knows \restrict; all of later majors do.
RESTRICTED_SINCE = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}
RESTRICTED_ALWAYS = 18

# No more maintenance_work_mem than the server has: of 4 million rows the indexes are built slower in 256 MB than in 64.
LOAD_ENVIRONMENT = dict(
    SESSION_ENVIRONMENT,
    PGOPTIONS=SESSION_ENVIRONMENT["PGOPTIONS"] + " -c synchronous_commit=off",
    LC_ALL="C",
    PGSSLMODE="prefer",
)
LOAD_SQL = PSQL + ["-o", "/dev/null", "--single-transaction", "-f", "-"]
# Each statement on its own: one that is refused must not keep the others from having their way.
GRANT = PSQL + ["-v", "ON_ERROR_STOP=0", "-o", "/dev/null", "-f", "-"]
LOAD_CUSTOM = ["pg_restore", "--no-owner", "--no-acl", "--no-tablespaces", "--exit-on-error"]
# How pg_restore and psql end when the server refuses a statement, and how their words begin.
REFUSED = (1, 3)
SAID = re.compile(r"(?:<stdin>:\d+: *)?(?:error|ERROR|FATAL): .{0,400}", re.S)
# What of that is no matter of the dump: a disk that is full, and a server that lacks something else, or is gone.
FULL = re.compile(r": (?:No space left on device|Disk quota exceeded)$|^HINT: +Check free disk space", re.M)
GONE = re.compile(
    r"out of (?:shared )?memory|shared memory segment|Input/output error|too many clients|remaining connection slots"
    r"|server closed the connection|connection to server|no connection to the server|SSL SYSCALL|worker process died"
    r"|terminating connection|canceling statement|the database system is"
)
DATA = "/var/lib/postgresql"
DUMP = "/dump"
SHARES = "/shares"
# Privileges are told, not loaded. The comment of an extension is for its owner to make, who need not be the loader.
READ_CUSTOM = """
set -e
pg_restore --list {0} >/tmp/all
grep -E '^[0-9]+; [0-9]+ [0-9]+ (DEFAULT )?ACL ' /tmp/all >/tmp/privileges || test $? -eq 1
if test -s /tmp/privileges; then
    pg_restore --use-list=/tmp/privileges --file=- {0}
fi
grep -vE '^[0-9]+; [0-9]+ [0-9]+ COMMENT - EXTENSION ' /tmp/all >/tmp/list
if test -d {1}; then
    "$@" --section=pre-data --use-list=/tmp/list {0}
    loads=
    for share in {1}/*; do
        "$@" <"$share" &
        loads="$loads $!"
    done
    for load in $loads; do
        wait "$load"
    done
    grep -vE '^[0-9]+; 0 [0-9]+ TABLE DATA ' /tmp/list >/tmp/rest
    exec "$@" --jobs="$JOBS" --section=data --section=post-data --use-list=/tmp/rest {0}
fi
exec "$@" --jobs="$JOBS" --use-list=/tmp/list {0}
""".format(DUMP, SHARES)
PRIVILEGES_LIMIT = 4 * 1024 * 1024
# In whatever language the server speaks: what it refuses is an error, or a warning that nothing was granted.
NOT_GRANTED = re.compile(r"^psql:<stdin>:\d+: \S+ +(.{0,200})", re.M)

SERVER = """
SELECT json_build_object('version', current_setting('server_version_num')::int, 'port', current_setting('port'));
"""
DATABASES = "SELECT json_object_agg(datname, oid::bigint) FROM pg_database;"
END_SESSIONS = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datid = %d;"

# Trusted extensions are for the loader to create, as the dump says. Others only a superuser can.
CREATE_EXTENSIONS = """
SELECT format('CREATE EXTENSION IF NOT EXISTS %%I WITH SCHEMA %%I', a.name, coalesce(v.schema, 'public'))
FROM pg_available_extensions a
    JOIN pg_available_extension_versions v ON (v.name, v.version) = (a.name, a.default_version)
WHERE NOT v.trusted AND a.name IN (%s) \\gexec
"""
CREATE_LOADER = """
SELECT 'CREATE ROLE {0}' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{0}') \\gexec
""".format(LOADER)
DROP_LOADER = """
SELECT format('DROP ROLE %%I', rolname) FROM pg_roles r WHERE rolname = %s AND NOT EXISTS (
    SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = r.oid) \\gexec
"""
# Settings, connection limit and privileges belong to a database's name as users see it. Copied
# in the catalog, because ALTER DATABASE can't say every value that is there.
CARRY_OVER = """
DELETE FROM pg_db_role_setting s USING pg_database d WHERE d.oid = s.setdatabase AND d.datname = {new};
INSERT INTO pg_db_role_setting (setdatabase, setrole, setconfig)
    SELECT n.oid, s.setrole, s.setconfig
    FROM pg_db_role_setting s JOIN pg_database o ON o.oid = s.setdatabase, pg_database n
    WHERE o.datname = {old} AND n.datname = {new};
SELECT format('ALTER DATABASE %I CONNECTION LIMIT %s', {new}, datconnlimit)
FROM pg_database WHERE datname = {old} \\gexec
SELECT DISTINCT format('REVOKE ALL ON DATABASE %I FROM %s', {new},
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE datname = {new} \\gexec
SELECT format('GRANT %s ON DATABASE %I TO %s%s', privilege_type, {new},
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
    CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE datname = {old} \\gexec
"""


class ServerError(DatabaseError):
    """A server, or a program at work with it, failed; that tells nothing of a dump."""


def names(live, operation=None):
    """Return the names of the side database and of the previous one; ``operation`` tells restores apart."""
    suffixes = [suffix + ("_" + operation if operation else "") for suffix in SUFFIXES]
    return tuple(_shortened(live, NAME_LIMIT - len(suffix)) + suffix for suffix in suffixes)


def compare(expected, found):
    """Return where two counts of rows differ: ``[{"table", "expected", "found"}]``, None for no table."""
    return [
        dict(table=table, expected=expected.get(table), found=found.get(table))
        for table in sorted(set(expected) | set(found))
        if expected.get(table) != found.get(table)
    ]


def require_tables(tables, known, where):
    """Raise ``DatabaseError`` for tables that are not among the known ones."""
    unknown = sorted(set(tables) - set(known))
    if unknown:
        listed = sorted(known)[:TABLES_LISTED]
        raise DatabaseError(
            "%s has no table %s." % (where, ", ".join(unknown)),
            "It has: %s." % (", ".join(listed + ["…"] * (len(known) > len(listed))) or "none"),
        )


class SideDatabase:
    """The database beside a live one, which need not exist; all of it is asked of PostgreSQL."""

    def __init__(self, database, operation=None):
        self.live = database.name
        self.side, self.previous = names(database.name, operation)
        tag = NOTHING + ("_" + operation if operation else "")
        self.nothing = _shortened(database.name, NAME_LIMIT - len(tag)) + tag
        self._live = database
        self._server = Superuser(database, MAINTENANCE)
        self._side = Superuser(database, self.side)
        self._about = None

    # -- what is there ------------------------------------------------------------------

    def state(self):
        """Return ``absent``, ``live``, ``staged`` (the side database is there) or ``swapped``."""
        there = self._databases()
        if self.side in there:
            return STAGED
        if self.live not in there:
            return ABSENT
        return SWAPPED if self.previous in there or self.nothing in there else LIVE

    def size(self):
        """Return what the side database takes on the disk so far."""
        return int(self._server.query("SELECT pg_database_size(%s);" % literal(self.side))[0])

    def describe(self):
        """Return what the side database is, with its rows counted, as ``Database.describe`` does."""
        return self._side.describe()

    def query(self, *statements):
        """Return the one-line answers of the side database, as ``Database.query`` does."""
        return self._side.query(*statements)

    def count(self):
        """Return the rows of each table of the side database."""
        return self.describe()["tables"]

    # -- load ---------------------------------------------------------------------------

    def create(self, like):
        """Create the side database anew, in the ways of ``like``: a description, or the manifest's.

        Its keys ``encoding``, ``collate``, ``ctype`` and ``extensions`` are used.
        """
        version = self._about_server()["version"]
        options = [
            "%s %s" % (word, literal(like[key]))
            for word, key in (("ENCODING", "encoding"), ("LC_COLLATE", "collate"), ("LC_CTYPE", "ctype"))
        ]
        self._server.tell(
            "create the side database through",
            self._dropping(self.side),
            CREATE_LOADER,
            "ALTER ROLE %s %s;" % (LOADER, RIGHTS),
            "ALTER ROLE %s RESET ALL;" % LOADER,
            "CREATE DATABASE %s OWNER %s TEMPLATE template0 %s;" % (identifier(self.side), LOADER, " ".join(options)),
        )
        prepared = [] if version >= PUBLIC_IS_THE_DATABASE_OWNERS else ["ALTER SCHEMA public OWNER TO %s;" % LOADER]
        if like["extensions"]:
            listed = ", ".join(literal(extension["name"]) for extension in like["extensions"])
            prepared.append(CREATE_EXTENSIONS % listed)
        self._side.tell("prepare", *prepared)

    def load(self, path, kind, jobs=JOBS, tables=None):
        """Load a dump of a kind (``custom``, ``sql``, ``sql.gz``) into the side database.

        Returns the SQL that a custom dump has of privileges, which are not granted; "" for other
        kinds, and from a remote engine.

        ``tables`` (``schema.table``), for ``custom`` only, loads these tables' rows: the other
        tables stay empty, and there are no indexes, constraints, triggers or positions of
        sequences. Out of such a database rows are copied (``side_rows``); it never becomes the live one.
        """
        server = self._about_server()
        require_loadable(path, kind, server["version"])
        if kind != "custom":
            if tables:
                raise DatabaseError("Single tables can't be taken out of %s." % path, "Take them from a .backup file.")
            self._load_sql(path, kind, server)
            return ""
        if tables:
            self._load_custom(path, server, jobs, ["--section=pre-data"])
            require_tables(tables, self.describe()["tables"], "The dump %s" % path)
            chosen = [_chosen(table) for table in tables]
            return self._load_custom(path, server, jobs, ["--section=data"] + sum(chosen, []))
        return self._load_custom(path, server, jobs, [])

    def grant(self, path, statements):
        """Run statements of a dump as its loader; return what the server said of those that it refused."""
        server = self._about_server()
        network, host = self._way_in()
        with self._loading(path, server, host, connections=1) as env:
            # What psql says of an error is all that it says.
            with self._helper(
                GRANT, env, network, user=NOBODY, stdin=True, entrypoint=["sh", "-c", 'exec "$@" 2>&1', "sh"]
            ) as command:
                said = _feed(command, ["\n".join(statements + [""]).encode("utf-8")], end=command.output)
        return NOT_GRANTED.findall(said.decode("utf-8", "replace"))

    def finish(self, owner, *defaults):
        """Make all that was loaded the owner's, with these privileges by default, and remove the loader."""
        new = identifier(owner)
        self._side.tell(
            "hand over",
            "BEGIN;",
            "REASSIGN OWNED BY %s TO %s;" % (LOADER, new),
            "DROP OWNED BY %s;" % LOADER,
            "ALTER DATABASE %s OWNER TO %s;" % (identifier(self.side), new),
            *(list(defaults) + ["COMMIT;", DROP_LOADER % literal(LOADER)])
        )

    def _load_sql(self, path, kind, server):
        network, host = self._way_in()
        restricted = _can_be_restricted(server["version"])
        if not restricted:
            self._require_password(network, host, server)
        # Whoever doesn't know the key can't leave the restricted mode. On the dump's own first
        # line, so that psql's line numbers are the file's.
        first = [b"\\restrict %s \\\\ " % secrets.token_hex(32).encode("ascii")] if restricted else []
        with self._loading(path, server, host, connections=1) as env:
            with self._helper(LOAD_SQL, env, network, user=NOBODY, stdin=True) as command:
                with opened(path, kind) as source:
                    _feed(command, first, sql_blocks(source, path))

    def _load_custom(self, path, server, jobs, options):
        network, host = self._way_in()
        argv = LOAD_CUSTOM + ["--dbname=" + self.side] + options
        if not self._live.engine.is_local():
            with self._loading(path, server, host, connections=1) as env:
                with self._helper(argv, env, network, user=NOBODY, stdin=True) as command:
                    with opened(path, "custom") as source:
                        _feed(command, raw_blocks(source))
            return ""
        # Whose the file is, for it is nobody else's to read.
        owner = os.stat(path).st_uid, os.stat(path).st_gid
        binds = {os.path.realpath(path): {"bind": DUMP, "mode": "ro"}}
        # Those of a step may end a moment after its programs.
        connections = 2 * jobs + 1
        with self._loading(path, server, host, connections) as env, contextlib.ExitStack() as stack:
            # Rows of single tables are chosen by pg_restore.
            shares = None if options else stack.enter_context(Shares(self._live.engine, path, jobs, owner))
            if shares:
                binds[shares] = {"bind": SHARES, "mode": "ro"}
            command = stack.enter_context(
                self._helper(
                    argv,
                    dict(env, JOBS=str(jobs)),
                    network,
                    user="%d:%d" % owner,
                    binds=binds,
                    entrypoint=["sh", "-c", READ_CUSTOM, "sh"],
                )
            )
            said, size = [], 0
            for chunk in command.chunks():
                said.append(chunk)
                size += len(chunk)
                if size > PRIVILEGES_LIMIT:
                    raise DatabaseError("%s holds more privileges than it can." % path, "Restore from another dump.")
            command.finish()
        return b"".join(said).decode("utf-8", "replace")

    @contextlib.contextmanager
    def _loading(self, path, server, host, connections):
        """Let the loader log in during the block; yield the environment of its programs."""
        password = secrets.token_urlsafe(32)
        self._server.tell(
            "let the loader in through",
            "ALTER ROLE %s LOGIN CONNECTION LIMIT %d PASSWORD '%s';" % (LOADER, connections, _verifier(password)),
        )
        env = dict(
            LOAD_ENVIRONMENT,
            PGHOST=host,
            PGPORT=server["port"],
            PGUSER=LOADER,
            PGDATABASE=self.side,
            PGPASSWORD=password,
        )
        try:
            with self._side.explained("load"), self._refused(path):
                yield env
        finally:
            # What failed before says more than this could.
            with contextlib.suppress(EchoError):
                self._server.tell("lock the loader out through", "ALTER ROLE %s %s;" % (LOADER, RIGHTS))

    @contextlib.contextmanager
    def _refused(self, path):
        """Name the dump and PostgreSQL's own words where the server refused what is in it, or had no room for it."""
        try:
            yield
        except CommandError as error:
            match = SAID.search(error.details.get("stderr") or "")
            said = match.group() if match else ""
            if error.details.get("exit_code") not in REFUSED or not said or GONE.search(said.splitlines()[0]):
                raise
            what = "The dump %s can't be loaded into the database %s in the container %s: %s" % (
                path,
                self.side,
                self._live.container,
                " ".join(said.replace("<stdin>:", "line ").split()),
            )
            untouched = "The live database %s was not touched." % self.live
            if FULL.search(said):
                raise SpaceError(what, "Make room on the disk of %s. %s" % (self._data_folder(), untouched))
            raise DatabaseError(what, "Restore from another dump. %s" % untouched)

    def _data_folder(self):
        """Return where the server's data lies on its host."""
        mounts = self._side.inspected()["mounts"]
        places = [mount["source"] for mount in mounts if mount["destination"].startswith(DATA)]
        return (places or [self._live.engine.data_root()])[0]

    def _helper(self, argv, env, network, **options):
        # The image's own entrypoint is for starting a server.
        options = dict(dict(entrypoint=["env"]), **options)
        image = self._side.inspected()["image_id"]
        return self._live.engine.helper(image, argv, env=env, network_mode=network, **options)

    def _way_in(self):
        """Return the network that leads to the server from outside of it, and the server's address there."""
        container = self._side.inspected()
        usable = [network for network in container["networks"] if network not in ("host", "none")]
        if not usable:
            return "container:" + container["id"], "127.0.0.1"
        if usable[0] != "bridge":
            return usable[0], container["name"]
        # Engine's own bridge is the one network without names.
        with self._live.engine.run_in(container["name"], ["cat", "/etc/hostname", "/etc/hosts"]) as command:
            hostname, *lines = command.output().decode("utf-8").splitlines()
        fields = [line.split() for line in lines]
        return usable[0], next((words[0] for words in fields if hostname in words[1:]), hostname)

    def _require_password(self, network, host, server):
        env = dict(LOAD_ENVIRONMENT, PGHOST=host, PGPORT=server["port"], PGUSER=self._live.user, PGDATABASE=MAINTENANCE)
        try:
            with self._helper(["psql", "-X", "-w", "-c", ""], env, network, user=NOBODY) as command:
                command.finish()
        except CommandError:
            return
        raise ServerError(
            "The PostgreSQL %d.%d in the container %s lets its superuser in without a password, and its psql can't be "
            "restricted, so plain SQL from elsewhere could do anything there."
            % (divmod(server["version"], 10000) + (self._live.container,)),
            "Restore from a .backup file, update PostgreSQL to its newest minor release, or have its pg_hba.conf ask "
            "for passwords (POSTGRES_HOST_AUTH_METHOD).",
        )

    # -- swap ---------------------------------------------------------------------------

    def swap(self):
        """Give the side database the live name, and the live one that of the previous; nothing if that is done."""
        there = self._databases()
        if self.side not in there:
            if self.previous in there or self.nothing in there:
                return
            raise DatabaseError(
                "There is no database %s in the container %s to put in the place of %s."
                % (self.side, self._live.container, self.live),
                "Stage the restore anew.",
            )
        live, side, previous = (identifier(name) for name in (self.live, self.side, self.previous))
        statements = ["ALTER DATABASE %s RENAME TO %s;" % (side, live)]
        if self.live in there:
            statements.insert(0, "ALTER DATABASE %s RENAME TO %s;" % (live, previous))
            statements.append(CARRY_OVER.format(new=literal(self.live), old=literal(self.previous)))
            statements.append("ALTER DATABASE %s ALLOW_CONNECTIONS false;" % previous)
        elif self.nothing not in there:
            self._server.tell(
                "note that there is no live database through",
                "CREATE DATABASE %s TEMPLATE template0 ALLOW_CONNECTIONS false;" % identifier(self.nothing),
            )
        statements.append("ALTER DATABASE %s ALLOW_CONNECTIONS true;" % live)
        self._rename(there.get(self.live), *statements)

    def swap_back(self):
        """Give the previous database the live name again, and the live one the side's; nothing if that is done."""
        there = self._databases()
        if self.nothing in there:
            if self.side not in there and self.live in there:
                self._rename(
                    there.get(self.live),
                    "ALTER DATABASE %s RENAME TO %s;" % (identifier(self.live), identifier(self.side)),
                )
            self._server.tell("put back that there was no database through", self._dropping(self.nothing))
            return
        if self.previous not in there:
            return
        live, side, previous = (identifier(name) for name in (self.live, self.side, self.previous))
        statements = [
            "ALTER DATABASE %s RENAME TO %s;" % (previous, live),
            "ALTER DATABASE %s ALLOW_CONNECTIONS true;" % live,
        ]
        if self.live in there:
            statements.insert(0, "ALTER DATABASE %s RENAME TO %s;" % (live, side))
        self._rename(there.get(self.live), *statements)

    def drop_side(self):
        """Remove the side database and the loader, if they are there."""
        self._server.tell(
            "drop the side database through",
            self._dropping(self.side),
            self._dropping(self.nothing),
            DROP_LOADER % literal(LOADER),
        )

    def drop_previous(self):
        """Remove the previous database, if it is there."""
        self._server.tell(
            "drop the previous database through", self._dropping(self.previous), self._dropping(self.nothing)
        )

    def _rename(self, live_oid, *statements):
        with ThreadPoolExecutor(max_workers=1) as threads:
            renaming = threads.submit(
                self._server.tell,
                "swap the databases through",
                "BEGIN;",
                "SET LOCAL lock_timeout = '%s';" % LOCK_TIMEOUT,
                *(list(statements) + ["COMMIT;"])
            )
            while live_oid and not renaming.done():
                self._server.query(END_SESSIONS % live_oid)
                wait([renaming], timeout=END_SESSIONS_EVERY)
            renaming.result()

    def _databases(self):
        return self._asked(DATABASES)

    def _about_server(self):
        """Return the server's ``version`` and ``port``, which it is asked for once."""
        if self._about is None:
            self._about = self._asked(SERVER)
        return self._about

    def _asked(self, question):
        return json.loads(self._server.query(question)[0])

    @staticmethod
    def _dropping(name):
        return "DROP DATABASE IF EXISTS %s WITH (FORCE);" % identifier(name)


class Superuser(Database):
    """A database as the superuser enters it, who uses no name that somebody else defined."""

    def __init__(self, database, name):
        super(Superuser, self).__init__(database.engine, database.container, database.user, name)

    def environment(self, more=None):
        """Return the libpq variables that name and open the database."""
        env = super(Superuser, self).environment(more)
        env["PGOPTIONS"] = (env.get("PGOPTIONS", "") + " -c search_path=pg_catalog").strip()
        return env

    def analyze(self):
        """Have PostgreSQL gather the statistics that its plans are made by; a dump has none."""
        self.tell("analyze", "ANALYZE;")

    def _explanation(self, doing, error):
        found = super(Superuser, self)._explanation(doing, error)
        return ServerError(found.what, found.remedy, **found.details) if isinstance(found, DatabaseError) else found

    def tell(self, doing, *statements):
        """Have statements run that no argument list shows, each on its own; psql's ``\\gexec`` is one."""
        with self.explained(doing):
            with self.run(PSQL, SESSION_ENVIRONMENT, stdin=True) as command:
                command.write("\n".join(statements).encode("utf-8") + b"\n")
                command.close_stdin()
                command.output()


def _feed(command, *sources, end=None):
    """Write blocks to a command's input while it is listened to, and wait for its end; return what ``end`` does.

    A source that breaks off leaves the command unfinished, so that it comes to nothing.
    """
    with ThreadPoolExecutor(max_workers=1) as threads, contextlib.ExitStack() as on_error:
        ended = threads.submit(end or command.finish)
        on_error.callback(command.__exit__, None, None, None)
        for blocks in sources:
            for block in blocks:
                try:
                    command.write(block)
                except EngineError:
                    # Why it stopped reading, it says by the way it ended.
                    break
        command.close_stdin()
        on_error.pop_all()
        return ended.result()


def _can_be_restricted(version):
    major, minor = divmod(version, 10000)
    return major >= RESTRICTED_ALWAYS or minor >= RESTRICTED_SINCE.get(major, minor + 1)


def _verifier(password):
    """Return what PostgreSQL keeps of a password (RFC 5803), so that it never sees, or logs, the password."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, SCRAM_ROUNDS)
    client, server = (hmac.new(salted, word, hashlib.sha256).digest() for word in (b"Client Key", b"Server Key"))
    shown = [base64.b64encode(part).decode("ascii") for part in (salt, hashlib.sha256(client).digest(), server)]
    return "SCRAM-SHA-256$%d:%s$%s:%s" % (SCRAM_ROUNDS, shown[0], shown[1], shown[2])


def _chosen(table):
    schema, unused, name = table.rpartition(".")
    return (["--schema=" + schema] if schema else []) + ["--table=" + name]


def _shortened(name, limit):
    return name.encode("utf-8")[:limit].decode("utf-8", "ignore")


def identifier(name):
    """Return a name as SQL has it."""
    return '"%s"' % name.replace('"', '""')


def literal(text):
    """Return a text as SQL has it, where ``standard_conforming_strings`` is on, as it is by default."""
    return "'%s'" % text.replace("'", "''")
