# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets that prove themselves, and sets in which something is wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import struct
import tarfile
from types import SimpleNamespace

import pytest
from fake_engine import FakeCommand, FakeEngine, container, image

from ansible_collections.echo_music.ops.plugins.module_utils import verify
from ansible_collections.echo_music.ops.plugins.module_utils.drill import AppError
from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    ArchiveError,
    CommandError,
    DatabaseError,
    EngineError,
    SetError,
    SpaceError,
    StackError,
)
from ansible_collections.echo_music.ops.plugins.module_utils.proof import is_proven, read_proofs
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import ServerError
from ansible_collections.echo_music.ops.plugins.module_utils.verify import VerifyError, check_files, ensure_verified

SET_ID = "backup_2026-11-24_03-00-00"
SQL = b"--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 15.18\nSELECT 1;\n--\n-- PostgreSQL database dump complete\n--\n\n"
GLOBALS = b"--\n-- PostgreSQL database cluster dump\n--\n\nCREATE ROLE ana;\n--\n-- PostgreSQL database cluster dump complete\n--\n\n"
TABLES = {"public.users": 5, "public.albums": 1}
IMAGES = [
    image("postgres:15-alpine", dict(PG_MAJOR="15")),
    image("postgres:17-alpine", dict(PG_MAJOR="17")),
    image("redis:7-alpine"),
    image("echo:1"),
    image("echo:2"),
]


def dump(version="15.18"):
    """The start of a custom-format dump of version 1.14."""
    strings = [struct.pack("<BI", 0, len(text)) + text.encode() for text in ("echo", version, version)]
    return struct.pack("<5sBBBBBB", b"PGDMP", 1, 14, 0, 4, 8, 1) + bytes(8 * 5) + b"".join(strings)


def archive(mode=0o644, name="./covers/a.jpg"):
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as target:
        member = tarfile.TarInfo(name)
        member.size, member.mode = 1, mode
        target.addfile(member, io.BytesIO(b"x"))
    return gzip.compress(output.getvalue()), len(output.getvalue())


def make_set(root, **changes):
    """A set of ours as small as can be; ``changes`` are to its manifest."""
    folder = root / SET_ID
    folder.mkdir(parents=True)
    tar, unpacked = archive()
    files = {
        "postgres_dump.backup": ("database", dump(), 100, 2),
        "postgres_dump.sql": ("database", SQL, 100, 2),
        "postgres_globals.sql": ("database", GLOBALS, 10, 1),
        "uploads.tar.gz": ("uploads", tar, unpacked, 1),
        "deployment.tar.gz": ("deployment", tar, 1, 1),
    }
    artifacts = []
    for name, (component, content, bytes_in, members) in files.items():
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        facts = dict(component=component, role=component, file=name, source="x", bytes_in=bytes_in, bytes_out=len(content))
        artifacts.append(dict(facts, members=members, codec="gzip", sha256=digest, seconds=0.1))
    manifest = dict(
        format="echo-backup/1",
        id=SET_ID,
        times=dict.fromkeys(("started", "snapshot", "finished"), "2026-11-24T03:00:00Z"),
        host="nas",
        collection_version="1.0.0",
        layout="classic",
        project="echo",
        components=["database", "uploads", "deployment"],
        images=dict((role, recorded(name)) for role, name in dict(database="postgres:15-alpine", redis="redis:7-alpine", app="echo:1").items()),
        database=dict(
            name="music_server",
            owner="music_admin",
            encoding="UTF8",
            collate="C",
            ctype="C",
            extensions=[],
            server_version="15.18",
            server_version_num=150018,
            bytes=100,
            snapshot={},
        ),
        tables=TABLES,
        artifacts=artifacts,
    )
    (folder / "manifest.json").write_text(json.dumps(dict(manifest, **changes)))
    (folder / "backup_info.txt").write_text("info")
    sum_up(folder)
    return folder


def recorded(name):
    return dict(name="x", image=name, image_id="gone", digests=[])


