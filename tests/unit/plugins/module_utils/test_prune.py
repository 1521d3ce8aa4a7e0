# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets that go and sets that stay, on real files, with processes that are really killed."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from made_sets import NOW, make_script_set, make_set, names, set_id

from ansible_collections.echo_music.ops.plugins.module_utils import prune, set_files, set_use
from ansible_collections.echo_music.ops.plugins.module_utils.backup_set import ensure_set
from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.proof import DRILL, fingerprint, record
from ansible_collections.echo_music.ops.plugins.module_utils.prune import ensure_pruned
from ansible_collections.echo_music.ops.plugins.module_utils.set_list import list_sets
from ansible_collections.echo_music.ops.plugins.module_utils.set_use import reading, unread
from ansible_collections.echo_music.ops.plugins.module_utils.shrink import find_shrunk, holdings, least_share

CHECKOUT = pathlib.Path(__file__).resolve().parents[4]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "echo"
    folder.mkdir(mode=0o700)
    return folder


def run(root, check=False, **options):
    return ensure_pruned(str(root), options.pop("retention", {"keep_last": 2}), check=check, now=NOW, **options)


def ids(items):
    return [item["id"] for item in items]


def prove(root, name):
    folder = str(root / name)
    proof = dict(level=DRILL, passed=True, manifest_sha256=fingerprint(folder), rto_seconds=1.0)
    record(folder, dict(proof, started="2026-11-24T03:00:00Z", finished="2026-11-24T03:00:01Z"))


# -- the good day ------------------------------------------------------------------------------


def test_what_no_rule_keeps_is_deleted(root):
    made = [make_set(root, age) for age in range(5)]
    os.symlink(made[0], str(root / "latest"))
    result = run(root)
    assert ids(result["kept"]) == made[:2] and ids(result["deleted"]) == made[2:]
    assert names(root) == sorted(made[:2])
    assert result["changed"] and result["alarms"] == [] and result["foreign"] == []
    assert result["deleted"][0]["reasons"] == ["no rule keeps it"]
    again = run(root)
    assert not again["changed"] and again["kept"] == result["kept"] and again["deleted"] == []


def test_check_mode_says_the_same_and_touches_nothing(root):
    made = [make_set(root, age) for age in range(4)]
    before = {path: path.stat().st_ctime_ns for path in root.rglob("*")}
    predicted = run(root, check=True)
    assert {path: path.stat().st_ctime_ns for path in root.rglob("*")} == before
    assert ids(predicted["deleted"]) == made[2:]
    assert run(root) == predicted


def test_the_bytes_freed_are_those_that_no_other_set_has(root):
    made = [make_set(root, age) for age in range(3)]
    shared = root / made[2] / "uploads.tar.gz"
    (root / made[0] / "uploads.tar.gz").unlink()
    os.link(str(shared), str(root / made[0] / "uploads.tar.gz"))
    gone = [path for path in (root / made[2]).iterdir() if path.name != "uploads.tar.gz"]
    expected = sum(path.stat().st_blocks * 512 for path in gone)
    assert run(root, check=True)["bytes_freed"] == run(root)["bytes_freed"] == expected > 0
    subprocess.check_call(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=str(root / made[0]))


def test_an_archive_that_only_deleted_sets_share_counts_once(root):
    made = [make_set(root, age) for age in range(4)]
    for name in made[3:]:
        (root / name / "uploads.tar.gz").unlink()
        os.link(str(root / made[2] / "uploads.tar.gz"), str(root / name / "uploads.tar.gz"))
    inodes = {path.stat().st_ino: path.stat().st_blocks * 512 for name in made[2:] for path in (root / name).iterdir()}
    assert run(root)["bytes_freed"] == sum(inodes.values())


def test_no_root_and_an_empty_one(root):
    assert run(root)["kept"] == []
    result = ensure_pruned(str(root / "missing"), {"keep_last": 1})
    assert (result["changed"], result["kept"], result["bytes_freed"]) == (False, [], 0)


@pytest.mark.parametrize(
    "options, named", [(dict(retention={"keep_lots": 1}), "keep_lots"), (dict(shrink_alarm=50), "50")]
)
def test_a_wrong_option_is_named_before_anything_goes(root, options, named):
    make_set(root, 1)
    with pytest.raises(SetError, match=named):
        run(root, **options)


# -- what stays --------------------------------------------------------------------------------


