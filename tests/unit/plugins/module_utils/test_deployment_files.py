# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set's Compose files come back where nothing is, and never over what is there."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile

import pytest
from test_backup_set import SmallEngine, back_up, make_stack

from ansible_collections.echo_music.ops.plugins.module_utils import deployment_files, set_files
from ansible_collections.echo_music.ops.plugins.module_utils.deployment_files import ensure_files
from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError


@pytest.fixture
def root(tmp_path):
    back_up(SmallEngine(tmp_path / "engine.json"), str(tmp_path / "sets"), make_stack(tmp_path))
    return str(tmp_path / "sets")


def test_files_come_to_a_new_folder(root, tmp_path):
    dest = str(tmp_path / "new" / "place")
    predicted = ensure_files("latest", root, dest, check=True)
    assert not os.path.exists(dest)
    result = ensure_files("latest", root, dest)
    assert predicted == result
    assert (result["files"], result["env_files"]) == (["docker-compose.yml"], [".env"])
    assert (result["project"], result["layout"], result["folder"]) == ("echo", "classic", dest)
    assert result["written"] == ["docker-compose.yml", ".env"]
    with open(os.path.join(dest, ".env")) as file:
        assert file.read() == "POSTGRES_PASSWORD=hunter2\n"
    again = ensure_files("latest", root, dest)
    assert (again["changed"], again["written"], again["kept"]) == (False, [], [])


def test_modes_are_those_of_the_files(root, tmp_path):
    os.chmod(tmp_path / "project" / ".env", 0o600)
    back_up(SmallEngine(tmp_path / "engine.json"), str(tmp_path / "more"), make_stack(tmp_path))
    ensure_files("latest", str(tmp_path / "more"), str(tmp_path / "new"))
    assert os.stat(tmp_path / "new" / ".env").st_mode & 0o777 == 0o600
    assert os.stat(tmp_path / "new" / "docker-compose.yml").st_mode & 0o777 == 0o644


def test_what_is_there_stays(root, tmp_path):
    project = tmp_path / "project"
    (project / "docker-compose.yml").write_text("services: {mine: {}}\n")
    (project / ".env").unlink()
    result = ensure_files("latest", root)
    assert (result["written"], result["kept"], result["folder"]) == ([".env"], ["docker-compose.yml"], str(project))
    assert (project / "docker-compose.yml").read_text() == "services: {mine: {}}\n"
    assert "stays as it is" in result["warnings"][0]


def test_passwords_are_not_shown(root, tmp_path):
    shown = str(ensure_files("latest", root, str(tmp_path / "new"))["diff"])
    assert "services: {}" in shown
    assert "hunter2" not in shown


def test_a_source_without_compose_files(root, tmp_path):
    lone = tmp_path / "uploads.tar.gz"
    lone.write_bytes(b"x")
    with pytest.raises(SetError, match="only sets of this collection do"):
        ensure_files(str(lone), root)
    more = str(tmp_path / "more")
    back_up(SmallEngine(tmp_path / "engine.json"), more, make_stack(tmp_path), components=["config"])
    with pytest.raises(SetError, match="made without its Compose files"):
        ensure_files("latest", more)


def test_a_damaged_archive(root, tmp_path):
    archive = os.path.join(root, "latest", "deployment.tar.gz")
    with open(archive, "r+b") as file:
        file.seek(20)
        file.write(b"x")
    with pytest.raises(SetError, match="not the file that its manifest tells of"):
        ensure_files("latest", root, str(tmp_path / "new"))
    assert not os.path.exists(tmp_path / "new")


def test_a_write_that_breaks_off_leaves_no_half_of_a_file(root, tmp_path, monkeypatch):
    def torn(path, data):
        with open(path, "wb") as target:
            target.write(data[:5])
        raise KeyboardInterrupt

    dest = tmp_path / "new"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(set_files, "write_file", torn)
        ensure_files("latest", root, str(dest))
    result = ensure_files("latest", root, str(dest))
    assert (result["written"], result["kept"]) == (["docker-compose.yml", ".env"], [])
    assert sorted(os.listdir(dest)) == [".env", "docker-compose.yml"]


def test_nothing_is_written_of_a_deployment_without_a_compose_file(root, tmp_path, monkeypatch):
    monkeypatch.setattr(deployment_files, "_members", lambda path, artifact: {".env": (b"A=1\n", 0o600)})
    with pytest.raises(SetError, match="no Compose file"):
        ensure_files("latest", root, str(tmp_path / "new"))
    assert not os.path.exists(tmp_path / "new")


def archive(path, *members):
    with tarfile.open(path, "w:gz") as target:
        for name, kind, size in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, size, "/etc/passwd"
            target.addfile(member, io.BytesIO(bytes(size)))
    return dict(sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    "member",
    [
        ("../../etc/cron.d/x", tarfile.REGTYPE, 1),
        ("/etc/cron.d/x", tarfile.REGTYPE, 1),
        ("a/../../x", tarfile.REGTYPE, 1),
        ("docker-compose.yml", tarfile.SYMTYPE, 0),
        ("docker-compose.yml", tarfile.LNKTYPE, 0),
        ("pipe", tarfile.FIFOTYPE, 0),
        ("docker-compose.yml", tarfile.GNUTYPE_SPARSE, 0),
        ("docker-compose.yml", tarfile.REGTYPE, 20 * 1024 * 1024),
    ],
)
def test_hostile_archives(tmp_path, member):
    path = tmp_path / "deployment.tar.gz"
    artifact = archive(path, member)
    with pytest.raises(SetError, match="can't be used"):
        deployment_files._members(str(path), artifact)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", gzip.compress(b"no tar at all" * 100), b"plain"])
def test_what_is_no_archive(tmp_path, content):
    path = tmp_path / "deployment.tar.gz"
    path.write_bytes(content)
    artifact = dict(sha256=hashlib.sha256(content).hexdigest())
    try:
        assert deployment_files._members(str(path), artifact) == {}
    except SetError as error:
        assert "can't be used" in str(error)
