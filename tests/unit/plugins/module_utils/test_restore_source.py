# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every backup that Echo users have is found and understood; everything else is refused with a reason."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.proof import fingerprint, record
from ansible_collections.echo_music.ops.plugins.module_utils.restore_source import resolve

CUSTOM = b"PGDMP\x01\x0e\x00 and the rest"
SQL = b"--\n-- PostgreSQL database dump\n--\n"
FILES = {
    "postgres_dump.backup": ("database", CUSTOM),
    "postgres_dump.sql": ("database", SQL),
    "postgres_globals.sql": ("database", b"CREATE ROLE music_admin;\n"),
    "uploads.tar.gz": ("uploads", gzip.compress(b"tar")),
    "config.tar.gz": ("config", gzip.compress(b"tar")),
    "deployment.tar.gz": ("deployment", gzip.compress(b"tar")),
}
TABLES = {"public.users": 3}


def make_set(root, set_id, proven=False, **more):
    """A published set of ours, as far as its reader looks."""
    folder = root / set_id
    folder.mkdir(parents=True)
    artifacts = []
    for name, (component, content) in FILES.items():
        (folder / name).write_bytes(content)
        artifacts.append(
            dict(
                component=component,
                role=component,
                file=name,
                source="echo",
                bytes_in=100,
                bytes_out=len(content),
                members=4,
                codec="gzip",
                sha256="ab" * 32,
                seconds=0.1,
            )
        )
    manifest = dict(
        format="echo-backup/1",
        id=set_id,
        times=dict.fromkeys(("started", "snapshot", "finished"), "2026-11-24T03:00:00Z"),
        host="nas",
        collection_version="1.0.0",
        layout="classic",
        project="echo",
        components=["database", "uploads", "config", "deployment"],
        images={},
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
    (folder / "manifest.json").write_text(json.dumps(dict(manifest, **more)))
    for name in ("SHA256SUMS", "backup_info.txt"):
        (folder / name).write_text("x")
    if proven:
        facts = dict(finished="2026-11-24T03:00:00Z", rto_seconds=4.2, manifest_sha256=fingerprint(str(folder)))
        record(str(folder), dict(facts, level="drill", passed=True))
    return folder


@pytest.fixture
def root(tmp_path):
    make_set(tmp_path / "sets", "backup_2026-11-22_03-00-00", proven=True)
    make_set(tmp_path / "sets", "backup_2026-11-23_03-00-00")
    return tmp_path / "sets"


@pytest.mark.parametrize(
    "source, day",
    [("latest", 23), ("latest_proven", 22), ("backup_2026-11-22_03-00-00", 22), ("{root}/backup_2026-11-23_03-00-00", 23)],
)
def test_a_set_of_ours(root, source, day):
    found = resolve(source.format(root=root), str(root))
    assert (found["origin"], found["id"]) == ("ours", "backup_2026-11-%d_03-00-00" % day)
    assert list(found["components"]) == ["database", "uploads", "config"]
    assert found["components"]["database"]["kind"] == "custom"
    assert found["components"]["uploads"]["members"] == 4
    assert found["components"]["uploads"]["sha256"] == "ab" * 32
    assert found["tables"] == TABLES
    assert found["database"]["server_version"] == "15.18"


def test_a_link_to_a_set_is_followed(root):
    (root / "latest").symlink_to("backup_2026-11-23_03-00-00")
    assert resolve(str(root / "latest"), "/nowhere")["path"] == str(root / "backup_2026-11-23_03-00-00")


def test_components_are_chosen(root):
    found = resolve("latest", str(root), components=["config"])
    assert list(found["components"]) == ["config"]
    assert found["tables"] is None
    with pytest.raises(SetError, match="has no data"):
        resolve("latest", str(root), components=["data"])


def test_a_set_of_which_only_some_files_were_copied(root):
    folder = root / "backup_2026-11-23_03-00-00"
    os.unlink(folder / "uploads.tar.gz")
    os.unlink(folder / "postgres_dump.backup")
    found = resolve(str(folder), str(root))
    assert list(found["components"]) == ["database", "config"]
    assert found["components"]["database"]["kind"] == "sql"
    assert found["missing"] == ["uploads"]
    assert resolve("latest", str(root))["id"] == "backup_2026-11-22_03-00-00"


def test_a_file_that_was_cut_short(root):
    folder = root / "backup_2026-11-23_03-00-00"
    (folder / "config.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(SetError, match=r"config.tar.gz has 2 bytes"):
        resolve(str(folder), str(root))


@pytest.mark.parametrize(
    "names, components",
    [
        (["postgres_dump.backup", "postgres_dump.sql", "uploads.tar.gz", "config.tar.gz"], ["database", "uploads", "config"]),
        (["postgres_dump.sql"], ["database"]),
        (["uploads.tar.gz"], ["uploads"]),
    ],
)
def test_a_set_of_the_2024_script(tmp_path, names, components):
    folder = tmp_path / "backup_2024-12-01_03-00-00"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(FILES[name][1])
    (folder / "backup_info.txt").write_text("x")
    found = resolve(str(folder), str(tmp_path))
    assert (found["origin"], found["time"]) == ("script", "2024-12-01T03:00:00")
    assert list(found["components"]) == components
    assert found["tables"] is None


def test_a_folder_as_the_guide_of_the_unified_era_leaves_it(tmp_path):
    for day in ("20250301_030000", "20250302_030000", "20241231_235959"):
        (tmp_path / ("echo-db-backup-%s.sql.gz" % day)).write_bytes(gzip.compress(SQL))
    (tmp_path / "echo-db-backup-99999999.sql.gz").write_bytes(b"not of the script")
    (tmp_path / "data-backup.tar.gz").write_bytes(b"\x1f\x8b...")
    found = resolve(str(tmp_path), "/nowhere")
    assert (found["origin"], list(found["components"])) == ("script", ["database", "data"])
    assert os.path.basename(found["components"]["database"]["file"]) == "echo-db-backup-20250302_030000.sql.gz"
    assert found["components"]["database"]["kind"] == "sql.gz"
    (tmp_path / "postgres_dump.backup").write_bytes(CUSTOM)
    assert resolve(str(tmp_path), "/nowhere")["components"]["database"]["kind"] == "custom"


@pytest.mark.parametrize(
    "name, content, component, kind",
    [
        ("postgres_dump.backup", CUSTOM, "database", "custom"),
        ("a custom dump of another name.sql", CUSTOM, "database", "custom"),
        ("mine.sql", SQL, "database", "sql"),
        ("mine.sql.gz", gzip.compress(SQL), "database", "sql.gz"),
        ("echo-db-backup-20250301_030000.sql.gz", gzip.compress(SQL), "database", "sql.gz"),
        ("uploads.tar.gz", b"\x1f\x8b...", "uploads", "archive"),
        ("config.tar.gz", b"\x1f\x8b...", "config", "archive"),
        ("data-backup.tar.gz", b"\x1f\x8b...", "data", "archive"),
        ("data.tar.zst", b"...", "data", "archive"),
        ("uploads.tar", b"...", "uploads", "archive"),
        ("config.tgz", b"\x1f\x8b...", "config", "archive"),
        ("nightly.dump", CUSTOM, "database", "custom"),
    ],
)
def test_a_lone_file(tmp_path, name, content, component, kind):
    path = tmp_path / name
    path.write_bytes(content)
    found = resolve(str(path), str(tmp_path))
    assert found["origin"] == "file"
    assert found["components"] == {component: dict(file=str(path), kind=kind, bytes=len(content))}


@pytest.mark.parametrize(
    "source, reason",
    [
        ("", "names nothing"),
        (None, "names nothing"),
        ("backup_\0", "names nothing"),
        ("latest", "no complete set"),
        ("latest_proven", "no complete and proven set"),
        ("backup_2026-11-24_03-00-00", "There is no"),
        ("../backup_2026-11-24_03-00-00", "neither a set's id nor an absolute path"),
        ("/nowhere", "There is no"),
    ],
)
def test_what_names_nothing(tmp_path, source, reason):
    with pytest.raises(SetError, match=reason):
        resolve(source, str(tmp_path))


def test_what_cannot_be_restored(tmp_path):
    (tmp_path / "holiday.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "empty.sql").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "uploads.tar.gz")
    (tmp_path / "bare").mkdir()
    for name, reason in (
        ("holiday.tar.gz", "doesn't tell what it holds"),
        ("empty.sql", "is empty"),
        ("folder", "not a regular file"),
        ("bare", "nothing in .* a restore could read"),
    ):
        with pytest.raises(SetError, match=reason):
            resolve(str(tmp_path / name), str(tmp_path))


def test_a_link_in_a_set_is_not_followed(tmp_path):
    (tmp_path / "uploads.tar.gz").symlink_to("/etc/passwd")
    with pytest.raises(SetError, match="not a regular file"):
        resolve(str(tmp_path), str(tmp_path))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)), st.data())
