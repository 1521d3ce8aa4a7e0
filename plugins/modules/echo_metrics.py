#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_metrics
short_description: Record how an operation on an Echo host ended, and tell Prometheus
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Counts the runs of an operation by outcome in C(/var/lib/echo_music.ops/outcomes), and writes metrics of the backup
    sets and of these runs for the textfile collector of node_exporter.
  - All metrics are written anew at once, those of the sets from the sets themselves. So a run that failed changes what
    is told of failures, and nothing of the last success.
  - Every metric has the label C(root); two Echos on one host have a root and a file each.
  - The role C(echo_schedule) brings alert rules for them.
options:
  root:
    description:
      - The folder of the backup sets.
    type: path
    default: /var/backups/echo
  textfiles:
    description:
      - The folder that node_exporter reads (C(--collector.textfile.directory)). The file is C(echo_<root>.prom).
      - Nothing is written there where it doesn't exist.
    type: path
    default: /var/lib/prometheus/node-exporter
  operation:
    description:
      - The operation that ended. Without it, no run is recorded, and the metrics are brought up to date.
    type: str
    choices: [backup, verify, offsite, prune, restore, upgrade, rebuild, migrate]
  outcome:
    description:
      - How it ended.
    type: str
    choices: [success, failure]
  seconds:
    description:
      - How long it took.
    type: float
  alarms:
    description:
      - How many things a person is to look at although it went well.
    type: int
    default: 0
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Returns the metrics as they would be; counts and writes nothing.
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_backup_set
  - module: echo_music.ops.echo_notify
"""

EXAMPLES = r"""
- name: Tell that a backup went well
  echo_music.ops.echo_metrics:
    operation: backup
    outcome: success
    seconds: 41.3

- name: Bring the metrics up to date after sets were removed by hand
  echo_music.ops.echo_metrics:
"""

RETURN = r"""
file:
  description: The file that the collector reads; V(null) where its folder doesn't exist.
  returned: success
  type: str
  sample: /var/lib/prometheus/node-exporter/echo_var-backups-echo.prom
metrics:
  description: The samples by metric.
  returned: success
  type: dict
  sample:
    echo_backup_sets:
      - {"labels": {"root": "/var/backups/echo"}, "value": 7}
    echo_last_run_success:
      - {"labels": {"operation": "backup", "root": "/var/backups/echo"}, "value": 1}
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: SpaceError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: "The file system is read-only: remount it for writing, or name another root."
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.metrics import update

OPERATIONS = ["backup", "verify", "offsite", "prune", "restore", "upgrade", "rebuild", "migrate"]


def main():
    module = AnsibleModule(
        argument_spec=dict(
            root=dict(type="path", default="/var/backups/echo"),
            textfiles=dict(type="path", default="/var/lib/prometheus/node-exporter"),
            operation=dict(type="str", choices=OPERATIONS),
            outcome=dict(type="str", choices=["success", "failure"]),
            seconds=dict(type="float"),
            alarms=dict(type="int", default=0),
        ),
        required_together=[("operation", "outcome")],
        supports_check_mode=True,
    )
    try:
        result = update(check=module.check_mode, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
