# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Of a file of globals, roles come back that are missing, and nothing that has power over a server."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from fake_engine import FakeCommand, FakeEngine, container
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
from ansible_collections.echo_music.ops.plugins.module_utils.server_roles import Globals, ServerRoles, plan_roles

SCRAM = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$c3RvcmVka2V5:c2VydmVya2V5"
MD5 = "md5" + "0f" * 16
NONE = "NOCREATEROLE NOCREATEDB"
# As pg_dumpall of PostgreSQL 15 and 17 writes it.
TEXT = '''--
-- PostgreSQL database cluster dump
--

\\restrict pTfZq0

SET default_transaction_read_only = off;

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

--
-- Roles
--

CREATE ROLE echo;
ALTER ROLE echo WITH SUPERUSER INHERIT CREATEROLE CREATEDB LOGIN REPLICATION BYPASSRLS PASSWORD '%(scram)s';
CREATE ROLE readers;
ALTER ROLE readers WITH NOSUPERUSER INHERIT %(none)s NOLOGIN NOREPLICATION NOBYPASSRLS;
CREATE ROLE reporter;
ALTER ROLE reporter WITH NOSUPERUSER NOINHERIT %(none)s LOGIN NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 3 \
PASSWORD '%(scram)s' VALID UNTIL '2027-01-01 00:00:00+00';
COMMENT ON ROLE reporter IS 'of the statistics';
CREATE ROLE "Ña ""x""";
ALTER ROLE "Ña ""x""" WITH NOSUPERUSER INHERIT %(none)s LOGIN NOREPLICATION NOBYPASSRLS PASSWORD '%(md5)s';

--
-- User Configurations
--

--
-- User Config "reporter"
--

ALTER ROLE reporter SET work_mem TO '5MB';


--
-- Role memberships
--

GRANT readers TO reporter WITH ADMIN OPTION, INHERIT FALSE GRANTED BY echo;
GRANT readers TO "Ña ""x""" GRANTED BY echo;
GRANT echo TO reporter GRANTED BY echo;
GRANT pg_monitor TO reporter GRANTED BY echo;
GRANT pg_execute_server_program TO reporter GRANTED BY echo;


--
-- Tablespaces
--

CREATE TABLESPACE fast OWNER echo LOCATION '/fast';

\\unrestrict pTfZq0

--
-- PostgreSQL database cluster dump complete
--
''' % dict(scram=SCRAM, md5=MD5, none=NONE)
MISSING = ["readers", "reporter", 'Ña "x"']


def test_missing_roles_are_made_anew():
    found = Globals(TEXT)
    assert found.missing(["music_admin"], []) == MISSING
    assert found.missing(["music_admin", "reporter"], ["readers"]) == ['Ña "x"']
    without = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
    assert found.statements(MISSING, "made") == [
        'CREATE ROLE "readers" %s NOLOGIN INHERIT;' % without,
        "COMMENT ON ROLE \"readers\" IS 'made';",
        "CREATE ROLE \"reporter\" %s LOGIN NOINHERIT CONNECTION LIMIT 3 VALID UNTIL '2027-01-01 00:00:00+00';" % without,
        "COMMENT ON ROLE \"reporter\" IS 'made';",
        "ALTER ROLE \"reporter\" PASSWORD '%s';" % SCRAM,
        'CREATE ROLE "Ña ""x""" %s LOGIN INHERIT;' % without,
        "COMMENT ON ROLE \"Ña \"\"x\"\"\" IS 'made';",
        "ALTER ROLE \"Ña \"\"x\"\"\" PASSWORD '%s';" % MD5,
        'GRANT "readers" TO "reporter" WITH ADMIN OPTION, INHERIT FALSE;',
        'GRANT "readers" TO "Ña ""x""";',
        'GRANT "pg_monitor" TO "reporter";',
    ]


def test_what_is_left_out_is_told():
    assert Globals(TEXT).remarks(MISSING, ["music_admin"], ["echo"]) == [
        "the role reporter is created without its settings",
        "no role becomes a member of echo, pg_execute_server_program",
        "left out: CREATE TABLESPACE",
    ]
    assert Globals(TEXT).remarks([], ["music_admin"], [])[0] == "superusers are not created: echo"


