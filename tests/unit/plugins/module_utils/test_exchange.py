# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exchange of live and staged data, broken off at each of its steps and ended in either direction."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import exchange, set_files
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners are given by root only")

NEW, OLD = ".echo-restore-7/new", ".echo-restore-7/old"
KEPT = ".echo-restore-6"
STEPS = ("rename", "mkdir", "rmdir", "chown", "chmod", "setxattr", "removexattr", "fsync")


class Crash(BaseException):
    """The process is gone."""


class Clumsy:
    """The module ``os``, in which one of the steps that change the disk, or are to make it durable, is the last."""

    def __init__(self, crash_at=None, after=False):
        self.steps = 0
        self._crash_at = crash_at
        self._after = after

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in STEPS:
            return function

        def step(*args, **kwargs):
            self.steps += 1
            if self.steps == self._crash_at and not self._after:
                raise Crash(name)
            result = function(*args, **kwargs)
            if self.steps == self._crash_at:
                raise Crash(name)
            return result

        return step

    def makedirs(self, path, mode, exist_ok):
        if not os.path.isdir(path):
            self.mkdir(path, mode)


def fill(folder, entries, uid, mode, colour):
    folder.mkdir(exist_ok=True, parents=True)
    for name in entries:
        path = folder / name
        if name.endswith("/"):
            path.mkdir()
            (path / "inside").write_text(folder.name + name)
        else:
            path.write_text(folder.name + name)
    os.chown(str(folder), uid, uid)
    os.chmod(str(folder), mode)
    os.setxattr(str(folder), "user.colour", colour)


def content(folder):
    """What a container sees of a folder, and what it belongs to."""
    status = os.stat(str(folder))
    attributes = {name: os.getxattr(str(folder), name) for name in os.listxattr(str(folder))}
    found = {"": (status.st_uid, stat.S_IMODE(status.st_mode), attributes)}
    for above, folders, files in os.walk(str(folder)):
        if above == str(folder):
            folders[:] = [name for name in folders if not name.startswith(".echo-restore-")]
        for name in files:
            path = os.path.join(above, name)
            with open(path) as file:
                found[os.path.relpath(path, str(folder))] = file.read()
    return found


class Volume:
    def __init__(self, live):
        self.live = live
        fill(live, ["covers/", "music/", "same/", "settings", ".hidden", "only-old"], 999, 0o755, b"old")
        os.setxattr(str(live), "user.only-old", b"1")
        fill(live / KEPT / "old", ["ancient"], 0, 0o700, b"ancient")
        self.old = content(live)
        new = live / NEW
        new.parent.mkdir(mode=0o700)
        fill(new, ["covers/", "same/", "settings", "only-new", ".dot"], 1000, 0o2770, b"new")
        self.new = content(new)

    def call(self, function):
        function(str(self.live), NEW, OLD)

    def is_(self, expected):
        return content(self.live) == expected

    def kept_is_there(self):
        return (self.live / KEPT / "old" / "ancient").exists()


@pytest.fixture
def volumes(tmp_path):
    return (Volume(tmp_path / ("volume%d" % number)) for number in itertools.count())


def test_there_and_back(volumes):
    volume = next(volumes)
    assert not exchange.is_swapped(str(volume.live), OLD)
    for unused in range(2):
        for unused in range(2):
            volume.call(exchange.swap)
            assert volume.is_(volume.new) and exchange.is_swapped(str(volume.live), OLD)
            assert content(volume.live / OLD) == volume.old and not (volume.live / NEW).exists()
        for unused in range(2):
            volume.call(exchange.swap_back)
            assert volume.is_(volume.old) and not exchange.is_swapped(str(volume.live), OLD)
            assert content(volume.live / NEW) == volume.new
    assert volume.kept_is_there()


def crashes(monkeypatch, volume, function, crash_at, after):
    """Break off at a step; tell whether the function had that many."""
    with monkeypatch.context() as patched:
        clumsy = Clumsy(crash_at, after)
        patched.setattr(exchange, "os", clumsy)
        patched.setattr(set_files, "os", clumsy)
        try:
            volume.call(function)
        except Crash:
            return True
    return False


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("then", ["swap", "swap_back"])
@pytest.mark.parametrize("first", ["swap", "swap_back"])
def test_broken_off_at_any_step(volumes, monkeypatch, first, then, after):
    for crash_at in itertools.count(1):
        volume = next(volumes)
        if first == "swap_back":
            volume.call(exchange.swap)
        if not crashes(monkeypatch, volume, getattr(exchange, first), crash_at, after):
            break
        volume.call(getattr(exchange, then))
        assert volume.is_(volume.new if then == "swap" else volume.old), crash_at
        assert volume.kept_is_there()
        volume.call(getattr(exchange, "swap_back" if then == "swap" else "swap"))
        assert volume.is_(volume.old if then == "swap" else volume.new), crash_at
        exchange.discard(str(volume.live), NEW if then == "swap" else OLD)
        assert sorted(name for name in os.listdir(str(volume.live)) if name.startswith(".echo")) == [KEPT], crash_at
    assert crash_at > 20


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_what_was_never_begun_needs_no_way_back(volumes, monkeypatch, after):
    seen = 0
    for crash_at in itertools.count(1):
        volume = next(volumes)
        if not crashes(monkeypatch, volume, exchange.swap, crash_at, after):
            break
        if exchange.is_swapped(str(volume.live), OLD):
            continue
        seen += 1
        exchange.discard(str(volume.live), NEW)
        assert volume.is_(volume.old) and not (volume.live / NEW).parent.exists(), crash_at
    assert seen > 3


