# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A part knows its state from the disk, so any run may go on with it."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import restore_parts
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, DatabaseError, SetError
from ansible_collections.echo_music.ops.plugins.module_utils.restore_parts import make_part

TAG = "6f1c2a9b"
LIKE = dict(encoding="UTF8", collate="C", ctype="C", owner="echo", server_version_num=150018, extensions=[])


@pytest.fixture
def facts(tmp_path):
    for name, content in (("comes", "new"), ("live", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cover.jpg").write_text(content)
    archive = tmp_path / "uploads.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "comes", "."], check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return dict(component="uploads", kind="archive", live=str(tmp_path / "live"), file=str(archive), sha256=digest)


def cover(facts):
    with open(os.path.join(facts["live"], "cover.jpg")) as file:
        return file.read()


def test_a_volume_goes_there_and_back(facts):
    make_part(None, TAG, facts).stage()
    assert cover(facts) == "old"
    for unused in range(2):
        make_part(None, TAG, facts).swap()
        assert make_part(None, TAG, facts).is_swapped()
        assert cover(facts) == "new"
    for unused in range(2):
        make_part(None, TAG, facts).swap_back()
        assert not make_part(None, TAG, facts).is_swapped()
        assert cover(facts) == "old"
    make_part(None, TAG, facts).discard()
    assert os.listdir(facts["live"]) == ["cover.jpg"]


def test_the_old_volume_is_forgotten(facts):
    part = make_part(None, TAG, facts)
    part.stage()
    part.swap()
    part.forget()
    assert os.listdir(facts["live"]) == ["cover.jpg"]
    part.forget()


def test_a_volume_is_staged_again(facts):
    make_part(None, TAG, facts).stage()
    make_part(None, TAG, facts).stage()
    make_part(None, TAG, facts).swap()
    assert cover(facts) == "new"


def test_another_file_than_the_manifest_tells_of(facts):
    with pytest.raises(ArchiveError, match="SHA-256"):
        make_part(None, TAG, dict(facts, sha256="00" * 32)).stage()
    assert os.listdir(facts["live"]) == ["cover.jpg"]


def test_the_room_that_a_volume_needs(facts):
    assert make_part(None, TAG, dict(facts, bytes_in=4711)).needs() == (facts["live"], 4711)
    assert make_part(None, TAG, facts).needs() == (facts["live"], 10240)
    plain = facts["file"][:-3]
    subprocess.run(["gunzip", "--keep", facts["file"]], check=True)
    assert make_part(None, TAG, dict(facts, file=plain)).needs() == (facts["live"], 10240)


def test_a_volume_that_is_not_mounted(facts):
    with pytest.raises(SetError, match="is not there"):
        make_part(None, TAG, dict(facts, live="/nowhere")).check_plan()


class SmallServer:
    """The side database, and what the live one says of itself."""

    def __init__(self, monkeypatch, staged, live):
        self.done = []
        monkeypatch.setattr(restore_parts, "SideDatabase", lambda database, tag: self)
        monkeypatch.setattr(restore_parts.Database, "describe", lambda database: dict(tables=live))
        self.staged = staged

    def create(self, like):
        self.done.append("create")

    def load(self, path, kind):
        self.done.append("load " + kind)

    def finish(self, owner):
        self.done.append("finish " + owner)

    def count(self):
        return self.staged


def database_part(tmp_path, **more):
    dump = tmp_path / "postgres_dump.backup"
    dump.write_bytes(b"PGDMP")
    facts = dict(component="database", kind="custom", file=str(dump), bytes=5, container="echo-postgres", name="echo")
    facts.update(like=LIKE, recorded=None, folder="/var", tables=None)
    return make_part(None, TAG, dict(facts, **more))


def test_a_database_is_loaded_and_counted(tmp_path, monkeypatch):
    server = SmallServer(monkeypatch, {"public.users": 5}, {})
    assert database_part(tmp_path, tables={"public.users": 5}).stage() == {"public.users": 5}
    assert server.done == ["create", "load custom", "finish echo"]


@pytest.mark.parametrize(
    "expected, staged, reason",
    [
        ({"public.users": 5}, {"public.users": 4}, "public.users has 4 rows instead of 5"),
        (None, {}, "There is no table"),
    ],
)
def test_a_dump_that_is_not_what_it_should_be(tmp_path, monkeypatch, expected, staged, reason):
    SmallServer(monkeypatch, staged, {})
    with pytest.raises(DatabaseError, match=reason):
        database_part(tmp_path, tables=expected).stage()


def test_a_dump_that_was_changed_is_not_loaded(tmp_path, monkeypatch):
    server = SmallServer(monkeypatch, {}, {})
    with pytest.raises(DatabaseError, match="manifest"):
        database_part(tmp_path, sha256="00" * 32).stage()
    assert server.done == []


def test_rows_that_come_and_go_are_the_apps_business(tmp_path, monkeypatch):
    SmallServer(monkeypatch, {}, {"public.users": 4, "public.new": 0})
    part = database_part(tmp_path)
    assert part.verify({"public.users": 5, "public.empty": 0})["public.users"] == 4
    with pytest.raises(DatabaseError, match="lost rows: public.tracks"):
        part.verify({"public.tracks": 5})


def test_the_room_that_a_database_needs(tmp_path, monkeypatch):
    SmallServer(monkeypatch, {}, {})
    assert database_part(tmp_path).needs() == ("/var", 40)
    assert database_part(tmp_path, recorded=dict(bytes=4711)).needs() == ("/var", 4711)
