# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the parts of a backup belong on a stack of the other layout.

Echo of 2024 had a volume for uploads and covers and one for its configuration; since 1.0 one
volume holds everything. What the app keeps in them has kept its form, and the database names
its files relative to their folder, so the folders alone have moved. What one layout has and
the other doesn't is not touched: ``setup.json`` tells of the stack that it lies in, and
``metadata`` and ``logs`` are made anew by the app.
"""

from __future__ import annotations

import json

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import USER_TABLES
from ansible_collections.echo_music.ops.plugins.module_utils.set_plan import VOLUME_OF

# (component, volume that it goes to): what the first part of a name becomes there.
PLACES = {
    ("uploads", "data"): {"music": "uploads", "covers": "covers"},
    ("config", "data"): {"secrets.env": "secrets.env"},
    ("data", "uploads"): {"uploads": "music", "covers": "covers"},
    ("data", "config"): {"secrets.env": "secrets.env"},
}
CLASSIC = ("uploads", "config")
# What the configuration takes, whatever else is in the archive that it comes from.
CONFIG_ROOM = 1024 * 1024
STORED_PATHS = (
    """
SELECT coalesce(json_agg(json_build_object('column', name, 'rows', found) ORDER BY name), '[]') FROM (
    SELECT n.nspname || '.' || c.relname || '.' || a.attname AS name,
        (xpath('/row/c/text()', query_to_xml(format('SELECT count(*) AS c FROM ONLY %I.%I WHERE %I ~ %L',
            n.nspname, c.relname, a.attname, '{pattern}'), false, true, '')))[1]::text::bigint AS found
"""
    + USER_TABLES.replace("WHERE", "JOIN pg_attribute a ON a.attrelid = c.oid\nWHERE", 1)
    + """  AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid IN ('text'::regtype, 'varchar'::regtype)) counted
WHERE found > 0;
"""
)


def place(components, stack):
    """Return the components of a source as a stack takes them: ``{name: source}``, in their order.

    Each source gets ``role``, that of the volume that it goes to, and one that belongs
    elsewhere ``places``, as :class:`TarGuard` has them. One archive for two volumes becomes two
    parts, which are called as the classic layout calls them.
    """
    placed = {}
    for component, source in components.items():
        for name, role in _volumes(component, stack):
            part = dict(source, role=role, places=PLACES.get((component, role)))
            if component == "data" and part["places"]:
                part["elsewhere"] = sorted(set().union(*(PLACES["data", other] for other in CLASSIC)))
            if component == "data" and role == "config":
                part["room"] = CONFIG_ROOM
            for other in placed.values():
                # Some names of a volume are exchanged beside others of it, but not beside the whole.
                if other["role"] == role and not (other["places"] and part["places"]):
                    raise SetError(
                        "Both %s and %s hold the %s of this stack." % (other["file"], source["file"], role),
                        "Choose components: either data, or uploads and config.",
                    )
            placed[name] = part
    return placed


def _volumes(component, stack):
    """Return ``[(name of the part, role of its volume)]``."""
    own = VOLUME_OF.get(component, component)
    if own not in [volume["role"] for volume in stack["volumes"]]:
        if component == "data" and stack["layout"] == "classic":
            return [(role, role) for role in CLASSIC]
        if component in CLASSIC and stack["layout"] == "unified":
            return [(component, "data")]
    return [(component, own)]


def moved_folders(placed):
    """Return the folders of the app, as it named them where the backup was made, whose files lie elsewhere here."""
    moved = [name if source["role"] == "data" else "data" for name, source in placed.items() if source["places"]]
    return sorted(set("/app/" + name for name in moved))


def stored_paths(database, folders):
    """Return a remark for each column of a database whose values are whole paths into folders.

    Echo names its files relative to their folders. Whole paths would lead nowhere here.
    """
    if not folders:
        return []
    pattern = "^(%s)/" % "|".join(folders)
    return [
        "%(rows)d values of %(column)s are paths into %(folders)s, where this stack has no files."
        % dict(found, folders=" or ".join(folders))
        for found in json.loads(database.query(STORED_PATHS.replace("{pattern}", pattern))[0])
    ]


def moves(part):
    """Return the places of a part as the result has them: ``[{"from", "to"}]``, empty where nothing moves."""
    return [dict(zip(("from", "to"), pair)) for pair in sorted((part.get("places") or {}).items())]
