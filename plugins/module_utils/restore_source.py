# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore reads: a set of ours, a set of the 2024 script, or one file that its users have.

Names, sizes and first bytes are looked at; contents are not read, and nothing is changed.
"""

from __future__ import annotations

import os
import re
import stat

from ansible_collections.echo_music.ops.plugins.module_utils.codec import GZIP_MAGIC
from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.pg_archive import MAGIC as CUSTOM_MAGIC
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    ID,
    LATEST,
    MANIFEST,
    explained,
    timestamp,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_list import list_sets
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import read_manifest
from ansible_collections.echo_music.ops.plugins.module_utils.set_plan import GLOBALS_FILE

COMPONENTS = ("database", "uploads", "config", "data")
# The app does without them, so they are restored only where they are asked for by name.
ON_REQUEST = ("cache", "logs")
LATEST_PROVEN = "latest_proven"
ORIGIN_OURS, ORIGIN_SCRIPT, ORIGIN_FILE = "ours", "script", "file"

# By preference: the first that is there is taken. The custom format loads in parallel.
DUMPS = ("postgres_dump.backup", "postgres_dump.sql", "postgres_dump.sql.gz")
# What the script of the unified era wrote, a file a day; by their names the newest is the last.
DAILY_DUMP = re.compile(r"echo-db-backup-[0-9]{8}_[0-9]{6}\.sql\.gz\Z")
ARCHIVE = re.compile(r"(?P<component>uploads|config|data)(-backup)?\.(tar\.gz|tgz|tar\.zst|tar)\Z")
DUMP = re.compile(r".*\.(backup|dump|sql|sql\.gz)\Z")
READABLE = (
    "A set's id, latest, latest_proven, a path to a set, or a path to one file: *.backup, *.dump, *.sql, *.sql.gz, "
    "uploads.tar.gz, config.tar.gz, data.tar.gz or data-backup.tar.gz."
)


def resolve(source, root, components=None):
    """Return what a restore from ``source`` reads; whatever stands there, only ``SetError`` comes out.

    ``{"origin": "ours|script|file", "id", "path", "time", "components", "missing", "tables",
    "database", "globals"}``. Each component is ``{"file", "kind": "custom|sql|sql.gz|archive", "bytes"}``,
    in a set of ours with ``sha256``, ``members`` and ``bytes_in``. ``tables`` and ``database``
    are the manifest's, None where there is none, and so is ``globals``, ``{"file", "sha256"}`` of the roles
    of the server. ``missing`` names the components whose
    files are not there, as in a set that was copied in part.
    """
    path = locate(source, root)
    if os.path.isdir(path):
        ours = os.path.lexists(os.path.join(path, MANIFEST))
        found = _ours(path) if ours else _script(path)
    else:
        found = _file(path)
    return _chosen(found, source, components)


def locate(source, root):
    """Return where the source lies, with no link left in the way."""
    if not isinstance(source, str) or not source or "\0" in source:
        raise SetError("%.80r names nothing to restore from." % (source,), READABLE)
    if source in (LATEST, LATEST_PROVEN):
        return _newest(root, proven=source == LATEST_PROVEN)
    path = os.path.join(root, source) if ID.match(source) else source
    if not os.path.isabs(path):
        raise SetError("%.200r is neither a set's id nor an absolute path." % source, READABLE)
    if not os.path.exists(path):
        raise SetError("There is no %s." % path, _listing(root))
    return os.path.realpath(path)


def _newest(root, proven):
    complete = [item for item in list_sets(root) if item["complete"] and (item.get("proven") or not proven)]
    if not complete:
        raise SetError(
            "There is no complete%s set in %s." % (" and proven" if proven else "", root),
            _listing(root),
        )
    return complete[-1]["path"]


def _listing(root):
    listed = list_sets(root)
    if not listed:
        return "There are no sets in %s." % root
    return "In %s: %s." % (root, ", ".join(item["id"] for item in listed[-5:]))


def _ours(folder):
    manifest = read_manifest(os.path.join(folder, MANIFEST))
    components, missing, roles = {}, [], None
    for artifact in manifest["artifacts"]:
        component = artifact["component"]
        if artifact["file"] == GLOBALS_FILE and os.path.lexists(os.path.join(folder, GLOBALS_FILE)):
            roles = dict(file=os.path.join(folder, GLOBALS_FILE), sha256=artifact["sha256"])
        if component not in COMPONENTS + ON_REQUEST:
            continue
        if component == "database" and artifact["file"] not in DUMPS:
            continue
        path = os.path.join(folder, artifact["file"])
        if not os.path.lexists(path):
            missing.append(component)
            continue
        part = _part(path, component)
        if part["bytes"] != artifact["bytes_out"]:
            raise SetError(
                "%s has %d bytes, its manifest says %d." % (path, part["bytes"], artifact["bytes_out"]),
                "Restore from another set, or from single files of this one by their paths.",
            )
        part.update((key, artifact[key]) for key in ("sha256", "members", "bytes_in"))
        if component not in components or _rank(part) < _rank(components[component]):
            components[component] = part
    return dict(
        origin=ORIGIN_OURS,
        id=manifest["id"],
        path=folder,
        time=manifest["times"]["snapshot"] or manifest["times"]["started"],
        components=components,
        missing=sorted(set(missing) - set(components)),
        tables=manifest["tables"] if "database" in components else None,
        database=manifest["database"] if "database" in components else None,
        globals=roles,
    )


def _script(folder):
    with explained("list", folder):
        names = os.listdir(folder)
    components = {}
    daily = sorted(filter(DAILY_DUMP.match, names), reverse=True)
    for name in list(DUMPS) + daily:
        if name in names:
            components["database"] = _part(os.path.join(folder, name), "database")
            break
    for name in sorted(names):
        match = ARCHIVE.match(name)
        if match:
            components.setdefault(match.group("component"), _part(os.path.join(folder, name), match.group("component")))
    name = os.path.basename(folder)
    return dict(
        origin=ORIGIN_SCRIPT,
        id=name,
        path=folder,
        # The script names its folders in local time.
        time="%sT%s" % (name[7:17], name[18:].replace("-", ":")) if ID.match(name) else _modified(folder),
        components=components,
        missing=[],
        tables=None,
        database=None,
        globals=None,
    )


def _file(path):
    name = os.path.basename(path)
    match = ARCHIVE.match(name)
    if not match and not DUMP.match(name):
        raise SetError("The name of %s doesn't tell what it holds." % path, READABLE)
    component = match.group("component") if match else "database"
    return dict(
        origin=ORIGIN_FILE,
        id=name,
        path=path,
        time=_modified(path),
        components={component: _part(path, component)},
        missing=[],
        tables=None,
        database=None,
        globals=None,
    )


def _chosen(found, source, wanted):
    components = found["components"]
    if not components:
        raise SetError("There is nothing in %s that a restore could read." % found["path"], READABLE)
    absent = [component for component in wanted or [] if component not in components]
    if absent:
        raise SetError(
            "%s has no %s." % (source, ", ".join(absent)),
            "It has: %s." % ", ".join(name for name in COMPONENTS + ON_REQUEST if name in components),
        )
    chosen = [name for name in COMPONENTS + ON_REQUEST if name in components and name in (wanted or COMPONENTS)]
    if not chosen:
        raise SetError(
            "%s has nothing but %s." % (source, ", ".join(sorted(components))), "Name them as components to restore them."
        )
    found["components"] = dict((name, components[name]) for name in chosen)
    if "database" not in chosen:
        found.update(tables=None, database=None, globals=None)
    return found


def _part(path, component):
    with explained("look at", path):
        status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise SetError("%s is not a regular file." % path, "Restore from a copy of the file that it stands for.")
    if not status.st_size:
        raise SetError("%s is empty." % path, "The backup that wrote it failed: restore from another one.")
    return dict(file=path, kind=_kind(path) if component == "database" else "archive", bytes=status.st_size)


def _kind(path):
    """Tell a dump's format by its first bytes: names lie, above all those of dumps."""
    with explained("read", path), open(path, "rb") as dump:
        start = dump.read(len(CUSTOM_MAGIC))
    if start == CUSTOM_MAGIC:
        return "custom"
    return "sql.gz" if start.startswith(GZIP_MAGIC) else "sql"


def _rank(part):
    return DUMPS.index(os.path.basename(part["file"])) if part["kind"] != "archive" else 0


def _modified(path):
    with explained("look at", path):
        return timestamp(os.stat(path).st_mtime)
