# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one layout has finds its place in the other, and everything else there stays."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import exchange
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, SetError
from ansible_collections.echo_music.ops.plugins.module_utils.restore_layout import (
    moved_folders,
    moves,
    place,
    stored_paths,
)
from ansible_collections.echo_music.ops.plugins.module_utils.restore_parts import make_part

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners are given by root only")

TAG = "6f1c2a9b"
ROLES = {"classic": ("database", "uploads", "config", "logs", "redis"), "unified": ("database", "data", "redis")}
CLASSIC_FILES = {
    "uploads": {"music/a.mp3": "a", "music/sub/b.mp3": "b", "covers/1.jpg": "1", "odd": "odd"},
    "config": {"secrets.env": "JWT_SECRET=classic\n"},
}
UNIFIED_FILES = {
    "secrets.env": "JWT_SECRET=unified\n",
    "setup.json": "{}",
    "metadata/artist": "m",
    "covers/9.jpg": "9",
    "uploads/z.mp3": "z",
    "logs/echo.log": "log",
}


def stack(layout):
    return dict(layout=layout, volumes=[dict(role=role, source="/" + role) for role in ROLES[layout]])


def source(name):
    return dict(file="/set/%s.tar.gz" % name, kind="archive", bytes=1)


def placed(layout, *components):
    return place(dict((name, source(name)) for name in components), stack(layout))


@pytest.mark.parametrize("layout, components", [("classic", ("uploads", "config", "logs")), ("unified", ("data",))])
def test_nothing_moves_between_equal_layouts(layout, components):
    found = placed(layout, "database", *components)
    assert [(name, part["role"], part["places"]) for name, part in found.items()] == [
        (name, name, None) for name in ("database",) + components
    ]
    assert moved_folders(found) == [] and moves(found["database"]) == []


def test_the_cache_is_in_the_volume_of_redis():
    assert placed("unified", "cache")["cache"]["role"] == "redis"


def test_classic_onto_unified():
    found = placed("unified", "database", "uploads", "config")
    assert [(name, part["role"]) for name, part in found.items()] == [
        ("database", "database"),
        ("uploads", "data"),
        ("config", "data"),
    ]
    assert moves(found["uploads"]) == [{"from": "covers", "to": "covers"}, {"from": "music", "to": "uploads"}]
    assert moves(found["config"]) == [{"from": "secrets.env", "to": "secrets.env"}]
    assert moved_folders(found) == ["/app/config", "/app/uploads"]


def test_unified_onto_classic():
    found = placed("classic", "database", "data")
    assert [(name, part["role"], part.get("file")) for name, part in found.items()][1:] == [
        ("uploads", "uploads", "/set/data.tar.gz"),
        ("config", "config", "/set/data.tar.gz"),
    ]
    assert moves(found["uploads"]) == [{"from": "covers", "to": "covers"}, {"from": "uploads", "to": "music"}]
    assert moved_folders(found) == ["/app/data"]
    # The one archive isn't asked for its room twice.
    assert found["config"]["room"] and "room" not in found["uploads"]


@pytest.mark.parametrize("layout", ["classic", "unified"])
def test_both_layouts_in_one_folder(layout):
    with pytest.raises(SetError, match="either data, or uploads and config"):
        placed(layout, "uploads", "data")


def test_a_volume_that_nobody_has_stays_the_question_that_it_is():
    assert placed("unified", "logs")["logs"]["role"] == "logs"


class Paths:
    """A database that was asked for paths."""

    def __init__(self, *found):
        self.asked = []
        self._found = list(found)

    def query(self, statement):
        self.asked.append(statement)
        return [json.dumps(self._found)]


def test_whole_paths_in_the_database_are_told_of():
    database = Paths(dict(column="public.albums.cover_path", rows=7))
    assert stored_paths(database, ["/app/config", "/app/uploads"]) == [
        "7 values of public.albums.cover_path are paths into /app/config or /app/uploads, where this stack has no files."
    ]
    assert "'^(/app/config|/app/uploads)/'" in database.asked[0]
    database = Paths()
    assert stored_paths(database, []) == [] and database.asked == []


