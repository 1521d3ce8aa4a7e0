# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a set: made, read with distrust, and told in words.

The format is described in ``docs/format.md`` and, for machines, ``docs/manifest.schema.json``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    CHECKSUMS,
    ID,
    INFO,
    MANIFEST,
    SIDECARS,
    human,
    read_small,
)

FORMAT = "echo-backup/1"
MANIFEST_LIMIT = 64 * 1024 * 1024
LAYOUTS = ("classic", "unified")
RESERVED = (MANIFEST, CHECKSUMS, INFO) + SIDECARS
READ_OUT = {"gz": "gzip -dc", "zst": "zstd -dc", "tar": "cat"}
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)\Z")


def read_manifest(path):
    """Return the manifest at a path; whatever stands there, only ``SetError`` comes out."""
    try:
        manifest = json.loads(read_small(path, MANIFEST_LIMIT).decode("utf-8"))
        return check_manifest(manifest)
    except (ValueError, RecursionError) as error:
        raise SetError(
            "%s is not a manifest of the format %s: %s" % (path, FORMAT, error),
            "Was the set changed after it was published? Restore from another one.",
        )


def check_manifest(manifest):
    """Return the manifest, or raise ``ValueError`` naming the first key that is not as it must be."""
    _need(isinstance(manifest, dict), "it is not an object.")
    _need(manifest.get("format") == FORMAT, "its format is %.60r." % (manifest.get("format"),))
    for key, kind in MANIFEST_KEYS.items():
        _check(manifest, key, kind, "")
    _need(ID.match(manifest["id"]), "id is not a set's name.")
    _need(manifest["layout"] in LAYOUTS, "its layout is %.60r." % manifest["layout"])
    for key in ("started", "finished"):
        _need(_is_time(manifest["times"].get(key)), "times.%s is not a time." % key)
    snapshot = manifest["times"].get("snapshot")
    _need(snapshot is None or _is_time(snapshot), "times.snapshot is not a time.")
    for role, image in manifest["images"].items():
        _need(isinstance(image, dict), "images.%s is not an object." % role)
        for key, kind in IMAGE_KEYS.items():
            _check(image, key, kind, "images.%s." % role)
        _need(all(isinstance(digest, str) for digest in image["digests"]), "images.%s.digests is wrong." % role)
    if manifest["database"] is not None:
        for key, kind in DATABASE_KEYS.items():
            _check(manifest["database"], key, kind, "database.")
    _need(all(_is_count(rows) for rows in manifest["tables"].values()), "a count in tables is not a number.")
    _need(all(isinstance(name, str) for name in manifest["components"]), "components is wrong.")
    names = [check_artifact(artifact)["file"] for artifact in manifest["artifacts"]]
    _need(len(names) == len(set(names)), "two artifacts have the same file.")
    return manifest


def check_artifact(artifact):
    """Return the artifact, or raise ``ValueError`` naming what is wrong with it."""
    _need(isinstance(artifact, dict), "an artifact is not an object.")
    name = artifact.get("file")
    _need(
        isinstance(name, str) and FILE_NAME.match(name) and name not in RESERVED,
        "%.60r is not a file name for an artifact." % (name,),
    )
    for key, kind in ARTIFACT_KEYS.items():
        _check(artifact, key, kind, name + ": ")
    for key in ("bytes_in", "bytes_out", "members"):
        _need(artifact[key] is None or artifact[key] >= 0, "%s: %s is negative." % (name, key))
    _need(SHA256.match(artifact["sha256"]), "%s: sha256 is not a SHA-256." % name)
    for key, pattern in OPTIONAL_ARTIFACT_KEYS.items():
        value = artifact.get(key)
        _need(value is None or (isinstance(value, str) and pattern.match(value)), "%s: %s is wrong." % (name, key))
    return artifact


def manifest_text(manifest):
    """Return the manifest as it is written."""
    return json.dumps(manifest, indent=2, sort_keys=True) + "\n"


def summary(manifest):
    """Return the part of a manifest that diff mode compares with a plan."""
    return dict(
        id=manifest["id"],
        components=manifest["components"],
        files=dict((artifact["file"], artifact["bytes_out"]) for artifact in manifest["artifacts"]),
    )


def info_text(manifest, parts, user=None):
    """Return ``backup_info.txt``: what the set is, and how ``user`` of the database restores it by hand."""
    lines = [
        "Backup of the Echo music server %s on %s" % (manifest["project"] or "", manifest["host"]),
        "",
        "Set:       %s" % manifest["id"],
        "Started:   %s" % manifest["times"]["started"],
        "Snapshot:  %s" % (manifest["times"]["snapshot"] or "none (no database in this set)"),
        "Finished:  %s" % manifest["times"]["finished"],
        "Layout:    %s" % manifest["layout"],
        "Made by:   echo_music.ops %s" % manifest["collection_version"],
    ]
    database = manifest["database"]
    if database:
        lines.append(
            "Database:  %s, PostgreSQL %s, %d rows in %d tables"
            % (
                database["name"],
                database["server_version"],
                sum(manifest["tables"].values()),
                len(manifest["tables"]),
            )
        )
    for role, image in sorted(manifest["images"].items()):
        lines.append("Image:     %s: %s" % (role, image["image"]))
    lines += ["", "Files:"]
    lines += ["  %-24s %10s" % (a["file"], human(a["bytes_out"])) for a in manifest["artifacts"]]
    lines += ["", "Are the files as they were written?", "", "  sha256sum -c %s" % CHECKSUMS, ""]
    lines += ["Restore by hand, in this folder:", ""]
    lines += ["  " + command for command in _commands(manifest, parts, user)]
    return "\n".join(lines) + "\n"


