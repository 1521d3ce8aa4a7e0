# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies off the host, by the real programs; far ends and links fail in the ways they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from ansible_collections.echo_music.ops.plugins.module_utils import offsite_receipt
from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_command import (
    LinkError,
    OffsiteError,
    Programs,
    persist,
    run_program,
)
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_rclone import OPTIONS
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_rsync import CHECK
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import human

from offsite_lab import SECRET, Lab, Watch, is_whole, make_set, prove
from restic_repository import PASSWORD

KINDS = ["local", "ssh", "restic", "rclone"]
DAYS = ["backup_2026-11-%02d_03-00-00" % day for day in range(1, 31)]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)


@pytest.fixture
def age_keys(tmp_path):
    identity = tmp_path / "identity"
    subprocess.run(["age-keygen", "-o", str(identity)], check=True, capture_output=True)
    public = subprocess.run(["age-keygen", "-y", str(identity)], check=True, capture_output=True, text=True)
    return str(identity), public.stdout.strip()


# -- the way there and back ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_goes_there_and_comes_back(lab, kind, tmp_path):
    folder = make_set(lab.root, 1)
    copied = lab.do("copied", lab.destination(kind))
    assert copied["changed"] and copied["copied"] and copied["verified"]
    assert copied["set"]["id"] == folder.name
    assert lab.listed(lab.destination(kind)) == [folder.name]

    elsewhere = tmp_path / "new_host"
    fetched = lab.do("fetched", lab.destination(kind), root=elsewhere)
    assert fetched["changed"] and fetched["path"] == str(elsewhere / folder.name)
    assert is_whole(fetched["path"])
    assert sorted(os.listdir(fetched["path"])) == sorted(os.listdir(str(folder)))
    assert all(
        os.stat(os.path.join(fetched["path"], name)).st_mode & 0o077 == 0 for name in os.listdir(fetched["path"])
    )
    assert os.readlink(str(elsewhere / "latest")) == folder.name
    assert [name for name in os.listdir(str(elsewhere)) if name.startswith(".offsite") and "lock" not in name] == []


@pytest.mark.parametrize("kind", KINDS)
def test_copied_again_nothing_changes(lab, kind):
    make_set(lab.root, 1)
    lab.do("copied", lab.destination(kind))
    again = lab.do("copied", lab.destination(kind))
    assert not again["changed"] and not again["copied"]
    lab.do("fetched", lab.destination(kind), root=lab.path / "new_host")
    assert not lab.do("fetched", lab.destination(kind), root=lab.path / "new_host")["changed"]


@pytest.mark.parametrize("kind", KINDS)
def test_check_mode_predicts_and_touches_nothing(lab, kind):
    make_set(lab.root, 1)
    before = sorted(os.listdir(str(lab.root)))
    predicted = lab.do("copied", lab.destination(kind), check=True)
    assert predicted["changed"] and predicted["copied"] and not predicted["verified"]
    assert lab.listed(lab.destination(kind)) == []
    assert kind == "restic" or os.listdir(str(lab.far)) == []
    lab.do("copied", lab.destination(kind))
    assert not lab.do("copied", lab.destination(kind), check=True)["changed"]
    elsewhere = lab.path / "new_host"
    assert lab.do("fetched", lab.destination(kind), root=elsewhere, check=True)["changed"]
    assert not elsewhere.exists()
    assert [name for name in os.listdir(str(lab.root)) if name not in before] == [".offsite_%s.lock" % kind]


@pytest.mark.parametrize("kind", KINDS)
def test_verification_reads_the_copy(lab, kind):
    make_set(lab.root, 1)
    lab.do("copied", lab.destination(kind))
    assert lab.do("verified", lab.destination(kind))["verified"]
    if kind == "restic":
        victim = max((path for path in (lab.far / "data").rglob("*") if path.is_file()), key=os.path.getsize)
        victim.chmod(0o600)
    else:
        victim = lab.far / "music" / DAYS[0] / "uploads.tar.gz"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    stamp = os.stat(str(victim))
    victim.write_bytes(bytes(content))
    os.utime(str(victim), (stamp.st_atime, stamp.st_mtime))
    with pytest.raises((SetError, OffsiteError)):
        lab.do("verified", lab.destination(kind, retries=0))


