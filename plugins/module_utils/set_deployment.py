# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Compose files of a stack, as the small part of a set that is written when it opens."""

from __future__ import annotations

import io
import os
import tarfile
import time

from ansible_collections.echo_music.ops.plugins.module_utils.set_files import sha256_of, write_file
from ansible_collections.echo_music.ops.plugins.module_utils.set_plan import DEPLOYMENT_FILE


def deployment_bytes(deployment):
    """Return the size of the files that can be read, None if there is none."""
    sizes = [os.path.getsize(path) for path in _files(deployment) if _is_readable(path)]
    return sum(sizes) if sizes else None


def write_deployment(deployment, folder):
    """Archive the Compose files and the environment files.

    Returns ``(artifact, warnings)``; without a file that can be read the artifact is None.
    """
    begun = time.time()
    archive, members, size, warnings = io.BytesIO(), 0, 0, []
    with tarfile.open(fileobj=archive, mode="w:gz", format=tarfile.PAX_FORMAT, dereference=True) as target:
        for path in _files(deployment):
            if not _is_readable(path):
                warnings.append("%s can't be read; deployment is made without it." % path)
                continue
            member = target.gettarinfo(path, _member_name(path, deployment.get("working_dir")))
            with open(path, "rb") as source:
                data = source.read()
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
            members, size = members + 1, size + len(data)
    if not members:
        return None, warnings
    path = os.path.join(folder, DEPLOYMENT_FILE)
    write_file(path, archive.getvalue())
    digest, written = sha256_of(path)
    artifact = dict(
        role="deployment",
        file=DEPLOYMENT_FILE,
        source=deployment.get("working_dir") or "",
        bytes_in=size,
        bytes_out=written,
        members=members,
        codec="gzip",
        sha256=digest,
        seconds=round(time.time() - begun, 3),
    )
    return artifact, warnings


def _files(deployment):
    names = list(deployment["files"]) + list(deployment.get("env_files") or ())
    return [os.path.normpath(name) for name in dict.fromkeys(names)]


def _is_readable(path):
    return os.path.isfile(path) and os.access(path, os.R_OK)


def _member_name(path, folder):
    """``./`` and the path in the project's folder; a file from elsewhere keeps its whole path."""
    folder = os.path.normpath(folder or "/").rstrip("/") + "/"
    return "./" + (path[len(folder) :] if path.startswith(folder) else path.lstrip("/"))
