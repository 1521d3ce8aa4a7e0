# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role echo_migrate does on the controller, and in which order it hands files to Compose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).resolve().parents[4] / "roles" / "echo_migrate"
# Nobody becomes anybody by it.
SUDO = "/nonexistent/sudo"


@pytest.fixture
def play(tmp_path):
    """Play tasks on a host of an inventory that has everybody become another user, with variables of the role."""

    def played(*tasks, **variables):
        become = dict(ansible_become=True, ansible_become_user="nobody", ansible_become_exe=SUDO)
        everybody = dict(become, ansible_connection="local", ansible_python_interpreter=sys.executable)
        inventory = dict(all=dict(hosts={"new": {}}, vars=everybody))
        (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
        playbook = [dict(hosts="new", gather_facts=False, vars_files=[str(ROLE / "vars" / "main.yml")], tasks=list(tasks))]
        (tmp_path / "playbook.yml").write_text(yaml.safe_dump(playbook))
        return subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", str(tmp_path / "inventory.yml"), str(tmp_path / "playbook.yml")]
            + ["-e", json.dumps(variables)],
            cwd=ROLE.parents[1],
            env=dict(os.environ, ANSIBLE_NOCOLOR="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )

    return played


@pytest.fixture
def values(play, tmp_path):
    """Return what variables of the role are."""

    def told(*names, **variables):
        content = {"content": "{{ [%s] | to_json }}" % ", ".join(names), "dest": str(tmp_path / "values.json")}
        task = {"ansible.builtin.copy": content, "delegate_to": "localhost", "vars": {"ansible_become": False}}
        done = play(task, **variables)
        assert done.returncode == 0, done.stdout.decode()
        return json.loads((tmp_path / "values.json").read_text())

    return told


def local_tasks(tasks):
    """Yield the tasks that the controller does itself, in blocks too."""
    for task in tasks:
        for key in ("block", "rescue", "always"):
            yield from local_tasks(task.get(key, []))
        if task.get("delegate_to") == "localhost":
            yield task


def test_the_controller_needs_no_root():
    files = sorted((ROLE / "tasks").glob("*.yml"))
    found = [task for path in files for task in local_tasks(yaml.safe_load(path.read_text(encoding="utf-8")))]
    assert len(found) == 4
    assert [task["name"] for task in found if task.get("vars", {}).get("ansible_become") is not False] == []


def test_reports_are_written_where_the_inventory_has_everybody_become_another_user(play, tmp_path):
    report = dict(result="migrated", bytes=1, way="direct", seconds=2, downtime=1)
    variables = dict(__echo_migrate_report=report, __echo_migrate_reports=str(tmp_path / "reports"), echo_migrate_source="old")
    # The page needs the whole report, and says nothing of who writes it.
    task, unused_page = yaml.safe_load((ROLE / "tasks" / "report.yml").read_text(encoding="utf-8"))[:2]
    done = play(task, **variables)
    assert done.returncode == 0, done.stdout.decode()
    assert (tmp_path / "reports").is_dir()


@pytest.mark.parametrize(
    "answer, emptied",
    [(dict(msg="no docker"), False), (dict(msg="Return code 1 is non-zero", rc=1), False), (dict(changed=True), True)],
    ids=["failed without rc", "failed", "removed"],
)
def test_folders_are_emptied_only_once_the_stack_is_removed(play, tmp_path, answer, emptied):
    music = tmp_path / "uploads" / "song.flac"
    music.parent.mkdir()
    music.write_text("ours")
    task = next(task for task in yaml.safe_load((ROLE / "tasks" / "clean.yml").read_text(encoding="utf-8")) if "argv" in str(task))
    done = play(
        dict(task, vars={"ansible_become": False}),
        __echo_migrate_there=[".echo-migrate"],
        __echo_migrate_cleaned=dict(answer, failed=False),
        __echo_migrate_abandoned=dict(migration=dict(facts=dict(folders=[str(music.parent)]))),
    )
    assert done.returncode == 0, done.stdout.decode()
    assert music.exists() is not emptied


@pytest.mark.parametrize(
    "names, ordered",
    [
        (["docker-compose.override.yml", "docker-compose.yml"], ["docker-compose.yml", "docker-compose.override.yml"]),
        (["a.yml", "compose.override.yaml", "compose.yaml", "b.yaml"], ["compose.yaml", "compose.override.yaml", "a.yml", "b.yaml"]),
    ],
)
def test_a_given_deployment_is_ordered_as_compose_does(values, tmp_path, names, ordered):
    folder = tmp_path / "deployment"
    folder.mkdir()
    for name in names + [".env", "notes.txt"]:
        (folder / name).write_text("# %s\n" % name)
    names = ("__echo_migrate_files", "__echo_migrate_compose_files", "__echo_migrate_env_files")
    files, compose_files, env_files = values(*names, echo_migrate_deployment=str(folder))
    assert (compose_files, env_files) == (ordered, [".env"])
    assert set(files) == set(ordered + [".env", "notes.txt"])
    assert all(text == "# %s\n" % name for name, text in files.items())


@pytest.mark.parametrize(
    "env_file, found", [("/opt/echo/prod.env", ["prod.env"]), ("/opt/echo/.env", [".env"]), (None, [])]
)
def test_the_old_hosts_variables_go_to_compose(values, env_file, found):
    deployment = dict(project="echo", working_dir="/opt/echo", files=["/opt/echo/docker-compose.yml"], env_file=env_file)
    sources = deployment["files"] + ([env_file] if env_file else [])
    old = dict(
        echo_migrate_deployment="",
        __echo_migrate_stack=dict(stack=dict(deployment=deployment)),
        __echo_migrate_slurp=dict(results=[dict(source=source, content="Iwo=") for source in sources]),
    )
    names = ("__echo_migrate_compose_files", "__echo_migrate_env_files")
    assert values(*names, **old) == [["docker-compose.yml"], found]
