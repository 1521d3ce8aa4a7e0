# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans of fleets: what stands in the way of which pair, how a broken one goes on, what is told of it."""

from __future__ import annotations

import copy

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils.migration_plan import (
    findings,
    folders,
    lost,
    mappings,
    parts,
    plan,
    resume,
)
from ansible_collections.echo_music.ops.plugins.module_utils.migration_report import page, plan_text, report

GIB = 1024**3
IMAGES = {"echo:1": dict(id="sha256:1", pg_major=None), "postgres:16": dict(id="sha256:2", pg_major="16")}


def survey(**facts):
    found = dict(
        clock_offset=0.3,
        architecture="x86_64",
        login="root",
        host_keys=["ssh-ed25519 AAAA"],
        rsync="3.2.7",
        rrsync="/usr/bin/rrsync",
        compose="2.26.1",
        listening=[22],
        peer=dict(host="192.0.2.1", port=22, reachable=True, own_address="192.0.2.2", error=None),
        migration=None,
        engine=dict(
            host="unix:///var/run/docker.sock",
            local=True,
            root="/var/lib/docker",
            images=dict(IMAGES),
            containers=[],
            volumes=[],
            mounted=[],
            project=[],
        ),
        free={"/var/lib": 100 * GIB, "/var/lib/docker": 100 * GIB, "/srv/echo/uploads": 100 * GIB, "/var/backups": 100 * GIB},
        disks={"/var/lib": 1, "/var/lib/docker": 1, "/srv/echo/uploads": 2, "/var/backups": 1},
        deployment=None,
    )
    return dict(found, **facts)


def service(name, role, image, **facts):
    return dict(dict(service=name, role=role, image=image, container="echo-" + name, ports=[], folders=[]), **facts)


def pair(new="new", old="old"):
    deployment = dict(
        layout="classic",
        app="echo-app",
        services=[service("echo-app", "app", "echo:1", ports=[4567]), service("postgres", "database", "postgres:16")],
        volumes=["echo-uploads"],
        mounted=[],
        roles=["uploads", "config", "database"],
        working_dir="/opt/echo",
    )
    volumes = [
        dict(role=role, name="echo-" + role, source="/volumes/" + role, bytes=size, files=files)
        for role, size, files in (("uploads", GIB, 20000), ("config", 300, 1), ("database", 2 * GIB, 900), ("redis", 9, 1))
    ]
    stack = dict(
        layout="classic",
        project="echo",
        containers=dict(app={}, database={}),
        volumes=volumes,
        database=dict(bytes=400 * 10**6, server_version_num=160004),
    )
    target = survey(host_keys=["ssh-ed25519 BBBB"], deployment=deployment)
    return dict(new=new, old=old, source=survey(), target=target, stack=stack)


def planned(change=None, settings=None):
    one = pair()
    if change:
        change(one)
    return plan([one], settings)[0]


def test_a_good_pair_is_predicted():
    found = planned()
    assert found["findings"] == [] and found["action"] == "start" and found["way"] == "direct"
    assert found["bytes"] == GIB + 300 + 200 * 10**6 and found["files"] == 20001
    assert 10 < found["downtime"] < found["seconds"]


def test_downtime_does_not_grow_with_the_uploads_but_with_the_database():
    def uploads(one):
        one["stack"]["volumes"][0]["bytes"] = 50 * GIB

    def database(one):
        one["stack"]["database"]["bytes"] *= 10

    assert planned(uploads)["downtime"] == planned()["downtime"]
    assert planned(uploads)["seconds"] > 10 * planned()["seconds"]
    assert planned(database)["downtime"] > 2 * planned()["downtime"]


