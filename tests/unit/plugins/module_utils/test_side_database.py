# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The side database: how a dump is contained, and how the names are swapped."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re

import pytest
from fake_archive import archive, data
from fake_engine import FakeCommand, FakeEngine, container

from ansible_collections.echo_music.ops.plugins.module_utils import postgres, side_database
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, SetError, SpaceError
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import (
    LOADER,
    ServerError,
    SideDatabase,
    compare,
    names,
)

PASSWORD = "it's the superuser's"
LIKE = dict(encoding="UTF8", collate="C", ctype="C", extensions=[dict(name="pg_trgm", version="1.6")])
SQL = b"SELECT 1;\nALTER TABLE t OWNER TO music_admin;\n"
SIDE, PREVIOUS = names("music_server", "0a1b2c3d")
NOTHING = "music_server_echo_nothing_0a1b2c3d"
HOSTS = b"abc123\n127.0.0.1\tlocalhost\n172.17.0.2\tabc123\n"


class Server:
    """A fake PostgreSQL with databases that keep their names; it remembers what it was told."""

    def __init__(self, *databases, version=150018, local=True, networks=("echo_default",), helper=None):
        self.databases = databases
        self.version = version
        self.told = []
        self.logged_in = []
        self._helper = helper or (lambda call: FakeCommand())
        env = dict(POSTGRES_USER="music_admin", POSTGRES_PASSWORD=PASSWORD, POSTGRES_DB="music_server")
        self.engine = FakeEngine(
            container("echo-postgres", env=env, networks=list(networks)),
            answers=dict(psql=self.psql, helper=self.helper, cat=lambda call: FakeCommand(HOSTS)),
            local=local,
        )
        self.side = SideDatabase(Database(self.engine, "echo-postgres"), "0a1b2c3d")

    def psql(self, call):
        if call.stdin:
            return FakeCommand(reply=self.tell)
        answers = {
            side_database.SERVER: dict(version=self.version, port="5433"),
            side_database.DATABASES: dict((name, 16384 + i) for i, name in enumerate(self.databases)),
        }
        answer = answers.get(call.argv[-1], 0)
        if "query_to_xml" in call.argv[-1]:
            return FakeCommand(b"{}\n", json.dumps({"public.users": 3}).encode() + b"\n")
        return FakeCommand(json.dumps(answer).encode() + b"\n")

    def tell(self, data):
        self.told.append(data.decode())
        return []

    def helper(self, call):
        self.logged_in += self.told[-1:]
        return self._helper(call)

    @property
    def helpers(self):
        return [call for call in self.engine.calls if call.network_mode]


@pytest.fixture
def dump(tmp_path):
    def write(content=SQL):
        path = tmp_path / "dump.sql"
        path.write_bytes(content)
        return str(path)

    return write


@pytest.fixture(autouse=True)
def versions_unknown(monkeypatch):
    monkeypatch.setattr(side_database, "require_loadable", lambda *unused: None)


def test_names_tell_restores_apart_and_fit():
    assert names("echo") == ("echo_echo_restore", "echo_echo_previous")
    assert names("echo", "0a1b2c3d") == ("echo_echo_restore_0a1b2c3d", "echo_echo_previous_0a1b2c3d")
    for name in names("ñ" * 31 + "x", "0a1b2c3d"):
        assert len(name.encode()) <= 63
        assert name.endswith("_0a1b2c3d")


def test_compare_lists_each_difference():
    assert compare({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 0}) == [
        dict(table="b", expected=2, found=4),
        dict(table="c", expected=3, found=None),
        dict(table="d", expected=None, found=0),
    ]


@pytest.mark.parametrize(
    "databases, state",
    [
        ((), "absent"),
        (("music_server",), "live"),
        (("music_server", SIDE), "staged"),
        ((SIDE,), "staged"),
        (("music_server", PREVIOUS), "swapped"),
        (("music_server", "music_server_echo_restore_ffffffff"), "live"),
    ],
)
def test_state_is_which_databases_exist(databases, state):
    assert Server(*databases).side.state() == state


