# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Outcomes are counted whatever happens to their file; metrics tell of the sets and of them."""

from __future__ import annotations

import json
import os
import stat
import threading

import made_sets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus import needs_promtool, promtool
from test_backup_set import SmallEngine, back_up, make_stack

from ansible_collections.echo_music.ops.plugins.module_utils import metrics
from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.metrics import Family, render, update
from ansible_collections.echo_music.ops.plugins.module_utils.outcomes import name_of, read_outcomes, record
from ansible_collections.echo_music.ops.plugins.module_utils.proof import fingerprint
from ansible_collections.echo_music.ops.plugins.module_utils.proof import record as record_proof


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "backups" / "echo")


@pytest.fixture
def state(tmp_path):
    return str(tmp_path / "state" / "outcomes")


@pytest.fixture
def textfiles(tmp_path):
    (tmp_path / "textfiles").mkdir()
    return str(tmp_path / "textfiles")


@pytest.fixture
def make_set(tmp_path, root):
    return lambda **options: back_up(SmallEngine(tmp_path / "engine.json"), root, make_stack(tmp_path), **options)


def value(result, name, **labels):
    found = [s["value"] for s in result["metrics"][name] if labels.items() <= s["labels"].items()]
    assert len(found) <= 1
    return found[0] if found else None


# -- outcomes ---------------------------------------------------------------------------------


def test_a_failure_leaves_the_last_success(root, state):
    record(root, "backup", "success", 1000.0, 12.5, folder=state)
    record(root, "backup", "failure", 2000.0, 3.5, folder=state)
    record(root, "verify", "success", 2500.0, alarms=2, folder=state)
    assert read_outcomes(root, state) == {
        "backup": {
            "runs": {"success": 1, "failure": 1},
            "last": {"outcome": "failure", "seconds": 3.5, "alarms": 0},
            "finished": {"success": 1000.0, "failure": 2000.0},
        },
        "verify": {
            "runs": {"success": 1, "failure": 0},
            "last": {"outcome": "success", "seconds": None, "alarms": 2},
            "finished": {"success": 2500.0},
        },
    }
    path = os.path.join(state, name_of(root) + ".json")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100000,
        b'{"format": "echo-outcomes/2", "operations": {}}',
        b'{"format": "echo-outcomes/1", "operations": []}',
        b'{"format": "echo-outcomes/1", "operations": {"backup": {}}}',
        b'{"format": "echo-outcomes/1", "operations": {"backup": {"runs": {"success": "1"}, '
        b'"last": {"outcome": "success", "seconds": 1, "alarms": 0}, "finished": {"success": 1}}}}',
        b'{"format": "echo-outcomes/1", "operations": {"backup": {"runs": {"success": 1}, '
        b'"last": {"outcome": "success", "seconds": 1, "alarms": 0}, "finished": {}}}}',
        b'{"format": "echo-outcomes/1", "operations": {"backup": {"runs": {"success": 1}, '
        b'"last": {"outcome": "odd", "seconds": 1, "alarms": 0}, "finished": {"success": 1}}}}',
    ],
)
def test_a_damaged_file_is_begun_anew(root, state, text):
    os.makedirs(state)
    with open(os.path.join(state, name_of(root) + ".json"), "wb") as damaged:
        damaged.write(text)
    assert read_outcomes(root, state) == {}
    record(root, "backup", "failure", 5.0, folder=state)
    assert read_outcomes(root, state)["backup"]["runs"] == {"success": 0, "failure": 1}


def test_outcomes_at_the_same_time_are_all_counted(root, state):
    threads = [
        threading.Thread(target=record, args=(root, operation, "success", float(n)), kwargs=dict(folder=state))
        for n in range(10)
        for operation in ("backup", "verify")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read_outcomes(root, state)[name]["runs"]["success"] for name in ("backup", "verify")] == [10, 10]


@given(st.text(min_size=1), st.text(min_size=1))
def test_each_root_has_a_name_of_its_own(one, other):
    one, other = (os.path.abspath("/" + path.replace("\0", "")) for path in (one, other))
    assert "/" not in name_of(one) and name_of(one).isascii()
    assert (name_of(one) == name_of(other)) == (one.strip("/") == other.strip("/"))


def test_the_name_of_the_usual_root():
    assert name_of("/var/backups/echo") == name_of("/var/backups/echo/") == "var-backups-echo"
    assert name_of("/") == "-"


# -- metrics ----------------------------------------------------------------------------------


