# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a module in the background."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import job
from ansible_collections.echo_music.ops.plugins.module_utils.job import JobError, await_job

ROOT = pathlib.Path(__file__).resolve().parents[4]
RUNS = {"started": True, "finished": False, "ansible_job_id": "j1.2"}
DONE = {"changed": True, "tables": {"public.users": 5}}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(job, "LOOK_EVERY", 0.01)


@pytest.fixture
def told(tmp_path):
    """The job's file, which is replaced as Ansible's async_wrapper does it."""

    class Told:
        path = str(tmp_path / "j1.2")

        def say(self, content):
            (tmp_path / "new").write_text(content if isinstance(content, str) else json.dumps(content))
            os.rename(str(tmp_path / "new"), self.path)

    return Told()


def test_a_job_that_has_ended(told):
    told.say(DONE)
    assert await_job(told.path, 0) == DONE
    assert not os.path.exists(told.path)


@pytest.mark.parametrize("before", [RUNS, ""])
def test_a_job_that_ends_meanwhile(told, before):
    told.say(before)
    later = threading.Timer(0.1, told.say, [{"failed": True, "msg": "Timeout exceeded"}])
    later.start()
    assert await_job(told.path, 60) == {"failed": True, "msg": "Timeout exceeded"}
    later.join()


def test_a_job_that_goes_on(told):
    told.say(RUNS)
    with pytest.raises(JobError, match="has not ended within 0 seconds.*larger timeout"):
        await_job(told.path, 0)
    assert os.path.exists(told.path)


def test_no_job(tmp_path):
    with pytest.raises(JobError, match="There is no job .*of this very host"):
        await_job(str(tmp_path / "nothing"), 60)


def test_a_job_that_cannot_be_read(tmp_path):
    with pytest.raises(JobError, match="Could not read the job .*: Is a directory"):
        await_job(str(tmp_path), 60)


PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - echo_music.ops.echo_volume_backup: {path: %(folder)s/volume, dest: "{{ item }}", component: uploads}
      loop: [%(folder)s/volume/inside.tar.gz, %(folder)s/outside.tar.gz]
      async: 60
      poll: 0
      register: jobs
    - echo_music.ops.echo_job: {results_file: "{{ item.results_file }}", timeout: 60}
      loop: "{{ jobs.results }}"
      ignore_errors: true
      register: ended
    - ansible.builtin.assert:
        that:
          - ended.results[0] is failed and ended.results[0].error == 'ArchiveError' and 'lies in' in ended.results[0].msg
          - ended.results[1] is changed and ended.results[1].artifact.members == 2
"""


def test_the_module_ends_as_that_of_the_job(tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "cover.jpg").write_bytes(b"x")
    (tmp_path / "play.yml").write_text(PLAY % dict(folder=tmp_path))
    words = ["-i", "here,", "-c", "local", "-e", "ansible_python_interpreter=" + sys.executable, str(tmp_path / "play.yml")]
    done = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "ansible-playbook")] + words,
        env=dict(os.environ, ANSIBLE_HOME=str(ROOT / ".ansible"), ANSIBLE_ASYNC_DIR=str(tmp_path / "jobs")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode("utf-8")
    assert list((tmp_path / "jobs").iterdir()) == []
