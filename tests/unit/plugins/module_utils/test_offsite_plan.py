# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import calendar
import time

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.module_utils.offsite_plan import catch_up, find_lost, judge, missing

DAY = 86400
NOW = calendar.timegm((2026, 11, 24, 12, 0, 0))
CLASSIC = ["database", "uploads", "config"]


def backup(when, **flags):
    """A set of a moment, as it is known here and as its receipt tells of it."""
    set_id = time.strftime("backup_%Y-%m-%d_%H-%M-%S", time.gmtime(when))
    known = dict(good=True, proven=False, pinned=False, shrunk=False, project="echo", components=CLASSIC)
    return dict(dict(known, id=set_id, time=when), **flags)


def daily(days, **flags):
    """One set a day, the oldest first."""
    return [backup(NOW - age * DAY, **flags) for age in range(days, 0, -1)]


def ids(sets):
    return [item["id"] for item in sets]


def plan(local, copies, rules):
    return catch_up(dict((item["id"], item) for item in local), copies, rules, NOW, lost(local, copies))


def lost(local, copies):
    return find_lost(dict((item["id"], item) for item in copies + local).values(), 0.5)


def test_what_was_missed_is_copied_newest_first():
    sets = daily(5)
    judged = plan(sets, [sets[0], sets[4]], {})
    assert ids(judged) == ids(sets)[::-1]
    assert [item["status"] for item in judged] == ["present", "missing", "missing", "missing", "present"]
    assert missing(judged) == [sets[3]["id"], sets[2]["id"], sets[1]["id"]]


def test_nothing_is_copied_just_to_be_pruned():
    sets = daily(5)
    judged = plan(sets, [sets[4]], {"keep_last": 2})
    assert missing(judged) == [sets[3]["id"]]
    assert [item["status"] for item in judged[2:]] == ["unwanted"] * 3
    assert judged[4]["reasons"] == ["no rule keeps it"]


def test_sets_that_are_only_there_count_as_well():
    """After a move to another host the far end may have newer sets than this one."""
    sets = daily(4)
    assert missing(plan(sets[:2], sets[2:], {"keep_last": 2})) == []
    assert missing(plan(sets[:2], sets[2:], {"keep_last": 3})) == [sets[1]["id"]]


def test_what_was_learnt_here_since_the_copy_counts():
    sets = daily(4)
    sets[0]["pinned"] = True
    assert missing(plan(sets, sets[1:], {"keep_last": 1})) == [sets[0]["id"]]
    # The copy of the newest was made before it turned out to have shrunk.
    told = dict(sets[3])
    sets[3]["shrunk"] = True
    assert sets[2]["id"] in missing(plan(sets, [told], {"keep_last": 1}))


def test_a_loss_is_found_that_only_the_far_end_tells():
    sets = daily(4, holds={"public.users": 100})
    for item in sets[2:]:
        item["holds"] = {"public.users": 10}
    assert lost(sets[2:], []) == {}
    told = lost(sets[2:], sets[:2])
    assert sorted(told) == ids(sets[2:])
    assert told[sets[3]["id"]] == ["public.users: 10 rows, 100 rows in %s" % sets[1]["id"]]
    assert lost([dict(item, project="other") for item in sets[2:]], sets[:2]) == {}
    # What was told where the set was made isn't told twice; what was accepted, or holds nothing known, isn't at all.
    assert lost([dict(sets[2], shrunk=True)], sets[:2]) == lost([dict(sets[2], accepted=True)], sets[:2]) == {}
    assert lost([dict(sets[2], holds=None)], sets[:2]) == {}
    rules = {"keep_last": 1}
    kept = [item["id"] for item in judge(sets, rules, NOW, told) if item["keep"]]
    assert kept == [sets[3]["id"], sets[1]["id"]]
    assert [item["id"] for item in judge(sets, rules, NOW) if item["keep"]] == [sets[3]["id"]]


FLAGS = st.fixed_dictionaries(
    dict(proven=st.booleans(), pinned=st.integers(0, 9).map(lambda n: not n), shrunk=st.booleans()),
    optional=dict(
        holds=st.fixed_dictionaries({"public.users": st.sampled_from([0, 40, 60, 100])}),
        accepted=st.booleans(),
        project=st.sampled_from(["a", "b"]), components=st.sampled_from([CLASSIC, ["database"], ["data"], []]),
    ),
)
PLACED = st.tuples(FLAGS, st.sampled_from(["here", "there", "both"]))
SETS = st.dictionaries(st.integers(NOW - 900 * DAY, NOW + 3 * DAY), PLACED, max_size=25)
COUNTS = {"keep_" + name: st.integers(-1, 8) for name in "last hourly daily weekly monthly yearly".split()}
RULES = st.fixed_dictionaries({}, optional=dict(COUNTS, keep_within=st.from_regex(r"\A([1-9][0-9]?[ymdh]){1,2}\Z")))


@given(SETS, RULES)
def test_no_copy_that_was_caught_up_is_pruned_then(placed, rules):
    sets = [(backup(when, **flags), place) for when, (flags, place) in placed.items()]
    local = [item for item, place in sets if place != "there"]
    copies = [item for item, place in sets if place != "here"]
    came = missing(plan(local, copies, rules))
    then = copies + [item for item in local if item["id"] in came]
    assert set(came) <= set(item["id"] for item in judge(then, rules, NOW, lost(local, then)) if item["keep"])
    assert missing(plan(local, then, rules)) == []
