# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set is published whole or not at all: on real files, with processes that are really killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import tarfile
import time

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.module_utils import backup_set, set_files, set_lock
from ansible_collections.echo_music.ops.plugins.module_utils.backup_set import (
    abandon_set,
    ensure_set,
    list_sets,
    open_set,
    plan,
    predict_set,
    publish_set,
)
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Gone
from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError, SpaceError
from ansible_collections.echo_music.ops.plugins.module_utils.process import identity
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import check_manifest, read_manifest
from ansible_collections.echo_music.ops.plugins.module_utils.version import VERSION

CHECKOUT = pathlib.Path(__file__).resolve().parents[4]
MIB = 1024 * 1024


class SmallEngine:
    """Containers that can be paused and stopped; their states outlive the process in a file."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        if not self.path.exists():
            self.path.write_text(json.dumps({"echo-app": "running"}))

    def container(self, name):
        return dict(name=name, state=self.states[name]) if name in self.states else self._gone(name)

    def pause(self, name):
        self._set(name, "running", "paused")

    def unpause(self, name):
        self._set(name, "paused", "running")

    def stop(self, name):
        self._set(name, "running", "exited")

    def start(self, name):
        self._set(name, "exited", "running")

    @property
    def states(self):
        return json.loads(self.path.read_text())

    def _set(self, name, before, after):
        if self.states[name] != before:
            raise ValueError("%s is %s" % (name, self.states[name]))
        self.path.write_text(json.dumps(dict(self.states, **{name: after})))

    def _gone(self, name):
        raise Gone("No container %s." % name)


def make_stack(folder, layout="classic", size=5 * MIB):
    project = pathlib.Path(folder) / "project"
    project.mkdir(exist_ok=True)
    (project / "docker-compose.yml").write_text("services: {}\n")
    (project / ".env").write_text("POSTGRES_PASSWORD=hunter2\n")
    roles = {"classic": ("uploads", "config", "logs"), "unified": ("data",)}[layout]
    volume = dict(type="volume", container="echo-app", bytes=size, files=3)
    return dict(
        layout=layout,
        project="echo",
        containers=dict(
            database=dict(name="echo-postgres", image="postgres:16-alpine", image_id="sha256:1", image_digests=[]),
            app=dict(name="echo-app", image="echo:latest", image_id="sha256:2", image_digests=["echo@sha256:2"]),
        ),
        volumes=[
            dict(volume, role=role, name="echo-" + role, source="/vol/" + role, destination="/app/" + role)
            for role in roles + ("redis", "database")
        ],
        database=dict(container="echo-postgres", user="music_admin", name="music_server", bytes=size),
        deployment=dict(
            project="echo",
            working_dir=str(project),
            files=[str(project / "docker-compose.yml")],
            env_file=str(project / ".env"),
            env_files=[str(project / ".env")],
        ),
    )


def write_part(part, folder, data=None):
    """What a writer module does, in short."""
    data = part["file"].encode() * 10 if data is None else data
    pathlib.Path(folder, part["file"]).write_bytes(data)
    return dict(
        role=part["role"],
        file=part["file"],
        source=part["source"] or "",
        bytes_in=2 * len(data),
        bytes_out=len(data),
        members=1,
        codec="gzip",
        sha256=hashlib.sha256(data).hexdigest(),
        seconds=0.1,
    )


def write_parts(opened):
    parts = [part for part in opened["set"]["parts"] if part["kind"] != "deployment"]
    artifacts = [write_part(part, opened["set"]["path"]) for part in parts]
    pathlib.Path(opened["set"]["path"], ".snapshot.json").write_text("{}")
    return [a for a in artifacts if a["role"] != "database"], dump_result(
        [a for a in artifacts if a["role"] == "database"]
    )


def dump_result(artifacts):
    return dict(
        snapshot=dict(id="00000003-1", wal_lsn="0/1", time="2026-11-24T03:00:01Z"),
        database=dict(
            name="music_server",
            owner="music_admin",
            server_version="16.4",
            server_version_num=160004,
            encoding="UTF8",
            collate="C",
            ctype="C",
            extensions=[dict(name="pg_trgm", version="1.6")],
            bytes=10 * MIB,
        ),
        tables={"public.users": 3},
        artifacts=artifacts,
    )


def back_up(engine, root, stack, **options):
    opened = open_set(engine, root, stack, **options)
    artifacts, database = write_parts(opened)
    return publish_set(engine, root, opened["set"]["id"], artifacts, database)


def hidden(root):
    return sorted(name for name in os.listdir(root) if name.startswith((".backup", ".trash", ".lock")))


def age(root, seconds):
    """Let everything in the root be that old."""
    then = time.time() - seconds
    for folder, unused_folders, files in os.walk(root):
        for path in [folder] + [os.path.join(folder, name) for name in files]:
            os.utime(path, (then, then))


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "backups" / "echo")


@pytest.fixture
def engine(tmp_path):
    return SmallEngine(tmp_path / "engine.json")


@pytest.fixture
def stack(tmp_path):
    return make_stack(tmp_path)


# -- the good day -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["classic", "unified"])
def test_a_set_is_opened_and_published(engine, root, tmp_path, layout):
    opened = open_set(engine, root, make_stack(tmp_path, layout))
    assert oct(os.stat(root).st_mode & 0o7777) == oct(os.stat(opened["set"]["path"]).st_mode & 0o7777) == "0o700"
    assert list_sets(root) == []
    artifacts, database = write_parts(opened)
    result = publish_set(engine, root, opened["set"]["id"], artifacts, database)

    folder = pathlib.Path(result["set"]["path"])
    volumes = {"classic": ["config.tar.gz", "uploads.tar.gz"], "unified": ["data.tar.gz"]}[layout]
    assert sorted(os.listdir(folder)) == sorted(
        ["SHA256SUMS", "backup_info.txt", "manifest.json", "deployment.tar.gz", "postgres_dump.backup"]
        + ["postgres_dump.sql", "postgres_globals.sql"]
        + volumes
    )
    assert {oct(path.stat().st_mode & 0o7777) for path in folder.iterdir()} == {"0o600"}
    subprocess.check_call(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=folder)
    assert os.readlink(os.path.join(root, "latest")) == opened["set"]["id"]
    assert result["warnings"] == []
    assert hidden(root) == []
    assert result["set"]["bytes_out"] == sum(a["bytes_out"] for a in result["set"]["artifacts"])
    assert [(s["id"], s["complete"], s["origin"]) for s in list_sets(root)] == [
        (opened["set"]["id"], True, "collection")
    ]


def test_the_manifest_follows_its_schema(engine, root, stack):
    result = back_up(engine, root, stack)
    manifest = json.loads(pathlib.Path(result["set"]["path"], "manifest.json").read_text())
    schema = json.loads((CHECKOUT / "docs" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest, schema, cls=jsonschema.Draft202012Validator)
    assert manifest["tables"] == {"public.users": 3}
    assert manifest["components"] == ["database", "uploads", "config", "deployment"]


def test_whole_results_tell_what_was_skipped(engine, root, stack):
    opened = open_set(engine, root, stack)
    artifacts, database = write_parts(opened)
    skipped = [dict(name="app.sock", type="socket", reason="A socket holds no data and is not archived.")]
    results = [dict(changed=True, artifact=artifact, skipped=skipped, changed_files=["x"]) for artifact in artifacts]
    uploads = publish_set(engine, root, opened["set"]["id"], results, database)["set"]["artifacts"][-1]
    assert (uploads["file"], uploads["skipped"], uploads["changed"]) == ("uploads.tar.gz", skipped, ["x"])


def test_people_find_the_commands_of_a_restore(engine, root, stack):
    text = pathlib.Path(back_up(engine, root, stack)["set"]["path"], "backup_info.txt").read_text()
    assert "docker exec -i echo-postgres pg_restore -U music_admin -d music_server --clean --if-exists" in text
    assert "gzip -dc uploads.tar.gz | docker run --rm -i --entrypoint tar -v echo-uploads:/target postgres:16-alpine xf -" in text
    assert "hunter2" not in text


def test_the_deployment_is_archived(engine, root, stack):
    opened = open_set(engine, root, stack)
    with tarfile.open(os.path.join(opened["set"]["path"], "deployment.tar.gz")) as archive:
        assert archive.getnames() == ["./docker-compose.yml", "./.env"]
    assert opened["deployment"]["members"] == 2


def test_a_missing_compose_file_is_told(engine, root, stack):
    stack["deployment"]["files"].append("/nowhere/override.yml")
    assert "/nowhere/override.yml can't be read" in open_set(engine, root, stack)["warnings"][0]


def test_without_compose_files_the_part_is_left_out(engine, root, stack):
    stack["deployment"].update(files=["/nowhere/docker-compose.yml"], env_file=None, env_files=[])
    opened = open_set(engine, root, stack)
    assert "deployment" not in {part["component"] for part in opened["set"]["parts"]}
    assert "without deployment" in " ".join(opened["warnings"])


def test_publishing_again_changes_nothing(engine, root, stack):
    first = back_up(engine, root, stack)
    again = publish_set(engine, root, first["set"]["id"], [])
    assert (again["changed"], again["set"]) == (False, first["set"])


def test_a_file_system_without_links_has_sets_without_latest(engine, root, stack, monkeypatch):
    def refuse(*unused):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "symlink", refuse)
    for count in (1, 2):
        result = back_up(engine, root, stack)
        assert result["warnings"] == ["%s/latest can't name the newest set: Operation not supported." % root]
        assert (len(list_sets(root)), hidden(root), os.path.lexists(os.path.join(root, "latest"))) == (count, [], False)


def test_the_manifest_names_what_changed_while_it_was_read(engine, root, stack):
    opened = open_set(engine, root, stack)
    artifacts, database = write_parts(opened)
    results = [dict(changed=True, artifact=artifact, skipped=[], changed_files=["a.db"]) for artifact in artifacts]
    published = publish_set(engine, root, opened["set"]["id"], results, database)
    kept = {artifact["file"]: artifact.get("changed") for artifact in published["set"]["artifacts"]}
    assert (kept["uploads.tar.gz"], kept["postgres_dump.sql"]) == (["a.db"], None)


def test_sets_of_the_same_second(engine, root, stack, monkeypatch):
    monkeypatch.setattr(set_files.time, "time", lambda: 1795489200.5)
    ids = [back_up(engine, root, stack)["set"]["id"] for unused in range(3)]
    assert ids == ["backup_2026-11-24_03-00-0%d" % n for n in range(3)]
    assert os.readlink(os.path.join(root, "latest")) == ids[-1]


def test_the_version_is_that_of_the_collection():
    assert yaml.safe_load((CHECKOUT / "galaxy.yml").read_text())["version"] == VERSION


# -- the plan ---------------------------------------------------------------------------------


def test_the_plan_counts_cautiously_without_history(stack):
    planned = plan(stack, free=100 * MIB, deployment_bytes=100)
    sizes = {part["file"]: part["estimated_bytes_out"] for part in planned["parts"]}
    assert sizes["postgres_dump.backup"] == sizes["postgres_dump.sql"] == int(5 * MIB * 1.1)
    assert sizes["uploads.tar.gz"] >= 5 * MIB
    assert planned["fits"]


def test_the_plan_learns_from_the_last_set(engine, root, stack):
    back_up(engine, root, stack)
    history = read_manifest(os.path.join(root, "latest", "manifest.json"))
    sizes = {part["file"]: part["estimated_bytes_out"] for part in plan(stack, history=history)["parts"]}
    assert sizes["uploads.tar.gz"] == int((5 * MIB + 3 * 1024) * 0.5 * 1.1)
    assert sizes["postgres_dump.backup"] < 1024


def test_the_plan_of_a_remote_engine_uses_the_last_sizes(engine, root, stack):
    back_up(engine, root, stack)
    history = read_manifest(os.path.join(root, "latest", "manifest.json"))
    for volume in stack["volumes"]:
        volume["bytes"] = None
    planned = plan(stack, ["uploads", "logs"], history=history)
    sizes = {part["file"]: part["estimated_bytes_out"] for part in planned["parts"]}
    assert sizes == {"uploads.tar.gz": int(140 * 1.1), "logs.tar.gz": None}
    assert "logs.tar.gz" in planned["warnings"][0]


@pytest.mark.parametrize("codec, name", [("gzip", "cache.tar.gz"), ("zstd", "cache.tar.zst"), ("none", "cache.tar")])
def test_the_cache_is_the_volume_of_redis(stack, codec, name):
    (part,) = plan(stack, ["cache"], codec=codec)["parts"]
    assert (part["role"], part["file"], part["volume"]) == ("redis", name, "echo-redis")


def test_a_component_that_the_layout_lacks(stack):
    with pytest.raises(SetError, match="no component data.*It has: database, uploads, config, logs, cache, postgres-data, deployment"):
        plan(stack, ["data"])


@pytest.mark.parametrize(
    "broken", [{}, {"layout": "classic"}, {"layout": "other"}, {"layout": "classic", "volumes": [1]}, []]
)
def test_a_stack_that_is_none(broken):
    with pytest.raises(SetError, match="is not a stack"):
        plan(broken)


def test_check_mode_predicts_and_touches_nothing(engine, root, stack):
    predicted = predict_set(engine, root, stack)
    assert not os.path.exists(root)
    opened = open_set(engine, root, stack)
    for key in ("bytes_needed", "fits", "removed_leftovers", "warnings"):
        assert predicted[key] == opened[key]
    assert predicted["set"]["parts"] == opened["set"]["parts"]
    before = sorted(os.listdir(root))
    held = predict_set(engine, root, stack)
    assert held["under_way"]["id"] == opened["set"]["id"]
    assert sorted(os.listdir(root)) == before


def test_check_mode_of_publishing(engine, root, stack):
    predicted = ensure_set(
        engine, "published", root, id="backup_2026-11-24_03-00-00", artifacts=[], database=None, check=True
    )
    assert (predicted["changed"], os.path.exists(root)) == (True, False)
    opened = open_set(engine, root, stack, quiesce="pause")
    set_id = opened["set"]["id"]
    with pytest.raises(SetError, match="is not complete"):
        publish_set(engine, root, set_id, [], check=True)
    artifacts, database = write_parts(opened)
    before = sorted(os.listdir(opened["set"]["path"]))
    predicted = publish_set(engine, root, set_id, artifacts, database, check=True)
    assert sorted(os.listdir(opened["set"]["path"])) == before
    assert engine.states["echo-app"] == "paused"
    for key in ("bytes_in", "bytes_out", "components", "artifacts", "path"):
        assert predicted["set"][key] == publish_set(engine, root, set_id, artifacts, database)["set"][key]


def test_check_mode_of_abandoning(engine, root, stack):
    opened = open_set(engine, root, stack)
    assert ensure_set(engine, "abandoned", root, id=opened["set"]["id"], keep=False, check=True)["changed"]
    assert os.path.isdir(opened["set"]["path"])


def test_diff_mode_shows_the_manifest_without_secrets(engine, root, stack):
    first = back_up(engine, root, stack)
    assert json.loads(first["diff"]["after"])["id"] == first["set"]["id"]
    opened = open_set(engine, root, stack)
    assert json.loads(opened["diff"]["before"])["files"]["uploads.tar.gz"] == 140
    assert "hunter2" not in json.dumps([first, opened])


# -- the lock ---------------------------------------------------------------------------------


def dead_owner():
    process = subprocess.Popen(["sleep", "60"])
    owner = identity(process.pid)
    process.kill()
    process.wait()
    return owner


@pytest.mark.parametrize(
    "owner", ["", "other-machine 1 1", identity(), "no identity at all"], ids=["none", "elsewhere", "this", "nonsense"]
)
def test_two_backups_at_once(engine, root, stack, owner):
    opened = open_set(engine, root, stack, owner=owner)
    with pytest.raises(SetError, match="has been under way") as caught:
        open_set(engine, root, stack)
    assert caught.value.details["under_way"]["id"] == opened["set"]["id"]
    assert os.path.isdir(opened["set"]["path"])


def test_four_opens_in_the_same_moment(engine, root, stack):
    children = [in_a_child(lambda: open_set(engine, root, stack)) for unused in range(4)]
    assert sorted(wait() for wait in children) == [0, 3, 3, 3]


def test_a_dead_owner_loses_the_lock_at_once(engine, root, stack):
    first = open_set(engine, root, stack, owner=dead_owner(), quiesce="pause")
    assert engine.states["echo-app"] == "paused"
    second = open_set(engine, root, stack)
    assert second["removed_leftovers"] == [os.path.basename(first["set"]["path"])]
    assert (second["resumed"], engine.states["echo-app"]) == ("echo-app", "running")
    with pytest.raises(SetError, match="not under way in .* any more"):
        publish_set(engine, root, first["set"]["id"], [])


def test_the_lease_ends(engine, root, stack):
    open_set(engine, root, stack, lease=600)
    age(root, 599)
    with pytest.raises(SetError, match="has been under way"):
        open_set(engine, root, stack)
    age(root, 601)
    assert len(open_set(engine, root, stack)["removed_leftovers"]) == 1


def test_a_file_that_grows_is_a_sign_of_life(engine, root, stack):
    opened = open_set(engine, root, stack, lease=600)
    age(root, 3600)
    pathlib.Path(opened["set"]["path"], "uploads.tar.gz").write_bytes(b"more")
    with pytest.raises(SetError, match="has been under way"):
        open_set(engine, root, stack)


def test_a_living_owner_keeps_the_lock_beyond_its_lease(engine, root, stack):
    open_set(engine, root, stack, owner=identity(), lease=1)
    age(root, 3600)
    with pytest.raises(SetError, match="as soon as the process %d here has ended" % os.getpid()):
        open_set(engine, root, stack)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"id": 1}', b"[" * 100000])
def test_a_lock_that_nobody_understands_ends_with_the_lease(engine, root, stack, text):
    set_files.prepare_root(root)
    set_files.write_file(os.path.join(root, ".lock"), text)
    with pytest.raises(SetError, match="has been under way"):
        open_set(engine, root, stack)
    age(root, set_lock.LEASE + 1)
    assert open_set(engine, root, stack)["fits"]


def test_folders_without_a_lock_are_leftovers(engine, root, stack):
    os.makedirs(os.path.join(root, ".backup_2026-11-24_03-00-00.partial", "x"), mode=0o700)
    os.makedirs(os.path.join(root, ".trash_backup_2026-11-24_03-00-00.partial"))
    os.chmod(root, 0o700)
    predicted = predict_set(engine, root, stack)["removed_leftovers"]
    assert open_set(engine, root, stack)["removed_leftovers"] == predicted
    assert len(predicted) == 2


# -- quiesce and abandon ----------------------------------------------------------------------


@pytest.mark.parametrize("mode, state", [("pause", "paused"), ("stop", "exited")])
def test_the_app_runs_again_when_the_set_is_published(engine, root, stack, mode, state):
    opened = open_set(engine, root, stack, quiesce=mode)
    assert engine.states["echo-app"] == state
    artifacts, database = write_parts(opened)
    assert publish_set(engine, root, opened["set"]["id"], artifacts, database)["resumed"] == "echo-app"
    assert engine.states["echo-app"] == "running"


def test_the_app_runs_again_when_publishing_fails(engine, root, stack):
    opened = open_set(engine, root, stack, quiesce="pause")
    with pytest.raises(SetError, match="is not complete"):
        publish_set(engine, root, opened["set"]["id"], [])
    assert engine.states["echo-app"] == "running"


def test_an_app_that_did_not_run_is_left_alone(engine, root, stack):
    engine.stop("echo-app")
    opened = open_set(engine, root, stack, quiesce="stop")
    assert abandon_set(engine, root, opened["set"]["id"])["resumed"] is None
    assert engine.states["echo-app"] == "exited"


def test_an_app_that_is_gone_does_not_block_the_next_backup(engine, root, stack):
    open_set(engine, root, stack, owner=dead_owner(), quiesce="pause")
    engine.path.write_text("{}")
    assert open_set(engine, root, stack)["fits"]


def test_a_set_that_cannot_be_paused_leaves_nothing(engine, root, stack):
    stack["containers"]["app"]["name"] = "another"
    with pytest.raises(Gone):
        open_set(engine, root, stack, quiesce="pause")
    assert hidden(root) == []


def test_abandoning(engine, root, stack):
    opened = open_set(engine, root, stack, quiesce="pause")
    assert abandon_set(engine, root, opened["set"]["id"])["changed"]
    assert (hidden(root), engine.states["echo-app"]) == ([], "running")
    assert not abandon_set(engine, root, opened["set"]["id"])["changed"]


def test_abandoning_with_evidence(engine, root, stack):
    opened = open_set(engine, root, stack)
    evidence = abandon_set(engine, root, opened["set"]["id"], keep=True)["set"]["path"]
    assert os.listdir(evidence) == ["deployment.tar.gz"]
    assert list_sets(root) == []
    assert open_set(engine, root, stack)["removed_leftovers"] == []


# -- what must not be published ---------------------------------------------------------------


def test_a_part_that_nobody_reports(engine, root, stack):
    opened = open_set(engine, root, stack)
    artifacts, database = write_parts(opened)
    with pytest.raises(SetError, match="no artifact reports config.tar.gz") as caught:
        publish_set(engine, root, opened["set"]["id"], [a for a in artifacts if a["role"] != "config"], database)
    assert caught.value.details["missing"] == ["config.tar.gz"]
    assert list_sets(root) == []


def test_a_link_is_not_a_part(engine, root, stack):
    opened = open_set(engine, root, stack)
    artifacts, database = write_parts(opened)
    path = pathlib.Path(opened["set"]["path"], "uploads.tar.gz")
    path.rename(os.path.join(root, "elsewhere"))
    path.symlink_to("../elsewhere")
    with pytest.raises(SetError, match="Could not read .*uploads.tar.gz"):
        publish_set(engine, root, opened["set"]["id"], artifacts, database)


def test_a_part_that_is_not_there(engine, root, stack):
    opened = open_set(engine, root, stack)
    artifacts, database = write_parts(opened)
    os.unlink(os.path.join(opened["set"]["path"], "postgres_dump.sql"))
    with pytest.raises(SetError, match="its folder lacks postgres_dump.sql"):
        publish_set(engine, root, opened["set"]["id"], artifacts, database)


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 140])
def test_a_part_that_is_not_what_was_reported(engine, root, stack, data):
    opened = open_set(engine, root, stack)
    artifacts, database = write_parts(opened)
    pathlib.Path(opened["set"]["path"], "uploads.tar.gz").write_bytes(data)
    with pytest.raises(SetError, match="is not what its writer reported"):
        publish_set(engine, root, opened["set"]["id"], artifacts, database)
    assert list_sets(root) == []


def test_a_file_that_nobody_knows(engine, root, stack):
    opened = open_set(engine, root, stack)
    artifacts, database = write_parts(opened)
    pathlib.Path(opened["set"]["path"], "uploads.tar.gz.partial").write_bytes(b"")
    with pytest.raises(SetError, match="nothing reports: uploads.tar.gz.partial"):
        publish_set(engine, root, opened["set"]["id"], artifacts, database)


@pytest.mark.parametrize("name", ["../uploads.tar.gz", "/etc/passwd", "", "manifest.json", None, 7, "a/b", ".env"])
def test_an_artifact_with_a_hostile_name(engine, root, stack, name):
    opened = open_set(engine, root, stack)
    artifacts, database = write_parts(opened)
    with pytest.raises(SetError, match="An artifact is not as the modules report it"):
        publish_set(engine, root, opened["set"]["id"], artifacts + [dict(artifacts[0], file=name)], database)


@pytest.mark.parametrize(
    "database", [None, {}, dict(dump_result([]), snapshot=None), dict(dump_result([]), database={})]
)
def test_a_dump_that_nothing_describes(engine, root, stack, database):
    opened = open_set(engine, root, stack)
    artifacts, described = write_parts(opened)
    with pytest.raises(SetError, match="describe"):
        publish_set(engine, root, opened["set"]["id"], artifacts + described["artifacts"], database)


@pytest.mark.parametrize("set_id", ["../../etc", "latest", "", "backup_2026-11-24_03-00-00/..", None])
def test_an_id_that_is_none(engine, root, set_id):
    with pytest.raises(SetError, match="is not the id of a backup set"):
        ensure_set(engine, "abandoned", root, id=set_id, keep=False)


def test_publishing_what_was_never_opened(engine, root):
    with pytest.raises(SetError, match="nothing is"):
        publish_set(engine, root, "backup_2026-11-24_03-00-00", [])


# -- bad places -------------------------------------------------------------------------------


def test_a_root_that_is_a_file(engine, root, stack):
    os.makedirs(os.path.dirname(root))
    pathlib.Path(root).write_text("")
    for action in (open_set, predict_set):
        with pytest.raises(SetError, match="is not a folder"):
            action(engine, root, stack)


def test_a_root_below_a_file(engine, tmp_path, stack):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetError):
        open_set(engine, str(tmp_path / "file" / "echo"), stack)


def test_a_root_that_others_can_read_is_closed(engine, root, stack):
    os.makedirs(root, mode=0o755)
    os.chmod(root, 0o755)
    assert "it is 0700 now" in open_set(engine, root, stack)["warnings"][0]
    assert os.stat(root).st_mode & 0o7777 == 0o700


def test_a_root_that_serves_others_is_not_closed(engine, root, stack):
    os.makedirs(os.path.join(root, "photos"))
    os.chmod(root, 0o755)
    with pytest.raises(SetError, match="holds more than backup sets .photos."):
        open_set(engine, root, stack)
    assert os.stat(root).st_mode & 0o7777 == 0o755


def test_a_root_of_another_user(engine, root, stack, monkeypatch):
    os.makedirs(root)
    monkeypatch.setattr(set_files.os, "geteuid", lambda: 4711)
    with pytest.raises(SetError, match="belongs to user %d, the backup runs as user 4711" % os.getuid()):
        open_set(engine, root, stack)


def test_a_read_only_root(engine, stack, tmp_path):
    with mounted(tmp_path, "ro") as root:
        for action in (open_set, predict_set):
            with pytest.raises(SetError, match="read-only|may not write"):
                action(engine, root, stack)


def test_the_space_is_checked_before_the_first_byte(engine, root, stack, monkeypatch):
    monkeypatch.setattr(backup_set, "free_bytes", lambda path: 20 * MIB)
    assert open_set(engine, root, stack, ["config"])["fits"]
    abandon_set(engine, root, open_id(root))
    with pytest.raises(SpaceError, match=r"needs about 2\d\.\d MiB in .*, but 20\.0 MiB are free") as caught:
        open_set(engine, root, stack)
    assert caught.value.details["bytes_free"] == 20 * MIB
    assert hidden(root) == []
    assert not predict_set(engine, root, stack)["fits"]


def test_the_reserve_stays_free(engine, root, stack, monkeypatch):
    monkeypatch.setattr(backup_set, "free_bytes", lambda path: 40 * MIB)
    with pytest.raises(SpaceError, match="and 30.0 MiB must stay free"):
        open_set(engine, root, stack, reserve=30 * MIB)


def test_a_disk_that_fills_up_while_publishing(engine, stack, tmp_path):
    with mounted(tmp_path, "size=2m") as root:
        for unused in range(2):
            opened = open_set(engine, root, dict(stack, volumes=small(stack)), ["config", "deployment"])
            config = [part for part in opened["set"]["parts"] if part["role"] == "config"]
            artifacts = [write_part(part, opened["set"]["path"]) for part in config]
            with full(root):
                with pytest.raises(SpaceError, match="No space left.*remove old sets"):
                    publish_set(engine, root, opened["set"]["id"], artifacts)
                assert list_sets(root) == []
            abandon_set(engine, root, opened["set"]["id"])
            assert hidden(root) == []


def open_id(root):
    return json.loads(pathlib.Path(root, ".lock").read_text())["id"]


def small(stack):
    return [dict(volume, bytes=1, files=0) for volume in stack["volumes"]]


@contextlib.contextmanager
def mounted(tmp_path, options):
    """A small or read-only file system; who may not mount gets a folder that behaves alike."""
    folder = str(tmp_path / "mounted")
    os.mkdir(folder, 0o700)
    mount = ["mount", "-t", "tmpfs", "-o", options + ",mode=700", "tmpfs", folder]
    if subprocess.call(mount, stderr=subprocess.DEVNULL) == 0:
        try:
            yield folder
        finally:
            subprocess.check_call(["umount", folder])
    else:
        with pytest.MonkeyPatch.context() as patch:
            if options == "ro":
                patch.setattr(set_files.os, "access", lambda *unused: False)
            yield folder


@contextlib.contextmanager
def full(root):
    """Let the disk be full: really, where the root is a small file system of its own."""
    ballast = os.path.join(root, ".trash_ballast")
    if os.path.ismount(root):
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as target:
            while target.write(b"x" * 4096):
                pass
        yield
        os.unlink(ballast)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(set_files.os, "fsync", no_space)
            yield


def no_space(unused):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# -- kill -9 at every step --------------------------------------------------------------------

CHANGES = ("fsync", "rename", "replace", "mkdir", "unlink", "symlink", "chmod")


def in_a_child(action, steps=0):
    """Run the action in a process of its own, which is killed before its change number ``steps``.

    Returns a function that waits for the exit code: 0, 3 for a ``SetError``, or -9.
    """
    pid = os.fork()
    if not pid:
        code = 1
        try:
            for name in CHANGES:
                setattr(os, name, deadly(getattr(os, name), steps))
            action()
            code = 0
        except SetError:
            code = 3
        finally:
            os._exit(code)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def deadly(call, steps):
    def wrapped(*args, **kwargs):
        deadly.done += 1
        if deadly.done == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return wrapped


deadly.done = 0


class DeadlyEngine(SmallEngine):
    """One whose client may be killed just before, or just after, the engine has acted."""

    def __init__(self, path, steps):
        super().__init__(path)
        self._set = deadly(self._set, steps)
        self.container = deadly(self.container, steps)


def test_kill_at_every_step_then_the_next_run(engine, root, stack):
    """A run dies at its first, second, ... last change to the disk; each time the next one finds order."""
    back_up(engine, root, stack)
    step, killed = 0, 0
    while True:
        step += 1
        dying = DeadlyEngine(engine.path, step)
        code = in_a_child(lambda: back_up(dying, root, stack, owner=identity(), quiesce="pause"), step)()
        sets = list_sets(root)
        assert all(item["complete"] for item in sets)
        assert os.readlink(os.path.join(root, "latest")) in [item["id"] for item in sets]
        if code == 0:
            break
        assert code == -9
        killed += 1
        opened = open_set(engine, root, stack)
        assert engine.states["echo-app"] == "running"
        assert os.readlink(os.path.join(root, "latest")) == list_sets(root)[-1]["id"]
        abandon_set(engine, root, opened["set"]["id"])
        assert hidden(root) == []
    assert killed >= 30


# -- reading what others wrote ----------------------------------------------------------------


def test_sets_of_the_script_and_broken_ones_are_listed_as_such(engine, root, stack):
    whole = back_up(engine, root, stack)["set"]["id"]
    for name, files in (
        ("backup_2024-01-01_00-00-00", {"postgres_dump.backup": "x", "backup_info.txt": "x", "uploads.tar.gz": "x"}),
        ("backup_2024-01-02_00-00-00", {"postgres_dump.backup": "x"}),
        ("backup_2024-01-03_00-00-00", {"postgres_dump.backup": "", "backup_info.txt": "x"}),
        ("backup_2024-01-04_00-00-00", {"manifest.json": "{}"}),
        ("backup_notes", {}),
    ):
        folder = pathlib.Path(root, name)
        folder.mkdir()
        for file_name, text in files.items():
            (folder / file_name).write_text(text)
    copy = pathlib.Path(root, "backup_2025-01-01_00-00-00")
    subprocess.check_call(["cp", "-a", os.path.join(root, whole), str(copy)])
    listed = list_sets(root)
    assert [(s["id"][7:17], s["origin"], s["complete"]) for s in listed[:-1]] == [
        ("2024-01-01", "script", True),
        ("2024-01-02", "script", False),
        ("2024-01-03", "script", False),
        ("2024-01-04", "collection", False),
        ("2025-01-01", "collection", False),
    ]
    assert listed[0]["components"] == ["database", "uploads"]
    assert listed[0]["time"] == "2024-01-01T00:00:00"
    assert "manifest is that of" in listed[4]["problem"]


@pytest.mark.parametrize("name", ["uploads.tar.gz", "SHA256SUMS", "backup_info.txt"])
def test_a_set_that_lost_a_file_is_not_complete(engine, root, stack, name):
    folder = back_up(engine, root, stack)["set"]["path"]
    os.unlink(os.path.join(folder, name))
    (item,) = list_sets(root)
    assert (item["complete"], item["problem"]) == (False, name + " is missing.")


def test_a_set_whose_file_was_cut_is_not_complete(engine, root, stack):
    folder = back_up(engine, root, stack)["set"]["path"]
    os.truncate(os.path.join(folder, "uploads.tar.gz"), 3)
    assert list_sets(root)[0]["problem"] == "uploads.tar.gz has 3 bytes, its manifest says 140."


def test_a_root_that_is_not_there_has_no_sets(root):
    assert list_sets(root) == []


def good_manifest():
    artifact = dict(write_part_fields("uploads.tar.gz"), component="uploads")
    return dict(
        format="echo-backup/1",
        id="backup_2026-11-24_03-00-00",
        times=dict(started="2026-11-24T03:00:00Z", snapshot=None, finished="2026-11-24T03:00:09Z"),
        host="nas",
        collection_version="1.0.0",
        layout="classic",
        project=None,
        components=["uploads"],
        images=dict(app=dict(name="echo-app", image="echo", image_id="sha256:2", digests=[])),
        database=dict(dump_result([])["database"], snapshot=dump_result([])["snapshot"]),
        tables={"public.users": 3},
        artifacts=[artifact],
    )


def write_part_fields(name):
    return dict(
        role="uploads",
        file=name,
        source="/x",
        bytes_in=1,
        bytes_out=1,
        members=1,
        codec="gzip",
        sha256="0" * 64,
        seconds=0.5,
    )


def places(value, path=()):
    """All paths into a manifest."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], path + (key,))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from places(value[index], path + (index,))