# -- files -----------------------------------------------------------------------------------------


def fill(folder, files, owner=1001):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    subprocess.run(["chown", "-R", "%d:%d" % (owner, owner), str(folder)], check=True)


def pack(tmp_path, name, files, prefix=".", owner=1001):
    folder = tmp_path / ("packed-" + name)
    folder.mkdir()
    fill(folder, files, owner)
    archive = tmp_path / (name + ".tar.gz")
    subprocess.run(
        ["tar", "-czf", str(archive), "--transform", "s,^\\.,%s," % prefix, "-C", str(folder), "."], check=True
    )
    return str(archive)


def content(folder, owners=False):
    found = {}
    for above, folders, files in os.walk(str(folder)):
        folders[:] = [name for name in folders if not name.startswith(".echo-restore-")]
        for name in files:
            path = os.path.join(above, name)
            with open(path) as file:
                found[os.path.relpath(path, str(folder))] = os.stat(path).st_uid if owners else file.read()
    return found


class Host:
    """A stack with files, and the parts of a restore onto it."""

    def __init__(self, tmp_path, layout, archives, ours=False):
        self.volumes = dict((role, tmp_path / layout / role) for role in ROLES[layout])
        for volume in self.volumes.values():
            volume.mkdir(parents=True)
        if layout == "unified":
            fill(self.volumes["data"], UNIFIED_FILES, owner=1005)
        else:
            for role, files in CLASSIC_FILES.items():
                fill(self.volumes[role], files)
        sources = dict((name, dict(file=path, kind="archive", bytes=1)) for name, path in archives.items())
        for part in sources.values() if ours else ():
            with open(part["file"], "rb") as file:
                part["sha256"] = hashlib.sha256(file.read()).hexdigest()
        self.facts = [
            dict(part, component=name, live=str(self.volumes[part["role"]]))
            for name, part in place(sources, stack(layout)).items()
        ]

    def parts(self):
        """Make the parts anew, as each run does, from what the journal keeps."""
        self.facts = json.loads(json.dumps(self.facts))
        return [make_part(None, TAG, facts) for facts in self.facts]

    def each(self, doing):
        for part in self.parts():
            getattr(part, doing)()

    def content(self):
        return dict((role, content(volume)) for role, volume in self.volumes.items())


@pytest.fixture
def unified(tmp_path):
    return Host(tmp_path, "unified", dict((name, pack(tmp_path, name, files)) for name, files in CLASSIC_FILES.items()))


@pytest.fixture
def classic(tmp_path):
    return Host(tmp_path, "classic", dict(data=pack(tmp_path, "data", UNIFIED_FILES, prefix="./data")))


def test_files_of_classic_onto_unified_and_back(unified):
    before = unified.content()
    unified.each("stage")
    assert unified.content() == before
    unified.each("swap")
    unified.each("swap")
    assert unified.content()["data"] == {
        "uploads/a.mp3": "a",
        "uploads/sub/b.mp3": "b",
        "covers/1.jpg": "1",
        "secrets.env": "JWT_SECRET=classic\n",
        "setup.json": "{}",
        "metadata/artist": "m",
        "logs/echo.log": "log",
    }
    # The app runs as another user here.
    assert set(content(unified.volumes["data"], owners=True).values()) == {1005}
    assert "without a place here: odd." in unified.facts[0]["remarks"][0]
    (unified.volumes["data"] / "metadata" / "since").write_text("since")
    before["data"]["metadata/since"] = "since"
    assert [part.is_swapped() for part in unified.parts()] == [True, True]
    unified.each("swap_back")
    unified.each("swap_back")
    assert unified.content() == before
    unified.each("discard")
    assert [name for name in os.listdir(str(unified.volumes["data"])) if name.startswith(".echo")] == []