@pytest.mark.parametrize("version, alters_schema", [(140019, True), (150018, False)])
def test_create_makes_a_role_without_rights_the_owner(version, alters_schema):
    server = Server("music_server", version=version)
    server.side.create(LIKE)
    told = "\n".join(server.told)
    assert told.index("DROP DATABASE IF EXISTS") < told.index("CREATE DATABASE")
    assert 'OWNER %s TEMPLATE template0 ENCODING \'UTF8\' LC_COLLATE \'C\' LC_CTYPE \'C\'' % LOADER in told
    assert "NOLOGIN NOSUPERUSER" in told
    assert ("ALTER SCHEMA public OWNER" in told) is alters_schema
    assert "IN ('pg_trgm')" in told


def test_names_are_quoted():
    engine = Server("x").engine
    side = SideDatabase(Database(engine, "echo-postgres", name='a"b; --'))
    side.drop_previous()
    assert side._dropping(side.previous) == 'DROP DATABASE IF EXISTS "a""b; --_echo_previous" WITH (FORCE);'


def test_superuser_uses_no_name_of_the_dump():
    server = Server("music_server", SIDE)
    assert server.side.count() == {"public.users": 3}
    server.side.finish("music_admin")
    for call in server.engine.calls:
        assert call.env["PGOPTIONS"].endswith("-c search_path=pg_catalog")


@pytest.mark.parametrize("kind", ["sql", "custom"])
@pytest.mark.parametrize("local", [True, False])
def test_loader_logs_in_only_while_it_loads(dump, kind, local):
    server = Server("music_server", SIDE, local=local)
    server.side.load(dump(), kind, jobs=2)
    (call,) = server.helpers
    connections = 5 if kind == "custom" and local else 1
    assert ["LOGIN CONNECTION LIMIT %d" % connections in text for text in server.logged_in] == [True]
    assert "NOLOGIN" in server.told[-1]
    assert (call.env["PGUSER"], call.env["PGDATABASE"], call.env["PGHOST"]) == (LOADER, SIDE, "echo-postgres")
    assert PASSWORD not in call.env.values()
    everything = server.told + sum((call.argv + (call.entrypoint or []) for call in server.engine.calls), [])
    assert not [text for text in everything if call.env["PGPASSWORD"] in text or PASSWORD in text]


def test_rows_are_dealt_out_where_they_can_be(tmp_path):
    path = tmp_path / "postgres_dump.backup"
    path.write_bytes(archive(data(1, b"1\n\\.\n\n\n"), data(2, b"\\.\n\n\n")))
    found = []

    def helper(call):
        for volume in [source for source, place in call.binds.items() if place == dict(bind="/shares", mode="ro")]:
            for pipe in sorted((tmp_path / volume / "_data").iterdir()):
                found.append(pipe.read_bytes())
        return FakeCommand(b"GRANT\n")

    server = Server("music_server", SIDE, helper=helper)
    server.engine._root = tmp_path
    assert server.side.load(str(path), "custom", jobs=2) == "GRANT\n"
    assert [share[:5] for share in found] == [b"PGDMP"] * 2
    assert server.helpers[0].env["JOBS"] == "2"
    assert server.engine.throwaways == []
    # Which rows are wanted, pg_restore alone can tell.
    with contextlib.suppress(DatabaseError):
        server.side.load(str(path), "custom", jobs=2, tables=["public.users"])
    assert len(found) == 2 and len(server.helpers) > 1


def test_password_is_told_as_its_verifier(dump):
    server = Server("music_server", SIDE)
    server.side.load(dump(), "sql")
    password = server.helpers[0].env["PGPASSWORD"].encode()
    match = re.search(r"SCRAM-SHA-256\$4096:([^$]+)\$([^:]+):([^']+)", server.logged_in[0])
    salt, stored, key = (base64.b64decode(part) for part in match.groups())
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, 4096)
    assert hashlib.sha256(hmac.new(salted, b"Client Key", "sha256").digest()).digest() == stored
    assert hmac.new(salted, b"Server Key", "sha256").digest() == key


