# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts what Ansible ran through a connection: one for each task and host, or for each of its items."""

from __future__ import annotations

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: remote_tasks
type: aggregate
short_description: Count tasks that ran through a connection
description: Writes one line to the end of the output.
"""
# What the controller does by itself.
OWN = ("assert", "debug", "fail", "import_role", "import_tasks", "include_role", "include_tasks", "meta", "set_fact", "validate_argument_spec")


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "remote_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        self.count = 0

    def v2_runner_on_ok(self, result):
        self._ran(result, of_many=bool(result.task.loop))

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._ran(result, of_many=bool(result.task.loop))

    def v2_runner_item_on_ok(self, result):
        self._ran(result)

    def v2_runner_item_on_failed(self, result):
        self._ran(result)

    def v2_playbook_on_stats(self, stats):
        self._display.display("REMOTE TASKS %d" % self.count)

    def _ran(self, result, of_many=False):
        if result.task.action.rpartition(".")[2] not in OWN and not of_many:
            self.count += 1
