# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Causes a fault at the start of a task: a command of the shell, or the end of the controller itself.

    ECHO_FAULT_TASK  the task's name          ECHO_FAULT_NUMBER  at which of its starts, 1 by default
    ECHO_FAULT       the command, or KILL      ECHO_FAULT_MARK    a file that is written when it happened
"""

from __future__ import annotations

import os
import signal
import subprocess

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: fault
type: aggregate
short_description: Causes a fault at the start of a task
description:
  - For tests.
"""


class CallbackModule(CallbackBase):
    """Waits for its task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "fault"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        self._left = int(os.environ.get("ECHO_FAULT_NUMBER", "1"))

    def v2_playbook_on_task_start(self, task, is_conditional):
        if task.get_name().rpartition(" : ")[2] != os.environ.get("ECHO_FAULT_TASK"):
            return
        self._left -= 1
        if self._left:
            return
        with open(os.environ["ECHO_FAULT_MARK"], "w") as mark:
            mark.write(task.get_name())
        if os.environ["ECHO_FAULT"] == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        subprocess.run(os.environ["ECHO_FAULT"], shell=True, check=True, stdout=subprocess.DEVNULL)
