# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker Engine: containers, volumes, streams of commands, throwaway helper containers.

The only file that knows the Docker SDK. Streams are read frame by frame as the Engine API
documents them ("Attach to a container", stream format), because the SDK takes a stream that
was cut short for one that ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import traceback

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    CommandError,
    EngineError,
)
from ansible_collections.echo_music.ops.plugins.module_utils.process import (
    identity,
    is_alive,
)

ENGINE_ARGUMENTS = dict(docker_host=dict(type="str"))

DEFAULT_HOST = "unix:///var/run/docker.sock"
HELPER_LABEL = "echo_music.ops.helper"
CALL_TIMEOUT = 120
FRAME_HEADER = struct.Struct(">BxxxL")
# Another process removes it, or it is in use: a network answers with the first, the others with the second.
IN_USE = (403, 409)
STDERR = 2
STDERR_KEPT = 8192


def sdk():
    """Return the Docker SDK, a large import that only those wait for who ask an engine."""
    try:
        import docker
    except ImportError:
        raise EngineError(
            missing_required_lib("docker"),
            "Debian and Ubuntu have it as the package python3-docker.",
            exception=traceback.format_exc(),
        )
    return docker


def needs_mount(driver, options):
    """Tell whether a volume's files are where the Engine says only while a container uses it."""
    return (driver or "local") != "local" or bool(options.get("device") or options.get("type"))


def mounted_by_engine(folder):
    """Tell whether a volume's folder is mounted by the Engine (``driver_opts``), only while a container uses it.

    The driver ``local`` notes beside the folder what it mounts there.
    """
    above, name = os.path.split(folder)
    try:
        with open(os.path.join(above, "opts.json"), encoding="utf-8") as noted:
            options = json.load(noted)
    except (OSError, ValueError):
        return False
    return name == "_data" and needs_mount(None, {"device": options.get("MountDevice"), "type": options.get("MountType")})


def awaits_mount(folder):
    """Tell whether a volume's folder is empty because no container has the Engine mount it."""
    return mounted_by_engine(folder) and not os.path.ismount(folder)


