# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives made of real files by a real tar, read back by the tars that users have."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import socket
import stat
import subprocess
import tarfile
import tempfile
import threading
import time
import zlib

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.module_utils import (
    archive,
    codec,
    direct_file,
    engine_tar,
    survey,
)
from ansible_collections.echo_music.ops.plugins.module_utils.direct_file import DIRECT_SIZE
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, EchoError, EngineError, SpaceError
from ansible_collections.echo_music.ops.plugins.module_utils.tar_scan import TarScan

CODECS = sorted(codec.SUFFIXES)
NOISE = random.Random(4567)


def noise(size):
    return NOISE.getrandbits(8 * size).to_bytes(size, "little")


def extract(archive_file, folder):
    folder.mkdir()
    command = ["tar", "-xpf", str(archive_file), "-C", str(folder), "--xattrs", "--xattrs-include=*", "--acls"]
    subprocess.run(command, check=True)
    return folder


def listing(program, archive_file):
    return subprocess.run(
        program + [str(archive_file)], check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ).stdout.splitlines()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "covers").mkdir(parents=True)
    (folder / "covers" / "a.jpg").write_bytes(noise(3 << 20))
    (folder / "covers" / "notes.txt").write_text("the quick brown fox\n" * 100000)
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture
def dest(tmp_path):
    return str(tmp_path / "out.tar.gz")


# -- the round trip ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_gives_the_same_files_back(source, tmp_path, name):
    dest = str(tmp_path / ("out" + codec.SUFFIXES[name]))
    facts = archive.back_up_folder(str(source), dest, codec=name)
    written = open(dest, "rb").read()
    assert facts["sha256"] == hashlib.sha256(written).hexdigest()
    assert facts["bytes_out"] == len(written)
    assert (facts["members"], facts["codec"], facts["file"]) == (5, name, os.path.basename(dest))
    assert archive.read_to_end(dest) == {"members": facts["members"], "bytes": facts["bytes_in"]}
    assert stat.S_IMODE(os.stat(dest).st_mode) == 0o600
    plain = tmp_path / "plain.tar"
    plain.write_bytes(b"".join(codec.read_archive(dest)))
    back = extract(plain, tmp_path / "back")
    for inside in ("covers/a.jpg", "covers/notes.txt", "empty"):
        assert (back / inside).read_bytes() == (source / inside).read_bytes()
    assert sorted(os.listdir(str(tmp_path))) == sorted(["source", "back", "plain.tar", os.path.basename(dest)])


def test_equal_data_gives_equal_archives(source, tmp_path):
    sums = [archive.back_up_folder(str(source), str(tmp_path / name))["sha256"] for name in ("one", "two")]
    assert sums[0] == sums[1]


def test_links_times_modes_and_owners_survive(source, dest, tmp_path):
    os.link(str(source / "empty"), str(source / "hard"))
    os.symlink("covers/a.jpg", str(source / "soft"))
    os.symlink("/nowhere", str(source / "broken"))
    os.chmod(str(source / "empty"), 0o4751)
    os.utime(str(source / "covers" / "a.jpg"), ns=(1, 1234567890123456789))
    if os.geteuid() == 0:
        os.chown(str(source / "covers"), 12345, 54321)
    archive.back_up_folder(str(source), dest)
    back = extract(dest, tmp_path / "back")
    assert os.stat(str(back / "hard")).st_ino == os.stat(str(back / "empty")).st_ino
    assert os.readlink(str(back / "soft")) == "covers/a.jpg"
    assert os.readlink(str(back / "broken")) == "/nowhere"
    assert os.stat(str(back / "covers" / "a.jpg")).st_mtime_ns == 1234567890123456789
    assert stat.S_IMODE(os.stat(str(back / "empty")).st_mode) == 0o4751
    for attribute in ("st_uid", "st_gid"):
        assert getattr(os.stat(str(back / "covers")), attribute) == getattr(os.stat(str(source / "covers")), attribute)


def test_holes_survive_and_cost_nothing(source, dest, tmp_path):
    with open(str(source / "holes"), "wb") as file:
        file.truncate(64 << 20)
        file.seek(20 << 20)
        file.write(b"island")
    facts = archive.back_up_folder(str(source), dest)
    assert facts["bytes_in"] < 8 << 20
    back = extract(dest, tmp_path / "back") / "holes"
    assert os.stat(str(back)).st_blocks * 512 < 1 << 20
    assert subprocess.run(["cmp", str(back), str(source / "holes")], check=False).returncode == 0
    assert archive.read_to_end(dest)["members"] == facts["members"]


