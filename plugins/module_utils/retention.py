# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets to keep, and why: a pure function of their times, the rules and the clock.

The rules are those of restic's ``forget``, in UTC. Beyond them:

- the newest good set, the newest proven one and every pinned one stay, whatever the rules say;
- a set that is not good, or that shrank, evicts nothing: only good sets fill the slots of a
  rule. Such a set is kept while a rule would have kept it among its like, and as long as that
  rule still has a slot for a good one of that age; so they neither pile up nor stay for ever;
- a set is evicted only by sets of the same project that have all of its components.
"""

from __future__ import annotations

import datetime
import re

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError

COUNTED = {
    "keep_last": None,
    "keep_hourly": "%Y-%m-%d %H:00",
    "keep_daily": "%Y-%m-%d",
    "keep_weekly": "%G-W%V",
    "keep_monthly": "%Y-%m",
    "keep_yearly": "%Y",
}
WITHIN = "keep_within"
ALL = -1
DURATION = re.compile(r"(\d{1,4}[ymdh]){1,4}\Z")
GOOD, SHRUNK, BAD = "good", "shrunk", "bad"
UNCOUNTED = {SHRUNK: "it shrank, so it fills no slot", BAD: "it is not good, so it fills no slot"}

# The data of both layouts; what a set holds beside it doesn't decide what may replace it.
DATA = {"database": {"database"}, "uploads": {"uploads"}, "config": {"config"}, "data": {"uploads", "config"}}
# Kept when a database can't be dumped any more; nothing else replaces it.
DATA["postgres-data"] = {"postgres-data"}
NOTHING = (None, frozenset())


def plan(sets, rules, now):
    """Return the sets, newest first, as ``[{"id", "keep", "reasons"}]``.

    ``sets`` are ``{"id", "time", "good", "proven", "pinned", "shrunk"}`` with the time in
    seconds since the epoch, and may have ``project`` and ``components``; ``rules`` map
    ``keep_last``, ``keep_hourly`` … ``keep_yearly`` to a number of sets (-1: all) and
    ``keep_within`` to a duration as in ``1y2m3d4h``; none, or only zeros, keep everything.
    ``now`` only tells which sets are from the future: as with restic, a duration is counted
    back from the newest set, so a host whose backups stopped loses none.
    """
    rules = checked_rules(rules)
    newest_first = sorted(sets, key=lambda item: (item["time"], item["id"]), reverse=True)
    if not rules:
        return [dict(id=item["id"], keep=True, reasons=["there are no rules"]) for item in newest_first]
    decided = {}
    for group in dict.fromkeys(_group(item) for item in newest_first):
        rivals = [item for item in newest_first if _covers(_group(item), group)]
        kept = _kept(rivals, rules, now)
        decided.update((item["id"], kept[item["id"]]) for item in rivals if _group(item) == group)
    return [_decision(item, decided[item["id"]]) for item in newest_first]


def checked_rules(rules):
    """Return the rules that ask for something, their numbers as numbers; a wrong one is a ``SetError``."""
    if not isinstance(rules, dict):
        raise SetError("The retention %.80r is not a mapping of rules." % (rules,), _rules_remedy())
    checked = {}
    for name, value in rules.items():
        if name == WITHIN:
            if value in (None, "", 0):
                continue
            if not isinstance(value, str) or not DURATION.match(value):
                raise SetError("%s is %.80r, which is not a duration." % (name, value), _rules_remedy())
            if any(_duration(value).values()):
                checked[name] = value
        elif name in COUNTED:
            number = _number(name, value)
            if number:
                checked[name] = number
        else:
            raise SetError("There is no retention rule %.80s." % (name,), _rules_remedy())
    return checked


def whole_data(sets):
    """Return the data of the newest set that holds the most, of sets of one project, oldest first."""
    return max((data_of(item) for item in reversed(sets)), key=len, default=frozenset())


def last_of_all(sets, data):
    """Return up to which set all of the data is backed up: of the newest with each part of it the oldest; or None.

    So copies of the database alone, made every hour, don't hide that those of the rest have stopped.
    """
    newest = [max((n for n, item in enumerate(sets) if part in data_of(item)), default=-1) for part in data]
    last = min(newest, default=len(sets) - 1)
    return None if last < 0 else sets[last]


def data_of(item):
    """Return what data a set holds, by the names of the classic layout."""
    return frozenset().union(*(DATA.get(component, ()) for component in item.get("components") or ()))


# -- one group ---------------------------------------------------------------------------------


def _kept(rivals, rules, now):
    """Return why each of the sets is kept: ``{id: [reason]}``."""
    kinds = {kind: [item for item in rivals if _kind(item) == kind] for kind in (GOOD, SHRUNK, BAD)}
    slots = {kind: _rules_for(members, rules, now) for kind, members in kinds.items()}
    reasons = {}
    for item in rivals:
        kind = _kind(item)
        reasons[item["id"]] = _protection(item, rivals)
        for own, good in zip(slots[kind], slots[GOOD]):
            # Asked in any case: a slot of its like is filled whether or not that helps this set.
            reason = own.take(item)
            if reason and (kind == GOOD or good.is_open(item)):
                reasons[item["id"]].append(reason if kind == GOOD else "%s among its like" % reason)
    return reasons


def _protection(item, rivals):
    """Why a set stays that no rule keeps."""
    reasons = ["pinned"] if item["pinned"] else []
    good = [rival for rival in rivals if rival["good"]]
    proven = [rival for rival in good if rival["proven"]]
    for name, candidates in (("newest good set", good), ("newest proven set", proven)):
        unshrunk = [rival for rival in candidates if not rival["shrunk"]]
        if candidates and item is candidates[0]:
            reasons.append(name)
        elif unshrunk and item is unshrunk[0]:
            reasons.append("%s that did not shrink" % name)
    return reasons


def _decision(item, reasons):
    kind = _kind(item)
    if not reasons:
        uncounted = [UNCOUNTED[kind]] if kind in UNCOUNTED else []
        return dict(id=item["id"], keep=False, reasons=["no rule keeps it"] + uncounted)
    return dict(id=item["id"], keep=True, reasons=reasons)


def _kind(item):
    if not item["good"]:
        return BAD
    return SHRUNK if item["shrunk"] else GOOD


def _group(item):
    """What a rival must have to evict the set: ``(project, data)``."""
    return item.get("project"), data_of(item)


def _covers(rival, group):
    # What tells neither its project nor its data ages with all the others.
    return group == NOTHING or (rival[0] == group[0] and rival[1] >= group[1])


# -- rules -------------------------------------------------------------------------------------


def _rules_for(members, rules, now):
    """Return the rules as judges of one kind of sets, in the same order for every kind."""
    judges = [_Slots(name, rules[name], members) for name in COUNTED if name in rules]
    return judges + ([_Within(rules[WITHIN], members, now)] if WITHIN in rules else [])


class _Slots:
    """A number of slots, each for the newest set of an hour, a day, …"""

    def __init__(self, name, number, members):
        self._name = name
        self._number = number
        self._filled = 0
        self._period = None
        self._oldest = members[-1] if members else None

    def is_open(self, unused_item):
        """Tell whether a slot is left."""
        return self._number == ALL or self._filled < self._number

    def take(self, item):
        """Let a set have a slot if there is one for it; return the reason, or None."""
        period = _period(self._name, item)
        if not self.is_open(item) or (period == self._period and item is not self._oldest):
            return None
        # As long as slots are left, the oldest set has one: it makes the history longest.
        for_age = period == self._period
        self._period = period
        self._filled += 1
        place = "%d of %s" % (self._filled, "all" if self._number == ALL else self._number)
        shown = "" if self._name == "keep_last" else ", %s" % ("the oldest" if for_age else period)
        return "%s: %s%s" % (self._name, place, shown)


class _Within:
    """All sets of a time before the newest."""

    def __init__(self, duration, members, now):
        self._duration = duration
        self._since = _since([item["time"] for item in members if item["time"] <= now], duration)

    def is_open(self, item):
        """Tell whether a set of that age would be kept."""
        return self._since is None or item["time"] > self._since

    def take(self, item):
        """Return the reason why a set is kept, or None."""
        return "%s: within %s of the newest" % (WITHIN, self._duration) if self.is_open(item) else None


def _period(name, item):
    # Each set is a period of its own for keep_last.
    return _utc(item["time"]).strftime(COUNTED[name]) if COUNTED[name] else (item["time"], item["id"])


def _since(times, duration):
    """Return the moment that lies a duration before the newest time; None if there is no time."""
    if not times:
        return None
    back = _duration(duration)
    newest = _utc(max(times))
    months = newest.year * 12 + newest.month - 1 - back["y"] * 12 - back["m"]
    if months < 12:
        return float("-inf")
    # A day that the month doesn't have runs over into the next one, as in Go, and so in restic.
    first = newest.replace(year=months // 12, month=months % 12 + 1, day=1)
    try:
        return (first + datetime.timedelta(days=newest.day - 1 - back["d"], hours=-back["h"])).timestamp()
    except OverflowError:
        return float("-inf")


def _duration(text):
    amounts = dict.fromkeys("ymdh", 0)
    for number, unit in re.findall(r"(\d+)([ymdh])", text):
        amounts[unit] = int(number)
    return amounts


def _utc(moment):
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)


def _number(name, value):
    """Return a rule's number; templates may hand it over as text."""
    if value is None:
        return 0
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or number < ALL:
        raise SetError("%s is %.80r, which is not a number of sets." % (name, value), _rules_remedy())
    return number


def _rules_remedy():
    return "The rules are %s (a number of sets, -1 for all) and %s (such as 30d or 1y6m)." % (
        ", ".join(COUNTED),
        WITHIN,
    )
