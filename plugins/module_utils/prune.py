# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets of a root go by the rules of retention, and how they go.

The plan is the same in check mode. A set that goes gets a hidden name first, down to the disk,
and is emptied then: at no moment half a set is listed, and the next run removes what a killed
one left.
"""

from __future__ import annotations

import calendar
import json
import os
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.retention import checked_rules, plan
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    ID_TIME,
    allocated,
    discard,
    leftovers,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_list import list_sets, point_latest
from ansible_collections.echo_music.ops.plugins.module_utils.set_lock import guarded
from ansible_collections.echo_music.ops.plugins.module_utils.set_use import unread
from ansible_collections.echo_music.ops.plugins.module_utils.shrink import ALARM, find_shrunk

SCRIPT = "script"
TRASH = ".trash_"
IN_USE = "it is being read"
PROTECTED = "made by this run"


def ensure_pruned(root, retention, shrink_alarm=ALARM, script_sets=False, protect=(), check=False, now=None):
    """Delete the sets that no rule keeps; return the module's result, in check mode without deleting any.

    Those to ``protect`` stay, by their ids: where a clock was put back, the set just made is the oldest.
    """
    rules = checked_rules(retention)
    if not 0 <= shrink_alarm <= 1:
        raise SetError("The shrink alarm is %s, which is no share." % shrink_alarm, "Give one from 0 (off) to 1.")
    root = os.path.realpath(root)
    found = survey_sets(root, shrink_alarm)
    judged = [item for item in found if script_sets or item["origin"] != SCRIPT]
    decisions = protected(plan(judged, rules, time.time() if now is None else now), protect)
    items = dict((item["id"], item) for item in found)
    for decision in decisions:
        decision.update(_facts(items[decision["id"]]))
    kept = [decision for decision in decisions if decision["keep"]]
    going = [decision for decision in decisions if not decision["keep"]]
    deleted, spared, freed = _delete(root, going, check)
    trash = [] if check else _empty_trash(root)
    kept = sorted(kept + spared, key=lambda item: item["id"], reverse=True)
    return dict(
        changed=bool(deleted or trash),
        root=root,
        kept=[_told(item) for item in kept],
        deleted=[_told(item) for item in deleted],
        foreign=[_facts(item) for item in found if item["origin"] == SCRIPT and not script_sets],
        bytes_freed=freed,
        alarms=alarms(root, found),
        diff=_diff(decisions, kept),
    )


def protected(decisions, ids):
    """Return what a plan decided, with some sets kept that no rule keeps."""
    return [
        dict(item, keep=True, reasons=[PROTECTED]) if item["id"] in ids and not item["keep"] else item
        for item in decisions
    ]


def survey_sets(root, shrink_alarm=ALARM):
    """Return the sets of a root, oldest first, as ``retention.plan`` takes them, and what they lost."""
    found = [dict(item, time=_moment(item), good=item["complete"]) for item in list_sets(root)]
    projects = set(item["project"] for item in found if _is_ours(item))
    for item in found:
        if item["origin"] == SCRIPT and len(projects) == 1:
            # Only one Echo keeps its sets here, so the script's are its own.
            item["project"] = next(iter(projects))
        item["project"] = item.get("project")
        item.update((flag, item.get(flag, False)) for flag in ("proven", "pinned", "accepted"))
    lost = {}
    for project in projects:
        lost.update(find_shrunk([item for item in found if _is_ours(item) and item["project"] == project], shrink_alarm))
    for item in found:
        item.update(lost=lost.get(item["id"], []), shrunk=item["id"] in lost)
    return found


def alarms(root, found):
    """Return what a person should know of, in sentences: what the newest set of each project lost, damaged sets."""
    told = []
    newest = dict((item["project"], item) for item in found if _is_ours(item))
    for item in newest.values():
        if item["shrunk"]:
            told.append(
                "The backup set %s holds much less than before (%s). It evicts no other set. If that is right, accept "
                "it: echo_backup_set with state=accepted." % (item["id"], "; ".join(item["lost"]))
            )
    for item in found:
        if not item["good"] and item["origin"] != SCRIPT:
            told.append("The backup set %s in %s is damaged: %s" % (item["id"], root, item["problem"]))
    return told


def _delete(root, going, check):
    """Delete sets, the oldest first; return those deleted, those that someone reads, and the bytes freed."""
    deleted, spared = [], []
    for item in reversed(going):
        with unread(os.path.join(root, item["id"])) as free:
            if free:
                deleted.append(item)
            else:
                spared.append(dict(item, keep=True, reasons=[IN_USE]))
    freed = allocated(*(os.path.join(root, item["id"]) for item in deleted))
    if not check:
        deleted = [item for item in deleted if _delete_one(root, item, spared)]
    return deleted[::-1], spared, freed


def _delete_one(root, item, spared):
    """Delete a set unless someone began to read it; tell whether it is gone."""
    with guarded(root), unread(os.path.join(root, item["id"])) as free:
        if free:
            # The newest complete set is never deleted, so the link that people follow never dangles.
            point_latest(root)
            discard(root, item["id"])
        else:
            spared.append(dict(item, keep=True, reasons=[IN_USE]))
    return free


def _empty_trash(root):
    """Remove what killed runs had given a hidden name already."""
    found = [name for name in leftovers(root) if name.startswith(TRASH)]
    for name in found:
        with guarded(root):
            discard(root, name)
    return found


def _is_ours(item):
    """Tell whether a set is complete, and has a manifest that says what it holds."""
    return item["complete"] and item["origin"] != SCRIPT


def _moment(item):
    """A set's time by its name: seconds since the epoch. The script names its folders in local time."""
    try:
        moment = time.strptime(item["id"], ID_TIME)
        return time.mktime(moment) if item["origin"] == SCRIPT else calendar.timegm(moment)
    except (ValueError, OverflowError):
        return 0


def _facts(item):
    keys = ("id", "time", "bytes", "project", "origin", "good", "proven", "pinned", "shrunk", "lost", "problem")
    return dict((key, item.get(key)) for key in keys)


def _told(decision):
    return dict((key, value) for key, value in decision.items() if key != "keep")


def _diff(decisions, kept):
    def text(names):
        return json.dumps(dict(sets=sorted(names)), indent=2) + "\n"

    return dict(before=text(item["id"] for item in decisions), after=text(item["id"] for item in kept))
