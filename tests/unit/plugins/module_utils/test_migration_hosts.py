# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys that may do one thing, copies that go to their places, and what a host is found to be."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import subprocess

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import migration_copy, migration_keys, migration_survey
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Engine, needs_mount
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError

ID = "6f1c2a9b"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMj0"
SSH = dict(host="192.0.2.1", port=2222, user="pat", alias="echo-migrate-old", known_hosts="/srv/known hosts")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user whose home is ours, and no root."""
    me = pwd.getpwuid(os.geteuid())
    user = pwd.struct_passwd((me.pw_name, "x", me.pw_uid or 1, me.pw_gid, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(migration_keys.pwd, "getpwnam", lambda login: user)
    monkeypatch.setattr(migration_keys.os, "chown", lambda path, uid, gid: None)
    return tmp_path


def lines(home):
    return (home / ".ssh" / "authorized_keys").read_text().splitlines()


def test_a_key_reads_one_folder_and_goes(home):
    migration_keys.authorize("pat", ID, {"uploads": dict(key=KEY, folder="/volumes/uploads")}, "192.0.2.2")
    assert len(lines(home)) == 1
    line = lines(home)[0]
    assert line.startswith('restrict,command="sudo -n env SSH_ORIGINAL_COMMAND=\\"$SSH_ORIGINAL_COMMAND\\" ')
    assert ' -ro /volumes/uploads",from="192.0.2.2",expiry-time="' in line
    assert line.endswith("%s echo_music.ops:%s:uploads" % (KEY, ID))
    migration_keys.withdraw("pat", ID)
    assert lines(home) == []


def test_other_keys_stay(home):
    (home / ".ssh").mkdir()
    file = home / ".ssh" / "authorized_keys"
    file.write_text("ssh-rsa AAAA someone\n# a comment\n")
    file.chmod(0o640)
    other = {"config": dict(key=KEY, folder="/c")}
    migration_keys.authorize("pat", "00000000", other)
    migration_keys.authorize("pat", ID, {"uploads": dict(key=KEY, folder="/u")})
    migration_keys.authorize("pat", ID, {"uploads": dict(key=KEY, folder="/v")})
    assert [line.rsplit(" ", 1)[1] for line in lines(home)] == [
        "someone", "comment", "echo_music.ops:00000000:config", "echo_music.ops:%s:uploads" % ID,
    ]
    assert "/v" in lines(home)[3]
    migration_keys.withdraw("pat", ID)
    migration_keys.withdraw("pat", "00000000")
    assert file.read_text() == "ssh-rsa AAAA someone\n# a comment\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_withdrawing_makes_no_file(home):
    migration_keys.withdraw("pat", ID)
    assert os.listdir(home) == []


@pytest.mark.parametrize(
    "keys, address",
    [
        ({"uploads": dict(key=KEY + "\nssh-rsa AAAA", folder="/u")}, ""),
        ({"uploads": dict(key='command="sh" ' + KEY, folder="/u")}, ""),
        ({"uploads": dict(key=KEY, folder='/u" ')}, ""),
        ({"uploads": dict(key=KEY, folder="/u; sh")}, ""),
        ({"uploads": dict(key=KEY, folder="/u\n")}, ""),
        ({"uploads": dict(key=KEY, folder="/u")}, '192.0.2.2",permitopen="'),
    ],
)
def test_nothing_is_smuggled_in(home, keys, address):
    with pytest.raises(EchoError):
        migration_keys.authorize("pat", ID, keys, address)
    assert not (home / ".ssh" / "authorized_keys").exists()


def test_root_needs_no_sudo(home, monkeypatch):
    root = pwd.struct_passwd(("root", "x", 0, 0, "", str(home), "/bin/sh"))
    monkeypatch.setattr(migration_keys.pwd, "getpwnam", lambda login: root)
    migration_keys.authorize("root", ID, {"set": dict(key=KEY, folder="/s")})
    assert "sudo" not in lines(home)[0]


# -- copies -----------------------------------------------------------------------------------------


class Rsync:
    """What is run, and what it answers."""

    def __init__(self, listing=""):
        self.ran = []
        self.listing = listing

    def __call__(self, argv):
        self.ran.append(argv)
        if "--list-only" in argv:
            return self.listing
        return "Number of files: 1,234 (reg: 1,200)\nNumber of regular files transferred: 3\nTotal transferred file size: 12,345 bytes\n"


def copied(tmp_path, part, listing=""):
    rsync = Rsync(listing)
    found = migration_copy.copy([part], SSH, "/srv/keys", str(tmp_path / "lock"), rsync)
    return found[0], [argv[-2:] for argv in rsync.ran if argv[0] == "rsync" and "--list-only" not in argv], rsync


def test_a_part_goes_to_its_volume(tmp_path):
    part = dict(name="uploads", component="uploads", role="uploads", dest="/new/uploads")
    found, ways, rsync = copied(tmp_path, part)
    assert ways == [["pat@echo-migrate-old:./", "/new/uploads/"]]
    assert (found["files"], found["bytes"], found["all_files"]) == (3, 12345, 1234)
    assert "--delete" in rsync.ran[0] and "--exclude=/.echo-*" in rsync.ran[0]
    shell = rsync.ran[0][rsync.ran[0].index("-e") + 1]
    assert "StrictHostKeyChecking=yes" in shell and "'UserKnownHostsFile=/srv/known hosts'" in shell
    assert "IdentityFile=/srv/keys/uploads" in shell and "-p 2222" in shell
    assert rsync.ran[-1] == ["sync", "-f", "/new/uploads"]


def test_a_classic_part_goes_to_its_places_in_a_unified_volume(tmp_path):
    listing = "drwxr-xr-x          4,096 2026/11/24 20:53:59 covers\ndrwxr-xr-x 4,096 2026/11/24 20:53:59 music\ndrwx 1 a b other\n"
    part = dict(name="uploads", component="uploads", role="data", dest="/new/data")
    unused, ways, rsync = copied(tmp_path, part, listing)
    assert ways == [
        ["pat@echo-migrate-old:covers/", "/new/data/covers/"],
        ["pat@echo-migrate-old:music/", "/new/data/uploads/"],
    ]
    part = dict(name="config", component="config", role="data", dest="/new/data")
    unused, ways, rsync = copied(tmp_path, part, "-rw------- 154 2026/11/24 20:53:59 secrets.env\n")
    assert ways == [["pat@echo-migrate-old:secrets.env", "/new/data/secrets.env"]]


def test_what_is_not_there_is_not_copied(tmp_path):
    part = dict(name="config", component="config", role="data", dest="/new/data")
    found, ways, unused = copied(tmp_path, part, "")
    assert ways == [] and found["files"] == 0


def test_rsync_that_fails_says_why(monkeypatch):
    def failing(argv, **options):
        return subprocess.CompletedProcess(argv, 12, b"", b"Permission denied (publickey).\n")

    monkeypatch.setattr(migration_copy.subprocess, "run", failing)
    with pytest.raises(migration_copy.CopyError, match="exit code 12: Permission denied"):
        migration_copy._run(["rsync", "pat@old:./", "/new/"])


def test_real_rsync_brings_the_difference(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    (old / "a").write_text("a"), (old / "b").write_text("b"), (new / "gone").write_text("x")
    (new / ".echo-restore-1").mkdir()

    def local(argv):
        if argv[0] == "rsync":
            at = argv.index("-e")
            argv = [word for word in argv[:at] + argv[at + 2 :] if word != "-X" and word != "-A"]
            argv[-2] = str(old) + "/"
        return migration_copy._run(argv)

    part = dict(name="uploads", component="uploads", role="uploads", dest=str(new))
    first = migration_copy.copy([part], SSH, "/k", str(tmp_path / "lock"), local)[0]
    (old / "b").write_text("changed")
    second = migration_copy.copy([part], SSH, "/k", str(tmp_path / "lock"), local)[0]
    assert (first["files"], second["files"]) == (2, 1)
    assert sorted(os.listdir(new)) == [".echo-restore-1", "a", "b"] and (new / "b").read_text() == "changed"


# -- what a host is ---------------------------------------------------------------------------------


def test_a_port_that_is_listened_on_is_found():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert port in migration_survey.listening()
        reached = migration_survey.reach("127.0.0.1", port)
        assert reached["reachable"] and reached["own_address"] == "127.0.0.1"
    assert port not in migration_survey.listening()
    assert not migration_survey.reach("127.0.0.1", port)["reachable"]


def test_who_logged_in_is_not_who_was_become(monkeypatch):
    monkeypatch.delenv("DOAS_USER", raising=False)
    monkeypatch.setenv("SUDO_USER", "pat")
    assert migration_survey.login() == "pat"
    monkeypatch.delenv("SUDO_USER")
    assert migration_survey.login() == pwd.getpwuid(os.geteuid()).pw_name


def test_compose_config_is_told_without_its_secrets(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "secrets.env").write_text("somebody's")
    config = dict(
        volumes={"uploads": {"name": "echo-uploads"}, "nas": {"name": "nas", "driver_opts": {"type": "nfs", "device": ":/nas"}}},
        services={
            "echo-app": dict(
                image="echo:1",
                container_name="echo-app",
                environment={"DATABASE_URL": "secret"},
                ports=[dict(published="4567", target=4567)],
                volumes=[
                    dict(type="volume", source="uploads", target="/app/uploads"),
                    dict(type="bind", source="/tmp/here/music", target="/music", read_only=True),
                    dict(type="bind", source="/tmp/here/config", target="/app/config"),
                ],
            ),
            "postgres": dict(image="postgres:16"),
        },
    )
    found = migration_survey._explained(config, "/tmp/here", str(tmp_path))
    assert found["layout"] == "classic" and found["app"] == "echo-app" and found["volumes"] == ["echo-uploads", "nas"]
    assert found["mounted"] == ["nas"] and found["roles"] == ["uploads", "config"]
    assert found["services"][0]["ports"] == [4567]
    assert found["services"][0]["folders"] == [
        dict(path=str(tmp_path / "music"), role=None, used=None),
        dict(path=str(tmp_path / "config"), role="config", used=True),
    ]
    assert found["services"][1]["role"] == "database"
    assert "secret" not in str(found)


def test_compose_reads_the_variables_of_the_old_host(tmp_path, monkeypatch):
    seen = []

    class SmallCompose:
        def __init__(self, deployment, host):
            seen.append([os.path.basename(path) for path in deployment["files"] + [deployment["env_file"]]])

        def config(self):
            return dict(services={})

    monkeypatch.setattr(migration_survey, "Compose", SmallCompose)
    files = {"docker-compose.yml": "", "prod.env": "TAG=1"}
    migration_survey.explain(Engine(), "echo", files, str(tmp_path), "prod.env")
    assert seen == [["docker-compose.yml", "prod.env"]]


@pytest.mark.parametrize(
    "driver, options, needed",
    [
        (None, {}, False),
        ("local", {}, False),
        ("local", {"type": "tmpfs"}, True),
        ("local", {"device": "/srv/music", "o": "bind"}, True),
        ("rclone", {}, True),
    ],
)
def test_which_volumes_the_engine_mounts(driver, options, needed):
    assert needs_mount(driver, options) is needed


def test_files_of_a_deployment_stay_in_its_folder(tmp_path):
    with pytest.raises(EchoError, match="outside"):
        migration_survey.explain(None, "echo", {"../../etc/x.yml": ""}, "/opt/echo")