def set_in(*path):
    def change(one):
        place = one
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    "change, told",
    [
        (set_in("old", ""), "no echo_migrate_source"),
        (set_in("old", "new"), "its own echo_migrate_source"),
        (set_in("source", dict(error="No route to host")), "The old host old: No route to host"),
        (set_in("target", dict(error="No route to host")), "The new host: No route to host"),
        (set_in("stack", dict(error="No Echo found.")), "No Echo found"),
        (set_in("target", "host_keys", ["ssh-ed25519 AAAA"]), "are one machine"),
        (set_in("source", "engine", dict(error="no daemon")), "no daemon"),
        (set_in("target", "engine", "local", False), "not a local one"),
        (set_in("target", "compose", None), "no Docker Compose"),
        (set_in("target", "rsync", None), "The new host has no rsync"),
        (set_in("source", "rrsync", None), "has no rrsync"),
        (set_in("source", "host_keys", []), "no SSH host key"),
        (set_in("target", "clock_offset", 95.0), "clocks of the two hosts differ by 95 s"),
        (set_in("stack", "database", dict(error="it is down")), "it is down"),
        (set_in("stack", "containers", dict(database={})), "no container of the app"),
        (set_in("target", "deployment", dict(error="yaml")), "can't read the deployment: yaml"),
        (set_in("target", "deployment", "app", None), "no service of the app"),
        (set_in("stack", "layout", "unified"), "doesn't fit into the classic layout"),
        (set_in("target", "listening", [22, 4567]), "Port 4567, which echo-app publishes, is in use"),
        (set_in("target", "engine", "project", ["echo-app"]), "has the project already (echo-app)"),
        (set_in("target", "engine", "volumes", ["echo-uploads"]), "volumes of the same names already: echo-uploads"),
        (set_in("target", "engine", "containers", ["echo-postgres"]), "has a container echo-postgres already"),
        (set_in("stack", "database", "server_version_num", 170001), "PostgreSQL 16 of the new host can't read a dump of PostgreSQL 17"),
        (set_in("target", "free", "/var/lib", GIB), "The new host needs"),
        (set_in("source", "free", {"/var/backups": 1000}), "The old host needs"),
        (set_in("source", "engine", "mounted", ["echo-uploads"]), "The volume echo-uploads of old is mounted by the Engine"),
        (set_in("target", "deployment", "mounted", ["echo-uploads"]), "The volume echo-uploads of the new host is mounted by the Engine"),
        (set_in("target", "deployment", "roles", ["uploads", "database"]), "mounts nothing for the app's config"),
        (lambda one: one["stack"]["volumes"][0].update(source="/srv/my music"), "has a name that no key can be limited to"),
        (lambda one: one["stack"]["volumes"][0].update(source="/volumes"), "has the config in it, at /volumes/config"),
        (lambda one: mount(one, "/srv/echo/uploads", used=True), "/srv/echo/uploads, which echo-app mounts, is not an empty folder"),
        (lambda one: mount(one, "/opt"), "has the deployment in it, at /opt/echo"),
    ],
)
def test_what_stands_in_the_way(change, told):
    found = planned(change)
    assert [finding for finding in found["findings"] if told in finding], found["findings"]
    assert findings([found])[0].startswith(found["new"] + ": ")


def mount(one, path, role="uploads", used=False):
    """Let the new app mount a folder."""
    one["target"]["deployment"]["services"][0]["folders"].append(dict(path=path, role=role, used=used))


def test_a_folder_of_the_new_host_is_a_place_like_a_volume():
    one = planned(lambda one: mount(one, "/srv/echo/uploads"))
    assert one["findings"] == [] and one["warnings"] == []


def test_what_is_not_echos_own_is_told():
    one = planned(lambda one: mount(one, "/opt/echo/music", role=None, used=None))
    assert one["findings"] == []
    assert one["warnings"] == ["/opt/echo/music, which echo-app mounts, is not part of a migration: have the same there."]


def test_space_is_counted_on_the_disk_that_the_files_go_to():
    def small_engine(one):
        one["target"]["free"].update({"/var/lib": 2 * GIB, "/var/lib/docker": 2 * GIB})
        one["stack"]["volumes"][0]["bytes"] = 50 * GIB

    def with_disk(one):
        small_engine(one)
        mount(one, "/srv/echo/uploads")

    def with_small_disk(one):
        with_disk(one)
        one["target"]["free"]["/srv/echo/uploads"] = 40 * GIB

    assert planned(small_engine)["findings"] == ["The new host needs 51.6 GiB at /var/lib and has 2.0 GiB free."]
    assert planned(with_disk)["findings"] == []
    assert planned(with_small_disk)["findings"] == ["The new host needs 50.5 GiB at /srv/echo/uploads and has 40.0 GiB free."]


