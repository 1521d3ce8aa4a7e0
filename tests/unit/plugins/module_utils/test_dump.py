# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dump: both ways, and each way in which one can turn out not to be whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os

import pytest
from fake_engine import FakeCommand, FakeEngine, container

from ansible_collections.echo_music.ops.plugins.module_utils import dump as pg_dump
from ansible_collections.echo_music.ops.plugins.module_utils import postgres
from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    DatabaseError,
    EchoError,
    EngineError,
    SetError,
    SpaceError,
)
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database

PASSWORD = "it's \"$HOME` \\ ñ%"
SNAPSHOT = dict(id="0000001B-1", wal_lsn="0/41F75DD0", time="2026-11-24T03:00:00.000000Z")
DUMP = b"PGDMP and so on"
PLAIN = b"SQL\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict x\n"
GLOBALS = b"CREATE ROLE a;\nCREATE ROLE b;\n--\n-- PostgreSQL database cluster dump complete\n--\n\n"


class Server:
    """A fake PostgreSQL: what each program prints can be replaced."""

    def __init__(self, version=170012, local=True, **programs):
        self.version = version
        answers = dict(
            psql=lambda call: FakeCommand(reply=self.reply),
            pg_dump=lambda call: FakeCommand(DUMP[:4], DUMP[4:]),
            pg_restore=lambda call: FakeCommand(PLAIN),
            pg_dumpall=lambda call: FakeCommand(GLOBALS),
            helper=self.helper,
        )
        env = dict(POSTGRES_USER="music_admin", POSTGRES_PASSWORD=PASSWORD, POSTGRES_DB="music_server")
        self.engine = FakeEngine(container("echo-postgres", env=env), answers=dict(answers, **programs), local=local)

    def reply(self, data):
        answers = (
            (pg_dump.EXPORT_SNAPSHOT, SNAPSHOT),
            (pg_dump.SERVER, dict(version=self.version, port="5433")),
            (pg_dump.DESCRIBE, dict(name="music_server", bytes=1000)),
            (pg_dump.COUNT_ROWS, {"public.users": 3, "public.tracks": 9}),
        )
        text, unused, marker = data.decode().partition("\\echo ")
        return [json.dumps(said).encode() + b"\n" for question, said in answers if question in text] + [marker.encode()]

    def helper(self, call):
        ((folder, unused),) = call.binds.items()
        self.write(folder, call.env["WRITTEN"], DUMP)
        with open(os.path.join(folder, call.env["READ"]), "rb") as pipe:
            assert pipe.read() == DUMP
        if call.env["PLAIN"] != "/dev/null":
            self.write(folder, call.env["PLAIN"], PLAIN)
        return FakeCommand()

    @staticmethod
    def write(folder, name, content):
        with open(os.path.join(folder, name), "wb") as written:
            written.write(content)

    def dump(self, dest, **options):
        return pg_dump.run(self.engine, str(dest), database_container="echo-postgres", **options)


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(postgres, "GRACE", 0)


def failing(**how):
    return lambda call: FakeCommand(**how)


def left_in(folder):
    return sorted(name for name in os.listdir(str(folder)) if name != ".snapshot.json")


@pytest.mark.parametrize("local", [True, False])
def test_dumps_by_helper_and_by_exec(tmp_path, local):
    result = Server(local=local).dump(tmp_path)
    assert left_in(tmp_path) == ["postgres_dump.backup", "postgres_dump.sql", "postgres_globals.sql"]
    assert result["snapshot"] == SNAPSHOT
    assert result["tables"] == {"public.users": 3, "public.tracks": 9}
    dump, plain, roles = result["artifacts"]
    assert (dump["codec"], plain["codec"], roles["codec"]) == ("zstd:1", "none", "none")
    assert (dump["members"], plain["members"], roles["members"]) == (2, 2, 2)
    assert (dump["bytes_in"], dump["bytes_out"], dump["source"]) == (1000, len(DUMP), "echo-postgres:music_server")
    for artifact in result["artifacts"]:
        path = tmp_path / artifact["file"]
        assert artifact["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stat().st_mode & 0o777 == 0o600


def test_snapshot_file_tells_the_moment(tmp_path):
    Server().dump(tmp_path)
    assert json.loads((tmp_path / ".snapshot.json").read_text()) == SNAPSHOT


@pytest.mark.parametrize("local", [True, False])
def test_all_commands_use_the_snapshot_and_no_password_argument(tmp_path, local):
    server = Server(local=local)
    server.dump(tmp_path)
    dumps = [call for call in server.engine.calls if "pg_dump" in call.argv]
    assert len(dumps) == 1 and "--snapshot=0000001B-1" in dumps[0].argv
    for call in server.engine.calls:
        assert not [word for word in call.argv + (call.entrypoint or []) if PASSWORD in word]
        assert call.env["PGPASSWORD"] == PASSWORD


def test_helper_is_the_databases_own_image_and_network(tmp_path):
    server = Server()
    server.dump(tmp_path)
    (call,) = [call for call in server.engine.calls if call.binds]
    assert (call.container, call.network_mode) == ("sha256:echo-postgres", "container:echo-postgres-id")
    assert call.env["PGPORT"] == "5433"


@pytest.mark.parametrize(
    "pid_mode, seen, files", [("", "echo-postgres-id", "/proc/1/root"), ("host", None, ""), ("container:a", None, "")]
)
def test_files_of_process_1_are_looked_at_only_where_it_is_the_servers(tmp_path, pid_mode, seen, files):
    server = Server()
    server.engine.container("echo-postgres")["pid_mode"] = pid_mode
    server.dump(tmp_path)
    (call,) = [call for call in server.engine.calls if call.binds]
    assert (call.processes_of, call.env["SERVER_FILES"]) == (seen, files)


def test_exec_where_the_destination_can_hold_no_pipe(tmp_path, monkeypatch):
    def refused(path, mode):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)

    monkeypatch.setattr(os, "mkfifo", refused)
    server = Server()
    assert len(server.dump(tmp_path)["artifacts"]) == 3
    assert [call for call in server.engine.calls if call.argv[0] == "pg_dump"]


