# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs this collection as it is installed on the controller, so that a host can run it:  pack.py COLLECTION DEST

The same files make the same archive, byte by byte. ``complete`` is its last member, so a collection that was
unpacked in part is known as such. Prints the archive's SHA-256 and the options of all roles as JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile

import yaml

FOLDERS = ("meta", "playbooks", "plugins", "roles")
FILES = ("FILES.json", "LICENSE", "MANIFEST.json", "README.md", "galaxy.yml", "requirements.txt")
TARGET = "ansible_collections/echo_music/ops"


def members(collection):
    """Yield the paths of the files, relative to the collection."""
    for name in FILES:
        if os.path.isfile(os.path.join(collection, name)):
            yield name
    for top in FOLDERS:
        for folder, folders, names in os.walk(os.path.join(collection, top)):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                if not name.endswith(".pyc"):
                    yield os.path.relpath(os.path.join(folder, name), collection)


def pack(collection, dest):
    """Write the archive, return its SHA-256."""
    with tarfile.open(dest, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in members(collection):
            with open(os.path.join(collection, name), "rb") as source:
                add(archive, "%s/%s" % (TARGET, name), source.read())
        add(archive, "complete", b"")
    with open(dest, "rb") as packed:
        return hashlib.sha256(packed.read()).hexdigest()


def add(archive, name, content):
    """Add a file that is nobody's and of no time."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    archive.addfile(member, io.BytesIO(content))


def options(collection):
    """Return the names of all options of the roles' main entry points."""
    names = []
    for role in sorted(os.listdir(os.path.join(collection, "roles"))):
        path = os.path.join(collection, "roles", role, "meta", "argument_specs.yml")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as specs:
                names += yaml.safe_load(specs)["argument_specs"]["main"]["options"]
    # A confirmation is given by a person each time, and a schedule schedules no schedule.
    return [name for name in names if not name.startswith("echo_schedule_") and not name.endswith("_confirm")]


if __name__ == "__main__":
    print(json.dumps(dict(sha256=pack(sys.argv[1], sys.argv[2]), options=options(sys.argv[1]))))
