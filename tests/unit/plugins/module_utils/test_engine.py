# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stream of a command: frames as the Engine API documents them, cut at every place."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
from types import SimpleNamespace

import docker
import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import engine as engine_module
from ansible_collections.echo_music.ops.plugins.module_utils import process
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Engine, ExecCommand
from ansible_collections.echo_music.ops.plugins.module_utils.errors import CommandError, EngineError


def frame(kind, payload):
    return struct.pack(">BxxxL", kind, len(payload)) + payload


class Api:
    """The one call of the SDK that the end of a command needs."""

    def __init__(self, exit_code, running=False):
        self.state = {"Running": running, "ExitCode": exit_code, "Pid": 0}

    def exec_inspect(self, unused_id):
        return self.state


class Stream(io.BytesIO):
    """What the SDK returns for a hijacked connection."""

    def __init__(self, received, connection):
        super().__init__()
        self._sock = connection
        raw = SimpleNamespace(_fp=SimpleNamespace(fp=io.BytesIO(received)))
        self._response = SimpleNamespace(raw=raw, close=raw._fp.fp.close)


@pytest.fixture
def command():
    ends = []

    def make(received, exit_code=0, running=False):
        ours, theirs = socket.socketpair()
        ends.append(theirs)
        engine = Engine("unix:///nowhere")
        engine._client = Api(exit_code, running)
        engine._info = {"local": False}
        made = ExecCommand(engine, "pg_dump in the container echo-postgres", Stream(received, ours), "exec-id")
        made.far_end = theirs
        return made

    yield make
    for end in ends:
        end.close()


def test_output_joins_the_frames_of_stdout_and_leaves_stderr_out(command):
    received = frame(1, b"one ") + frame(2, b"a warning") + frame(1, b"two")
    with command(received) as running:
        assert running.output() == b"one two"


def test_an_exit_code_is_an_error_that_quotes_stderr(command):
    with command(frame(2, b"pg_dump: error: no such table\n"), exit_code=1) as running:
        with pytest.raises(CommandError, match="pg_dump in the container echo-postgres ended with exit code 1: pg_dump: error"):
            running.finish()


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_frame_cut_short_is_an_error_even_with_exit_code_0(command, cut):
    whole = frame(1, b"data")
    with command(whole[: len(whole) - cut], exit_code=0) as running:
        with pytest.raises(CommandError, match="was cut short"):
            running.output()


def test_a_stream_that_ends_before_its_command_is_an_error(command):
    with command(frame(1, b"data"), exit_code=None, running=True) as running:
        with pytest.raises(CommandError, match="still runs"):
            running.output()


def test_input_reaches_the_command_and_its_end_is_told(command):
    with command(b"") as running:
        running.write(b"SELECT 1;")
        running.close_stdin()
        assert running.far_end.recv(100) == b"SELECT 1;"
        assert running.far_end.recv(100) == b""


def test_over_tls_the_end_of_the_input_does_not_end_the_output(command, monkeypatch):
    with command(b"") as running:
        monkeypatch.setattr(engine_module.ssl, "SSLSocket", socket.socket)
        running.close_stdin()
        running.write(b"still open")
        assert running.far_end.recv(100) == b"still open"


def test_an_unreachable_engine_names_itself_and_the_remedy():
    with pytest.raises(EngineError, match="unix:///nowhere/docker.sock is not reachable.*docker version"):
        Engine("unix:///nowhere/docker.sock").info()


def test_a_missing_sdk_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(EngineError, match=r"\(docker\).*python3-docker") as caught:
        Engine().info()
    assert "ModuleNotFoundError" in caught.value.as_result()["exception"]


def test_the_sdk_is_only_loaded_where_an_engine_is_asked():
    code = "import sys, %s; print('docker' in sys.modules)" % engine_module.__name__
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    told = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert told.stdout == "False\n"