def role(attributes="NOSUPERUSER LOGIN", name="eve"):
    return "CREATE ROLE %s;\nALTER ROLE %s WITH %s;\n" % (name, name, attributes)


@pytest.mark.parametrize("power", ["CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS"])
def test_power_is_left_out(power):
    found = Globals(role("NOSUPERUSER LOGIN %s PASSWORD '%s'" % (power, MD5)))
    (created, *unused) = found.statements(["eve"], "made")
    assert "NO" + power in created and not re.search(r"\b%s\b" % power, created)
    assert found.remarks(["eve"], [], []) == ["the role eve is created without " + power]


@pytest.mark.parametrize("password", ["hunter2", "SCRAM-SHA-256$1", "md5xyz", ""])
def test_a_password_that_is_none_of_a_servers(password):
    found = Globals(role("LOGIN PASSWORD '%s'" % password))
    assert not any("PASSWORD" in statement for statement in found.statements(["eve"], "made"))
    assert found.remarks(["eve"], [], []) == ["the role eve is created without its password"]


@pytest.mark.parametrize(
    "text",
    [
        role("SUPERUSER LOGIN"),
        role(name="pg_database_owner"),
        role(name="echo_restore_loader"),
        role(name="public"),
        role(name='"none"'),
        role(name='"%s"' % ("x" * 64)),
        role(name='"a\\b"'),
        "create role eve;\n",
        "CREATE ROLE eve SUPERUSER;\n",
        "CREATE ROLE eve; ALTER ROLE music_admin PASSWORD 'md5';\n",
        "CREATE USER eve;\n",
        "COMMENT ON ROLE echo IS 'two\nCREATE ROLE eve;\nlines';\n",
        "ALTER ROLE echo SET my.own TO 'two;\nCREATE ROLE eve;\n';\n",
        "/*\nCREATE ROLE eve;\n*/\n",
        "DO $x$\nCREATE ROLE eve;\n$x$;\n",
        "SELECT 1\u2028CREATE ROLE eve;\n",
    ],
)
def test_what_is_no_role_to_create(text):
    assert Globals(text).missing([], []) == []


@pytest.mark.parametrize(
    "text",
    [
        "ALTER ROLE eve WITH LOGIN; DROP ROLE x;",
        "ALTER ROLE eve WITH LOGIN PASSWORD 'a' || 'b';",
        "ALTER ROLE eve SET session_preload_libraries TO 'evil';",
        "ALTER ROLE ALL SET session_preload_libraries TO 'evil';",
        "GRANT music_admin TO eve;",
        "GRANT eve TO music_admin;",
        "GRANT pg_write_server_files, eve TO eve;",
        "GRANT SET ON PARAMETER session_preload_libraries TO eve;",
        "COPY x FROM PROGRAM 'evil';",
        "\\! evil",
        "SECURITY LABEL ON ROLE eve IS 'x';",
    ],
)
def test_what_is_not_done_to_a_role(text):
    found = Globals(role() + text + "\n" + role(name="bob"))
    assert found.missing(["music_admin"], []) in (["eve", "bob"], ["eve"])
    made = "\n".join(found.statements(["eve"], "made"))
    assert not re.search("evil|music_admin|GRANT|preload|SET|DROP|PASSWORD|LABEL", made)


def test_secrets_are_in_no_remark():
    text = role("LOGIN PASSWORD 'hunter2'") + "ALTER USER eve PASSWORD 'hunter2';\nALTER ROLE eve PASSWORD 'hunter2' hunter2;\n"
    assert "hunter2" not in str(Globals(text).remarks(["eve"], [], []))


