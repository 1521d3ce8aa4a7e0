# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a migration has to know of a host before it touches one: read, and changed nowhere."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import socket
import subprocess
import tempfile
import time

from ansible_collections.echo_music.ops.plugins.module_utils import migration_keys
from ansible_collections.echo_music.ops.plugins.module_utils.compose import Compose
from ansible_collections.echo_music.ops.plugins.module_utils.engine import needs_mount
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.journal import FOLDER
from ansible_collections.echo_music.ops.plugins.module_utils.migration import SUFFIX, is_used, read
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import free_bytes, nearest
from ansible_collections.echo_music.ops.plugins.module_utils.stack import MOUNTS, SERVICES

CONNECT_TIMEOUT = 5
LISTENING = "0A"
APP_MOUNTS = {"/app/data": "unified", "/app/uploads": "classic", "/app/config": "classic"}


def survey(engine, project, now=None, peer=None, files=None, working_dir=None, env_file=".env", paths=(), folder=FOLDER):
    """Return what a host has; what it hasn't is None or, where that may have a cause, an ``error``.

    ``peer`` is ``{"host", "port"}`` to reach, ``files`` (``{name: text}``) a deployment to have
    Compose explain, as if it lay in ``working_dir``; ``env_file`` is one of their names. ``now`` is the controller's time.
    """
    asked = _asked(lambda: _engine(engine, project))
    deployment = _asked(lambda: explain(engine, project, files, working_dir, env_file)) if files else None
    places = list(paths) + ([asked["root"]] if asked.get("local") else []) + _folders_of(deployment)
    return dict(
        clock_offset=None if now is None else round(time.time() - now, 3),
        architecture=os.uname()[4],
        login=login(),
        host_keys=host_keys(),
        connected_from=connected_from(),
        rsync=_version(["rsync", "--version"]),
        rrsync=migration_keys.rrsync(),
        compose=_version(["docker", "compose", "version", "--short"]),
        listening=listening(),
        peer=reach(**peer) if peer else None,
        migration=read(os.path.join(folder, project + SUFFIX)) if project else None,
        engine=asked,
        free=dict((path, free_bytes(path)) for path in places),
        disks=dict((path, os.stat(nearest(path)).st_dev) for path in places),
        deployment=deployment,
    )


def login():
    """Return the user who logged in, who is not root where root was become through sudo or doas."""
    for variable in ("SUDO_USER", "DOAS_USER"):
        if os.environ.get(variable):
            return os.environ[variable]
    return pwd.getpwuid(os.geteuid()).pw_name


def host_keys():
    """Return the public keys of the host's SSH server."""
    keys = []
    for path in sorted(glob.glob("/etc/ssh/ssh_host_*_key.pub")):
        with contextlib.suppress(OSError), open(path) as file:
            keys.append(" ".join(file.read().split()[:2]))
    return keys


def connected_from(pid=None):
    """Return the address that the connection to this host comes from, None where it isn't over SSH."""
    pid = pid or os.getpid()
    while pid > 1:
        # sudo hides it from us, not from our ancestors.
        with contextlib.suppress(OSError), open("/proc/%d/environ" % pid, "rb") as file:
            for variable in file.read().split(b"\0"):
                if variable.startswith(b"SSH_CONNECTION="):
                    return variable.decode("ascii", "replace").partition("=")[2].split(" ")[0]
        try:
            with open("/proc/%d/stat" % pid) as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None
    return None


def listening():
    """Return the TCP ports that something listens on, whatever the address."""
    ports = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(path) as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == LISTENING:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return sorted(ports)


def reach(host, port):
    """Try to connect; return the address that this host has on the way, or the error."""
    try:
        with contextlib.closing(socket.create_connection((host, port), CONNECT_TIMEOUT)) as connection:
            return dict(host=host, port=port, reachable=True, own_address=connection.getsockname()[0], error=None)
    except OSError as error:
        return dict(host=host, port=port, reachable=False, own_address=None, error=str(error))


