# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The database: how it is reached, what it says, and why not."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeCommand, FakeEngine, container

from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, EngineError
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import LIST_DATABASES, Database

PASSWORD = "it's \"$HOME` \\ ñ%"
ENV = dict(POSTGRES_USER="music_admin", POSTGRES_PASSWORD=PASSWORD, POSTGRES_DB="music_server")
NO_CONNECTION = 'psql: error: connection to server on socket "/run/.s.PGSQL.5432" failed: FATAL: no'


def engine_with(psql, env=None, **facts):
    return FakeEngine(
        container("echo-postgres", env=ENV if env is None else env, **facts),
        answers={"psql": psql, "cat": lambda call: FakeCommand(("secret of " + call.argv[1] + "\n").encode())},
    )


def answer(*lines):
    return FakeCommand("".join(json.dumps(line) + "\n" for line in lines).encode())


def test_describes_with_row_counts():
    engine = engine_with(lambda call: answer({"name": "music_server", "bytes": 7}, {"public.users": 3}))
    described = Database(engine, "echo-postgres").describe()
    assert described == {
        "name": "music_server",
        "bytes": 7,
        "container": "echo-postgres",
        "tables": {"public.users": 3},
    }
    assert len(engine.calls) == 1


def test_leaves_the_counts_out():
    engine = engine_with(lambda call: answer({"name": "music_server"}))
    assert "tables" not in Database(engine, "echo-postgres").describe(tables=False)


def test_constructor_does_no_work():
    Database(None, "echo-postgres")


def test_password_is_never_an_argument():
    engine = engine_with(lambda call: answer({}, {}))
    Database(engine, "echo-postgres").describe()
    (call,) = engine.calls
    assert call.env["PGPASSWORD"] == PASSWORD
    assert not [word for word in call.argv if PASSWORD in word]


@pytest.mark.parametrize(
    "env, user, name",
    [
        ({}, "postgres", "postgres"),
        ({"POSTGRES_USER": "echo"}, "echo", "echo"),
        (ENV, "music_admin", "music_server"),
        ({"POSTGRES_USER_FILE": "/u", "POSTGRES_DB_FILE": "/d"}, "secret of /u", "secret of /d"),
    ],
)
def test_user_and_name_as_the_official_image_reads_them(env, user, name):
    database = Database(engine_with(None, env=env), "echo-postgres")
    assert (database.user, database.name) == (user, name)


def test_password_from_a_file():
    env = {"POSTGRES_PASSWORD_FILE": "/run/secrets/db"}
    assert Database(engine_with(None, env=env), "echo-postgres").environment()["PGPASSWORD"] == "secret of /run/secrets/db"


def test_wrong_name_lists_those_that_exist():
    def psql(call):
        if LIST_DATABASES in call.argv:
            return FakeCommand(b"music_server\npostgres\n")
        return FakeCommand(exit_code=2, stderr=NO_CONNECTION)

    with pytest.raises(DatabaseError) as caught:
        Database(engine_with(psql), "echo-postgres", name="musik").describe()
    assert caught.value.what == "There is no database musik in the container echo-postgres."
    assert caught.value.remedy == "Databases there: music_server, postgres."


def test_refused_connection_names_container_database_and_user():
    engine = engine_with(lambda call: FakeCommand(exit_code=2, stderr=NO_CONNECTION))
    with pytest.raises(DatabaseError) as caught:
        Database(engine, "echo-postgres").describe()
    for part in ("echo-postgres", "music_server", NO_CONNECTION, "music_admin"):
        assert part in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("state, remedy", [("exited", "docker start"), ("paused", "docker unpause")])
def test_container_that_does_not_run(state, remedy):
    with pytest.raises(DatabaseError) as caught:
        Database(engine_with(None, state=state), "echo-postgres").describe()
    assert state in caught.value.what
    assert remedy in caught.value.remedy


def test_container_that_is_not_there():
    with pytest.raises(EngineError, match="echo-redis"):
        Database(engine_with(None), "echo-redis").describe()


@pytest.mark.parametrize(
    "happen, said",
    [
        (lambda engine: engine.remove("echo-postgres"), "was removed"),
        (lambda engine: engine.set_state("echo-postgres", "exited"), "its state is exited"),
        (lambda engine: None, "reset by peer"),
    ],
)
def test_connection_lost_says_what_became_of_the_container(happen, said):
    engine = engine_with(lambda call: FakeCommand(b"{", lost=True, before_end=lambda: happen(engine)))
    with pytest.raises(DatabaseError, match=said):
        Database(engine, "echo-postgres").describe()


def test_session_answers_in_pieces():
    def reply(data):
        statement, unused, marker = data.partition(b"\\echo ")
        return [b"4", b"2\nne", b"xt\n" + marker[:5], marker[5:]]

    with Database(engine_with(lambda call: FakeCommand(reply=reply)), "echo-postgres").session() as session:
        assert session.ask("SELECT 42;") == ["42", "next"]
        assert session.ask("SELECT 42;") == ["42", "next"]


@pytest.mark.parametrize("end", [dict(), dict(cut=True), dict(lost=True), dict(exit_code=3, stderr="ERROR: x")])
def test_session_that_ends_is_an_error(end):
    engine = engine_with(lambda call: FakeCommand(reply=lambda data: [b"half an ans"], **end))
    with Database(engine, "echo-postgres").session() as session:
        with pytest.raises(DatabaseError, match="hold the snapshot"):
            session.ask("SELECT 42;")
