# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role echo_migrate decides on the controller: the domain's pure functions as filters."""

from __future__ import annotations

import shlex

from ansible_collections.echo_music.ops.plugins.module_utils.migration_plan import findings, folders, lost, mappings, parts, plan
from ansible_collections.echo_music.ops.plugins.module_utils.migration_report import page, plan_text, report


def answer(result):
    """Return what a host answered, or ``{"error"}`` for one that was not reached or couldn't answer."""
    if not isinstance(result, dict) or not result:
        return dict(error="It was not asked.")
    if result.get("unreachable") or result.get("failed") or "changed" not in result or "exception" in result:
        return dict(error=str(result.get("msg") or "It gave no answer."))
    return dict(result)


def text(path):
    """Return the text of a file of the controller."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def let_in(keys, folders):
    """Return the keys as ``echo_migration`` lets them in: ``{name: {"key", "folder"}}``."""
    return dict((name, dict(key=keys[name], folder=folder)) for name, folder in folders.items())


def tunnel(new, control, port, host, host_port):
    """Return the command that lets the new host reach the old one's SSH server through the controller.

    ``new`` are the variables by which Ansible reaches the new host.
    """
    argv = ["ssh", "-f", "-M", "-S", control, "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes"]
    argv += ["-R", "127.0.0.1:%d:%s:%s" % (port, host, host_port)]
    for variable in ("ansible_ssh_common_args", "ansible_ssh_extra_args"):
        argv += shlex.split(new.get(variable) or "")
    if new.get("ansible_ssh_private_key_file") or new.get("ansible_private_key_file"):
        argv += ["-i", new.get("ansible_ssh_private_key_file") or new["ansible_private_key_file"]]
    if new.get("ansible_port"):
        argv += ["-p", str(new["ansible_port"])]
    if new.get("ansible_user"):
        argv += ["-l", new["ansible_user"]]
    # Should the controller die, the way closes by itself some day.
    return argv + [new.get("ansible_host") or new["inventory_hostname"], "sleep 86400"]


class FilterModule:
    """The filters of a migration."""

    def filters(self):
        """Return the filters by name."""
        return dict(
            migration_answer=answer,
            migration_findings=findings,
            migration_folders=folders,
            migration_let_in=let_in,
            migration_lost=lost,
            migration_mappings=mappings,
            migration_page=page,
            migration_parts=parts,
            migration_plan=plan,
            migration_plan_text=plan_text,
            migration_report=report,
            migration_text=text,
            migration_tunnel=tunnel,
        )
