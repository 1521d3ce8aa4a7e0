# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the journal tells is the last thing that was recorded, whenever its writer dies."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.module_utils import set_files
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.journal import Journal, JournalError, read

WRITER = """
import sys
from ansible_collections.echo_music.ops.plugins.module_utils.journal import Journal
with Journal("echo", sys.argv[1]) as journal:
    journal.begin("restore")
    number = 0
    while True:
        journal.record("step", number=number)
        print(number, flush=True)
        number += 1
"""


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "state")


def test_what_is_recorded_is_read_again(folder):
    with Journal("echo", folder) as journal:
        assert (journal.operation, journal.kept) == (None, None)
        operation = journal.begin("restore", source="latest")
        journal.record("stop", containers=["echo-app"])
    with Journal("echo", folder) as journal:
        assert journal.operation["id"] == operation
        assert journal.operation["facts"] == {"source": "latest"}
        assert journal.last("stop") == {"containers": ["echo-app"]}
        assert journal.last("start") is None
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(folder + "/echo.json").st_mode) == 0o600


def test_an_ended_operation_is_told_until_it_is_forgotten(folder):
    with Journal("echo", folder) as journal:
        first = journal.begin("restore", until=1)
        journal.end(journal.operation)
        journal.begin("restore")
        journal.end(journal.kept)
    with Journal("echo", folder) as journal:
        assert journal.operation is None
        assert (journal.kept["id"], journal.kept["facts"]) == (first, {"until": 1})
        journal.forget([])
    assert read(folder + "/echo.json") == {"operation": None, "kept": None, "owed": [], "unstarted": False}


def test_one_at_a_time(folder):
    with Journal("echo", folder):
        with pytest.raises(JournalError, match="Another restore is at work"):
            with Journal("echo", folder):
                pass
        with Journal("other", folder):
            pass
    with Journal("echo", folder):
        pass


def test_a_killed_writer_leaves_the_last_step_that_it_told(folder):
    for wait in (0.0, 0.01, 0.05):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
        )
        writer.stdout.readline()
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        told = int((writer.communicate()[0].split() or [b"0"])[-1])
        with Journal("echo", folder) as journal:
            # One step may stand there that its writer could no longer tell of.
            assert journal.last("step")["number"] in (told, told + 1)
            journal.end()


def test_a_torn_write_is_never_read(folder, monkeypatch):
    with Journal("echo", folder) as journal:
        journal.begin("restore")

        def torn(path, data):
            with open(path, "wb") as target:
                target.write(data[: len(data) // 2])
            raise set_files.SetError("The power went.")

        monkeypatch.setattr(set_files, "write_file", torn)
        with pytest.raises(EchoError):
            journal.record("stop")
    with Journal("echo", folder) as journal:
        assert [step["step"] for step in journal.operation["steps"]] == ["begin"]


@pytest.mark.parametrize("size", [0, 1, 40, -1])
def test_a_journal_that_was_cut_is_refused(folder, size):
    with Journal("echo", folder) as journal:
        journal.begin("restore")
    text = open(folder + "/echo.json").read().rstrip()
    open(folder + "/echo.json", "w").write(text[:size])
    with pytest.raises(JournalError, match="can't be understood"):
        with Journal("echo", folder):
            pass


@pytest.mark.parametrize("name", ["", "../echo", "a/b", "-", "x" * 101])
def test_a_name_that_would_lead_elsewhere(folder, name):
    with pytest.raises(JournalError):
        Journal(name, folder)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)), st.data())
def test_no_content_breaks_the_reader(tmp_path, value, data):
    step = {"step": "begin", "time": 1.5, "data": {}}
    operation = {"id": "00000000", "kind": "restore", "facts": {}, "steps": [step]}
    content = {"format": "echo-journal/1", "operation": operation, "kept": None, "owed": [operation], "unstarted": True}
    target = data.draw(st.sampled_from([step, operation, content]))
    target[data.draw(st.sampled_from(sorted(target)))] = value
    path = tmp_path / "echo.json"
    path.write_text(json.dumps(content))
    try:
        assert set(read(str(path))) == {"operation", "kept", "owed", "unstarted"}
    except JournalError:
        pass