def explain(engine, project, files, working_dir, env_file=".env"):
    """Return what Compose makes of a deployment that doesn't lie here yet, without its secrets."""
    with tempfile.TemporaryDirectory(prefix="echo_migrate.") as here:
        names = {}
        for name, text in files.items():
            path = os.path.normpath(os.path.join(here, name))
            if not path.startswith(here + os.sep):
                raise EchoError("The file %r is outside of the deployment's folder." % name, "Put it there.")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", opener=lambda where, flags: os.open(where, flags, 0o600)) as file:
                file.write(text)
            names[name] = path
        deployment = dict(
            project=project,
            working_dir=here,
            files=[path for name, path in names.items() if name.endswith((".yml", ".yaml"))],
            env_file=names.get(env_file),
        )
        config = Compose(deployment, engine.host).config()
        return _explained(config, here, working_dir)


def _explained(config, here, working_dir):
    volumes = dict((volume.get("name") or key, volume) for key, volume in (config.get("volumes") or {}).items())
    told = dict(
        layout=None,
        app=None,
        services=[],
        volumes=sorted(volumes),
        mounted=sorted(name for name, volume in volumes.items() if needs_mount(volume.get("driver"), volume.get("driver_opts") or {})),
        roles=[],
        working_dir=working_dir,
    )
    for name, service in sorted(config["services"].items()):
        role = next((role for role, services in SERVICES.items() if name in services), None)
        mounts = [dict(mount, role=_role(role, mount)) for mount in service.get("volumes") or []]
        told["roles"] += [mount["role"] for mount in mounts if mount["role"]]
        if role == "app":
            told["app"] = name
            targets = [APP_MOUNTS.get(mount["target"]) for mount in mounts]
            told["layout"] = next((layout for layout in targets if layout), None)
        told["services"].append(
            dict(
                service=name,
                role=role,
                image=service.get("image"),
                container=service.get("container_name"),
                ports=[int(port["published"]) for port in service.get("ports") or [] if port.get("published")],
                folders=[_folder(mount, here, working_dir) for mount in mounts if mount["type"] == "bind"],
            )
        )
    return told


def _role(part, mount):
    """What of Echo's data a mount is for, None for what is not Echo's or only read."""
    return None if mount.get("read_only") else MOUNTS.get(part, {}).get(mount["target"])


def _folder(mount, here, working_dir):
    path = _moved(mount["source"], here, working_dir)
    return dict(path=path, role=mount["role"], used=is_used(path) if mount["role"] else None)


def _folders_of(deployment):
    services = (deployment or {}).get("services") or []
    return [folder["path"] for service in services for folder in service["folders"] if folder["role"]]


def _moved(path, here, working_dir):
    return working_dir + path[len(here) :] if path == here or path.startswith(here + os.sep) else path


def _engine(engine, project):
    containers = engine.containers()
    ours = [container for container in containers if project and container["project"] == project]
    volumes, images = engine.volumes(), {}
    for image in engine.images():
        for tag in image["tags"]:
            images[tag] = dict(id=image["id"], pg_major=image["env"].get("PG_MAJOR"))
    return dict(
        engine.info(),
        root=engine.data_root(),
        free=free_bytes(engine.data_root()) if engine.is_local() else None,
        images=images,
        containers=sorted(container["name"] for container in containers),
        volumes=sorted(volume["name"] for volume in volumes),
        mounted=sorted(volume["name"] for volume in volumes if needs_mount(volume["driver"], volume["options"])),
        project=sorted(container["name"] for container in ours),
        running=sorted(container["name"] for container in ours if container["state"] == "running"),
    )


def _asked(question):
    try:
        return question()
    except EchoError as error:
        return dict(error=str(error))


def _version(argv):
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return None
    words = done.stdout.decode("utf-8", "replace").split()
    return None if done.returncode or not words else next((word for word in words if word.lstrip("v")[:1].isdigit()), None)
