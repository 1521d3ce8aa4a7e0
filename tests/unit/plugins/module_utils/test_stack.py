# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Discovery: both layouts, labels and names, one Echo or several."""

from __future__ import annotations

import contextlib
import json
import os

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import set_plan, stack
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.report import compiled


class Host:
    """An engine with the containers it is given."""

    host = "unix:///var/run/docker.sock"

    def __init__(self, *containers, volumes=(), local=True):
        self._containers = list(containers)
        self._volumes = list(volumes)
        self._local = local

    def info(self):
        return dict(version="28.0", api_version="1.48", host=self.host, local=self._local)

    def is_local(self):
        return self._local

    def containers(self):
        return self._containers

    def volumes(self):
        return self._volumes

    def image_digests(self, unused_image):
        return []


def mount(destination, name=None, source=None, rw=True):
    return dict(
        type="volume" if name else "bind",
        name=name,
        source=source or "/var/lib/docker/volumes/%s/_data" % name,
        destination=destination,
        rw=rw,
    )


def container(name, service=None, project=None, mounts=(), state="running", **labels):
    compose = {}
    if project:
        compose = {
            "com.docker.compose.project": project,
            "com.docker.compose.service": service,
            "com.docker.compose.project.working_dir": "/opt/" + project,
            "com.docker.compose.project.config_files": "/opt/%s/docker-compose.yml" % project,
        }
    return dict(
        id=name + "-id",
        name=name,
        service=service,
        project=project,
        labels=dict(compose, **labels),
        env={"POSTGRES_PASSWORD": "hunter2"},
        image="image:1",
        image_id="sha256:1",
        state=state,
        health=None,
        pid=1,
        mounts=list(mounts),
        networks=[],
        ports={},
        started_at="",
        restart_policy="unless-stopped",
    )


def classic(project="echo", prefix="echo", state="running"):
    return [
        container(prefix + "-postgres", "postgres", project, [mount("/var/lib/postgresql/data", prefix + "-postgres-data")], state),
        container(prefix + "-redis", "redis", project, [mount("/data", prefix + "-redis-data")], state),
        container(
            prefix + "-app",
            "echo-app",
            project,
            [
                mount("/app/config", prefix + "-config"),
                mount("/app/uploads", prefix + "-uploads"),
                mount("/app/logs", prefix + "-logs"),
                mount("/music", source="/srv/music", rw=False),
            ],
            state,
        ),
    ]


def unified(project="echo"):
    return [
        container("echo-postgres", "postgres", project, [mount("/var/lib/postgresql/data", "echo_postgres_data")]),
        container("echo", "echo", project, [mount("/app/data", source="/volume1/echo"), mount("/music", source="/m", rw=False)]),
    ]


def test_classic_is_found_with_all_its_volumes_and_without_the_music():
    found = stack.discover(Host(*classic()))
    assert found["layout"] == "classic"
    assert [(v["role"], v["name"]) for v in found["volumes"]] == [
        ("config", "echo-config"),
        ("database", "echo-postgres-data"),
        ("logs", "echo-logs"),
        ("redis", "echo-redis-data"),
        ("uploads", "echo-uploads"),
    ]
    assert found["deployment"]["files"] == ["/opt/echo/docker-compose.yml"]


def test_unified_on_a_nas_is_found_with_its_bind_mount():
    found = stack.discover(Host(*unified()))
    assert found["layout"] == "unified"
    data = stack.volume_of(found, "data")
    assert (data["type"], data["name"], data["source"]) == ("bind", None, "/volume1/echo")


def test_stopped_containers_are_found_too():
    found = stack.discover(Host(*classic(state="exited")))
    assert found["containers"]["app"]["state"] == "exited"


def test_nothing_secret_is_shown():
    assert "hunter2" not in json.dumps(stack.discover(Host(*classic())))


def test_names_alone_are_enough_without_compose():
    found = stack.discover(Host(container("echo-postgres"), container("echo-app", mounts=[mount("/app/uploads", "u")])))
    assert (found["project"], found["layout"]) == (None, "classic")


