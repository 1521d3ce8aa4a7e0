# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard lets a quiesced app run again, whatever became of the backup."""

from __future__ import annotations

import json
import os
import time

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import set_guard, set_lock
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EngineError
from ansible_collections.echo_music.ops.plugins.module_utils.process import identity
from ansible_collections.echo_music.ops.plugins.module_utils.set_lock import read_lock, write_lock

ID = "backup_2026-11-24_03-00-00"


class PausedApp:
    """An engine with one paused container, whose state is a file that other processes see."""

    def __init__(self, path, failures=0):
        self.path = path
        self.failures = failures

    def anew(self):
        return self

    def container(self, name):
        if self.failures:
            self.failures -= 1
            raise EngineError("The engine is away.")
        return dict(name=name, state=self.path.read_text())

    def unpause(self, unused_name):
        self.path.write_text("running")


@pytest.fixture
def app(tmp_path):
    state = tmp_path / "state"
    state.write_text("paused")
    return state


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "sets"
    (folder / (".%s.partial" % ID)).mkdir(parents=True)
    return str(folder)


def lock(root, owner, quiesced=True, stack=None):
    record = dict(
        id=ID,
        owner=owner,
        taken="2026-11-24T03:00:00Z",
        lease=900,
        parts=[],
        stack=stack or {},
        quiesced=dict(mode="pause", container="echo-app") if quiesced else None,
    )
    write_lock(root, record)


def dead():
    return identity() + "0"


def test_a_set_whose_owner_died_is_given_up_and_its_app_runs(app, root):
    lock(root, dead())
    set_guard.guard(PausedApp(app), root, ID, poll=0)
    assert app.read_text() == "running"
    assert read_lock(root) is None
    assert not [name for name in os.listdir(root) if "partial" in name]


def test_an_app_that_a_migration_holds_back_stays_as_it_is(app, root, monkeypatch):
    asked = []
    monkeypatch.setattr(set_lock, "leave_stopped", lambda project, name: asked.append((project, name)) or True)
    lock(root, dead(), stack=dict(project="music"))
    set_guard.guard(PausedApp(app), root, ID, poll=0)
    assert app.read_text() == "paused" and asked == [("music", "echo-app")]
    assert read_lock(root) is None


def test_an_engine_that_is_away_is_tried_again(app, root):
    lock(root, dead())
    set_guard.guard(PausedApp(app, failures=3), root, ID, poll=0)
    assert app.read_text() == "running"


def test_the_lease_counts_where_the_owner_is_unknown(app, root):
    lock(root, "")
    os.utime(os.path.join(root, ".%s.partial" % ID), (0, 0))
    os.utime(os.path.join(root, ".lock"), (0, 0))
    set_guard.guard(PausedApp(app), root, ID, poll=0)
    assert app.read_text() == "running"


@pytest.mark.parametrize("end", ["released", "resumed", "taken over"])
def test_a_set_that_ended_needs_no_guard(app, root, end):
    if end == "resumed":
        lock(root, dead(), quiesced=False)
    elif end == "taken over":
        lock(root, dead())
    before = json.dumps(read_lock(root))
    set_guard.guard(PausedApp(app), root, "backup_2026-11-23_03-00-00" if end == "taken over" else ID, poll=0)
    assert app.read_text() == "paused"
    assert json.dumps(read_lock(root)) == before


def test_a_guard_lives_on_by_itself(app, root):
    lock(root, dead())
    set_guard.start(PausedApp(app), root, ID)
    deadline = time.monotonic() + 10
    while app.read_text() != "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert app.read_text() == "running"