def test_a_success_is_told(root, state, textfiles, make_set):
    made = make_set()["set"]
    result = update(root, textfiles, "backup", "success", 4.5, 1, state=state)
    assert result["changed"] and result["warnings"] == []
    assert value(result, "echo_runs_total", operation="backup", outcome="success") == 1
    assert value(result, "echo_last_run_success") == 1
    assert value(result, "echo_last_run_duration_seconds") == 4.5
    assert value(result, "echo_last_run_alarms") == 1
    assert value(result, "echo_backup_sets") == 1
    assert value(result, "echo_backup_set_timestamp_seconds") == 1795489201  # the dump's 2026-11-24T03:00:01Z
    assert value(result, "echo_backup_set_bytes") == made["bytes_out"]
    assert value(result, "echo_backup_part_bytes", file="uploads.tar.gz") == 140
    assert value(result, "echo_backup_part_read_bytes", file="uploads.tar.gz", component="uploads") == 280
    assert value(result, "echo_backup_part_duration_seconds", file="uploads.tar.gz") == 0.1
    assert value(result, "echo_backup_proven_timestamp_seconds") is None
    assert value(result, "echo_backup_set_least_share") is None
    assert value(result, "echo_backup_root_free_bytes") > 0
    with open(result["file"]) as file:
        text = file.read()
    assert 'echo_backup_sets{root="%s"} 1\n' % root in text
    assert stat.S_IMODE(os.stat(result["file"]).st_mode) == 0o644
    assert os.listdir(textfiles) == [os.path.basename(result["file"])]


def test_a_failure_takes_nothing_of_the_success_back(root, state, textfiles, make_set):
    make_set()
    before = update(root, textfiles, "backup", "success", 4.5, state=state)
    after = update(root, textfiles, "backup", "failure", 1.5, state=state)
    assert value(after, "echo_last_run_success") == 0
    assert value(after, "echo_runs_total", outcome="failure") == 1
    same = [name for name in before["metrics"] if name.startswith("echo_backup_") and "free" not in name]
    for name in same + ["echo_last_success_timestamp_seconds"]:
        assert after["metrics"][name] == before["metrics"][name]


def test_a_drill_tells_what_is_proven_and_how_long_a_restore_takes(root, state, make_set):
    folder = make_set()["set"]["path"]
    proof = dict(level="drill", passed=True, finished="2026-11-25T04:00:00Z", rto_seconds=61.5)
    record_proof(folder, dict(proof, manifest_sha256=fingerprint(folder)))
    result = update(root, state=state)
    assert not result["changed"] and result["file"] is None
    assert value(result, "echo_backup_proven_timestamp_seconds") == 1795489201
    assert value(result, "echo_backup_drill_timestamp_seconds") == 1795579200
    assert value(result, "echo_backup_restore_duration_seconds") == 61.5


def _let_it_hold(made, size):
    """Let a set's manifest say that its uploads were of that size."""
    path = os.path.join(made["path"], "manifest.json")
    with open(path) as file:
        manifest = json.load(file)
    for artifact in manifest["artifacts"]:
        if artifact["component"] == "uploads":
            artifact["bytes_in"] = size
    with open(path, "w") as file:
        json.dump(manifest, file)


def test_a_set_that_shrank_shows(root, state, make_set):
    for size in (10**6, 400000, 300000):
        _let_it_hold(make_set()["set"], size)
    assert value(update(root, state=state), "echo_backup_set_least_share") == 0.3


def test_sets_of_other_components_are_not_compared(root, state, make_set):
    _let_it_hold(make_set()["set"], 10**6)
    make_set(components=["config"])
    assert value(update(root, state=state), "echo_backup_set_least_share") is None


def test_copies_of_the_database_alone_do_not_hide_that_the_rest_is_old(tmp_path, state):
    root = str(tmp_path)
    old = [made_sets.make_set(root, age) for age in (5, 3)]
    hourly = [made_sets.make_set(root, age / 24.0, components=["database"]) for age in (2, 1)]
    for name in (old[0], hourly[1]):
        proof = dict(level="drill", passed=True, finished="2026-11-24T04:00:00Z", rto_seconds=1.0)
        record_proof(os.path.join(root, name), dict(proof, manifest_sha256=fingerprint(os.path.join(root, name))))
    result = update(root, state=state)
    day = made_sets.DAY
    assert value(result, "echo_backup_set_timestamp_seconds", root=root) == made_sets.NOW - 3 * day
    assert value(result, "echo_backup_proven_timestamp_seconds", root=root) == made_sets.NOW - 5 * day
    made_sets.make_set(root, 0, components=["database", "data"])
    assert value(update(root, state=state), "echo_backup_set_timestamp_seconds") == made_sets.NOW