@pytest.mark.parametrize("kind", ["local", "ssh", "rclone"])
def test_what_was_damaged_on_the_way_back_is_never_published(lab, kind):
    make_set(lab.root, 1)
    lab.do("copied", lab.destination(kind))
    (lab.far / "music" / DAYS[0] / "config.tar.gz").write_bytes(b"secret X")
    elsewhere = lab.path / "new_host"
    with pytest.raises(SetError, match="config.tar.gz"):
        lab.do("fetched", lab.destination(kind), root=elsewhere)
    assert [name for name in os.listdir(str(elsewhere)) if not name.endswith(".lock")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_far_end_keeps_what_retention_says(lab, kind):
    for day in range(1, 7):
        folder = make_set(lab.root, day)
        if day == 2:
            prove(folder)
        lab.do("copied", lab.destination(kind))
    rules = lab.destination(kind, retention={"keep_last": 2})
    predicted = lab.do("pruned", rules, check=True)
    assert predicted["removed"] == [DAYS[3], DAYS[2], DAYS[0]]
    assert lab.listed(rules) == DAYS[:6]
    pruned = lab.do("pruned", rules)
    assert pruned["removed"] == predicted["removed"]
    # The second one is the newest proven set.
    assert lab.listed(rules) == [DAYS[1], DAYS[4], DAYS[5]]
    assert not lab.do("pruned", rules)["changed"]
    elsewhere = lab.path / "new_host"
    for source in (DAYS[1], "latest_proven", "latest"):
        path = lab.do("fetched", rules, source, root=elsewhere)["path"]
        assert os.path.basename(path) == (DAYS[5] if source == "latest" else DAYS[1])
        assert is_whole(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_drill_after_the_copy_is_told_there(lab, kind):
    first = make_set(lab.root, 1)
    lab.do("copied", lab.destination(kind))
    prove(first)
    assert lab.do("copied", lab.destination(kind), check=True)["refreshed"] == [first.name]
    result = lab.do("copied", lab.destination(kind))
    assert result["changed"] and result["refreshed"] == [first.name] and not result["copied"]
    assert lab.do("listed", lab.destination(kind))["sets"][0]["proven"]
    assert not lab.do("copied", lab.destination(kind))["changed"]
    if kind != "restic":
        assert (lab.far / "music" / first.name / "proof.json").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_two_hosts_share_a_place(lab, kind):
    make_set(lab.root, 1)
    other = lab.path / "other"
    make_set(other, 1, files={"config.tar.gz": b"another"})
    lab.do("copied", lab.destination(kind))
    lab.do("copied", lab.destination(kind, host="radio"), root=other)
    with pytest.raises(OffsiteError, match="another set of the same name"):
        lab.do("copied", lab.destination(kind), root=other)
    assert lab.do("fetched", lab.destination(kind, host="radio"), root=lab.path / "new")["changed"]
    assert (lab.path / "new" / DAYS[0] / "config.tar.gz").read_bytes() == b"another"


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_that_is_not_there(lab, kind):
    with pytest.raises(SetError, match="no set backup_2026-11-09.*of the host music"):
        lab.do("fetched", lab.destination(kind), DAYS[8])
    with pytest.raises(SetError, match="no set latest in"):
        lab.do("copied", lab.destination(kind), root=lab.path / "empty")


def test_a_local_set_that_is_not_whole_is_not_copied(lab):
    (make_set(lab.root, 1) / "config.tar.gz").unlink()
    with pytest.raises(SetError, match="config.tar.gz is missing"):
        lab.do("copied", lab.destination(), DAYS[0])
    assert os.listdir(str(lab.far)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_people_said_of_a_set_goes_with_it(lab, kind):
    pinned, shrunk = make_set(lab.root, 1), make_set(lab.root, 2, shrunk=True)
    (pinned / "pinned").touch()
    for day in DAYS[:2]:
        lab.do("copied", lab.destination(kind), day)
    flags = [(item["pinned"], item["shrunk"]) for item in lab.do("listed", lab.destination(kind))["sets"]]
    assert flags == [(True, False), (False, True)]
    (shrunk / "accepted").touch()
    assert lab.do("copied", lab.destination(kind))["refreshed"] == [shrunk.name]
    rules = lab.destination(kind, retention={"keep_last": 1})
    assert lab.do("pruned", rules)["removed"] == []
    fetched = lab.do("fetched", rules, pinned.name, root=lab.path / "new_host")["path"]
    assert sorted(os.listdir(fetched)) == sorted(os.listdir(str(pinned)))
    (pinned / "pinned").unlink()
    assert lab.do("copied", lab.destination(kind))["refreshed"] == [pinned.name]
    assert lab.do("pruned", rules)["removed"] == [pinned.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_that_was_made_anew_evicts_nothing_of_what_it_had(lab, kind):
    for day in (1, 2, 3):
        make_set(lab.root, day)
        lab.do("copied", lab.destination(kind))
    rules = lab.destination(kind, retention={"keep_last": 2})
    anew = lab.path / "anew"
    for day in (10, 11, 12):
        # Nothing here tells that it holds next to nothing.
        latest = make_set(anew, day, shrunk=True)
        lab.do("copied", rules, root=anew)
        pruned = lab.do("pruned", rules, root=anew)
        (alarm,) = pruned["alarms"]
        assert lab.do("listed", rules)["sets"][-1]["where"] in alarm
        assert "uploads: 0 bytes, %s in %s" % (human(10**6), DAYS[2]) in alarm
    # The oldest of either kind have had their time.
    assert lab.listed(rules) == DAYS[1:3] + DAYS[10:12]
    assert lab.do("pruned", dict(rules, retention={"keep_last": 1}), root=anew, shrink_alarm=0, check=True)["removed"] == [
        DAYS[10],
        DAYS[2],
        DAYS[1],
    ]

    # A person says that it is right.
    (latest / "accepted").touch()
    assert lab.do("copied", rules, root=anew)["refreshed"] == [latest.name]
    pruned = lab.do("pruned", rules, root=anew)
    assert pruned["alarms"] == [] and pruned["removed"] == [DAYS[1]]
    make_set(anew, 13, shrunk=True)
    lab.do("copied", rules, root=anew)
    pruned = lab.do("pruned", rules, root=anew)
    assert pruned["alarms"] == [] and DAYS[2] in pruned["removed"]


def test_a_plan_for_a_host_that_was_made_anew_keeps_what_it_had(lab):
    for day in (1, 2):
        make_set(lab.root, day)
        lab.do("copied", lab.destination())
    known = lab.do("listed", lab.destination())["sets"]
    assert known[0]["holds"] == dict(uploads=10**6, config=10**6)
    anew = lab.path / "anew"
    for day in (10, 11):
        make_set(anew, day, shrunk=True)
    planned = lab.do("planned", lab.destination(retention={"keep_last": 1}), known=known, root=anew)["sets"]
    assert statuses(planned) == [(DAYS[10], "missing"), (DAYS[9], "unwanted")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_set_of_this_run_stays_where_the_clock_was_put_back(lab, kind):
    for day in (1, 2, 3):
        make_set(lab.root, day)
        lab.do("copied", lab.destination(kind), DAYS[day - 1])
    rules = lab.destination(kind, retention={"keep_last": 1})
    pruned = lab.do("pruned", rules, protect=[DAYS[0]])
    assert pruned["removed"] == [DAYS[1]] and lab.listed(rules) == [DAYS[0], DAYS[2]]
    assert pruned["decisions"][-1]["reasons"] == ["made by this run"]


def breaks_off(kind, step, day):
    """The program that fails in a removal, once the copy doesn't count any more: by its arguments."""
    broken, folder = (1, b"", b"connection reset"), "--include=/%s/" % day
    if kind == "rclone" and step == "mark":
        return ["rclone", "purge"], broken
    if kind == "rclone":
        return ["rclone", "delete"] + OPTIONS + ["--exclude=/offsite.partial"], broken
    last = [folder + "***"] if step == "mark" else ["--exclude=/%s/offsite.partial" % day, folder + "***"]
    return ["rsync", "--recursive", "--delete", folder] + last, (30,) + broken[1:]


@pytest.mark.parametrize("kind, step", [("ssh", "data"), ("ssh", "mark"), ("rclone", "data"), ("rclone", "mark")])
def test_a_removal_that_broke_off_is_ended_by_another_try(lab, kind, step):
    lab.guard()
    for day in (1, 2, 3):
        make_set(lab.root, day)
        lab.do("copied", lab.destination(kind))
    rules = lab.destination(kind, retention={"keep_last": 1})
    result = lab.do("pruned", rules, run=Watch(run_program, [breaks_off(kind, step, DAYS[0])]))
    assert result["retried"] == 1 and result["removed"] == DAYS[1::-1]
    assert lab.copies() == [DAYS[2]]


@pytest.mark.parametrize("kind, step", [("ssh", "data"), ("ssh", "mark"), ("rclone", "data"), ("rclone", "mark")])
def test_a_removal_that_broke_off_is_ended_by_another_run(lab, kind, step):
    lab.guard()
    for day in (1, 2):
        make_set(lab.root, day)
        lab.do("copied", lab.destination(kind))
    rules = lab.destination(kind, retries=0, retention={"keep_last": 1})
    with pytest.raises(LinkError, match="Could not remove"):
        lab.do("pruned", rules, run=Watch(run_program, [breaks_off(kind, step, DAYS[0])]))
    assert lab.listed(rules) == [DAYS[1]] and lab.copies() == DAYS[:2]
    # Not made by us, so not ours to remove.
    (lab.far / "music" / DAYS[8]).mkdir()
    (lab.far / "music" / DAYS[8] / "mine").write_text("mine")
    make_set(lab.root, 3)
    lab.do("copied", dict(rules, retries=2))
    assert lab.copies() == [DAYS[1], DAYS[2], DAYS[8]]


def test_a_removal_by_the_shell_there_is_ended_by_another_try(lab):
    for day in (1, 2):
        make_set(lab.root, day)
        lab.do("copied", lab.destination("ssh"))

    def answer_lost(argv, **how):
        """Let the answer be lost after all was done."""
        done = run_program(argv, **how)
        if ".trash_$set" in argv[-1] and not lost:
            lost.append(argv)
            return 255, b"", b"Connection closed"
        return done

    lost = []
    result = lab.do("pruned", lab.destination("ssh", retention={"keep_last": 1}), run=answer_lost)
    assert result["retried"] == 1 and result["removed"] == [DAYS[0]] and lab.copies() == [DAYS[1]]


def test_what_restic_has_forgotten_is_removed_by_another_try(lab):
    uploads = {"uploads.tar.gz": os.urandom(200000)}
    for day in (1, 2):
        make_set(lab.root, day, files=uploads if day == 1 else None)
        lab.do("copied", lab.destination("restic"))

    def breaking(argv, **how):
        """Let the link break between the two halves of forget --prune."""
        if "forget" in argv and not broken:
            broken.append(run_program([word for word in argv if word != "--prune"], **how))
            return 1, b"", b"connection reset"
        return run_program(argv, **how)

    broken = []
    result = lab.do("pruned", lab.destination("restic", retention={"keep_last": 1}), run=breaking)
    assert result["retried"] == 1 and lab.listed(lab.destination("restic")) == [DAYS[1]]
    left = sum(path.stat().st_size for path in (lab.far / "data").rglob("*") if path.is_file())
    assert left < 200000


# -- catching up --------------------------------------------------------------------------------


def statuses(sets):
    return [(item["id"], item["status"]) for item in sets]


@pytest.mark.parametrize("kind", KINDS)
def test_a_destination_that_was_down_gets_what_it_missed(lab, kind):
    for day in range(1, 5):
        make_set(lab.root, day, shrunk=day == 2)
        if day == 1:
            lab.do("copied", lab.destination(kind))
    newest = lab.do("copied", lab.destination(kind))
    assert newest["set"]["id"] == DAYS[3] and newest["missing"] == [DAYS[2], DAYS[1]]
    expected = list(zip(DAYS[3::-1], ["present", "copied", "copied", "present"]))
    predicted = lab.do("caught_up", lab.destination(kind), check=True)
    assert predicted["changed"] and statuses(predicted["sets"]) == expected
    assert lab.listed(lab.destination(kind)) == [DAYS[0], DAYS[3]]

    result = lab.do("caught_up", lab.destination(kind))
    assert result["changed"] and statuses(result["sets"]) == expected and result["missing"] == []
    assert all(item["verified"] and item["where"] for item in result["sets"] if item["status"] == "copied")
    listed = lab.do("listed", lab.destination(kind))["sets"]
    assert [(item["id"], item["shrunk"]) for item in listed] == list(zip(DAYS[:4], [False, True, False, False]))
    assert is_whole(lab.do("fetched", lab.destination(kind), DAYS[1], root=lab.path / "new_host")["path"])

    again = lab.do("caught_up", lab.destination(kind))
    assert not again["changed"] and {status for unused, status in statuses(again["sets"])} == {"present"}


def test_nothing_comes_that_retention_there_would_not_keep(lab):
    for day in range(1, 6):
        make_set(lab.root, day)
    rules = lab.destination(retention={"keep_last": 3})
    assert lab.do("copied", rules)["missing"] == [DAYS[3], DAYS[2]]
    caught_up = lab.do("caught_up", rules)
    wanted = ["present", "copied", "copied", "unwanted", "unwanted"]
    assert statuses(caught_up["sets"]) == list(zip(DAYS[4::-1], wanted))
    assert lab.listed(rules) == DAYS[2:5]
    assert lab.do("pruned", rules)["removed"] == []


def test_what_is_damaged_here_keeps_no_other_from_coming(lab):
    for day in range(1, 5):
        make_set(lab.root, day)
    lab.do("copied", lab.destination())
    (lab.root / DAYS[1] / "config.tar.gz").write_bytes(b"secret X")
    with pytest.raises(LinkError, match="1 of 3 missed sets were not copied. .*%s is not what" % DAYS[1]) as caught:
        lab.do("caught_up", lab.destination())
    told = caught.value.details["sets"]
    assert statuses(told) == list(zip(DAYS[3::-1], ["present", "copied", "missing", "copied"]))
    assert "is not what it should be" in told[2]["problem"]
    assert lab.listed(lab.destination()) == [DAYS[0], DAYS[2], DAYS[3]]


def test_a_catch_up_that_broke_off_is_resumed(lab):
    """The newest first; what is half there stays for the next run, which sends no more than what lacks."""
    uploads = {day: {"uploads.tar.gz": os.urandom(200000)} for day in range(1, 5)}
    for day in range(1, 5):
        make_set(lab.root, day, files=uploads[day])
    lab.do("copied", lab.destination("ssh"))

    def breaking(argv, **how):
        """Let the link break when the second one is to be checked."""
        if CHECK in " ".join(argv).replace("'\"'\"'", "'") and DAYS[1] in argv[-1]:
            lab.break_link(99)
        return run_program(argv, **how)

    with pytest.raises(LinkError, match="1 of 3 missed sets were not copied. .*Connection refused") as caught:
        lab.do("caught_up", lab.destination("ssh"), run=breaking)
    told = caught.value.details["sets"]
    assert statuses(told) == list(zip(DAYS[3::-1], ["present", "copied", "missing", "missing"]))
    # Whose turn it was not is not tried on a link that is gone.
    assert "problem" in told[2] and "problem" not in told[3]
    lab.break_link(0)
    assert lab.copies() == [".%s.partial" % DAYS[1], DAYS[2], DAYS[3]]

    make_set(lab.root, 5)
    lab.do("copied", lab.destination("ssh"))
    resumed = lab.do("caught_up", lab.destination("ssh"))
    assert statuses(resumed["sets"])[3:] == [(DAYS[1], "copied"), (DAYS[0], "copied")]
    assert resumed["sets"][3]["bytes_sent"] < 20000 < resumed["sets"][4]["bytes_sent"]
    assert lab.copies() == DAYS[:5]


def test_after_its_time_no_other_set_is_begun(lab):
    for day in range(1, 4):
        make_set(lab.root, day)
    lab.do("copied", lab.destination())
    result = lab.do("caught_up", lab.destination(), within=0)
    assert not result["changed"] and result["missing"] == [DAYS[1], DAYS[0]]
    assert lab.listed(lab.destination()) == [DAYS[2]]


def test_another_set_of_the_same_name_is_no_copy(lab):
    make_set(lab.root, 1)
    make_set(lab.root, 2)
    other = lab.path / "other"
    make_set(other, 1, files={"config.tar.gz": b"another"})
    lab.do("copied", lab.destination(), root=other)
    with pytest.raises(OffsiteError, match="another set of the same name"):
        lab.do("caught_up", lab.destination())
    assert lab.listed(lab.destination()) == DAYS[:2]


def test_an_encrypted_copy_that_comes_late_holds_its_own_files(lab, age_keys):
    identity, public = age_keys
    make_set(lab.root, 1, files={"data.tar.gz": b"only this one"})
    make_set(lab.root, 2)
    make_set(lab.root, 3)
    destination = lab.destination(recipients=[public], identity_file=identity)
    lab.do("caught_up", destination)
    for day in DAYS[:3]:
        fetched = lab.do("fetched", destination, day, root=lab.path / "new_host")["path"]
        assert sorted(os.listdir(fetched)) == sorted(os.listdir(str(lab.root / day)))
    assert not (lab.far / "music" / DAYS[1] / "data.tar.gz.age").exists()


def test_a_plan_for_a_place_that_only_others_reach(lab):
    for day in range(1, 5):
        make_set(lab.root, day, shrunk=day == 3)
    (lab.root / DAYS[1] / "pinned").touch()
    watch = Watch(run_program)
    known = [dict(id=DAYS[3], components=["uploads", "config"], project="echo")]
    rules = lab.destination(target="/nowhere/here", retention={"keep_last": 1})
    planned = lab.do("planned", rules, known=known, run=watch)
    assert watch.calls == [] and not planned["changed"]
    # The last set that did not shrink is the newest one, so the one that did is kept by no rule.
    assert statuses(planned["sets"]) == list(zip(DAYS[3::-1], ["present", "unwanted", "missing", "unwanted"]))
    assert [(item["pinned"], item["shrunk"]) for item in planned["sets"]][1:3] == [(False, True), (True, False)]
    with pytest.raises(SetError, match="is not the id"):
        lab.do("planned", rules, known=[dict(id="../x")])


def test_a_plan_asks_the_far_end_where_nothing_is_told(lab):
    make_set(lab.root, 1)
    make_set(lab.root, 2)
    lab.do("copied", lab.destination())
    assert statuses(lab.do("planned", lab.destination())["sets"]) == [(DAYS[1], "present"), (DAYS[0], "missing")]
    assert lab.listed(lab.destination()) == [DAYS[1]]


def test_what_the_host_knows_goes_with_a_set_that_was_received(lab):
    first = make_set(lab.root, 1)
    make_set(lab.root, 2, shrunk=True)
    here = dict(root=lab.far / "music")
    for day in DAYS[:2]:
        partial = lab.far / "music" / (".%s.partial" % day)
        partial.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", "%s/." % (lab.root / day), str(partial)], check=True)
        known = lab.do("planned", lab.destination(), known=[])["sets"]
        assert lab.do("received", lab.destination(), day, known=known, **here)["copied"]
    flags = [(item["pinned"], item["shrunk"]) for item in lab.do("listed", lab.destination())["sets"]]
    assert flags == [(False, False), (False, True)]

    (first / "pinned").touch()
    known = lab.do("planned", lab.destination(), known=[])["sets"]
    predicted = lab.do("received", lab.destination(), DAYS[1], known=known, check=True, **here)
    assert predicted["changed"] and predicted["refreshed"] == [DAYS[0]]
    assert lab.do("received", lab.destination(), DAYS[1], known=known, **here)["refreshed"] == [DAYS[0]]
    assert lab.do("listed", lab.destination())["sets"][0]["pinned"]
    assert not lab.do("received", lab.destination(), DAYS[1], known=known, **here)["changed"]
    # Of another set of the same name nothing is known.
    other = [dict(known[1], manifest_sha256="0" * 64, pinned=False)]
    assert not lab.do("received", lab.destination(), DAYS[1], known=other, **here)["changed"]


def test_a_snapshot_that_comes_late_is_not_the_latest(lab, tmp_path):
    make_set(lab.root, 1)
    newest = make_set(lab.root, 2)
    lab.do("copied", lab.destination("restic"))
    lab.do("caught_up", lab.destination("restic"))
    environment = dict(os.environ, RESTIC_PASSWORD=PASSWORD, RESTIC_REPOSITORY=str(lab.far), TZ="UTC")
    command = ["restic", "restore", "latest", "--target=%s" % (tmp_path / "out")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert (tmp_path / "out" / "manifest.json").read_text() == (newest / "manifest.json").read_text()
    listed = subprocess.run(["restic", "snapshots", "--json"], env=environment, check=True, capture_output=True).stdout
    assert sorted(snapshot["time"][:19] for snapshot in json.loads(listed)) == ["2026-11-01T03:00:00", "2026-11-02T03:00:00"]


# -- rsync --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "ssh"])
def test_unchanged_files_cost_nothing(lab, kind):
    first = make_set(lab.root, 1)
    sent = lab.do("copied", lab.destination(kind))["bytes_sent"]
    second = make_set(lab.root, 2)
    (second / "uploads.tar.gz").unlink()
    os.link(str(first / "uploads.tar.gz"), str(second / "uploads.tar.gz"))
    assert lab.do("copied", lab.destination(kind))["bytes_sent"] < sent / 10
    inodes = {os.stat(str(lab.far / "music" / day / "uploads.tar.gz")).st_ino for day in DAYS[:2]}
    assert len(inodes) == 1
    lab.do("pruned", lab.destination(kind, retention={"keep_last": 1}))
    assert lab.listed(lab.destination(kind)) == [DAYS[1]]
    assert is_whole(lab.far / "music" / DAYS[1])


def test_a_copy_has_its_name_only_when_it_is_whole(lab):
    """What breaks in the middle leaves a hidden folder, which the next run takes up and others don't see."""
    make_set(lab.root, 1)
    make_set(lab.root, 2)
    for broken_off in DAYS[:2]:
        broken = Watch(run_program, [(["sh", "-c", CHECK], (1, b"", b"config.tar.gz: FAILED"))])
        with pytest.raises(LinkError, match="FAILED"):
            lab.do("copied", lab.destination(retries=0, retention={"keep_last": 1}), broken_off, run=broken)
        assert lab.listed(lab.destination()) == []
    assert lab.copies() == [".%s.partial" % DAYS[1]]
    lab.do("copied", lab.destination())
    assert lab.copies() == [DAYS[1]]


# What lies there when data comes down to the disk; SYNC_FAILS is the disk that doesn't take it.
SYNC = """#!/bin/sh
if [ "$1" = --help ]; then echo "$SYNC_HELP"; exit; fi
echo "$*:" .backup_* backup_* >>"$SYNC_LOG"
exit "${SYNC_FAILS:-0}"
"""


@pytest.mark.parametrize("kind", ["local", "ssh", "received"])
@pytest.mark.parametrize("help_text, arguments", [("-f, --file-system", "-f ."), ("[-df] [FILE]", "-f ."), ("", "")])
def test_a_copy_counts_only_when_its_data_is_on_the_disk(lab, monkeypatch, kind, help_text, arguments):
    (lab.path / "bin" / "sync").write_text(SYNC)
    (lab.path / "bin" / "sync").chmod(0o755)
    monkeypatch.setenv("SYNC_LOG", str(lab.path / "sync_log"))
    monkeypatch.setenv("SYNC_HELP", help_text)
    folder, partial = make_set(lab.root, 1), ".%s.partial" % DAYS[0]

    def copy():
        if kind != "received":
            return lab.do("copied", lab.destination(kind, retries=0))
        subprocess.run(["mkdir", "-p", str(lab.far / "music" / partial)], check=True)
        subprocess.run(["cp", "-r", "%s/." % folder, str(lab.far / "music" / partial)], check=True)
        return lab.do("received", lab.destination(), folder.name, root=lab.far / "music")

    monkeypatch.setenv("SYNC_FAILS", "1")
    with pytest.raises(OffsiteError, match="Could not publish"):
        copy()
    assert partial in lab.copies() and folder.name not in lab.copies()
    (lab.path / "sync_log").unlink()
    monkeypatch.setenv("SYNC_FAILS", "0")
    assert copy()["copied"]
    before, after = (lab.path / "sync_log").read_text().splitlines()
    assert before == "%s: %s backup_*" % (arguments, partial)
    assert after == "%s: .backup_* %s" % (arguments, folder.name)


def test_a_copy_that_is_wrong_is_mended_by_content(lab):
    make_set(lab.root, 1)
    folder = lab.far / "music" / (".%s.partial" % DAYS[0])
    folder.mkdir(parents=True)
    # Of the same size and time, so that rsync takes it for the same.
    good = lab.root / DAYS[0] / "config.tar.gz"
    (folder / "config.tar.gz").write_bytes(b"secret X")
    os.utime(str(folder / "config.tar.gz"), (os.stat(str(good)).st_atime, os.stat(str(good)).st_mtime))
    result = lab.do("copied", lab.destination())
    assert result["retried"] == 1
    assert is_whole(lab.far / "music" / DAYS[0])


def test_without_a_shell_the_receipt_decides(lab):
    lab.guard()
    for day in (1, 2, 3):
        make_set(lab.root, day)
        assert lab.do("copied", lab.destination("ssh"))["verified"] == "rsync --checksum"
    assert lab.do("verified", lab.destination("ssh"))["verified"] == "rsync --checksum"
    (lab.far / "music" / DAYS[1] / "offsite.json").unlink()
    assert lab.listed(lab.destination("ssh")) == [DAYS[0], DAYS[2]]
    lab.do("pruned", lab.destination("ssh", retention={"keep_last": 1}))
    assert lab.copies() == [DAYS[1], DAYS[2]]
    with pytest.raises(OffsiteError, match="no local set"):
        lab.do("verified", lab.destination("ssh"), root=lab.path / "empty")
    assert is_whole(lab.do("fetched", lab.destination("ssh"), root=lab.path / "new_host")["path"])


def test_a_disk_that_is_not_mounted(lab):
    make_set(lab.root, 1)
    for destination in (lab.destination(target="/nowhere/usb"), lab.destination("restic", repository="/nowhere/usb")):
        with pytest.raises(OffsiteError, match="Is the disk mounted") as caught:
            lab.do("copied", destination)
        assert "Destination %s:" % destination["name"] in str(caught.value)
    assert not os.path.exists("/nowhere")


@pytest.mark.parametrize("target", ["nas:/a b", "nas:/a;reboot", "nas:/$(reboot)", "relative", "-oProxyCommand=x:/a"])
def test_targets_that_a_shell_would_take_apart(lab, target):
    make_set(lab.root, 1)
    watch = Watch(run_program)
    with pytest.raises(OffsiteError, match="shell would take apart|neither an absolute"):
        lab.do("copied", lab.destination("ssh", target=target), run=watch)
    assert [argv for argv, unused in watch.calls if argv[0] == "ssh" and argv != ["ssh", "-V"]] == []


def test_ssh_is_told_key_and_port_and_asks_nobody(lab):
    make_set(lab.root, 1)
    lab.do(
        "copied", lab.destination("ssh", port=2222, ssh_key="/key", ssh_options=["StrictHostKeyChecking=accept-new"])
    )
    # A script has lines of its own in the log.
    used = [call for call in lab.ssh_calls() if call.startswith("-o")]
    assert len(used) > 3
    assert all("-p 2222 -i /key" in call and "BatchMode=yes" in call for call in used)


def test_a_set_that_others_brought_is_received(lab):
    folder = make_set(lab.root, 1)
    partial = lab.far / "music" / (".%s.partial" % folder.name)
    partial.parent.mkdir()
    subprocess.run(["cp", "-r", "%s/." % folder, str(partial)], check=True)
    received = dict(root=lab.far / "music")
    assert lab.do("received", lab.destination(), folder.name, check=True, **received)["changed"]
    (partial / "config.tar.gz").write_bytes(b"secret X")
    with pytest.raises(OffsiteError, match="not what it should be"):
        lab.do("received", lab.destination(), folder.name, **received)
    (partial / "config.tar.gz").write_bytes(b"secret 1")
    assert lab.do("received", lab.destination(), folder.name, **received)["copied"]
    assert lab.listed(lab.destination()) == [folder.name]
    assert not lab.do("received", lab.destination(), folder.name, **received)["changed"]


# -- the link -----------------------------------------------------------------------------------


def test_a_broken_link_is_tried_again_after_longer_and_longer_pauses(lab):
    make_set(lab.root, 1)
    lab.break_link(2)
    result = lab.do("copied", lab.destination("ssh", retry_delay=10))
    assert result["copied"] and result["retried"] == 2
    assert lab.pauses == [10, 20]


def test_a_link_that_stays_broken_fails_loudly(lab):
    folder = make_set(lab.root, 1)
    lab.break_link(99)
    with pytest.raises(LinkError, match="Destination ssh: .*Connection refused") as caught:
        lab.do("copied", lab.destination("ssh"))
    assert caught.value.as_result()["attempts"] == 3
    assert caught.value.as_result()["destination"] == "ssh"
    assert len(lab.pauses) == 2
    assert is_whole(folder)


def test_what_another_try_does_not_mend_is_not_tried_again(lab):
    make_set(lab.root, 1)
    refused = (255, b"", b"backup@nas: Permission denied (publickey).")
    with pytest.raises(OffsiteError, match="Name the key as ssh_key"):
        lab.do("copied", lab.destination("ssh"), run=Watch(run_program, [(["ssh", "-o"], refused)]))
    assert lab.pauses == []


def test_the_pauses_have_an_end():
    pauses = []
    with pytest.raises(LinkError):
        persist(_broken, 8, 30, pauses.append)
    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600]


def _broken():
    raise LinkError("The link is broken.")


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path):
    script = "sleep 300 & echo $! > %s; wait" % (tmp_path / "pid")
    with pytest.raises(LinkError, match="not done after 1 seconds"):
        run_program(["sh", "-c", script], dict(os.environ), timeout=1)
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(child)


def _lives(pid):
    try:
        with open("/proc/%d/stat" % pid) as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_program_has_no_terminal_to_ask_at():
    code, stdout, unused = run_program(
        [sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"], dict(os.environ)
    )
    assert (code, stdout) == (0, b"True\n")


def test_two_runs_at_once(lab):
    make_set(lab.root, 1)
    lock = lab.root / ".offsite_local.lock"
    with subprocess.Popen(
        ["flock", str(lock), "sh", "-c", "echo locked; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(OffsiteError, match="Another run is at work"):
            lab.do("copied", lab.destination())
        assert lab.listed(lab.destination()) == []
        other.communicate(b"\n")
    assert lab.do("copied", lab.destination())["copied"]


# -- programs and secrets -----------------------------------------------------------------------


@pytest.mark.parametrize("kind, package", [("local", "rsync"), ("restic", "restic"), ("rclone", "rclone")])
def test_a_missing_program_names_its_package(lab, kind, package, monkeypatch):
    make_set(lab.root, 1)
    destination = lab.destination(kind)
    monkeypatch.setenv("PATH", str(lab.path / "bin"))
    with pytest.raises(OffsiteError, match="no program %s.*apt-get install %s" % (package, package)):
        lab.do("copied", destination)


@pytest.mark.parametrize(
    "said, problem",
    [("restic 0.9.4 compiled with go1", "of version 0.9.4; at least 0.12"), ("no idea", "doesn't tell its version")],
)
def test_a_program_that_is_too_old(lab, said, problem):
    make_set(lab.root, 1)
    watch = Watch(run_program, [(["restic", "version"], (0, said.encode(), b""))])
    with pytest.raises(OffsiteError, match=problem):
        lab.do("copied", lab.destination("restic"), run=watch)


def test_secrets_are_in_no_argument_and_no_message(lab):
    lab.fresh = True
    make_set(lab.root, 1)
    watch = Watch(run_program)
    lab.do("copied", lab.destination("restic"), run=watch)
    assert SECRET not in watch.arguments()
    assert any(how["environment"].get("RESTIC_PASSWORD") == SECRET for unused, how in watch.calls)
    loud = (1, b"", b"Fatal: %s at https://me:pa55@host/ failed" % SECRET.encode())
    with pytest.raises(LinkError) as caught:
        lab.do("copied", lab.destination("restic", retries=0), run=Watch(run_program, [(["restic", "--quiet"], loud)]))
    told = json.dumps(caught.value.as_result())
    assert SECRET not in told and "pa55" not in told and "***" in told


@pytest.mark.parametrize(
    "place", [dict(repository="rest:https://me:pa55@host/"), dict(repository="s3:https://a:b@c/d")]
)
def test_a_password_in_the_url_is_refused(lab, place):
    with pytest.raises(OffsiteError, match="There is a password in the repository") as caught:
        lab.do("copied", lab.destination("restic", **place))
    assert "pa55" not in str(caught.value)


def test_programs_keep_the_lock_as_long_as_they_live(tmp_path):
    lock = os.open(str(tmp_path / "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    finished = Programs(keep_open=lock)(["readlink", "/proc/self/fd/%d" % lock])
    os.close(lock)
    assert finished.stdout.strip() == str(tmp_path / "lock")


# -- restic -------------------------------------------------------------------------------------


def test_a_foreign_restic_reads_the_copy(lab, tmp_path):
    lab.fresh = True
    folder = make_set(lab.root, 1)
    lab.do("copied", lab.destination("restic"))
    environment = dict(os.environ, RESTIC_PASSWORD=SECRET, RESTIC_REPOSITORY=str(lab.far))
    command = ["restic", "restore", "latest", "--tag=" + "id:" + folder.name, "--target=%s" % (tmp_path / "out")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert is_whole(tmp_path / "out")


def test_a_wrong_password(lab):
    make_set(lab.root, 1)
    lab.do("copied", lab.destination("restic"))
    with pytest.raises(OffsiteError, match="Is it the password"):
        lab.do("copied", lab.destination("restic", secret_environment={}, password="not this one"))
    assert lab.pauses == []


def test_a_snapshot_that_was_not_checked_does_not_count(lab):
    make_set(lab.root, 1)
    make_set(lab.root, 2)
    lab.do("copied", lab.destination("restic"), DAYS[0])
    broken = Watch(run_program, [(["restic", "--quiet", "check"], (1, b"", b"connection reset"))])
    with pytest.raises(LinkError, match="is damaged: connection reset"):
        lab.do("copied", lab.destination("restic", retries=0), run=broken)
    assert lab.listed(lab.destination("restic")) == [DAYS[0]]
    assert lab.do("copied", lab.destination("restic"))["copied"]
    make_set(lab.root, 3)
    lab.do("copied", lab.destination("restic"))
    lab.do("pruned", lab.destination("restic", retention={"keep_last": 1}))
    environment = dict(os.environ, RESTIC_PASSWORD=PASSWORD, RESTIC_REPOSITORY=str(lab.far))
    left = subprocess.run(["restic", "snapshots", "--json"], env=environment, check=True, capture_output=True).stdout
    assert len(json.loads(left)) == 1


def test_the_lock_of_a_dead_restic_is_removed(lab):
    make_set(lab.root, 1)
    locked = (1, b"", b"Fatal: unable to create lock in backend: repository is already locked by PID 7")
    watch = Watch(run_program, [(["restic", "--quiet", "backup"], locked)])
    assert lab.do("copied", lab.destination("restic"), run=watch)["retried"] == 1
    assert ["restic", "--quiet", "unlock"] in [argv for argv, unused in watch.calls]


def test_what_two_sets_have_in_common_is_stored_once(lab):
    uploads = os.urandom(3 * 1024 * 1024)
    make_set(lab.root, 1, files={"uploads.tar.gz": uploads})
    first = lab.do("copied", lab.destination("restic"))
    make_set(lab.root, 2, files={"uploads.tar.gz": uploads})
    second = lab.do("copied", lab.destination("restic"))
    assert first["bytes_sent"] > len(uploads) > 20 * second["bytes_sent"]


# -- rclone -------------------------------------------------------------------------------------


def test_an_upload_counts_with_its_receipt(lab):
    make_set(lab.root, 1)
    make_set(lab.root, 2)
    rules = lab.destination("rclone", retries=0, retention={"keep_last": 1})
    broken = Watch(run_program, [(["rclone", "check"], (1, b"", b"connection reset"))])
    with pytest.raises(LinkError):
        lab.do("copied", rules, DAYS[0], run=broken)
    assert lab.copies() == [DAYS[0]]
    assert lab.listed(lab.destination("rclone")) == []
    # Not made by us, so not ours to remove.
    (lab.far / "music" / DAYS[8]).mkdir()
    (lab.far / "music" / DAYS[8] / "mine").write_text("mine")
    lab.do("copied", rules)
    assert lab.copies() == [DAYS[1], DAYS[8]]


def test_without_hashes_rclone_reads_the_copy_back(lab):
    make_set(lab.root, 1)
    obscured = subprocess.run(["rclone", "obscure", SECRET], check=True, capture_output=True, text=True).stdout.strip()
    environment = {"RCLONE_CONFIG_FAR_TYPE": "crypt", "RCLONE_CONFIG_FAR_REMOTE": str(lab.far)}
    destination = lab.destination(
        "rclone", environment=environment, secret_environment={"RCLONE_CONFIG_FAR_PASSWORD": obscured}
    )
    assert lab.do("copied", destination)["verified"] == "rclone check, read back"
    assert is_whole(lab.do("fetched", destination, root=lab.path / "new_host")["path"])


def test_a_remote_that_nobody_defined(lab):
    make_set(lab.root, 1)
    with pytest.raises(OffsiteError, match="Are the remote and its keys right"):
        lab.do("copied", lab.destination("rclone", remote="nowhere:x"))
    with pytest.raises(OffsiteError, match="is not remote:path"):
        lab.do("copied", lab.destination("rclone", remote="nowhere"))


# -- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, words",
    [
        ("local", ["--bwlimit=2048"]),
        ("ssh", ["--bwlimit=2048"]),
        ("restic", ["--limit-upload=2048", "--limit-download=2048"]),
        ("rclone", ["--bwlimit=2048K"]),
    ],
)
def test_the_bandwidth_limit_reaches_the_program(lab, kind, words):
    make_set(lab.root, 1)
    watch = Watch(run_program)
    lab.do("copied", lab.destination(kind, bandwidth_limit=2 * 1024 * 1024), run=watch)
    assert all(word in watch.arguments() for word in words)


# -- age ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["local", "ssh", "rclone"])
def test_encrypted_copies(lab, kind, age_keys, tmp_path):
    identity, recipient = age_keys
    folder = make_set(lab.root, 1)
    prove(folder)
    encrypted = lab.destination(kind, recipients=[recipient])
    assert lab.do("copied", encrypted)["copied"]
    copy = lab.far / "music" / folder.name
    assert is_whole(copy)
    assert not any(b"secret 1" in path.read_bytes() for path in copy.iterdir())
    assert sorted(path.name for path in copy.iterdir() if path.suffix != ".age") == [
        "SHA256SUMS",
        "offsite.json",
        "proof.json",
    ]
    foreign = subprocess.run(
        ["age", "--decrypt", "--identity", identity, str(copy / "config.tar.gz.age")], check=True, capture_output=True
    )
    assert foreign.stdout == b"secret 1"
    assert lab.do("verified", encrypted)["verified"]

    elsewhere = tmp_path / "new_host"
    with pytest.raises(OffsiteError, match="no identity is named"):
        lab.do("fetched", encrypted, root=elsewhere)
    with pytest.raises(OffsiteError, match="Without it the copy can't be read"):
        subprocess.run(["age-keygen", "-o", str(tmp_path / "other")], check=True, capture_output=True)
        lab.do("fetched", dict(encrypted, identity_file=str(tmp_path / "other")), root=elsewhere)
    fetched = lab.do("fetched", dict(encrypted, identity_file=identity), root=elsewhere)
    assert is_whole(fetched["path"])
    assert sorted(os.listdir(fetched["path"])) == sorted(os.listdir(str(folder)))
    assert fetched["set"]["proven"] and fetched["set"]["age"]
    assert lab.do("fetched", dict(encrypted, identity_file=identity), root=elsewhere)["changed"] is False


def test_recipients_that_are_none(lab):
    make_set(lab.root, 1)
    with pytest.raises(OffsiteError, match="Are the recipients"):
        lab.do("copied", lab.destination(recipients=["nobody"]))
    with pytest.raises(OffsiteError, match="restic encrypts by itself"):
        lab.do("copied", lab.destination("restic", recipients=["age1xyz"]))
    assert [name for name in os.listdir(str(lab.root)) if name.startswith(".offsite") and "lock" not in name] == []


def test_what_is_damaged_is_not_locked_away(lab, age_keys):
    (make_set(lab.root, 1) / "config.tar.gz").write_bytes(b"secret X")
    with pytest.raises(SetError, match="config.tar.gz is not what SHA256SUMS says"):
        lab.do("copied", lab.destination(recipients=[age_keys[1]]))


@pytest.mark.parametrize("recipients", [False, True])
def test_room_is_asked_for_first(lab, age_keys, monkeypatch, recipients):
    make_set(lab.root, 1)
    encrypted = lab.destination(recipients=[age_keys[1]] if recipients else [])
    if not recipients:
        lab.do("copied", encrypted)
        monkeypatch.setattr(
            "ansible_collections.echo_music.ops.plugins.module_utils.offsite.free_bytes", lambda path: 1
        )
        with pytest.raises(SetError, match="The set needs .* are free"):
            lab.do("fetched", encrypted, root=lab.path / "new_host")
        return
    monkeypatch.setattr(offsite_receipt, "free_bytes", lambda path: 1)
    with pytest.raises(OffsiteError, match="Encrypting the set needs"):
        lab.do("copied", encrypted)


# -- what comes from afar -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": "echo-offsite/2"}',
        b'{"format": "echo-offsite/1", "id": "../../etc"}',
        b'{"format": "echo-offsite/1", "id": 7}',
        b'{"format": "echo-offsite/1", "id": "backup_2026-11-01_03-00-00", "host": 1}',
        b"\xff\xfe",
        b"[" * 100000,
    ],
)
def test_a_receipt_that_is_none(data):
    assert offsite_receipt.parse(data) is None


def test_what_a_receipt_says_that_a_set_holds_is_numbers_by_plain_names(lab):
    make_set(lab.root, 1)
    lab.do("copied", lab.destination())
    receipt = json.loads((lab.far / "music" / DAYS[0] / "offsite.json").read_text())
    for holds in (None, [], {"uploads": "9"}, {"uploads": True}, {"\x1b[2J": 9}, {"a;b": 9}, {"a,b=": 9}):
        assert offsite_receipt.parse(json.dumps(dict(receipt, holds=holds)).encode())["holds"] == {}
    assert offsite_receipt.parse(json.dumps(receipt).encode())["holds"] == dict(uploads=10**6, config=10**6)


@pytest.mark.parametrize("line", ["0" * 64 + "  ../passwd", "0" * 64 + "  a/b", "0" * 63 + "  a", "nonsense"])
def test_sums_that_lead_elsewhere(line):
    with pytest.raises(SetError, match="has a line that is none"):
        offsite_receipt.parse_sums(line + "\n", "there")


@pytest.mark.parametrize("wrong", [dict(name="../x"), dict(host="../x"), dict(target=None)])
def test_a_destination_that_is_wrong(lab, wrong):
    make_set(lab.root, 1)
    with pytest.raises(OffsiteError):
        lab.do("copied", lab.destination(**wrong))
