# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet at a glance: what each fact of a host means, and who comes first."""

from __future__ import annotations

import copy
import time

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import fleet

HOUR = 3600
DAY = 24 * HOUR
NOW = fleet.epoch("2026-11-24T12:00:00Z")


def at(seconds_ago):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - seconds_ago))


def backup(age, size=1000, uploads=700, users=40, proven=None):
    """A set of some age; ``proven`` is the age of its drill."""
    drill = None if proven is None else dict(time=at(proven), passed=True, rto_seconds=12.5)
    return dict(
        id=time.strftime("backup_%Y-%m-%d_%H-%M-%S", time.gmtime(NOW - age)),
        complete=True,
        problem=None,
        time=at(age),
        bytes=size,
        project="echo",
        parts=dict(uploads=uploads, database=300),
        holds={"uploads": uploads, "public.users": users},
        accepted=False,
        proven=drill is not None,
        drill=drill,
    )


def info(*sets, **changes):
    running = dict(state="running", health="healthy")
    stack = dict(
        layout="classic",
        project="echo",
        containers=dict(
            app=dict(running, name="echo-app", image="registry.example.org/music/echo:1.2.0"),
            database=dict(running, name="echo-postgres", image="postgres:16-alpine"),
        ),
        volumes=[dict(role="uploads", bytes=1700), dict(role="config", bytes=None), dict(role="database", bytes=9000)],
        database=dict(server_version="16.4", bytes=400),
    )
    told = dict(stack=stack, backup_sets=list(sets), backup_space=dict(free=10**9, total=10**10), runs={})
    told.update(changes)
    return copy.deepcopy(told)


def judged(told, error=None):
    answers = [dict(name="nas", error=error, info=told)]
    (host,) = fleet.assess(answers, NOW, max_age=26 * HOUR, max_proven_age=8 * DAY, shrink_alarm=0.5)["hosts"]
    return host


def texts(host):
    return [problem["text"] for problem in host["problems"]]


WELL = info(backup(2 * DAY), backup(HOUR, proven=HOUR // 2))


def test_a_host_that_is_well():
    host = judged(WELL)
    assert (host["state"], host["problems"]) == ("good", [])
    assert (host["layout"], host["version"], host["database"]) == ("classic", "1.2.0", "16.4")
    assert (host["sets"], host["last"]["ago"], host["proven"]["ago"]) == (2, "1 hour ago", "30 minutes ago")
    assert host["proven"]["rto_seconds"] == 12.5


def test_volumes_grow_since_the_oldest_set_of_the_month():
    host = judged(info(backup(40 * DAY, uploads=0), backup(10 * DAY, uploads=700), backup(HOUR, uploads=1500)))
    assert [(volume["role"], volume["growth"]) for volume in host["volumes"]] == [("uploads", 100), ("database", 10)]


def test_no_growth_is_told_of_less_than_a_day():
    assert [volume["growth"] for volume in judged(info(backup(HOUR)))["volumes"]] == [None, None]


@pytest.mark.parametrize(
    "told, state, text",
    [
        (info(), "bad", "There is no complete backup."),
        (info(backup(27 * HOUR, proven=HOUR)), "bad", "The last backup was made 1 day ago."),
        (info(backup(HOUR)), "warn", "No backup has been proven by a restore drill."),
        (
            info(backup(20 * DAY, proven=9 * DAY), backup(HOUR)),
            "warn",
            "The last restore drill that passed was 9 days ago.",
        ),
        (
            info(backup(2 * DAY), backup(HOUR, users=19, proven=HOUR)),
            "warn",
            "The last backup holds much less than before (public.users: 19 rows, 40 rows in backup_2026-11-22_12-00-00).",
        ),
        (
            info(backup(HOUR, proven=HOUR), backup_space=dict(free=1999, total=10**10)),
            "warn",
            "Only 2.0 KiB are free where backups are kept.",
        ),
    ],
)
def test_backups_that_are_not_as_they_should_be(told, state, text):
    host = judged(told)
    assert (host["state"], texts(host)) == (state, [text])


def test_what_is_from_the_future_needs_a_person():
    told = info(backup(2 * DAY, proven=DAY), backup(-365 * DAY))
    host = judged(told)
    assert (host["state"], host["last"]["ago"]) == ("bad", "in the future")
    assert texts(host) == ["The last backup, backup_2027-11-24_12-00-00, is from the future. Is the host's clock right?"]
    host = judged(info(backup(HOUR, proven=-2 * HOUR)))
    assert (host["state"], host["proven"]["ago"]) == ("bad", "in the future")
    assert texts(host) == [
        "The last restore drill, of backup_2026-11-24_11-00-00, is from the future. Is the host's clock right?"
    ]
    # Clocks differ by a little.
    host = judged(info(backup(-60, proven=-60)))
    assert (host["state"], host["last"]["ago"], host["proven"]["ago"]) == ("good", "just now", "just now")


def test_copies_of_the_database_alone_do_not_hide_that_the_rest_is_old():
    def of(components, *arguments, **options):
        return dict(backup(*arguments, **options), components=components)

    whole = of(["database", "uploads", "config", "deployment"], 3 * DAY, size=5000, proven=9 * DAY)
    hourly = [of(["database"], age * HOUR, proven=HOUR) for age in (3, 2, 1)]
    host = judged(info(whole, *hourly))
    assert (host["state"], host["last"]["id"], host["last"]["size"]) == ("bad", whole["id"], "4.9 KiB")
    assert texts(host) == [
        "The last backup of config and uploads was made 3 days ago.",
        "The last restore drill that passed was 9 days ago.",
    ]
    # A set of the other layout has what its one archive has; parts may come one by one.
    assert texts(judged(info(whole, of(["database", "data"], 2 * HOUR, proven=HOUR), *hourly))) == []
    parts = [of([part], HOUR, proven=HOUR) for part in ("uploads", "config")]
    assert texts(judged(info(whole, *(parts + hourly)))) == []
    assert texts(judged(info(dict(whole, proven=False), *(parts[:1] + hourly)))) == [
        "The last backup of config was made 3 days ago.",
        "No backup has been proven by a restore drill.",
    ]
    small = of(["database", "uploads", "config"], 4 * HOUR, uploads=0, proven=HOUR)
    whole["holds"]["uploads"] = 10**6
    (text,) = texts(judged(info(whole, small, *(dict(item, holds={"public.users": 40}) for item in hourly))))
    assert text.startswith("The last backup holds much less than before (uploads: 0 bytes,")
    # Who backs up nothing but the database has all of it.
    assert texts(judged(info(*hourly))) == []


def test_a_failed_drill_and_a_failed_run_need_a_person():
    told = info(backup(2 * DAY, proven=DAY), backup(HOUR))
    told["backup_sets"][-1].update(drill=dict(time=at(60), passed=False, rto_seconds=None))
    told["runs"] = dict(backup=dict(last=dict(outcome="failure"), finished=dict(failure=NOW - 60, success=NOW - HOUR)))
    host = judged(told)
    assert host["state"] == "bad"
    assert texts(host) == [
        "The last run of backup failed, 2026-11-24 11:59 UTC.",
        "The restore drill of backup_2026-11-24_11-00-00 failed.",
    ]


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(state="exited", health=None), "The container echo-app is exited."),
        (dict(health="unhealthy"), "The container echo-app is unhealthy."),
    ],
)
def test_an_app_that_does_not_serve(change, text):
    told = copy.deepcopy(WELL)
    told["stack"]["containers"]["app"].update(change)
    assert (judged(told)["state"], texts(judged(told))) == ("bad", [text])


