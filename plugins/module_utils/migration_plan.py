# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet's migration, planned: what an earlier run left, what stands in the way, what it will take. All of it pure.

A pair is ``{"new", "old", "source", "target", "stack"}``: the names in the inventory, what
``survey`` found on the old and the new host, and what ``echo_info`` found on the old one. Where
a host couldn't be asked, there is ``{"error"}`` in its place.
"""

from __future__ import annotations

from ansible_collections.echo_music.ops.plugins.module_utils.restore_layout import PLACES
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import human

SETTINGS = dict(clock_tolerance=30, pull="never", bandwidth=30, reserve=512 * 1024 * 1024)
# Bytes per second of a small machine, and seconds that a step of Ansible takes: see docs/migrate.md.
DUMP_RATE, LOAD_RATE, SCAN_RATE = 40e6, 20e6, 20000
STEPS_BEFORE, STEPS_DOWN, START, STEP = 40, 12, 8, 1.2
# Where a migration may be when nothing of it is under way.
IDLE = (None, "released", "retired", "abandoned")
FILES = ("uploads", "config", "data")


def plan(pairs, settings=None):
    """Return the plan of each pair, with all that stands in its way."""
    settings = dict(SETTINGS, **(settings or {}))
    planned = [_plan_pair(pair, settings) for pair in pairs]
    for pair, result in zip(pairs, planned):
        others = [other["new"] for other in pairs if other["old"] and other["old"] == pair["old"] and other is not pair]
        if others:
            result["findings"].append("Its old host %s is that of %s as well." % (pair["old"], ", ".join(others)))
        if pair["old"] in [other["new"] for other in pairs if other is not pair]:
            result["findings"].append("Its old host %s is a new host of another pair." % pair["old"])
    return planned


def findings(plans):
    """Return all that stands in the way, each with the pair's new host."""
    return ["%s: %s" % (planned["new"], finding) for planned in plans for finding in planned["findings"]]


def resume(source, target):
    """Return how a pair goes on from its two records: ``start``, ``back``, ``forward`` or ``done``.

    ``back`` brings the old host into service first, ``forward`` lets the new one serve.
    """
    mine = dict((side, _phase(record, side)) for side, record in (("source", source), ("target", target)))
    same = bool(source and target and source["id"] == target["id"])
    if mine["source"] == "migrated":
        return "done" if same and mine["target"] == "committed" else "forward" if same and mine["target"] == "live" else "broken"
    if mine["source"] == "retired" and same and mine["target"] == "committed":
        return "done"
    if mine["source"] == "granted" and same and mine["target"] in ("live", "committed"):
        return "forward"
    if mine["source"] == "granted" and not (same and mine["target"] in ("preparing", "abandoned")):
        return "broken"
    if mine["target"] in ("live", "committed"):
        return "broken"
    if mine["source"] in IDLE and mine["target"] in IDLE:
        return "start"
    return "back"


def _phase(record, side):
    """The phase in which a host has a part on that side; one that was the other side once is free."""
    if not record:
        return None
    if record["side"] != side:
        # A host that was moved to may be moved from, later; one that was moved from is not moved to with its data there.
        free = ("committed", "abandoned", "preparing") if side == "source" else ("released", "retired")
        return None if record["phase"] in free else record["phase"]
    return record["phase"]


def mappings(stack, layout):
    """Return which component of the old stack goes to the volume of which role in the new layout."""
    found = []
    for volume in stack["volumes"]:
        component = volume["role"]
        if component not in FILES:
            continue
        roles = [component] if layout == stack["layout"] else [role for name, role in PLACES if name == component]
        for role in roles:
            found.append(dict(name=component, component=component, role=role, folder=volume["source"]))
    return found


def parts(stack, mapped):
    """Return what ``echo_migration_copy`` copies into the new stack."""
    folders = dict((volume["role"], volume["source"]) for volume in stack["volumes"])
    return [
        dict(name=part["name"], component=part["component"], role=part["role"], dest=folders[part["role"]]) for part in mapped
    ]