def test_a_pinned_and_a_proven_set_stay(root):
    made = [make_set(root, age) for age in range(6)]
    assert ensure_set(None, "pinned", str(root), id=made[4])["changed"]
    assert not ensure_set(None, "pinned", str(root), id=made[4])["changed"]
    prove(root, made[5])
    result = run(root, retention={"keep_last": 1})
    assert [(item["id"], item["reasons"]) for item in result["kept"]] == [
        (made[0], ["newest good set", "keep_last: 1 of 1"]),
        (made[4], ["pinned"]),
        (made[5], ["newest proven set"]),
    ]
    assert ensure_set(None, "unpinned", str(root), id=made[4])["changed"]
    assert ids(run(root, retention={"keep_last": 1})["deleted"]) == [made[4]]


def test_marks_in_check_mode_and_of_nothing(root):
    name = make_set(root, 1)
    predicted = ensure_set(None, "accepted", str(root), check=True, id=name)
    assert predicted["changed"] and predicted["set"]["accepted"] and not list_sets(str(root))[0]["accepted"]
    assert predicted["diff"]["before"] != predicted["diff"]["after"]
    os.symlink(name, str(root / set_id(2)))
    for absent in (set_id(3), set_id(2)):
        with pytest.raises(SetError, match="There is no set"):
            ensure_set(None, "pinned", str(root), id=absent)
    with pytest.raises(SetError, match="not the id"):
        ensure_set(None, "pinned", str(root), id="../etc")


def test_a_mark_made_by_hand_counts(root):
    made = [make_set(root, age) for age in range(3)]
    (root / made[2] / "pinned").touch()
    assert ids(run(root, retention={"keep_last": 1})["deleted"]) == [made[1]]


def test_the_script_s_folders_are_told_and_left_alone_unless_asked(root):
    made = [make_set(root, age) for age in range(3)]
    old = [make_script_set(root, age) for age in (100, 101)]
    result = run(root)
    assert ids(result["foreign"]) == old[::-1] and ids(result["deleted"]) == made[2:]
    result = run(root, script_sets=True)
    assert result["foreign"] == [] and ids(result["deleted"]) == old
    assert names(root) == sorted(made[:2])


def test_a_script_s_folder_fills_slots_once_it_is_asked_for(root):
    old = [make_script_set(root, age) for age in range(3)]
    assert ids(run(root, script_sets=True)["kept"]) == old[:2]


def test_whatever_else_lies_there_is_left_alone(root, tmp_path):
    made = [make_set(root, age) for age in range(3)]
    elsewhere = tmp_path / "elsewhere"
    make_set(elsewhere, 50)
    os.symlink(str(elsewhere / set_id(50)), str(root / set_id(50)))
    for folder in ("photos", ".failed_" + set_id(60), ".%s.partial" % set_id(61), "backup_of_my_own"):
        (root / folder).mkdir()
        (root / folder / "file").write_text("mine")
    (root / set_id(70)).write_text("a file")
    before = names(root)
    run(root, retention={"keep_last": 1}, script_sets=True)
    assert names(root) == sorted(set(before) - set(made[1:]))
    assert (elsewhere / set_id(50) / "manifest.json").exists()


def test_a_link_in_a_set_is_removed_and_not_followed(root, tmp_path):
    make_set(root, 0)
    gone = make_set(root, 1)
    target = tmp_path / "precious"
    target.mkdir()
    (target / "file").write_text("mine")
    os.symlink(str(target), str(root / gone / "linked"))
    run(root, retention={"keep_last": 1})
    assert not (root / gone).exists() and (target / "file").read_text() == "mine"


def test_projects_and_copies_of_the_database_alone_leave_the_others_in_place(root):
    parts = [make_set(root, age / 24.0, components=["database"]) for age in range(5)]
    whole = make_set(root, 10)
    other = make_set(root, 20, project="other")
    result = run(root)
    assert ids(result["kept"]) == parts[:2] + [whole, other]


@pytest.mark.parametrize("check", [True, False])
def test_the_set_of_this_run_stays_where_the_clock_was_put_back(root, check):
    made = [make_set(root, age) for age in (1, 2, 3, 40, 41)]
    result = run(root, check=check, protect=[made[4], set_id(99)])
    assert ids(result["kept"]) == [made[0], made[1], made[4]] and ids(result["deleted"]) == [made[2], made[3]]
    assert [item["reasons"] for item in result["kept"]][1:] == [["keep_last: 2 of 2"], ["made by this run"]]
    # What a rule keeps is told to be kept by the rule.
    assert run(root, check=check, protect=made[:1])["kept"][0]["reasons"] == ["newest good set", "keep_last: 1 of 2"]


# -- damage and loss ---------------------------------------------------------------------------


