# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore learns of a live database that is whole, damaged, gone, or asleep."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeCommand, FakeEngine, container

from ansible_collections.echo_music.ops.plugins.module_utils import live_database
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.live_database import (
    ServerBroken,
    await_server,
    look_at_database,
)
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import LIST_DATABASES

ENV = dict(POSTGRES_USER="music_admin", POSTGRES_DB="music_server")
RECORDED = dict(name="recorded", owner="music_admin", encoding="UTF8", collate="C", ctype="C")
RECORDED["extensions"] = [dict(name="pg_trgm", version="1.6")]
ERROR = dict(container="echo-postgres", error="It can't be asked.")


def description(**more):
    return dict(
        dict(user="music_admin", name="music_server", owner="somebody", server_version="15.8", server_version_num=150008),
        encoding="LATIN1",
        collate="en",
        ctype="en",
        bytes=4711,
        extensions=[],
        **more
    )


def server(lets_in, databases=("music_server",), roles=("music_admin",), state="running"):
    """A server that lets psql into the databases of these names alone."""

    def psql(call):
        if call.env["PGDATABASE"] not in lets_in:
            return FakeCommand(exit_code=2, stderr="FATAL: invalid page in block 0")
        answers = {LIST_DATABASES: "\n".join(databases), live_database.ROLES: json.dumps(roles)}
        text = answers.get(call.argv[-1]) or json.dumps(description())
        return FakeCommand(text.encode() + b"\n")

    return FakeEngine(container("echo-postgres", env=ENV, state=state), answers=dict(psql=psql))


def test_a_database_that_is_whole_is_as_it_was_described():
    described = dict(description(), container="echo-postgres", tables={"public.users": 5})
    found = look_at_database(FakeEngine(), described, RECORDED)
    assert (found["state"], found["problem"], found["collate"]) == ("whole", None, "en")
    assert found["tables"] == {"public.users": 5}


def test_rows_that_cannot_be_read():
    found = look_at_database(server(["music_server"]), ERROR, RECORDED)
    assert (found["state"], found["problem"], found["tables"]) == ("damaged", "It can't be asked.", None)
    # The catalog can, and the live database knows best what it is like.
    assert (found["owner"], found["encoding"], found["bytes"]) == ("somebody", "LATIN1", 4711)


@pytest.mark.parametrize("databases, state", [(["postgres"], "missing"), (["postgres", "music_server"], "damaged")])
def test_a_database_that_nobody_can_enter(databases, state):
    found = look_at_database(server(["template1"], databases), ERROR, RECORDED)
    assert (found["state"], found["name"]) == (state, "music_server")
    assert (found["encoding"], found["collate"], found["extensions"]) == ("UTF8", "C", RECORDED["extensions"])
    assert found["server_version_num"] == 150008


@pytest.mark.parametrize("roles, owner", [(["music_admin", "other"], "other"), (["music_admin"], "music_admin")])
def test_the_recorded_owner_if_there_is_one(roles, owner):
    found = look_at_database(server(["template1"], ["postgres"], roles), ERROR, dict(RECORDED, owner="other"))
    assert found["owner"] == owner


def test_without_a_manifest_the_servers_template_tells():
    found = look_at_database(server(["template1"], ["postgres"]), ERROR)
    assert (found["encoding"], found["owner"]) == ("LATIN1", "music_admin")


def test_a_server_that_lets_nobody_in_is_left_alone():
    with pytest.raises(DatabaseError, match="invalid page"):
        look_at_database(server([]), ERROR, RECORDED)


@pytest.mark.parametrize(
    "state, broken, expected, problem",
    [
        ("exited", None, "stopped", "It can't be asked."),
        ("restarting", None, "broken", "It can't be asked."),
        ("exited", "It ends.", "broken", "It ends."),
    ],
)
def test_a_server_that_does_not_run(state, broken, expected, problem):
    found = look_at_database(server([], state=state), ERROR, RECORDED, broken)
    assert (found["state"], found["problem"]) == (expected, problem)
    assert (found["name"], found["encoding"], found["server_version_num"]) == ("music_server", "UTF8", None)


class Starting:
    """A container of which each look shows the next state, the last one for ever."""

    def __init__(self, *looks, ready_at=10**9, socket=False):
        self._looks = list(looks)
        self.asked = 0
        self._ready_at = ready_at
        self._socket = socket

    def container(self, unused_name):
        state, started = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        return dict(state=state, started_at=started)

    def run_in(self, unused_container, argv):
        if argv == ["pg_isready", "--quiet"]:
            return FakeCommand(exit_code=0 if self._socket else 2)
        # The server of the first start has no network.
        assert argv == ["pg_isready", "--quiet", "--host=127.0.0.1"]
        self.asked += 1
        return FakeCommand(exit_code=0 if self.asked >= self._ready_at else 2)


@pytest.fixture(autouse=True)
def no_time(monkeypatch):
    monkeypatch.setattr(live_database, "SERVER_POLL", 0.001)


def test_a_server_is_waited_for():
    # The first start's own server answers at its socket, for a while.
    engine = Starting(("running", 1), ready_at=3, socket=True)
    await_server(engine, "echo-postgres")
    assert engine.asked == 3


def test_a_server_that_listens_at_its_socket_alone():
    engine = Starting(("running", 1), socket=True)
    await_server(engine, "echo-postgres")
    assert engine.asked == live_database.SOCKET_POLLS + 1


@pytest.mark.parametrize(
    "looks",
    [
        [("running", 1), ("exited", 1)],
        [("running", n // 2) if n % 2 else ("restarting", n // 2) for n in range(20)],
        [("restarting", 1)],
    ],
)
def test_a_server_that_ends_whenever_it_is_started(looks):
    with pytest.raises(ServerBroken, match="stopped when it was started"):
        await_server(Starting(*looks), "echo-postgres")


def test_a_server_that_takes_too_long_is_not_broken():
    with pytest.raises(StackError, match="didn't take connections") as caught:
        await_server(Starting(("running", 1)), "echo-postgres", timeout=0.01)
    assert not isinstance(caught.value, ServerBroken)
