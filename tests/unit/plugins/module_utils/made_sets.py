# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Complete sets of any time and content, written without a stack."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time

FILES = {
    "database": ["postgres_dump.backup", "postgres_dump.sql"],
    "uploads": ["uploads.tar.gz"],
    "config": ["config.tar.gz"],
    "data": ["data.tar.gz"],
    "deployment": ["deployment.tar.gz"],
}
CLASSIC = ("database", "uploads", "config", "deployment")
NOW = 1795500000.0
DAY = 86400


def set_id(age):
    """The id of a set that was made some days before now."""
    return time.strftime("backup_%Y-%m-%d_%H-%M-%S", time.gmtime(NOW - age * DAY))


def make_set(root, age, components=CLASSIC, project="echo", rows=1000, bytes_in=1 << 20, tables=None):
    """Write a set that is some days old; return its id. The files hold a few bytes, whatever the manifest says they came from."""
    folder = pathlib.Path(root) / set_id(age)
    folder.mkdir(parents=True, mode=0o700)
    artifacts = []
    for component in components:
        for name in FILES[component]:
            (folder / name).write_bytes(name.encode() * 1000)
            artifacts.append(artifact(folder / name, component=component, role=component, bytes_in=bytes_in))
    all_tables = dict({"public.users": rows, "public.sessions": rows}, **(tables or {}))
    write_manifest(folder, manifest_of(age, components, project, all_tables, artifacts))
    return folder.name


def manifest_of(age, components, project, tables, artifacts):
    """What a set says of itself that is some days old."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - age * DAY))
    return dict(
        format="echo-backup/1",
        id=set_id(age),
        times=dict(started=stamp, snapshot=stamp, finished=stamp),
        host="test",
        collection_version="1.0.0",
        layout="unified" if "data" in components else "classic",
        project=project,
        components=list(components),
        images={},
        database=None,
        tables=tables if "database" in components else {},
        artifacts=artifacts,
    )


def artifact(path, **facts):
    """What a module reports of a file."""
    data = path.read_bytes()
    return dict(
        dict(
            component="uploads",
            role="uploads",
            file=path.name,
            source="test",
            bytes_in=len(data),
            bytes_out=len(data),
            members=1,
            codec="gzip",
            sha256=hashlib.sha256(data).hexdigest(),
            seconds=0.1,
        ),
        **facts
    )


def write_manifest(folder, manifest):
    """Write a set's manifest, the information and the checksums."""
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "backup_info.txt").write_text("a set for tests")
    names = sorted(a["file"] for a in manifest["artifacts"]) + ["backup_info.txt", "manifest.json"]
    sums = ["%s  %s\n" % (hashlib.sha256((folder / name).read_bytes()).hexdigest(), name) for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def make_script_set(root, age):
    """Write what the 2024 script writes; return the folder's name."""
    folder = pathlib.Path(root) / set_id(age)
    folder.mkdir(parents=True)
    for name in ("postgres_dump.backup", "postgres_dump.sql", "uploads.tar.gz", "config.tar.gz", "backup_info.txt"):
        (folder / name).write_bytes(b"x" * 1000)
    return folder.name


def names(root):
    """What lies in the root, but for the lock files and the link to the latest set."""
    return sorted(name for name in os.listdir(str(root)) if name not in (".mutex", ".lock", "latest"))
