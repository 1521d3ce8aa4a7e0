# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Compose files of a set, put in place on a host that has none: the other half of ``set_deployment``.

What is there already stays as it is, for it is its owner's.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.restore_source import resolve
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    MANIFEST,
    explained,
    read_small,
    replace_file,
    sha256_of,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import read_manifest
from ansible_collections.echo_music.ops.plugins.module_utils.set_plan import DEPLOYMENT_FILE

COMPOSE_FILES = (".yml", ".yaml")
LIMIT = 16 * 1024 * 1024
REMEDY = "Put the Compose files of this Echo in place yourself and create the stack ('docker compose create')."


def ensure_files(source, root, dest=None, check=False):
    """Write the Compose files of a set to a folder; return the module's result. ``check`` changes nothing.

    ``dest`` is the folder that the set recorded, unless it is given. What the set held from
    outside of that folder goes below ``dest`` by its whole path.
    """
    path, manifest, artifact = _deployment_of(source, root)
    folder = dest or artifact["source"]
    if not os.path.isabs(folder):
        raise SetError("The set %s doesn't tell where its Compose files lay." % manifest["id"], "Name a folder (dest).")
    members = _members(os.path.join(path, DEPLOYMENT_FILE), artifact)
    files = [name for name in members if name.endswith(COMPOSE_FILES)]
    if not files:
        raise SetError("There is no Compose file in the deployment of the set %s." % manifest["id"], REMEDY)
    written, kept = [], []
    for name, (data, mode) in members.items():
        target = os.path.join(folder, name)
        if not os.path.lexists(target):
            written.append(name)
            if not check:
                _write(target, data, mode)
        elif not _holds(target, data):
            kept.append(name)
    return dict(
        changed=bool(written),
        set=dict(id=manifest["id"], path=path),
        project=manifest["project"],
        layout=manifest["layout"],
        folder=folder,
        files=files,
        env_files=[name for name in members if name not in files],
        written=written,
        kept=kept,
        warnings=["%s stays as it is; the set has another one." % os.path.join(folder, name) for name in kept],
        diff=[dict(after_header=os.path.join(folder, name), before="", after=_shown(name, members)) for name in written],
    )


def _deployment_of(source, root):
    """Return ``(path, manifest, artifact)`` of a set that has a deployment."""
    path = resolve(source, root)["path"]
    manifest = os.path.join(path, MANIFEST)
    if not os.path.isfile(manifest):
        raise SetError("%s holds no Compose files: only sets of this collection do." % path, REMEDY)
    manifest = read_manifest(manifest)
    for artifact in manifest["artifacts"]:
        if artifact["file"] == DEPLOYMENT_FILE:
            return path, manifest, artifact
    raise SetError("The set %s was made without its Compose files." % manifest["id"], REMEDY)


def _members(path, artifact):
    """Return ``{name: (data, mode)}`` of an archive of few, small, regular files, in its order."""
    if sha256_of(path)[0] != artifact["sha256"]:
        raise SetError("%s is not the file that its manifest tells of." % path, "Use another copy of this set.")
    members = {}
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(read_small(path, LIMIT))) as packed:
            data = packed.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise ValueError("it is larger than Compose files are")
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                name = os.path.normpath(member.name)
                if not member.isreg() or member.issparse() or os.path.isabs(name) or name.split("/")[0] in ("..", "."):
                    raise ValueError("it holds %.80r, which is not a file in the project's folder" % member.name)
                members[name] = (archive.extractfile(member).read(), member.mode & 0o755)
    except (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise SetError("%s can't be used: %s." % (path, error), REMEDY)
    return members


def _holds(path, data):
    try:
        return read_small(path, LIMIT) == data
    except SetError:
        return False


def _write(path, data, mode):
    folder = os.path.dirname(path)
    with explained("create", folder):
        os.makedirs(folder, mode=0o755, exist_ok=True)
    # Whole or not at all: half of one would be taken for its owner's by the next run.
    replace_file(path, data)
    with explained("write", path):
        os.chmod(path, mode)


def _shown(name, members):
    """Return a file as diff mode shows it: environment files hold passwords."""
    data = members[name][0].decode("utf-8", "replace")
    return data if name.endswith(COMPOSE_FILES) else "(%d lines, not shown)\n" % len(data.splitlines())
