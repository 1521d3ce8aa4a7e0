# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore is killed at every step of its journal; what is live is then all old or all new."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
from fake_engine import FakeCommand

from ansible_collections.echo_music.ops.plugins.module_utils import live_database
from ansible_collections.echo_music.ops.plugins.module_utils import restore as module
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Gone
from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    ArchiveError,
    DatabaseError,
    EchoError,
    SetError,
    SpaceError,
    StackError,
)
from ansible_collections.echo_music.ops.plugins.module_utils.journal import Journal, JournalError, read
from ansible_collections.echo_music.ops.plugins.module_utils.restore import Restore, require_space

COMPONENTS = ("database", "uploads", "config")
ROLES = dict(database="postgres", redis="redis", app="app")
KILLED = 77
DAY = 86400


class SmallEngine:
    """Containers whose states outlive the process; the app is healthy unless its data is bad."""

    def __init__(self, folder):
        self.folder = folder

    def container(self, name):
        if not (self.folder / name).exists():
            raise Gone("There is no container %s." % name)
        health = "unhealthy" if name == "app" and "bad" in live(self.folder).values() else "healthy"
        policy = (self.folder / (name + ".policy")).read_text() if (self.folder / (name + ".policy")).exists() else "unless-stopped"
        return dict(name=name, state=(self.folder / name).read_text(), health=health, restart_policy=policy)

    def set_restart_policy(self, name, policy):
        (self.folder / (name + ".policy")).write_text(policy)

    def stop(self, name):
        (self.folder / name).write_text("exited")

    def start(self, name):
        (self.folder / name).write_text("running")


class SmallPart:
    """A component that is one file; as the real ones, it tells its state from the disk."""

    def __init__(self, folder, tag, facts):
        component = facts["component"]
        self.facts = facts
        self.component = component
        self.needs_server = component == "database"
        self._server = folder / "postgres"
        self._comes = facts["comes"]
        self._live = folder / component
        self._staged = folder / (".%s.%s.staged" % (component, tag))
        self._previous = folder / (".%s.%s.previous" % (component, tag))

    def stage(self):
        if self._comes == "damaged":
            raise ArchiveError("uploads.tar.gz is damaged.")
        self._staged.write_text(self._comes)
        return {"public.users": 5} if self.component == "database" else None

    def swap(self):
        self._live.rename(self._previous)
        crash_point()
        self._staged.rename(self._live)

    def is_swapped(self):
        return self._previous.exists()

    def swap_back(self):
        if self._previous.exists():
            if self._live.exists():
                self._live.rename(self._staged)
                crash_point()
            self._previous.rename(self._live)

    def discard(self):
        if self._staged.exists():
            self._staged.unlink()

    def forget(self):
        if self.needs_server and self._server.read_text() != "running":
            raise DatabaseError("The server doesn't run.")
        if self._previous.exists():
            self._previous.unlink()

    def verify(self, tables):
        return tables if self.component == "database" else None


def crash_point():
    """A moment between two renames; the walk replaces it."""


@pytest.fixture
def host(tmp_path, monkeypatch):
    folder = tmp_path / "host"
    folder.mkdir()
    for component in COMPONENTS:
        (folder / component).write_text("old")
    for name, state in dict(postgres="running", redis="running", app="running").items():
        (folder / name).write_text(state)
    monkeypatch.setattr(module, "make_part", lambda engine, tag, facts: SmallPart(folder, tag, facts))
    monkeypatch.setattr(module, "HEALTH_POLL", 0.001)
    return folder


def live(folder):
    return dict((name, (folder / name).read_text() if (folder / name).exists() else None) for name in COMPONENTS)


def all_live(content):
    return dict.fromkeys(COMPONENTS, content)


