# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine in memory: containers that are given, commands that are scripted, streams that break."""

from __future__ import annotations

import collections

from ansible_collections.echo_music.ops.plugins.module_utils.engine import Gone
from ansible_collections.echo_music.ops.plugins.module_utils.errors import CommandError

Call = collections.namedtuple("Call", "container argv env user stdin binds network_mode entrypoint processes_of")


def container(name, env=None, **facts):
    """Return a running container as ``Engine.container`` does."""
    return dict(
        dict(
            id=name + "-id",
            name=name,
            service=None,
            project=None,
            labels={},
            env=env or {},
            image="postgres:16-alpine",
            image_id="sha256:" + name,
            state="running",
            health=None,
            pid=4711,
            started_at="2026-11-24T03:00:00Z",
            mounts=[],
            networks=["bridge"],
            ports={},
            restart_policy="no",
            pid_mode="",
            restarts=0,
        ),
        **facts
    )


def image(name, env=None, **facts):
    """Return an image as ``Engine.image`` does."""
    return dict(dict(id="sha256:" + name, tags=[name], digests=[], env=env or {}, healthcheck=None), **facts)


class FakeEngine:
    """``Engine`` without Docker.

    ``answers`` maps a program, or ``"helper"`` for every helper container, to a function that
    takes the :class:`Call` and returns a :class:`FakeCommand`. ``calls`` is what was run.

    Throwaway containers get the health, or what else of :func:`container`, that ``fates`` maps
    their alias to; ``throwaways`` is what is there of them, networks and volumes too, and
    ``started`` with which options the containers were. Volumes lie below ``root``.
    """

    host = "unix:///var/run/docker.sock"

    def __init__(self, *containers, answers=None, volumes=(), local=True, images=(), fates=None, root=None):
        self.calls = []
        self.throwaways = []
        self.started = {}
        self._images = list(images)
        self._fates = fates or {}
        self._root = root
        self._containers = dict((c["name"], c) for c in containers)
        self._answers = answers or {}
        self._volumes = list(volumes)
        self._local = local

    def info(self):
        return dict(version="28.0", api_version="1.48", host=self.host, local=self._local)

    def is_local(self):
        return self._local

    def containers(self):
        return list(self._containers.values())

    def container(self, name):
        for found in self._containers.values():
            if name in (found["name"], found["id"]):
                return found
        raise Gone("Could not inspect the container %s: No such container." % name, "Does it still exist?")

    def volumes(self):
        return self._volumes

    def image_digests(self, unused_image):
        return []

    def image(self, reference):
        for found in self._images:
            if reference in [found["id"]] + found["tags"] + found["digests"]:
                return found
        return None

    def images(self):
        return self._images

    def data_root(self):
        return str(self._root)

    def remove_stale_helpers(self):
        return []

    def throwaway_network(self, name):
        self.throwaways.append(name)

    def throwaway_volume(self, name):
        self.throwaways.append(name)
        folder = self._root / name / "_data"
        folder.mkdir(parents=True)
        return str(folder)

    def throwaway_container(self, name, image, network, alias, healthcheck, **options):
        self.throwaways.append(name)
        self.started[alias] = dict(options, image=image, healthcheck=healthcheck)
        facts = dict(dict(health="healthy", networks=[network]), **self._fates.get(alias, {}))
        self._containers[name] = container(name, options.get("env"), image_id=image, **facts)

    def remove_throwaway(self, containers=(), volumes=(), network=None):
        for name in list(containers) + list(volumes) + [network] * bool(network):
            self.throwaways.remove(name)

    def logs(self, container, lines=20):
        return "it said\nmore of %s\n" % self._containers[container]["env"].get("POSTGRES_PASSWORD")

    def run_in(self, container, argv, env=None, user=None, stdin=None):
        # A shell runs the last program of its pipeline.
        program = argv[2].rpartition("| ")[2].split()[0] if argv[0] == "sh" else argv[0]
        return self._run(program, Call(container, list(argv), env or {}, user, bool(stdin), {}, None, None, None))

    def helper(self, image, argv, env=None, binds=None, network_mode=None, user=None, entrypoint=None, stdin=None, processes_of=None):
        call = Call(image, list(argv), env or {}, user, bool(stdin), binds or {}, network_mode, entrypoint, processes_of)
        return self._run("helper", call)

    def set_state(self, name, state):
        """Stop, pause or start a container."""
        self._containers[name] = dict(self._containers[name], state=state)

    def remove(self, name):
        """Remove a container."""
        del self._containers[name]

    def _run(self, program, call):
        self.calls.append(call)
        return self._answers[program](call)


class FakeCommand:
    """A command that prints ``chunks`` and ends with ``exit_code``.

    With ``lost`` the connection breaks after the chunks. With ``cut`` the stream ends after
    them while the command still runs, which only :meth:`finish` can notice. ``reply`` maps
    what is written to the command to the chunks that it then prints. ``before_end`` is called
    when all has been printed.
    """

    def __init__(self, *chunks, exit_code=0, stderr="", cut=False, lost=False, reply=None, before_end=None):
        self.written = b""
        self.left_unfinished = False
        self._chunks = collections.deque(chunks)
        self._exit_code = exit_code
        self._stderr = stderr
        self._cut = cut
        self._lost = lost
        self._reply = reply
        self._before_end = before_end
        self._finished = False

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.left_unfinished = not self._finished

    def chunks(self):
        while self._chunks:
            yield self._chunks.popleft()
        if self._before_end:
            self._before_end()
        if self._lost:
            raise CommandError("The command lost its connection: reset by peer", stderr=self._stderr)

    def write(self, data):
        self.written += data
        if self._reply:
            self._chunks.extend(self._reply(data))

    def close_stdin(self):
        pass

    def finish(self):
        for unused in self.chunks():
            pass
        if self._cut:
            raise CommandError("The command was cut short: its stream ended while it still runs", stderr=self._stderr)
        self._finished = True
        if self._exit_code:
            raise CommandError(
                "The command ended with exit code %d: %s" % (self._exit_code, self._stderr),
                stderr=self._stderr,
                exit_code=self._exit_code,
            )

    def output(self):
        printed = b"".join(self.chunks())
        self.finish()
        return printed