def test_no_manifest_breaks_the_reader(tmp_path, value, data):
    folder = tmp_path / "backup_2026-11-23_03-00-00"
    if not folder.exists():
        make_set(tmp_path, folder.name)
        (tmp_path / "good.json").write_bytes((folder / "manifest.json").read_bytes())
    manifest = json.loads((tmp_path / "good.json").read_text())
    key = data.draw(st.sampled_from(sorted(manifest) + sorted(manifest["artifacts"][0])))
    (manifest if key in manifest else manifest["artifacts"][0])[key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    try:
        resolve(str(folder), str(tmp_path))
    except SetError:
        pass


NAMES = st.sampled_from(
    ["postgres_dump.backup", "postgres_dump.sql", "uploads.tar.gz", "config.tar", "data-backup.tar.gz", "backup_info.txt"]
    + ["manifest.json", "SHA256SUMS", "echo-db-backup-20250301_030000.sql.gz", "echo-db-backup-٢٠٢٥٠٣٠١_030000.sql.gz"]
) | st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)
KINDS = st.sampled_from(["file", "folder", "link", "pipe"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(NAMES, st.tuples(KINDS, st.binary(max_size=300)), max_size=6), st.none() | st.just(["database"]))
def test_no_folder_breaks_the_reader(tmp_path, entries, components):
    folder = tmp_path / "backup_2024-12-01_03-00-00"
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir()
    for name, (kind, content) in entries.items():
        path = folder / name
        if kind == "file":
            path.write_bytes(content)
        elif kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("/etc/passwd")
        else:
            os.mkfifo(str(path))
    for source in [folder] + [folder / name for name in entries]:
        try:
            found = resolve(str(source), str(tmp_path), components)
        except SetError:
            continue
        for part in found["components"].values():
            # What is handed on is a file of this folder and nothing else.
            assert os.path.dirname(part["file"]) == str(folder) and stat.S_ISREG(os.lstat(part["file"]).st_mode)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8")))
def test_no_bytes_break_the_reader_of_manifests(tmp_path, content):
    folder = tmp_path / "backup_2026-11-23_03-00-00"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(SetError):
        resolve(str(folder), str(tmp_path))


def test_the_roles_of_the_server_come_with_the_database(tmp_path):
    make_set(tmp_path, "backup_2026-11-24_03-00-00")
    path = str(tmp_path / "backup_2026-11-24_03-00-00" / "postgres_globals.sql")
    found = resolve("backup_2026-11-24_03-00-00", str(tmp_path))
    assert found["globals"] == dict(file=path, sha256="ab" * 32)
    assert resolve("backup_2026-11-24_03-00-00", str(tmp_path), ["uploads"])["globals"] is None
    os.unlink(path)
    assert resolve("backup_2026-11-24_03-00-00", str(tmp_path))["globals"] is None
    os.unlink(os.path.join(os.path.dirname(path), "manifest.json"))
    assert resolve(os.path.dirname(path), str(tmp_path))["globals"] is None
