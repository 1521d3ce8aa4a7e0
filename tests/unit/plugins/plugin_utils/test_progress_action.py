# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress as people see it: real playbooks in a pseudo-terminal, and the same where nobody looks.

A tar that takes its time stands for a slow disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import progress as told
from ansible_collections.echo_music.ops.plugins.plugin_utils import progress
from ansible_collections.echo_music.ops.plugins.plugin_utils.progress import Log, Screen, Watch

ROOT = pathlib.Path(__file__).resolve().parents[4]
ACTIONS = sorted(path.stem for path in (ROOT / "plugins" / "action").glob("*.py"))
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
UPDATE = re.compile(r"uploads\.tar\.gz +(\d+) %")

SLOW_TAR = """#!%s
import os, subprocess, sys, time
os.environ["PATH"] = %r
command = ["tar"] + sys.argv[1:]
if "--files-from=/dev/null" in command:
    os.execvp("tar", command)
with open(%r, "a") as log:
    log.write("%%s\\n" %% os.environ.get("ECHO_PROGRESS_NAME"))
with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
    for block in iter(lambda: tar.stdout.read(1 << 18), b""):
        sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        time.sleep(%s)
sys.exit(tar.returncode)
"""
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Archive
      echo_music.ops.echo_volume_backup:
        path: {source}
        dest: {dest}/{{{{ inventory_hostname }}}}
        component: uploads
"""
IN_THE_BACKGROUND = """
      async: 240
      poll: 0
      register: job

    - name: Wait
      echo_music.ops.echo_job:
        results_file: "{{ job.results_file }}"
