#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_migration_copy
short_description: Copy an Echo's files from the old host to this one
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Runs rsync on the new host, with the keys that M(echo_music.ops.echo_migration) made there. Each call brings what
    has changed since the last one, whatever the size of the rest.
  - Files go to their places in the other layout where the volume is of another role than the component.
options:
  parts:
    description:
      - What is copied.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The name of the part's key.
        type: str
        required: true
      component:
        description: What it is on the old host.
        type: str
        required: true
      role:
        description: The role of the volume that it goes to.
        type: str
        required: true
      dest:
        description: The folder that it goes to.
        type: path
        required: true
  host:
    description:
      - The old host's address, as this one knows it.
    type: str
    required: true
  port:
    description:
      - The port of its SSH server.
    type: int
    default: 22
  user:
    description:
      - The user whose C(authorized_keys) let the keys in.
    type: str
    required: true
  work:
    description:
      - The folder with keys and known hosts.
    type: path
    required: true
  alias:
    description:
      - The name of the old host in the known hosts.
    type: str
    required: true
extends_documentation_fragment:
  - echo_music.ops.progress
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: none
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_migration
"""

EXAMPLES = r"""
- name: Copy the covers and uploads
  echo_music.ops.echo_migration_copy:
    parts:
      - name: uploads
        component: uploads
        role: uploads
        dest: /var/lib/docker/volumes/echo-uploads/_data
    host: old.example.org
    user: root
    work: /var/lib/echo_music.ops/echo.migrate
    alias: echo-migrate-old
"""

RETURN = r"""
parts:
  description:
    - What each part took. C(files) and C(bytes) are those that were transferred, C(all_files) and C(all_bytes) those
      that there are, C(sent) is what went over the wire.
  returned: success
  type: list
  elements: dict
  sample:
    - name: uploads
      files: 3
      bytes: 122880
      sent: 123900
      all_files: 71
      all_bytes: 2194304
      seconds: 0.6
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: CopyError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: Install it.
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.migration_copy import copy

PART = dict(
    name=dict(type="str", required=True),
    component=dict(type="str", required=True),
    role=dict(type="str", required=True),
    dest=dict(type="path", required=True),
)
ARGUMENTS = dict(
    parts=dict(type="list", elements="dict", options=PART, required=True),
    host=dict(type="str", required=True),
    port=dict(type="int", default=22),
    user=dict(type="str", required=True),
    work=dict(type="path", required=True),
    alias=dict(type="str", required=True),
)


def main():
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=False)
    options, work = module.params, module.params["work"]
    ssh = dict((key, options[key]) for key in ("host", "port", "user", "alias"))
    ssh["known_hosts"] = os.path.join(work, "known_hosts")
    try:
        copied = copy(options["parts"], ssh, os.path.join(work, "keys"), os.path.join(work, "lock"))
    except EchoError as error:
        module.fail_json(**error.as_result())
    module.exit_json(changed=any(part["files"] for part in copied), parts=copied)


if __name__ == "__main__":
    main()
