# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus is told of the backups of a root, by node_exporter's textfile collector.

The sets themselves say when the last one was made, so a lost disk shows as an age that grows.
Only runs that failed are told by :mod:`outcomes`. Every update writes all metrics anew, from
both; so a run that fails changes what is told of failures and nothing else.
"""

from __future__ import annotations

import calendar
import collections
import contextlib
import os
import re
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.outcomes import (
    FOLDER,
    OUTCOMES,
    name_of,
    read_outcomes,
    record,
    with_outcome,
)
from ansible_collections.echo_music.ops.plugins.module_utils.proof import DRILL, read_proofs
from ansible_collections.echo_music.ops.plugins.module_utils.retention import last_of_all, whole_data
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import MANIFEST, explained, free_bytes, sync_folder
from ansible_collections.echo_music.ops.plugins.module_utils.set_list import list_sets
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import read_manifest
from ansible_collections.echo_music.ops.plugins.module_utils.shrink import least_share

TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(?:Z|([+-])(\d\d):(\d\d))\Z")

Family = collections.namedtuple("Family", "name kind help samples")


def update(root, textfiles="", operation=None, outcome=None, seconds=None, alarms=0, check=False, state=FOLDER):
    """Record how an operation ended, if one is named, and write the metrics; return the module's result.

    Nothing is written where the folder ``textfiles`` doesn't exist: there is no collector then.
    """
    now = time.time()
    if operation and check:
        outcomes = with_outcome(read_outcomes(root, state), operation, outcome, now, seconds, alarms)
    elif operation:
        outcomes = record(root, operation, outcome, now, seconds, alarms, state)
    else:
        outcomes = read_outcomes(root, state)
    found, warnings = families(root, outcomes, now)
    path = os.path.join(textfiles, "echo_%s.prom" % name_of(root)) if textfiles and os.path.isdir(textfiles) else None
    changed = bool(operation)
    if path:
        changed = True
        if not check:
            publish(path, render(found))
    metrics = dict((family.name, _values(family)) for family in found)
    return dict(changed=changed, file=path, metrics=metrics, warnings=warnings)


# -- text -------------------------------------------------------------------------------------


def render(found):
    """Return the families in Prometheus' text format; a family without samples is left out."""
    lines = []
    for family in found:
        if family.samples:
            lines.append("# HELP %s %s" % (family.name, family.help.replace("\\", "\\\\").replace("\n", "\\n")))
            lines.append("# TYPE %s %s" % (family.name, family.kind))
            lines += ["%s%s %s" % (family.name, _labels(labels), _number(value)) for labels, value in family.samples]
    return "\n".join(lines) + "\n"


def _labels(labels):
    def quoted(value):
        return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')

    return "{%s}" % ",".join('%s="%s"' % (name, quoted(value)) for name, value in labels.items()) if labels else ""


def _number(value):
    """Whole numbers as such; a float so that it is read as the same one again."""
    return repr(int(value)) if float(value).is_integer() else repr(float(value))


