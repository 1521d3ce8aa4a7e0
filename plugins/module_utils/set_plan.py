# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a set will consist of, and how much room it takes: pure functions, given the numbers.

Check mode, the free-space check and the writers all live by this one plan.
"""

from __future__ import annotations

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError, SpaceError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import human

SUFFIXES = {"gzip": ".tar.gz", "zstd": ".tar.zst", "none": ".tar"}
DEFAULT_COMPONENTS = {
    "classic": ("database", "uploads", "config", "deployment"),
    "unified": ("database", "data", "deployment"),
}
# The volume of PostgreSQL is archived only to keep a database that can't be dumped: its dump is the backup.
RAW_DATABASE = "postgres-data"
VOLUME_OF = {
    "uploads": "uploads",
    "config": "config",
    "data": "data",
    "logs": "logs",
    "cache": "redis",
    RAW_DATABASE: "database",
}

# Without history a dump and its SQL count as large as the database each, which indexes and
# free space in it make an upper bound in practice, and a volume as incompressible.
DATABASE_FILES = ("postgres_dump.backup", "postgres_dump.sql")
GLOBALS_FILE, GLOBALS_BYTES = "postgres_globals.sql", 64 * 1024
DEPLOYMENT_FILE = "deployment.tar.gz"
TAR_HEADER = 1024
MARGIN = 1.1
OVERHEAD = 1024 * 1024


def plan(
    stack, components=None, codec="gzip", history=None, deployment_bytes=None, free=0, reserve=0, forerunners=None
):
    """Return the parts of a set and whether they fit.

    ``stack`` is ``echo_info``'s; ``history`` the last complete set's manifest, whose ratios
    replace the cautious defaults; ``deployment_bytes`` the size of the Compose files, None
    where they can't be read; ``forerunners`` the sets whose archives may serve again, by file,
    which the numbers are without: the volume may yet change. Returns ``{"parts",
    "bytes_needed", "bytes_free", "fits", "left_out", "warnings"}``; ``left_out`` says what of
    Echo's own data no part holds.
    """
    check_stack(stack)
    volumes = dict((volume["role"], volume) for volume in stack["volumes"])
    available = ["database"] + [name for name, role in VOLUME_OF.items() if role in volumes] + ["deployment"]
    left_out, warnings = [], []
    if components is None:
        wanted = DEFAULT_COMPONENTS[stack["layout"]]
        components = [name for name in wanted if name in available]
        left_out.extend(
            "The stack has no volume for %s: the set is made without it. If it is named or mounted in another way, "
            "the option volumes (echo_stack_volumes) tells where it is." % name
            for name in wanted
            if name not in available
        )
    parts = []
    for component in dict.fromkeys(components):
        if component not in available:
            raise SetError(
                "The %s stack %s has no component %s." % (stack["layout"], stack.get("project"), component),
                "It has: %s." % ", ".join(available),
            )
        if component == "database":
            parts.extend(_database(stack, history))
        elif component == "deployment":
            if deployment_bytes is None:
                warnings.append("No Compose file of the stack can be read here; the set is made without deployment.")
            else:
                parts.append(_deployment(deployment_bytes))
        else:
            volume = volumes[VOLUME_OF[component]]
            left_out.extend(
                "%s is mounted on its own inside of %s: the set is made without what lies there." % (name, component)
                for name in volume.get("mounts_inside") or ()
            )
            part = _volume(component, volume, codec, history)
            parts.append(dict(part, forerunner=(forerunners or {}).get(part["file"])))
    if not parts:
        raise SetError("The set would have no part.", "Name one of the components %s." % ", ".join(available))
    unknown = [part["file"] for part in parts if part["estimated_bytes_out"] is None]
    if unknown:
        warnings.append("Nothing tells how large %s will be; the free-space check is without it." % ", ".join(unknown))
    needed = sum(part["estimated_bytes_out"] or 0 for part in parts) + OVERHEAD
    return dict(
        parts=parts,
        bytes_needed=needed,
        bytes_free=free,
        fits=needed + reserve <= free,
        left_out=left_out,
        warnings=warnings,
    )


def require_space(planned, root, reserve):
    """Raise ``SpaceError`` if the plan doesn't fit."""
    if not planned["fits"]:
        raise SpaceError(
            "The set needs about %s in %s, but %s are free there, and %s must stay free."
            % tuple([human(planned["bytes_needed"]), root] + [human(n) for n in (planned["bytes_free"], reserve)]),
            "Remove old sets, name another root, or leave components out.",
            bytes_needed=planned["bytes_needed"],
            bytes_free=planned["bytes_free"],
        )


def check_stack(stack):
    """Raise ``SetError`` unless this is a stack as ``echo_info`` returns it."""
    try:
        if stack["layout"] not in DEFAULT_COMPONENTS:
            raise ValueError("its layout is %r" % (stack["layout"],))
        for volume in stack["volumes"]:
            volume["role"], volume["source"]
        stack["containers"]["database"]["name"]
        stack["deployment"]["files"]
    except KeyError as error:
        problem = "it lacks %s" % error
    except (TypeError, ValueError) as error:
        problem = str(error)
    else:
        return
    raise SetError(
        "The option stack is not a stack (%s)." % problem, 'Pass echo_info\'s result: stack: "{{ echo.stack }}".'
    )


def _database(stack, history):
    container = stack["containers"]["database"]["name"]
    database = stack.get("database") or {}
    size = database.get("bytes")
    known = _sizes(history)
    before = ((history or {}).get("database") or {}).get("bytes")
    parts = []
    for name in DATABASE_FILES:
        ratio = float(known[name][1]) / before if before and name in known else 1.0
        last = known[name][1] if name in known else None
        parts.append(_part("database", "database", name, "database", size, _estimate(size, ratio, last)))
    parts.append(_part("database", "database", GLOBALS_FILE, "database", None, GLOBALS_BYTES))
    source = "%s:%s" % (container, database["name"]) if database.get("name") else container
    return [dict(part, container=container, source=source) for part in parts]


def _volume(component, volume, codec, history):
    name = component + SUFFIXES[codec]
    size = volume.get("bytes")
    if size is not None:
        size += TAR_HEADER * (volume.get("files") or 0)
    known = _sizes(history).get(name)
    ratio = float(known[1]) / known[0] if known and known[0] else 1.0
    part = _part(component, volume["role"], name, "volume", size, _estimate(size, ratio, known and known[1]))
    return dict(
        part,
        volume=volume.get("name"),
        source=volume["source"],
        container=volume.get("container"),
        destination=volume.get("destination"),
    )


def _deployment(size):
    return _part("deployment", "deployment", DEPLOYMENT_FILE, "deployment", size, size + 10 * TAR_HEADER)


def _part(component, role, name, kind, size, estimate):
    return dict(
        component=component,
        role=role,
        file=name,
        kind=kind,
        volume=None,
        source=None,
        container=None,
        destination=None,
        estimated_bytes_in=size,
        estimated_bytes_out=estimate,
    )


def _estimate(size, ratio, last):
    """Bytes out; where nobody could measure the source, the last set's."""
    expected = last if size is None else size * ratio
    return None if expected is None else int(expected * MARGIN)


def _sizes(history):
    return dict((a["file"], (a["bytes_in"], a["bytes_out"])) for a in (history or {}).get("artifacts", ()))
