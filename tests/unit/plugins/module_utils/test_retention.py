# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import calendar
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from restic_repository import ResticRepository

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.retention import checked_rules, plan

DAY = 86400
NOW = calendar.timegm((2026, 11, 24, 12, 0, 0))


def backup(when, **flags):
    """A set of a moment, in seconds or as ``2026-11-24 03:00:00``."""
    if isinstance(when, str):
        when = calendar.timegm(time.strptime(when, "%Y-%m-%d %H:%M:%S"))
    item = dict(id=time.strftime("backup_%Y-%m-%d_%H-%M-%S", time.gmtime(when)), time=when, bytes=1)
    return dict(item, **dict(dict(good=True, proven=False, pinned=False, shrunk=False), **flags))


def daily(days, **flags):
    """One set a day for some days, the newest this morning."""
    return [backup(NOW - 9 * 3600 - day * DAY, **flags) for day in range(days)]


def kept(sets, rules, now=NOW):
    return [decision["id"] for decision in plan(sets, rules, now) if decision["keep"]]


def dates(ids):
    return [set_id[7:17] for set_id in ids]


# -- rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [{}, {"keep_last": 0}, {"keep_within": ""}, {"keep_daily": None, "keep_within": "0d"}])
def test_no_rules_keep_everything(rules):
    decisions = plan(daily(3), rules, NOW)
    assert [decision["keep"] for decision in decisions] == [True] * 3
    assert decisions[0]["reasons"] == ["there are no rules"]


@pytest.mark.parametrize(
    "rules, remain",
    [
        ({"keep_last": 2}, ["2026-11-24", "2026-11-23"]),
        ({"keep_last": "2"}, ["2026-11-24", "2026-11-23"]),
        ({"keep_within": "2d"}, ["2026-11-24", "2026-11-23"]),
        ({"keep_within": "1d1h"}, ["2026-11-24", "2026-11-23"]),
        # 2026-11-23 is a Monday; the weeks' newest are Sundays.
        ({"keep_weekly": 3}, ["2026-11-24", "2026-11-22", "2026-11-15"]),
        # The guide: four weekly sets, and thirty days.
        ({"keep_weekly": 4}, ["2026-11-24", "2026-11-22", "2026-11-15", "2026-11-08"]),
        ({"keep_monthly": 3}, ["2026-11-24", "2026-10-31", "2026-10-11"]),
        ({"keep_last": 1, "keep_yearly": -1}, ["2026-11-24", "2026-10-11"]),
    ],
)
def test_rules_keep_the_newest_of_each_period(rules, remain):
    assert dates(kept(daily(45), rules)) == remain


def test_thirty_days_are_counted_from_the_newest_set():
    assert len(kept(daily(45), {"keep_within": "30d"})) == 30
    assert len(kept(daily(45), {"keep_within": "30d"}, now=NOW + 400 * DAY)) == 30


def test_a_set_from_the_future_does_not_push_out_those_of_today():
    assert len(kept(daily(45) + [backup(NOW + 300 * DAY)], {"keep_within": "30d"})) == 31
    assert len(kept([backup(NOW + DAY), backup(NOW + 90 * DAY)], {"keep_within": "30d"})) == 2


def test_hours_of_one_day():
    sets = [backup("2026-11-24 %02d:%02d:00" % (hour, minute)) for hour in range(5) for minute in (0, 30)]
    assert [set_id[-8:] for set_id in kept(sets, {"keep_hourly": 2})] == ["04-30-00", "03-30-00"]


def test_each_decision_has_its_reasons():
    decisions = plan(daily(3) + [backup("2026-10-01 03:00:00", pinned=True)], {"keep_last": 2, "keep_weekly": 2}, NOW)
    assert [decision["reasons"] for decision in decisions] == [
        ["newest good set", "keep_last: 1 of 2", "keep_weekly: 1 of 2, 2026-W48"],
        ["keep_last: 2 of 2"],
        ["keep_weekly: 2 of 2, 2026-W47"],
        ["pinned"],
    ]
    assert plan(daily(2), {"keep_last": 1}, NOW)[1]["reasons"] == ["no rule keeps it"]