def test_only_holes_make_sparse_members(source, dest):
    archive.back_up_folder(str(source), dest)
    assert b"GNU.sparse" not in b"".join(codec.read_archive(dest))


def test_extended_attributes_and_acls_survive(source, dest, tmp_path):
    file = str(source / "empty")
    try:
        os.setxattr(file, "user.mood", b"\x00calm\xff")
    except OSError as error:
        pytest.skip("no user attributes on this file system: %s" % error)
    acl = shutil.which("setfacl") and subprocess.run(["setfacl", "-m", "u:4567:r--", file], check=False).returncode == 0
    archive.back_up_folder(str(source), dest)
    back = str(extract(dest, tmp_path / "back") / "empty")
    assert os.getxattr(back, "user.mood") == b"\x00calm\xff"
    if acl:
        key = "system.posix_acl_access"
        assert os.getxattr(back, key) == os.getxattr(file, key)


def test_any_name_survives(tmp_path, dest):
    folder = os.fsencode(str(tmp_path / "source"))
    os.mkdir(folder)
    names = [b"new\nline", b"not-utf8-\xff\xfe", "ñandú ☃".encode(), b"-rf", b"*", b"back\\slash", b"l" * 250, b" "]
    for name in names:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(name)
    facts = archive.back_up_folder(os.fsdecode(folder), dest)
    back = os.fsencode(str(extract(dest, tmp_path / "back")))
    assert sorted(os.listdir(back)) == sorted(names)
    assert all(open(os.path.join(back, name), "rb").read() == name for name in names)
    assert facts["members"] == len(names) + 1


def test_an_empty_folder_is_one_member(tmp_path, dest):
    (tmp_path / "source").mkdir()
    facts = archive.back_up_folder(str(tmp_path / "source"), dest)
    assert facts["members"] == 1
    assert listing(["tar", "tzf"], dest) == [b"./"]


@pytest.mark.parametrize("program", [["tar", "tzf"], ["busybox", "tar", "tzf"]])
def test_the_tars_that_users_have_list_it(source, dest, program):
    if not shutil.which(program[0]):
        pytest.skip("no %s here" % program[0])
    with open(str(source / "holes"), "wb") as file:
        file.truncate(1 << 20)
    os.link(str(source / "empty"), str(source / "hard"))
    archive.back_up_folder(str(source), dest)
    names = listing(program, dest)
    assert len(names) == 7
    assert all(name.startswith(b"./") for name in names)
    assert b"./covers/a.jpg" in names


def test_busybox_extracts_what_has_no_holes(source, dest, tmp_path):
    if not shutil.which("busybox"):
        pytest.skip("no busybox here")
    archive.back_up_folder(str(source), dest)
    (tmp_path / "back").mkdir()
    subprocess.run(["busybox", "tar", "xzf", dest, "-C", str(tmp_path / "back")], check=True)
    assert (tmp_path / "back" / "covers" / "a.jpg").read_bytes() == (source / "covers" / "a.jpg").read_bytes()


# -- what is left out --------------------------------------------------------------------------