def test_the_environment_names_the_engine(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://nas:2375")
    assert Engine().host == "tcp://nas:2375"
    assert Engine("tcp://other:2375").host == "tcp://other:2375"


def test_a_process_is_alive_until_it_ends_and_never_mistaken_for_a_later_one():
    mine = process.identity()
    machine, pid, start = mine.split(" ")
    assert process.is_alive(mine)
    assert not process.is_alive(" ".join([machine, pid, start + "0"]))
    assert process.is_alive("another-machine 1 1")
    assert not process.is_local("another-machine 1 1")


class Leftovers:
    """The calls of the SDK that list and remove what processes made, each with the identity of its maker."""

    def __init__(self, makers, refusals=None):
        self.there = dict((kind, dict(makers)) for kind in ("containers", "networks", "volumes"))
        self.removed = []
        self._refusals = refusals or {}

    def containers(self, all, filters):
        return [dict(Id=name, Labels={filters["label"]: maker}) for name, maker in self.there["containers"].items()]

    def networks(self, filters):
        return [dict(Id=name, Labels={filters["label"]: maker}) for name, maker in self.there["networks"].items()]

    def volumes(self, filters):
        listed = [dict(Name=name, Labels={filters["label"]: maker}) for name, maker in self.there["volumes"].items()]
        return dict(Volumes=listed or None)

    def remove_container(self, name, force, v):
        self._remove("container", name)

    def remove_network(self, name):
        self._remove("network", name)

    def remove_volume(self, name):
        self._remove("volume", name)

    def _remove(self, kind, name):
        status = self._refusals.get(kind)
        if status:
            raise docker.errors.APIError("no", SimpleNamespace(status_code=status, reason="no", url="/"), "no")
        self.removed.append((kind, name))


def stale(makers, refusals=None):
    engine = Engine("unix:///nowhere")
    engine._client = Leftovers(makers, refusals)
    return engine


def test_what_dead_processes_left_goes_and_what_living_ones_use_stays():
    mine = process.identity()
    makers = {"mine": mine, "dead": mine + "0", "elsewhere": "another-machine 1 1"}
    engine = stale(makers)
    assert engine.remove_stale_helpers() == ["dead"] * 3
    assert engine._client.removed == [("container", "dead"), ("network", "dead"), ("volume", "dead")]


@pytest.mark.parametrize("refusals", [dict(container=409), dict(network=403), dict(volume=409)])
def test_a_leftover_that_is_in_use_stops_nobody(refusals):
    engine = stale({"dead": process.identity() + "0"}, refusals)
    assert engine.remove_stale_helpers() == ["dead"] * 2


def test_an_engine_that_refuses_is_an_error():
    with pytest.raises(EngineError, match="remove what a process that died left"):
        stale({"dead": process.identity() + "0"}, dict(volume=500)).remove_stale_helpers()


def test_throwaway_things_carry_their_makers_identity_and_lead_nowhere():
    made = {}

    def note(kind, answer=None):
        def call(*arguments, **options):
            made[kind] = dict(options, name=options.get("name") or arguments[0])
            return answer

        return call

    recorder = SimpleNamespace()
    recorder.create_network = note("network")
    recorder.create_volume = note("volume", dict(Mountpoint="/volumes/v"))
    recorder.create_container = note("container", dict(Id="id"))
    recorder.create_host_config = lambda **options: options
    recorder.create_endpoint_config = lambda **options: options
    recorder.create_networking_config = lambda networks: networks
    recorder.start = note("start")
    engine = Engine("unix:///nowhere")
    engine._client = recorder
    engine.throwaway_network("n")
    assert engine.throwaway_volume("v") == "/volumes/v"
    engine.throwaway_container("c", "image", "n", "postgres", ["CMD", "true"], env=dict(A="1"), volumes={"v": "/data"})
    assert [made[kind]["labels"] for kind in ("network", "volume", "container")] == [
        {engine_module.HELPER_LABEL: process.identity()}
    ] * 3
    assert made["network"]["internal"]
    container = made["container"]
    assert container["networking_config"] == {"n": dict(aliases=["postgres"])}
    assert container["environment"] == dict(A="1")
    assert (container["host_config"]["network_mode"], container["host_config"].get("port_bindings")) == ("n", None)
    assert made["start"]["name"] == "id"


def test_an_image_is_described_or_not_there():
    class Images:
        def inspect_image(self, reference):
            if reference != "echo:1":
                raise docker.errors.NotFound("no such image")
            return dict(
                Id="sha256:1",
                RepoTags=["echo:1"],
                Config=dict(Env=["PG_MAJOR=15", "EMPTY="], Healthcheck=dict(Test=["CMD", "true"])),
            )

        def images(self):
            return [dict(Id="echo:1", RepoTags=["echo:1"]), dict(Id="nameless", RepoTags=None)]

    engine = Engine("unix:///nowhere")
    engine._client = Images()
    described = dict(
        id="sha256:1", tags=["echo:1"], digests=[], env=dict(PG_MAJOR="15", EMPTY=""), healthcheck=["CMD", "true"]
    )
    assert engine.image("echo:1") == described
    assert engine.images() == [described]
    assert engine.image("gone") is None