def test_another_app_with_postgres_and_redis_is_not_echo():
    other = [container("immich-db", "postgres", "immich"), container("immich-redis", "redis", "immich")]
    with pytest.raises(StackError, match="No Echo found .*3 containers"):
        stack.discover(Host(container("web", "nginx", "web"), *other))


def test_two_echos_are_an_error_that_lists_them_until_one_is_named():
    host = Host(*(classic() + classic("second", "second")))
    with pytest.raises(StackError, match="2 Echo projects.*echo-app.*second-app") as caught:
        stack.discover(host)
    assert caught.value.details["candidates"] == ["echo", "second"]
    assert stack.discover(host, project="second")["containers"]["app"]["name"] == "second-app"
    assert stack.discover(host, database_container="second-postgres")["project"] == "second"


def test_an_unknown_project_is_an_error_that_lists_the_known():
    with pytest.raises(StackError, match="No Echo project nope.*echo"):
        stack.discover(Host(*classic()), project="nope")


def test_an_unknown_container_is_an_error_that_lists_the_known():
    with pytest.raises(StackError, match="no container nope.*echo-app, echo-postgres"):
        stack.discover(Host(*classic()), database_container="nope")


def test_containers_that_discovery_cannot_know_are_named():
    host = Host(container("db", "pg", "music"), container("srv", "web", "music", [mount("/app/data", "d")]))
    found = stack.discover(host, database_container="db", app_container="srv")
    assert (found["layout"], found["project"]) == ("unified", "music")


def test_one_name_brings_the_rest_of_its_project():
    db, app = container("db", "db", "music"), container("srv", "echo-app", "music", [mount("/app/uploads", "u")])
    wiki = container("wiki-db", "postgres", "wiki")
    found = stack.discover(Host(db, app, wiki), database_container="db")
    assert (found["layout"], found["containers"]["app"]["name"]) == ("classic", "srv")
    found = stack.discover(Host(container("pg", "postgres", "music"), container("srv", "web", "music", [mount("/app/data", "d")])), app_container="srv")
    assert (found["layout"], found["containers"]["database"]["name"]) == ("unified", "pg")
    with pytest.raises(StackError, match="No Echo project wiki"):
        stack.discover(Host(db, app, wiki), project="wiki")


def test_a_named_project_is_found_without_its_app():
    db, redis = container("music-db", "postgres", "music"), container("music-redis", "redis", "music")
    assert sorted(stack.discover(Host(db, redis), project="music")["containers"]) == ["database", "redis"]
    with pytest.raises(StackError, match="No Echo found"):
        stack.discover(Host(db, redis))


def test_the_app_is_known_by_its_image():
    app = dict(container("music-app-1", "app", "music", [mount("/app/data", "d")]), image="ghcr.io/alexzafra13/echo:1.2")
    found = stack.discover(Host(container("music-postgres-1", "postgres", "music"), app))
    assert found["containers"]["app"]["name"] == "music-app-1"


def test_what_is_mounted_inside_of_a_volume_is_told():
    data, inside = mount("/app/data", "d"), mount("/app/data/uploads", source="/mnt/big")
    music = mount("/app/data/music", source="/music", rw=False)
    found = stack.discover(Host(container("pg", "postgres", "music"), container("echo", "echo", "music", [data, inside, music])))
    assert [volume["mounts_inside"] for volume in found["volumes"]] == [["/app/data/uploads"]]
    assert set_plan.plan(found)["left_out"] == [
        "/app/data/uploads is mounted on its own inside of data: the set is made without what lies there."
    ]


def test_a_stack_whose_volumes_are_elsewhere_is_told():
    app = container("srv", "echo-app", "music", [mount("/app/uploads/covers", "covers"), mount("/app/config", "c")])
    found = stack.discover(Host(container("pg", "postgres", "music"), app))
    assert found["layout"] == "classic"
    (told,) = set_plan.plan(found)["left_out"]
    assert "no volume for uploads" in told and "echo_stack_volumes" in told


