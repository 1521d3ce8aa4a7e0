# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A part knows its state from the disk, so any run may go on with it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading

import pytest
from fake_engine import FakeEngine

from ansible_collections.echo_music.ops.plugins.module_utils import restore_parts
from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    ArchiveError,
    CommandError,
    DatabaseError,
    EchoError,
    SetError,
)
from ansible_collections.echo_music.ops.plugins.module_utils.restore_parts import make_part

TAG = "6f1c2a9b"
LIKE = dict(encoding="UTF8", collate="C", ctype="C", owner="echo", server_version_num=150018, extensions=[])


@pytest.fixture
def facts(tmp_path):
    for name, content in (("comes", "new"), ("live", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cover.jpg").write_text(content)
    archive = tmp_path / "uploads.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "comes", "."], check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return dict(component="uploads", kind="archive", live=str(tmp_path / "live"), file=str(archive), sha256=digest)


def cover(facts):
    with open(os.path.join(facts["live"], "cover.jpg")) as file:
        return file.read()


def test_a_volume_goes_there_and_back(facts):
    make_part(None, TAG, facts).stage()
    assert cover(facts) == "old"
    for unused in range(2):
        make_part(None, TAG, facts).swap()
        assert make_part(None, TAG, facts).is_swapped()
        assert cover(facts) == "new"
    for unused in range(2):
        make_part(None, TAG, facts).swap_back()
        assert not make_part(None, TAG, facts).is_swapped()
        assert cover(facts) == "old"
    make_part(None, TAG, facts).discard()
    assert os.listdir(facts["live"]) == ["cover.jpg"]


def test_the_old_volume_is_forgotten(facts):
    part = make_part(None, TAG, facts)
    part.stage()
    part.swap()
    part.forget()
    assert os.listdir(facts["live"]) == ["cover.jpg"]
    part.forget()


def test_a_volume_is_staged_again(facts):
    make_part(None, TAG, facts).stage()
    make_part(None, TAG, facts).stage()
    make_part(None, TAG, facts).swap()
    assert cover(facts) == "new"


def test_another_file_than_the_manifest_tells_of(facts):
    with pytest.raises(ArchiveError, match="SHA-256"):
        make_part(None, TAG, dict(facts, sha256="00" * 32)).stage()
    assert os.listdir(facts["live"]) == ["cover.jpg"]


def test_the_room_that_a_volume_needs(facts):
    assert make_part(None, TAG, dict(facts, bytes_in=4711)).needs() == (facts["live"], 4711)
    assert make_part(None, TAG, facts).needs() == (facts["live"], 10240)
    plain = facts["file"][:-3]
    subprocess.run(["gunzip", "--keep", facts["file"]], check=True)
    assert make_part(None, TAG, dict(facts, file=plain)).needs() == (facts["live"], 10240)
    with open(plain, "wb") as stump:
        stump.write(b"\x1f\x8b")
    assert make_part(None, TAG, dict(facts, file=plain)).needs()[1] >= 2
    with pytest.raises(SetError, match="Could not read"):
        make_part(None, TAG, dict(facts, file="/nowhere/uploads.tar.gz")).needs()


class VolumeEngine:
    """An engine that knows volumes by name."""

    def __init__(self, *volumes):
        self.there = list(volumes)
        self.driver = "local"
        self.created = []

    def volumes(self):
        return [dict(name=name, driver=self.driver) for name in self.there]

    def create_volume(self, name, labels):
        self.created.append((name, labels))


@pytest.mark.parametrize("there, created", [(("echo-uploads",), False), ((), True)])
def test_a_volume_that_is_gone_is_created(facts, there, created):
    shutil.rmtree(facts["live"])
    engine = VolumeEngine(*there)
    part = make_part(engine, TAG, dict(facts, volume="echo-uploads", project="echo"))
    part.check_plan()
    part.stage()
    part.swap()
    assert cover(facts) == "new"
    # Compose knows its volumes by these labels.
    labels = {"com.docker.compose.project": "echo", "com.docker.compose.volume": "echo-uploads"}
    assert engine.created == ([("echo-uploads", labels)] if created else [])


def test_a_volume_of_a_plugin_is_refused(facts):
    engine = VolumeEngine("echo-uploads")
    part = make_part(engine, TAG, dict(facts, volume="echo-uploads"))
    part.check_plan()
    engine.driver = "vieux/sshfs:latest"
    with pytest.raises(SetError, match="volume echo-uploads of the uploads is mounted by the Engine"):
        part.check_plan()


def test_a_volume_that_is_not_mounted(facts):
    with pytest.raises(SetError, match="is not there"):
        make_part(None, TAG, dict(facts, live="/nowhere")).check_plan()


@pytest.mark.parametrize("options, refused", [('{"MountDevice": "nas:/echo", "MountType": "nfs"}', True), ('{"Quota": {"Size": 1}}', False)])
def test_a_volume_that_goes_when_the_app_stops_is_refused(facts, tmp_path, options, refused):
    folder = tmp_path / "echo-uploads" / "_data"
    folder.mkdir(parents=True)
    (folder.parent / "opts.json").write_text(options)
    part = make_part(None, TAG, dict(facts, live=str(folder), volume="echo-uploads"))
    if refused:
        with pytest.raises(SetError, match="volume echo-uploads of the uploads is mounted by the Engine"):
            part.check_plan()
    else:
        part.check_plan()


class SmallServer:
    """The side database, and what the live one says of itself."""

    def __init__(self, monkeypatch, staged, live):
        self.done = []
        self.privileges = ""
        monkeypatch.setattr(restore_parts, "SideDatabase", lambda database, tag: self)
        monkeypatch.setattr(restore_parts.Database, "describe", lambda database: dict(tables=live))
        monkeypatch.setattr(restore_parts.Database, "user", "echo")
        monkeypatch.setattr(restore_parts.Superuser, "analyze", lambda database: self.done.append("analyze " + database.name))
        self.staged = staged

    def create(self, like):
        self.done.append("create")

    def load(self, path, kind):
        self.done.append("load " + kind)
        return self.privileges

    def size(self):
        return 0

    def query(self, *statements):
        return ['["readers"]']

    def grant(self, path, statements):
        self.done += statements
        return ["role x: no"] * (len(statements) - 1)

    def finish(self, owner, *defaults):
        self.done += defaults + ("finish " + owner,)

    def count(self):
        return self.staged


def database_part(tmp_path, **more):
    dump = tmp_path / "postgres_dump.backup"
    dump.write_bytes(b"PGDMP")
    facts = dict(component="database", kind="custom", file=str(dump), bytes=5, container="echo-postgres", name="echo")
    facts.update(like=LIKE, recorded=None, folder="/var", tables=None)
    return make_part(FakeEngine(), TAG, dict(facts, **more))


def test_a_database_is_loaded_and_counted(tmp_path, monkeypatch):
    server = SmallServer(monkeypatch, {"public.users": 5}, {})
    assert database_part(tmp_path, tables={"public.users": 5}).stage() == {"public.users": 5}
    assert server.done == ["create", "load custom", "finish echo"]


class SmallRoles:
    """The roles of the server, in the same list of what was done."""

    def __init__(self, done):
        self._done = done

    def create(self, facts):
        self._done.append("create roles %s" % facts["create"])

    def drop(self, facts):
        self._done.append("drop roles %s" % facts["create"])


def test_roles_come_before_the_dump_and_go_after_what_is_staged(tmp_path, monkeypatch):
    server = SmallServer(monkeypatch, {"public.users": 5}, {})
    server.drop_side = lambda: server.done.append("drop side")
    monkeypatch.setattr(restore_parts, "ServerRoles", lambda database, tag: SmallRoles(server.done))
    part = database_part(tmp_path, roles=dict(create=["reporter"]))
    monkeypatch.setattr(FakeEngine, "remove_stale_helpers", lambda engine: server.done.append("remove stale helpers"))
    part.stage()
    part.discard()
    assert server.done == [
        "create roles ['reporter']",
        "create",
        "load custom",
        "finish echo",
        "remove stale helpers",
        "drop side",
        "drop roles ['reporter']",
    ]


def test_a_new_server_gets_the_roles_of_the_old_one(facts, tmp_path, monkeypatch):
    server, engine = NewServer(monkeypatch, {"public.users": 5}), ServerEngine()
    monkeypatch.setattr(restore_parts, "ServerRoles", lambda database, tag: SmallRoles(server.done))
    part = make_part(engine, TAG, server_facts(facts, tmp_path, roles=dict(create=["reporter"])))
    part.stage()
    part.discard()
    # They go with its folder.
    assert server.done[:2] == ["await throwaway", "look"] and server.done.count("create roles ['reporter']") == 1
    assert "drop roles ['reporter']" not in server.done


DEFAULT = "ALTER DEFAULT PRIVILEGES FOR ROLE %s GRANT SELECT ON TABLES TO %s;"


def test_privileges_are_granted_before_the_loader_goes(tmp_path, monkeypatch):
    server = SmallServer(monkeypatch, {"public.users": 5}, {})
    grants = ["GRANT SELECT ON TABLE public.users TO readers;", "GRANT ALL ON TABLE public.users TO PUBLIC;"]
    server.privileges = "\n".join(grants + [DEFAULT % ("music_admin", "readers")])
    part = database_part(tmp_path, recorded=dict(bytes=1, owner="music_admin"))
    part.stage()
    assert server.done == ["create", "load custom"] + grants + [DEFAULT % ('"echo"', '"readers"'), "finish echo"]
    assert "didn't grant again: 1, the first for role x: no" in part.facts["remarks"][0]


def test_privileges_stay_in_the_dump_where_rows_alone_are_restored(tmp_path, monkeypatch):
    server = SmallServer(monkeypatch, {"public.users": 5}, {})
    monkeypatch.setattr(restore_parts, "SideRows", lambda database, tag, chosen: server)
    server.privileges = "GRANT ALL ON TABLE public.users TO PUBLIC;"
    database_part(tmp_path, chosen=["public.users"]).stage()
    assert server.done == ["create", "load custom", "finish echo"]


@pytest.mark.parametrize(
    "expected, staged, reason",
    [
        ({"public.users": 5}, {"public.users": 4}, "public.users has 4 rows instead of 5"),
        (None, {}, "There is no table"),
    ],
)
def test_a_dump_that_is_not_what_it_should_be(tmp_path, monkeypatch, expected, staged, reason):
    SmallServer(monkeypatch, staged, {})
    with pytest.raises(DatabaseError, match=reason):
        database_part(tmp_path, tables=expected).stage()


def test_a_dump_that_was_changed_is_not_loaded(tmp_path, monkeypatch):
    server = SmallServer(monkeypatch, {}, {})
    with pytest.raises(DatabaseError, match="manifest"):
        database_part(tmp_path, sha256="00" * 32).stage()
    assert server.done == []


def test_rows_that_come_and_go_are_the_apps_business(tmp_path, monkeypatch):
    server = SmallServer(monkeypatch, {}, {"public.users": 4, "public.new": 0})
    part = database_part(tmp_path)
    assert part.verify({"public.users": 5, "public.empty": 0})["public.users"] == 4
    assert server.done == ["analyze echo"]
    with pytest.raises(DatabaseError, match="lost rows: public.tracks"):
        part.verify({"public.tracks": 5})


def test_the_room_that_a_database_needs(tmp_path, monkeypatch):
    SmallServer(monkeypatch, {}, {})
    assert database_part(tmp_path).needs() == ("/var", 40)
    assert database_part(tmp_path, recorded=dict(bytes=4711)).needs() == ("/var", 4711)


class Throwaway:
    """A helper container with a server, which ends when it is stopped, well or not."""

    container = "throwaway"

    def __init__(self, exit_code):
        self.exit_code = exit_code
        self.stopped = threading.Event()
        self.removed = False

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.removed = True
        self.stopped.set()

    def finish(self):
        assert self.stopped.wait(10)
        if self.exit_code:
            raise CommandError("postgres ended with exit code %d." % self.exit_code)


class ServerEngine:
    """An engine whose database container can't run, and that starts throwaway servers."""

    def __init__(self, exit_code=0):
        self.server = Throwaway(exit_code)
        self.started_with = None

    def container(self, name):
        mounts = [
            dict(name="echo-postgres-data", source="/vol/_data", destination="/var/lib/postgresql/data"),
            dict(name=None, source="/opt/echo/secrets", destination="/run/secrets"),
        ]
        return dict(name=name, image_id="sha256:1", env=dict(POSTGRES_USER="echo"), mounts=mounts)

    def helper(self, image, argv, env, binds, network_mode):
        self.started_with = (image, argv, env, binds, network_mode)
        with open(os.path.join(next(iter(binds)), "cover.jpg"), "w") as file:
            file.write("new")
        return self.server

    def stop(self, name, timeout):
        assert name == "throwaway"
        self.server.stopped.set()

    def remove_stale_helpers(self):
        return []


class NewServer(SmallServer):
    """A server that has nothing yet but the database of the container's settings."""

    def __init__(self, monkeypatch, staged):
        super().__init__(monkeypatch, staged, staged)
        monkeypatch.setattr(restore_parts, "await_server", lambda engine, name: self.done.append("await " + name))
        monkeypatch.setattr(restore_parts, "SideDatabase", lambda database: self)
        # What a dump's header tells has tests of its own.
        monkeypatch.setattr(restore_parts, "require_loadable", lambda file, kind, version: self.done.append("look"))
        monkeypatch.setattr(
            restore_parts.Database, "describe", lambda database, tables=True: dict(LIKE, collate="en", tables=staged)
        )

    def create(self, like):
        self.done.append("create with collation %(collate)s" % like)

    def swap(self):
        self.done.append("swap")

    def drop_previous(self):
        self.done.append("drop previous")


def server_facts(facts, tmp_path, **more):
    dump = tmp_path / "postgres_dump.backup"
    dump.write_bytes(b"PGDMP")
    recorded = dict(LIKE, owner="music_admin", bytes=4711)
    mine = dict(component="database", kind="custom", file=str(dump), bytes=5, broken="It ends.", recorded=recorded)
    mine.update(container="echo-postgres", name="echo", tables={"public.users": 5}, live=facts["live"])
    mine.update(folder=facts["live"])
    return dict(mine, volume="echo-postgres-data", project="echo", destination="/var/lib/postgresql/data", **more)


def test_a_server_that_cannot_run_gets_its_data_anew(facts, tmp_path, monkeypatch):
    server, engine = NewServer(monkeypatch, {"public.users": 5}), ServerEngine()
    part = make_part(engine, TAG, server_facts(facts, tmp_path))
    assert part.stage() == {"public.users": 5}
    steps = ["await throwaway", "look", "create with collation C", "load custom", "finish echo", "swap", "drop previous"]
    assert server.done == steps
    image, argv, env, binds, network = engine.started_with
    assert (image, argv, env, network) == ("sha256:1", ["postgres"], dict(POSTGRES_USER="echo"), "bridge")
    staging = os.path.join(facts["live"], ".echo-restore-%s/new" % TAG)
    assert binds == {
        staging: dict(bind="/var/lib/postgresql/data", mode="rw"),
        "/opt/echo/secrets": dict(bind="/run/secrets", mode="ro"),
    }
    assert cover(facts) == "old"
    part.swap()
    assert (cover(facts), part.is_swapped(), part.verify({"public.users": 5})) == ("new", True, {"public.users": 5})
    part.swap_back()
    assert cover(facts) == "old"
    part.discard()
    assert os.listdir(facts["live"]) == ["cover.jpg"]


@pytest.mark.parametrize(
    "exit_code, staged, reason",
    [(1, {"public.users": 5}, "ended with exit code 1"), (0, {"public.users": 4}, "4 rows instead of 5")],
)
def test_a_new_server_that_is_not_as_it_should_be(facts, tmp_path, monkeypatch, exit_code, staged, reason):
    NewServer(monkeypatch, staged)
    engine = ServerEngine(exit_code)
    with pytest.raises(EchoError, match=reason):
        make_part(engine, TAG, server_facts(facts, tmp_path)).stage()
    assert engine.server.removed
    assert os.listdir(facts["live"]) == ["cover.jpg"]


def test_no_single_tables_without_a_server(facts, tmp_path):
    with pytest.raises(DatabaseError, match="no single tables"):
        make_part(None, TAG, server_facts(facts, tmp_path, chosen=["public.users"])).check_plan()
    assert make_part(None, TAG, server_facts(facts, tmp_path)).needs()[1] > 4711
