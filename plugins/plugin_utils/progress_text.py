# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress in words: per cent, rate and remaining time, in as many columns as there are."""

from __future__ import annotations

import collections
import json
import re

from ansible_collections.echo_music.ops.plugins.module_utils.set_files import human

# A rate is that of the last half minute: a disk's cache or a link's good moment don't last.
WINDOW = 30
# Who lives writes twice a second, or as often as a server answers.
DEAD_AFTER = 15
GAP = "   "
ALMOST = 99
UNPRINTABLE = re.compile(r"[^ -~]")
# Which parts give way first where there is little room.
GIVES_WAY = ("size", "rate", "left", "percent", "elapsed")


def parse(text):
    """Return the phases that files of a host tell of, ``{(module, label): phase}``; what is no such file is nothing.

    The host need not be right: what is not as it should be is left out, and names are made printable.
    """
    found = {}
    for told in text.splitlines():
        try:
            told = json.loads(told)
            module, phases = str(told["id"]), [_phase(item) for item in told["phases"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        found.update(((module, phase["label"]), phase) for phase in phases)
    return found


def _phase(item):
    numbers = dict((key, item[key]) for key in ("done", "total", "seconds"))
    if not isinstance(numbers["seconds"], (int, float)):
        raise TypeError("seconds")
    for value in numbers.values():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e18):
            raise ValueError(value)
    return dict(numbers, label=UNPRINTABLE.sub("?", item["label"]))


class Pace:
    """How fast one phase goes."""

    def __init__(self):
        self._samples = collections.deque()
        self._seen = None

    def rate(self, phase, now):
        """Take a phase's figures into account; return bytes per second, None while that can't be told."""
        seconds, done = phase["seconds"], phase["done"] or 0
        if not self._samples or self._samples[-1][0] != seconds:
            self._seen = now
        if self._samples and (seconds < self._samples[-1][0] or done < self._samples[-1][1]):
            # It began anew.
            self._samples.clear()
        if not self._samples:
            self._samples.append((0.0, 0))
        self._samples.append((seconds, done))
        while len(self._samples) > 2 and self._samples[1][0] <= seconds - WINDOW:
            self._samples.popleft()
        passed, gone = seconds - self._samples[0][0], done - self._samples[0][1]
        return gone / passed if passed > 0 and gone > 0 else None

    def is_dead(self, phase, now):
        """Tell whether nothing was written for longer than a module that lives is silent."""
        return bool(self._samples) and self._samples[-1][0] == phase["seconds"] and now - self._seen > DEAD_AFTER


def line(phase, rate, width, host=None):
    """Return one line about a phase, of at most ``width`` columns."""
    parts = dict(percent=None, size=None, rate=None, left=None, elapsed=None)
    done, total = phase["done"], phase["total"]
    if done is None:
        parts["elapsed"] = duration(phase["seconds"])
    else:
        parts["size"] = _size(done, total)
        parts["rate"] = "%s/s" % human(rate) if rate else None
        if total:
            # The total is often an estimate, and what is complete isn't shown any more.
            parts["percent"] = "%d %%" % min(ALMOST, done * 100 // total)
            parts["left"] = "%s left" % duration((total - done) / rate) if rate and done < total else None
    return _fitted("  %s" % ("%s: " % host if host else "") + phase["label"], parts, width)


def duration(seconds):
    """Return seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return "%d:%02d:%02d" % (hours, minutes, seconds) if hours else "%d:%02d" % (minutes, seconds)


def _size(done, total):
    if not total:
        return human(done)
    done, total = human(min(done, total)), human(total)
    number, unused, unit = done.partition(" ")
    return "%s of %s" % (number if total.endswith(" " + unit) else done, total)


def _fitted(label, parts, width):
    """Put a line together: parts give way, and at last the label is cut."""
    kept = dict((name, part) for name, part in parts.items() if part)
    for name in GIVES_WAY:
        text = GAP.join([label] + list(kept.values()))
        if len(text) <= width:
            return text
        kept.pop(name, None)
    return label if len(label) <= width else label[: max(0, width - 1)] + "~"