def sum_up(folder):
    """Write the checksums of what is there."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in ("SHA256SUMS", "proof.json"))
    lines = ["%s  %s\n" % (hashlib.sha256((folder / name).read_bytes()).hexdigest(), name) for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def folder(tmp_path):
    return make_set(tmp_path / "sets")


@pytest.fixture
def engine(tmp_path):
    def make(helper=lambda call: FakeCommand(), **options):
        return FakeEngine(answers=dict(helper=helper), **dict(dict(images=IMAGES, root=tmp_path), **options))

    return make


def go(engine, folder, level="structure", **options):
    return ensure_verified(engine, SET_ID, str(folder.parent), level, **options)


def snapshot(folder):
    return dict((path.name, path.read_bytes()) for path in folder.iterdir())


# -- checksum -------------------------------------------------------------------------------------


def test_a_whole_set_passes(engine, folder):
    result = go(FakeEngine(), folder, "checksum")
    assert (result["changed"], result["checked"]["files"], result["problems"]) == (True, 7, [])
    assert result["proof"] == str(folder / "proof.json")
    (proof,) = read_proofs(str(folder))
    assert (proof["level"], proof["passed"], proof["checked"]["files"]) == ("checksum", True, 7)
    assert not is_proven(str(folder))


def test_what_was_added_to_a_set_does_not_count(engine, folder):
    go(FakeEngine(), folder, "checksum")
    for name in ("pinned", "accepted", "offsite.json"):
        (folder / name).write_bytes(b"")
    assert go(FakeEngine(), folder, "checksum")["checked"]["files"] == 7


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def replace(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


def flip(name):
    def change(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return change


def link(folder):
    os.rename(str(folder / "backup_info.txt"), str(folder.parent / "info"))
    os.symlink("../info", str(folder / "backup_info.txt"))


@pytest.mark.parametrize(
    "change, words",
    [
        (flip("uploads.tar.gz"), "uploads.tar.gz is not what was written: its SHA-256"),
        (flip("backup_info.txt"), "backup_info.txt is not what was written"),
        (write("postgres_dump.sql", b"short"), "postgres_dump.sql has 5 bytes, its manifest says"),
        (remove("uploads.tar.gz"), "Could not read .*uploads.tar.gz"),
        (remove("SHA256SUMS"), "Could not read .*SHA256SUMS"),
        (replace("SHA256SUMS", "uploads", "../uploads"), "SHA256SUMS has a line that is none of its own"),
        (replace("SHA256SUMS", "uploads.tar.gz", "config.tar.gz"), "Could not read .*config.tar.gz"),
        (write("SHA256SUMS", b""), "uploads.tar.gz is not in SHA256SUMS"),
        (write("more.txt", b"x"), "more.txt is no file of the set"),
        (replace("manifest.json", "echo-backup/1", "echo-backup/9"), "not a manifest"),
        (replace("manifest.json", "music_admin", "mallory"), "manifest.json is not what was written"),
        (link, "Could not read .*backup_info.txt"),
    ],
)
def test_whatever_is_not_as_it_was_is_found(folder, change, words):
    change(folder)
    with pytest.raises(VerifyError, match=words):
        check_files(str(folder))


def test_sums_and_manifest_must_agree(folder):
    flip("uploads.tar.gz")(folder)
    sum_up(folder)
    with pytest.raises(VerifyError, match="uploads.tar.gz differs from its manifest"):
        check_files(str(folder))


def test_all_that_is_wrong_is_told_and_is_in_the_proof(folder):
    for name in ("uploads.tar.gz", "postgres_dump.backup", "backup_info.txt"):
        flip(name)(folder)
    with pytest.raises(VerifyError) as caught:
        go(FakeEngine(), folder, "checksum")
    assert len(caught.value.details["problems"]) == 3
    (proof,) = read_proofs(str(folder))
    assert (proof["passed"], proof["problems"]) == (False, caught.value.details["problems"])
    assert caught.value.details["proof"] == str(folder / "proof.json")
    assert caught.value.details["changed"]


def test_a_set_that_can_not_even_be_planned_gets_its_failed_proof(engine, folder):
    write("postgres_dump.backup", b"PGDMP")(folder)
    with pytest.raises(VerifyError, match="postgres_dump.backup has 5 bytes"):
        go(engine(), folder, "drill")
    assert [proof["passed"] for proof in read_proofs(str(folder))] == [False]


def test_a_failure_is_told_where_its_proof_can_not_be_written(folder, monkeypatch):
    flip("uploads.tar.gz")(folder)

    def full(*unused):
        raise SpaceError("No room.")

    monkeypatch.setattr(verify, "record", full)
    with pytest.raises(VerifyError) as caught:
        go(FakeEngine(), folder, "checksum")
    assert "uploads.tar.gz" in caught.value.details["problems"][0]
    assert "was not written: No room." in caught.value.details["problems"][1]
    assert (caught.value.details["proof"], caught.value.details["changed"]) == (None, False)


# -- structure ------------------------------------------------------------------------------------


def test_everything_is_read_to_its_end(engine, folder):
    fake = engine()
    result = go(fake, folder)
    assert result["checked"]["dumps"] == ["postgres_dump.backup", "postgres_dump.sql", "postgres_globals.sql"]
    assert sorted(result["checked"]["archives"]) == ["deployment.tar.gz", "uploads.tar.gz"]
    (call,) = fake.calls
    assert (call.container, call.argv[0], call.network_mode) == ("sha256:postgres:15-alpine", "pg_restore", None)
    assert list(call.binds.values()) == [{"bind": "/dump", "mode": "ro"}]
    assert (result["server"]["image"], result["app"]) == ("postgres:15-alpine", None)


def test_a_dump_that_pg_restore_refuses_fails_the_set(engine, folder):
    fake = engine(lambda call: FakeCommand(exit_code=1, stderr="pg_restore: error: could not read: end of file\n"))
    with pytest.raises(VerifyError, match="pg_restore can't read it to its end: .*end of file"):
        go(fake, folder)
    assert not read_proofs(str(folder))[0]["passed"]


@pytest.mark.parametrize("fault", [dict(exit_code=137), dict(lost=True), dict(cut=True)])
def test_a_helper_that_dies_proves_nothing(engine, folder, fault):
    with pytest.raises(CommandError) as caught:
        go(engine(lambda call: FakeCommand(**fault)), folder)
    assert caught.value.details["proof"] is None
    assert not caught.value.details["changed"]
    assert read_proofs(str(folder)) == []


def refit(folder, name, content, **facts):
    """Give a set another file, with a manifest and sums that fit it."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    (artifact,) = [artifact for artifact in manifest["artifacts"] if artifact["file"] == name]
    artifact.update(facts, sha256=hashlib.sha256(content).hexdigest(), bytes_out=len(content))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sum_up(folder)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("uploads.tar.gz", archive()[0][:-20], "can't be read to its end"),
        ("uploads.tar.gz", archive(name="../../etc/passwd")[0], "leads out"),
        ("deployment.tar.gz", archive()[0][:-20], "can't be read to its end"),
        ("postgres_dump.sql", SQL[:-60], "closing line is missing"),
        ("postgres_globals.sql", GLOBALS[:-60], "closing line is missing"),
    ],
)
def test_what_the_checksums_can_not_tell_is_found_by_reading(engine, folder, name, content, words):
    refit(folder, name, content)
    go(FakeEngine(), folder, "checksum")
    with pytest.raises(VerifyError, match=words) as caught:
        go(engine(), folder)
    assert len(caught.value.details["problems"]) == 1