def test_a_set_that_cannot_be_used_is_told_of_and_counts_for_nothing():
    told = copy.deepcopy(WELL)
    told["backup_sets"].append(dict(backup(60), complete=False, problem="It is torn."))
    host = judged(told)
    assert (host["sets"], host["last"]["ago"]) == (2, "1 hour ago")
    assert texts(host) == ["backup_2026-11-24_11-59-00 can't be used: It is torn."]


def test_sets_of_another_project_in_the_same_folder_do_not_count():
    told = info(backup(HOUR, proven=HOUR), dict(backup(60), project="other"))
    assert (judged(told)["sets"], judged(told)["last"]["ago"]) == (1, "1 hour ago")


def test_who_needs_a_person_comes_first():
    answers = [
        dict(name="well", error=None, info=WELL),
        dict(name="unproven", error=None, info=info(backup(HOUR))),
        dict(name="b-gone", error="The host could not be reached.", info=None),
        dict(name="a-empty", error=None, info=info()),
    ]
    found = fleet.assess(answers, NOW, 26 * HOUR, 8 * DAY, 0.5)
    assert [host["name"] for host in found["hosts"]] == ["a-empty", "b-gone", "unproven", "well"]
    assert found["counts"] == dict(bad=2, warn=1, good=1)
    assert found["lines"][-1] == "Need a person: 2. Need a look: 1. Are well: 1."
    assert [line.split()[:2] for line in found["lines"] if line.startswith(("BAD", "warn", "ok"))] == [
        ["BAD", "a-empty"],
        ["BAD", "b-gone"],
        ["warn", "unproven"],
        ["ok", "well"],
    ]


def test_the_plot_goes_from_left_to_right_and_up_from_zero():
    host = judged(info(backup(2 * DAY, size=500), backup(DAY, size=1000), backup(HOUR, size=750, proven=HOUR)))
    points = [tuple(map(float, point.split(","))) for point in host["plot"].split()]
    assert [y for unused, y in points] == [16.0, 0.0, 8.0]
    assert points[0][0] == 0.0 and points[-1][0] == 160.0 and points[0][0] < points[1][0] < points[2][0]
    assert judged(info(backup(HOUR)))["plot"] == ""


@pytest.mark.parametrize(
    "seconds, said", [(5, "just now"), (60, "1 minute ago"), (7200, "2 hours ago"), (10 * DAY, "10 days ago")]
)
def test_ages(seconds, said):
    assert fleet.ago(seconds) == said