def test_folders_are_made_like_the_old_ones():
    one = pair()
    mount(one, "/srv/data", role="data")
    mount(one, "/srv/logs", role="logs")
    mount(one, "/srv/music", role=None)
    owners = dict(uploads=[1001, 1001, 0o755], logs=[1002, 1002, 0o700])
    made = [dict(path="/srv/data", owner=owners["uploads"]), dict(path="/srv/logs", owner=owners["logs"])]
    assert folders(one["target"]["deployment"], owners) == made
    assert folders(pair()["target"]["deployment"], owners) == []


def test_all_findings_are_told_at_once():
    def change(one):
        one["target"].update(compose=None, rsync=None, listening=[4567])
        one["source"].update(rrsync=None)

    assert len(planned(change)["findings"]) == 4


def test_an_image_that_is_missing_is_copied_or_pulled_or_a_finding():
    def missing(one):
        one["target"]["engine"]["images"].pop("echo:1")

    def nowhere(one):
        missing(one)
        one["source"]["engine"]["images"].pop("echo:1")

    def other_machine(one):
        missing(one)
        one["target"]["architecture"] = "aarch64"

    assert planned(missing)["images"] == ["echo:1"]
    assert "images" not in planned(missing, dict(pull="missing"))
    assert "is on neither host" in planned(nowhere)["findings"][0]
    assert planned(nowhere, dict(pull="always"))["findings"] == []
    assert "is for x86_64, the new one is aarch64" in planned(other_machine)["findings"][0]


def test_hosts_that_cannot_reach_each_other_go_through_the_controller():
    found = planned(set_in("target", "peer", dict(reachable=False, error="refused")))
    assert found["way"] == "controller" and found["findings"] == []
    assert "goes through the controller" in found["warnings"][0]


def test_sources_are_unique_and_no_new_host_of_another_pair():
    found = plan([pair("a", "x"), pair("b", "x"), pair("c", "a")])
    assert "that of b as well" in found[0]["findings"][0]
    assert "that of a as well" in found[1]["findings"][0]
    assert "a new host of another pair" in found[2]["findings"][0]


def record(side, phase, migration_id="1"):
    return dict(side=side, phase=phase, id=migration_id)


@pytest.mark.parametrize(
    "source, target, action",
    [
        (None, None, "start"),
        ("released", "abandoned", "start"),
        ("serving", None, "back"),
        ("serving", "preparing", "back"),
        ("fencing", "preparing", "back"),
        ("fenced", None, "back"),
        ("fenced", "preparing", "back"),
        ("releasing", "abandoned", "back"),
        ("granted", "preparing", "back"),
        ("granted", "abandoned", "back"),
        ("granted", "live", "forward"),
        ("granted", "committed", "forward"),
        ("granted", None, "broken"),
        ("migrated", "live", "forward"),
        ("migrated", "committed", "done"),
        ("migrated", None, "broken"),
        ("retired", "committed", "done"),
        ("released", "preparing", "back"),
        ("serving", "live", "broken"),
        ("released", "committed", "broken"),
        (None, "committed", "broken"),
    ],
)
def test_how_a_pair_goes_on(source, target, action):
    records = [phase and record(side, phase) for side, phase in (("source", source), ("target", target))]
    assert resume(*records) == action


def test_records_of_different_migrations_do_not_go_forward():
    assert resume(record("source", "granted", "1"), record("target", "live", "2")) == "broken"


def test_a_host_that_was_moved_to_may_be_moved_from():
    assert resume(record("target", "committed"), None) == "start"
    assert resume(None, record("source", "migrated")) == "back"