@pytest.mark.parametrize(
    "name, facts, words",
    [
        ("uploads.tar.gz", dict(members=2), "number of members is 1 and should be 2"),
        ("uploads.tar.gz", dict(bytes_in=1), "number of bytes is 10240 and should be 1"),
        ("deployment.tar.gz", dict(members=2), "has 1 members, its manifest says 2"),
    ],
)
def test_an_archive_must_hold_what_its_manifest_says(engine, folder, name, facts, words):
    refit(folder, name, archive()[0], **facts)
    with pytest.raises(VerifyError, match=words):
        go(engine(), folder)


def test_several_broken_files_are_all_told(engine, folder):
    refit(folder, "uploads.tar.gz", archive()[0][:-20])
    refit(folder, "postgres_dump.sql", SQL[:-60])
    with pytest.raises(VerifyError) as caught:
        go(engine(), folder)
    assert len(caught.value.details["problems"]) == 2


def test_a_missing_library_proves_nothing(engine, folder, monkeypatch):
    def broken(*unused, **more):
        raise ArchiveError("zstandard is missing.", exception="ImportError")

    monkeypatch.setattr(verify, "examine", broken)
    with pytest.raises(ArchiveError):
        go(engine(), folder)
    assert read_proofs(str(folder)) == []


# -- sets of others -------------------------------------------------------------------------------


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / "sets" / SET_ID
    folder.mkdir(parents=True)
    for name, content in (("postgres_dump.backup", dump()), ("postgres_dump.sql", SQL), ("uploads.tar.gz", archive()[0])):
        (folder / name).write_bytes(content)
    (folder / "backup_info.txt").write_text("made by the script")
    return folder


def test_a_set_of_the_script_has_a_structure(engine, script):
    result = go(engine(), script)
    assert result["checked"]["dumps"] == ["postgres_dump.backup", "postgres_dump.sql"]
    assert result["set"]["origin"] == "script"
    assert "checksum" not in result["seconds"]
    assert read_proofs(str(script))[0]["manifest_sha256"] is None


