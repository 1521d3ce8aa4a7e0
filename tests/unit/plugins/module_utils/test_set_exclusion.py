# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set is never made of data that a restore is changing, and a restore never begins under a backup."""

from __future__ import annotations

import json
import os

import pytest
from fake_engine import FakeEngine, container

from ansible_collections.echo_music.ops.plugins.module_utils import set_exclusion
from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.journal import Journal
from ansible_collections.echo_music.ops.plugins.module_utils.process import identity
from ansible_collections.echo_music.ops.plugins.module_utils.restore import require_no_backup
from ansible_collections.echo_music.ops.plugins.module_utils.set_exclusion import ensure_set_alone
from ansible_collections.echo_music.ops.plugins.module_utils.set_lock import write_lock

STACK = dict(
    layout="classic",
    project="echo",
    containers=dict(database=dict(name="echo-postgres"), app=dict(name="echo-app")),
    volumes=[],
    deployment=dict(files=[]),
)
FACTS = dict(parts=[], running=["echo-postgres", "echo-app"])


class StoppedEngine(FakeEngine):
    """An engine that can start what a restore had stopped."""

    def start(self, name):
        self.set_state(name, "running")


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Records what was asked of ensure_set, and what the journal said meanwhile."""
    engine = StoppedEngine(container("echo-postgres"), container("echo-app", state="exited"))
    folder = str(tmp_path / "state")
    seen = []

    def ensure_set(engine, state, root, check=False, **options):
        seen.append((state, check, Journal("echo", folder).is_held(), engine.container("echo-app")["state"]))
        return dict(changed=True, warnings=[])

    monkeypatch.setattr(set_exclusion, "ensure_set", ensure_set)
    return engine, folder, seen


def break_off(folder, *steps):
    with Journal("echo", folder) as journal:
        journal.begin("restore", **FACTS)
        for step in steps:
            journal.record(step)


def journal_of(folder):
    with open(os.path.join(folder, "echo.json")) as file:
        return json.load(file)


def test_a_set_is_opened_with_the_journal_open(host):
    engine, folder, seen = host
    result = ensure_set_alone(engine, "open", "/sets", folder=folder, stack=STACK)
    assert result == dict(changed=True, warnings=[], reconciled=None)
    assert seen == [("open", False, True, "exited")]
    assert not Journal("echo", folder).is_held()


def test_a_restore_that_broke_off_is_ended_first(host):
    engine, folder, seen = host
    break_off(folder, "stage", "staged", "stop")
    result = ensure_set_alone(engine, "open", "/sets", folder=folder, stack=STACK)
    assert (result["reconciled"]["step"], result["reconciled"]["direction"]) == ("stop", "back")
    assert "broke off at the step stop; it was ended first, back" in result["warnings"][0]
    assert seen == [("open", False, True, "running")]
    assert journal_of(folder)["operation"] is None


def test_a_restore_that_rests_is_none_that_broke_off(host):
    engine, folder, seen = host
    break_off(folder, "stage", "staged", "rest")
    assert ensure_set_alone(engine, "open", "/sets", folder=folder, stack=STACK)["reconciled"] is None
    assert len(seen) == 1
    assert journal_of(folder)["operation"]["steps"][-1]["step"] == "rest"


def test_check_mode_predicts_and_changes_nothing(host):
    engine, folder, seen = host
    break_off(folder, "stage", "staged", "stop")
    before = journal_of(folder)
    result = ensure_set_alone(engine, "open", "/sets", check=True, folder=folder, stack=STACK)
    assert result["reconciled"]["direction"] == "back"
    assert "would be ended first" in result["warnings"][0]
    assert journal_of(folder) == before
    assert seen == [("open", True, False, "exited")]


def test_no_set_while_a_restore_lives(host):
    engine, folder, seen = host
    with Journal("echo", folder):
        with pytest.raises(SetError, match="A restore of this Echo is under way"):
            ensure_set_alone(engine, "open", "/sets", folder=folder, stack=STACK)
        assert seen == []
        predicted = ensure_set_alone(engine, "open", "/sets", check=True, folder=folder, stack=STACK)
    assert "would be refused" in predicted["warnings"][0]


def test_another_stacks_restore_is_its_own_business(host):
    engine, folder, seen = host
    with Journal("other", folder):
        ensure_set_alone(engine, "open", "/sets", folder=folder, stack=STACK)
    assert len(seen) == 1


def test_the_journal_is_of_no_concern_elsewhere(host):
    engine, folder, seen = host
    engine._local = False
    ensure_set_alone(engine, "open", "/sets", folder=folder, stack=STACK)
    ensure_set_alone(engine, "published", "/sets", folder=folder)
    assert [call[0] for call in seen] == ["open", "published"]
    assert not os.path.exists(folder)


def lock(root, owner, project="echo"):
    record = dict(id="backup_2026-11-24_03-00-00", owner=owner, taken="2026-11-24T03:00:00Z", lease=900, parts=[])
    write_lock(str(root), dict(record, quiesced=None, stack=dict(project=project)))


def test_no_restore_under_a_backup(tmp_path):
    require_no_backup(str(tmp_path / "none"), STACK)
    require_no_backup(None, STACK)
    lock(tmp_path, identity())
    with pytest.raises(SetError, match="backup_2026-11-24_03-00-00 of this Echo is under way") as caught:
        require_no_backup(str(tmp_path), STACK)
    assert caught.value.details["under_way"]["id"] == "backup_2026-11-24_03-00-00"
    require_no_backup(str(tmp_path), dict(STACK, project="other"))


def test_a_dead_backup_stops_no_restore(tmp_path):
    machine, pid, unused = identity().split(" ")
    lock(tmp_path, "%s %s 1" % (machine, pid))
    require_no_backup(str(tmp_path), STACK)


def test_a_lock_that_cannot_be_understood_may_be_ours(tmp_path):
    (tmp_path / ".lock").write_text("{")
    with pytest.raises(SetError, match="is under way"):
        require_no_backup(str(tmp_path), STACK)
