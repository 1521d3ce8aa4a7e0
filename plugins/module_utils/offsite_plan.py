# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets a destination loses, and which of those that it missed it gets: pure functions.

Both follow from the same rules. The sets here are judged together with those there, so nothing
is copied that the prune after it would remove.
"""

from __future__ import annotations

from ansible_collections.echo_music.ops.plugins.module_utils import retention
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_receipt import FLAGS, moment
from ansible_collections.echo_music.ops.plugins.module_utils.shrink import find_shrunk

# What a local set is to a destination: there, to be copied, copied by this run, or kept by no rule there.
PRESENT, MISSING, COPIED, UNWANTED = "present", "missing", "copied", "unwanted"


def find_lost(sets, alarm):
    """Return what was lost in sets that count as whole where they were made: ``{id: [str]}``.

    A host that was made anew has no sets from before: only those at the far end tell that its own hold next to
    nothing. ``sets`` are those here and there, each once.
    """
    lost = {}
    for project in set(item.get("project") for item in sets):
        rivals = [
            dict(
                id=item["id"],
                holds=item.get("holds") or {},
                good=not item.get("shrunk"),
                accepted=bool(item.get("accepted")),
            )
            for item in sorted(sets, key=lambda item: item["id"])
            if item.get("project") == project
        ]
        lost.update(find_shrunk(rivals, alarm))
    return lost


def judge(copies, rules, now, lost=()):
    """Return what ``retention.plan`` decides of copies, as receipts or a listing tell of them.

    Those in ``lost``, see :func:`find_lost`, count as shrunk.
    """
    return retention.plan(_as_sets(copies, lost), rules, now)


def catch_up(local, copies, rules, now, lost=()):
    """Return what each local set is to a destination, newest first: ``[{"id", "status", "reasons"}]``.

    ``local`` are the sets here as ``retention.plan`` takes them, by id.
    """
    there = set(copy["id"] for copy in copies)
    # Of a set that lies on both sides more is known here.
    elsewhere = [item for item in _as_sets(copies, lost) if item["id"] not in local]
    here = [dict(item, shrunk=item["shrunk"] or item["id"] in lost) for item in local.values()]
    decided = retention.plan(here + elsewhere, rules, now)
    return [
        dict(id=item["id"], status=_status(item, there), reasons=item["reasons"]) for item in decided if item["id"] in local
    ]


def missing(judged):
    """Return the ids that :func:`catch_up` says are to be copied, newest first."""
    return [item["id"] for item in judged if item.get("status") == MISSING]


def _status(decision, there):
    if decision["id"] in there:
        return PRESENT
    return MISSING if decision["keep"] else UNWANTED


def _as_sets(copies, lost):
    return [
        dict(
            dict((name, bool(copy.get(name))) for name in FLAGS),
            id=copy["id"],
            time=moment(copy["id"]),
            good=True,
            shrunk=bool(copy.get("shrunk")) or copy["id"] in lost,
            project=copy.get("project"),
            components=copy.get("components") or [],
        )
        for copy in copies
    ]
