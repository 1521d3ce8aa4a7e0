#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_job
short_description: Wait for a module in the background, and return what it returned
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Waits on the host for a task with C(async) and C(poll=0), in one go, where Ansible's own C(async_status) is asked
    again and again and says C(FAILED - RETRYING) each time.
  - Ends as the module in the background did, with all that it returned, and removes the job's file.
  - In a terminal, it shows how far a long module of this collection is in the background.
options:
  results_file:
    description:
      - The job's file on this host, as the task in the background returned it.
    type: path
    required: true
  timeout:
    description:
      - How many seconds to wait. The task's own C(async) ends it earlier if that is less.
    type: int
    default: 21600
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - echo_music.ops.progress
attributes:
  check_mode:
    support: full
    details: Waits as well, for a job that was begun.
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_pg_dump
"""

EXAMPLES = r"""
- name: Dump the database in the background
  echo_music.ops.echo_pg_dump:
    dest: /srv/dumps
  async: 3600
  poll: 0
  register: dump_job

- name: Archive the uploads meanwhile
  echo_music.ops.echo_volume_backup:
    volume: echo-uploads
    dest: /srv/dumps/uploads.tar.gz
    component: uploads
    after_snapshot: /srv/dumps/.snapshot.json

- name: Wait for the dump
  echo_music.ops.echo_job:
    results_file: "{{ dump_job.results_file }}"
    timeout: 3600
  register: dump
"""

RETURN = r"""
error:
  description: The kind of failure, if the job can't be waited for; else that of the job's module.
  returned: failure
  type: str
  sample: JobError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: "Name the results_file that the task in the background returned, of this very host."
"""

import json
import sys

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.job import await_job


def main():
    module = AnsibleModule(
        argument_spec=dict(
            results_file=dict(type="path", required=True),
            timeout=dict(type="int", default=21600),
        ),
        supports_check_mode=True,
    )
    try:
        result = await_job(module.params["results_file"], module.params["timeout"])
    except EchoError as error:
        module.fail_json(**error.as_result())
    # As the job's module said it, and not by exit_json(), which would take its warnings for something else.
    sys.stdout.write(json.dumps(result) + "\n")
    raise SystemExit(0)


if __name__ == "__main__":
    main()