def test_broken_off_twice(volumes, monkeypatch):
    for first in range(1, 40, 3):
        for second in range(1, 40, 3):
            volume = next(volumes)
            crashes(monkeypatch, volume, exchange.swap, first, False)
            crashes(monkeypatch, volume, exchange.swap_back, second, True)
            crashes(monkeypatch, volume, exchange.swap, second, False)
            volume.call(exchange.swap_back)
            assert volume.is_(volume.old)
            volume.call(exchange.swap)
            assert volume.is_(volume.new)


def test_what_the_app_wrote_since_goes_back_with_the_new_data(volumes):
    volume = next(volumes)
    volume.call(exchange.swap)
    (volume.live / "written-since").write_text("x")
    volume.call(exchange.swap_back)
    assert volume.is_(volume.old)
    assert (volume.live / NEW / "written-since").exists()


@pytest.mark.parametrize("crash_at", range(1, 5))
def test_what_is_half_discarded_is_never_taken_for_whole(volumes, monkeypatch, crash_at):
    volume = next(volumes)
    volume.call(exchange.swap)
    with monkeypatch.context() as patched:
        clumsy = Clumsy(crash_at, after=True)
        patched.setattr(exchange, "os", clumsy)
        patched.setattr(set_files, "os", clumsy)
        with pytest.raises(Crash):
            exchange.discard(str(volume.live), OLD)
    assert not exchange.is_swapped(str(volume.live), OLD)
    volume.call(exchange.swap_back)
    assert volume.is_(volume.new)
    exchange.discard(str(volume.live), OLD)
    assert not (volume.live / NEW).parent.exists()


def test_discard_leaves_live_data_alone(volumes, monkeypatch):
    volume = next(volumes)
    assert crashes(monkeypatch, volume, exchange.swap, 12, True)
    with pytest.raises(ArchiveError, match="holds live data"):
        exchange.discard(str(volume.live), OLD)
    volume.call(exchange.swap_back)
    assert volume.is_(volume.old)


def test_discard_of_nothing(volumes):
    volume = next(volumes)
    exchange.discard(str(volume.live), ".echo-restore-99/new")
    assert volume.is_(volume.old)


def test_nothing_staged(volumes):
    volume = next(volumes)
    exchange.discard(str(volume.live), NEW)
    with pytest.raises(ArchiveError, match="nothing staged"):
        volume.call(exchange.swap)
    volume.call(exchange.swap_back)
    assert volume.is_(volume.old)


def test_staged_data_with_a_name_of_ours(volumes):
    volume = next(volumes)
    (volume.live / NEW / ".echo-restore-evil").mkdir()
    with pytest.raises(ArchiveError, match="a name that restores use"):
        volume.call(exchange.swap)
    assert volume.is_(volume.old)


@pytest.mark.parametrize("name", ["new", ".echo-restore-7", "covers/new", ".echo-restore-7/../covers", "../x"])
def test_names_that_are_not_ours(volumes, name):
    volume = next(volumes)
    with pytest.raises(ArchiveError, match="no name of"):
        exchange.discard(str(volume.live), name)
    assert volume.is_(volume.old)


def test_a_file_that_came_back_stops_the_exchange(volumes, monkeypatch):
    volume = next(volumes)
    assert crashes(monkeypatch, volume, exchange.swap, 10, True)
    moved = sorted(os.listdir(str(volume.live / (OLD + ".part"))))[0]
    (volume.live / moved).write_text("written by someone")
    with pytest.raises(ArchiveError, match="as well"):
        volume.call(exchange.swap)
    (volume.live / moved).unlink()
    volume.call(exchange.swap)
    assert volume.is_(volume.new)


def test_another_file_system_stops_it_before_the_first_rename(volumes):
    volume = next(volumes)
    inner = volume.live / "music"
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inner)], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(ArchiveError, match="another file system"):
            volume.call(exchange.swap)
        assert not exchange.is_swapped(str(volume.live), OLD)
    finally:
        subprocess.run(["umount", str(inner)], check=True)
    assert volume.is_(volume.old)


def test_parts_that_are_staged_together_share_their_hidden_folder(tmp_path):
    hidden, names = ".echo-restore-7", ["uploads", "config", "data"]

    def stage(volume, name):
        staging = "%s/%s-new" % (hidden, name)
        exchange.discard(volume, staging)
        exchange.create_staging(os.path.join(volume, staging), volume)
        return os.stat(os.path.join(volume, hidden)).st_mode & 0o777, os.path.isdir(os.path.join(volume, staging))

    def remove(volume, name):
        exchange.remove_folder("%s/%s/%s-new" % (volume, hidden, name))

    often, interval = 100, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(names)) as threads:
            for number in range(often):
                volume = tmp_path / str(number)
                volume.mkdir()
                staged = list(threads.map(stage, [str(volume)] * len(names), names))
                assert staged == [(0o700, True)] * len(names), number
                # As long as one is there, it is; and the one that is removed meanwhile takes none along.
                going = threads.map(remove, [str(volume)] * 2, names[:2])
                coming = list(threads.map(stage, [str(volume)], ["cache"]))
                assert list(going) == [None, None] and coming == [(0o700, True)], number
                assert sorted(os.listdir(str(volume / hidden))) == ["cache-new", "data-new"], number
                list(threads.map(remove, [str(volume)] * 2, ["cache", "data"]))
                assert os.listdir(str(volume)) == [], number
    finally:
        sys.setswitchinterval(interval)