@pytest.mark.parametrize(
    "rules, named",
    [
        ({"keep_latest": 7}, "keep_latest"),
        ({"keep_last": "many"}, "many"),
        ({"keep_last": -2}, "-2"),
        ({"keep_last": True}, "True"),
        ({"keep_last": 1.5}, "1.5"),
        ({"keep_within": "30"}, "30"),
        ({"keep_within": 30}, "30"),
        ({"keep_within": "d"}, "d"),
        (["keep_last"], "keep_last"),
    ],
)
def test_a_wrong_rule_is_named_with_those_there_are(rules, named):
    with pytest.raises(SetError) as failure:
        checked_rules(rules)
    assert named in failure.value.what and "keep_within" in failure.value.remedy


def test_a_month_that_lacks_the_day_runs_over():
    # One month before 31 March is 31 February, which is 3 March, in restic as well.
    sets = [backup("2026-%s 03:00:00" % date) for date in ("03-31", "03-04", "03-03", "03-02")]
    assert dates(kept(sets, {"keep_within": "1m"})) == ["2026-03-31", "2026-03-04"]
    assert len(kept(sets, {"keep_within": "9999y"})) == 4


# -- what the rules can't take -------------------------------------------------------------------


def test_the_newest_good_and_the_newest_proven_set_stay():
    sets = [backup(NOW - DAY, good=False), backup(NOW - 2 * DAY), backup(NOW - 3 * DAY), backup(NOW - 90 * DAY, proven=True)]
    decisions = {item["id"]: item for item in plan(sets, {"keep_last": 1}, NOW)}
    assert "newest good set" in decisions[sets[1]["id"]]["reasons"]
    assert not decisions[sets[2]["id"]]["keep"]
    assert decisions[sets[3]["id"]]["reasons"] == ["newest proven set"]


def test_a_proof_of_a_set_that_broke_since_protects_nothing():
    sets = daily(2) + [backup(NOW - 90 * DAY, proven=True, good=False)]
    assert kept(sets, {"keep_last": 1}) == [sets[0]["id"]]


@pytest.mark.parametrize("flags", [dict(shrunk=True), dict(good=False)])
def test_what_shrank_or_failed_evicts_nothing(flags):
    good = [backup(NOW - day * DAY) for day in range(30, 33)]
    strange = [backup(NOW - day * DAY, **flags) for day in range(10)]
    remain = kept(good + strange, {"keep_last": 3})
    assert [item["id"] for item in good] == remain[-3:]
    # They don't pile up either.
    assert [item["id"] for item in strange[:3]] == remain[:-3]


@pytest.mark.parametrize("flags", [dict(shrunk=True), dict(good=False)])
def test_what_shrank_or_failed_goes_when_enough_good_ones_came_after_it(flags):
    strange = backup(NOW - 10 * DAY, **flags)
    decisions = plan(daily(2) + [strange], {"keep_last": 3}, NOW)
    assert decisions[2] == dict(id=strange["id"], keep=True, reasons=["keep_last: 1 of 3 among its like"])
    gone = plan(daily(3) + [strange], {"keep_last": 3}, NOW)[3]
    assert not gone["keep"] and "fills no slot" in gone["reasons"][1]


def test_the_newest_set_that_did_not_shrink_stays_beside_the_newest():
    sets = [backup(NOW - DAY, shrunk=True, proven=True), backup(NOW - 40 * DAY, proven=True), backup(NOW - 41 * DAY)]
    reasons = [decision["reasons"] for decision in plan(sets, {"keep_within": "1h"}, NOW)]
    assert reasons[0][:2] == ["newest good set", "newest proven set"]
    assert reasons[1][:2] == ["newest good set that did not shrink", "newest proven set that did not shrink"]
    assert reasons[2] == ["no rule keeps it"]