def test_a_damaged_set_raises_an_alarm_and_evicts_nothing(root):
    made = [make_set(root, age) for age in range(4)]
    (root / made[0] / "uploads.tar.gz").unlink()
    (root / made[1] / "manifest.json").write_text("{")
    result = run(root, retention={"keep_last": 1})
    # The older of the damaged ones has had its time.
    assert ids(result["kept"]) == [made[0], made[2]] and ids(result["deleted"]) == [made[1], made[3]]
    assert result["kept"][0]["problem"] == "uploads.tar.gz is missing."
    assert len(result["alarms"]) == 2 and all(name in " ".join(result["alarms"]) for name in made[:2])


@pytest.mark.parametrize("lost", [dict(rows=400), dict(bytes_in=1 << 18), dict(tables={"public.playlists": 20})])
def test_a_set_that_shrank_raises_an_alarm_and_evicts_nothing(root, lost):
    whole = [make_set(root, age, tables={"public.playlists": 90}) for age in (10, 11, 12)]
    small = [make_set(root, age, **dict(dict(tables={"public.playlists": 90}), **lost)) for age in (1, 2, 3)]
    result = run(root)
    assert ids(result["kept"]) == small[:2] + whole[:2]
    assert [item["shrunk"] for item in result["kept"]] == [True, True, False, False]
    assert len(result["alarms"]) == 1 and small[0] in result["alarms"][0] and "accept" in result["alarms"][0]
    assert result["kept"][0]["lost"] and whole[0] in result["kept"][0]["lost"][0]
    # A person says that it is right.
    ensure_set(None, "accepted", str(root), id=small[0])
    result = run(root)
    assert result["alarms"] == [] and whole[1] in ids(result["deleted"])


def test_without_the_alarm_a_small_set_counts(root):
    whole = make_set(root, 10)
    small = [make_set(root, age, rows=1) for age in (1, 2)]
    result = run(root, shrink_alarm=0)
    assert result["alarms"] == [] and ids(result["deleted"]) == [whole] and ids(result["kept"]) == small


@pytest.mark.parametrize(
    "before, after, alarm, is_alarm",
    [
        (100, 50, 0.5, False),
        (100, 49, 0.5, True),
        (9, 0, 0.5, False),
        (10, 0, 0.5, True),
        (100, 89, 0.1, True),
        (100, 0, 1, False),
        (100, 0, 0, False),
    ],
)
def test_the_share_that_may_be_lost(before, after, alarm, is_alarm):
    manifests = [
        dict(components=["database"], tables={"public.users": rows, "public.play_queue": 10**6}, artifacts=[])
        for rows in (before, after)
    ]
    sets = [dict(id=str(n), holds=holdings(m), good=True, accepted=False) for n, m in enumerate(manifests)]
    told = {"1": ["public.users: %d rows, %d rows in 0" % (after, before)]}
    assert find_shrunk(sets, alarm) == (told if is_alarm else {})


def test_what_comes_and_goes_is_no_loss():
    manifests = [
        dict(components=["database"], tables={"public.play_queue": rows, "public.tracks": 10**4}, artifacts=[])
        for rows in (100, 0)
    ]
    sets = [dict(id=str(n), holds=holdings(m), good=True, accepted=False) for n, m in enumerate(manifests)]
    assert find_shrunk(sets) == {}
    assert least_share(sets) == 10000 / 10100


def test_the_least_share_is_what_the_alarm_goes_by():
    def sets(*rows, **marks):
        made = [dict(id=str(n), holds={"public.users": count}, good=True, accepted=False) for n, count in enumerate(rows)]
        made[-1].update(marks)
        return made

    assert least_share(sets(100)) is None
    assert least_share(sets(100, 49)) == 0.49 and find_shrunk(sets(100, 49))
    assert least_share(sets(100, 50)) == 0.5 and not find_shrunk(sets(100, 50))
    # Both look at the last set that did not shrink, and at none that a person accepted.
    assert least_share(sets(100, 30, 40)) == 0.4 and "2" in find_shrunk(sets(100, 30, 40))
    assert least_share(sets(100, 30, accepted=True)) is None
    assert least_share(sets(9, 0)) is None


# -- readers, locks, deaths --------------------------------------------------------------------


def test_a_set_that_is_being_read_stays_for_now(root):
    made = [make_set(root, age) for age in range(3)]
    old = make_script_set(root, 90)
    with reading(str(root / made[2])), reading(str(root / made[2])), reading(str(root / old)):
        for check in (True, False):
            result = run(root, check=check, script_sets=True)
            assert result["deleted"] == [] and not result["changed"]
            assert result["kept"][-1]["reasons"] == ["it is being read"]
    assert ids(run(root, script_sets=True)["deleted"]) == [made[2], old]