class Engine:
    """One Docker Engine. Connects on first use; every failure is an ``EngineError``."""

    def __init__(self, docker_host=None):
        self.host = docker_host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
        self._client = None
        self._info = None

    def anew(self):
        """Return the same engine with a connection of its own, for another process."""
        return Engine(self.host)

    # -- what is there ------------------------------------------------------------------

    def info(self):
        """Return ``{"version", "api_version", "host", "local"}`` of the engine."""
        if self._info is None:
            with self._translated("ask the Docker Engine for its version"):
                version = self._api.version()
                root = self._api.info().get("DockerRootDir") or ""
            self._info = dict(
                version=version["Version"],
                api_version=version["ApiVersion"],
                host=self.host,
                local=self.host.startswith("unix://") and os.geteuid() == 0 and os.path.isdir(root),
            )
        return self._info

    def is_local(self):
        """Tell whether the engine's files are readable here: a local socket, and we are root."""
        return self.info()["local"]

    def containers(self):
        """Return all containers, running or not, as the dicts of :meth:`container`."""
        with self._translated("list the containers"):
            names = [entry["Id"] for entry in self._api.containers(all=True)]
        found = []
        for name in names:
            with contextlib.suppress(Gone):
                found.append(self.container(name))
        return found

    def container(self, name):
        """Return one container.

        Keys: ``id name service project labels env image image_id state health pid mounts
        networks ports restart_policy pid_mode started_at restarts``. ``env`` holds secrets and stays in memory.
        """
        with self._translated("inspect the container %s" % name):
            raw = self._api.inspect_container(name)
        config, state, host = raw["Config"], raw["State"], raw["HostConfig"]
        labels = config.get("Labels") or {}
        return dict(
            id=raw["Id"],
            name=raw["Name"].lstrip("/"),
            service=labels.get("com.docker.compose.service"),
            project=labels.get("com.docker.compose.project"),
            labels=labels,
            env=dict(pair.partition("=")[::2] for pair in config.get("Env") or []),
            image=config["Image"],
            image_id=raw["Image"],
            state=state["Status"],
            health=(state.get("Health") or {}).get("Status"),
            pid=state.get("Pid") or None,
            started_at=state.get("StartedAt"),
            restarts=raw.get("RestartCount") or 0,
            mounts=[
                dict(
                    type=mount["Type"],
                    name=mount.get("Name"),
                    source=mount.get("Source"),
                    destination=mount["Destination"],
                    rw=mount["RW"],
                )
                for mount in raw.get("Mounts") or []
            ],
            networks=sorted(raw["NetworkSettings"].get("Networks") or {}),
            ports=raw["NetworkSettings"].get("Ports") or {},
            restart_policy=(host.get("RestartPolicy") or {}).get("Name") or "no",
            pid_mode=host.get("PidMode") or "",
        )

    def volumes(self):
        """Return all volumes: ``[{"name", "driver", "mountpoint", "labels", "options"}]``."""
        with self._translated("list the volumes"):
            raw = self._api.volumes().get("Volumes") or []
        return [
            dict(
                name=volume["Name"],
                driver=volume["Driver"],
                mountpoint=volume["Mountpoint"],
                labels=volume.get("Labels") or {},
                options=volume.get("Options") or {},
            )
            for volume in raw
        ]

    def create_volume(self, name, labels):
        """Create a volume; nothing if there is one of that name."""
        with self._translated("create the volume %s" % name):
            self._api.create_volume(name, labels=labels)

    def remove_volume(self, name):
        """Remove a volume; nothing if there is none of that name."""
        with contextlib.suppress(Gone), self._translated("remove the volume %s" % name):
            self._api.remove_volume(name)

    def image_digests(self, image_id):
        """Return the registry digests of an image; a locally built one has none."""
        with self._translated("inspect the image %s" % image_id):
            try:
                return self._api.inspect_image(image_id).get("RepoDigests") or []
            except sdk().errors.NotFound:
                return []

    def image(self, reference):
        """Return an image of this engine by name, digest or id, None where it isn't there.

        Keys: ``id tags digests env healthcheck``.
        """
        with self._translated("inspect the image %s" % reference):
            try:
                raw = self._api.inspect_image(reference)
            except sdk().errors.NotFound:
                return None
        config = raw.get("Config") or {}
        return dict(
            id=raw["Id"],
            tags=sorted(raw.get("RepoTags") or []),
            digests=raw.get("RepoDigests") or [],
            env=dict(pair.partition("=")[::2] for pair in config.get("Env") or []),
            healthcheck=(config.get("Healthcheck") or {}).get("Test"),
        )

    def images(self):
        """Return all images that have a name, as the dicts of :meth:`image`."""
        with self._translated("list the images"):
            ids = [entry["Id"] for entry in self._api.images() if entry.get("RepoTags")]
        return [image for image in map(self.image, ids) if image]

    def name_image(self, image_id, name):
        """Give an image of this engine one more name; another image that had it loses it."""
        repository, unused, tag = name.rpartition(":")
        with self._translated("name the image %s %s" % (image_id, name)):
            self._api.tag(image_id, repository, tag)

    def forget_image_name(self, name):
        """Take a name from an image; the image goes with its last one, unless a container uses it."""
        with self._translated("remove the image's name %s" % name):
            self._try(self._api.remove_image, name, noprune=True)

    def data_root(self):
        """Return the folder in which the engine keeps its volumes and containers."""
        with self._translated("ask the Docker Engine for its folder"):
            return self._api.info()["DockerRootDir"]

    # -- the life of a container ----------------------------------------------------------

    def pause(self, name):
        """Freeze every process of a container."""
        with self._translated("pause the container %s" % name):
            self._api.pause(name)

    def unpause(self, name):
        """Let a paused container go on."""
        with self._translated("unpause the container %s" % name):
            self._api.unpause(name)

    def stop(self, name, timeout=30):
        """Stop a container, killing it after ``timeout`` seconds."""
        with self._translated("stop the container %s" % name):
            self._api.stop(name, timeout=timeout)

    def start(self, name):
        """Start a stopped container."""
        with self._translated("start the container %s" % name):
            self._api.start(name)

    def set_restart_policy(self, name, policy):
        """Say whether the engine starts a container again by itself: ``no``, ``always``, ``unless-stopped``, ``on-failure``."""
        with self._translated("set the restart policy of the container %s" % name):
            self._api.update_container(name, restart_policy={"Name": policy})

    # -- streams --------------------------------------------------------------------------

    def archive_of(self, container, path):
        """Yield the tar stream of a path in a container, which need not run."""
        with self._translated("read %s of the container %s" % (path, container)):
            stream, unused_stat = self._api.get_archive(container, path)
            yield from stream

    def run_in(self, container, argv, env=None, user=None, stdin=None):
        """Run a command in a running container; return its :class:`Command`."""
        what = "%s in the container %s" % (argv[0], container)
        with self._translated("run " + what):
            exec_id = self._api.exec_create(
                container, list(argv), environment=env or {}, user=user or "", stdin=bool(stdin)
            )["Id"]
            stream = self._api.exec_start(exec_id, socket=True)
        return ExecCommand(self, what, stream, exec_id)

    def helper(
        self,
        image,
        argv,
        env=None,
        binds=None,
        network_mode=None,
        processes_of=None,
        user=None,
        entrypoint=None,
        stdin=None,
    ):
        """Run a command in a throwaway container of ``image``; return its :class:`Command`.

        ``binds`` maps host folders to ``{"bind": path, "mode": "rw"}``. ``processes_of`` is a running container
        whose processes the command sees, and as root their files below ``/proc``. The container goes
        when the command ends; one whose creator was killed goes at the next call.
        """
        self.remove_stale_helpers()
        what = "%s in a helper container of %s" % (argv[0] if argv else image, image)
        with self._translated("run " + what):
            container = self._api.create_container(
                image,
                command=list(argv),
                entrypoint=entrypoint,
                environment=env or {},
                user=user or "",
                stdin_open=bool(stdin),
                labels={HELPER_LABEL: identity()},
                host_config=self._api.create_host_config(
                    # Not as binds: the engine would create a folder that is gone meanwhile.
                    mounts=[
                        sdk().types.Mount(
                            place["bind"],
                            source,
                            type="bind" if source.startswith("/") else "volume",
                            read_only=place["mode"] == "ro",
                        )
                        for source, place in (binds or {}).items()
                    ],
                    network_mode=network_mode or "none",
                    pid_mode="container:" + processes_of if processes_of else None,
                    # What proc(5) wants of those who look at another's files.
                    cap_add=["SYS_PTRACE"] if processes_of else None,
                    log_config={"Type": "none"},
                ),
            )["Id"]
            try:
                params = dict(stdout=1, stderr=1, stream=1, stdin=1 if stdin else 0)
                stream = self._api.attach_socket(container, params=params)
                self._api.start(container)
            except BaseException:
                self._api.remove_container(container, force=True, v=True)
                raise
        return HelperCommand(self, what, stream, container)

    def remove_stale_helpers(self):
        """Remove containers, networks and volumes that a killed process left; return their ids."""
        removed = []
        label = {"label": HELPER_LABEL}
        with self._translated("remove what a process that died left"):
            # Containers first: they use the others.
            for entry in self._api.containers(all=True, filters=label):
                if not is_alive(entry["Labels"][HELPER_LABEL]) and self._remove(entry["Id"]):
                    removed.append(entry["Id"])
            for entry in self._api.networks(filters=label):
                if not is_alive(entry["Labels"][HELPER_LABEL]) and self._try(self._api.remove_network, entry["Id"]):
                    removed.append(entry["Id"])
            for entry in self._api.volumes(filters=label).get("Volumes") or []:
                if not is_alive(entry["Labels"][HELPER_LABEL]) and self._try(self._api.remove_volume, entry["Name"]):
                    removed.append(entry["Name"])
        return removed

    def _remove(self, container):
        """Remove a container; tell whether it was us: another process may be at it."""
        return self._try(self._api.remove_container, container, force=True, v=True)

    @staticmethod
    def _try(remove, name, **options):
        try:
            remove(name, **options)
        except sdk().errors.NotFound:
            return False
        except sdk().errors.APIError as error:
            if error.status_code not in IN_USE:
                raise
            return False
        return True

    # -- throwaway servers ------------------------------------------------------------------

    def throwaway_network(self, name):
        """Create a network that leads nowhere, for the throwaway containers of this process."""
        with self._translated("create the network %s" % name):
            self._api.create_network(name, internal=True, labels={HELPER_LABEL: identity()})

    def throwaway_volume(self, name):
        """Create a volume for the throwaway containers of this process; return its folder on the host."""
        with self._translated("create the volume %s" % name):
            return self._api.create_volume(name, labels={HELPER_LABEL: identity()})["Mountpoint"]

    def throwaway_container(
        self, name, image, network, alias, healthcheck, command=None, env=None, volumes=None, tmpfs=None, user=None
    ):
        """Start a container in a throwaway network, by its alias for the others there.

        ``healthcheck`` is a command as Docker takes it, tried every second; ``volumes`` maps
        names to where they are mounted.
        """
        second = 1000000000
        with self._translated("start the container %s of %s" % (name, image)):
            container = self._api.create_container(
                image,
                name=name,
                command=command,
                environment=env or {},
                user=user or "",
                labels={HELPER_LABEL: identity()},
                healthcheck=sdk().types.Healthcheck(
                    test=healthcheck, interval=second, timeout=10 * second, retries=3, start_period=3600 * second
                ),
                host_config=self._api.create_host_config(
                    mounts=[sdk().types.Mount(place, volume) for volume, place in (volumes or {}).items()],
                    tmpfs=tmpfs,
                    # PostgreSQL's parallel index builds share memory of the size that a load gives them.
                    shm_size="1g",
                    network_mode=network,
                    log_config={"Type": "json-file", "Config": {"max-size": "1m"}},
                ),
                networking_config=self._api.create_networking_config(
                    {network: self._api.create_endpoint_config(aliases=[alias])}
                ),
            )["Id"]
            self._api.start(container)

    def remove_throwaway(self, containers=(), volumes=(), network=None):
        """Remove what the methods above created, whether or not all of it is there."""
        with self._translated("remove the throwaway containers"):
            for container in containers:
                self._remove(container)
            for volume in volumes:
                self._try(self._api.remove_volume, volume)
            if network:
                self._try(self._api.remove_network, network)

    def logs(self, container, lines=20):
        """Return the last lines that a container printed."""
        with self._translated("read the log of the container %s" % container):
            return self._api.logs(container, tail=lines).decode("utf-8", "replace")

    # -- how it is done -------------------------------------------------------------------

    @property
    def _api(self):
        if self._client is None:
            docker = sdk()
            with self._translated("connect"):
                options = docker.utils.kwargs_from_env()
                options["base_url"] = self.host
                self._client = docker.APIClient(version="auto", timeout=CALL_TIMEOUT, **options)
        return self._client

    @contextlib.contextmanager
    def _translated(self, action):
        try:
            yield
        except EngineError:
            # First, because the SDK's classes that follow don't exist where it is missing.
            raise
        except sdk().errors.NotFound as error:
            raise Gone("Could not %s: %s." % (action, error.explanation or error), "Does it still exist?")
        except sdk().errors.APIError as error:
            raise EngineError(
                "The Docker Engine at %s could not %s: %s." % (self.host, action, error.explanation or error)
            )
        # What the SDK's library for HTTP raises is an OSError, too.
        except (sdk().errors.DockerException, OSError) as error:
            raise EngineError(
                "The Docker Engine at %s is not reachable (could not %s): %s." % (self.host, action, error),
                "Is it running, and may this user speak to it? Try 'docker version'; "
                "another engine is named by docker_host or DOCKER_HOST.",
            )