def test_sockets_pipes_and_devices_are_named_and_left_out(source, dest, monkeypatch):
    monkeypatch.chdir(str(source))
    expected = {"covers/app.sock": "socket", "covers/pipe*\\n\n": "fifo"}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("covers/app.sock")
    os.mkfifo("covers/pipe*\\n\n")
    (source / "covers" / "pipe-kept").write_text("a pattern would take this one too")
    if os.geteuid() == 0:
        try:
            os.mknod("null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            expected["null"] = "character device"
        except PermissionError:
            pass
    facts = archive.back_up_folder(str(source), dest)
    assert dict((entry["name"], entry["type"]) for entry in facts["skipped"]) == expected
    assert all(entry["reason"] for entry in facts["skipped"])
    with tarfile.open(dest) as made:
        assert not [member.name for member in made if not (member.isreg() or member.isdir())]
        assert "./covers/pipe-kept" in made.getnames()


@pytest.mark.parametrize(
    "patterns, gone",
    [
        (["covers"], ["covers", "covers/cache", "covers/cache/x.tmp", "covers/y.jpg"]),
        (["./cache/"], ["cache", "cache/z.tmp"]),
        (["/covers/cache"], ["covers/cache", "covers/cache/x.tmp"]),
        (["*.tmp"], ["cache/z.tmp", "covers/cache/x.tmp"]),
        (["covers/?.jpg"], ["covers/y.jpg"]),
        (["[xy].jpg", "y*"], []),
        (["nothing", "cover"], []),
    ],
)
def test_tar_and_the_survey_agree_on_exclude(tmp_path, dest, patterns, gone):
    folder = tmp_path / "source"
    everything = {"cache", "cache/z.tmp", "covers", "covers/cache", "covers/cache/x.tmp", "covers/y.jpg"}
    (folder / "covers" / "cache").mkdir(parents=True)
    (folder / "cache").mkdir()
    for name in ("cache/z.tmp", "covers/cache/x.tmp", "covers/y.jpg"):
        (folder / name).write_text(name)
    archive.back_up_folder(str(folder), dest, exclude=patterns)
    with tarfile.open(dest) as made:
        archived = set(os.path.normpath(name) for name in made.getnames()) - {"."}
    assert archived == everything - set(gone)
    assert archived == set(name for name in everything if not survey.is_excluded(name, patterns))
    assert survey.survey(str(folder), patterns)["files"] == len([name for name in archived if "." in name])


# -- a folder in use ---------------------------------------------------------------------------


def tar_that_says(tmp_path, message, exit_code):
    """A program that is GNU tar, but in the end says more than GNU tar would."""
    program = tmp_path / "faulty-tar"
    program.write_text(
        "#!/bin/sh\ncase \"$*\" in *files-from=*) exit 0;; esac\necho run >> %s\ntar \"$@\"\nprintf '%%s\\n' '%s' >&2\nexit %d\n"
        % (tmp_path / "runs", message, exit_code)
    )
    program.chmod(0o755)
    return str(program)


def runs(tmp_path):
    return len((tmp_path / "runs").read_text().splitlines())


@pytest.mark.parametrize(
    "message",
    [
        "tar: ./covers/a\\303\\261\\n.jpg: file changed as we read it",
        "tar: ./covers/a\\303\\261\\n.jpg: File removed before we read it",
        "tar: ./covers/a\\303\\261\\n.jpg: File shrank by 1 byte; padding with zeros",
    ],
)
def test_changed_files_are_retried_then_reported(source, dest, tmp_path, monkeypatch, message):
    monkeypatch.setattr(archive, "TAR_NAMES", (tar_that_says(tmp_path, message, 1),))
    facts = archive.back_up_folder(str(source), dest, retries=2)
    assert facts["changed"] == ["covers/añ\n.jpg"]
    assert runs(tmp_path) == 3
    assert archive.read_to_end(dest)["members"] == 5


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path, dest, monkeypatch):
    source = tmp_path / "logs"
    source.mkdir()
    log = source / "app.log"
    log.write_bytes(b"line\n" * (4 << 20))
    feed = TarScan.feed

    def shrink_then_feed(scan, piece):
        log.write_bytes(b"rotated\n")
        feed(scan, piece)

    monkeypatch.setattr(TarScan, "feed", shrink_then_feed)
    facts = archive.back_up_folder(str(source), dest, retries=0)
    assert facts["changed"] == ["app.log"]


def test_a_quiet_second_pass_counts(source, dest, tmp_path, monkeypatch):
    noisy = tar_that_says(tmp_path, "tar: ./x: file changed as we read it", 1)
    run = archive._run_tar
    passes = []

    def first_noisy(command, *rest):
        passes.append(command[0])
        return run(["tar" if len(passes) > 1 else noisy] + command[1:], *rest)

    monkeypatch.setattr(archive, "_run_tar", first_noisy)
    facts = archive.back_up_folder(str(source), dest)
    assert (len(passes), facts["changed"], facts["members"]) == (2, [], 5)


@pytest.mark.parametrize(
    "why",
    [
        "socket ignored",
        "Warning: Cannot flistxattr: Operation not supported",
        "Warning: Cannot llistxattrat: Function not implemented",
    ],
)
def test_what_the_file_system_lacks_is_no_complaint(source, dest, tmp_path, monkeypatch, why):
    monkeypatch.setattr(archive, "TAR_NAMES", (tar_that_says(tmp_path, "tar: ./covers/a.jpg: " + why, 0),))
    facts = archive.back_up_folder(str(source), dest)
    assert (facts["changed"], facts["members"], runs(tmp_path)) == ([], 5, 1)