"""


class Lab:
    """A folder to archive, and a controller with or without a terminal."""

    def __init__(self, tmp_path):
        self.folder = tmp_path
        self.names = tmp_path / "names"
        (tmp_path / "volume").mkdir()
        (tmp_path / "volume" / "cover.jpg").write_bytes(os.urandom(6 << 20))
        (tmp_path / "play.yml").write_text(PLAY.format(source=tmp_path / "volume", dest=tmp_path))
        self.slow_down(0.2)

    def slow_down(self, seconds):
        """Have a quarter of a MiB take so long."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        text = SLOW_TAR % (sys.executable, os.environ["PATH"], str(self.names), seconds)
        (folder / "tar").write_text(text)
        (folder / "tar").chmod(0o755)

    def command(self, *options, hosts=("here",)):
        """Return the command line of the playbook."""
        for host in hosts:
            (self.folder / host).mkdir(exist_ok=True)
        words = ["-i", ",".join(hosts) + ",", "-c", "local", "-e", "ansible_python_interpreter=" + sys.executable]
        return [tool("ansible-playbook")] + words + list(options) + [str(self.folder / "play.yml")]

    def environment(self, **more):
        """Return an environment in which nothing but the terminal decides."""
        kept = dict((name, value) for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "ECHO_")))
        kept.pop("CI", None)
        path = "%s:%s" % (self.folder / "bin", os.environ["PATH"])
        return dict(dict(kept, PATH=path, TERM="xterm", ANSIBLE_HOME=str(ROOT / ".ansible")), **more)

    def in_terminal(self, command, columns=100, interrupt_at=None, **more):
        """Run a command in a terminal; return what it wrote there, and its exit code."""
        environment = self.environment(**more)
        pid, terminal = pty.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                os.chdir(str(self.folder))
                # Where tests run side by side their processes ignore it, and what they start does too.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
                os.execve(command[0], command, environment)
            os._exit(127)
        written, deadline = b"", time.monotonic() + 240
        try:
            while time.monotonic() < deadline:
                if not select.select([terminal], [], [], 1)[0]:
                    continue
                try:
                    block = os.read(terminal, 65536)
                except OSError:
                    break
                if not block:
                    break
                written += block
                if interrupt_at and re.search(interrupt_at, written):
                    os.write(terminal, b"\x03")
                    interrupt_at = None
            else:
                os.killpg(pid, signal.SIGKILL)
        finally:
            unused, status = os.waitpid(pid, 0)
            os.close(terminal)
        return written.decode("utf-8"), os.waitstatus_to_exitcode(status)

    def piped(self, command, **more):
        """Run a command without a terminal; return what it said."""
        done = subprocess.run(
            command,
            cwd=str(self.folder),
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode("utf-8")
        return done.stdout.decode("utf-8")

    def asked(self):
        """Return the names that the modules were asked to tell their progress under, "None" for nobody."""
        return self.names.read_text().split()


def tool(name):
    return os.path.join(os.path.dirname(sys.executable), name)


def screen_of(written):
    """Return the lines that a terminal shows at last."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\x1b[K":
            lines[row] = lines[row][:column]
        elif piece == "\x1b[A":
            row -= 1
        elif not piece.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + len(piece) :]
            column += len(piece)
    return [text.rstrip() for text in lines]


def percents(written):
    return [int(found) for found in UPDATE.findall(written)]


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


class TestTerminal:
    def test_one_host_has_a_line_that_leaves_no_trace(self, lab):
        written, code = lab.in_terminal(lab.command())
        assert code == 0
        found = percents(written)
        assert len(found) >= 2 and found == sorted(found) and found[0] < found[-1] < 100
        assert re.search(r"\d+ %   [\d.]+ of 6\.0 MiB   [\d.]+ MiB/s   \d+:\d\d left", written)
        assert [name for name in lab.asked() if name == "None"] == []
        quiet = lab.piped(lab.command())
        shown = [COLOUR.sub("", text) for text in screen_of(written)]
        # The headings are as wide as the terminal.
        stars = re.compile(r"\*+$")
        assert [stars.sub("*", text) for text in shown] == [stars.sub("*", text.rstrip()) for text in quiet.split("\n")]

    def test_a_narrow_one_is_not_exceeded(self, lab):
        written, code = lab.in_terminal(lab.command(), columns=31)
        assert code == 0 and len(percents(written)) >= 2
        drawn = re.findall(r"  uploads\.tar\.gz[^\r\x1b]*", written)
        assert max(map(len, drawn)) <= 30

    def test_several_hosts_have_lines_that_stay(self, lab):
        lab.slow_down(0.55)
        written, code = lab.in_terminal(lab.command(hosts=("one", "two")))
        assert code == 0
        for host in ("one", "two"):
            assert re.search(r"(?m)^  %s: uploads\.tar\.gz   \d+ %%" % host, written)
        assert "\x1b[K" not in written and "\x1b[A" not in written
        assert len(set(lab.asked())) == 2

    def test_what_goes_on_in_the_background_is_shown_by_who_waits_for_it(self, lab):
        with (lab.folder / "play.yml").open("a") as play:
            play.write(IN_THE_BACKGROUND)
        written, code = lab.in_terminal(lab.command(), ANSIBLE_ASYNC_DIR=str(lab.folder / "jobs"))
        archive, wait = written.split("TASK [Wait]")
        assert code == 0 and percents(archive) == []
        found = percents(wait)
        assert len(found) >= 2 and found == sorted(found) and found[0] < found[-1] < 100
        assert "RETRYING" not in written

    def test_nothing_of_it_is_logged(self, lab):
        written, code = lab.in_terminal(lab.command(), ANSIBLE_LOG_PATH=str(lab.folder / "log"))
        log = (lab.folder / "log").read_text()
        assert code == 0 and percents(written)
        assert "changed: [here]" in log and percents(log) == []

    def test_an_interrupt_ends_the_module(self, lab):
        lab.slow_down(3)
        written, code = lab.in_terminal(lab.command(), interrupt_at=rb"uploads\.tar\.gz +\d+ %")
        assert code == 99 and "User interrupted execution" in written
        deadline = time.monotonic() + 30
        while _at_work(lab.folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert _at_work(lab.folder) == []
        assert sorted(path.name for path in (lab.folder / "here").iterdir()) == []

    def test_another_user_on_the_host_is_read_as_that_user(self, lab):
        if os.geteuid():
            pytest.skip("takes root")
        for path in lab.folder.parents:
            if path.stat().st_uid == 0 and str(path).startswith("/tmp/pytest"):
                path.chmod(0o755)
        os.chmod(str(lab.folder), 0o777)
        play = (lab.folder / "play.yml").read_text()
        extra = "  become: true\n  become_method: ansible.builtin.su\n  become_user: nobody\n  become_flags: -s /bin/sh\n"
        (lab.folder / "play.yml").write_text(play.replace("  gather_facts: false\n", "  gather_facts: false\n" + extra))
        command = lab.command()
        (lab.folder / "here").chmod(0o777)
        command[command.index("-e") + 1] = "ansible_python_interpreter=/usr/bin/python3"
        (lab.folder / "bin" / "tar").write_text((lab.folder / "bin" / "tar").read_text().replace(sys.executable, "/usr/bin/python3"))
        lab.names.touch()
        lab.names.chmod(0o666)
        written, code = lab.in_terminal(command, ANSIBLE_PIPELINING="true", ANSIBLE_REMOTE_TEMP="/tmp")
        assert code == 0, written
        assert len(percents(written)) >= 2
        assert list(pathlib.Path(told.USERS_FOLDER % 65534).iterdir()) == []


class TestQuiet:
    def test_without_a_terminal_nothing_is_different(self, lab):
        lab.slow_down(0.05)
        plain = lab.piped(lab.command())
        assert plain == lab.piped(lab.command(), ECHO_PROGRESS="0")
        assert percents(plain) == [] and "\x1b" not in plain and "\r" not in plain
        assert lab.asked() == ["None", "None"]

    def test_one_line_is_one_line(self, lab):
        lab.slow_down(0.1)
        lab.command()
        words = "path=%s dest=%s component=uploads" % (lab.folder / "volume", lab.folder / "here")
        written, code = lab.in_terminal(
            [tool("ansible"), "here", "-i", "here,", "-c", "local", "-e", "ansible_python_interpreter=" + sys.executable]
            + ["-o", "-m", "echo_music.ops.echo_volume_backup", "-a", words],
            # That of the callback itself.
            ANSIBLE_DEPRECATION_WARNINGS="false",
        )
        assert code == 0 and lab.asked() == ["None"]
        (line,) = COLOUR.sub("", written).strip().split("\n")
        assert line.startswith("here | CHANGED => {")

    def test_a_program_that_reads_json_reads_json(self, lab):
        lab.slow_down(0.1)
        written, code = lab.in_terminal(lab.command(), ANSIBLE_STDOUT_CALLBACK="ansible.posix.json")
        assert code == 0 and lab.asked() == ["None"]
        assert json.loads(written)["stats"]["here"]["changed"] == 1

    def test_check_mode_asks_for_nothing(self, lab):
        written, code = lab.in_terminal(lab.command("--check"))
        assert code == 0 and percents(written) == [] and not lab.names.exists()


class TestIsWanted:
    @pytest.fixture(autouse=True)
    def looked_at(self, monkeypatch):
        monkeypatch.setattr(progress, "TERMINAL", 1)
        monkeypatch.setattr(progress.context, "CLIARGS", {})
        monkeypatch.setattr(progress.display, "verbosity", 0)
        monkeypatch.setenv("TERM", "xterm")
        for name in ("CI", progress.SWITCH):
            monkeypatch.delenv(name, raising=False)

    def test_by_a_person_at_a_terminal(self):
        assert progress.is_wanted()

    @pytest.mark.parametrize("name, value", [("CI", "true"), ("TERM", "dumb"), ("ECHO_PROGRESS", "0"), ("ECHO_PROGRESS", "No ")])
    def test_not_where_the_environment_says_otherwise(self, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        assert not progress.is_wanted()

    def test_not_without_a_terminal(self, monkeypatch):
        monkeypatch.setattr(progress, "TERMINAL", None)
        assert not progress.is_wanted()

    def test_not_where_every_command_is_told(self, monkeypatch):
        monkeypatch.setattr(progress.display, "verbosity", 3)
        assert not progress.is_wanted()
        monkeypatch.setattr(progress.display, "verbosity", 2)
        assert progress.is_wanted()


class TestWatch:
    @pytest.fixture
    def said(self, monkeypatch):
        texts = []
        monkeypatch.setattr(progress, "say", lambda text, newline=True: texts.append((text, newline)))
        monkeypatch.setattr(progress, "columns", lambda: 60)
        return texts

    @staticmethod
    def phases(*done, seconds=1.0):
        told_phases = [dict(label="part%d" % at, done=value, total=100, seconds=seconds) for at, value in enumerate(done)]
        return json.dumps(dict(id=1, phases=told_phases)) + "\n"

    def test_lines_come_and_go(self, said):
        watch = Watch(None, Screen())
        for text in (self.phases(10), self.phases(20, 30, seconds=2.0), self.phases(40, seconds=3.0), ""):
            watch.show(text)
        assert [newline for unused, newline in said] == [False] * 4
        # A terminal begins a new line at its left.
        written = ["".join(text for text, unused in said[:count]).replace("\n", "\r\n") for count in range(1, 5)]
        part0, part1 = "  part0   %d %%   %d of 100 bytes   %d bytes/s", "  part1   30 %   30 of 100 bytes   15 bytes/s   0:04 left"
        shown = [screen_of("before\r\n" + text) for text in written]
        assert shown[0] == ["before", part0 % (10, 10, 10) + "   0:09 left"]
        assert shown[1] == ["before", part0 % (20, 20, 10) + "   0:08 left", part1]
        assert shown[2] == ["before", part0 % (40, 40, 13) + "   0:04 left", ""]
        assert shown[3] == ["before", "", ""]

    def test_no_more_lines_than_there_is_room_for(self, said):
        Watch(None, Screen()).show(self.phases(*range(20)))
        assert len(screen_of(said[0][0])) == progress.LINES

    def test_nothing_to_tell_draws_nothing(self, said):
        screen = Screen()
        Watch(None, screen).show("")
        screen.clear()
        assert said == []

    def test_what_comes_after_the_end_is_not_shown(self, said):
        watch = Watch(lambda: "", Screen())
        with watch:
            watch.show(self.phases(10))
        watch.show(self.phases(20, seconds=2.0))
        assert len(said) == 2 and said[-1] == ("\r\x1b[K", False)

    def test_a_host_that_does_not_answer_ends_the_looking_alone(self, said, monkeypatch):
        asked = []

        def read():
            asked.append(1)
            raise OSError("Connection reset by peer")

        monkeypatch.setattr(Screen, "pause", staticmethod(lambda elapsed: 0.01))
        with Watch(read, Screen()) as watch:
            watch.join(30)
            assert not watch.is_alive()
        assert asked == [1] and said == []

    def test_an_answer_that_hangs_delays_nothing(self, said, monkeypatch):
        monkeypatch.setattr(Screen, "pause", staticmethod(lambda elapsed: 0.01))
        began = time.monotonic()
        with Watch(lambda: time.sleep(30) or "", Screen()):
            time.sleep(0.1)
        assert time.monotonic() - began < 20

    @pytest.mark.parametrize("kind, first, later, last", [(Screen, 1, 5, 10), (Log, 10, 10, 60)])
    def test_looks_are_seldom_where_it_takes_long(self, kind, first, later, last):
        assert [kind.pause(elapsed) for elapsed in (0, 100, 10000)] == [first, later, last]


@pytest.mark.parametrize("name", ACTIONS)
def test_each_action_is_that_of_a_module(name):
    assert (ROOT / "plugins" / "modules" / (name + ".py")).exists()


def _at_work(folder):
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.path.basename(os.readlink("/proc/%s/exe" % entry)).startswith(("python", "tar")):
                with open("/proc/%s/cmdline" % entry, "rb") as cmdline:
                    words = cmdline.read()
                if str(folder).encode("utf-8") in words and int(entry) != os.getpid():
                    found.append(words)
    return found
