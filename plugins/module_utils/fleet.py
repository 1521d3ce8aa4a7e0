# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What many hosts tell of themselves, judged: who needs a person first, and why. Pure."""

from __future__ import annotations

import calendar
import time

from ansible_collections.echo_music.ops.plugins.module_utils.retention import last_of_all, whole_data
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import human
from ansible_collections.echo_music.ops.plugins.module_utils.shrink import find_shrunk

BAD, WARN, GOOD = "bad", "warn", "good"
ORDER = (BAD, WARN, GOOD)
DAY = 24 * 60 * 60
GROWTH_DAYS = 30
SETS_THAT_MUST_FIT = 2
PLOT = (160, 32)
# Clocks differ by a little; what is later than that tells nothing of its age.
SKEW = 60 * 60


def assess(answers, now, max_age, max_proven_age, shrink_alarm):
    """Return the fleet at a glance.

    ``answers`` is a list of ``{"name", "error", "info"}``: what went wrong, or what ``echo_info``
    returned with ``sizes``, ``database`` and ``backup_sets``. Ages are in seconds; ``shrink_alarm``
    is the share of its rows or bytes that a set may hold less than those before it, 0 for any.

    Returns ``{"time", "hosts", "counts", "lines"}``; hosts come with those first that need a person,
    each with its ``state`` (``bad``, ``warn``, ``good``), its ``problems`` (``[{"state", "text"}]``) and
    the sizes of its sets as the points of an SVG polyline, ``plot``. ``lines`` is the text for a terminal.
    """
    limits = dict(max_age=max_age, max_proven_age=max_proven_age, shrink_alarm=shrink_alarm)
    hosts = [_host(answer, now, limits) for answer in answers]
    hosts.sort(key=lambda host: (ORDER.index(host["state"]), host["name"]))
    counts = dict((state, sum(host["state"] == state for host in hosts)) for state in ORDER)
    return dict(time=now, hosts=hosts, counts=counts, lines=_lines(hosts, counts))


def _lines(hosts, counts):
    row = "%-5s %-24s %-8s %-12s %-14s %-14s %10s"
    said = [row % ("", "host", "layout", "version", "last backup", "last proven", "size")]
    for host in hosts:
        last = host["last"]
        said.append(
            row
            % (
                {BAD: "BAD", WARN: "warn", GOOD: "ok"}[host["state"]],
                host["name"],
                host["layout"] or "-",
                host["version"] or "-",
                last["ago"] if last else "never",
                host["proven"]["ago"] if host["proven"] else "never",
                last["size"] if last else "-",
            )
        )
        said += ["      %s" % problem["text"] for problem in host["problems"]]
    return said + ["Need a person: %d. Need a look: %d. Are well: %d." % (counts[BAD], counts[WARN], counts[GOOD])]


def ago(seconds):
    """Return an age as people say it."""
    if seconds < -SKEW:
        return "in the future"
    for size, unit in ((DAY, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return "%d %s%s ago" % (count, unit, "" if count == 1 else "s")
    return "just now"


def epoch(text):
    """Return the seconds since 1970 of a time in UTC as manifests and proofs write it."""
    return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))


def _host(answer, now, limits):
    info = answer["info"] or {}
    stack = info.get("stack") or {}
    sets = [item for item in info.get("backup_sets") or [] if _is_of(item, stack.get("project"))]
    complete = [dict(item, epoch=epoch(item["time"])) for item in sets if item["complete"] and item["time"]]
    complete.sort(key=lambda item: item["epoch"])
    host = dict(
        name=answer["name"],
        layout=stack.get("layout"),
        version=_version(stack),
        database=(stack.get("database") or {}).get("server_version"),
        last=_last(complete, now),
        proven=_proven(complete, now),
        sets=len(complete),
        plot=_polyline([(item["epoch"], item["bytes"]) for item in complete]),
        volumes=_volumes(stack, complete, now),
        space=info.get("backup_space"),
    )
    host["problems"] = _problems(host, answer, stack, sets, complete, info.get("runs") or {}, now, limits)
    states = [problem["state"] for problem in host["problems"]]
    host["state"] = min(states, key=ORDER.index) if states else GOOD
    return host


def _polyline(points):
    """Return ``(time, value)`` pairs as points in a box of ``PLOT``, from zero up; empty for fewer than two."""
    if len(points) < 2:
        return ""
    width, height = PLOT
    start, end = points[0][0], points[-1][0]
    top = max(value for unused, value in points) or 1
    across = float(end - start) or 1.0
    return " ".join(
        "%.1f,%.1f" % ((moment - start) / across * width, height - value / float(top) * height)
        for moment, value in points
    )


def _is_of(item, project):
    return not item.get("project") or not project or item["project"] == project


def _version(stack):
    image = ((stack.get("containers") or {}).get("app") or {}).get("image") or ""
    name, unused, tag = image.rpartition("/")[2].partition(":")
    return tag or name or None


