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

ALARM = 0.5
# Parts whose size says how much there is; logs and caches come and go.
PARTS = ("uploads", "config", "data")
# Tables that nothing brings back, in both layouts; sessions, queues and the like come and go.
PRECIOUS = frozenset(
    (
        "users",
        "playlists",
        "playlist_tracks",
        "user_ratings",
        "play_history",
        "user_play_stats",
        "bookmarks",
        "shares",
        "radio_stations",
        "artists",
        "albums",
        "tracks",
    )
)
# A few rows or bytes more or less are no sign of anything.
LEAST_ROWS = 10
LEAST_BYTES = 16 * 1024


def find_shrunk(sets, alarm=ALARM):
    """Return what was lost in each set that shrank: ``{id: [str]}``.

    ``sets`` are ``{"id", "manifest", "good", "accepted"}``, oldest first, all of one project;
    ``alarm`` is the share of rows or bytes that may be lost at most, 0 looks for nothing.
    """
    shrunk = {}
    forerunners = {}
    for item in sets:
        if not item["good"]:
            continue
        measured = measure(item["manifest"])
        lost = []
        if alarm and not item["accepted"]:
            lost = [
                "%s: %s, %s in %s" % (name, shown(measured[name], unit), shown(before, unit), of)
                for name, (before, unit, of) in sorted(forerunners.items())
                if name in measured and before >= _least(unit) and measured[name] < before * (1 - alarm)
            ]
        if lost:
            shrunk[item["id"]] = lost
        else:
            forerunners.update((name, (size, unit_of(name), item["id"])) for name, size in measured.items())
    return shrunk


def measure(manifest):
    """Return how much a set holds: ``{"public.users": rows, …, "all tables": rows, "uploads": bytes, …}``."""
    found = {}
    if "database" in manifest["components"]:
        tables = manifest["tables"]
        found.update((name, rows) for name, rows in tables.items() if name.rpartition(".")[2] in PRECIOUS)
        found["all tables"] = sum(tables.values())
    for artifact in manifest["artifacts"]:
        if artifact["component"] in PARTS:
            found[artifact["component"]] = artifact["bytes_in"]
    return found


def unit_of(name):
    """Return what a measured name is counted in."""
    return "bytes" if name in PARTS else "rows"


def shown(size, unit):
    """Return a size for people."""
    return human(size) if unit == "bytes" else "%d rows" % size


def _least(unit):
    return LEAST_BYTES if unit == "bytes" else LEAST_ROWS