ATOMS = st.sampled_from(
    ["CREATE ROLE ", "ALTER ROLE ", "eve", '"', "'", ";", "\n", " WITH ", "SUPERUSER", "LOGIN", "GRANT ", " TO ", "PASSWORD ", "\\", "$$", "--", "/*"]
)
STATEMENT = re.compile(
    r'(?:CREATE ROLE "(?:[^"]|"")+" NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS (?:NO)?LOGIN (?:NO)?INHERIT'
    r"(?: CONNECTION LIMIT -?\d+)?(?: VALID UNTIL '[^']+')?"
    r'|COMMENT ON ROLE "(?:[^"]|"")+" IS \'made\'|ALTER ROLE "(?:[^"]|"")+" PASSWORD \'[^\']+\''
    r'|GRANT "(?:[^"]|"")+" TO "(?:[^"]|"")+"(?: WITH [A-Z ,]+)?);'
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ATOMS | st.text(max_size=3), max_size=40).map("".join))
def test_whatever_stands_there_the_same_few_statements_come_out(text):
    found = Globals(role() + text)
    names = found.missing(["music_admin"], [])
    for statement in found.statements(names, "made"):
        assert STATEMENT.fullmatch(statement)
    found.remarks(names, [], [])


class Server:
    """A fake PostgreSQL that knows roles, and remembers what it was told."""

    def __init__(self, *roles):
        self.roles = roles
        self.told = []
        env = dict(POSTGRES_USER="music_admin", POSTGRES_PASSWORD="secret")
        self.engine = FakeEngine(container("echo-postgres", env=env), answers=dict(psql=self.psql))
        self.database = Database(self.engine, "echo-postgres")

    def psql(self, call):
        if call.stdin:
            return FakeCommand(reply=lambda data: self.told.append(data.decode()) or [])
        return FakeCommand(json.dumps(self.roles).encode() + b"\n")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "postgres_globals.sql"
    path.write_text(TEXT, encoding="utf-8")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(globals=dict(file=str(path), sha256=sha256), database=dict(owner="echo"))


def look(state="whole"):
    return dict(container="echo-postgres", state=state)


def test_a_plan_names_them_and_holds_no_secret(source):
    planned = plan_roles(Server("music_admin", "readers").engine, look(), source)
    assert planned["create"] == ["reporter", 'Ña "x"']
    assert SCRAM not in json.dumps(planned) and "superusers" not in json.dumps(planned)
    assert plan_roles(Server().engine, look("broken"), source)["create"] == MISSING
    assert plan_roles(Server().engine, look("stopped"), source)["create"] is None
    assert plan_roles(Server().engine, look(), dict(source, globals=None)) is None


@pytest.mark.parametrize("content", [b"CREATE ROLE eve;\n", b"\xff", b" " * (5 << 20)])
def test_a_file_that_is_not_the_manifests(source, content):
    path = source["globals"]["file"]
    if content != b"CREATE ROLE eve;\n":
        source["globals"]["sha256"] = hashlib.sha256(content).hexdigest()
    with open(path, "wb") as file:
        file.write(content)
    planned = plan_roles(Server("music_admin").engine, look(), source)
    assert planned["create"] == []
    assert "no role is created" in planned["remarks"][0] and path in planned["remarks"][0]


def test_roles_are_created_at_once_and_no_log_tells_of_it(source):
    server = Server("music_admin", "readers")
    planned = dict(source["globals"], create=["readers", "reporter"])
    ServerRoles(server.database, "0a1b2c3d").create(planned)
    (told,) = server.told
    assert told.startswith("BEGIN;\nSET LOCAL log_statement = 'none';\n") and told.endswith("COMMIT;\n")
    assert told.index("log_min_error_statement") < told.index(SCRAM)
    # It came meanwhile, and is somebody else's.
    assert 'ROLE "readers"' not in told
    assert "IS 'Created by a restore of echo_music.ops, 0a1b2c3d'" in told
    assert not [call for call in server.engine.calls if SCRAM in str(call)]


def test_roles_are_dropped_by_their_mark():
    server = Server()
    ServerRoles(server.database, "0a1b2c3d").drop(dict(create=["reporter", 'Ña "x"']))
    (told,) = server.told
    assert "r.rolname IN ('reporter', 'Ña \"x\"')" in told
    assert "= 'Created by a restore of echo_music.ops, 0a1b2c3d'" in told
    assert "pg_shdepend" in told and "pg_auth_members" in told


@pytest.mark.parametrize("facts", [None, dict(create=[])])
def test_without_roles_nobody_is_asked(facts):
    ServerRoles(None, "0a1b2c3d").create(facts)
    ServerRoles(None, "0a1b2c3d").drop(facts)