def _commands(manifest, parts, user):
    """The commands of Echo's backup guide, with this stack's names."""
    app = manifest["images"].get("app", {}).get("name")
    # An image that is there, for a host without a network.
    tool = manifest["images"].get("database", {}).get("image", "alpine")
    files = dict((part["file"], part) for part in parts)
    commands = ["docker stop %s" % shlex.quote(app)] if app else []
    dump = files.get("postgres_dump.backup")
    if dump and manifest["database"]:
        commands.append(
            "docker exec -i %s pg_restore -U %s -d %s --clean --if-exists < postgres_dump.backup"
            % tuple(
                shlex.quote(word)
                for word in (dump["container"], user or manifest["database"]["owner"], manifest["database"]["name"])
            )
        )
    for name, part in files.items():
        if part["kind"] == "volume":
            suffix = name.rpartition(".")[2]
            if part["volume"]:
                # Its tar need not know zstd.
                commands.append(
                    "%s %s | docker run --rm -i --entrypoint tar -v %s:/target %s xf - -C /target"
                    % (READ_OUT[suffix], name, shlex.quote(part["volume"]), shlex.quote(tool))
                )
            else:
                commands.append("%s %s | tar xf - -C %s" % (READ_OUT[suffix], name, shlex.quote(part["source"])))
    return commands + (["docker start %s" % shlex.quote(app)] if app else [])


def describe_artifact(given, components):
    """Return an artifact as the manifest keeps it.

    ``given`` is an artifact, or the whole result of the module that wrote it, which adds what
    was skipped and what changed; ``components`` tells the component of a planned file.
    """
    _need(isinstance(given, dict), "an artifact is not an object.")
    artifact = given.get("artifact", given)
    _need(isinstance(artifact, dict), "an artifact is not an object.")
    described = dict((key, artifact.get(key)) for key in ARTIFACT_KEYS)
    if isinstance(described["file"], str):
        described["component"] = components.get(described["file"], described["role"])
    for key in OPTIONAL_ARTIFACT_KEYS:
        if artifact.get(key) is not None:
            described[key] = artifact[key]
    if given is not artifact:
        described["skipped"] = given.get("skipped") or []
        described["changed"] = given.get("changed_files") or []
    return check_artifact(described)


def files_problem(folder, manifest):
    """Return what keeps a set's files from being those of its manifest, by name and size; or None."""
    for name in (CHECKSUMS, INFO):
        if not os.path.isfile(os.path.join(folder, name)):
            return "%s is missing." % name
    for artifact in manifest["artifacts"]:
        path = os.path.join(folder, artifact["file"])
        if os.path.islink(path) or not os.path.isfile(path):
            return "%s is missing." % artifact["file"]
        size = os.path.getsize(path)
        if size != artifact["bytes_out"]:
            return "%s has %d bytes, its manifest says %d." % (artifact["file"], size, artifact["bytes_out"])
    return None


NONE = type(None)
MANIFEST_KEYS = {
    "id": (str,),
    "times": (dict,),
    "host": (str,),
    "collection_version": (str,),
    "layout": (str,),
    "project": (str, NONE),
    "components": (list,),
    "images": (dict,),
    "database": (dict, NONE),
    "tables": (dict,),
    "artifacts": (list,),
}
IMAGE_KEYS = {"name": (str,), "image": (str,), "image_id": (str,), "digests": (list,)}
DATABASE_KEYS = {
    "name": (str,),
    "owner": (str,),
    "encoding": (str,),
    "collate": (str,),
    "ctype": (str,),
    "extensions": (list,),
    "server_version": (str,),
    "server_version_num": (int,),
    "bytes": (int,),
    "snapshot": (dict,),
}
ARTIFACT_KEYS = {
    "component": (str,),
    "role": (str,),
    "file": (str,),
    "source": (str,),
    "bytes_in": (int,),
    "bytes_out": (int,),
    "members": (int, NONE),
    "codec": (str,),
    "sha256": (str,),
    "seconds": (int, float),
}
OPTIONAL_ARTIFACT_KEYS = {"fingerprint": SHA256, "reused": ID}


def _check(mapping, key, kinds, where):
    value = mapping.get(key, Ellipsis)
    _need(
        isinstance(value, kinds) and not isinstance(value, bool), "%s%s is missing or of the wrong type." % (where, key)
    )


def _is_time(value):
    if not isinstance(value, str) or not TIME.match(value):
        return False
    time.strptime(value[:19], "%Y-%m-%dT%H:%M:%S")
    return True


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _need(condition, problem):
    if not condition:
        raise ValueError(problem)
