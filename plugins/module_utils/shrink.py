# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a set holds so much less than the ones before it that something may have been lost: pure functions.

A set is compared, part by part, with the newest one before it that did not shrink itself, so
a loss is told again every day until it is made good, or accepted by a person.
"""

from __future__ import annotations

from ansible_collections.echo_music.ops.plugins.module_utils.set_files import human
from ansible_collections.echo_music.ops.plugins.module_utils.tables import (
    LIBRARY_TABLES,
    TRANSIENT_TABLES,
    USER_TABLES,
)

ALARM = 0.5
# Parts whose size says how much there is; logs and caches come and go.
PARTS = ("uploads", "config", "data")
# Tables that don't lose most of their rows in everyday use.
LASTING = frozenset(USER_TABLES + LIBRARY_TABLES) - frozenset(TRANSIENT_TABLES)
# A few rows or bytes more or less are no sign of anything.
LEAST_ROWS = 10
LEAST_BYTES = 16 * 1024


def find_shrunk(sets, alarm=ALARM):
    """Return what was lost in each set that shrank: ``{id: [str]}``.

    ``sets`` are ``{"id", "holds", "good", "accepted"}``, oldest first, all of one project;
    ``alarm`` is the share of rows or bytes that may be lost at most, 0 looks for nothing.
    """
    told = "%s: %s, %s in %s"
    return dict(
        (
            item["id"],
            [told % (name, shown(size, name), shown(before, name), of) for name, size, before, of in lost],
        )
        for item, unused, lost in _compared(sets, alarm)
        if lost
    )


def least_share(sets, alarm=ALARM):
    """Return the least share that the newest set holds of anything in which it is compared; None if it is in nothing.

    Below ``1 - alarm`` it shrank.
    """
    share = None
    for item, compared, unused in _compared(sets, alarm):
        shares = [] if item["accepted"] else [float(size) / before for unused_name, size, before, unused_of in compared]
        share = min(shares) if shares else None
    return share


def holdings(manifest):
    """Return how much a set holds: ``{"public.users": rows, …, "all tables": rows, "uploads": bytes, …}``."""
    found = {}
    if "database" in manifest["components"]:
        tables = manifest["tables"]
        found.update((name, rows) for name, rows in tables.items() if name.rpartition(".")[2] in LASTING)
        found["all tables"] = sum(tables.values())
    for artifact in manifest["artifacts"]:
        if artifact["component"] in PARTS:
            found[artifact["component"]] = artifact["bytes_in"]
    return found


def shown(size, name):
    """Return for people how much there is of what has that name."""
    return human(size) if name in PARTS else "%d rows" % size


def _compared(sets, alarm):
    """Yield each good set with ``[(name, size, size before, id of the set before)]``, and those of them that are lost."""
    forerunners = {}
    for item in sets:
        if not item["good"]:
            continue
        compared = [
            (name, item["holds"][name], before, of)
            for name, (before, of) in sorted(forerunners.items())
            if name in item["holds"] and before >= (LEAST_BYTES if name in PARTS else LEAST_ROWS)
        ]
        lost = [facts for facts in compared if facts[1] < facts[2] * (1 - alarm)] if alarm else []
        if item["accepted"]:
            lost = []
        yield item, compared, lost
        if not lost:
            forerunners.update((name, (size, item["id"])) for name, size in item["holds"].items())
