# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets a root holds, and which is the latest."""

from __future__ import annotations

import contextlib
import os

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.proof import DRILL, is_proven, read_proofs
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    ID,
    INFO,
    LATEST,
    MANIFEST,
    allocated,
    marks,
    sync_folder,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import files_problem, read_manifest
from ansible_collections.echo_music.ops.plugins.module_utils.shrink import holdings

SCRIPT_DUMPS = ("postgres_dump.backup", "postgres_dump.sql")


def list_sets(root):
    """Return the published sets, oldest first; what is wrong with one is its ``problem``.

    Folders of the 2024 script have ``origin`` script; they count as complete when the script
    came to its end and the dump is there.
    """
    try:
        names = sorted(name for name in os.listdir(root) if ID.match(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SetError("Could not list %s: %s." % (root, error.strerror), "Become root (become: true).")
    folders = [os.path.join(root, name) for name in names]
    return [_listed(folder) for folder in folders if os.path.isdir(folder) and not os.path.islink(folder)]


def latest_manifest(root):
    """Return the manifest of the newest complete set, or None."""
    complete = _complete(root)
    return read_manifest(os.path.join(complete[-1]["path"], MANIFEST)) if complete else None


def forerunners(root, project):
    """Return the newest complete set of a project for each archive that may serve again: ``{file: path}``."""
    found = {}
    for item in _complete(root):
        if item["project"] == project:
            manifest = read_manifest(os.path.join(item["path"], MANIFEST))
            found.update((a["file"], item["path"]) for a in manifest["artifacts"] if a.get("fingerprint"))
    return found


def point_latest(root):
    """Let ``latest`` name the newest complete set; one rename, so that it always names one.

    Returns None, or why that can't be. It is for people, and a file system need not know links.
    """
    complete = _complete(root)
    link, fresh = os.path.join(root, LATEST), os.path.join(root, ".latest.new")
    try:
        if not complete or (os.path.islink(link) and os.readlink(link) == complete[-1]["id"]):
            return None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        os.symlink(complete[-1]["id"], fresh)
        os.replace(fresh, link)
        sync_folder(root)
    except OSError as error:
        return "%s can't name the newest set: %s." % (link, error.strerror)
    return None


def _complete(root):
    return [item for item in list_sets(root) if item["complete"] and item["origin"] == "collection"]


def _listed(folder):
    item = dict(id=os.path.basename(folder), path=folder, origin="collection", complete=False)
    try:
        if not os.path.lexists(os.path.join(folder, MANIFEST)):
            return _listed_script(folder)
        manifest = read_manifest(os.path.join(folder, MANIFEST))
        problem = files_problem(folder, manifest)
    except SetError as error:
        return dict(item, time=None, bytes=allocated(folder), components=[], problem=error.what, **marks(folder))
    except OSError as error:
        return dict(item, time=None, bytes=0, components=[], problem="Its files can't be looked at: %s." % error)
    if manifest["id"] != item["id"]:
        problem = "Its manifest is that of %s." % manifest["id"]
    return dict(
        item,
        complete=problem is None,
        problem=problem,
        time=manifest["times"]["snapshot"] or manifest["times"]["started"],
        bytes=sum(artifact["bytes_out"] for artifact in manifest["artifacts"]),
        components=manifest["components"],
        layout=manifest["layout"],
        project=manifest["project"],
        parts=_parts(manifest["artifacts"]),
        holds=holdings(manifest),
        proven=is_proven(folder),
        drill=_drill(folder),
        **marks(folder)
    )


def _parts(artifacts):
    """Return the bytes that each part was made of, by its role; the database's files are of one and the same data."""
    parts = {}
    for artifact in artifacts:
        parts[artifact["role"]] = max(parts.get(artifact["role"], 0), artifact["bytes_in"])
    return parts


def _drill(folder):
    """Return ``{"time", "passed", "rto_seconds"}`` of a set's last restore drill, or None."""
    for proof in read_proofs(folder):
        if proof["level"] == DRILL:
            return dict(time=proof.get("finished"), passed=proof["passed"], rto_seconds=proof.get("rto_seconds"))
    return None


def _listed_script(folder):
    sizes = dict((name, os.lstat(os.path.join(folder, name)).st_size) for name in os.listdir(folder))
    problem = None
    if INFO not in sizes:
        problem = "%s is missing: the script didn't come to its end." % INFO
    elif not any(sizes.get(name) for name in SCRIPT_DUMPS):
        problem = "There is no database dump in it."
    components = ["database"] if any(name in sizes for name in SCRIPT_DUMPS) else []
    name = os.path.basename(folder)
    return dict(
        id=name,
        path=folder,
        origin="script",
        complete=problem is None,
        problem=problem,
        # The script names its folders in local time.
        time="%sT%s" % (name[7:17], name[18:].replace("-", ":")),
        bytes=sum(sizes.values()),
        components=components + [c for c in ("uploads", "config") if c + ".tar.gz" in sizes],
        proven=is_proven(folder),
        **marks(folder)
    )