def test_loader_is_locked_out_when_the_load_fails(dump):
    said = "Line\npg_restore: error: could not execute query: ERROR:  no\nCommand was: x\n"
    server = Server("music_server", SIDE, helper=lambda call: FakeCommand(exit_code=1, stderr=said))
    path = dump()
    with pytest.raises(DatabaseError) as caught:
        server.side.load(path, "custom")
    assert "NOLOGIN" in server.told[-1]
    for part in (path, SIDE, "echo-postgres", "could not execute query: ERROR: no Command was: x"):
        assert part in caught.value.what


def test_psql_says_the_line_of_the_dump(dump):
    said = "psql:<stdin>:7: ERROR:  must be superuser\n"
    server = Server("music_server", SIDE, helper=lambda call: FakeCommand(exit_code=3, stderr=said))
    with pytest.raises(DatabaseError, match="line 7: ERROR: must be superuser"):
        server.side.load(dump(), "sql")


@pytest.mark.parametrize(
    "kind, exit_code, said",
    [
        ("sql", 3, "psql:<stdin>:7: ERROR:  could not extend file \"base/5/1\": No space left on device\nHINT:  Make room.\n"),
        (
            "custom",
            1,
            "pg_restore: error: COPY failed for table \"t\": ERROR:  could not extend file \"base/5/1\": "
            "wrote only 4096 of 8192 bytes at block 7\nHINT:  Check free disk space.\nCONTEXT:  COPY t, line 1\n",
        ),
        ("custom", 1, "pg_restore: error: could not execute query: ERROR:  could not write to file \"x\": Disk quota exceeded\n"),
    ],
)
@pytest.mark.parametrize("mounted", [True, False])
def test_a_full_disk_is_not_the_dumps_fault(dump, tmp_path, kind, exit_code, said, mounted):
    server = Server("music_server", SIDE, helper=lambda call: FakeCommand(exit_code=exit_code, stderr=said))
    server.engine._root = tmp_path / "docker"
    if mounted:
        data = dict(source="/srv/pg", destination="/var/lib/postgresql/data")
        server.engine.container("echo-postgres")["mounts"] = [dict(source="/x", destination="/backups"), data]
    with pytest.raises(SpaceError) as caught:
        server.side.load(dump(), kind)
    assert "Make room on the disk of %s." % ("/srv/pg" if mounted else tmp_path / "docker") in caught.value.remedy
    assert "another dump" not in str(caught.value)


@pytest.mark.parametrize(
    "exit_code, said",
    [
        (137, "Killed\n"),
        (2, "psql:<stdin>:7: FATAL:  terminating connection due to administrator command\n"),
        (1, "pg_restore: error: COPY failed for table \"t\": server closed the connection unexpectedly\n\tThis probably means\n"),
        (1, "pg_restore: error: connection to server at \"x\" failed: FATAL:  the database system is in recovery mode\n"),
        (1, "pg_restore: error: a worker process died unexpectedly\n"),
        (3, "psql:<stdin>:7: ERROR:  out of memory\nDETAIL:  Failed on request of size 8.\n"),
        (3, "psql:<stdin>:7: ERROR:  could not resize shared memory segment \"/x\" to 8 bytes: No space left on device\n"),
    ],
)
def test_a_load_that_breaks_off_is_not_the_dumps_fault(dump, monkeypatch, exit_code, said):
    monkeypatch.setattr(postgres, "GRACE", 0)
    server = Server("music_server", SIDE, helper=lambda call: FakeCommand(exit_code=exit_code, stderr=said))
    with pytest.raises(ServerError) as caught:
        server.side.load(dump(), "custom")
    assert "another dump" not in str(caught.value)


def test_what_a_dump_holds_is_not_taken_for_what_the_server_says(dump):
    said = (
        "pg_restore: error: COPY failed for table \"t\": ERROR:  invalid input syntax for type integer: \"x\"\n"
        "CONTEXT:  COPY t, line 1, column a: \"server closed the connection: No space left on device\"\n"
    )
    server = Server("music_server", SIDE, helper=lambda call: FakeCommand(exit_code=1, stderr=said))
    with pytest.raises(DatabaseError, match="Restore from another dump") as caught:
        server.side.load(dump(), "custom")
    assert not isinstance(caught.value, ServerError)