def test_each_environment_file_belongs_to_the_deployment(tmp_path):
    (tmp_path / "prod.env").write_text("A=1\n")
    labels = {
        "com.docker.compose.project.working_dir": str(tmp_path),
        "com.docker.compose.project.environment_file": "/nowhere/common.env,%s" % (tmp_path / "prod.env"),
    }
    found = stack.discover(Host(container("echo-postgres", "postgres", "echo", **labels)))["deployment"]
    assert found["env_files"] == ["/nowhere/common.env", str(tmp_path / "prod.env")]
    assert found["env_file"] == str(tmp_path / "prod.env")


def test_one_off_containers_of_compose_do_not_count():
    extra = container("echo-postgres-run-1", "postgres", "echo", **{"com.docker.compose.oneoff": "True"})
    assert stack.discover(Host(extra, *classic()))["containers"]["database"]["name"] == "echo-postgres"


def test_a_volume_can_be_overridden_by_a_volume_or_a_folder():
    host = Host(*classic(), volumes=[dict(name="mine", mountpoint="/v/mine", labels={}, driver="local")])
    assert stack.volume_of(stack.discover(host, volumes={"uploads": "mine"}), "uploads")["source"] == "/v/mine"
    assert stack.volume_of(stack.discover(host, volumes={"uploads": "/srv/u"}), "uploads")["type"] == "bind"
    with pytest.raises(StackError, match="no volume nope for uploads.*mine"):
        stack.discover(host, volumes={"uploads": "nope"})


def test_sizes_count_files_not_folders_or_links(tmp_path):
    (tmp_path / "covers").mkdir()
    (tmp_path / "covers" / "a.jpg").write_bytes(b"x" * 100)
    (tmp_path / "b.jpg").write_bytes(b"x" * 11)
    os.symlink("b.jpg", tmp_path / "c.jpg")
    assert stack.measure(Host(), {"source": str(tmp_path)}) == (111, 2)
    assert stack.measure(Host(local=False), {"source": str(tmp_path)}) == (None, None)


def test_contents_go_as_deep_as_asked(tmp_path):
    (tmp_path / "covers" / "deep").mkdir(parents=True)
    (tmp_path / "covers" / "deep" / "a.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    volume = {"role": "uploads", "name": "u", "source": str(tmp_path)}
    assert [(e["path"], e["type"]) for e in stack.contents(volume, 1)] == [("covers", "directory"), ("pipe", "fifo")]
    assert "covers/deep/a.jpg" in [e["path"] for e in stack.contents(volume, 3)]
    assert "covers/deep/a.jpg" not in [e["path"] for e in stack.contents(volume, 2)]


def test_what_vanishes_while_it_is_looked_at_is_left_out(tmp_path, monkeypatch):
    gone = tmp_path / "covers" / "a.jpg"
    gone.parent.mkdir()
    gone.write_bytes(b"x")
    (tmp_path / "b.jpg").write_bytes(b"x")
    volume = {"role": "uploads", "name": "u", "source": str(tmp_path)}
    scandir = os.scandir

    @contextlib.contextmanager
    def vanishing(folder):
        with scandir(folder) as entries:
            seen = list(entries)
        if gone.exists():
            gone.unlink()
            gone.parent.rmdir()
        yield seen

    monkeypatch.setattr(os, "scandir", vanishing)
    assert [entry["path"] for entry in stack.contents(volume, 3)] == ["b.jpg"]


def test_a_folder_that_cannot_be_read_is_not_measured(tmp_path):
    assert stack.measure(Host(), {"source": str(tmp_path / "nothing")}) == (None, None)


def test_a_wrong_query_fails_before_any_work():
    assert compiled("stack.layout").search({"stack": {"layout": "classic"}}) == "classic"
    with pytest.raises(EchoError, match="not JMESPath"):
        compiled("stack.[")


def test_a_volume_that_waits_for_its_mount_is_not_measured_as_empty(tmp_path):
    folder = tmp_path / "echo-uploads" / "_data"
    folder.mkdir(parents=True)
    (folder.parent / "opts.json").write_text('{"MountDevice": "/srv/uploads", "MountOpts": "bind"}')
    volume = {"role": "uploads", "name": "echo-uploads", "source": str(folder)}
    assert stack.measure(Host(), volume) == (None, None)
    with pytest.raises(StackError, match="echo-uploads can't be read"):
        stack.contents(volume, 1)