def with_value(value, path, new):
    if not path:
        return new
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = with_value(value[path[0]], path[1:], new)
    return changed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def test_a_good_manifest_is_read(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(good_manifest()))
    assert check_manifest(read_manifest(str(path))) == good_manifest()


@settings(deadline=None, max_examples=300)
@given(path=st.sampled_from(list(places(good_manifest()))), new=JSON)
def test_a_manifest_with_one_strange_value(tmp_path_factory, path, new):
    """It is refused, or harmless to those who use it."""
    target = tmp_path_factory.getbasetemp() / "manifest.json"
    target.write_text(json.dumps(with_value(good_manifest(), path, new)))
    try:
        manifest = read_manifest(str(target))
    except SetError:
        return
    backup_set.summary(manifest)
    backup_set.info_text(manifest, [])
    for artifact in manifest["artifacts"]:
        assert os.path.basename(artifact["file"]) == artifact["file"]
        assert not artifact["file"].startswith(".")


@settings(deadline=None, max_examples=200)
@given(
    data=st.binary()
    | st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
    | JSON.map(lambda v: json.dumps(v).encode())
)
def test_a_manifest_of_anything(tmp_path_factory, data):
    target = tmp_path_factory.getbasetemp() / "anything.json"
    target.write_bytes(data)
    with pytest.raises(SetError):
        read_manifest(str(target))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path), lambda path: None])
def test_a_manifest_that_is_no_file(tmp_path, make):
    path = str(tmp_path / "manifest.json")
    make(path)
    with pytest.raises(SetError):
        read_manifest(path)


@pytest.mark.parametrize("data", [b"[" * 200000, b'{"format":' * 50000, b"9" * 100000])
def test_a_manifest_that_is_too_deep(tmp_path, data):
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(SetError):
        read_manifest(str(tmp_path / "manifest.json"))