def test_only_what_was_asked_for(tmp_path):
    result = Server().dump(tmp_path, plain=False, globals=False)
    assert left_in(tmp_path) == ["postgres_dump.backup"]
    assert [artifact["file"] for artifact in result["artifacts"]] == ["postgres_dump.backup"]


@pytest.mark.parametrize("passwords, there", [(False, True), (True, False)])
def test_role_passwords_only_when_asked_for(tmp_path, passwords, there):
    server = Server()
    server.dump(tmp_path, role_passwords=passwords)
    (call,) = [call for call in server.engine.calls if call.argv[0] == "pg_dumpall"]
    assert ("--no-role-passwords" in call.argv) is there


@pytest.mark.parametrize(
    "compression, level, version, expected",
    [
        ("auto", 1, 160000, ["zstd:1", "gzip:1"]),
        ("auto", 3, 150018, ["gzip:3"]),
        ("gzip", 6, 170012, ["gzip:6"]),
        ("zstd", 9, 170012, ["zstd:9"]),
        ("none", 1, 150018, ["none"]),
    ],
)
def test_codecs_by_release(compression, level, version, expected):
    assert pg_dump.codecs(compression, level, version) == expected


def test_zstd_needs_release_16(tmp_path):
    with pytest.raises(DatabaseError, match="PostgreSQL 15 can't compress with zstd"):
        Server(version=150018).dump(tmp_path, compression="zstd")


@pytest.mark.parametrize("version, spelled", [(150018, "--compress=1"), (170012, "--compress=zstd:1")])
def test_compression_as_the_release_spells_it(tmp_path, version, spelled):
    server = Server(version=version, local=False)
    server.dump(tmp_path)
    assert [call for call in server.engine.calls if spelled in call.argv]


def test_gzip_where_pg_dump_was_built_without_zstd(tmp_path):
    def dumps(call):
        if "--compress=zstd:1" in call.argv:
            return FakeCommand(exit_code=1, stderr="pg_dump: error: this build does not support compression with ZSTD")
        return FakeCommand(DUMP)

    assert Server(local=False, pg_dump=dumps).dump(tmp_path)["artifacts"][0]["codec"] == "gzip:1"


def test_exec_where_the_helper_gets_nowhere(tmp_path):
    def helper(unused):
        raise EngineError("The Docker Engine could not run pg_dump: mounts denied.")

    server = Server(helper=helper)
    assert len(server.dump(tmp_path)["artifacts"]) == 3
    assert [call for call in server.engine.calls if call.argv[0] == "pg_dump"]


def test_what_exec_writes_is_hashed_anew_after_a_helper_that_ended_without_a_dump(tmp_path):
    def helper(call):
        ((folder, unused),) = call.binds.items()
        Server.write(folder, call.env["PLAIN"], b"")
        return FakeCommand(exit_code=1, stderr="pg_dump: error: connection refused")

    for artifact in Server(helper=helper).dump(tmp_path)["artifacts"]:
        written = (tmp_path / artifact["file"]).read_bytes()
        assert (artifact["bytes_out"], artifact["sha256"]) == (len(written), hashlib.sha256(written).hexdigest())


@pytest.mark.parametrize("program", ["pg_dump", "pg_restore", "pg_dumpall"])
@pytest.mark.parametrize(
    "how",
    [
        dict(cut=True),
        dict(lost=True),
        dict(exit_code=1, stderr="pg_dump: error: query failed"),
        dict(exit_code=137),
    ],
)
def test_broken_stream_leaves_nothing(tmp_path, program, how):
    server = Server(local=False, **{program: lambda call: FakeCommand(DUMP, PLAIN, GLOBALS, **how)})
    with pytest.raises(DatabaseError, match="echo-postgres") as caught:
        server.dump(tmp_path)
    assert how.get("stderr", "") in caught.value.what
    assert left_in(tmp_path) == []


