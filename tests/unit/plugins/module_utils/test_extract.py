# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives good and hostile, unpacked by the real tar; nothing may appear but what is asked for."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import subprocess
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.module_utils import archive, codec, tar_guard
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, EchoError, SpaceError
from ansible_collections.echo_music.ops.plugins.module_utils.extract import root_of, unpack
from ansible_collections.echo_music.ops.plugins.module_utils.tar_guard import TarGuard

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners are given by root only")


def member(name, kind=tarfile.REGTYPE, link="", data=b"", mode=0o644, pax=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(data), mode
    info.pax_headers = pax or {}
    return info, data


def folder(name, **options):
    return member(name, tarfile.DIRTYPE, mode=options.pop("mode", 0o755), **options)


def symlink(name, target):
    return member(name, tarfile.SYMTYPE, target)


def hard_link(name, target):
    return member(name, tarfile.LNKTYPE, target)


def tar_bytes(*members, form=tarfile.PAX_FORMAT, pax=None):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers=pax or {}) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def raw_header(name, kind=b"0", size=0, magic=b"ustar\x0000", mode=0o644):
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108] = b"%07o\0" % mode
    header[108:124] = b"0000000\0" * 2
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"%011o\0" % 0
    header[156:157] = kind
    header[257 : 257 + len(magic)] = magic
    header[148:156] = b"%06o\0 " % (sum(header) + 8 * 32)
    return bytes(header)


