# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume that did not change gets its last archive again; any change, however small, makes a new one."""

from __future__ import annotations

import errno
import fnmatch
import os
import pathlib
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_sets import artifact, manifest_of, set_id, write_manifest
from test_backup_set import SmallEngine, dump_result, make_stack, write_parts

from ansible_collections.echo_music.ops.plugins.module_utils import archive, backup_set, reuse, survey
from ansible_collections.echo_music.ops.plugins.module_utils.backup_set import open_set, publish_set
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError
from ansible_collections.echo_music.ops.plugins.module_utils.proof import CHECKSUM, record
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import describe_artifact


class Host:
    """An engine on this machine, for folders."""

    host = "unix:///var/run/docker.sock"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "uploads"
    (folder / "covers").mkdir(parents=True)
    for number in range(20):
        (folder / "covers" / ("%d.jpg" % number)).write_bytes(os.urandom(1000))
    (folder / "settings.json").write_text("{}")
    os.symlink("covers", str(folder / "link"))
    return folder


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch):
    """The files of a test are new, and its file system's ticks are short."""
    monkeypatch.setattr(reuse, "TICK_NS", 10**7)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "echo"


@pytest.fixture
def forerunner(root, source):
    time.sleep(0.05)
    return first_set(root, source)


def first_set(root, source, age=1, **options):
    folder = root / set_id(age)
    folder.mkdir(parents=True)
    result = back_up(source, folder / "uploads.tar.gz", **options)
    described = describe_artifact(result, {"uploads.tar.gz": "uploads"})
    write_manifest(folder, manifest_of(age, ["uploads"], "echo", {}, [described]))
    return folder


def back_up(source, dest, check_mode=False, codec="gzip", exclude=(), **options):
    return archive.back_up(
        Host(), str(dest), path=str(source), component="uploads", check_mode=check_mode, codec=codec, exclude=exclude, **options
    )


def again(source, folder, tmp_path, **options):
    return back_up(source, tmp_path / "uploads.tar.gz", forerunner=str(folder), **options)


def is_same_file(folder, tmp_path):
    return os.path.samefile(str(folder / "uploads.tar.gz"), str(tmp_path / "uploads.tar.gz"))


# -- the good day ------------------------------------------------------------------------------


def test_an_unchanged_folder_gets_the_last_archive(source, forerunner, tmp_path):
    predicted = again(source, forerunner, tmp_path, check_mode=True)
    assert predicted["reused"] and not (tmp_path / "uploads.tar.gz").exists()
    result = again(source, forerunner, tmp_path)
    assert (result["reused"], result["bytes_written"], result["changed"]) == (True, 0, True)
    assert is_same_file(forerunner, tmp_path)
    described = result["artifact"]
    written = artifact(tmp_path / "uploads.tar.gz")
    assert (described["sha256"], described["bytes_out"]) == (written["sha256"], written["bytes_out"])
    assert (described["reused"], described["members"]) == (forerunner.name, 24)
    assert (described["role"], described["source"], described["file"]) == ("uploads", str(source), "uploads.tar.gz")
    assert os.listdir(str(tmp_path)) and not list(tmp_path.glob("*.linked")) + list(tmp_path.glob("*.partial"))


def test_linked_twice_it_has_one_name(source, forerunner, tmp_path):
    for unused in range(2):
        assert again(source, forerunner, tmp_path)["reused"]
    assert not list(tmp_path.glob("*.linked"))


def test_a_reused_archive_serves_again_and_the_sets_are_independent(source, forerunner, root, tmp_path):
    second = first_set(root, source, age=0.5, forerunner=str(forerunner))
    subprocess.check_call(["rm", "-r", str(forerunner)])
    subprocess.check_call(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=str(second))
    result = again(source, second, tmp_path)
    assert result["reused"] and result["artifact"]["reused"] == second.name


def test_reading_it_and_other_readers_change_nothing(source, forerunner, tmp_path):
    subprocess.check_call(["tar", "cf", str(tmp_path / "other.tar"), "-C", str(source), "."])
    assert again(source, forerunner, tmp_path)["reused"]


def test_the_link_latest_leads_to_the_set(source, forerunner, root, tmp_path):
    os.symlink(forerunner.name, str(root / "latest"))
    assert again(source, root / "latest", tmp_path)["artifact"]["reused"] == forerunner.name


# -- any change --------------------------------------------------------------------------------