def test_a_set_of_the_script_has_no_checksums(script):
    with pytest.raises(SetError, match="has no checksums"):
        go(FakeEngine(), script, "checksum")


def test_a_single_file_gets_no_proof(engine, tmp_path):
    path = tmp_path / "echo-db-backup-20250301_030000.sql.gz"
    path.write_bytes(gzip.compress(SQL))
    result = ensure_verified(engine(), str(path), None, "structure")
    assert (result["changed"], result["proof"], result["checked"]["dumps"]) == (False, None, [path.name])
    assert [name for name in os.listdir(str(tmp_path)) if name.startswith("proof")] == []


# -- drill ----------------------------------------------------------------------------------------


class Drill:
    """A drill that finds what it is told to find."""

    tables = TABLES
    columns = [dict(column="public.albums.cover_path", files=1, missing=0, elsewhere=0, examples=[])]
    errors = {}
    done = []

    def __init__(self, engine):
        self.database = SimpleNamespace(describe=lambda: dict(tables=dict(self.tables, migrated=1)))

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.done.append("removed")

    def _do(self, what, *facts):
        self.done.append((what,) + facts)
        if what in self.errors:
            raise self.errors[what]

    def start_server(self, *facts):
        self._do("server", *facts)

    def load(self, file, kind, like, globals_file):
        self._do("load", os.path.basename(file), kind, like["encoding"], globals_file and os.path.basename(globals_file))
        return dict(tables=self.tables, server_version="15.18")

    def unpack(self, component, file, expected, bytes_free, contain):
        self._do("unpack", component, contain)
        return "/volume"

    def start_app(self, app, redis, layout, env, timeout):
        self._do("app", app["tags"][0], redis["tags"][0], layout, env, timeout)
        return 1.5


@pytest.fixture
def drill(monkeypatch):
    fresh = type("Drill", (Drill,), dict(done=[], errors={}))
    monkeypatch.setattr(verify, "Drill", fresh)
    monkeypatch.setattr(verify, "check_named_files", lambda *unused: fresh.columns)
    return fresh


def test_a_drill_restores_everything_and_proves_the_set(engine, folder, drill):
    result = go(engine(), folder, "drill", app_env=dict(A="s3cret"), health_timeout=9)
    assert drill.done == [
        ("server", "sha256:postgres:15-alpine", "music_server", "music_admin"),
        ("load", "postgres_dump.backup", "custom", "UTF8", "postgres_globals.sql"),
        ("unpack", "uploads", True),
        ("app", "echo:1", "redis:7-alpine", "classic", dict(A="s3cret"), 9),
        "removed",
    ]
    assert result["checked"]["tables"] == TABLES
    assert result["checked"]["tables_compared"]
    assert result["rto_seconds"] >= 1.5
    assert sorted(result["seconds"]) == ["app", "checksum", "database", "named_files", "server", "structure", "volumes"]
    assert is_proven(str(folder))
    assert "s3cret" not in (folder / "proof.json").read_text() + json.dumps(result)


def test_another_version_of_the_app_tells_what_it_made_of_the_rows(engine, folder, drill):
    result = go(engine(), folder, "drill", app_image="echo:2")
    assert result["app"]["image"] == "echo:2"
    assert result["checked"]["tables"] == TABLES
    assert result["checked"]["tables_with_app"] == dict(TABLES, migrated=1)


def test_rows_and_files_that_are_missing_are_found_together(engine, folder, drill):
    drill.tables = {"public.users": 4, "public.more": 0}
    drill.columns = [dict(column="public.albums.cover_path", files=3, missing=1, elsewhere=0, examples=["b.jpg"])]
    with pytest.raises(VerifyError) as caught:
        go(engine(), folder, "drill")
    assert caught.value.details["problems"] == [
        "The table public.albums has no rows, its manifest says 1.",
        "The table public.more has 0 rows, its manifest says no.",
        "The table public.users has 4 rows, its manifest says 5.",
        "public.albums.cover_path names 3 files, of which 1 are in no archive: b.jpg.",
    ]
    assert drill.done[-1] == "removed"
    assert not is_proven(str(folder))
    assert not [step for step in drill.done if step[0] == "app"]