def states(folder):
    return [(folder / name).read_text() for name in ("postgres", "redis", "app")]


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def planned(comes="new", only=COMPONENTS):
    return dict(
        source=dict(origin="ours", id="backup_2026-11-24_03-00-00", path="/sets/1", time="2026-11-24T03:00:00Z"),
        parts=[dict(component=name, comes=comes, kind="archive", file="/sets/1/" + name, bytes=1) for name in only],
        live={},
        before={"public.users": 3},
        expected={"public.users": 5},
        warnings=[],
    )


def journal(folder):
    return Journal("echo", str(folder.parent / "state"))


def opened(folder, log):
    """The restore of a journal; its stack is what discovery would see now."""
    engine = SmallEngine(folder)
    containers = dict((role, engine.container(name)) for role, name in ROLES.items())
    return Restore(engine, log, dict(containers=containers, project="echo"), health_timeout=0.01)


def go(folder, state="committed", comes="new", keep=DAY, only=COMPONENTS):
    """What a module run does; every earlier one is reconciled first."""
    with journal(folder) as log:
        restore = opened(folder, log)
        restore.reconcile()
        restore.pay()
        if state == "rolled_back":
            return restore.roll_back()
        fresh = log.operation is None
        if fresh:
            restore.stage(planned(comes, only), keep)
        return restore.advance(state, changed=fresh)


def reconcile(folder):
    with journal(folder) as log:
        return opened(folder, log).reconcile()


def test_all_the_way(host):
    result = go(host)
    assert live(host) == all_live("new")
    assert result["state"] == "committed"
    assert result["tables"] == {"public.users": {"before": 3, "backup": 5, "after": 5}}
    assert result["downtime"] <= result["healthy_after"]
    assert result["previous_until"].endswith("Z")
    assert states(host) == ["running"] * 3
    assert len(left(host)) == 3
    json.dumps(result)


def test_step_by_step(host):
    assert go(host, "staged")["state"] == "staged"
    assert (live(host), reconcile(host)) == (all_live("old"), None)
    assert not go(host, "staged")["changed"]
    assert go(host, "activated")["state"] == "activated"
    assert (live(host), reconcile(host)) == (all_live("new"), None)
    assert not go(host, "activated")["changed"]
    assert go(host, "committed")["state"] == "committed"
    assert live(host) == all_live("new")


@pytest.mark.parametrize("state", ["staged", "activated", "committed"])
def test_rolled_back(host, state):
    go(host, state)
    assert go(host, "rolled_back")["state"] == "rolled_back"
    assert (live(host), left(host)) == (all_live("old"), [])
    assert states(host) == ["running"] * 3
    with pytest.raises(JournalError, match="no restore to roll back"):
        go(host, "rolled_back")


def test_the_old_data_of_the_last_restore_alone_is_kept(host):
    go(host, comes="newer")
    go(host, comes="newest")
    assert len(left(host)) == 3
    go(host, "rolled_back")
    assert live(host) == all_live("newer")


def test_the_old_data_goes_when_its_time_is_over(host):
    go(host)
    with journal(host) as log:
        assert not opened(host, log).expire("reconciled", DAY)
        # Only who asks for it ends the time early.
        assert not opened(host, log).expire("committed", 0)
        assert opened(host, log).expire("reconciled", 0)
    assert left(host) == []
    go(host, comes="newest", keep=0)
    assert left(host) == []


def test_old_data_that_is_overdue_waits_for_a_server_that_ends_again_and_again(host):
    go(host, keep=0.001)
    (host / "postgres").write_text("restarting")
    with journal(host) as log:
        assert not opened(host, log).expire("committed", DAY)
        assert log.kept
    (host / "postgres").write_text("running")
    with journal(host) as log:
        assert opened(host, log).expire("committed", DAY)
    assert left(host) == []


def test_old_data_that_cannot_be_dropped_is_owed_and_blocks_nothing(host, monkeypatch):
    forget = SmallPart.forget

    def refuse(self):
        if self.needs_server:
            raise DatabaseError("The server doesn't answer.")
        forget(self)

    go(host, keep=0.001)
    with monkeypatch.context() as patched:
        patched.setattr(SmallPart, "forget", refuse)
        with journal(host) as log:
            assert opened(host, log).expire("committed", DAY)
            assert (log.kept, len(log.owed)) == (None, 1)
    go(host, comes="newest")
    assert live(host) == all_live("newest")