def lost(expected, found):
    """Return the tables that have fewer rows than expected."""
    return sorted(table for table, rows in expected.items() if found.get(table, 0) < rows)


# -- one pair -------------------------------------------------------------------------------------


def _plan_pair(pair, settings):
    result = dict(new=pair["new"], old=pair["old"], action="start", findings=[], warnings=[], way=None)
    against = result["findings"]
    source, target, stack = pair["source"] or {}, pair["target"] or {}, pair["stack"] or {}
    if not pair["old"]:
        against.append("It has no echo_migrate_source, the old host that it replaces.")
        return result
    if pair["old"] == pair["new"]:
        against.append("It is its own echo_migrate_source.")
        return result
    if target.get("error") and not source.get("error") and _may_go_back_alone(source["migration"], settings):
        result["action"] = "back"
    against += ["The old host %s: %s" % (pair["old"], side["error"]) for side in (source,) if side.get("error")]
    against += ["The new host: %s" % side["error"] for side in (target,) if side.get("error")]
    if against:
        return result
    result["action"] = resume(source["migration"], target["migration"])
    if result["action"] == "broken":
        against.append(_broken(source["migration"], target["migration"]))
    if result["action"] in ("done", "forward", "broken"):
        return result
    _check_machines(pair, source, target, settings, result)
    if stack.get("error"):
        against.append("The old host %s: %s" % (pair["old"], stack["error"]))
        return result
    _check_stack(pair, stack, result)
    deployment = target.get("deployment") or {}
    if deployment.get("error"):
        against.append("Compose on the new host can't read the deployment: %s" % deployment["error"])
    elif deployment and not (target["engine"] or {}).get("error"):
        _check_deployment(stack, source, target, deployment, settings, result)
    _check_space(stack, source, target, settings, result)
    result.update(_prediction(stack, settings))
    return result


def _may_go_back_alone(record, settings):
    """Tell whether the old host may serve whatever became of the new one."""
    phases = ("serving", "fencing", "fenced", "releasing") + (("granted",) if settings.get("target_lost") else ())
    return bool(record and record["side"] == "source" and record["phase"] in phases)


def _broken(source, target):
    return "What the two hosts tell doesn't fit: the old one is %s, the new one %s." % tuple(
        "%s of %s" % (record["phase"], record["id"]) if record else "without a record" for record in (source, target)
    )


def _check_machines(pair, source, target, settings, result):
    findings, warnings = result["findings"], result["warnings"]
    if source["host_keys"] and set(source["host_keys"]) & set(target["host_keys"]):
        findings.append("%s and %s are one machine: their SSH host keys are the same." % (pair["old"], pair["new"]))
    for name, side in (("old host %s" % pair["old"], source), ("new host", target)):
        if side["engine"].get("error"):
            findings.append("The %s: %s" % (name, side["engine"]["error"]))
        elif not side["engine"]["local"]:
            findings.append("The Engine of the %s is not a local one that we may use as root." % name)
        if not side["rsync"]:
            findings.append("The %s has no rsync." % name)
    if not target["compose"]:
        findings.append("The new host has no Docker Compose ('docker compose version').")
    if not source["rrsync"]:
        findings.append("The old host %s has no rrsync, which comes with rsync 3.2.7 and newer." % pair["old"])
    if not source["host_keys"]:
        findings.append("The old host %s has no SSH host key in /etc/ssh." % pair["old"])
    offset = abs((source["clock_offset"] or 0) - (target["clock_offset"] or 0))
    if offset > settings["clock_tolerance"]:
        findings.append("The clocks of the two hosts differ by %.0f s." % offset)
    result["way"] = "direct" if (target.get("peer") or {}).get("reachable") else "controller"
    if result["way"] == "controller":
        warnings.append(
            "It can't reach %s (%s): the data goes through the controller."
            % (pair["old"], (target.get("peer") or {}).get("error") or "no address is known")
        )
    if source.get("peer") and not source["peer"]["reachable"]:
        warnings.append("%s can't reach it, which is not needed." % pair["old"])