class Gone(EngineError):
    """The named container, volume or image does not exist, or no longer."""


class Command:
    """A command under way in a container: bytes out, bytes in, and how it ended.

    A context manager. Leaving it before :meth:`finish` ends the command. The two kinds say
    how to learn the exit code (``_exit_code``) and how to end what runs (``_abort``).
    """

    def __init__(self, engine, what, stream, target):
        self._engine = engine
        self._what = what
        self._stream = stream
        self._socket = getattr(stream, "_sock", stream)
        # The SDK returns the bare socket, but the first frames may already stand in the
        # buffer of the response that was read from it.
        self._reader = stream._response.raw._fp.fp
        self._target = target
        self._stderr = b""
        self._ended = False
        if hasattr(self._socket, "settimeout"):
            self._socket.settimeout(None)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        if not self._ended:
            self._abort()
        self._close()

    def chunks(self):
        """Yield what the command prints, as it comes (frames of up to 32 KiB)."""
        while True:
            header = self._read(FRAME_HEADER.size, may_end=True)
            if not header:
                return
            kind, size = FRAME_HEADER.unpack(header)
            payload = self._read(size)
            if kind == STDERR:
                self._stderr = (self._stderr + payload)[-STDERR_KEPT:]
            else:
                yield payload

    def write(self, data):
        """Hand bytes to the command's standard input."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._error("stopped reading its input: %s" % error)

    def close_stdin(self):
        """Tell the command that its input has ended; over TLS that would end its output as well (RFC 5246, 7.2.1)."""
        if isinstance(self._socket, ssl.SSLSocket):
            return
        with contextlib.suppress(OSError):
            if hasattr(self._socket, "shutdown_write"):
                self._socket.shutdown_write()
            else:
                self._socket.shutdown(socket.SHUT_WR)

    def finish(self):
        """Wait for the end; raise ``CommandError`` unless the command ended with 0."""
        for unused in self.chunks():
            pass
        code = self._exit_code()
        self._ended = True
        if code:
            raise self._error("ended with exit code %s" % code, exit_code=code)

    def output(self):
        """Return all that a short command prints, once it has ended well."""
        printed = b"".join(self.chunks())
        self.finish()
        return printed

    def _read(self, size, may_end=False):
        try:
            data = self._reader.read(size)
        except (OSError, ValueError) as error:
            raise self._error("lost its connection: %s" % error)
        if len(data) < size and not (may_end and not data):
            raise self._error("was cut short: %d bytes of a frame of %d arrived" % (len(data), size))
        return data

    def _error(self, how, **details):
        said = self._stderr.decode("utf-8", "replace").strip()
        return CommandError("%s %s%s" % (self._what, how, ": " + said if said else "."), stderr=said, **details)

    def _close(self):
        # Collected after its socket is closed, the response would complain on Python 3.13.
        with contextlib.suppress(OSError):
            self._stream._response.close()
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._socket.close()


class ExecCommand(Command):
    """A command run by ``docker exec``."""

    def _exit_code(self):
        try:
            with self._engine._translated("ask how %s ended" % self._what):
                state = self._engine._api.exec_inspect(self._target)
        except Gone:
            raise self._error("was lost: the container is gone")
        if state["Running"] or state["ExitCode"] is None:
            raise self._error("was cut short: its stream ended while it still runs")
        return state["ExitCode"]

    def _abort(self):
        self.close_stdin()
        with contextlib.suppress(EngineError, OSError):
            with self._engine._translated("end %s" % self._what):
                state = self._engine._api.exec_inspect(self._target)
            if state["Running"] and state.get("Pid") and self._engine.is_local():
                os.kill(state["Pid"], signal.SIGTERM)


class HelperCommand(Command):
    """A command that is the main process of a helper container."""

    @property
    def container(self):
        """The helper container's id."""
        return self._target

    def _exit_code(self):
        try:
            with self._engine._translated("wait for %s" % self._what):
                code = self._engine._api.wait(self._target)["StatusCode"]
        except Gone:
            self._ended = True
            raise self._error("was lost: its container was removed")
        self._abort()
        return code

    def _abort(self):
        with contextlib.suppress(EngineError):
            with self._engine._translated("remove the helper container"):
                self._engine._api.remove_container(self._target, force=True, v=True)
