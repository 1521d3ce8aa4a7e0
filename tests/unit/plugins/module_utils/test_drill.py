# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A drill's throwaway servers: how they are started, and that nothing of them stays."""

from __future__ import annotations

import io
import tarfile

import pytest
from fake_engine import FakeCommand, FakeEngine, image

from ansible_collections.echo_music.ops.plugins.module_utils import drill as drill_module
from ansible_collections.echo_music.ops.plugins.module_utils import postgres, side_database
from ansible_collections.echo_music.ops.plugins.module_utils.drill import AppError, Drill
from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    ArchiveError,
    DatabaseError,
    EngineError,
    SpaceError,
    StackError,
)
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import END_OF_ANSWER
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import ServerError, SideDatabase

APP = image("echo:1")
REDIS = image("redis:7-alpine")
GLOBALS = b'''\
CREATE ROLE music_admin;
ALTER ROLE music_admin WITH SUPERUSER;
CREATE ROLE "Read ""Only""";
CREATE ROLE x; DROP DATABASE echo;
'''


class Side:
    """The side database, which remembers what was done with it."""

    done = []
    errors = []

    def __init__(self, database, operation):
        self.database = database

    def create(self, like):
        self.done.append(("create", like))

    def load(self, file, kind):
        self.done.append(("load", file, kind))
        for error in self.errors:
            raise error

    def size(self):
        return 0

    def finish(self, owner):
        self.done.append(("finish", owner))

    def swap(self):
        self.done.append(("swap",))


@pytest.fixture(autouse=True)
def side(monkeypatch):
    monkeypatch.setattr(Side, "done", [])
    monkeypatch.setattr(Side, "errors", [])
    monkeypatch.setattr(drill_module, "SideDatabase", Side)
    monkeypatch.setattr(drill_module, "POLL", 0)
    return Side


@pytest.fixture
def told():
    return []


@pytest.fixture
def engine(tmp_path, told):
    def psql(call):
        if call.stdin:
            return FakeCommand(reply=lambda data: told.append(data.decode()) or [END_OF_ANSWER])
        if "pg_roles" in call.argv[-1]:
            return FakeCommand(b'["music_admin"]\n')
        return FakeCommand(b'{"name": "music_server", "server_version": "15.18"}\n{"public.users": 5}\n')

    def make(**options):
        return FakeEngine(answers=dict(psql=psql), root=tmp_path, **options)

    return make


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "uploads.tar.gz"
    with tarfile.open(path, "w:gz") as target:
        member = tarfile.TarInfo("./covers/a.jpg")
        member.size = 1
        target.addfile(member, io.BytesIO(b"x"))
    return str(path)


def test_a_dump_is_loaded_as_a_restore_loads_it(engine, side, told, tmp_path):
    fake = engine()
    (tmp_path / "globals.sql").write_bytes(GLOBALS)
    with Drill(fake) as drill:
        drill.start_server("sha256:pg", "music_server", "music_admin")
        found = drill.load("/set/dump", "custom", dict(encoding="UTF8"), str(tmp_path / "globals.sql"))
        assert found["tables"] == {"public.users": 5}
    assert side.done == [
        ("create", dict(encoding="UTF8")),
        ("load", "/set/dump", "custom"),
        ("finish", "music_admin"),
        ("swap",),
    ]
    assert told[-1] == "ANALYZE;\n"
    assert [line for text in told for line in text.splitlines() if line.startswith("CREATE")] == [
        'CREATE ROLE "Read ""Only""" NOLOGIN;'
    ]
    env = fake.started["postgres"]["env"]
    assert (env["POSTGRES_USER"], env["POSTGRES_DB"]) == ("music_admin", "music_server")
    assert len(env["POSTGRES_PASSWORD"]) > 20


def test_the_app_meets_only_what_is_thrown_away(engine, archive):
    fake = engine()
    with Drill(fake) as drill:
        drill.start_server("sha256:pg", "music server", "o'connor")
        folder = drill.unpack("uploads", archive, {}, 1 << 20, False)
        with open(folder + "/covers/a.jpg") as cover:
            assert cover.read() == "x"
        assert drill.start_app(APP, REDIS, "classic", dict(MORE="1"), 10) >= 0
        app, redis, postgres = (fake.started[alias] for alias in ("app", "redis", "postgres"))
        password = postgres["env"]["POSTGRES_PASSWORD"]
        assert app["env"]["DATABASE_URL"] == "postgresql://o%%27connor:%s@postgres:5432/music%%20server?schema=public" % password
        assert app["env"]["REDIS_PASSWORD"] == redis["env"]["REDIS_PASSWORD"] != password
        assert app["env"]["COVERS_PATH"] == "/app/uploads/covers"
        assert app["env"]["MORE"] == "1"
        assert list(app["volumes"].values()) == ["/app/uploads"]
        assert redis["env"]["REDIS_PASSWORD"] not in " ".join(redis["command"])
        assert len(fake.throwaways) == 5
    assert fake.throwaways == []


def test_health_is_the_images_own_or_that_of_the_layout(engine):
    for layout, address in (("classic", "/health"), ("unified", "/api/health")):
        fake = engine()
        with Drill(fake) as drill:
            drill.start_server("sha256:pg", "echo", "echo")
            drill.start_app(APP, REDIS, layout, {}, 10)
        assert fake.started["app"]["healthcheck"][-1].endswith(":4567" + address)
        assert ("COVERS_PATH" in fake.started["app"]["env"]) is (layout == "classic")
    with Drill(fake) as drill:
        drill.start_server("sha256:pg", "echo", "echo")
        drill.start_app(dict(APP, healthcheck=["CMD", "own"]), REDIS, layout, {}, 10)
    assert fake.started["app"]["healthcheck"] == ["CMD", "own"]