def rewrite_same_size_and_time(folder):
    path = folder / "covers" / "3.jpg"
    before = path.stat()
    path.write_bytes(os.urandom(1000))
    os.utime(str(path), ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_with_the_same_times(folder):
    path = folder / "covers" / "3.jpg"
    before = path.stat()
    (folder / "covers" / "new").write_bytes(os.urandom(1000))
    os.utime(str(folder / "covers" / "new"), ns=(before.st_atime_ns, before.st_mtime_ns))
    (folder / "covers" / "new").rename(path)


CHANGES = {
    "touch": lambda folder: os.utime(str(folder / "covers" / "3.jpg")),
    "write": lambda folder: (folder / "settings.json").write_text("[]"),
    "append": lambda folder: (folder / "settings.json").open("a").write(" "),
    "write, size and time as before": rewrite_same_size_and_time,
    "replace, size and time as before": replace_with_the_same_times,
    "mode": lambda folder: os.chmod(str(folder / "settings.json"), 0o640),
    "owner": lambda folder: os.chown(str(folder / "settings.json"), -1, 0 if os.getgid() else 4711),
    "rename": lambda folder: (folder / "settings.json").rename(folder / "settings.yaml"),
    "rename a folder": lambda folder: (folder / "covers").rename(folder / "Covers"),
    "add": lambda folder: (folder / "covers" / "20.jpg").write_bytes(b""),
    "remove": lambda folder: (folder / "covers" / "3.jpg").unlink(),
    "hard link": lambda folder: os.link(str(folder / "settings.json"), str(folder / "covers" / "x")),
    "other link": lambda folder: [(folder / "link").unlink(), os.symlink("nowhere", str(folder / "link"))],
    "mode of the root": lambda folder: os.chmod(str(folder), 0o711),
    "swap": lambda folder: [
        (folder / "covers" / "1.jpg").rename(folder / "x"),
        (folder / "covers" / "2.jpg").rename(folder / "covers" / "1.jpg"),
        (folder / "x").rename(folder / "covers" / "2.jpg"),
    ],
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_any_change_makes_a_new_archive(source, forerunner, tmp_path, change):
    CHANGES[change](source)
    result = again(source, forerunner, tmp_path)
    assert not result["reused"] and result["bytes_written"] > 0 and result["artifact"]["reused"] is None
    assert not is_same_file(forerunner, tmp_path)


def test_an_attribute_is_a_change(source, forerunner, tmp_path):
    try:
        os.setxattr(str(source / "settings.json"), "user.mood", b"calm")
    except OSError as error:
        pytest.skip("no user attributes on this file system: %s" % error)
    assert not again(source, forerunner, tmp_path)["reused"]


def test_a_copy_of_the_folder_is_another_folder(source, forerunner, tmp_path):
    subprocess.check_call(["cp", "-a", str(source), str(tmp_path / "copy")])
    subprocess.check_call(["rm", "-r", str(source)])
    (tmp_path / "copy").rename(source)
    assert not again(source, forerunner, tmp_path)["reused"]


@pytest.mark.parametrize("options", [dict(exclude=["covers/1.jpg"]), dict(codec="none")])
def test_other_options_make_a_new_archive(source, forerunner, tmp_path, options):
    assert not again(source, forerunner, tmp_path, **options)["reused"]


def test_what_is_excluded_may_change(source, root, tmp_path):
    (source / "logs").mkdir()
    (source / "logs" / "app.log").write_text("one")
    time.sleep(0.05)
    folder = first_set(root, source, exclude=["logs"])
    (source / "logs" / "app.log").write_text("two")
    (source / "logs" / "app.log.1").write_text("one")
    assert again(source, folder, tmp_path, exclude=["logs"])["reused"]


# -- what can't be known -----------------------------------------------------------------------


def test_a_change_within_the_same_tick_would_not_show(source, root, tmp_path, monkeypatch):
    monkeypatch.setattr(reuse, "TICK_NS", 2 * 10**9)
    (source / "covers" / "3.jpg").write_bytes(b"a moment ago")
    folder = first_set(root, source)
    assert "fingerprint" not in (folder / "manifest.json").read_text()
    assert not again(source, folder, tmp_path)["reused"]


def test_a_file_from_the_future_is_never_settled(source):
    found = survey.survey(str(source))
    assert not reuse.is_settled(dict(found, last_change=time.time_ns() + 10**12), time.time_ns())
    assert reuse.is_settled(found, time.time_ns() + 10**9)


def test_a_folder_that_changed_while_it_was_read_is_not_known_again(source, tmp_path, monkeypatch):
    time.sleep(0.05)
    monkeypatch.setattr(archive, "_run_tar", lambda command, folder, staged, scan: scan.feed(bytes(1024)) or ["x"])
    assert back_up(source, tmp_path / "uploads.tar.gz", retries=0)["artifact"]["fingerprint"] is None


def test_mounts_inside_and_file_servers_are_not_trusted(source, tmp_path, monkeypatch):
    found = survey.survey(str(source))
    assert reuse.fingerprint(found, str(source), "gzip", []) is not None
    assert reuse.fingerprint(dict(found, mounts=True), str(source), "gzip", []) is None
    mounts = tmp_path / "mountinfo"
    line = "1 2 0:1 / %s rw - %s none rw\n"
    monkeypatch.setattr(reuse, "MOUNTS", str(mounts))
    for kind, trusted in (("nfs4", False), ("fuse.sshfs", False), ("ext4", True)):
        mounts.write_text(line % ("/", "ext4") + line % (str(source.parent), kind) + line % (str(source) + "-other", "nfs"))
        assert (reuse.fingerprint(found, str(source), "gzip", []) is not None) == trusted
    blank = source.parent / "with blank"
    source.rename(blank)
    mounts.write_text(line % ("/", "ext4") + line % (str(blank).replace(" ", "\\040"), "cifs"))
    assert reuse.fingerprint(found, str(blank), "gzip", []) is None
    mounts.unlink()
    assert reuse.fingerprint(found, str(blank), "gzip", []) is None


# -- forerunners that don't serve --------------------------------------------------------------


def shorten(folder):
    with open(str(folder / "uploads.tar.gz"), "r+b") as file:
        file.truncate(10)


def flip(folder):
    path = folder / "uploads.tar.gz"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    os.utime(str(path), ns=(before.st_atime_ns, before.st_mtime_ns))


def fail_verification(folder):
    proof = dict(level=CHECKSUM, passed=False, rto_seconds=None, started="", finished="")
    record(str(folder), proof)


SPOILT = {
    "shorter": shorten,
    "written to later": lambda folder: os.utime(str(folder / "uploads.tar.gz"), (time.time() + 100,) * 2),
    "not there": lambda folder: (folder / "uploads.tar.gz").unlink(),
    "a link": lambda folder: [
        (folder / "uploads.tar.gz").rename(folder / "x"),
        os.symlink("x", str(folder / "uploads.tar.gz")),
    ],
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a broken manifest": lambda folder: (folder / "manifest.json").write_text("{"),
    "no such artifact": lambda folder: write_manifest(folder, manifest_of(1, ["uploads"], "echo", {}, [])),
    "failed its verification": fail_verification,
    "gone": lambda folder: folder.rename(folder.parent / "away"),
}


@pytest.mark.parametrize("spoilt", list(SPOILT))
def test_a_forerunner_that_does_not_serve_is_no_failure(source, forerunner, tmp_path, spoilt):
    SPOILT[spoilt](forerunner)
    result = again(source, forerunner, tmp_path)
    assert not result["reused"] and result["warnings"] == []
    assert archive.read_to_end(str(tmp_path / "uploads.tar.gz"))["members"] == 24


def test_hashed_again_a_damaged_archive_is_told(source, forerunner, tmp_path):
    assert again(source, forerunner, tmp_path, rehash=True)["reused"]
    flip(forerunner)
    (tmp_path / "uploads.tar.gz").unlink()
    for check_mode in (True, False):
        result = again(source, forerunner, tmp_path, rehash=True, check_mode=check_mode)
        assert not result["reused"] and "damaged" in result["warnings"][0]
    assert archive.read_to_end(str(tmp_path / "uploads.tar.gz"))["members"] == 24


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EMLINK, errno.EPERM])
def test_where_no_link_can_be_made_the_archive_is_written(source, forerunner, tmp_path, monkeypatch, error):
    def refuse(*unused, **unused_too):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(reuse.os, "link", refuse)
    result = again(source, forerunner, tmp_path)
    assert not result["reused"] and not is_same_file(forerunner, tmp_path)


# -- publishing --------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch):
    """The files that publishing reads to hash them."""
    found = []
    sha256_of = backup_set.sha256_of
    monkeypatch.setattr(
        backup_set, "sha256_of", lambda path, **rest: found.append(os.path.basename(path)) or sha256_of(path, **rest)
    )
    return found


def publish(root, tmp_path, first):
    """Publish a set that has the archive of the first one."""
    opened = open_set(SmallEngine(tmp_path / "engine.json"), str(root), make_stack(tmp_path))
    part = next(part for part in opened["set"]["parts"] if part["file"] == "uploads.tar.gz")
    artifacts, database = write_parts(opened)
    dest = os.path.join(opened["set"]["path"], "uploads.tar.gz")
    if first:
        assert reuse.link(str(first / "uploads.tar.gz"), dest)
    described = artifact(pathlib.Path(dest), role="uploads", fingerprint="0" * 64)
    if first:
        described["reused"] = first.name
    artifacts = [described if a["file"] == "uploads.tar.gz" else a for a in artifacts]
    return part, lambda: publish_set(SmallEngine(tmp_path / "engine.json"), str(root), opened["set"]["id"], artifacts, database)


def test_a_reused_archive_is_not_read_again_when_the_set_is_published(root, tmp_path, hashed):
    first = pathlib.Path(publish(root, tmp_path, None)[1]()["set"]["path"])
    assert "uploads.tar.gz" in hashed
    del hashed[:]
    time.sleep(1.1)
    part, finish = publish(root, tmp_path, first)
    result = finish()
    assert part["forerunner"] == str(first)
    assert "uploads.tar.gz" not in hashed and "config.tar.gz" in hashed
    assert result["set"]["bytes_written"] == result["set"]["bytes_out"] - (first / "uploads.tar.gz").stat().st_size
    subprocess.check_call(["rm", "-r", str(first)])
    subprocess.check_call(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=result["set"]["path"])


@pytest.mark.parametrize("spoilt", ["gone", "written to later", "no manifest"])
def test_a_reused_archive_that_nobody_vouches_for_is_read(root, tmp_path, hashed, spoilt):
    first = pathlib.Path(publish(root, tmp_path, None)[1]()["set"]["path"])
    del hashed[:]
    time.sleep(1.1)
    finish = publish(root, tmp_path, first)[1]
    SPOILT[spoilt](first)
    finish()
    assert "uploads.tar.gz" in hashed


def test_another_project_has_other_forerunners(root, tmp_path):
    publish(root, tmp_path, None)[1]()
    stack = dict(make_stack(tmp_path), project="other")
    opened = open_set(SmallEngine(tmp_path / "engine.json"), str(root), stack)
    assert {part.get("forerunner") for part in opened["set"]["parts"]} == {None}
    assert dump_result([])["artifacts"] == []


# -- the survey --------------------------------------------------------------------------------

NAMES = st.lists(st.text("ab*?[]!.\n", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join)


@given(NAMES, st.lists(NAMES, min_size=1, max_size=3))
def test_one_expression_excludes_what_the_patterns_do_one_by_one(name, patterns):
    parts = name.split("/")
    names = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    expected = any(fnmatch.fnmatchcase(part, survey.relative(pattern)) for pattern in patterns for part in names)
    assert survey.is_excluded(name, patterns) == expected


def test_the_digest_does_not_depend_on_the_order_of_a_folder(source, monkeypatch):
    expected = survey.survey(str(source))["digest"]
    listdir = os.listdir
    monkeypatch.setattr(survey.os, "listdir", lambda fd: sorted(listdir(fd), reverse=True))
    assert survey.survey(str(source))["digest"] == expected


def test_a_folder_that_vanishes_during_the_survey_is_left_out(source, monkeypatch):
    expected = survey.survey(str(source))
    gone = source / "gone"
    gone.mkdir()
    lstat = os.lstat

    def vanishing(name, **options):
        status = lstat(name, **options)
        if name == "gone":
            gone.rmdir()
        return status

    monkeypatch.setattr(survey.os, "lstat", vanishing)
    found = survey.survey(str(source))
    assert (found["files"], found["bytes"]) == (expected["files"], expected["bytes"])
    assert not gone.exists()


def test_a_folder_replaced_by_a_link_is_not_followed(source, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_text("not ours")
    (source / "turned").mkdir()
    expected = survey.survey(str(source))["files"]
    lstat = os.lstat

    def turning(name, **options):
        status = lstat(name, **options)
        if name == "turned":
            (source / "turned").rmdir()
            (source / "turned").symlink_to(elsewhere)
        return status

    monkeypatch.setattr(survey.os, "lstat", turning)
    assert survey.survey(str(source))["files"] == expected
    assert (source / "turned").is_symlink()


def test_no_folder_to_survey(tmp_path):
    with pytest.raises(ArchiveError, match="There is no folder .*absent"):
        survey.survey(str(tmp_path / "absent"))
