# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.echo_music.ops.plugins.module_utils.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
MODULES = sorted((ROOT / "plugins" / "modules").glob("echo_*.py"))
DOMAIN = sorted((ROOT / "plugins" / "module_utils").glob("*.py"))
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
PREFIX = "echo_music.ops."


def name_of(path):
    return path.stem


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def imports(path):
    """Yield the dotted names a Python file imports, ``module`` or ``module.name``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield "%s.%s" % (node.module, alias.name)


@pytest.fixture(params=ROLES, ids=name_of)
def role(request):
    return request.param


@pytest.fixture(params=MODULES, ids=name_of)
def module(request):
    return request.param


def test_there_is_something_to_check():
    assert ROLES and MODULES and DOMAIN and PLAYBOOKS


def test_role_defaults_equal_its_argument_specs(role):
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults = load(role / "defaults" / "main.yml") or {}
    specified = {name: option.get("default") for name, option in options.items() if not option.get("required")}
    assert defaults == specified


def test_role_variables_carry_its_name(role):
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    assert [name for name in options if not name.startswith(role.name + "_")] == []


def test_role_takes_variables_of_the_command_line(role):
    """``-e name=false`` is a text: Ansible checks that it could be a boolean, and leaves it one that is true."""
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    files = [path for folder in ("tasks", "vars", "templates") for path in (role / folder).glob("*")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for name, option in options.items():
        if option["type"] in ("bool", "int", "float"):
            good = {":", " | default", " | " + option["type"]}
            # A number that is handed over whole is for the module to convert.
            whole = ("{{ ", " }}") if option["type"] != "bool" else None
            uses = re.findall(r"(\{\{ )?(?<!\w)%s(?!\w)( \}\}| \| \w+|:)?" % name, text)
            assert [use for use in uses if use != whole and use[1] not in good] == [], name


def tasks_of(content):
    """Yield the tasks of a file, those in blocks as well."""
    for task in content or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks_of(task.get(part))


def test_role_needs_no_root_on_the_controller(role):
    """``ansible_become: true`` of an inventory outvotes the keyword ``become: false``, and the variable doesn't."""
    tasks = [task for path in (role / "tasks").glob("*.yml") for task in tasks_of(load(path))]
    delegated = [task for task in tasks if task.get("delegate_to") == "localhost"]
    assert [task["name"] for task in delegated if task.get("vars", {}).get("ansible_become") is not False] == []


def test_role_readme_names_every_variable(role):
    readme = (role / "README.md").read_text(encoding="utf-8")
    options = load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    assert [name for name in options if name not in readme] == []


def test_sets_record_the_version_of_the_collection():
    assert VERSION == load(ROOT / "galaxy.yml")["version"]


def test_action_group_holds_each_module_that_takes_an_engine():
    groups = load(ROOT / "meta" / "runtime.yml")["action_groups"]
    assert sorted(groups["echo"]) == [module.stem for module in MODULES if 'pop("docker_host")' in module.read_text(encoding="utf-8")]


def test_module_has_a_short_main(module):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert main.end_lineno - main.lineno < 25


def test_module_imports_no_other_module(module):
    assert [name for name in imports(module) if ".plugins.modules" in name] == []


@pytest.mark.parametrize("path", DOMAIN, ids=name_of)
def test_domain_code_knows_little_of_ansible(path):
    allowed = re.compile(r"ansible\.module_utils\.(common\.text|basic\.missing_required_lib)")
    assert [name for name in imports(path) if name.startswith("ansible.") and not allowed.match(name)] == []


def test_architecture_names_each_domain_file():
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [path.name for path in DOMAIN if path.name != "__init__.py" and "`%s`" % path.name not in architecture] == []


def test_readme_names_each_module_and_role():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in MODULES + ROLES if "`%s`" % path.stem not in readme] == []


def test_only_the_engine_imports_docker():
    importers = {path.stem for path in DOMAIN + MODULES if any(name.split(".")[0] == "docker" for name in imports(path))}
    assert importers == {"engine"}


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=name_of)
def test_playbook_names_are_fully_qualified(playbook):
    for play in load(playbook):
        if "ansible.builtin.import_playbook" in play:
            assert play["ansible.builtin.import_playbook"].startswith(PREFIX)
            continue
        roles = [entry["role"] if isinstance(entry, dict) else entry for entry in play.get("roles", [])]
        assert [name for name in roles if not name.startswith(PREFIX)] == []


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=name_of)
def test_playbook_is_in_the_readme(playbook):
    assert playbook.name in (ROOT / "README.md").read_text(encoding="utf-8")