@pytest.mark.parametrize(
    "fate, words",
    [(dict(health="starting"), "didn't become healthy within 0 s"), (dict(health="starting", state="exited"), "ended by itself")],
)
def test_an_app_that_does_not_work_is_told_with_its_last_words(engine, fate, words):
    fake = engine(fates=dict(app=fate))
    with pytest.raises(AppError, match=words + ".*it said"):
        with Drill(fake) as drill:
            drill.start_server("sha256:pg", "echo", "echo")
            drill.start_app(APP, REDIS, "unified", {}, 0)
    assert fake.throwaways == []


@pytest.mark.parametrize("alias", ["postgres", "redis"])
def test_a_server_that_does_not_start_is_the_hosts_matter_and_tells_no_password(engine, alias):
    fake = engine(fates={alias: dict(health=None, state="exited")})
    with pytest.raises(StackError, match="throwaway %s ended by itself" % alias) as caught:
        with Drill(fake) as drill:
            drill.start_server("sha256:pg", "echo", "echo")
            drill.start_app(APP, REDIS, "unified", {}, 10)
    assert fake.started["postgres"]["env"]["POSTGRES_PASSWORD"] not in str(caught.value)
    assert fake.throwaways == []


def test_a_dump_that_is_refused_is_the_sets_matter(engine, side):
    side.errors = [DatabaseError("The dump can't be loaded.")]
    fake = engine()
    with pytest.raises(DatabaseError):
        with Drill(fake) as drill:
            drill.start_server("sha256:pg", "echo", "echo")
            drill.load("/set/dump", "custom", {})
    assert fake.throwaways == []


def test_a_server_that_dies_under_the_dump_is_the_hosts_matter(engine, side):
    side.errors = [DatabaseError("It was lost.")]
    fake = engine()
    with pytest.raises(StackError, match="failed under the dump: It was lost"):
        with Drill(fake) as drill:
            drill.start_server("sha256:pg", "echo", "echo")
            fake.set_state(fake.throwaways[-1], "exited")
            drill.load("/set/dump", "custom", {})


@pytest.mark.parametrize(
    "error, kind", [(ServerError("It was lost."), StackError), (SpaceError("It is full."), SpaceError)], ids=["lost", "full"]
)
def test_a_server_that_fails_and_lives_on_is_the_hosts_matter(engine, side, error, kind):
    side.errors = [error]
    with pytest.raises(kind, match=error.what):
        with Drill(engine()) as drill:
            drill.start_server("sha256:pg", "echo", "echo")
            drill.load("/set/dump", "custom", {})


@pytest.mark.parametrize(
    "fault",
    [
        dict(exit_code=137, stderr="Killed\n"),
        dict(exit_code=1, stderr="pg_restore: error: COPY failed for table \"t\": server closed the connection unexpectedly\n"),
        dict(exit_code=1, stderr="pg_restore: error: could not execute query: ERROR:  out of memory\nDETAIL:  Failed.\n"),
        dict(lost=True),
    ],
    ids=["killed", "lost", "memory", "engine"],
)
def test_a_load_that_breaks_off_is_the_hosts_matter(engine, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(drill_module, "SideDatabase", SideDatabase)
    monkeypatch.setattr(side_database, "require_loadable", lambda *unused: None)
    monkeypatch.setattr(postgres, "GRACE", 0)
    dump = tmp_path / "postgres_dump.backup"
    dump.write_bytes(b"PGDMP")

    def psql(call):
        if call.stdin:
            return FakeCommand(reply=lambda data: [])
        return FakeCommand(b'{"version": 150018, "port": "5432"}\n')

    fake = FakeEngine(answers=dict(psql=psql, helper=lambda call: FakeCommand(**fault)), root=tmp_path)
    with pytest.raises(StackError, match="failed under the dump"):
        with Drill(fake) as drill:
            drill.start_server("sha256:pg", "echo", "echo")
            drill.load(str(dump), "custom", drill_module.LIKE)
    assert fake.throwaways == []


def test_a_question_that_breaks_off_is_the_hosts_matter(tmp_path):
    fake = FakeEngine(answers=dict(psql=lambda call: FakeCommand(exit_code=2, stderr="no connection")), root=tmp_path)
    with Drill(fake) as drill:
        drill.start_server("sha256:pg", "echo", "echo")
        with pytest.raises(ServerError, match="no connection"):
            drill.database.query("SELECT 1;")


def test_a_damaged_archive_leaves_nothing(engine, archive):
    with open(archive, "r+b") as damaged:
        damaged.truncate(50)
    fake = engine()
    with pytest.raises(ArchiveError):
        with Drill(fake) as drill:
            drill.unpack("uploads", archive, {}, 1 << 20, False)
    assert fake.throwaways == []


def test_what_went_wrong_is_not_hidden_by_what_can_not_be_removed(engine):
    class Stuck(FakeEngine):
        def remove_throwaway(self, *unused, **more):
            raise EngineError("It can't be removed.")

    with pytest.raises(ArchiveError, match="first"):
        with Drill(Stuck()):
            raise ArchiveError("first")
    with pytest.raises(EngineError, match="can't be removed"):
        with Drill(Stuck()):
            pass
