# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``proof.json``: the last proof of each level, and which sets it makes proven."""

from __future__ import annotations

import json
import os

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils.proof import fingerprint, is_proven, read_proofs, record


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    return str(tmp_path)


def proof(folder, level, passed=True, **more):
    facts = dict(finished="2026-11-24T03:00:00Z", rto_seconds=None, manifest_sha256=fingerprint(folder))
    return dict(facts, level=level, passed=passed, **more)


def test_the_last_proof_of_each_level_is_kept_newest_last(folder):
    for number, level in enumerate(["drill", "checksum", "drill", "structure"]):
        record(folder, proof(folder, level, number=number))
    assert [(p["level"], p["number"]) for p in read_proofs(folder)] == [("checksum", 1), ("drill", 2), ("structure", 3)]
    assert sorted(os.listdir(folder)) == ["manifest.json", "proof.json"]
    assert os.stat(os.path.join(folder, "proof.json")).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "history, proven",
    [
        ([], False),
        ([("checksum", True), ("structure", True)], False),
        ([("drill", True)], True),
        ([("drill", False)], False),
        ([("drill", True), ("checksum", True)], True),
        ([("drill", True), ("checksum", False)], False),
        ([("drill", True), ("checksum", False), ("checksum", True)], True),
        ([("checksum", False), ("drill", True)], True),
        ([("drill", True), ("drill", False), ("checksum", True)], False),
        ([("drill", True), ("structure", False), ("checksum", True)], False),
    ],
)
def test_a_set_is_proven_by_a_drill_that_nothing_contradicts(folder, history, proven):
    for level, passed in history:
        record(folder, proof(folder, level, passed))
    assert is_proven(folder) is proven


def test_a_proof_is_of_one_manifest(folder, tmp_path):
    record(folder, proof(folder, "drill"))
    (tmp_path / "manifest.json").write_text('{"another": 1}')
    assert not is_proven(folder)


def test_a_set_without_a_manifest_can_be_proven(tmp_path):
    record(str(tmp_path), proof(str(tmp_path), "drill"))
    assert is_proven(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"format": "echo-proof/2", "proofs": [{"level": "drill", "passed": true}]}',
        b'{"format": "echo-proof/1", "proofs": 1}',
        b'{"format": "echo-proof/1", "proofs": [1]}',
        b'{"format": "echo-proof/1", "proofs": [{"level": "drill", "passed": "yes"}]}',
        b'{"format": "echo-proof/1", "proofs": [{"level": ["drill"], "passed": true}]}',
        b'{"format": "echo-proof/1", "proofs": [{"level": "drill", "passed": true}]}',
        b'{"format": "echo-proof/1", "proofs": [{"level": "drill", "passed": true, "finished": 1, "rto_seconds": 1}]}',
        b'{"format": "echo-proof/1", "proofs": [{"level": "drill", "passed": true, "finished": "", "rto_seconds": "x"}]}',
        b"[" * 100000,
    ],
)
def test_what_is_no_proof_proves_nothing_and_is_replaced(folder, tmp_path, content):
    (tmp_path / "proof.json").write_bytes(content)
    assert not is_proven(folder)
    record(folder, proof(folder, "drill"))
    assert is_proven(folder)


def test_a_link_is_no_proof(folder, tmp_path):
    record(folder, proof(folder, "drill"))
    os.rename(os.path.join(folder, "proof.json"), os.path.join(folder, "elsewhere"))
    os.symlink("elsewhere", os.path.join(folder, "proof.json"))
    assert not is_proven(folder)


def test_the_file_says_which_set_it_is_of(folder):
    record(folder, proof(folder, "drill"))
    with open(os.path.join(folder, "proof.json")) as written:
        content = json.load(written)
    assert (content["format"], content["set"]) == ("echo-proof/1", os.path.basename(folder))
