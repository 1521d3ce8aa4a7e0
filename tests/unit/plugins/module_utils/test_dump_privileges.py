# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Of a dump's privileges, those come back whose role is there; nothing else in that SQL is run by anybody."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.module_utils.dump_privileges import Privileges, grant

ROLES = ["music_admin", "readers", 'Ña "x"', "postgres"]
DEFAULTS = "ALTER DEFAULT PRIVILEGES FOR ROLE %s %s;"


def taken(*lines, owner="music_admin", former="echo"):
    return Privileges("\n".join(lines), ROLES, owner, former)


@pytest.mark.parametrize(
    "line",
    [
        "GRANT SELECT ON TABLE public.users TO readers;",
        "GRANT SELECT,INSERT ON TABLE public.users TO readers WITH GRANT OPTION;",
        "GRANT SELECT(id),UPDATE(name,\"Ñ\") ON TABLE public.users TO readers;",
        "REVOKE ALL ON FUNCTION public.f(a integer, b text) FROM PUBLIC;",
        "GRANT USAGE ON SCHEMA public TO PUBLIC;",
        "GRANT ALL ON TABLE public.\"a TO b; c\" TO \"Ña \"\"x\"\"\";",
        "REVOKE GRANT OPTION FOR SELECT ON TABLE public.users FROM readers;",
    ],
)
def test_what_the_loader_is_to_grant(line):
    found = taken("-- Name: TABLE users; Type: ACL", "SET statement_timeout = 0;", "", line)
    assert (found.statements, found.defaults, found.remarks) == ([line], [], [])


@pytest.mark.parametrize(
    "line",
    [
        "GRANT SELECT ON TABLE public.users TO readers; DROP TABLE public.users;",
        "GRANT SELECT ON TABLE public.users TO readers; \\! evil",
        "GRANT SELECT ON TABLE public.\"\\! evil\" TO readers;",
        "GRANT SELECT ON TABLE public.:evil TO readers;",
        "GRANT SELECT ON TABLE `evil` TO readers;",
        "GRANT SELECT ON TABLE 'x' TO readers;",
        "GRANT SELECT ON TABLE public.users TO readers, postgres;",
        "GRANT music_admin TO readers;",
        "GRANT music_admin TO readers WITH ADMIN OPTION;",
        "GRANT SELECT ON TABLE public.users TO readers GRANTED BY music_admin;",
        "GRANT SELECT ON TABLE public.users",
        "REVOKE EVIL ON TABLE public.users FROM readers;",
        "GRANT SELECT ON TABLE public.users TO \"rea\nders\";",
        DEFAULTS % ("postgres", "GRANT SELECT ON TABLES TO readers"),
        DEFAULTS % ("echo", "GRANT SELECT(id) ON TABLES TO readers"),
        DEFAULTS % ("echo", "GRANT SELECT ON TABLES TO readers; DROP TABLE x"),
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO readers;",
    ],
)
def test_what_is_of_another_form(line):
    found = taken(line)
    assert (found.statements, found.defaults) == ([], [])
    assert found.remarks == ["privileges of a form that is not known were left out: 1"]


@pytest.mark.parametrize("line", ["DROP TABLE x;", "\\! evil", "COPY x FROM PROGRAM 'evil';", "SET SESSION AUTHORIZATION postgres;"])
def test_what_is_not_about_privileges(line):
    assert (taken(line).statements, taken(line).defaults, taken(line).remarks) == ([], [], [])


def test_privileges_by_default_are_written_anew():
    lines = [
        DEFAULTS % ("echo", "IN SCHEMA \"my s\" GRANT SELECT,INSERT ON TABLES TO readers WITH GRANT OPTION"),
        DEFAULTS % ("music_admin", "REVOKE ALL ON FUNCTIONS FROM PUBLIC"),
    ]
    assert taken(*lines).defaults == [
        DEFAULTS % ('"music_admin"', 'IN SCHEMA "my s" GRANT SELECT,INSERT ON TABLES TO "readers" WITH GRANT OPTION'),
        DEFAULTS % ('"music_admin"', "REVOKE ALL ON FUNCTIONS FROM PUBLIC"),
    ]
    # Whose a dump is that has no manifest is not known.
    assert len(taken(*lines, former=None).defaults) == 1


def test_roles_that_are_not_there():
    lines = ["GRANT SELECT ON TABLE t TO %s;" % name for name in ("eve", "bob", "eve", "echo")]
    found = taken(*lines, DEFAULTS % ("echo", "GRANT SELECT ON TABLES TO ana"))
    assert (found.statements, found.defaults) == ([], [])
    # The former owner's are the owner's anyway.
    assert found.remarks == ["privileges of roles that are not on this server were left out: ana, bob, eve"]


def test_long_lines_take_no_long_time():
    began = time.monotonic()
    lines = ["GRANT SELECT ON TABLE " + "x ON y TO " * 800 + "!"] * 100 + ["GRANT " + "SELECT," * 1000] * 100 + ["GRANT " * (1 << 19)]
    found = taken(*lines)
    assert found.remarks == ["privileges of a form that is not known were left out: 201"]
    assert time.monotonic() - began < 60


WORDS = ["GRANT ", "REVOKE ", "ALTER DEFAULT PRIVILEGES FOR ROLE echo ", "SELECT", " ON ", "TABLE x", "TABLES", " TO ", "readers", '"', "'"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS + [";", "\n", "\\", "PUBLIC", ",", "("]) | st.text(max_size=2), max_size=30).map("".join))
def test_whatever_stands_there_a_statement_is_one_line(text):
    found = taken(text)
    for statement in found.statements + found.defaults:
        assert statement.endswith(";")
        assert not set(statement.replace('"', "")) & set("\n\\'`:")


class Side:
    """A side database."""

    def __init__(self, refused=()):
        self.refused = list(refused)
        self.granted = None

    def query(self, *statements):
        return [json.dumps(ROLES)]

    def grant(self, path, statements):
        self.granted = statements
        return self.refused


def test_a_dump_without_privileges():
    side = Side()
    assert grant(side, "/sets/1/postgres_dump.backup", "", "music_admin") == ([], [])
    assert side.granted is None


def test_a_refused_privilege_is_told():
    side = Side(['no "t"'])
    text = "GRANT SELECT ON TABLE t TO readers;\n" + DEFAULTS % ("echo", "GRANT SELECT ON TABLES TO readers")
    defaults, remarks = grant(side, "/sets/1/postgres_dump.backup", text, "music_admin", "echo")
    assert (side.granted, len(defaults)) == (["GRANT SELECT ON TABLE t TO readers;"], 1)
    assert remarks == ["privileges that PostgreSQL didn't grant again: 1, the first for no \"t\""]
