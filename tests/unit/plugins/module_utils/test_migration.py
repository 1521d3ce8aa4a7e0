# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration dies at every write of either record; the next run lets exactly one host serve, and never were there two."""

from __future__ import annotations

import json
import os
import time

import pytest
from fake_engine import FakeEngine, container

from ansible_collections.echo_music.ops.plugins.module_utils import migration as module
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, EchoError, EngineError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.migration import (
    MigrationError,
    Record,
    ensure_migration,
    guard,
    is_held_back,
    leave_stopped,
    read,
)
from ansible_collections.echo_music.ops.plugins.module_utils.migration_plan import resume

ID = "6f1c2a9b"
TABLES = {"public.users": 5}


class Killed(BaseException):
    """What a SIGKILL does to a module: it ends there, whatever was to follow."""


class Host:
    """One host of a pair: its engine, its folder of records, and what its app does when it is started."""

    def __init__(self, folder, app_state):
        self.folder = str(folder)
        self.engine = SmallEngine(
            container("db", service="postgres", project="echo", restart_policy="unless-stopped"),
            container(
                "app",
                service="echo",
                project="echo",
                state=app_state,
                health="healthy",
                restart_policy="unless-stopped",
                started_at="0001-01-01T00:00:00Z" if app_state == "created" else "2026-11-24T03:00:00Z",
            ),
        )

    @property
    def serves(self):
        return self.engine.container("app")["state"] == "running"

    @property
    def record(self):
        return read(os.path.join(self.folder, "echo.migration.json"))

    def go(self, state, **options):
        options = dict(dict(id=ID, lease=1800, health_timeout=0, peer="other", login="root"), **options)
        return ensure_migration(self.engine, state, "echo", folder=self.folder, **options)


class SmallEngine(FakeEngine):
    """An engine whose app refuses to start, or gets ill, if it is told to; a reboot is played."""

    sick = refuses = False

    def set_restart_policy(self, name, policy):
        self._containers[name] = dict(self._containers[name], restart_policy=policy)

    def stop(self, name, timeout=30):
        self.container(name)
        self.set_state(name, "created" if self._containers[name]["state"] == "created" else "exited")

    def start(self, name):
        if self.refuses or self.container(name)["state"] == "paused":
            raise StackError("Its port is in use.")
        health = "unhealthy" if self.sick else "healthy"
        self._containers[name] = dict(self._containers[name], state="running", health=health, started_at="2026-11-24T04:00:00Z")

    def unpause(self, name):
        self.set_state(name, "running")

    def reboot(self):
        for name, found in self._containers.items():
            if found["state"] == "running":
                self.set_state(name, "running" if found["restart_policy"] != "no" else "exited")


class SmallDatabase:
    """A database with as many rows and as many writes as it is told."""

    rows, written, dead = dict(TABLES), 7, False

    def __init__(self, engine, name):
        pass

    def describe(self):
        return dict(tables=dict(self.rows))

    def query(self, *unused):
        if self.dead:
            raise DatabaseError("No space left on device.")
        return [str(self.written)]


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Database", SmallDatabase)
    monkeypatch.setattr(module, "start_guard", lambda engine, record: None)
    monkeypatch.setattr(module.migration_keys, "make", lambda folder, unused_id, names: os.makedirs(folder, exist_ok=True))
    monkeypatch.setattr(module.migration_keys, "withdraw", lambda login, migration_id: None)
    monkeypatch.setattr(SmallDatabase, "rows", dict(TABLES))
    monkeypatch.setattr(SmallDatabase, "written", 7)
    monkeypatch.setattr(SmallDatabase, "dead", False)
    return Host(tmp_path / "old", "running"), Host(tmp_path / "new", "created")


def migrate(old, new):
    """What the role does, step by step."""
    for step in (
        lambda: old.go("serving"),
        lambda: new.go("preparing"),
        lambda: old.go("fenced"),
        lambda: old.go("granted"),
        lambda: new.go("live", other=old.record, tables=TABLES),
        lambda: new.go("committed"),
        lambda: old.go("migrated", other=new.record),
    ):
        step()
        yield


