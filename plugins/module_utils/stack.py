# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Echo runs here: its layout, containers, volumes, database and Compose files.

Compose's labels are asked first, then the container names of Echo's own Compose files.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.echo_music.ops.plugins.module_utils.engine import awaits_mount
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, EchoError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
from ansible_collections.echo_music.ops.plugins.module_utils.survey import survey

STACK_ARGUMENTS = dict(
    project=dict(type="str"),
    database_container=dict(type="str"),
    app_container=dict(type="str"),
)

SERVICES = {
    "database": ("postgres",),
    "redis": ("redis",),
    "app": ("echo-app", "echo"),
}
CONTAINER_NAMES = {
    "echo-postgres": "database",
    "echo-redis": "redis",
    "echo-app": "app",
    "echo": "app",
}
# What is mounted where: Echo's Compose files, and the official images of PostgreSQL (up to 17) and Redis.
MOUNTS = {
    "database": {"/var/lib/postgresql/data": "database"},
    "redis": {"/data": "redis"},
    "app": {"/app/config": "config", "/app/uploads": "uploads", "/app/logs": "logs", "/app/data": "data"},
}
# Where neither a service nor a container has a name of Echo's, its image does.
APP_IMAGE = re.compile(r"(?:.*/)?alexzafra13/echo(?:[:@]|\Z)", re.I)
COMPOSE = "com.docker.compose."


def discover(engine, project=None, database_container=None, app_container=None, volumes=None):
    """Find the one Echo stack of an engine; change nothing and read no data.

    ``volumes`` maps a role to a volume's name or an absolute folder, for mounts that
    discovery can't know. Returns ``{"layout", "project", "engine", "containers", "volumes",
    "deployment"}`` as ``echo_info`` documents them. Raises ``StackError`` where there is no
    Echo, or more than one.
    """
    parts = find_containers(engine, project, database_container, app_container)
    layout = _layout(parts.get("app"))
    return dict(
        layout=layout,
        project=parts["database"]["project"],
        engine=engine.info(),
        containers=dict((role, _public(engine, container)) for role, container in parts.items()),
        volumes=_volumes(engine, parts, volumes or {}),
        deployment=_deployment(parts["database"]),
    )


def find_containers(engine, project=None, database_container=None, app_container=None):
    """Return the stack's containers by role; ``database`` is always there."""
    everything = [c for c in engine.containers() if c["labels"].get(COMPOSE + "oneoff") != "True"]
    named = {"database": database_container, "app": app_container}
    chosen = dict((role, _by_name(everything, name)) for role, name in named.items() if name)
    if project is None and chosen:
        project = next(iter(chosen.values()))["project"]
    groups = _groups(everything)
    candidates = _candidates(groups)
    if project is not None:
        # Who names the project, or a container, knows it for Echo's, also where the app is gone.
        parts = groups.get(project, {})
        if not chosen and "redis" not in parts:
            parts = candidates.get(project, {})
        if "database" not in dict(parts, **chosen):
            raise StackError(
                "No Echo project %s on the Docker Engine at %s." % (project, engine.host),
                "Found: %s." % (_listing(candidates) or "none"),
                candidates=sorted(filter(None, candidates)),
            )
    elif "database" in chosen:
        parts = {}
    elif len(candidates) == 1:
        parts = next(iter(candidates.values()))
    elif candidates:
        raise StackError(
            "%d Echo projects run on the Docker Engine at %s: %s."
            % (len(candidates), engine.host, _listing(candidates)),
            "Name one with the option project (echo_stack_project in the roles).",
            candidates=sorted(filter(None, candidates)),
        )
    else:
        raise StackError(
            "No Echo found on the Docker Engine at %s (%d containers looked at)." % (engine.host, len(everything)),
            "Is it up ('docker ps -a')? Containers of other names are given by database_container and app_container.",
            candidates=[],
        )
    return dict(parts, **chosen)


def measure(engine, volume):
    """Return ``(bytes, files)`` of one of the stack's volumes; ``(None, None)`` where its files can't be read."""
    if not engine.is_local() or not os.path.isdir(volume["source"]) or awaits_mount(volume["source"]):
        return None, None
    try:
        found = survey(volume["source"])
    except ArchiveError:
        return None, None
    return found["bytes"], found["files"]


def contents(volume, depth):
    """List what a volume holds, down to ``depth`` levels.

    Returns ``[{"path", "type", "bytes", "mode", "uid", "gid", "mtime"}]``, paths relative to
    the volume, ``mode`` octal, ``mtime`` seconds since the epoch.
    """
    if not os.access(volume["source"], os.R_OK | os.X_OK) or awaits_mount(volume["source"]):
        raise StackError(
            "The files of volume %s can't be read at %s." % (volume["name"] or volume["role"], volume["source"]),
            "Run the module on the engine's own host, as root. A volume with driver_opts is mounted while a container runs.",
        )
    listed = []
    for path, status in _walk(volume["source"], depth):
        listed.append(
            dict(
                path=os.path.relpath(path, volume["source"]).encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
                type=_type(status.st_mode),
                bytes=status.st_size,
                mode="%04o" % stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
                mtime=int(status.st_mtime),
            )
        )
    return sorted(listed, key=lambda entry: entry["path"])


def volume_of(stack, role):
    """Return the stack's volume of a role, or raise ``StackError`` naming the roles that exist."""
    for volume in stack["volumes"]:
        if volume["role"] == role:
            return volume
    raise StackError(
        "The %s layout of project %s has no volume for %s." % (stack["layout"], stack["project"], role),
        "It has: %s." % ", ".join(volume["role"] for volume in stack["volumes"]),
    )