# -- what may replace what -----------------------------------------------------------------------

CLASSIC = ["database", "uploads", "config", "deployment"]


def test_a_part_of_the_data_evicts_no_whole_set():
    parts = [dict(item, project="echo", components=["database"]) for item in daily(5)]
    whole = [backup(NOW - 30 * DAY, project="echo", components=CLASSIC)]
    remain = kept(parts + whole, {"keep_last": 2})
    assert remain == [parts[0]["id"], parts[1]["id"], whole[0]["id"]]


@pytest.mark.parametrize("components", [["database", "data"], CLASSIC, CLASSIC + ["logs", "cache"]])
def test_a_whole_set_evicts_whole_and_partial_ones_of_both_layouts(components):
    whole = [dict(item, project="echo", components=components) for item in daily(2)]
    older = [
        backup(NOW - 30 * DAY, project="echo", components=CLASSIC),
        backup(NOW - 31 * DAY, project="echo", components=["database", "data"]),
        backup(NOW - 32 * DAY, project="echo", components=["config"]),
    ]
    assert kept(whole + older, {"keep_last": 2}) == [item["id"] for item in whole]


def test_projects_in_one_folder_do_not_evict_one_another():
    ours = [dict(item, project="echo", components=CLASSIC) for item in daily(5)]
    others = [backup(NOW - day * DAY, project="other", components=CLASSIC) for day in (50, 51)]
    assert kept(ours + others, {"keep_last": 1}) == [ours[0]["id"], others[0]["id"]]


def test_a_set_that_cannot_be_read_ages_with_all_the_others():
    unreadable = backup(NOW - 30 * DAY, good=False, project=None, components=[])
    ours = [dict(item, project="echo", components=CLASSIC) for item in daily(3)]
    assert unreadable["id"] in kept(ours[:1] + [unreadable], {"keep_last": 2})
    assert unreadable["id"] not in kept(ours + [unreadable], {"keep_last": 2})


# -- properties ----------------------------------------------------------------------------------

FLAGS = st.fixed_dictionaries(
    dict(good=st.integers(0, 3).map(bool), proven=st.booleans(), pinned=st.integers(0, 9).map(lambda n: not n)),
    optional=dict(
        shrunk=st.booleans(),
        project=st.sampled_from(["a", "b"]),
        components=st.sampled_from([CLASSIC, ["database"], ["database", "data"], []]),
    ),
)
SETS = st.dictionaries(st.integers(NOW - 900 * DAY, NOW + 3 * DAY), FLAGS, max_size=30).map(
    lambda found: [backup(when, **flags) for when, flags in found.items()]
)
COUNTS = {"keep_" + name: st.integers(-1, 8) for name in "last hourly daily weekly monthly yearly".split()}
RULES = st.fixed_dictionaries({}, optional=dict(COUNTS, keep_within=st.from_regex(r"\A([1-9][0-9]?[ymdh]){1,2}\Z")))


@given(SETS, RULES)
def test_every_set_is_decided_once_with_a_reason_newest_first(sets, rules):
    decisions = plan(sets, rules, NOW)
    times = {item["id"]: item["time"] for item in sets}
    assert [times[decision["id"]] for decision in decisions] == sorted(times.values(), reverse=True)
    assert all(decision["reasons"] for decision in decisions)
    assert plan(sets[::-1], rules, NOW) == decisions


@given(SETS, RULES)
def test_pinned_newest_good_and_newest_proven_always_stay(sets, rules):
    remain = set(kept(sets, rules))
    assert {item["id"] for item in sets if item["pinned"]} <= remain
    for wanted in (("good",), ("good", "proven")):
        found = [item for item in sets if all(item[flag] for flag in wanted)]
        for candidates in (found, [item for item in found if not item["shrunk"]]):
            if candidates:
                assert max(candidates, key=lambda item: item["time"])["id"] in remain