def end(old, new):
    """What the role does first, next time: end what was left."""
    action = resume(old.record, new.record)
    if action == "forward":
        new.go("live", other=old.record)
        new.go("committed")
        old.go("migrated", other=new.record)
    elif action == "back":
        back(old, new)
    return action


def back(old, new):
    if new.record and new.record["phase"] in ("preparing", "live"):
        new.go("abandoned", id=new.record["id"])
    if old.record:
        old.go("released", id=old.record["id"], other=new.record)


def test_the_way_from_one_host_to_the_other(pair):
    old, new = pair
    for unused in migrate(old, new):
        assert not (old.serves and new.serves)
    assert (old.serves, new.serves) == (False, True)
    assert (old.record["phase"], new.record["phase"]) == ("migrated", "committed")
    assert old.record["facts"]["to"] == "other"
    assert [old.engine.container(name)["restart_policy"] for name in ("app", "db")] == ["no", "no"]
    old.engine.reboot()
    assert not old.serves
    assert resume(old.record, new.record) == "done"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(15))
def test_killed_at_every_write_of_a_record_and_every_call_of_an_engine(pair, monkeypatch, number, after):
    old, new = pair
    seen = []

    def deadly(call):
        def called(*arguments, **options):
            seen.append(call)
            if len(seen) == number + 1 and not after:
                raise Killed
            call(*arguments, **options)
            if len(seen) == number + 1:
                raise Killed

        return called

    with monkeypatch.context() as patch:
        patch.setattr(module, "replace_file", deadly(module.replace_file))
        for name in ("start", "stop", "set_restart_policy"):
            patch.setattr(SmallEngine, name, deadly(getattr(SmallEngine, name)))
        with pytest.raises(Killed):
            for unused in migrate(old, new):
                assert not (old.serves and new.serves)
    assert not (old.serves and new.serves)
    old.engine.reboot(), new.engine.reboot()
    assert not (old.serves and new.serves)
    end(old, new)
    assert [old.serves, new.serves].count(True) == 1
    assert resume(old.record, new.record) in ("start", "done")
    if old.serves:
        assert old.engine.container("app")["restart_policy"] == "unless-stopped"


def test_the_new_host_waits_for_the_grant(pair):
    old, new = pair
    old.go("serving"), new.go("preparing"), old.go("fenced")
    with pytest.raises(MigrationError, match="has not granted"):
        new.go("live", other=old.record, tables=TABLES)
    with pytest.raises(MigrationError, match="has not granted"):
        new.go("live", other=dict(old.record, phase="granted", id="00000000"), tables=TABLES)
    assert not new.serves


def test_no_grant_without_a_fence(pair):
    old, new = pair
    old.go("serving")
    with pytest.raises(MigrationError, match="is serving here, not fenced"):
        old.go("granted")
    old.go("fenced")
    old.engine.start("app")
    with pytest.raises(MigrationError, match="app is running"):
        old.go("granted")


def test_a_fenced_host_serves_again_whatever_became_of_the_other(pair):
    old, unused_new = pair
    old.go("serving"), old.go("fenced")
    assert not old.serves
    old.go("released", other=None)
    assert old.serves
    assert old.engine.container("app")["restart_policy"] == "unless-stopped"


def test_a_host_that_granted_needs_the_word_of_the_other(pair):
    old, new = pair
    old.go("serving"), new.go("preparing"), old.go("fenced"), old.go("granted")
    for word in (None, new.record):
        with pytest.raises(MigrationError, match="that may be what it does"):
            old.go("released", other=word)
    assert not old.serves
    old.go("released", other=None, force=True)
    assert old.serves