def _last(complete, now):
    if not complete:
        return None
    data = whole_data(complete)
    last = last_of_all(complete, data)
    lacking = [] if last is complete[-1] else sorted(part for part in data if last_of_all(complete, {part}) is last)
    age = now - last["epoch"]
    size = last["bytes"]
    return dict(id=last["id"], time=last["epoch"], age=age, ago=ago(age), bytes=size, size=human(size), lacking=lacking)


def _proven(complete, now):
    proven = [item for item in complete if item.get("proven") and item.get("drill") and item["drill"]["time"]]
    last = last_of_all(proven, whole_data(complete))
    if not last:
        return None
    age = now - epoch(last["drill"]["time"])
    return dict(id=last["id"], age=age, ago=ago(age), rto_seconds=last["drill"]["rto_seconds"])


def _volumes(stack, complete, now):
    since = [item for item in complete if item["epoch"] >= now - GROWTH_DAYS * DAY]
    found = []
    # What a database grows by is its data, not the server's files around it.
    volumes = [volume for volume in stack.get("volumes") or [] if volume["role"] != "database"]
    sizes = [(volume["role"], volume.get("bytes")) for volume in volumes]
    sizes.append(("database", (stack.get("database") or {}).get("bytes")))
    for role, size in sizes:
        if size is not None:
            growth = _growth(role, size, since, now)
            told = None if growth is None else "%s a day" % human(growth)
            found.append(dict(role=role, bytes=size, size=human(size), growth=growth, growing=told))
    return found


def _growth(role, size, since, now):
    """Return bytes a day since the oldest set of the last month, or None where a day hasn't passed."""
    for item in since:
        if role in item.get("parts", {}) and now - item["epoch"] >= DAY:
            return int((size - item["parts"][role]) / ((now - item["epoch"]) / float(DAY)))
    return None


def _lost(complete, last, alarm):
    """Return what the newest set lost, or the newest with all of the data, in words."""
    sets = [
        dict(id=item["id"], good=True, accepted=item.get("accepted", False), holds=item["holds"])
        for item in complete
        if "holds" in item
    ]
    lost = find_shrunk(sets, alarm)
    return lost.get(complete[-1]["id"], lost.get(last["id"])) if complete else None


def _problems(host, answer, stack, sets, complete, runs, now, limits):
    if answer["error"]:
        return [dict(state=BAD, text=answer["error"])]
    found = []

    def say(state, text, *values):
        found.append(dict(state=state, text=text % values))

    for role, container in sorted((stack.get("containers") or {}).items()):
        if container["state"] != "running":
            say(BAD, "The container %s is %s.", container["name"], container["state"])
        elif container.get("health") == "unhealthy":
            say(BAD, "The container %s is unhealthy.", container["name"])
    if (stack.get("database") or {}).get("error"):
        say(BAD, "The database can't be asked: %s", stack["database"]["error"])
    if not host["last"]:
        say(BAD, "There is no complete backup.")
    elif host["last"]["age"] > limits["max_age"]:
        of = " of " + " and ".join(host["last"]["lacking"]) if host["last"]["lacking"] else ""
        say(BAD, "The last backup%s was made %s.", of, host["last"]["ago"])
    if complete and complete[-1]["epoch"] - now > SKEW:
        say(BAD, "The last backup, %s, is from the future. Is the host's clock right?", complete[-1]["id"])
    if host["proven"] and host["proven"]["age"] < -SKEW:
        say(BAD, "The last restore drill, of %s, is from the future. Is the host's clock right?", host["proven"]["id"])
    for operation, entry in sorted(runs.items()):
        if entry["last"]["outcome"] == "failure":
            moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(entry["finished"]["failure"]))
            say(BAD, "The last run of %s failed, %s.", operation, moment)
    drilled = [item for item in complete if item.get("drill")]
    if drilled and not drilled[-1]["drill"]["passed"]:
        say(BAD, "The restore drill of %s failed.", drilled[-1]["id"])
    if host["last"] and not host["proven"]:
        say(WARN, "No backup has been proven by a restore drill.")
    elif host["proven"] and host["proven"]["age"] > limits["max_proven_age"]:
        say(WARN, "The last restore drill that passed was %s.", host["proven"]["ago"])
    lost = _lost(complete, host["last"], limits["shrink_alarm"])
    if lost:
        say(WARN, "The last backup holds much less than before (%s).", "; ".join(lost))
    for item in sets:
        if not item["complete"]:
            say(WARN, "%s can't be used: %s", item["id"], item["problem"])
    if host["space"] and host["last"] and host["space"]["free"] < SETS_THAT_MUST_FIT * host["last"]["bytes"]:
        say(WARN, "Only %s are free where backups are kept.", human(host["space"]["free"]))
    return sorted(found, key=lambda problem: ORDER.index(problem["state"]))