def test_helper_that_breaks_half_way_is_not_hidden_by_another_try(tmp_path):
    def helper(call):
        server.helper(call)
        return FakeCommand(exit_code=1, stderr="pg_dump: error: server closed the connection unexpectedly")

    server = Server(helper=helper)
    with pytest.raises(DatabaseError, match="closed the connection"):
        server.dump(tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "program, content, named",
    [
        ("pg_dump", b"\x1f\x8bno dump", "postgres_dump.backup"),
        ("pg_restore", b"SQL without an end\n", "postgres_dump.sql"),
        ("pg_dumpall", b"CREATE ROLE a;\n", "postgres_globals.sql"),
        ("pg_dump", b"", "postgres_dump.backup"),
    ],
)
def test_what_does_not_look_whole_does_not_count(tmp_path, program, content, named):
    server = Server(local=False, **{program: lambda call: FakeCommand(content)})
    with pytest.raises(DatabaseError, match=named):
        server.dump(tmp_path)
    assert left_in(tmp_path) == []


def test_container_removed_during_the_dump(tmp_path):
    def dumps(call):
        return FakeCommand(DUMP, lost=True, before_end=lambda: server.engine.remove("echo-postgres"))

    server = Server(local=False, pg_dump=dumps)
    with pytest.raises(DatabaseError, match="container was removed"):
        server.dump(tmp_path)
    assert left_in(tmp_path) == []


def test_holder_of_the_snapshot_that_dies_fails_the_dump(tmp_path):
    def reply(data):
        return [] if pg_dump.COUNT_ROWS in data.decode() else server.reply(data)

    server = Server(psql=lambda call: FakeCommand(reply=reply, exit_code=2, stderr="server closed the connection"))
    with pytest.raises(DatabaseError, match="hold the snapshot"):
        server.dump(tmp_path)
    assert left_in(tmp_path) == []


def test_full_disk_that_a_client_program_met(tmp_path):
    said = "pg_restore: error: could not write to output file: " + os.strerror(errno.ENOSPC)
    with pytest.raises(SpaceError, match=str(tmp_path)):
        Server(local=False, pg_restore=failing(exit_code=1, stderr=said)).dump(tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("code, kind", [(errno.ENOSPC, SpaceError), (errno.EROFS, SetError)])
def test_error_of_the_folder_names_it(tmp_path, code, kind):
    with pytest.raises(kind, match=str(tmp_path)):
        with pg_dump.folder_errors(str(tmp_path)):
            raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("psql", [failing(exit_code=2, stderr="no way"), failing(lost=True)])
def test_failure_before_the_snapshot_is_told_to_those_who_wait(tmp_path, psql):
    (tmp_path / ".snapshot.json").write_text(json.dumps(SNAPSHOT))
    with pytest.raises(EchoError) as caught:
        Server(psql=psql).dump(tmp_path)
    assert json.loads((tmp_path / ".snapshot.json").read_text()) == {"error": str(caught.value)}


def test_a_snapshot_that_cannot_be_announced_ends_the_dump(tmp_path):
    with pytest.raises(SetError, match="nowhere/snapshot.json"):
        Server().dump(tmp_path, snapshot_file=str(tmp_path / "nowhere" / "snapshot.json"))
    assert left_in(tmp_path) == []


def test_an_error_that_cannot_be_announced_is_still_told(tmp_path):
    with pytest.raises(DatabaseError, match="no way"):
        Server(psql=failing(exit_code=2, stderr="no way")).dump(
            tmp_path, snapshot_file=str(tmp_path / "nowhere" / "snapshot.json")
        )


def test_missing_database_is_told_to_those_who_wait(tmp_path):
    engine = FakeEngine()
    with pytest.raises(EchoError):
        pg_dump.run(engine, str(tmp_path))
    assert "error" in json.loads((tmp_path / ".snapshot.json").read_text())


def test_check_mode_writes_nothing(tmp_path):
    server = Server(psql=lambda call: FakeCommand(b'{"name": "music_server", "bytes": 5}\n14\n'))
    result = server.dump(tmp_path / "new", check_mode=True)
    assert result["table_count"] == 14
    assert result["database"]["bytes"] == 5
    assert os.listdir(str(tmp_path)) == []


def test_leftovers_of_a_crash_are_replaced(tmp_path):
    (tmp_path / "postgres_dump.backup.partial").write_bytes(b"old")
    Server(local=False).dump(tmp_path)
    assert (tmp_path / "postgres_dump.backup").read_bytes() == DUMP


def test_database_is_taken_as_given():
    assert Database(None, "a", name="b").source == "a:b"