@pytest.mark.parametrize(
    "step, error",
    [("load", DatabaseError("refused")), ("unpack", ArchiveError("cut")), ("app", AppError("not healthy"))],
)
def test_a_step_that_fails_fails_the_set(engine, folder, drill, step, error):
    drill.errors[step] = error
    with pytest.raises(type(error)):
        go(engine(), folder, "drill")
    (proof,) = read_proofs(str(folder))
    assert (proof["passed"], proof["problems"]) == (False, [error.what])
    assert drill.done[-1] == "removed"


@pytest.mark.parametrize(
    "step, error, options",
    [
        ("server", StackError("no server"), {}),
        ("server", EngineError("gone"), {}),
        ("load", SpaceError("full"), {}),
        ("load", ServerError("lost"), {}),
        ("unpack", SpaceError("full"), {}),
        ("app", AppError("not healthy"), dict(app_image="echo:2")),
        ("load", DatabaseError("refused"), dict(server_version=17)),
        ("load", DatabaseError("refused"), dict(server_image="postgres:17-alpine")),
    ],
)
def test_what_is_not_the_sets_fault_proves_nothing(engine, folder, drill, step, error, options):
    go(engine(), folder, "drill")
    drill.errors[step] = error
    with pytest.raises(type(error)):
        go(engine(), folder, "drill", **options)
    assert is_proven(str(folder))


def test_a_dump_without_a_table_fails(engine, script, drill):
    drill.tables = {}
    with pytest.raises(VerifyError, match="no table in postgres_dump.backup"):
        go(engine(), script, "drill")


def test_a_set_of_the_script_is_counted_but_not_compared(engine, script, drill):
    live = [
        container("echo-postgres", service="postgres", project="echo", image_id="sha256:postgres:15-alpine"),
        container("echo-redis", service="redis", project="echo", image_id="sha256:redis:7-alpine"),
        container("echo-app", service="echo-app", project="echo", image_id="sha256:echo:1"),
    ]
    fake = FakeEngine(*live, images=IMAGES, root=script.parent, answers=dict(helper=lambda call: FakeCommand()))
    result = go(fake, script, "drill")
    assert not result["checked"]["tables_compared"]
    assert ("server", "sha256:postgres:15-alpine", "music_server", "music_admin") in drill.done
    assert ("unpack", "uploads", False) in drill.done
    assert [step[1] for step in drill.done if step[0] == "app"] == ["echo:1"]
    assert is_proven(str(script))


def test_without_an_image_the_app_is_not_started_and_that_is_said(engine, folder, drill):
    result = go(engine(images=IMAGES[:2]), folder, "drill")
    assert result["not_checked"] == [
        "The app was not started, for want of its image on this host and an image of Redis on this host."
    ]
    assert not [step for step in drill.done if step[0] == "app"]


def test_a_dump_alone_says_what_was_not_looked_at(engine, tmp_path, drill):
    path = tmp_path / "lone.sql"
    path.write_bytes(SQL)
    result = ensure_verified(engine(), str(path), None, "drill")
    assert len(result["not_checked"]) == 2
    assert "columns" not in result["checked"]


# -- the plan -------------------------------------------------------------------------------------


def test_check_mode_touches_nothing_and_names_the_images(engine, folder, drill):
    before = snapshot(folder)
    result = go(engine(), folder, "drill", check=True, server_version=17, app_image="echo:2")
    assert snapshot(folder) == before
    assert drill.done == []
    assert (result["server"]["image"], result["app"]["image"]) == ("postgres:17-alpine", "echo:2")
    assert result["bytes_needed"] > 100 and result["checked"] == {} and result["changed"]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "options, level, change, error, words",
    [
        (dict(images=[]), "structure", {}, StackError, "no image of PostgreSQL 15 or newer"),
        ({}, "drill", dict(app_image="echo:9"), StackError, "no image echo:9"),
        ({}, "drill", dict(server_version=14), StackError, "can't be loaded into PostgreSQL 14"),
        (dict(local=False), "structure", {}, StackError, "can't be reached"),
    ],
)
def test_what_would_stop_it_does_before_anything(engine, folder, drill, check, options, level, change, error, words):
    before = snapshot(folder)
    with pytest.raises(error, match=words):
        go(engine(**options), folder, level, check=check, **change)
    assert snapshot(folder) == before
    assert drill.done == []


def test_a_drill_needs_room(engine, folder, drill, monkeypatch):
    monkeypatch.setattr(verify, "free_bytes", lambda path: 1 << 20)
    with pytest.raises(SpaceError, match="The drill needs about .* and 1.0 MiB are free"):
        go(engine(), folder, "drill")
    assert read_proofs(str(folder)) == []
