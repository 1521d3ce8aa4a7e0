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

import os

from ansible_collections.echo_music.ops.plugins.module_utils.migration_keys import FOLDER_NAME
from ansible_collections.echo_music.ops.plugins.module_utils.restore_layout import PLACES
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import human

SETTINGS = dict(clock_tolerance=30, pull="never", bandwidth=30, reserve=512 * 1024 * 1024)
# Bytes per second of a small machine, and seconds that a step of Ansible takes: see docs/migrate.md.
DUMP_RATE, LOAD_RATE, SCAN_RATE = 40e6, 20e6, 20000
STEPS_BEFORE, STEPS_DOWN, START, STEP = 40, 12, 8, 1.2
# Where a migration may be when nothing of it is under way.
IDLE = (None, "released", "retired", "abandoned")
FILES = ("uploads", "config", "data")
# Where the new host keeps the set that it restores.
WORK = "/var/lib"


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


def folders(deployment, owners):
    """Return the folders of the new host that the new stack mounts for Echo's data, each to be made like the old one.

    ``owners`` is ``{role: [uid, gid, mode]}`` of the old host.
    """
    alike = dict(owners, data=owners.get("data") or owners.get("uploads"))
    return [dict(path=folder["path"], owner=alike.get(folder["role"])) for folder in _own_folders(deployment)]


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
    mounted = pair["source"]["engine"].get("mounted") or []
    for volume in stack["volumes"]:
        if volume["role"] in FILES and volume["name"] in mounted:
            result["findings"].append(_only_mounted(pair["old"], volume["name"]))
        if volume["role"] in FILES and not FOLDER_NAME.match(volume["source"]):
            result["findings"].append(
                "The folder %r of %s has a name that no key can be limited to: use letters, digits and ./_-." % (volume["source"], pair["old"])
            )
    result["findings"] += _nested(pair["old"], [(volume["role"], volume["source"]) for volume in stack["volumes"]])


def _only_mounted(host, volume):
    return (
        "The volume %s of %s is mounted by the Engine (driver_opts) only while a container uses it: "
        "mount it on the host, and the folder into the container." % (volume, host)
    )


def _nested(host, places):
    """What of the files lies around something else, so that a copy of the one would overwrite the other."""
    return [
        "The folder %s of %s has the %s in it, at %s: give them places of their own." % (place, host, inner, within)
        for role, place in places
        if role in FILES
        for inner, within in places
        if inner != role and (os.path.normpath(within) + "/").startswith(os.path.normpath(place) + "/")
    ]


def _check_deployment(stack, source, target, deployment, settings, result):
    findings, engine = result["findings"], target["engine"]
    if not deployment["app"] or not deployment["layout"]:
        findings.append("The deployment for the new host has no service of the app with Echo's folders.")
        return
    if stack["layout"] == "unified" and deployment["layout"] == "classic":
        findings.append("A unified Echo doesn't fit into the classic layout.")
    missing = sorted(set(part["role"] for part in mappings(stack, deployment["layout"])) - set(deployment["roles"]))
    if missing:
        findings.append("The deployment for the new host mounts nothing for the app's %s." % " and ".join(missing))
    findings += [_only_mounted("the new host", volume) for volume in deployment["mounted"]]
    own = [(folder["role"], folder["path"]) for folder in _own_folders(deployment)]
    findings += _nested("the new host", own + [("deployment", deployment["working_dir"])])
    resumed = result["action"] == "back"
    for service in deployment["services"]:
        _check_image(service, stack, source, target, settings, result)
        for port in [] if resumed else service["ports"]:
            if port in target["listening"]:
                findings.append("Port %d, which %s publishes, is in use on the new host." % (port, service["service"]))
        for folder in service["folders"]:
            if not folder["role"]:
                result["warnings"].append(
                    "%s, which %s mounts, is not part of a migration: have the same there." % (folder["path"], service["service"])
                )
            elif folder["used"] and not resumed:
                findings.append("%s, which %s mounts, is not an empty folder on the new host." % (folder["path"], service["service"]))
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
    """Add up what each disk is to take; on the old host it is the set alone."""
    set_needs = [(path, _sizes(stack)["database"]) for path in source["free"] if path != source["engine"].get("root")]
    for name, side, needs in (("old", source, set_needs), ("new", target, _needs(stack, target))):
        disks = {}
        for path, need in needs:
            disk = disks.setdefault(side["disks"][path], dict(path=path, free=side["free"][path], need=settings["reserve"]))
            disk["need"] += need
        result["findings"] += [
            "The %s host needs %s at %s and has %s free." % (name, human(disk["need"]), disk["path"], human(disk["free"]))
            for disk in disks.values()
            if disk["free"] < disk["need"]
        ]


def _needs(stack, target):
    """Return ``(path, bytes)`` of what comes to the new host; the Engine's folder has what isn't mounted from elsewhere."""
    deployment, root = target.get("deployment") or {}, target["engine"].get("root")
    places = dict((folder["role"], folder["path"]) for folder in _own_folders(deployment))
    database = _sizes(stack)["database"]
    needs = [(WORK, database), (places.get("database", root), 2 * database)]
    sizes = dict((volume["role"], volume["bytes"] or 0) for volume in stack["volumes"])
    for part in mappings(stack, deployment.get("layout") or stack["layout"]):
        needs.append((places.get(part["role"], root), sizes[part["component"]]))
    return [(path, need) for path, need in needs if path in target["free"]]


def _own_folders(deployment):
    return [folder for service in deployment.get("services") or [] for folder in service["folders"] if folder["role"]]


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