@given(SETS, RULES)
def test_failed_and_shrunk_sets_change_nothing_for_the_others(sets, rules):
    counted = [item for item in sets if item["good"] and not item["shrunk"]]
    ids = {item["id"] for item in counted}
    assert [set_id for set_id in kept(sets, rules) if set_id in ids] == kept(counted, rules)


@given(SETS, RULES)
def test_planned_again_nothing_more_goes(sets, rules):
    remain = kept(sets, rules)
    assert kept([item for item in sets if item["id"] in remain], rules) == remain


@given(SETS, RULES, RULES)
def test_more_rules_keep_more(sets, rules, more):
    if checked_rules(rules):
        assert set(kept(sets, rules)) <= set(kept(sets, dict(more, **rules)))


@given(SETS, RULES)
def test_what_shrank_or_failed_is_bounded_by_the_rules(sets, rules):
    alone = {"keep_last": 3}
    strange = [dict(item, good=False, pinned=False, project="a", components=CLASSIC) for item in sets]
    assert len(kept(strange, alone)) == min(3, len(strange))


# -- restic --------------------------------------------------------------------------------------

MOMENTS = (
    # Two years of months with short and long ones, a few weeks of days, two days of hours; doubles within a period.
    ["%d-%02d-%02d 03:00:00" % (2025 + month // 12, month % 12 + 1, day) for month in range(20) for day in (1, 28)][::3]
    + ["2024-12-30 23:59:59", "2024-12-29 00:00:00", "2026-01-01 00:00:00", "2025-12-31 23:59:59"]
    + ["2026-10-31 03:00:00", "2026-10-25 01:30:00", "2026-10-25 02:30:00", "2026-11-01 00:00:00"]
    + ["2026-11-%02d 03:00:00" % day for day in range(9, 22)]
    + ["2026-11-22 %02d:%02d:10" % (hour, minute) for hour in (0, 1, 23) for minute in (0, 59)]
)
POLICIES = [
    {"keep_last": 7, "keep_weekly": 4},
    {"keep_last": 1},
    {"keep_hourly": 5},
    {"keep_daily": 9},
    {"keep_weekly": 60},
    {"keep_monthly": 12, "keep_yearly": 2},
    {"keep_yearly": 10},
    {"keep_within": "30d"},
    {"keep_within": "1m1d"},
    {"keep_within": "1y2m3d4h", "keep_daily": 2},
    {"keep_within": "5h"},
    {"keep_last": 3, "keep_hourly": 4, "keep_daily": 5, "keep_weekly": 6, "keep_monthly": 7, "keep_yearly": 8},
]


@pytest.fixture(scope="module")
def restic(tmp_path_factory):
    repository = ResticRepository(tmp_path_factory.mktemp("restic"))
    repository.create()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(repository.snapshot, MOMENTS))
    version = re.match(rb"restic (\d+)\.(\d+)", repository.run("version"))
    # Older ones don't give a slot that is left to the oldest snapshot.
    repository.keeps_the_oldest = (int(version.group(1)), int(version.group(2))) >= (0, 16)
    return repository


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_restic_decides_the_same(restic, policy):
    decisions = plan([backup(moment) for moment in MOMENTS], policy, time.time())
    options = [word for rule, value in policy.items() for word in ("--" + rule.replace("_", "-"), str(value))]
    ours = [decision["id"] for decision in decisions if _kept_by_restic(decision, restic.keeps_the_oldest)]
    theirs = [re.sub(r"(.*)T(\d\d):(\d\d):(\d\d).*", r"backup_\1_\2-\3-\4", when) for when in restic.kept(*options)]
    assert ours == theirs
    assert 0 < len(theirs) < len(MOMENTS)


def _kept_by_restic(decision, keeps_the_oldest):
    reasons = [reason for reason in decision["reasons"] if reason.startswith("keep_")]
    return any(keeps_the_oldest or not reason.endswith("the oldest") for reason in reasons)