def _check_stack(pair, stack, result):
    if stack["database"].get("error"):
        result["findings"].append("The database of %s: %s" % (pair["old"], stack["database"]["error"]))
    if "app" not in stack["containers"]:
        result["findings"].append("The stack of %s has no container of the app." % pair["old"])


def _check_deployment(stack, source, target, deployment, settings, result):
    findings, engine = result["findings"], target["engine"]
    if not deployment["app"] or not deployment["layout"]:
        findings.append("The deployment for the new host has no service of the app with Echo's folders.")
        return
    if stack["layout"] == "unified" and deployment["layout"] == "classic":
        findings.append("A unified Echo doesn't fit into the classic layout.")
    resumed = result["action"] == "back"
    for service in deployment["services"]:
        _check_image(service, stack, source, target, settings, result)
        for port in [] if resumed else service["ports"]:
            if port in target["listening"]:
                findings.append("Port %d, which %s publishes, is in use on the new host." % (port, service["service"]))
        for folder in service["folders"]:
            if not folder["rw"]:
                result["warnings"].append(
                    "%s, which %s only reads, is not part of a migration: have the same there." % (folder["path"], service["service"])
                )
        if service["container"] in engine["containers"] and service["container"] not in engine["project"]:
            findings.append("The new host has a container %s already." % service["container"])
    if resumed:
        return
    if engine["project"]:
        findings.append("The new host has the project already (%s): remove it there." % ", ".join(engine["project"]))
    taken = sorted(set(deployment["volumes"]) & set(engine["volumes"]))
    if taken:
        findings.append("The new host has volumes of the same names already: %s." % ", ".join(taken))


def _check_image(service, stack, source, target, settings, result):
    image, findings = service["image"], result["findings"]
    found = target["engine"]["images"].get(image)
    if not found and settings["pull"] == "never":
        if image not in (source["engine"].get("images") or {}):
            findings.append("The image %s is on neither host, and isn't to be pulled (echo_migrate_pull)." % image)
        elif source["architecture"] != target["architecture"]:
            findings.append(
                "The image %s of the old host is for %s, the new one is %s." % (image, source["architecture"], target["architecture"])
            )
        else:
            result.setdefault("images", []).append(image)
        found = (source["engine"].get("images") or {}).get(image)
    version = (stack.get("database") or {}).get("server_version_num")
    if service["role"] == "database" and found and (found["pg_major"] or "").isdigit() and version:
        if int(found["pg_major"]) < version // 10000:
            findings.append(
                "PostgreSQL %s of the new host can't read a dump of PostgreSQL %d." % (found["pg_major"], version // 10000)
            )


def _check_space(stack, source, target, settings, result):
    sizes = _sizes(stack)
    needs = (
        ("old host", source, sizes["database"]),
        ("new host", target, sizes["files"] + 3 * sizes["database"]),
    )
    for name, side, need in needs:
        free = min([side["engine"].get("free") or 0] + list((side["free"] or {}).values()))
        if free < need + settings["reserve"]:
            result["findings"].append("The %s needs %s and has %s free." % (name, human(need + settings["reserve"]), human(free)))


def _sizes(stack):
    moved = [volume for volume in stack["volumes"] if volume["role"] in FILES]
    return dict(
        files=sum(volume["bytes"] or 0 for volume in moved),
        count=sum(volume["files"] or 0 for volume in moved),
        database=(stack.get("database") or {}).get("bytes") or 0,
    )


def _prediction(stack, settings):
    """What is to be expected; rough, and told as such."""
    sizes = _sizes(stack)
    rate = settings["bandwidth"] * 1e6
    database = sizes["database"] / DUMP_RATE + sizes["database"] / 4 / rate + sizes["database"] / LOAD_RATE
    downtime = STEPS_DOWN * STEP + START + database + sizes["count"] / SCAN_RATE
    return dict(
        bytes=sizes["files"] + sizes["database"] // 2,
        files=sizes["count"],
        database_bytes=sizes["database"],
        seconds=round(STEPS_BEFORE * STEP + sizes["files"] / rate + database + START + downtime),
        downtime=round(downtime),
    )