def test_an_old_host_need_not_wait_for_a_new_one_that_is_gone():
    def change(phase):
        def changed(one):
            one["source"]["migration"] = record("source", phase)
            one["target"] = dict(error="No route to host")

        return changed

    assert planned(change("fenced"))["action"] == "back"
    assert planned(change("granted"))["action"] == "start"
    assert planned(change("granted"), dict(target_lost=True))["action"] == "back"
    assert planned(change("fenced"))["findings"] == ["The new host: No route to host"]


def test_files_find_their_places():
    stack = pair()["stack"]
    assert [(part["component"], part["role"]) for part in mappings(stack, "classic")] == [("uploads", "uploads"), ("config", "config")]
    unified = mappings(stack, "unified")
    assert [(part["component"], part["role"]) for part in unified] == [("uploads", "data"), ("config", "data")]
    new = dict(volumes=[dict(role="data", source="/volumes/data")])
    assert parts(new, unified)[0] == dict(name="uploads", component="uploads", role="data", dest="/volumes/data")


def test_rows_may_come_but_not_go():
    assert lost({"a": 3, "b": 2, "c": 0}, {"a": 4, "b": 1}) == ["b"]


# -- what is told ---------------------------------------------------------------------------------


def test_a_plan_as_people_read_it():
    plans = plan([pair("n1", "o1"), pair("n2", "")])
    said = plan_text(plans)
    assert "o1" in said and "direct" in said and "FINDING: It has no echo_migrate_source" in said


def steps(*phases):
    return [dict(phase=phase, time=moment) for phase, moment in phases]


def told(**changes):
    facts = dict(
        old="old",
        new="new",
        failure=None,
        old_serves=False,
        way="direct",
        plan=dict(bytes=1000, seconds=60, downtime=9),
        # The old host's clock is 10 s ahead.
        source=dict(id="1", steps=steps(("serving", 110.0), ("fencing", 150.0), ("fenced", 151.0), ("migrated", 170.0))),
        target=dict(id="1", steps=steps(("preparing", 101.0), ("live", 147.0), ("committed", 158.0))),
        offsets=[10.0, 0.0],
        precopied=dict(parts=[dict(name="uploads", files=5, bytes=900, all_files=5, all_bytes=900, seconds=1.0)]),
        copied=dict(parts=[dict(name="uploads", files=1, bytes=100, all_files=6, all_bytes=1000, seconds=0.5)]),
        dump=dict(tables={"public.users": 5, "public.<b>": 1}),
        live=dict(healthy_at=156.5, tables={"public.users": 6}),
    )
    return report(dict(copy.deepcopy(facts), **changes))


def test_a_report():
    found = told()
    assert found["result"] == "migrated" and found["downtime"] == 16.5 and found["seconds"] == 60.0
    assert found["bytes"] == 1000 and [part["when"] for part in found["copies"]] == ["before", "down"]
    assert found["tables"]["public.users"] == dict(before=5, after=6)
    assert [phase["seconds"] for phase in found["phases"]] == [40.0, 16.5, 3.5]


def test_a_report_of_a_failure_before_anything_stopped():
    source = dict(id="1", steps=steps(("serving", 110.0), ("released", 115.0)))
    found = told(failure="No space.", old_serves=True, source=source, target=None, copied=None, live=None, dump=None)
    assert found["result"] == "failed" and found["downtime"] is None and found["tables"] == {}
    assert "failed: No space." in page(found) and "serves as before" in page(found)


def test_a_report_of_a_failure_tells_for_how_long_nobody_served():
    source = dict(id="1", steps=steps(("serving", 110.0), ("fencing", 150.0), ("granted", 155.0), ("releasing", 160.0), ("released", 163.0)))
    found = told(failure="Its port is in use.", old_serves=True, source=source, target=None, live=None)
    assert found["downtime"] == 13.0 and found["seconds"] == 53.0


def test_a_page_escapes_names():
    said = page(told())
    assert "public.&lt;b&gt;" in said and "<b>" not in said
    assert "16.5 s" in said