@pytest.mark.parametrize(
    "version, restricted",
    [(120022, False), (130021, False), (130022, True), (150013, False), (150014, True), (170006, True), (180000, True)],
)
def test_psql_is_restricted_where_it_can_be(dump, version, restricted):
    commands = []

    def helper(call):
        if not call.stdin:
            return FakeCommand(exit_code=2, stderr="fe_sendauth: no password supplied")
        commands.append(FakeCommand())
        return commands[-1]

    server = Server("music_server", SIDE, version=version, helper=helper)
    server.side.load(dump(), "sql")
    assert re.match(rb"\\restrict [0-9a-f]{64} \\\\ SELECT 1;\n\n\Z", commands[0].written) if restricted else (
        commands[0].written == b"SELECT 1;\n\n"
    )
    assert len(server.helpers) == (1 if restricted else 2)
    assert {call.user for call in server.helpers} == {"65534:65534"}
    assert not [call for call in server.helpers if call.binds]


def test_plain_sql_is_refused_where_anybody_may_be_superuser(dump):
    server = Server("music_server", SIDE, version=150004)
    with pytest.raises(DatabaseError, match="without a password"):
        server.side.load(dump(), "sql")
    assert not [call for call in server.helpers if call.stdin]


@pytest.mark.parametrize(
    "networks, expected",
    [
        (["echo_default"], ("echo_default", "echo-postgres")),
        (["bridge"], ("bridge", "172.17.0.2")),
        (["host"], ("container:echo-postgres-id", "127.0.0.1")),
        ([], ("container:echo-postgres-id", "127.0.0.1")),
    ],
)
def test_helper_has_an_address_of_its_own(dump, networks, expected):
    server = Server("music_server", SIDE, networks=networks)
    server.side.load(dump(), "sql")
    (call,) = server.helpers
    assert (call.network_mode, call.env["PGHOST"]) == expected


def test_dump_that_is_cut_short_leaves_the_load_unfinished(dump):
    commands = []

    def helper(unused):
        commands.append(FakeCommand())
        return commands[-1]

    server = Server("music_server", SIDE, helper=helper)
    closed = []

    def note(command):
        closed.append(command)

    FakeCommand.close_stdin, original = note, FakeCommand.close_stdin
    try:
        with pytest.raises(DatabaseError, match="cut short"):
            server.side.load(dump(b"--\n-- PostgreSQL database dump\n--\nSELECT 1;\n"), "sql")
    finally:
        FakeCommand.close_stdin = original
    assert not [command for command in closed if command in commands]


def test_dump_that_cannot_be_read(tmp_path):
    server = Server("music_server", SIDE)
    with pytest.raises(SetError, match="dump.sql"):
        server.side.load(str(tmp_path / "dump.sql"), "sql")


def test_single_tables_come_out_of_custom_dumps_only(dump):
    server = Server("music_server", SIDE)
    server.side.load(dump(), "custom", tables=["public.users"])
    first, second = server.helpers
    assert "--section=pre-data" in first.argv
    assert {"--section=data", "--schema=public", "--table=users"} <= set(second.argv)
    with pytest.raises(DatabaseError, match="has no table public.nope"):
        server.side.load(dump(), "custom", tables=["public.nope"])
    with pytest.raises(DatabaseError, match="can't be taken out"):
        server.side.load(dump(), "sql", tables=["public.users"])


def test_privileges_are_told_where_the_dump_can_be_read_twice(dump):
    def helper(unused):
        return FakeCommand(b"GRANT SELECT ON TA", b"BLE t TO x;\n")

    path = dump()
    assert Server("music_server", SIDE, helper=helper).side.load(path, "custom") == "GRANT SELECT ON TABLE t TO x;\n"
    assert Server("music_server", SIDE, helper=helper, local=False).side.load(path, "custom") == ""
    assert Server("music_server", SIDE, helper=helper).side.load(dump(), "sql") == ""