def test_one_project_does_not_hide_another(tmp_path, state):
    root = str(tmp_path)
    made_sets.make_set(root, 3)
    assert update(root, state=state)["metrics"]["echo_backup_set_timestamp_seconds"][0]["labels"] == dict(root=root)
    made_sets.make_set(root, 1, project="other")
    result = update(root, state=state)
    moments = [value(result, "echo_backup_set_timestamp_seconds", root=root, project=name) for name in ("echo", "other")]
    assert moments == [made_sets.NOW - 3 * made_sets.DAY, made_sets.NOW - made_sets.DAY]


def test_without_sets_the_rest_is_told(root, state, textfiles):
    result = update(root, textfiles, "backup", "failure", state=state)
    assert value(result, "echo_backup_sets") == 0
    assert value(result, "echo_backup_set_timestamp_seconds") is None
    assert value(result, "echo_last_success_timestamp_seconds") is None


def test_a_disk_that_fails_keeps_no_failure_from_being_told(root, state, textfiles, monkeypatch):
    def fails(unused_root):
        raise SetError("Could not list %s: Input/output error." % root)

    monkeypatch.setattr(metrics, "list_sets", fails)
    result = update(root, textfiles, "backup", "failure", state=state)
    assert value(result, "echo_runs_total", outcome="failure") == 1
    assert "Input/output error" in result["warnings"][0]
    assert "echo_backup_sets" not in result["metrics"]


def test_check_mode_writes_nothing(root, state, textfiles):
    result = update(root, textfiles, "backup", "success", check=True, state=state)
    assert result["changed"] and value(result, "echo_runs_total", outcome="success") == 1
    assert os.listdir(textfiles) == [] and not os.path.exists(state)


def test_a_folder_that_is_not_there_is_no_failure(root, state, tmp_path):
    result = update(root, str(tmp_path / "none"), "backup", "success", state=state)
    assert result["changed"] and result["file"] is None


def test_a_file_that_cannot_be_replaced_stays_whole(root, state, textfiles, monkeypatch):
    first = update(root, textfiles, "backup", "success", state=state)

    def fails(*unused):
        raise OSError(28, "No space left on device")

    with open(first["file"]) as file:
        before = file.read()
    monkeypatch.setattr(metrics.os, "replace", fails)
    with pytest.raises(SetError, match="No space left"):
        metrics.publish(first["file"], "echo 1\n")
    with open(first["file"]) as file:
        assert file.read() == before
    assert os.listdir(textfiles) == [os.path.basename(first["file"])]


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("1970-01-01T00:00:10Z", 10),
        ("1970-01-01T00:00:10.25Z", 10.25),
        ("1970-01-01T02:00:10+02:00", 10),
        ("1969-12-31T23:30:10-00:30", 10),
        ("1970-01-01T00:00:10", None),
        ("1970-13-01T00:00:10Z", None),
        (None, None),
    ],
)
def test_times(text, seconds):
    assert metrics._epoch(text) == seconds


# -- text -------------------------------------------------------------------------------------


def test_the_text_is_escaped():
    family = Family("echo_x", "gauge", "One\\two\nthree.", [({"root": 'a"b\\c\nd'}, 1.5), ({}, 2)])
    assert render([family, Family("echo_none", "gauge", "None.", [])]) == (
        "# HELP echo_x One\\\\two\\nthree.\n"
        "# TYPE echo_x gauge\n"
        'echo_x{root="a\\"b\\\\c\\nd"} 1.5\n'
        "echo_x 2\n"
    )


@needs_promtool
def test_prometheus_accepts_what_is_told(root, state, make_set):
    for unused in range(2):
        made = make_set()["set"]
        _let_it_hold(made, 10**6)
    folder = made["path"]
    proof = dict(level="drill", passed=True, finished="2026-11-25T04:00:00Z", rto_seconds=61.5)
    record_proof(folder, dict(proof, manifest_sha256=fingerprint(folder)))
    record(root, "backup", "success", 900.0, 2.5, folder=state)
    record(root, "backup", "failure", 1000.5, 2.25, folder=state)
    found, unused_warnings = metrics.families(root, read_outcomes(root, state), 2000.125)
    assert all(family.samples for family in found)
    assert promtool("check", "metrics", text=render(found)) == (0, "")


@needs_promtool
@settings(deadline=None, max_examples=10)
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_prometheus_accepts_any_label(numbers):
    family = Family("echo_x", "gauge", "Help.", [({"root": label}, number) for label, number in numbers.items()])
    assert promtool("check", "metrics", text=render([family])) == (0, "")