@pytest.mark.parametrize(
    "message, exit_code",
    [
        ("tar: ./x: Cannot open: Permission denied", 2),
        ("tar: ./x: Read error at byte 0, while reading 512 bytes: Input/output error", 1),
        ("tar: ./x: something new", 0),
        ("tar: ./x: file changed as we read it", 2),
    ],
)
def test_any_other_complaint_is_fatal(source, dest, tmp_path, monkeypatch, message, exit_code):
    monkeypatch.setattr(archive, "TAR_NAMES", (tar_that_says(tmp_path, message, exit_code),))
    with pytest.raises(ArchiveError) as failure:
        archive.back_up_folder(str(source), dest)
    assert str(source) in str(failure.value)
    assert failure.value.remedy
    assert runs(tmp_path) == 1
    assert not os.path.exists(dest) and not os.path.exists(dest + ".partial")


def test_a_tar_that_is_not_gnu_is_refused(source, dest, tmp_path, monkeypatch):
    other = tmp_path / "bsdtar"
    other.write_text("#!/bin/sh\necho 'unrecognized option' >&2\nexit 1\n")
    other.chmod(0o755)
    monkeypatch.setattr(archive, "TAR_NAMES", (str(other), str(tmp_path / "missing")))
    with pytest.raises(ArchiveError, match="no GNU tar.*package tar"):
        archive.back_up_folder(str(source), dest)


# -- bad days ----------------------------------------------------------------------------------


def broken_write(error, after):
    written = []

    def write(unused_fd, data):
        written.append(len(data))
        if len(written) > after:
            raise OSError(error, os.strerror(error))
        return len(data)

    return write


@pytest.mark.parametrize(
    "error, kind", [(errno.ENOSPC, SpaceError), (errno.EDQUOT, SpaceError), (errno.EIO, ArchiveError)]
)
@pytest.mark.parametrize("after", [0, 2])
def test_a_write_that_fails_removes_the_partial_file_and_keeps_the_old_one(
    source, dest, monkeypatch, error, kind, after
):
    with open(dest, "w") as old:
        old.write("older, whole")
    (source / "more").write_bytes(noise(8 << 20))
    monkeypatch.setattr(codec.os, "write", broken_write(error, after))
    with pytest.raises(kind) as failure:
        archive.back_up_folder(str(source), dest)
    monkeypatch.undo()
    assert isinstance(failure.value, kind)
    assert dest + ".partial" in failure.value.what
    assert not os.path.exists(dest + ".partial")
    assert open(dest).read() == "older, whole"