def test_files_of_unified_onto_classic_and_forgotten(classic):
    before = classic.content()
    classic.each("stage")
    assert classic.content() == before
    classic.each("swap")
    assert classic.content() == dict(
        before,
        uploads={"music/z.mp3": "z", "covers/9.jpg": "9", "odd": "odd"},
        config={"secrets.env": "JWT_SECRET=unified\n"},
    )
    # Both parts say the same of the archive, which has the files of the other, too.
    assert classic.facts[0]["remarks"] == classic.facts[1]["remarks"]
    assert "without a place here: logs, metadata, setup.json." in classic.facts[0]["remarks"][0]
    classic.each("forget")
    assert sorted(os.listdir(str(classic.volumes["uploads"]))) == ["covers", "music", "odd"]


def test_what_a_backup_lacks_is_not_taken_away(tmp_path):
    host = Host(tmp_path, "unified", dict(config=pack(tmp_path, "config", {})))
    before = host.content()
    host.each("stage")
    host.each("swap")
    assert host.content() == before


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("then", ["swap", "swap_back"])
@pytest.mark.parametrize("first", ["swap", "swap_back"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_broken_off_at_any_rename(tmp_path, monkeypatch, first, then, after):
    """Two parts in one volume, and a crash in any rename of either."""
    archives = dict((name, pack(tmp_path, name, files)) for name, files in CLASSIC_FILES.items())
    for number in range(1, 30):
        (tmp_path / str(number)).mkdir()
        host = Host(tmp_path / str(number), "unified", archives)
        contents = dict(swap_back=host.content())
        host.each("stage")
        host.each("swap")
        contents["swap"] = host.content()
        if first == "swap":
            host.each("swap_back")
        renames = []

        def rename(source, target):
            renames.append(source)
            if len(renames) == number and not after:
                raise Crash
            os_rename(source, target)
            if len(renames) == number:
                raise Crash

        os_rename = os.rename
        with monkeypatch.context() as patched:
            patched.setattr(exchange.os, "rename", rename)
            try:
                host.each(first)
                broken = False
            except Crash:
                broken = True
        host.each(then)
        assert host.content() == contents[then]
        if not broken:
            assert number > 6
            return
    raise AssertionError("It never came to its end.")


def test_a_second_name_of_what_has_no_place(tmp_path):
    folder = tmp_path / "linked"
    fill(folder, {"aside/first": "x"})
    (folder / "uploads").mkdir()
    archive = tmp_path / "data.tar.gz"
    os.link(str(folder / "aside" / "first"), str(folder / "uploads" / "second"))
    subprocess.run(["tar", "-czf", str(archive), "-C", str(folder), "./aside", "./uploads"], check=True)
    host = Host(tmp_path, "classic", dict(data=str(archive)))
    before = host.content()
    with pytest.raises(ArchiveError, match="second name of ./aside/first, which has no place"):
        host.each("stage")
    assert host.content() == before


@pytest.mark.parametrize("ours", [True, False])
def test_a_set_of_ours_comes_back_whatever_was_in_its_volumes(tmp_path, ours):
    folder = tmp_path / "packed-odd"
    fill(folder, {"uploads/tool": "x", "covers/1.jpg": "1"})
    os.chmod(str(folder / "uploads" / "tool"), 0o4755)
    os.symlink("/music", str(folder / "uploads" / "library"))
    os.symlink("../../..", str(folder / "covers" / "up"))
    os.mkfifo(str(folder / "covers" / "pipe"))
    archive = tmp_path / "data.tar.gz"
    subprocess.run(["tar", "-czf", str(archive), "-C", str(folder), "."], check=True)
    host = Host(tmp_path, "unified", dict(data=str(archive)), ours)
    if not ours:
        with pytest.raises(ArchiveError, match="not safe to extract"):
            host.each("stage")
        return
    host.each("stage")
    host.each("swap")
    data = host.volumes["data"]
    assert os.stat(str(data / "uploads" / "tool")).st_mode & 0o7777 == 0o755
    assert os.readlink(str(data / "uploads" / "library")) == "/music"
    assert os.readlink(str(data / "covers" / "up")) == "../../.."
    assert sorted(os.listdir(str(data / "covers"))) == ["1.jpg", "up"]
    remarks = " ".join(host.facts[0]["remarks"])
    for said in (
        "tool has the mode 4755",
        "library leads out, to /music",
        "up leads out",
        "pipe is a named pipe and was left out",
    ):
        assert said in remarks
