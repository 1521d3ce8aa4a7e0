# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a migration did, and what one would do, for machines and for people. All of it pure."""

from __future__ import annotations

import html

from ansible_collections.echo_music.ops.plugins.module_utils.set_files import human, timestamp

FORMAT = "echo-migration-report/1"
NAMES = {
    "preparing": "copied and rehearsed while the old host served",
    "down": "nobody served",
    "ending": "marked and cleaned",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } th, td { text-align: left; padding: .25rem .75rem .25rem 0 }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd } .n { text-align: right } .bad { color: #b00020 }
"""


def report(facts):
    """Return the report of one pair; ``facts`` are what the role knows when it is over, each None if it came not so far.

    Keys: ``new old way failure old_serves plan source target offsets precopied copied dump live``.
    """
    source, target = facts["source"] or {}, facts["target"] or {}
    times = _times(source, facts["offsets"][0])
    times.update(("new " + name, value) for name, value in _times(target, facts["offsets"][1]).items())
    live = facts["live"] or {}
    served = live["healthy_at"] - facts["offsets"][1] if "healthy_at" in live else None
    if facts["old_serves"] and "fencing" in times:
        served = times["released"]
    copied = [dict(part, when="before") for part in (facts["precopied"] or {}).get("parts", [])]
    copied += [dict(part, when="down") for part in (facts["copied"] or {}).get("parts", [])] if "fencing" in times else []
    tables = {}
    if facts["dump"]:
        tables = dict(
            (name, dict(before=rows, after=live.get("tables", {}).get(name)))
            for name, rows in sorted(facts["dump"]["tables"].items())
        )
    return dict(
        format=FORMAT,
        id=source.get("id"),
        old=facts["old"],
        new=facts["new"],
        result="migrated" if facts["failure"] is None else "failed",
        failure=facts["failure"],
        old_serves=facts["old_serves"],
        way=facts["way"],
        started=timestamp(times["serving"]) if "serving" in times else None,
        seconds=_between(times.get("serving"), max(times.values()) if times else None),
        downtime=_between(times.get("fencing"), served),
        predicted=dict((key, facts["plan"].get(key)) for key in ("bytes", "seconds", "downtime")),
        phases=_phases(times, served),
        copies=copied,
        bytes=sum(part["bytes"] for part in copied),
        tables=tables,
    )


def page(told):
    """Return the report of a pair as a page."""
    rows = [
        ("Result", told["result"] if not told["failure"] else "failed: %s" % told["failure"]),
        ("Old host", "serves as before" if told["old_serves"] else "stopped and complete" if not told["failure"] else "see above"),
        ("Started", told["started"] or ""),
        ("Took", _seconds(told["seconds"])),
        ("Nobody served for", _seconds(told["downtime"])),
        ("Predicted", "%s, nobody served for %s" % (_seconds(told["predicted"]["seconds"]), _seconds(told["predicted"]["downtime"]))),
        ("Way", "from host to host" if told["way"] == "direct" else "through the controller"),
        ("Copied", human(told["bytes"])),
    ]
    body = ["<h1>%s → %s</h1>" % (_text(told["old"]), _text(told["new"]))]
    body.append(_table(["", ""], rows))
    body += ["<h2>Phases</h2>", _table(["", "seconds"], [(phase["phase"], _seconds(phase["seconds"])) for phase in told["phases"]])]
    copies = [
        (part["name"], part["when"], part["files"], human(part["bytes"]), part["all_files"], human(part["all_bytes"]), part["seconds"])
        for part in told["copies"]
    ]
    body += [
        "<h2>Copies</h2>",
        _table(["part", "when", "files", "bytes", "of files", "of bytes", "seconds"], copies),
        "<h2>Rows</h2>",
        _table(
            ["table", "before", "after"],
            [(name, rows["before"], "" if rows["after"] is None else rows["after"]) for name, rows in told["tables"].items()],
        ),
    ]
    return '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>%s</title><style>%s</style>\n%s\n</html>\n' % (
        "Migration of %s to %s" % (_text(told["old"]), _text(told["new"])),
        STYLE,
        "\n".join(body),
    )


def plan_text(plans):
    """Return the plan of a fleet as people read it."""
    line = "%-20s %-20s %-10s %10s %9s %9s %s"
    lines = [line % ("old", "new", "way", "bytes", "about", "downtime", "")]
    for plan in plans:
        predicted = plan.get("bytes") is not None
        lines.append(
            line
            % (
                plan["old"],
                plan["new"],
                plan["way"] or "",
                human(plan["bytes"]) if predicted else "",
                "%d s" % plan["seconds"] if predicted else "",
                "%d s" % plan["downtime"] if predicted else "",
                {"done": "migrated already", "back": "broke off", "forward": "broke off"}.get(plan["action"], ""),
            )
        )
        lines += ["    FINDING: " + finding for finding in plan["findings"]]
        lines += ["    " + warning for warning in plan["warnings"]]
        if plan.get("images"):
            lines.append("    Images are copied from the old host: %s" % ", ".join(plan["images"]))
    return "\n".join(line.rstrip() for line in lines)


def _times(record, offset):
    """When each phase began, by the controller's clock."""
    return dict((step["phase"], step["time"] - (offset or 0)) for step in record.get("steps", []))


def _phases(times, served):
    marks = [("preparing", "serving"), ("down", "fencing"), ("ending", None)]
    begins = [times.get(mark) if mark else served for unused, mark in marks]
    end = max(times.values()) if times else None
    ends = [begins[1] or end, begins[2] or end, end]
    found = [
        dict(phase=NAMES[name], seconds=_between(begin, stop)) for (name, unused), begin, stop in zip(marks, begins, ends)
    ]
    return [phase for phase in found if phase["seconds"] is not None]


def _between(begin, end):
    return None if begin is None or end is None else round(max(0, end - begin), 1)


def _seconds(value):
    return "" if value is None else "%.1f s" % value if isinstance(value, float) else "%d s" % value


def _text(value):
    return html.escape(str(value))


def _table(head, rows):
    def cells(tag, values):
        return "".join(
            "<%s%s>%s</%s>" % (tag, ' class="n"' if isinstance(value, (int, float)) else "", _text(value), tag) for value in values
        )

    lines = ["<tr>%s</tr>" % cells("th", head)] if any(head) else []
    lines += ["<tr>%s</tr>" % cells("td", row) for row in rows]
    return "<table>\n%s\n</table>" % "\n".join(lines)