def test_a_full_disk_is_a_space_error(source, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], stderr=subprocess.DEVNULL, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("may not mount a small file system")
    try:
        with pytest.raises(SpaceError, match="Make room"):
            archive.back_up_folder(str(source), str(small / "out.tar.gz"))
        assert os.listdir(str(small)) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_interrupt_leaves_nothing_behind(source, dest, monkeypatch):
    def interrupted(unused_scan, unused_piece):
        raise KeyboardInterrupt

    monkeypatch.setattr(TarScan, "feed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        archive.back_up_folder(str(source), dest)
    assert not os.path.exists(dest) and not os.path.exists(dest + ".partial")
    assert not [thread for thread in threading.enumerate() if isinstance(thread, direct_file._Worker)]


def test_a_leftover_of_a_killed_run_is_overwritten(source, dest):
    with open(dest + ".partial", "wb") as leftover:
        leftover.write(noise(9 << 20))
    facts = archive.back_up_folder(str(source), dest)
    assert os.stat(dest).st_size == facts["bytes_out"]
    assert archive.read_to_end(dest)["members"] == 5


def test_two_runs_never_write_the_same_file(source, dest):
    with codec.StagedFile(dest, "gzip") as first:
        with pytest.raises(ArchiveError, match="Another process writes"):
            archive.back_up_folder(str(source), dest)
        first.write(b"first")
        first.publish()
    assert gzip.open(dest).read() == b"first"


@pytest.mark.parametrize("inside", ["out.tar.gz", "covers/out.tar.gz"])
def test_an_archive_never_lies_in_what_it_archives(source, inside):
    with pytest.raises(ArchiveError, match="lies in"):
        archive.back_up_folder(str(source), str(source / inside))
    assert not (source / inside).exists()


def test_missing_folders_are_named(source, tmp_path, dest):
    with pytest.raises(ArchiveError, match="no folder .*absent"):
        archive.back_up_folder(str(source), str(tmp_path / "absent" / "out.tar.gz"))
    with pytest.raises(ArchiveError, match="no folder .*gone"):
        archive.back_up_folder(str(tmp_path / "gone"), dest)
    assert not os.path.exists(dest + ".partial")


def test_zstd_without_its_library_names_the_package(source, dest, monkeypatch):
    monkeypatch.setattr(codec, "ZSTD_IMPORT_ERROR", "ImportError: zstandard")
    with pytest.raises(ArchiveError, match="python3-zstandard"):
        archive.back_up_folder(str(source), dest, codec="zstd")
    assert not os.path.exists(dest + ".partial")


# -- waiting for the snapshot ------------------------------------------------------------------


def test_the_archive_waits_for_the_snapshot(source, dest, tmp_path):
    announced = tmp_path / ".snapshot.json"
    started = time.monotonic()
    timer = threading.Timer(
        0.3,
        lambda: (
            announced.with_suffix(".tmp").write_text('{"id": "1"}'),
            announced.with_suffix(".tmp").rename(announced),
        ),
    )
    timer.start()
    facts = archive.back_up_folder(str(source), dest, after_snapshot=str(announced), snapshot_timeout=10)
    assert time.monotonic() - started >= 0.3
    assert facts["members"] == 5


def test_a_snapshot_that_never_comes_or_failed_is_an_error(source, dest, tmp_path):
    announced = tmp_path / ".snapshot.json"
    with pytest.raises(ArchiveError, match="within 0 seconds"):
        archive.back_up_folder(str(source), dest, after_snapshot=str(announced), snapshot_timeout=0)
    announced.write_text(json.dumps({"error": "database music_server does not exist"}))
    with pytest.raises(ArchiveError, match="music_server does not exist"):
        archive.back_up_folder(str(source), dest, after_snapshot=str(announced))
    assert not os.path.exists(dest)


# -- reading to the end ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_a_cut_anywhere_is_noticed(source, tmp_path, name):
    dest = str(tmp_path / "out")
    archive.back_up_folder(str(source), dest, codec=name)
    whole = open(dest, "rb").read()
    # A plain tar ends with zeros of which only the first two records matter.
    lost = [len(whole) - 3, len(whole) // 2, 70000] + ([1, 4, 8] if name != "none" else [])
    for cut in lost:
        with open(dest, "wb") as file:
            file.write(whole[: len(whole) - cut])
        with pytest.raises(ArchiveError, match="Use another backup"):
            archive.read_to_end(dest)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_flipped_bit_is_noticed(source, tmp_path, name):
    dest = str(tmp_path / "out")
    archive.back_up_folder(str(source), dest, codec=name)
    whole = bytearray(open(dest, "rb").read())
    for position in (len(whole) // 3, len(whole) // 2, len(whole) - 6):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        with open(dest, "wb") as file:
            file.write(damaged)
        with pytest.raises(ArchiveError):
            archive.read_to_end(dest)


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("made_as", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_archives_of_others_are_read(tmp_path, mode, made_as):
    file = str(tmp_path / "other")
    with tarfile.open(file, mode, format=made_as) as made:
        for name in ("./a", "./" + "deep/" * 60 + "b", "./ñ"):
            member = tarfile.TarInfo(name)
            member.size = 1000
            made.addfile(member, io.BytesIO(bytes(1000)))
    assert archive.read_to_end(file)["members"] == 3


def test_a_size_beyond_the_header_is_taken_from_pax():
    member = tarfile.TarInfo("big")
    member.size = 9 << 30
    member.pax_headers = {"comment": "12 size=1\n"}
    header = member.tobuf(format=tarfile.PAX_FORMAT)
    scan = TarScan("test")
    scan.feed(header)
    piece = bytes(1 << 20)
    for unused in range(9 << 10):
        scan.feed(piece)
    scan.feed(tarfile.TarInfo("small").tobuf() + bytes(1024))
    scan.finish()
    assert scan.members == 2


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_scan_takes_pieces_of_any_size(sizes):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as out:
        for number in range(4):
            member = tarfile.TarInfo("ñ%d" % number * 40)
            member.size = number * 300
            out.addfile(member, io.BytesIO(bytes(member.size)))
    stream = io.BytesIO(made.getvalue())
    scan = TarScan("test")
    position = 0
    while stream.tell() < len(made.getvalue()):
        scan.feed(stream.read(sizes[position % len(sizes)]))
        position += 1
    scan.finish()
    assert (scan.members, scan.bytes) == (4, len(made.getvalue()))


# -- codecs ------------------------------------------------------------------------------------

BLOCKS = st.lists(
    st.one_of(
        st.binary(max_size=3000),
        st.builds(
            lambda seed, size: random.Random(seed).getrandbits(8 * size).to_bytes(size, "little"),
            st.integers(),
            st.integers(1, 200000),
        ),
        st.builds(lambda unit, times: unit * times, st.binary(min_size=1, max_size=50), st.integers(1, 20000)),
    ),
    max_size=6,
)


@pytest.mark.parametrize("name", CODECS)
@given(blocks=BLOCKS)
@example(blocks=[])
@example(blocks=[b""])
@settings(max_examples=60, deadline=None)
def test_any_bytes_come_back(tmp_path_factory, name, blocks):
    encoder = codec.encoder(name)
    packed = b"".join(piece for block in blocks for piece in encoder.encode(block)) + b"".join(encoder.finish())
    file = tmp_path_factory.getbasetemp() / ("packed-" + name)
    file.write_bytes(packed)
    # Codec none is told by what it lacks; no tar stream begins like this.
    assume(name != "none" or not packed.startswith((codec.GZIP_MAGIC, codec.ZSTD_MAGIC)))
    unpacked = b"".join(codec.read_archive(str(file)))
    assert unpacked == b"".join(blocks)
    if name == "gzip":
        assert gzip.decompress(packed) == unpacked


def test_gzip_stores_noise_and_shrinks_text(tmp_path):
    encoder = codec.encoder("gzip")
    size = 1 << 20
    stored = b"".join(encoder.encode(noise(size)))
    shrunk = b"".join(encoder.encode(b"the quick brown fox\n" * 50000))
    file = tmp_path / "x.gz"
    file.write_bytes(stored + shrunk + b"".join(encoder.finish()))
    assert size < len(stored) < size * 1.001
    assert len(shrunk) < 50000
    assert subprocess.run(["gzip", "-t", str(file)], check=False).returncode == 0


def test_zlib_serves_where_isal_is_missing(source, dest, monkeypatch):
    monkeypatch.setattr(codec, "deflate", zlib)
    monkeypatch.setattr(codec, "igzip", gzip)
    facts = archive.back_up_folder(str(source), dest)
    assert archive.read_to_end(dest)["bytes"] == facts["bytes_in"]
    assert facts["bytes_out"] < facts["bytes_in"] * 0.8


def test_an_unknown_codec_is_refused(source, dest):
    with pytest.raises(ArchiveError, match="Choose one of gzip, none, zstd"):
        archive.back_up_folder(str(source), dest, codec="rar")


# -- the Engine API ----------------------------------------------------------------------------


class Engine:
    """The calls that an archive needs; the stream may be cut."""

    def __init__(self, stream=b"", local=False, mounts=(), mountpoint="/none", host="tcp://nas:2375"):
        self.host = host
        self.stream = stream
        self.local = local
        self.mounts = list(mounts)
        self.mountpoint = mountpoint

    def is_local(self):
        return self.local

    def volumes(self):
        return [dict(name="echo-uploads", mountpoint=self.mountpoint, labels={}, driver="local")]

    def containers(self):
        return [dict(name="echo-app", mounts=self.mounts)]

    def archive_of(self, unused_container, unused_path):
        for start in range(0, len(self.stream), 5000):
            yield self.stream[start : start + 5000]


MOUNT = dict(type="volume", name="echo-uploads", source="/v/echo-uploads/_data", destination="/app/uploads", rw=True)


def engine_stream():
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as out:
        folder = tarfile.TarInfo("uploads")
        folder.type = tarfile.DIRTYPE
        out.addfile(folder)
        for name in ("a.jpg", "ñ" * 120, "b\udcff", "skip.tmp"):
            member = tarfile.TarInfo("uploads/" + name)
            member.size, member.mtime, member.uid, member.mode = 20000, 1234567890.25, 1001, 0o640
            out.addfile(member, io.BytesIO(bytes(range(250)) * 80))
        for name, kind, target in (
            ("hard", tarfile.LNKTYPE, "uploads/" + "ñ" * 120),
            ("soft", tarfile.SYMTYPE, "uploads/a.jpg"),
            ("pipe", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo("uploads/" + name)
            member.type, member.linkname = kind, target
            out.addfile(member)
    return made.getvalue()


def test_the_engines_members_are_renamed(dest):
    engine = Engine(engine_stream())
    facts = archive.back_up_container_path(engine, "echo-app", "/app/uploads", dest, exclude=["*.tmp"])
    with tarfile.open(dest, encoding="utf-8", errors="surrogateescape") as made:
        members = dict((member.name, member) for member in made)
        content = made.extractfile("./a.jpg").read()
    assert sorted(members) == sorted([".", "./a.jpg", "./" + "ñ" * 120, "./b\udcff", "./hard", "./soft"])
    assert members["./hard"].linkname == "./" + "ñ" * 120
    assert members["./soft"].linkname == "uploads/a.jpg"
    assert (members["./a.jpg"].mtime, members["./a.jpg"].uid, members["./a.jpg"].mode) == (1234567890.25, 1001, 0o640)
    assert content == bytes(range(250)) * 80
    assert facts["skipped"][0]["name"] == "pipe"
    assert archive.read_to_end(dest) == {"members": facts["members"], "bytes": facts["bytes_in"]}
    assert listing(["tar", "tzf"], dest)[0] == b"./"


@pytest.mark.parametrize("kept", [0, 512, 1000, 30000, -10240, -9000])
def test_an_engine_stream_that_is_cut_is_an_error(dest, kept):
    whole = engine_stream().rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    stream = whole[:kept] if kept >= 0 else whole + bytes(512 if kept == -9000 else 0)
    with pytest.raises(ArchiveError, match="echo-app:/app/uploads"):
        archive.back_up_container_path(Engine(stream), "echo-app", "/app/uploads", dest)
    assert not os.path.exists(dest) and not os.path.exists(dest + ".partial")


def test_an_engine_member_from_outside_is_an_error(dest):
    with pytest.raises(ArchiveError, match="lies outside"):
        archive.back_up_container_path(Engine(engine_stream()), "echo-app", "/app/config", dest)
    assert not os.path.exists(dest + ".partial")


def test_a_hard_link_to_something_excluded_is_an_error(dest):
    with pytest.raises(ArchiveError, match="Exclude both or neither"):
        archive.back_up_container_path(Engine(engine_stream()), "echo-app", "/app/uploads", dest, exclude=["ñ*"])
    assert not os.path.exists(dest + ".partial")


def test_the_engines_stream_is_never_held_whole(dest, monkeypatch):
    engine = Engine(engine_stream())
    held = []
    addfile = tarfile.TarFile.addfile

    def counting(made, *rest):
        held.append(len(made.members))
        addfile(made, *rest)

    monkeypatch.setattr(engine_tar.tarfile.TarFile, "addfile", counting)
    archive.back_up_container_path(engine, "echo-app", "/app/uploads", dest)
    assert held and max(held) == 0


# -- by whichever way is open ------------------------------------------------------------------


def back_up(engine, dest, check_mode=False, **options):
    return archive.back_up(engine, str(dest), check_mode=check_mode, codec="gzip", exclude=[], **options)


def test_a_local_volume_is_read_where_it_lies(source, tmp_path, monkeypatch):
    monkeypatch.setattr(archive.os, "geteuid", lambda: 0)
    engine = Engine(local=True, mountpoint=str(source), host="unix:///var/run/docker.sock")
    (tmp_path / "set").mkdir()
    result = back_up(engine, tmp_path / "set", volume="echo-uploads", component="uploads")
    assert (result["method"], result["dest"]) == ("mount", str(tmp_path / "set" / "uploads.tar.gz"))
    assert sorted(result["artifact"]) == sorted(
        ["role", "file", "source", "bytes_in", "bytes_out", "members", "codec", "sha256", "seconds"]
        + ["fingerprint", "reused"]
    )
    assert (result["artifact"]["role"], result["artifact"]["source"]) == ("uploads", "echo-uploads")
    assert os.listdir(str(tmp_path / "set")) == ["uploads.tar.gz"]


def test_without_root_what_containers_write_comes_through_them(source, dest, monkeypatch):
    monkeypatch.setattr(archive.os, "geteuid", lambda: 1000)
    bind = dict(MOUNT, type="bind", name=None, source=str(source), destination="/app/uploads")
    for mount, wanted in ((MOUNT, dict(volume="echo-uploads", mountpoint=str(source))), (bind, dict(path=str(source)))):
        engine = Engine(engine_stream(), mounts=[mount], mountpoint=str(source), host="unix:///var/run/docker.sock")
        assert back_up(engine, dest, **wanted)["method"] == "api"
    assert back_up(Engine(host="unix:///var/run/docker.sock"), dest, path=str(source))["method"] == "mount"


def test_where_a_volume_lies_is_not_asked_for_again(source, dest, monkeypatch):
    monkeypatch.setattr(archive.os, "geteuid", lambda: 0)

    class Silent(Engine):
        def is_local(self):
            raise EngineError("It was asked.")

        volumes = containers = is_local

    engine = Silent(host="unix:///var/run/docker.sock")
    result = back_up(engine, dest, volume="echo-uploads", mountpoint=str(source))
    assert (result["method"], result["artifact"]["source"]) == ("mount", "echo-uploads")
    # What can't be read there is asked for.
    with pytest.raises(EngineError, match="was asked"):
        back_up(engine, dest, volume="echo-uploads", mountpoint="/nowhere/_data")
    remote = Engine(engine_stream(), mounts=[MOUNT])
    assert back_up(remote, dest, volume="echo-uploads", mountpoint=str(source))["method"] == "api"


def test_what_a_restore_keeps_is_left_out(source, tmp_path):
    (source / ".echo-restore-1" / "old").mkdir(parents=True)
    (source / ".echo-restore-1" / "old" / "a.jpg").write_bytes(b"replaced")
    result = back_up(Engine(host="unix:///var/run/docker.sock"), tmp_path / "out.tar.gz", path=str(source))
    names = subprocess.check_output(["tar", "--list", "--gzip", "--file=" + result["dest"]]).decode()
    assert "covers/a.jpg" in names
    assert "echo-restore" not in names


def test_check_mode_counts_and_writes_nothing(source, tmp_path):
    os.link(str(source / "covers" / "a.jpg"), str(source / "hard"))
    os.mkfifo(str(source / "pipe"))
    engine = Engine(host="unix:///var/run/docker.sock")
    result = back_up(engine, tmp_path, path=str(source), check_mode=True)
    assert (result["changed"], result["bytes"], result["files"]) == (True, (3 << 20) + 2000000, 3)
    assert result["dest"] == str(tmp_path / "source.tar.gz")
    assert [entry["name"] for entry in result["skipped"]] == ["pipe"]
    assert os.listdir(str(tmp_path)) == ["source"]


@pytest.mark.parametrize("wanted", [dict(volume="echo-uploads"), dict(path="/v/echo-uploads/_data")])
def test_a_remote_volume_comes_through_a_container(dest, wanted):
    engine = Engine(engine_stream(), mounts=[MOUNT])
    planned = back_up(engine, dest, check_mode=True, **wanted)
    assert (planned["method"], planned["bytes"], os.path.exists(dest)) == ("api", None, False)
    result = back_up(engine, dest, **wanted)
    assert (result["method"], result["artifact"]["members"]) == ("api", 7)


def test_a_folder_below_a_bind_mount_is_found(dest):
    mount = dict(MOUNT, type="bind", name=None, source="/srv/echo", destination="/app")
    result = back_up(Engine(engine_stream(), mounts=[mount]), dest, path="/srv/echo/uploads")
    assert result["artifact"]["members"] == 7
    with pytest.raises(ArchiveError, match="no container"):
        back_up(Engine(mounts=[mount]), dest, path="/srv/echo-other")


def test_a_remote_path_is_never_read_here(source, dest):
    with pytest.raises(ArchiveError, match="no container"):
        back_up(Engine(host="tcp://nas:2375"), dest, path=str(source))
    assert not os.path.exists(dest)


def test_a_volume_that_waits_for_its_mount_is_not_taken_for_empty(tmp_path, dest):
    folder = tmp_path / "echo-uploads" / "_data"
    folder.mkdir(parents=True)
    (tmp_path / "echo-uploads" / "opts.json").write_text('{"MountType": "nfs"}')
    engine = Engine(engine_stream(), True, [MOUNT], str(folder), "unix:///var/run/docker.sock")
    assert back_up(engine, dest, volume="echo-uploads")["method"] == "api"


def test_an_unknown_volume_lists_those_there_are(dest):
    with pytest.raises(EchoError) as failure:
        back_up(Engine(), dest, volume="echo-upload")
    assert failure.value.as_result()["candidates"] == ["echo-uploads"]
    assert "echo-upload " in failure.value.what


@pytest.mark.parametrize("size", [0, 1, DIRECT_SIZE, 2 * DIRECT_SIZE + 1])
@pytest.mark.parametrize("folder", ["disk", "memory"])
def test_a_file_of_any_size_is_whole_past_the_page_cache_and_where_there_is_no_way_past_it(tmp_path, size, folder):
    data = noise(size)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if folder == "memory" else str(tmp_path)) as where:
        dest = os.path.join(where, "out.tar")
        with codec.StagedFile(dest, "none") as staged:
            for start in range(0, size, 1000003):
                staged.write(data[start : start + 1000003])
            staged.publish()
        with open(dest, "rb") as written:
            assert written.read() == data
    assert staged.bytes_out == size
    assert staged.sha256 == hashlib.sha256(data).hexdigest()