def test_after_its_word_a_host_never_goes_live(pair):
    old, new = pair
    old.go("serving"), new.go("preparing"), old.go("fenced"), old.go("granted")
    granted = old.record
    new.go("abandoned")
    old.go("released", other=new.record)
    with pytest.raises(MigrationError, match="is abandoned here"):
        new.go("live", other=granted, tables=TABLES)
    assert (old.serves, new.serves) == (True, False)


def test_an_app_that_cannot_start_goes_back(pair):
    old, new = pair
    new.engine.refuses = True
    with pytest.raises(StackError):
        list(migrate(old, new))
    assert new.record["phase"] == "live"
    assert new.go("abandoned")["kept"] is False
    old.go("released", other=new.record)
    assert old.serves


@pytest.mark.parametrize("written, kept", [(7, False), (8, True)], ids=["nothing written", "something written"])
def test_an_app_that_is_ill_goes_back_and_keeps_what_was_written(pair, monkeypatch, written, kept):
    old, new = pair
    new.engine.sick = True
    with pytest.raises(StackError, match="didn't become healthy"):
        list(migrate(old, new))
    monkeypatch.setattr(SmallDatabase, "written", written)
    assert new.go("abandoned")["kept"] is kept
    assert not new.serves
    back(old, new)
    assert old.serves


def test_rows_that_are_lost_at_the_start_are_an_error(pair, monkeypatch):
    old, new = pair
    monkeypatch.setattr(SmallDatabase, "rows", {"public.users": 4})
    with pytest.raises(MigrationError, match="lost rows"):
        list(migrate(old, new))


@pytest.mark.parametrize("steps", [5, 6], ids=["live", "committed"])
def test_rows_that_clients_deleted_since_are_not_lost(pair, monkeypatch, steps):
    old, new = pair
    for unused in zip(range(steps), migrate(old, new)):
        pass
    monkeypatch.setattr(SmallDatabase, "rows", {"public.users": 4})
    monkeypatch.setattr(SmallDatabase, "written", 8)
    assert end(old, new) == "forward"
    assert (old.serves, new.serves) == (False, True)
    assert resume(old.record, new.record) == "done"


def test_rows_that_nobody_deleted_are_lost_also_for_the_next_run(pair, monkeypatch):
    old, new = pair
    new.engine.sick = True
    with pytest.raises(StackError, match="didn't become healthy"):
        list(migrate(old, new))
    new.engine.sick = False
    new.engine.start("app")
    monkeypatch.setattr(SmallDatabase, "rows", {"public.users": 4})
    with pytest.raises(MigrationError, match="lost rows"):
        end(old, new)


def live(old, new):
    for unused in zip(range(5), migrate(old, new)):
        pass
    assert (old.record["phase"], new.record["phase"]) == ("granted", "live") and new.serves


def test_a_database_that_died_keeps_nobody_from_serving(pair, monkeypatch):
    old, new = pair
    live(old, new)
    monkeypatch.setattr(SmallDatabase, "dead", True)
    assert new.go("abandoned")["kept"] is True
    back(old, new)
    assert (old.serves, new.serves) == (True, False)
    assert new.engine.container("app")["restart_policy"] == "no"


@pytest.mark.parametrize("written, kept", [(7, False), (8, True)], ids=["nothing written", "something written"])
def test_an_app_that_was_removed_counts_as_stopped(pair, monkeypatch, written, kept):
    old, new = pair
    live(old, new)
    new.engine.remove("app")
    monkeypatch.setattr(SmallDatabase, "written", written)
    assert new.go("abandoned")["kept"] is kept
    back(old, new)
    assert old.serves


def test_an_app_is_stopped_whatever_became_of_its_database(pair, monkeypatch):
    old, new = pair
    live(old, new)
    new.engine.remove("db")
    monkeypatch.setattr(SmallDatabase, "dead", True)
    assert new.go("abandoned")["kept"] is True
    assert not new.serves


