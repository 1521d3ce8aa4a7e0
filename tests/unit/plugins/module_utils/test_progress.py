# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module tells of its progress: nothing unless asked, nothing that hinders, nothing that stays."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
import time

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import (
    archive,
    dump,
    extract,
    migration_copy,
    offsite,
    offsite_rclone,
    offsite_restic,
    offsite_rsync,
    progress,
    verify,
)
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, SetError
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_command import Listener, Programs
from ansible_collections.echo_music.ops.plugins.module_utils.progress import Phase, phase, seldom


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Somebody asks; the files are in a folder of the test's own."""
    folder = tmp_path / "run"
    monkeypatch.setenv(progress.VARIABLE, "run1-host1")
    monkeypatch.setattr(progress, "ROOTS_FOLDER", str(folder))
    monkeypatch.setattr(progress, "USERS_FOLDER", str(folder).replace("%", "%%") + "%.0d")
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    monkeypatch.setattr(progress, "_reporters", {})
    return folder


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def told(folder):
    """Wait for the file, and return what stands in it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in folder.glob("*.json") if folder.exists() else []:
            try:
                return json.loads(path.read_text())
            except FileNotFoundError:
                pass
        time.sleep(0.005)
    raise TimeoutError("no file in %s" % folder)


def threads():
    return [thread for thread in threading.enumerate() if isinstance(thread, progress.Reporter)]


class TestNobodyAsked:
    @pytest.mark.parametrize("name", [None, "", "../../etc/passwd", "a b", "x" * 65])
    def test_nothing_is_written_and_no_thread_runs(self, place, monkeypatch, name):
        monkeypatch.delenv(progress.VARIABLE)
        if name is not None:
            monkeypatch.setenv(progress.VARIABLE, name)
        before = len(threads())
        with phase("uploads.tar.gz", 10, lambda: 1 / 0) as counted:
            counted.add(5)
        assert not place.exists() and len(threads()) == before and not progress.wanted()


class TestFile:
    def test_says_how_far_each_phase_is(self, place):
        with phase("uploads.tar.gz", 100, lambda: 40), phase("SHA256SUMS", 50) as counted:
            counted.add(7)
            counted.add(3)
            found = told(place)
        assert found["id"] == os.getpid()
        numbers = [{key: item[key] for key in ("label", "done", "total")} for item in found["phases"]]
        assert {"label": "uploads.tar.gz", "done": 40, "total": 100} in numbers
        assert all(item["seconds"] >= 0 for item in found["phases"])

    def test_grows_with_the_work(self, place):
        with phase("SHA256SUMS", 50) as counted:
            counted.add(10)
            deadline = time.monotonic() + 30
            while told(place)["phases"][0]["done"] != 10 and time.monotonic() < deadline:
                time.sleep(0.01)
            counted.add(20)
            while told(place)["phases"][0]["done"] != 30 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert told(place)["phases"][0]["done"] == 30

    def test_is_named_after_run_and_process_and_is_ours_alone(self, place):
        with phase("uploads.tar.gz"):
            told(place)
            assert "run1-host1.%d.json" % os.getpid() in files(place)
            assert stat.S_IMODE(place.stat().st_mode) == 0o700
            assert stat.S_IMODE((place / ("run1-host1.%d.json" % os.getpid())).stat().st_mode) == 0o600

    def test_goes_with_the_last_phase(self, place):
        with phase("structure"):
            with phase("uploads.tar.gz"):
                told(place)
            told(place)
        assert files(place) == []
        time.sleep(0.1)
        assert files(place) == []

    def test_goes_when_the_work_fails(self, place):
        with pytest.raises(SetError), phase("uploads.tar.gz"):
            told(place)
            raise SetError("The disk is full.")
        assert files(place) == []

    def test_comes_again_with_the_next_phase(self, place):
        with phase("one"):
            assert told(place)["phases"][0]["label"] == "one"
        with phase("two"):
            assert told(place)["phases"][0]["label"] == "two"
        assert files(place) == []

    def test_a_question_that_fails_is_no_figure(self, place):
        with phase("postgres_dump.backup", 100, lambda: os.stat("/nowhere").st_size):
            assert told(place)["phases"][0]["done"] is None

    def test_a_question_that_hangs_keeps_no_phase_from_ending(self, place):
        asked, answer = threading.Event(), threading.Event()

        def hang():
            asked.set()
            answer.wait(60)
            return 1

        began = time.monotonic()
        with phase("postgres_dump.backup", 100, hang):
            assert asked.wait(30)
        assert time.monotonic() - began < 30
        answer.set()
        time.sleep(0.1)
        assert files(place) == []

    def test_what_a_killed_module_left_goes_after_a_day(self, place):
        place.mkdir(mode=0o700)
        for name, age in (("old.1.json", progress.STALE + 60), ("young.2.json", 60)):
            (place / name).write_text("{}")
            os.utime(str(place / name), (time.time() - age, time.time() - age))
        with phase("uploads.tar.gz"):
            told(place)
        assert files(place) == ["young.2.json"]

    def test_a_process_that_was_killed_leaves_a_file_that_is_whole(self, place):
        script = (
            "import os, time\n"
            "from ansible_collections.echo_music.ops.plugins.module_utils import progress\n"
            "progress.ROOTS_FOLDER, progress.USERS_FOLDER = %r, %r\n"
            "with progress.phase('uploads.tar.gz', 10, lambda: 3):\n"
            "    time.sleep(600)\n" % (str(place), str(place) + "%.0d")
        )
        child = subprocess.Popen([sys.executable, "-c", script], env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
        try:
            assert told(place)["id"] == child.pid
        finally:
            child.kill()
            child.wait()
        assert told(place)["phases"][0]["done"] == 3


class TestFolder:
    def test_one_of_others_is_not_used(self, place):
        place.mkdir(mode=0o755)
        os.chmod(str(place), 0o755)
        with phase("uploads.tar.gz"):
            time.sleep(0.05)
        assert files(place) == []

    def test_a_link_is_not_followed(self, place, tmp_path):
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
        with phase("uploads.tar.gz"):
            time.sleep(0.05)
        assert files(tmp_path / "elsewhere") == []

    def test_none_at_all_hinders_nothing(self, place, monkeypatch):
        for name in ("ROOTS_FOLDER", "USERS_FOLDER"):
            monkeypatch.setattr(progress, name, "/proc/nowhere/echo%.0d")
        with phase("uploads.tar.gz"):
            pass

    def test_one_that_vanishes_hinders_nothing(self, place):
        with phase("uploads.tar.gz"):
            told(place)
            os.rename(str(place), str(place) + ".gone")
            time.sleep(0.05)


def test_several_threads_count_every_byte():
    counted = Phase("SHA256SUMS")
    workers = [threading.Thread(target=lambda: [counted.add(1) for unused in range(10000)]) for unused in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counted.told()["done"] == 40000


def test_a_costly_question_is_asked_seldom():
    answers = iter(range(10))
    ask = seldom(0.05, lambda: next(answers))
    assert [ask(), ask(), ask()] == [0, 0, 0]
    time.sleep(0.06)
    assert ask() == 1


class Recorder:
    """Notes the phases that domain code goes through, and what each could tell at its end."""

    def __init__(self, monkeypatch, *modules):
        self.phases = []
        for module in modules:
            monkeypatch.setattr(module, "phase", self.phase)

    def phase(self, label, total=None, done=None):
        return _Noted(self, Phase(label, total, done))


class _Noted:
    def __init__(self, recorder, noted):
        self._recorder, self._phase = recorder, noted

    def __enter__(self):
        return self._phase

    def __exit__(self, *unused):
        self._recorder.phases.append(self._phase.told())


@pytest.fixture
def volume(tmp_path):
    folder = tmp_path / "volume"
    (folder / "covers").mkdir(parents=True)
    for number in range(200):
        (folder / "covers" / ("%d.jpg" % number)).write_bytes(os.urandom(30000))
    return folder


class TestWhatIsTold:
    def test_an_archive_tells_its_stream_and_about_its_size(self, volume, tmp_path, monkeypatch):
        recorder = Recorder(monkeypatch, archive)
        made = archive.back_up_folder(str(volume), str(tmp_path / "uploads.tar.gz"))
        (noted,) = recorder.phases
        assert noted["label"] == "uploads.tar.gz" and noted["done"] == made["bytes_in"]
        assert abs(noted["total"] - made["bytes_in"]) < made["bytes_in"] * 0.02

    def test_unpacking_and_examining_tell_what_the_manifest_says(self, volume, tmp_path, monkeypatch):
        made = archive.back_up_folder(str(volume), str(tmp_path / "uploads.tar.gz"))
        recorder = Recorder(monkeypatch, extract)
        extract.unpack(str(tmp_path / "uploads.tar.gz"), str(tmp_path / "staging"), expected=dict(bytes_in=made["bytes_in"]))
        extract.examine(str(tmp_path / "uploads.tar.gz"))
        assert [(noted["done"], noted["total"]) for noted in recorder.phases] == [
            (made["bytes_in"], made["bytes_in"]),
            (made["bytes_in"], None),
        ]

    def test_checksums_tell_what_was_read(self, volume, tmp_path, monkeypatch):
        recorder = Recorder(monkeypatch, verify)
        size = 3 * 1024 * 1024
        (tmp_path / "uploads.tar.gz").write_bytes(b"x" * size)
        manifest = dict(artifacts=[dict(file="uploads.tar.gz", bytes_out=size, sha256="0" * 64)])
        monkeypatch.setattr(verify, "read_manifest", lambda unused_path: manifest)
        with pytest.raises(verify.VerifyError):
            verify.check_files(str(tmp_path))
        (noted,) = recorder.phases
        assert (noted["label"], noted["done"], noted["total"]) == ("SHA256SUMS", size, size)


RSYNC = b"\r     31,981,568  30%   29.33MB/s    0:00:02  \r     63,799,296  60%   29.32MB/s    0:00:01  "
RESTIC = (
    b'{"message_type":"status","percent_done":0,"total_files":1,"total_bytes":104857600}\n'
    b'{"message_type":"status","seconds_elapsed":1,"percent_done":0.719,"total_files":1,"total_bytes":104857600,'
    b'"bytes_done":75467906,"current_files":["/a"]}\n'
)
RCLONE = (
    b'{"level":"info","msg":"...","source":"accounting/stats.go:482","stats":{"bytes":31485952,"checks":0,'
    b'"deletedDirs":0,"errors":0,"eta":null,"speed":0,"totalBytes":104857600,"transferring":[{"bytes":31485952,'
    b'"name":"a","size":104857600}]},"time":"2026-11-25T01:00:33Z"}\n'
)


class TestPrograms:
    @pytest.mark.parametrize(
        "figures, said, done, total",
        [
            (offsite_rsync.FIGURES, RSYNC, 63799296, 7),
            (offsite_restic.FIGURES, RESTIC, 75467906, 104857600),
            (offsite_rclone.FIGURES, RCLONE, 31485952, 104857600),
        ],
        ids=["rsync", "restic", "rclone"],
    )
    def test_the_last_figures_count(self, figures, said, done, total):
        under_way = Phase("cellar", 7)
        listener = Listener(under_way, figures)
        assert under_way.told()["done"] is None
        for at in range(0, len(said), 10):
            listener.hear(said[at : at + 10])
        under_way.told()
        assert (under_way.told()["done"], under_way.total) == (done, total)

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_a_program_is_followed_while_it_runs(self, place, tmp_path, stream):
        program = tmp_path / "program"
        program.write_text(
            "#!/bin/sh\necho ' 1,234  12%%' >&%d\nuntil [ -e %s ]; do sleep 0.1; done\n"
            % (1 if stream == "stdout" else 2, tmp_path / "seen")
        )
        program.chmod(0o700)
        programs, found = Programs(timeout=60), []
        with phase("cellar", 10000) as programs.phase:
            followed = programs.phase

            def look():
                deadline = time.monotonic() + 30
                while followed.told()["done"] != 1234 and time.monotonic() < deadline:
                    time.sleep(0.02)
                found.append(followed.told()["done"])
                (tmp_path / "seen").touch()

            looker = threading.Thread(target=look)
            looker.start()
            finished = programs([str(program)], figures=offsite_rsync.FIGURES)
            looker.join()
        assert found == [1234] and finished.code == 0

    def test_what_is_said_is_the_same_whether_or_not_it_is_followed(self, place, monkeypatch):
        command = ["sh", "-c", "printf ' 5 5%%'; sleep 0.1; printf 'done'; echo bad >&2; exit 3"]
        quiet = Programs()(command, figures=offsite_rsync.FIGURES)
        programs = Programs()
        with phase("cellar") as programs.phase:
            followed = programs(command, figures=offsite_rsync.FIGURES)
        assert vars(quiet) == vars(followed) == dict(code=3, stdout=" 5 5%done", stderr="bad")

    def test_nobody_is_followed_unasked(self, place, monkeypatch):
        monkeypatch.delenv(progress.VARIABLE)
        calls = []
        programs = Programs(run=lambda argv, **how: calls.append(how) or (0, b"", b""))
        programs.phase = Phase("cellar")
        programs(["rsync"], figures=re.compile(rb"(?P<done>\d+)"))
        assert "listener" not in calls[0]


class TestDump:
    class Database:
        """Answers with what it is given, or fails with it."""

        def __init__(self, answer):
            self.answer = answer

        def query(self, unused_statement):
            """Answer."""
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer.splitlines()

    @pytest.mark.parametrize("answer, expected", [("640000", 640000), ("0", None), ("", None), ("?", None), (DatabaseError("It is busy."), None)])
    def test_the_size_of_the_sql_is_estimated_and_no_failure_of_the_dump(self, place, answer, expected):
        assert dump._sql_bytes(self.Database(answer)) == expected

    def test_nobody_is_asked_unasked(self, monkeypatch):
        monkeypatch.delenv(progress.VARIABLE, raising=False)
        assert dump._sql_bytes(self.Database(DatabaseError("It must not be asked."))) is None


class TestOffsite:
    def test_what_a_set_there_has_is_not_expected(self, place, monkeypatch):
        artifacts = [dict(bytes_out=900, reused="backup_1"), dict(bytes_out=50, reused="backup_0"), dict(bytes_out=50)]
        monkeypatch.setattr(offsite, "read_manifest", lambda unused_path: dict(artifacts=artifacts))
        receipt = dict(bytes=1000, age=False)
        assert offsite._expected_bytes("/set", receipt, {"backup_1": {}}) == 100
        assert offsite._expected_bytes("/set", receipt, {}) == 1000
        assert offsite._expected_bytes("/set", dict(receipt, age=True), {"backup_1": {}}) == 1000

    @pytest.mark.parametrize("asked", [True, False])
    def test_programs_are_told_to_tell_only_if_somebody_asked(self, place, monkeypatch, tmp_path, asked):
        if not asked:
            monkeypatch.delenv(progress.VARIABLE)
        ran = []

        def run(argv, **how):
            ran.append((argv, how["environment"]))
            return 0, b"Total bytes sent: 7\n", b""

        programs = Programs({}, run=run)
        offsite_rsync.RsyncEnd(programs, "nas", "/mnt", str(tmp_path))._transfer("/set", "x", [])
        offsite_rclone.RcloneEnd(programs, "nas", "s3:bucket", str(tmp_path))._send("/set", "x")
        restic = offsite_restic.ResticEnd(programs, "nas", "/mnt/repo", str(tmp_path))
        restic._restic("backup", "--json")
        (rsync, unused), (rclone, unused), (backup, environment) = ran
        assert ("--info=progress2" in rsync) == ("--stats=1s" in rclone) == asked
        assert ("--stats=10h" in rclone) == ("--quiet" in backup) == (not asked)
        assert environment.get("RESTIC_PROGRESS_FPS") == ("1" if asked else None)


class TestMigration:
    def test_rsync_is_followed_and_says_the_same(self, place, tmp_path):
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "cover.jpg").write_bytes(os.urandom(3 << 20))
        words = ["rsync", "-a", "--stats"]
        plain = migration_copy._run(words + [str(tmp_path / "old") + "/", str(tmp_path / "plain") + "/"])
        with phase("uploads") as followed:
            listener = Listener(followed, offsite_rsync.FIGURES)
            said = migration_copy._run(words + [str(tmp_path / "old") + "/", str(tmp_path / "new") + "/"], listener)
            assert followed.told()["done"] == 3 << 20
        for pattern in ("files", "bytes", "all_files", "all_bytes"):
            assert migration_copy.STATS[pattern].search(said).group(1) == migration_copy.STATS[pattern].search(plain).group(1)
        assert (tmp_path / "new" / "cover.jpg").stat().st_size == 3 << 20

    def test_its_failure_is_told_as_ever(self, tmp_path):
        listener = Listener(Phase("uploads"), offsite_rsync.FIGURES)
        with pytest.raises(migration_copy.CopyError, match="ended with exit code 23: .*No such file"):
            migration_copy._run(["rsync", "-a", str(tmp_path / "nowhere"), str(tmp_path / "new")], listener)