def publish(path, text):
    """Replace the file at once, readable by the collector, which is another user."""
    # The collector reads *.prom only, so it never meets half a file.
    fresh = path + ".new"
    with explained("write", path):
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as target:
                target.write(text.encode("utf-8", "replace"))
                target.flush()
                os.fchmod(descriptor, 0o644)
                os.fsync(descriptor)
            os.replace(fresh, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
        sync_folder(os.path.dirname(path))


# -- what is told -----------------------------------------------------------------------------


def families(root, outcomes, now):
    """Return all families, from the sets in the root and from the outcomes, and warnings.

    A disk that can't be read is a reason why a backup failed, so it doesn't keep that from being told.
    """
    base, warnings = dict(root=root), []
    written = Family("echo_metrics_timestamp_seconds", "gauge", "When these metrics were written.", [(base, now)])
    try:
        of_sets = _of_sets(base, root)
    except EchoError as error:
        of_sets = []
        warnings.append("The metrics tell nothing of the sets in %s. %s" % (root, error))
    return _of_runs(base, outcomes) + of_sets + [written], warnings


def _of_runs(base, outcomes):
    def each(value_of):
        samples = [(dict(base, operation=name), value_of(entry)) for name, entry in sorted(outcomes.items())]
        return [(labels, value) for labels, value in samples if value is not None]

    runs = [
        (dict(base, operation=name, outcome=outcome), entry["runs"].get(outcome, 0))
        for name, entry in sorted(outcomes.items())
        for outcome in OUTCOMES
    ]
    return [
        Family("echo_runs_total", "counter", "Runs of an operation, by outcome.", runs),
        Family(
            "echo_last_run_success",
            "gauge",
            "Whether the last run of an operation went well.",
            each(lambda entry: int(entry["last"]["outcome"] == "success")),
        ),
        Family(
            "echo_last_run_timestamp_seconds",
            "gauge",
            "When the last run of an operation ended, whether well or not.",
            each(lambda entry: max(entry["finished"].values())),
        ),
        Family(
            "echo_last_success_timestamp_seconds",
            "gauge",
            "When an operation last went well.",
            each(lambda entry: entry["finished"].get("success")),
        ),
        Family(
            "echo_last_run_duration_seconds",
            "gauge",
            "How long the last run of an operation took.",
            each(lambda entry: entry["last"]["seconds"]),
        ),
        Family(
            "echo_last_run_alarms",
            "gauge",
            "What the last run of an operation wants a person to look at.",
            each(lambda entry: entry["last"]["alarms"]),
        ),
    ]


def _of_sets(base, root):
    complete = [item for item in list_sets(root) if item["complete"] and item["origin"] == "collection"]
    projects = _by_project(base, complete)
    newest = read_manifest(os.path.join(complete[-1]["path"], MANIFEST)) if complete else None
    rivals = [dict(item, good=True) for item in complete if item["project"] == newest["project"]]
    drills = [
        proof for item in complete for proof in read_proofs(item["path"]) if proof["level"] == DRILL and proof["passed"]
    ]
    drill = max(drills, key=lambda proof: _epoch(proof.get("finished")) or 0) if drills else {}

    def one(value):
        return [] if value is None else [(base, value)]

    def moments(chosen):
        """Return up to which moment each project has sets of all of its data; of all sets, or those that are proven."""
        last = [(labels, last_of_all(chosen(sets), whole_data(sets))) for labels, sets in projects]
        told = [(labels, _epoch(item["time"])) for labels, item in last if item]
        return [(labels, moment) for labels, moment in told if moment is not None]

    def parts(key):
        artifacts = newest["artifacts"] if newest else []
        return [
            (dict(base, component=artifact["component"], file=artifact["file"]), artifact[key])
            for artifact in artifacts
            if artifact.get(key) is not None
        ]

    return [
        Family("echo_backup_sets", "gauge", "Complete sets on disk.", one(len(complete))),
        Family(
            "echo_backup_set_timestamp_seconds",
            "gauge",
            "The moment that the newest complete set shows; of parts that sets have by themselves, the oldest.",
            moments(lambda sets: sets),
        ),
        Family(
            "echo_backup_set_bytes",
            "gauge",
            "Size of the newest complete set.",
            one(complete[-1]["bytes"] if complete else None),
        ),
        Family(
            "echo_backup_set_duration_seconds",
            "gauge",
            "How long the newest complete set took.",
            one(_duration(newest["times"]) if newest else None),
        ),
        Family(
            "echo_backup_set_least_share",
            "gauge",
            "The least share that the newest complete set holds of a table or a part, of what the ones before held.",
            one(least_share(rivals)),
        ),
        Family("echo_backup_part_bytes", "gauge", "Size of a file of the newest complete set.", parts("bytes_out")),
        Family(
            "echo_backup_part_read_bytes",
            "gauge",
            "What was read for a file of the newest complete set.",
            parts("bytes_in"),
        ),
        Family(
            "echo_backup_part_duration_seconds",
            "gauge",
            "How long a file of the newest complete set took.",
            parts("seconds"),
        ),
        Family(
            "echo_backup_proven_timestamp_seconds",
            "gauge",
            "The moment that the newest proven set shows; of parts that sets have by themselves, the oldest.",
            moments(lambda sets: [item for item in sets if item["proven"]]),
        ),
        Family(
            "echo_backup_drill_timestamp_seconds",
            "gauge",
            "When a restore drill last went well.",
            one(_epoch(drill.get("finished"))),
        ),
        Family(
            "echo_backup_restore_duration_seconds",
            "gauge",
            "How long the restore took in the last drill that went well: the recovery time to expect.",
            one(drill.get("rto_seconds")),
        ),
        Family(
            "echo_backup_root_free_bytes",
            "gauge",
            "What may still be written beside the sets.",
            one(_free(root)),
        ),
    ]


def _by_project(base, complete):
    """Return ``[(labels, sets)]`` of each project; its name is a label only where a root has several."""
    found = {}
    for item in complete:
        found.setdefault(item["project"], []).append(item)
    return [(dict(base, project=name or "") if len(found) > 1 else base, sets) for name, sets in found.items()]


def _free(root):
    with contextlib.suppress(EchoError, OSError):
        return free_bytes(root)


def _duration(times):
    started, finished = _epoch(times["started"]), _epoch(times["finished"])
    return None if started is None or finished is None else round(finished - started, 6)


def _epoch(text):
    """Return a manifest's time in seconds since 1970, None for what is none."""
    match = TIME.match(text) if isinstance(text, str) else None
    if not match:
        return None
    try:
        seconds = calendar.timegm(time.strptime(match.group(1), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
    if match.group(3):
        offset = int(match.group(4)) * 3600 + int(match.group(5)) * 60
        seconds += -offset if match.group(3) == "+" else offset
    return seconds + float(match.group(2) or 0)


def _values(family):
    return [dict(labels=dict(labels), value=value) for labels, value in family.samples]