def test_privileges_without_end(dump):
    block = b"GRANT SELECT ON TABLE t TO x;\n" * 65536
    server = Server("music_server", SIDE, helper=lambda call: FakeCommand(*[block] * 100))
    with pytest.raises(DatabaseError, match="more privileges"):
        server.side.load(dump(), "custom")


def test_privileges_are_granted_by_the_loader(dump):
    commands = []

    def helper(call):
        commands.append(FakeCommand(b"psql:<stdin>:2: ERROR:  role \"x\" does not exist\nLINE 1: GRANT\n"))
        return commands[-1]

    server = Server("music_server", SIDE, version=150004, helper=helper)
    assert server.side.grant(dump(), ["GRANT 1;", "GRANT 2;"]) == ['role "x" does not exist']
    (call,) = server.helpers
    assert commands[0].written == b"GRANT 1;\nGRANT 2;\n"
    assert (call.env["PGUSER"], call.env["PGDATABASE"], call.user, call.binds) == (LOADER, SIDE, "65534:65534", {})
    assert PASSWORD not in call.env.values()
    assert "LOGIN CONNECTION LIMIT 1" in server.logged_in[0] and "NOLOGIN" in server.told[-1]


def test_privileges_by_default_come_with_the_owner():
    server = Server("music_server", SIDE)
    server.side.finish("echo", "ALTER DEFAULT PRIVILEGES 1;")
    (told,) = server.told
    assert told.index("DROP OWNED BY") < told.index("ALTER DEFAULT PRIVILEGES 1;") < told.index("COMMIT;")


def swapping(*databases):
    server = Server(*databases)
    server.side.swap()
    return server


def renames(server):
    text = "\n".join(server.told)
    return re.findall(r'ALTER DATABASE "(\w+)" RENAME TO "(\w+)"', text)


def test_swap_is_one_transaction_while_sessions_end():
    server = swapping("music_server", SIDE)
    (text,) = server.told
    assert text.startswith("BEGIN;\n") and text.endswith("COMMIT;\n")
    assert renames(server) == [("music_server", PREVIOUS), (SIDE, "music_server")]
    assert text.index("RENAME") < text.index("pg_db_role_setting") < text.index("ALLOW_CONNECTIONS false")


def test_swap_where_there_is_no_live_database():
    server = swapping(SIDE)
    assert renames(server) == [(SIDE, "music_server")]
    # Going back must know, so what was there is noted first.
    assert server.told[0].startswith('CREATE DATABASE "%s" TEMPLATE template0 ALLOW_CONNECTIONS false' % NOTHING)
    assert renames(swapping(SIDE, NOTHING)) == [(SIDE, "music_server")]
    assert swapping("music_server", NOTHING).told == []


def test_swap_back_to_no_live_database():
    server = Server("music_server", NOTHING)
    server.side.swap_back()
    assert renames(server) == [("music_server", SIDE)]
    assert server.told[-1] == 'DROP DATABASE IF EXISTS "%s" WITH (FORCE);\n' % NOTHING
    # It broke off before the last step, or the swap did before its rename.
    server = Server(SIDE, NOTHING)
    server.side.swap_back()
    assert renames(server) == []
    assert "DROP DATABASE" in server.told[0]


def test_swap_that_is_done_does_nothing():
    assert swapping("music_server", PREVIOUS).told == []


def test_swap_with_nothing_staged():
    with pytest.raises(DatabaseError, match="There is no database " + SIDE):
        swapping("music_server")


def test_swap_back_is_the_same_the_other_way_round():
    server = Server("music_server", PREVIOUS)
    server.side.swap_back()
    assert renames(server) == [("music_server", SIDE), (PREVIOUS, "music_server")]
    assert 'ALTER DATABASE "music_server" ALLOW_CONNECTIONS true;' in server.told[0]


def test_swap_back_that_is_done_does_nothing():
    server = Server("music_server", SIDE)
    server.side.swap_back()
    assert server.told == []