def pax_header(*records):
    content = b""
    for record in records:
        length = len(record) + 2
        while len(b"%d %s\n" % (length, record)) != length:
            length += 1
        content += b"%d %s\n" % (length, record)
    return raw_header(b"x", b"x", len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def tree(path):
    """Everything that can be seen of a folder."""
    found = {}
    path = os.fsencode(str(path))
    for above, folders, files in os.walk(path):
        for name in [b""] + folders + files if above == path else folders + files:
            full = os.path.join(above, name) if name else above
            status = os.lstat(full)
            what = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
            if stat.S_ISLNK(status.st_mode):
                what += (os.readlink(full),)
            elif stat.S_ISREG(status.st_mode):
                with open(full, "rb") as file:
                    what += (hashlib.sha256(file.read()).hexdigest(),)
            found[os.path.relpath(full, path)] = what
    return found


class Place:
    """A volume in which something is unpacked, and all around it what must stay as it is."""

    def __init__(self, root):
        self.root = root
        self.live = root / "volume"
        (self.live / "covers").mkdir(parents=True)
        (self.live / "covers" / "live.jpg").write_bytes(b"live")
        self.outside = root / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(b"secret")
        self.archive = root / "uploads.tar"
        self.staging = self.live / ".echo-restore-1" / "new"

    def unpack(self, content, **options):
        self.archive.write_bytes(content)
        return unpack(str(self.archive), str(self.staging), **options)

    def refuses(self, content, kind=ArchiveError, **options):
        self.archive.write_bytes(content)
        before = tree(self.root)
        with pytest.raises(kind) as caught:
            unpack(str(self.archive), str(self.staging), **options)
        assert tree(self.root) == before
        assert str(self.archive) in caught.value.what and caught.value.remedy
        return str(caught.value)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


# -- what is good ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(codec.SUFFIXES))
def test_our_own_archive_comes_back_as_it_was(place, tmp_path, name):
    source = tmp_path / "source"
    (source / "music" / ("long " * 40)).mkdir(parents=True)
    (source / "music" / ("long " * 40) / "ü\n.mp3").write_bytes(os.urandom(3 << 20))
    (source / "empty").write_bytes(b"")
    os.link(str(source / "empty"), str(source / "again"))
    os.symlink("music", str(source / "soft"))
    os.symlink("../empty", str(source / "music" / "up"))
    os.chown(str(source / "soft"), 3000000, 3000000, follow_symlinks=False)
    with open(os.fsencode(str(source)) + b"/not-utf8-\xff\xfe" + b"x" * 120, "wb") as file:
        file.write(b"kept as it is")
    with open(str(source / "holes"), "wb") as file:
        file.truncate(40 << 20)
        file.seek(20 << 20)
        file.write(b"island")
    os.setxattr(str(source / "empty"), "user.colour", b"blue")
    subprocess.run(["chown", "3000000:12", str(source / "empty")], check=True)
    os.chown(str(source), 999, 998)
    os.chmod(str(source), 0o2775)
    os.utime(str(source / "empty"), ns=(1, 1234567890123456789))
    packed = tmp_path / ("uploads" + codec.SUFFIXES[name])
    facts = archive.back_up_folder(str(source), str(packed), codec=name)
    found = unpack(str(packed), str(place.staging), expected=facts)
    assert found == dict(members=facts["members"], bytes=facts["bytes_in"], files=4, remarks=[], unplaced=[])
    assert tree(place.staging) == tree(source)
    assert os.getxattr(str(place.staging / "empty"), "user.colour") == b"blue"
    assert os.stat(str(place.staging / "empty")).st_mtime_ns == 1234567890123456789
    assert os.stat(str(place.staging / "empty")).st_nlink == 2
    assert os.stat(str(place.staging / "holes")).st_blocks < 2048


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_every_format_of_tar_is_read(place, tmp_path, form):
    source = tmp_path / "source"
    (source / "covers" / ("d" * 60)).mkdir(parents=True)
    (source / "covers" / "a.jpg").write_bytes(b"a" * 700)
    os.symlink("a.jpg", str(source / "covers" / "b.jpg"))
    if form != "v7":
        (source / "covers" / ("d" * 60) / ("f" * 60)).write_bytes(b"long")
    if form in ("oldgnu", "gnu", "posix"):
        os.symlink("covers/" + "t" * 200, str(source / ("s" * 200)))
    command = ["tar", "--format", form, "-cf", str(place.archive), "-C", str(source), "."]
    subprocess.run(command, check=True)
    unpack(str(place.archive), str(place.staging))
    assert tree(place.staging) == tree(source)


@pytest.mark.parametrize("form", [["--format=gnu"], ["--format=posix"], ["--format=posix", "--sparse-version=0.1"]])
@pytest.mark.parametrize("islands", [1, 3, 60])
def test_holes_in_every_format(place, tmp_path, form, islands):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("holes", "n" * 150):
        with open(str(source / name), "wb") as file:
            for island in range(islands):
                file.seek((island + 1) << 20)
                file.write(b"island %d" % island)
            file.truncate((islands + 2) << 20)
    command = ["tar", "--sparse", "-cf", str(place.archive), "-C", str(source), "."] + form
    subprocess.run(command, check=True)
    unpack(str(place.archive), str(place.staging))
    assert tree(place.staging) == tree(source)
    assert os.stat(str(place.staging / "holes")).st_blocks * 512 < islands << 19


@pytest.mark.parametrize(
    "first, root",
    [("./", ""), ("./data/", "data"), ("data/", "data"), ("data/x", "data"), ("database/", ""), ("a", "")],
)
def test_where_the_root_lies(place, first, root):
    place.archive.write_bytes(gzip.compress(tar_bytes(folder(first.rstrip("/") or "."), member("zz"))))
    assert root_of(str(place.archive)) == root


@pytest.mark.parametrize("prefix", ["./data", "data"])
def test_data_backup_of_the_guide(place, prefix):
    content = tar_bytes(
        folder(prefix, mode=0o750),
        member(prefix + "/a", data=b"a"),
        hard_link(prefix + "/b", prefix + "/a"),
        symlink(prefix + "/c", "a"),
    )
    place.unpack(content, strip="data")
    assert sorted(os.listdir(str(place.staging))) == ["a", "b", "c"]
    assert (place.staging / "c").read_bytes() == b"a"
    assert os.stat(str(place.staging / "b")).st_nlink == 2
    assert stat.S_IMODE(os.stat(str(place.staging)).st_mode) == 0o750


def test_the_root_is_like_the_live_one_if_the_archive_does_not_tell(place):
    os.chown(str(place.live), 999, 998)
    os.chmod(str(place.live), 0o2770)
    place.unpack(tar_bytes(member("a")), like=str(place.live))
    status = os.stat(str(place.staging))
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (999, 998, 0o2770)


def test_an_empty_archive_is_an_empty_folder(place):
    assert place.unpack(tar_bytes()) == dict(members=0, bytes=10240, files=0, remarks=[], unplaced=[])
    assert os.listdir(str(place.staging)) == []


def test_the_environment_gives_tar_no_options(place, monkeypatch):
    monkeypatch.setenv("TAR_OPTIONS", "--strip-components=1")
    place.unpack(tar_bytes(folder("covers"), member("covers/a")))
    assert (place.staging / "covers" / "a").exists()


# -- what is hostile ---------------------------------------------------------------------------

LONG = "l/" * 80
HOSTILE = {
    "absolute name": ([member("/etc/evil")], "leads out"),
    "dot dot": ([member("../evil")], "leads out"),
    "dot dot within": ([member("covers/../../evil")], "leads out"),
    "long absolute name": ([member("/" + LONG + "x")], "leads out"),
    "long dot dot": ([member(LONG + "../" * 90 + "x")], "leads out"),
    "absolute link": ([symlink("a", "/etc/passwd")], "leads out"),
    "link out": ([symlink("a", "../outside/secret")], "leads out"),
    "link to the parent": ([symlink("covers/a", "../..")], "leads out"),
    "long link out": ([symlink("a", "../" * 60 + "outside")], "leads out"),
    "link out by way of a link": ([symlink("x/y/up", "../.."), symlink("a", "x/y/up/../../etc")], "leads out"),
    "hard link out": ([hard_link("a", "../outside/secret")], "leads out"),
    "absolute hard link": ([hard_link("a", "/outside/secret")], "leads out"),
    "hard link to the root": ([hard_link("a", ".")], "leads to the root"),
    "hard link to a link that leads out from there": ([symlink("x/y/l", "../z"), hard_link("l", "x/y/l")], "leads out"),
    "behind a link": ([folder("d"), symlink("a", "d"), member("a/evil")], "behind a symbolic link"),
    "folder behind a link": ([symlink("a", "d"), folder("a/evil")], "behind a symbolic link"),
    "behind the second name of a link": (
        [symlink("a", "d"), hard_link("b", "a"), member("b/evil")],
        "behind a symbolic link",
    ),
    "hard link through a link": ([symlink("a", "d"), hard_link("b", "a/secret")], "behind a symbolic link"),
    "again under a link's name": ([symlink("a", "b"), member("a", data=b"x")], "comes twice"),
    "folder under a link's name": ([symlink("a", "b"), folder("a")], "comes twice"),
    "character device": ([member("a", tarfile.CHRTYPE)], "a character device"),
    "block device": ([member("a", tarfile.BLKTYPE)], "a block device"),
    "named pipe": ([member("a", tarfile.FIFOTYPE)], "a named pipe"),
    "unknown kind": ([member("a", b"V")], "unknown kind V"),
    "set-user-ID": ([member("a", mode=0o4755)], "set-ID"),
    "set-user-ID folder": ([folder("a", mode=0o4755)], "set-ID"),
    "set-group-ID": ([member("a", mode=0o2755)], "set-ID"),
    "a name of ours": ([folder(".echo-restore-7"), member(".echo-restore-7/new")], "restores use"),
    "file for the root": ([member(".")], "no folder"),
    "link for the root": ([symlink(".", "a")], "no folder"),
    "much too long": ([member("x" * 5000)], "no proper name"),
}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_hostile(place, case, form):
    members, reason = HOSTILE[case]
    assert reason in place.refuses(tar_bytes(folder("."), member("good"), *members, form=form))


RAW = {
    "pax path": (pax_header(b"path=../evil") + raw_header(b"innocent"), "leads out"),
    "pax link": (pax_header(b"linkpath=/etc") + raw_header(b"innocent", b"2"), "leads out"),
    "last of two pax paths": (pax_header(b"path=a", b"path=/evil") + raw_header(b"innocent"), "leads out"),
    "sparse name": (pax_header(b"path=a", b"GNU.sparse.name=../evil") + raw_header(b"innocent"), "leads out"),
    "capabilities": (pax_header(b"SCHILY.xattr.security.capability=x") + raw_header(b"a"), "capabilities"),
    "zero in a name": (pax_header(b"path=a\0b") + raw_header(b"innocent"), "no proper name"),
    "no name": (raw_header(b""), "no proper name"),
    "malformed pax": (
        raw_header(b"x", b"x", 20) + b"999 path=short\n".ljust(512, b"\0") + raw_header(b"a"),
        "malformed",
    ),
    "pax without an end": (raw_header(b"x", b"x", 1 << 40), "claims"),
    "wrong checksum": (raw_header(b"a").replace(b"0000644", b"0000645"), "wrong checksum"),
    "no number": (raw_header(b"a")[:100] + b"zzzzzzz\0" + raw_header(b"a")[108:], "wrong checksum"),
    "sparse in the wrong format": (raw_header(b"a", b"S"), "is sparse"),
    "after a zero": (bytes(512) + raw_header(b"a"), "follows its end"),
}


@pytest.mark.parametrize("case", sorted(RAW))
def test_hostile_headers(place, case):
    content, reason = RAW[case]
    assert reason in place.refuses(content + bytes(1024))


def test_pax_size_is_the_size(place):
    """A reader that trusts the header's size would take the file's contents for the next member."""
    evil = raw_header(b"../evil")
    content = pax_header(b"size=%d" % len(evil)) + raw_header(b"innocent") + evil + bytes(1024)
    assert place.unpack(content)["members"] == 1
    assert (place.staging / "innocent").read_bytes() == evil


def test_global_headers_rename_nothing(place):
    good = tar_bytes(member("a"), pax={"comment": "1234"})
    assert place.unpack(good)["members"] == 1
    assert "global header" in place_again(place).refuses(tar_bytes(member("a"), pax={"path": "../evil"}))


def place_again(place):
    subprocess.run(["rm", "-rf", str(place.staging.parent)], check=True)
    return place


def test_strip_takes_nothing_from_outside(place):
    assert "outside of data" in place.refuses(tar_bytes(folder("data"), member("other/a")), strip="data")
    assert "leads out" in place.refuses(tar_bytes(folder("data"), symlink("data/a", "../data/b")), strip="data")
    assert "outside of data" in place.refuses(tar_bytes(hard_link("data/a", "b")), strip="data")


def test_too_many_links_to_keep_track_of(place, monkeypatch):
    monkeypatch.setattr(tar_guard, "LINKS_MAX", 3000)
    assert "more symbolic links" in place.refuses(tar_bytes(*[symlink("l%d" % n, "a") for n in range(12)]))


def test_a_member_that_tar_can_not_create(place):
    assert "File name too long" in place.refuses(tar_bytes(member("x" * 300)))
    assert "tar could not unpack" in place.refuses(tar_bytes(hard_link("a", "missing")))
    assert "tar could not unpack" in place.refuses(tar_bytes(folder("d"), member("d/a"), symlink("d", "e")))


def test_deeply_nested_folders_are_removed_again(place):
    deep = "d/" * 1500
    place.refuses(tar_bytes(member(deep + "x"), member("../evil")))


# -- what moves, and what is contained -----------------------------------------------------------

PLACES = {"music": "uploads", "covers": "covers", "secrets.env": "secrets.env"}


def test_what_has_a_place_goes_there(place):
    found = place.unpack(
        tar_bytes(
            folder(".", mode=0o700),
            folder("music", mode=0o2775),
            member("music/a", data=b"a"),
            symlink("music/b", "a"),
            hard_link("music/c", "music/a"),
            member("other/" + "x" * 150, data=b"x" * 700),
            symlink("elsewhere", "music"),
            member("secrets.env", data=b"s", mode=0o600),
        ),
        places=PLACES,
    )
    assert found["unplaced"] == ["elsewhere", "other"] and found["files"] == 2 and found["members"] == 8
    assert sorted(os.listdir(str(place.staging))) == ["secrets.env", "uploads"]
    assert sorted(os.listdir(str(place.staging / "uploads"))) == ["a", "b", "c"]
    assert (place.staging / "uploads" / "b").read_bytes() == b"a"
    assert os.stat(str(place.staging / "uploads" / "c")).st_nlink == 2
    assert stat.S_IMODE(os.stat(str(place.staging / "uploads")).st_mode) == 0o2775


@pytest.mark.parametrize("islands", [1, 60])
def test_holes_of_what_has_no_place(place, tmp_path, islands):
    source = tmp_path / "source"
    for name in ("covers", "other"):
        (source / name).mkdir(parents=True)
        with open(str(source / name / "holes"), "wb") as file:
            for island in range(islands):
                file.seek((island + 1) << 20)
                file.write(b"%s %d" % (name.encode(), island))
            file.truncate((islands + 2) << 20)
    subprocess.run(["tar", "--sparse", "--format=gnu", "-cf", str(place.archive), "-C", str(source), "."], check=True)
    unpack(str(place.archive), str(place.staging), places=PLACES)
    assert tree(place.staging / "covers") == tree(source / "covers")


@pytest.mark.parametrize("contain", [False, True])
@pytest.mark.parametrize(
    "members, reason",
    [
        # What would be harmless under its old name is judged by the new one, and the other way round.
        ([symlink("music/d", "../covers"), member("music/d/evil")], "behind a symbolic link"),
        ([symlink("covers", "music"), member("covers/evil")], "behind a symbolic link"),
        ([member("music/../../evil")], "leads out"),
        ([hard_link("covers/a", "other/a")], "has no place"),
        ([hard_link("covers/a", "../outside/secret")], "leads out"),
        ([member(".echo-restore-7/x")], "restores use"),
        ([symlink("other", "d"), hard_link("covers/l", "other")], "has no place"),
    ],
)
def test_hostile_with_places(place, members, reason, contain):
    places = dict(PLACES, **{".echo-restore-7": ".echo-restore-7"})
    assert reason in place.refuses(tar_bytes(*members), places=places, contain=contain)


def test_what_is_contained(place):
    found = place.unpack(
        pax_header(b"SCHILY.xattr.security.capability=x")
        + raw_header(b"capable")
        + tar_bytes(
            folder("d", mode=0o6755),
            member("d/tool", mode=0o6755),
            member("pipe", tarfile.FIFOTYPE),
            member("null", tarfile.CHRTYPE),
            symlink("d/absolute", "/etc/passwd"),
            symlink("d/up", "../../outside"),
        ),
        contain=True,
    )
    assert sorted(os.listdir(str(place.staging))) == ["capable", "d"]
    assert stat.S_IMODE(os.stat(str(place.staging / "d")).st_mode) == 0o2755
    assert stat.S_IMODE(os.stat(str(place.staging / "d" / "tool")).st_mode) == 0o755
    assert os.listxattr(str(place.staging / "capable")) == []
    assert os.readlink(str(place.staging / "d" / "absolute")) == "/etc/passwd"
    # Five are told, the rest is counted.
    assert len(found["remarks"]) == 6 and found["remarks"][-1] == "1 more such members"


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_what_can_not_be_contained_stays_refused(place, case):
    members, reason = HOSTILE[case]
    content = tar_bytes(folder("."), member("good"), *members)
    harmless = ("device", "named pipe", "set-ID")
    if any(word in reason for word in harmless) or (reason == "leads out" and "link" in case and "hard" not in case):
        place.unpack(content, contain=True)
    elif case == "hard link to a link that leads out from there":
        place.unpack(content, contain=True)
        assert os.readlink(str(place.staging / "l")) == "../z"
    else:
        assert reason in place.refuses(content, contain=True)
    assert (place.outside / "secret").read_bytes() == b"secret"


def test_nothing_is_written_through_a_link_that_was_contained(place):
    members = [symlink("a", str(place.outside)), member("a/evil")]
    assert "behind a symbolic link" in place.refuses(tar_bytes(*members), contain=True)
    members = [symlink("a", str(place.outside)), member("a", data=b"x")]
    assert "comes twice" in place.refuses(tar_bytes(*members), contain=True)
    members = [symlink("a", str(place.outside / "secret")), hard_link("b", "a"), member("b", data=b"x")]
    assert "comes twice" in place.refuses(tar_bytes(*members), contain=True)


def owned(info_and_data, uid, gid):
    info_and_data[0].uid, info_and_data[0].gid = uid, gid
    return info_and_data


@pytest.mark.parametrize("uid", [1001, 3000000])
def test_what_the_app_owned_is_the_apps(place, uid):
    os.chown(str(place.live), 1005, 1006)
    place.unpack(
        tar_bytes(
            owned(folder("."), uid, uid),
            owned(member("theirs"), uid, uid),
            owned(member("roots"), 0, 0),
            owned(member("another"), 1234, uid),
            owned(symlink("soft", "theirs"), uid, uid),
        ),
        like=str(place.live),
    )
    owners = dict((name, os.lstat(str(place.staging / name))) for name in ("", "theirs", "roots", "another", "soft"))
    assert dict((name, (status.st_uid, status.st_gid)) for name, status in owners.items()) == {
        "": (1005, 1006),
        "theirs": (1005, 1006),
        "roots": (0, 0),
        "another": (1234, 1006),
        "soft": (1005, 1006),
    }


@pytest.mark.parametrize("owner, live", [(0, 1005), (1001, 0), (1001, 1001)])
def test_owners_stay_where_nobody_is_to_take_over(place, owner, live):
    os.chown(str(place.live), live, live)
    place.unpack(tar_bytes(owned(folder("."), owner, owner), owned(member("a"), 1001, 1001)), like=str(place.live))
    assert os.stat(str(place.staging / "a")).st_uid == 1001


# -- what is too large ---------------------------------------------------------------------------


def test_bomb(place):
    bomb = gzip.compress(raw_header(b"a", size=1 << 28) + bytes(1 << 25))
    assert "more than the 1000000 bytes that are free (reached at a)" in place.refuses(
        bomb, SpaceError, bytes_free=10**6
    )


def test_bomb_of_headers_and_behind_the_end(place):
    place.refuses(raw_header(b"x", b"L", 0) * 3000 + bytes(1024), SpaceError, bytes_free=10**6)
    place.refuses(gzip.compress(tar_bytes(member("a")) + bytes(1 << 25)), SpaceError, bytes_free=10**6)


def test_more_members_than_there_are_inodes(place, monkeypatch):
    guard = TarGuard("many.tar", files_free=1000)
    with pytest.raises(SpaceError, match="more than the 1000 files and folders"):
        guard.feed(raw_header(b"p") * 1001)
    vfs = os.statvfs(str(place.root))
    small = os.statvfs_result(tuple(vfs[:7]) + (10,) + tuple(vfs[8:]))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    assert "files and folders" in place.refuses(tar_bytes(*[member("m%d" % n) for n in range(12)]), SpaceError)


def test_room_is_not_needed_for_what_has_no_place(place):
    content = tar_bytes(member("logs/big", data=bytes(1 << 20)), member("covers/a", data=b"a"))
    place.unpack(content, places=PLACES, bytes_free=20000)
    assert (place.staging / "covers" / "a").read_bytes() == b"a"
    content = tar_bytes(member("logs/a"), member("covers/big", data=bytes(1 << 20)))
    place_again(place).refuses(content, SpaceError, places=PLACES, bytes_free=20000)


def test_full_disk(place, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        place.staging = small / "new"
        place.archive.write_bytes(tar_bytes(member("good"), member("a", data=os.urandom(2 << 20))))
        with pytest.raises(SpaceError, match="Wrote only|No space left on device"):
            unpack(str(place.archive), str(place.staging), bytes_free=1 << 40)
        with pytest.raises(SpaceError, match="bytes that are free"):
            unpack(str(place.archive), str(place.staging))
        assert os.listdir(str(small)) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_memory_is_flat():
    """200,000 members with pax headers, through the guard."""
    one = pax_header(b"path=" + b"p" * 150) + raw_header(b"p", size=10) + bytes(512)
    guard = TarGuard("many.tar")
    for unused in range(100):
        guard.feed(one * 100)
    before = resident()
    for unused in range(1900):
        guard.feed(one * 100)
    # Nor do what is told of members and what has no place grow with their number.
    for contained in (TarGuard("many.tar", contain=True), TarGuard("many.tar", places=PLACES)):
        for number in range(20):
            contained.feed(b"".join(raw_header(b"%d/%d" % (number, n), b"6") for n in range(500) if contained._contain))
            contained.feed(b"".join(raw_header(b"%d-%d" % (number, n)) for n in range(500)))
        assert len(contained.remarks) + len(contained.unplaced) <= 20
    assert guard.members == guard.files == 200000
    assert resident() - before < 4 << 20


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- what is damaged -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valid():
    return tar_bytes(
        folder("."),
        folder("covers", mode=0o2775),
        member("covers/a.jpg", data=os.urandom(5000)),
        member("covers/" + "n" * 150, data=b"x" * 600),
        symlink("covers/soft", "a.jpg"),
        hard_link("covers/hard", "covers/a.jpg"),
    )


@pytest.mark.parametrize("pack", [gzip.compress, bytes, None], ids=["gzip", "none", "zstd"])
def test_cut_anywhere(place, valid, pack):
    if pack is None:
        pack = pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress
    packed = pack(valid)
    # Of the zeros at the end, two records make the end.
    end = len(packed) if pack is not bytes else len(valid.rstrip(b"\0")) + 512
    for size in range(1, end, max(1, end // 25)):
        place.refuses(packed[:size])


def test_a_flipped_byte_anywhere(place, valid):
    packed = gzip.compress(valid, mtime=0)
    expected = dict(sha256=hashlib.sha256(packed).hexdigest())
    # The header of gzip is told by the checksum alone.
    for at in range(0, len(packed), len(packed) // 40):
        flipped = bytearray(packed)
        flipped[at] ^= 0x40
        place.refuses(bytes(flipped), expected=expected)


def test_codec_damage_names_the_member(place):
    packed = gzip.compress(tar_bytes(member("first", data=os.urandom(3 << 20))))
    assert "first" in place.refuses(packed[:-9])


@pytest.mark.parametrize("key, value", [("sha256", "0" * 64), ("bytes_in", 1), ("members", 5)])
def test_not_what_the_manifest_tells(place, valid, key, value):
    assert "manifest" in place.refuses(valid, expected={key: value})


def test_missing(place):
    with pytest.raises(ArchiveError, match="can't be read"):
        unpack(str(place.root / "none.tar"), str(place.staging))
    assert os.listdir(str(place.live)) == ["covers"]


def test_what_is_staged_already_is_not_touched(place, valid):
    place.unpack(valid)
    before = tree(place.staging)
    with pytest.raises(ArchiveError, match="already"):
        place.unpack(valid)
    assert tree(place.staging) == before


def test_the_hidden_folder_is_no_link(place, valid):
    os.symlink(str(place.outside), str(place.staging.parent))
    place.archive.write_bytes(valid)
    with pytest.raises(ArchiveError, match="symbolic link"):
        unpack(str(place.archive), str(place.staging))
    assert os.listdir(str(place.outside)) == ["secret"]


# -- fuzz ------------------------------------------------------------------------------------------

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
GOOD = [b"a", b"a/b", b"b", b"d/e", b"d/../e", b"d", b".", b"\xff\n", b"./a", b"a" * 120, b"d/e/f"]
FIELDS = st.sampled_from(GOOD * 4 + [b"../x", b"/x", b"a/../../x", b"..", b""])
KEYS = ["path", "linkpath", "size", "mtime", "uid", "SCHILY.xattr.user.a", "SCHILY.acl.access"]
SPARSE_KEYS = ["GNU.sparse." + key for key in ("name", "map", "major", "minor", "realsize", "size", "numblocks")]
KINDS = st.sampled_from([b"0", b"0", b"0", b"5", b"5", b"1", b"2", b"2", b"S", b"L", b"K", b"g", b"\0", b"7", b"3"])
MAGIC = st.sampled_from([b"ustar\x0000", b"ustar  \0", b""])


@st.composite
def archives(draw):
    """Headers that are right in form, with anything in their fields."""
    content = b""
    for unused in range(draw(st.integers(1, 6))):
        if draw(st.integers(0, 3)) == 0:
            key = draw(st.sampled_from(KEYS + SPARSE_KEYS)).encode()
            value = draw(st.one_of(FIELDS, st.sampled_from([b"0", b"1", b"600"]), st.binary(max_size=30)))
            content += pax_header(key + b"=" + value)
        size = draw(st.sampled_from([0, 0, 10, 600]))
        header = bytearray(raw_header(draw(FIELDS)[:100], draw(KINDS), size, draw(MAGIC)))
        link = draw(FIELDS)[:100]
        header[157 : 157 + len(link)] = link
        if draw(st.integers(0, 3)) == 0:
            header[draw(st.integers(345, 511))] = draw(st.integers(0, 255))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        contents = size if header[156:157] not in b"1235" else 0
        content += bytes(header) + draw(st.binary(max_size=contents)).ljust(-(-contents // 512) * 512, b"\0")
    return content + bytes(draw(st.sampled_from([1024, 1024, 1024, 512, 0])))


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("fuzz"))


def survives(place, content, **options):
    place_again(place)
    place.archive.write_bytes(content)
    before = tree(place.root)
    try:
        unpack(str(place.archive), str(place.staging), **options)
    except EchoError:
        assert tree(place.root) == before
        return
    inside = tree(place.staging)
    for name, what in inside.items():
        if what[0] == stat.S_IFLNK and not options.get("contain"):
            leads = os.path.realpath(os.path.join(os.fsencode(str(place.staging)), name))
            assert (leads + b"/").startswith(os.fsencode(str(place.staging)) + b"/")
    place_again(place)
    assert tree(place.root) == before
    for what in inside.values():
        assert what[0] in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
        assert not what[1] & stat.S_ISUID


@FUZZ
@given(content=archives())
def test_fuzz_headers(fuzzed, content):
    survives(fuzzed, content)


@settings(FUZZ, max_examples=75)
@given(content=archives(), contain=st.booleans())
def test_fuzz_headers_with_places(fuzzed, content, contain):
    survives(fuzzed, content, places={"a": "c", "d": "b"}, contain=contain)


@settings(FUZZ, max_examples=75)
@given(content=archives())
def test_fuzz_headers_contained(fuzzed, content):
    survives(fuzzed, content, contain=True)


@FUZZ
@given(content=st.one_of(st.binary(max_size=2000), st.binary(max_size=600).map(lambda tail: b"\x1f\x8b\x08" + tail)))
def test_fuzz_anything(fuzzed, content):
    survives(fuzzed, content)


@FUZZ
@given(data=st.data(), packed=st.booleans())
def test_fuzz_mutations(fuzzed, valid, data, packed):
    content = bytearray(gzip.compress(valid) if packed else valid)
    for unused in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    survives(fuzzed, bytes(content[: data.draw(st.integers(0, len(content)))]))