def describe(engine, stack, sizes=True, database=True, tables=True):
    """Add to a discovered stack what must be read: sizes of volumes, and the database.

    A database that can't be asked doesn't fail the description: ``error`` says why.
    """
    volumes = []
    # While the server counts rows, files are counted here.
    with ThreadPoolExecutor(max_workers=1) as beside:
        asked = beside.submit(_describe_database, engine, stack, tables) if database else None
        for volume in stack["volumes"]:
            size, files = measure(engine, volume) if sizes else (None, None)
            volumes.append(dict(volume, bytes=size, files=files))
        described = dict(stack, volumes=volumes)
        if asked:
            described["database"] = asked.result()
    return described


def _describe_database(engine, stack, tables):
    container = engine.container(stack["containers"]["database"]["name"])
    try:
        return Database(engine, container["name"]).describe(tables=tables)
    except EchoError as error:
        return dict(container=container["name"], error=str(error))


def _by_name(containers, name):
    for container in containers:
        if name in (container["name"], container["id"]):
            return container
    raise StackError(
        "There is no container %s." % name,
        "Containers here: %s." % (", ".join(sorted(c["name"] for c in containers)) or "none"),
    )


def _groups(containers):
    """Return the containers that could be an Echo's: ``{project: {role: container}}``, project None without Compose."""
    groups = {}
    for container in containers:
        role = _role(container)
        if role:
            groups.setdefault(container["project"], {}).setdefault(role, container)
    return groups


def _candidates(groups):
    return dict(
        (project, parts)
        for project, parts in groups.items()
        if "database" in parts and ("app" in parts or parts["database"]["name"] in CONTAINER_NAMES)
    )


def _role(container):
    if container["service"]:
        for role, services in SERVICES.items():
            if container["service"] in services:
                return role
    if APP_IMAGE.match(container["image"] or ""):
        return "app"
    return CONTAINER_NAMES.get(container["name"])


def _listing(candidates):
    return ", ".join(
        "%s (%s)" % (project or "without Compose", ", ".join(sorted(c["name"] for c in parts.values())))
        for project, parts in sorted(candidates.items(), key=lambda item: item[0] or "")
    )


def _layout(app):
    """Classic or unified, by where the app keeps its data; a missing app counts as unified, today's layout."""
    destinations = [mount["destination"] for mount in app["mounts"]] if app else []
    if "/app/data" in destinations:
        return "unified"
    if any((name + "/").startswith(("/app/uploads/", "/app/config/")) for name in destinations):
        return "classic"
    return "classic" if app and app["service"] == "echo-app" else "unified"


def _public(engine, container):
    """What may be shown of a container: everything but its environment and labels."""
    keys = ("id", "name", "service", "image", "image_id", "state", "health", "started_at", "restart_policy")
    shown = dict((key, container[key]) for key in keys)
    shown["image_digests"] = engine.image_digests(container["image_id"])
    return shown


def _volumes(engine, parts, overrides):
    found = {}
    for part, container in parts.items():
        for mount in container["mounts"]:
            role = MOUNTS[part].get(mount["destination"])
            if role and mount["rw"]:
                found[role] = dict(
                    role=role,
                    type=mount["type"],
                    name=mount["name"],
                    source=mount["source"],
                    container=container["name"],
                    destination=mount["destination"],
                    mounts_inside=_mounts_inside(container, mount["destination"]),
                )
    mountpoints = dict((v["name"], v["mountpoint"]) for v in engine.volumes()) if overrides else {}
    for role, place in overrides.items():
        bind = place.startswith("/")
        if not bind and place not in mountpoints:
            raise StackError(
                "There is no volume %s for %s." % (place, role),
                "Volumes here: %s." % (", ".join(sorted(mountpoints)) or "none"),
            )
        found[role] = dict(
            role=role,
            type="bind" if bind else "volume",
            name=None if bind else place,
            source=place if bind else mountpoints[place],
            container=None,
            destination=None,
            mounts_inside=[],
        )
    return [found[role] for role in sorted(found)]


def _mounts_inside(container, destination):
    """Return what else the container writes to below a mount; on the host, the mount's own folder is empty there."""
    inside = (mount["destination"] for mount in container["mounts"] if mount["rw"])
    return sorted(name for name in inside if name.startswith(destination.rstrip("/") + "/"))


def _deployment(container):
    labels = container["labels"]
    folder = labels.get(COMPOSE + "project.working_dir")
    files = [name for name in (labels.get(COMPOSE + "project.config_files") or "").split(",") if name]
    files = [os.path.join(folder or "/", name) for name in files]
    env_files = [name for name in (labels.get(COMPOSE + "project.environment_file") or "").split(",") if name]
    env_files = [os.path.join(folder or "/", name) for name in env_files]
    default = os.path.join(folder, ".env") if folder else ""
    if not env_files and os.path.exists(default):
        env_files = [default]
    there = [name for name in env_files if os.path.exists(name)]
    return dict(
        project=container["project"],
        working_dir=folder,
        files=files,
        env_files=env_files,
        # The last one outvotes the others.
        env_file=there[-1] if there else None,
    )


def _walk(folder, depth):
    """Yield ``(path, status)`` down to a depth; what vanishes meanwhile, or can't be read, is left out."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield entry.path, status
            if stat.S_ISDIR(status.st_mode) and depth > 1:
                yield from _walk(entry.path, depth - 1)


def _type(mode):
    for test, name in (
        (stat.S_ISDIR, "directory"),
        (stat.S_ISLNK, "symlink"),
        (stat.S_ISREG, "file"),
        (stat.S_ISFIFO, "fifo"),
        (stat.S_ISSOCK, "socket"),
    ):
        if test(mode):
            return name
    return "device"