def test_without_an_engine_nobody_gives_a_word(pair, monkeypatch):
    old, new = pair
    live(old, new)

    def stop(unused_name, timeout):
        raise EngineError("The engine is away.")

    monkeypatch.setattr(new.engine, "stop", stop)
    with pytest.raises(EngineError):
        new.go("abandoned")
    assert new.record["phase"] == "live"


@pytest.mark.parametrize("phase", ["committed", "abandoned"])
def test_a_host_that_was_migrated_to_is_migrated_from(pair, tmp_path, phase):
    old, new = pair
    if phase == "committed":
        list(migrate(old, new))
    else:
        old.go("serving"), new.go("preparing"), new.go("abandoned")
        new.engine.start("app")
    newest = Host(tmp_path / "newest", "created")
    assert resume(new.record, newest.record) == "start"
    for unused in migrate(new, newest):
        assert not (new.serves and newest.serves)
    assert (new.record["side"], new.record["phase"], newest.record["phase"]) == ("source", "migrated", "committed")
    assert (new.serves, newest.serves) == (False, True)


def test_a_host_that_is_being_migrated_to_is_not_migrated_from(pair):
    old, new = pair
    new.go("preparing")
    with pytest.raises(MigrationError, match="is under way here"):
        new.go("serving", id=None)
    live(old, new)
    with pytest.raises(MigrationError, match="is under way here"):
        new.go("serving", id=None)


@pytest.mark.parametrize("state", ["paused", "exited"])
def test_an_app_that_a_backup_stopped_serves_again_after_a_release(pair, state):
    old = pair[0]
    old.engine.set_state("app", state)
    old.go("serving")
    assert leave_stopped("echo", "app", old.folder) is False
    old.go("fenced")
    assert leave_stopped("echo", "app", old.folder) is True
    assert not old.serves
    old.go("released")
    assert old.serves


def test_an_app_that_was_started_after_the_beginning_serves_again_after_a_release(pair):
    old = pair[0]
    old.engine.set_state("app", "exited")
    old.go("serving")
    old.engine.start("app")
    old.go("fenced"), old.go("released")
    assert old.serves


def test_an_app_that_is_still_paused_serves_again_after_a_release(pair, monkeypatch):
    old = pair[0]
    old.go("serving")
    old.engine.set_state("app", "paused")

    def killed(unused_name, timeout):
        raise Killed

    monkeypatch.setattr(old.engine, "stop", killed)
    with pytest.raises(Killed):
        old.go("fenced")
    old.go("released")
    assert old.serves


def test_an_app_that_runs_before_its_time_is_an_error(pair):
    old, new = pair
    old.go("serving"), new.go("preparing"), old.go("fenced"), old.go("granted")
    new.engine.start("app")
    with pytest.raises(MigrationError, match="before its time"):
        new.go("live", other=old.record, tables=TABLES)


def test_the_new_app_is_held_back_until_it_is_live(pair):
    old, new = pair
    held = []
    for unused in migrate(old, new):
        held.append((is_held_back("echo", old.folder), is_held_back("echo", new.folder)))
    assert held == [
        (False, False), (False, True), (True, True), (True, True), (True, False), (True, False), (True, False),
    ]


def test_a_second_migration_does_not_begin_beside_the_first(pair):
    old, new = pair
    old.go("serving"), new.go("preparing"), old.go("fenced")
    with pytest.raises(MigrationError, match="A migration to other is under way"):
        old.go("serving", id=None)
    old.go("granted"), new.go("live", other=old.record, tables=TABLES)
    with pytest.raises(MigrationError, match="under way here already"):
        new.go("preparing", id="00000000")


def test_the_guard_releases_when_its_time_is_over(pair):
    old, unused_new = pair
    old.go("serving"), old.go("fenced", lease=-1)
    guard(old.engine, "echo", old.folder, ID, poll=0)
    assert old.serves and old.record["phase"] == "released"


def test_the_guard_lets_a_grant_stand(pair):
    old, unused_new = pair
    old.go("serving"), old.go("fenced", lease=-1), old.go("granted")
    guard(old.engine, "echo", old.folder, ID, poll=0)
    assert not old.serves and old.record["phase"] == "granted"