def test_a_reader_that_comes_between_look_and_deletion_is_noticed(root, monkeypatch):
    made = [make_set(root, age) for age in range(3)]
    looks = []

    def unread_then_read(folder):
        looks.append(folder)
        if len(looks) == 2:
            held.append(reading(folder))
            held[0].__enter__()
        return unread(folder)

    held = []
    monkeypatch.setattr(prune, "unread", unread_then_read)
    result = run(root)
    held[0].__exit__(None, None, None)
    assert result["deleted"] == [] and result["kept"][-1]["id"] == made[2] and (root / made[2]).exists()


def test_a_set_that_is_being_deleted_cannot_be_read(root):
    name = make_set(root, 0)
    folder = str(root / name)
    said = []

    def read():
        try:
            with reading(folder):
                said.append("read")
        except SetError as error:
            said.append(error.what)

    with unread(folder) as free:
        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.2)
        assert free and said == []
        set_files.discard(str(root), name)
    reader.join(10)
    assert said == ["The set %s is being deleted." % folder]


def test_without_locks_sets_are_read_and_pruned(root, monkeypatch):
    made = [make_set(root, age) for age in range(3)]

    def no_locks(*unused):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(set_use.fcntl, "flock", no_locks)
    with reading(str(root / made[2])), unread(str(root / made[1])) as free:
        assert free
    with reading(str(root)):
        pass


KILLED = """
import os, shutil, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.echo_music.ops.plugins.module_utils import set_files
from ansible_collections.echo_music.ops.plugins.module_utils.prune import ensure_pruned
step = [int(sys.argv[3])]
def dying(call):
    def wrapped(*args, **kwargs):
        step[0] -= 1
        if step[0] == 0:
            os.kill(os.getpid(), 9)
        return call(*args, **kwargs)
    return wrapped
for name in ("rename", "unlink", "rmdir", "fsync"):
    setattr(os, name, dying(getattr(os, name)))
shutil.os = os
ensure_pruned(sys.argv[2], {"keep_last": 1}, now=float(sys.argv[4]))
print("done")
"""


def test_killed_at_every_step_no_half_set_is_listed_and_the_next_run_ends_it(root):
    steps = 0
    while True:
        steps += 1
        subprocess.check_call(["find", str(root), "-mindepth", "1", "-delete"])
        made = [make_set(root, age) for age in range(3)]
        os.symlink(made[0], str(root / "latest"))
        command = [sys.executable, "-c", KILLED, str(CHECKOUT / ".ansible" / "collections"), str(root), str(steps), str(NOW)]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        assert all(item["complete"] for item in list_sets(str(root)))
        assert os.readlink(str(root / "latest")) == made[0]
        run(root, retention={"keep_last": 1})
        assert names(root) == [made[0]]
    # Two sets of eight files each: a rename, a flush, each file, the folder.
    assert steps > 20


def test_an_error_while_deleting_is_told_and_hides_the_set(root, monkeypatch):
    made = [make_set(root, age) for age in range(3)]

    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(set_files.shutil, "rmtree", refuse)
    with pytest.raises(SetError, match="Could not remove .*lsattr"):
        run(root)
    assert ids(list_sets(str(root))) == sorted(made[:2])
    monkeypatch.undo()
    assert run(root)["changed"]
    assert names(root) == sorted(made[:2])


def test_latest_is_mended_before_anything_goes(root):
    made = [make_set(root, age) for age in range(3)]
    os.symlink(made[2], str(root / "latest"))
    run(root, retention={"keep_last": 1})
    assert os.readlink(str(root / "latest")) == made[0]


def test_the_root_may_be_reached_by_a_link(root, tmp_path):
    made = [make_set(root, age) for age in range(3)]
    os.symlink(str(root), str(tmp_path / "link"))
    assert ids(run(tmp_path / "link")["deleted"]) == made[2:]
    assert names(root) == sorted(made[:2])


def test_the_module_speaks_of_it(root):
    made = [make_set(root, age, rows=1000 if age else 1) for age in range(4)]
    arguments = dict(root=str(root), retention=dict(keep_last="2"), _ansible_check_mode=True, _ansible_diff=True)
    done = subprocess.run(
        [sys.executable, "-m", "ansible_collections.echo_music.ops.plugins.modules.echo_prune"],
        input=json.dumps(dict(ANSIBLE_MODULE_ARGS=arguments)).encode(),
        env=dict(os.environ, PYTHONPATH=str(CHECKOUT / ".ansible" / "collections")),
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    said = json.loads(done.stdout)
    assert ids(said["deleted"]) == made[3:] and made[0] in json.dumps(said["warnings"])
    assert made[3] in said["diff"]["before"] and made[3] not in said["diff"]["after"]