def test_a_stack_that_was_to_be_started_is_started_by_the_next_restore(host):
    for name in ("redis", "app"):
        (host / name).write_text("created")
    with journal(host) as log:
        restore = opened(host, log)
        restore.stage(planned("bad"), DAY, start=True)
        with pytest.raises(StackError, match="didn't become healthy"):
            restore.advance("committed", changed=True)
    assert states(host) == ["running", "running", "exited"]
    assert go(host)["downtime"] is not None
    assert (live(host), states(host)) == (all_live("new"), ["running"] * 3)
    (host / "app").write_text("exited")
    go(host, comes="newest")
    assert states(host) == ["running", "running", "exited"]


@pytest.mark.parametrize("comes", ["new", "bad"])
def test_the_engine_starts_no_app_on_half_swapped_data(host, monkeypatch, comes):
    (host / "app.policy").write_text("always")
    seen = []

    def swap(self):
        seen.append((host / "app.policy").read_text())
        original(self)

    original = SmallPart.swap
    monkeypatch.setattr(SmallPart, "swap", swap)
    with contextlib.nullcontext() if comes == "new" else pytest.raises(StackError):
        go(host, comes=comes)
    assert set(seen) == {"no"}
    assert (states(host), (host / "app.policy").read_text()) == (["running"] * 3, "always")


def test_a_restart_policy_that_was_changed_since_stays(host):
    (host / "app.policy").write_text("always")
    go(host, "activated")
    (host / "app.policy").write_text("unless-stopped")
    go(host, "rolled_back")
    assert (live(host), (host / "app.policy").read_text()) == (all_live("old"), "unless-stopped")


def test_a_restart_policy_outlives_a_kill(host):
    for number in range(1, 12):
        (host / "app.policy").write_text("always")
        if killed_at(number, "after", lambda: go(host)):
            reconcile(host)
        assert ((host / "app.policy").read_text(), states(host)) == ("always", ["running"] * 3)