def test_the_guard_waits_for_its_time(pair, monkeypatch):
    old, unused_new = pair
    old.go("serving"), old.go("fenced", lease=3600)
    looks = []

    def sleep(unused):
        looks.append(old.record["phase"])
        if len(looks) == 3:
            old.go("granted")

    monkeypatch.setattr(module.time, "sleep", sleep)
    guard(old.engine, "echo", old.folder, ID)
    assert looks == ["fenced"] * 3 and not old.serves


def test_folders_are_made_and_noted_before_anything_is_put_there(pair, tmp_path):
    new = pair[1]
    there, missing = tmp_path / "there", tmp_path / "srv" / "missing"
    there.mkdir()
    owner = [os.getuid(), os.getgid(), 0o750]
    new.go("preparing", folders=[dict(path=str(there), owner=None), dict(path=str(missing), owner=owner)])
    assert new.record["facts"]["folders"] == [str(there), str(missing)]
    assert missing.stat().st_mode & 0o7777 == 0o750


@pytest.mark.parametrize("is_file", [True, False])
def test_a_folder_with_something_in_it_is_not_taken(pair, tmp_path, is_file):
    new, folder = pair[1], tmp_path / "uploads"
    if is_file:
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / "cover.jpg").write_text("mine")
    with pytest.raises(MigrationError, match="is not an empty folder"):
        new.go("preparing", folders=[dict(path=str(folder), owner=None)])
    assert new.record is None


def test_the_old_host_tells_whose_its_folders_are(pair, tmp_path):
    old, folder = pair[0], tmp_path / "uploads"
    folder.mkdir(mode=0o700)
    mounts = [
        dict(type="bind", name=None, source=str(folder), destination="/app/uploads", rw=True),
        dict(type="bind", name=None, source=str(tmp_path), destination="/music", rw=False),
        dict(type="volume", name="logs", source=str(tmp_path / "nowhere"), destination="/app/logs", rw=True),
    ]
    old.engine._containers["app"] = dict(old.engine._containers["app"], mounts=mounts)
    assert old.go("serving")["owners"] == {"uploads": [os.getuid(), os.getgid(), 0o700]}


def test_a_record_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "echo.migration.json"
    for text in ("{}", "nonsense", json.dumps({"format": "echo-migration/1"})):
        path.write_text(text)
        with pytest.raises(MigrationError, match="can't be understood"):
            read(str(path))
    with pytest.raises(MigrationError, match="not the name"):
        Record("../echo")


def test_steps_wait_for_each_other(pair, monkeypatch):
    old, unused_new = pair
    monkeypatch.setattr(module, "LOCK_TIMEOUT", 0)
    old.go("serving")
    with Record("echo", old.folder):
        with pytest.raises(MigrationError, match="Another step"):
            old.go("fenced")
    assert old.go("fenced")["changed"]


def test_check_mode_changes_nothing(pair):
    old, unused_new = pair
    assert ensure_migration(old.engine, "serving", "echo", folder=old.folder, check=True)["changed"]
    assert old.record is None


def test_states_may_be_asked_for_twice(pair):
    old, new = pair
    old.go("serving"), new.go("preparing")
    for host, state, options in (
        (old, "fenced", {}),
        (old, "granted", {}),
        (new, "live", dict(tables=TABLES)),
        (new, "committed", {}),
        (old, "migrated", {}),
    ):
        other = (new if host is old else old).record
        host.go(state, other=other, **options)
        host.go(state, other=other, **options)
    began = time.time()
    assert old.record["facts"]["at"] <= began and new.serves


def test_a_host_that_was_released_is_so_for_good(pair):
    old, new = pair
    old.go("serving"), new.go("preparing"), old.go("fenced")
    back(old, new)
    with pytest.raises(EchoError):
        old.go("granted")
    assert resume(old.record, new.record) == "start"