def test_a_server_that_cannot_be_started_blocks_nothing(host, monkeypatch):
    (host / "postgres").write_text("exited")
    start = SmallEngine.start

    def refuse(self, name):
        if name == "postgres":
            raise StackError("The port is taken.")
        start(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(SmallEngine, "start", refuse)
        with journal(host) as log, pytest.raises(StackError, match="port is taken"):
            with opened(host, log).server(dict(components=["database"])):
                pass
    assert reconcile(host) is None


def test_a_restore_that_rests_is_about_what_it_was_staged_for(host, monkeypatch):
    go(host, "staged")
    monkeypatch.setattr(
        module, "resolve", lambda source, root, components: dict(path="/sets/1", components=dict.fromkeys(components or COMPONENTS))
    )
    with journal(host) as log:
        for asked in (dict(components=["uploads"]), dict(tables=["playlists"])):
            with pytest.raises(JournalError, match="rests here, staged; it is about"):
                module._require_source(log.operation, "/sets/1", None, asked.get("components"), asked.get("tables"))
        module._require_source(log.operation, "/sets/1", None, list(COMPONENTS), None)


def test_a_server_that_ran_for_a_resting_restore_alone_stops_with_it(host, monkeypatch):
    monkeypatch.setattr(module, "await_server", lambda engine, name: None)
    for name in ("postgres", "app"):
        (host / name).write_text("exited")
    with journal(host) as log:
        restore = opened(host, log)
        with restore.server(dict(components=["database"])):
            restore.stage(planned(), DAY)
        restore.advance("staged", changed=True)
        restore.roll_back()
    assert states(host) == ["exited", "running", "exited"]


def test_damage_is_found_before_anything_live_is_touched(host):
    with pytest.raises(ArchiveError, match="nothing of it was lost") as caught:
        go(host, comes="damaged")
    assert caught.value.as_result()["rolled_back"]
    assert (live(host), left(host), states(host)) == (all_live("old"), [], ["running"] * 3)


def test_an_app_that_does_not_get_healthy(host):
    with pytest.raises(StackError, match="didn't become healthy"):
        go(host, comes="bad")
    assert (live(host), left(host), states(host)) == (all_live("old"), [], ["running"] * 3)


@pytest.mark.parametrize("name", ["app", "postgres"])
def test_a_container_that_stops_while_health_is_awaited(host, monkeypatch, name):
    start = SmallEngine.start

    def dies(self, started):
        start(self, started)
        if started == "app" and live(host) == all_live("new"):
            (host / name).write_text("exited")

    monkeypatch.setattr(SmallEngine, "start", dies)
    with pytest.raises(StackError, match="The container %s stopped" % name):
        go(host)
    assert (live(host), left(host), states(host)) == (all_live("old"), [], ["running"] * 3)


def test_an_app_that_did_not_run_is_left_alone(host):
    (host / "app").write_text("exited")
    assert go(host)["downtime"] is None
    assert states(host) == ["running", "running", "exited"]


def test_a_restore_after_one_that_was_killed_while_the_app_was_stopped(host):
    assert killed_at(5, "after", lambda: go(host))
    assert states(host) == ["running", "running", "exited"]
    assert go(host)["downtime"] is not None
    assert (live(host), states(host)) == (all_live("new"), ["running"] * 3)


@pytest.mark.parametrize("staged, now", [("running", "exited"), ("exited", "running")])
@pytest.mark.parametrize("end", ["committed", "rolled_back"])
def test_an_app_that_is_stopped_or_started_while_a_restore_rests(host, staged, now, end):
    (host / "app").write_text(staged)
    go(host, "staged")
    (host / "app").write_text(now)
    go(host, end)
    assert states(host) == ["running", "running", now]


def test_a_server_that_dies_between_staging_and_activation_runs_again(host, monkeypatch):
    def dies(self):
        (host / "postgres").write_text("exited")
        raise StackError("The server died.")

    monkeypatch.setattr(Restore, "_activate", dies)
    with pytest.raises(StackError, match="The server died"):
        go(host)
    assert (live(host), left(host), states(host)) == (all_live("old"), [], ["running"] * 3)


def test_a_container_that_was_removed_after_a_crash(host):
    assert killed_at(7, "after", lambda: go(host))
    (host / "redis").unlink()
    with journal(host) as log:
        engine = SmallEngine(host)
        containers = dict(database=engine.container("postgres"), app=engine.container("app"))
        Restore(engine, log, dict(containers=containers)).reconcile()
    assert (live(host), left(host)) == (all_live("old"), [])
    assert (host / "app").read_text() == "running"


def test_going_back_fails_and_the_next_run_goes_on(host, monkeypatch):
    def broken(self):
        raise EchoError("The disk is gone.")

    with monkeypatch.context() as patched:
        patched.setattr(SmallPart, "swap_back", broken)
        with pytest.raises(EchoError, match="Going back failed as well") as caught:
            go(host, comes="bad")
    assert caught.value.as_result()["rolled_back"] is False
    assert reconcile(host)["direction"] == "back"
    assert (live(host), left(host), states(host)) == (all_live("old"), [], ["running"] * 3)


def killed_at(number, moment, work):
    """Run work in a child that dies at its crash point of that number; tell whether it came to it."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, KILLED)
        return code == KILLED
    seen = 0

    def point():
        nonlocal seen
        seen += 1
        if seen == number:
            os._exit(KILLED)

    write = Journal._write

    def watched(self):
        if moment == "before":
            point()
        write(self)
        if moment == "after":
            point()

    try:
        if moment == "between":
            globals()["crash_point"] = point
        else:
            Journal._write = watched
        work()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("app", ["running", "exited"])
@pytest.mark.parametrize("moment", ["before", "after", "between"])
@pytest.mark.parametrize(
    "before, state",
    [(None, "committed"), ("committed", "committed"), ("committed", "rolled_back"), ("activated", "rolled_back")],
)
def test_killed_at_every_step(host, before, state, moment, app):
    (host / "app").write_text(app)
    number = 0
    while True:
        number += 1
        for path in host.iterdir():
            if path.name.startswith("."):
                path.unlink()
        for component in COMPONENTS:
            (host / component).write_text("old")
        with journal(host) as log:
            log.end()
        if before:
            go(host, before, comes="between")
        if not killed_at(number, moment, lambda: go(host, state)):
            break
        killed_at(1, moment, lambda: reconcile(host))
        reconcile(host)
        assert reconcile(host) is None
        assert live(host) in (all_live("old"), all_live("between"), all_live("new"))
        assert states(host) == ["running", "running", app]
        assert [name for name in left(host) if name.endswith("staged")] == []
        assert len(left(host)) in (0, 3)
    assert number > 2


def test_a_walk_of_going_back_by_itself(host):
    number = 0
    while True:
        number += 1
        for component in COMPONENTS:
            (host / component).write_text("old")

        def failing():
            with pytest.raises(StackError):
                go(host, comes="bad")

        if not killed_at(number, "after", failing):
            break
        reconcile(host)
        assert (live(host), left(host), states(host)) == (all_live("old"), [], ["running"] * 3)
    assert number > 8


def test_space_is_counted_per_file_system(tmp_path):
    require_space([(str(tmp_path), 10), (str(tmp_path), 20)])
    with pytest.raises(SpaceError, match="beside the live data"):
        require_space([(str(tmp_path), 1 << 60), (str(tmp_path), 1 << 60)])


class ServerEngine(SmallEngine):
    """An engine whose database server takes connections as soon as it runs, unless it is broken."""

    def container(self, name):
        return dict(super().container(name), started_at=(self.folder / name).stat().st_mtime_ns)

    def start(self, name):
        broken = name == "postgres" and (self.folder / ".broken").exists()
        (self.folder / name).write_text("exited" if broken else "running")

    def run_in(self, container, argv):
        assert (container, argv[0]) == ("postgres", "pg_isready")
        return FakeCommand()


def go_with_server(folder, log, state="committed", comes="new", start=False):
    """What a module run does where the server may be asleep; also return what was said of it."""
    engine = ServerEngine(folder)
    containers = dict((role, engine.container(name)) for role, name in ROLES.items())
    restore = Restore(engine, log, dict(containers=containers, project="echo"), health_timeout=0.01)
    restore.reconcile()
    with restore.server(dict(components=["database"])) as broken:
        restore.stage(planned(comes), DAY, start)
    return restore.advance(state, changed=True), broken


@pytest.mark.parametrize("app", ["running", "exited"])
def test_a_server_that_is_stopped_runs_for_the_restore(host, app):
    (host / "app").write_text(app)
    (host / "postgres").write_text("exited")
    with journal(host) as log:
        assert go_with_server(host, log)[1] is None
    assert live(host) == all_live("new")
    # An app that runs needs its database; without it, all is as it was.
    assert states(host) == ["running" if app == "running" else "exited", "running", app]


def test_a_server_is_stopped_again_when_the_restore_fails(host):
    (host / "app").write_text("exited")
    (host / "postgres").write_text("exited")
    with journal(host) as log:
        with pytest.raises(ArchiveError):
            go_with_server(host, log, comes="damaged")
        assert log.operation is None
    assert (live(host), states(host)) == (all_live("old"), ["exited", "running", "exited"])


def test_a_restore_that_is_refused_once_the_server_runs(host):
    (host / "app").write_text("exited")
    (host / "postgres").write_text("exited")
    with journal(host) as log:
        restore = Restore(ServerEngine(host), log, opened(host, log).stack)
        with pytest.raises(SpaceError):
            with restore.server(dict(components=["database"])):
                assert states(host)[0] == "running"
                raise SpaceError("No room.")
        assert log.operation is None
    assert states(host) == ["exited", "running", "exited"]


def test_a_server_is_not_started_for_files(host):
    (host / "postgres").write_text("exited")
    with journal(host) as log:
        with Restore(ServerEngine(host), log, opened(host, log).stack).server(dict(components=["uploads"])) as broken:
            assert (broken, states(host)[0], log.operation) == (None, "exited", None)


def test_a_paused_server_is_not_taken_for_a_broken_one(host):
    (host / "postgres").write_text("paused")
    with journal(host) as log, pytest.raises(StackError, match="is paused"):
        go_with_server(host, log)


def test_what_a_server_died_of_is_told(host):
    (host / "postgres").write_text("exited")
    (host / ".broken").touch()
    with journal(host) as log:
        restore = Restore(ServerEngine(host), log, opened(host, log).stack)
        with restore.server(dict(components=["database"])) as broken:
            assert "stopped when it was started" in broken
            # What it is for may still be the app's files, so the restore goes on.
            assert log.operation["kind"] == "start"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_the_server_is_started(host, moment):
    number = 0
    while True:
        number += 1
        for path in host.glob(".config*"):
            path.unlink()
        for component in COMPONENTS:
            (host / component).write_text("old")
        (host / "app").write_text("exited")
        (host / "postgres").write_text("exited")
        with journal(host) as log:
            log.end()

        def work():
            with journal(host) as log:
                go_with_server(host, log)

        if not killed_at(number, moment, work):
            break
        with journal(host) as log:
            Restore(ServerEngine(host), log, opened(host, log).stack, health_timeout=0.01).reconcile()
            assert log.operation is None
        assert live(host) in (all_live("old"), all_live("new"))
        assert states(host) == ["exited", "running", "exited"]
    assert number > 8


@pytest.mark.parametrize("app, start", [("exited", True), ("created", False)])
def test_a_stack_that_never_ran_runs_after_the_restore(host, app, start):
    for name in ("postgres", "redis", "app"):
        (host / name).write_text(app)
    with journal(host) as log:
        result, unused = go_with_server(host, log, start=start)
    assert result["healthy_after"] is not None
    assert (live(host), states(host)) == (all_live("new"), ["running"] * 3)


def test_a_stack_that_never_ran_stays_so_when_the_restore_fails(host):
    for name in ("postgres", "redis", "app"):
        (host / name).write_text("created")
    with journal(host) as log, pytest.raises(StackError):
        go_with_server(host, log, comes="bad", start=True)
    assert live(host) == all_live("old")


def test_the_cache_is_exchanged_while_nobody_uses_it(host, monkeypatch):
    seen = []
    swap = SmallPart.swap
    monkeypatch.setattr(SmallPart, "swap", lambda part: (seen.append(states(host)), swap(part)))
    plan = planned()
    plan["parts"][1].update(component="cache", container="redis")
    (host / "cache").write_text("old")
    with journal(host) as log:
        restore = opened(host, log)
        restore.stage(plan, DAY)
        restore.advance("committed", changed=True)
    assert seen == [["running", "exited", "exited"]] * 3
    assert states(host) == ["running"] * 3


@pytest.mark.parametrize("roles, told", [(None, []), (dict(create=["reporter"]), ["reporter"]), (dict(create=None), None)])
def test_roles_that_are_created_are_told(host, roles, told):
    plan = planned()
    plan["parts"][0]["roles"] = roles
    assert json.loads(module.diff(plan)["after"])["database"]["roles"] == told
    with journal(host) as log:
        restore = opened(host, log)
        restore.stage(plan, DAY)
        assert restore.advance("committed", changed=True)["roles"] == told


def test_old_data_is_not_let_go_of_while_the_server_sleeps(host):
    go(host)
    (host / "postgres").write_text("exited")
    with journal(host) as log:
        assert not opened(host, log).expire("reconciled", 0)
        (host / "postgres").write_text("running")
        assert opened(host, log).expire("reconciled", 0)


FILES = COMPONENTS[1:]


@pytest.mark.parametrize("state", ["exited", "restarting"])
@pytest.mark.parametrize("keep", [0, DAY])
def test_files_are_committed_while_the_old_database_can_not_go(host, keep, state):
    go(host, comes="between")
    for name, now in dict(postgres=state, app="exited").items():
        (host / name).write_text(now)
    result = go(host, keep=keep, only=FILES)
    assert (result["state"], (result["previous_until"] is None)) == ("committed", not keep)
    assert "its server doesn't answer" in result["warnings"][0]
    assert live(host) == dict(all_live("new"), database="between")
    assert len(left(host)) == (3 if keep else 1)
    go(host, comes="newer", keep=DAY, only=FILES)
    assert len(read(journal(host).path)["owed"]) == 1
    (host / "postgres").write_text("running")
    go(host, "rolled_back")
    assert (live(host), left(host)) == (dict(all_live("new"), database="between"), [])
    assert read(journal(host).path)["owed"] == []


def test_a_server_that_runs_and_does_not_answer_is_told_later(host, monkeypatch):
    go(host, comes="between")

    def silent(part):
        raise DatabaseError("No answer.") if part.needs_server else ArchiveError("The disk is gone.")

    with monkeypatch.context() as patched:
        patched.setattr(SmallPart, "forget", silent)
        with pytest.raises(ArchiveError):
            go(host, only=FILES)
    with monkeypatch.context() as patched:
        patched.setattr(SmallPart, "forget", lambda part: silent(part) if part.needs_server else None)
        with journal(host) as log:
            assert opened(host, log).reconcile()["direction"] == "forward"
            assert [part["component"] for part in log.owed[0]["facts"]["parts"]] == ["database"]
            assert not opened(host, log).pay()
    with journal(host) as log:
        assert opened(host, log).pay()
        assert not opened(host, log).can_pay()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_files_are_restored_and_the_server_sleeps(host, moment):
    number = 0
    while True:
        number += 1
        for name in left(host):
            (host / name).unlink()
        for component in COMPONENTS:
            (host / component).write_text("old")
        (host / "postgres").write_text("running")
        with journal(host) as log:
            log.end()
            log.pay([])
        go(host, comes="between")
        for name in ("postgres", "app"):
            (host / name).write_text("exited")
        if not killed_at(number, moment, lambda: go(host, only=FILES)):
            break
        reconcile(host)
        assert live(host) in (all_live("between"), dict(all_live("new"), database="between"))
        assert states(host) == ["exited", "running", "exited"]
        (host / "postgres").write_text("running")
        with journal(host) as log:
            assert opened(host, log).pay() == bool(live(host)["uploads"] == "new")
        assert len(left(host)) == (2 if live(host)["uploads"] == "new" else 3)
    assert number > 6


class LocalEngine(ServerEngine):
    """An engine that a module's run may ask all that it asks."""

    def is_local(self):
        return True


@pytest.fixture
def run(host, monkeypatch):
    """Runs the module's one call, after the same in check mode: it must say the same, and change nothing."""
    engine, folder = LocalEngine(host), str(host.parent / "state")
    containers = dict((role, dict(name=name)) for role, name in ROLES.items())
    monkeypatch.setattr(module.echo_stack, "discover", lambda engine: dict(containers=containers, project="echo"))
    monkeypatch.setattr(module, "plan", lambda *unused: planned())
    monkeypatch.setattr(
        module, "resolve", lambda source, root, components: dict(path="/sets/%s" % source, components=COMPONENTS)
    )

    def call(state, check=False, **options):
        try:
            return module.ensure_restored(engine, state, check=check, folder=folder, health_timeout=0.01, **options)
        except EchoError as error:
            return dict(failed=str(error))

    def both(state, **options):
        before = (live(host), left(host), states(host), read(journal(host).path))
        predicted = call(state, check=True, **options)
        assert (live(host), left(host), states(host), read(journal(host).path)) == before
        result = call(state, **options)
        if "failed" in result:
            assert predicted == result
        else:
            keys = ("changed", "state", "reconciled", "source")
            assert [predicted.get(key) for key in keys] == [result[key] for key in keys]
        return result

    return both


def test_check_mode_says_what_a_restore_that_rests_comes_to(host, run):
    assert run("staged", source="1")["changed"]
    assert not run("staged", source="1")["changed"]
    assert "rests here, staged" in run("committed", source="2")["failed"]
    assert run("activated")["changed"]
    result = run("staged")
    assert (result["changed"], result["state"]) == (False, "activated")
    assert run("committed")["changed"]
    assert live(host) == all_live("new")
    assert run("rolled_back")["changed"]
    assert "no restore to roll back" in run("rolled_back")["failed"]
    assert live(host) == all_live("old")


def test_check_mode_says_when_old_data_goes(host, run):
    kept = run("committed", source="1")
    told = run("reconciled")
    assert (told["changed"], told["previous_until"]) == (False, kept["previous_until"])
    told = run("reconciled", keep_previous=0)
    assert (told["changed"], told["previous_until"], left(host)) == (True, None, [])


def test_check_mode_says_when_a_server_lets_go_of_what_is_owed(host, run):
    go(host)
    for name in ("postgres", "app"):
        (host / name).write_text("exited")
    go(host, only=FILES)
    assert not run("reconciled")["changed"]
    (host / "postgres").write_text("running")
    assert run("reconciled")["changed"]
    assert not run("reconciled")["changed"]


def test_who_asks_for_the_old_data_finds_it(host, run):
    run("committed", source="1")
    with journal(host) as log:
        log.end(dict(log.kept, facts=dict(log.kept["facts"], at=0)))
    assert run("rolled_back", keep_previous=0)["changed"]
    assert live(host) == all_live("old")


@pytest.mark.parametrize("keep", [0, DAY])
@pytest.mark.parametrize("number, direction", [(4, "back"), (10, "forward")])
def test_check_mode_says_how_what_broke_off_is_ended(host, run, keep, number, direction):
    assert killed_at(number, "after", lambda: go(host, keep=keep))
    result = run("rolled_back")
    if direction == "back" or not keep:
        assert "no restore to roll back" in result["failed"]
    else:
        assert result["reconciled"]["direction"] == direction
    assert live(host) == all_live("new" if direction == "forward" and not keep else "old")


@pytest.mark.parametrize("state", ["staged", "activated", "committed", "rolled_back"])
@pytest.mark.parametrize("before", ["staged", "committed"])
def test_nothing_changes_under_a_backup(host, run, monkeypatch, before, state):
    run(before, source="1")
    now = live(host)

    def refuse(root, stack):
        raise SetError("A backup of %s is under way in %s." % (stack["project"], root))

    monkeypatch.setattr(module, "require_no_backup", refuse)
    assert run(state, root="/sets") == dict(failed="A backup of echo is under way in /sets.")
    assert live(host) == now


@pytest.mark.parametrize("state, told", [("restarting", "stopped when it was started"), ("running", "None"), ("exited", "None")])
def test_check_mode_knows_what_a_server_dies_of(host, run, monkeypatch, state, told):
    seen = []

    def plan(engine, stack, found, tables=None, broken=None):
        seen.append(broken)
        return planned()

    monkeypatch.setattr(module, "plan", plan)
    monkeypatch.setattr(live_database, "SERVER_POLL", 0.001)
    (host / "postgres").write_text(state)
    module.ensure_restored(LocalEngine(host), check=True, source="1", folder=str(host.parent / "state"))
    assert told in str(seen[0])


def test_check_mode_is_refused_while_a_restore_is_at_work(host, run):
    with journal(host):
        assert "Another restore is at work" in run("committed", source="1")["failed"]
