#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_migration_info
short_description: What a migration has to know of a host
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Reads, without changing anything, what decides whether a host can be migrated from or to, and how far a migration
    is that an earlier run left.
  - What a host doesn't have is V(null) in the result, so that all that is missing anywhere can be told at once.
options:
  project:
    description:
      - The Compose project of the Echo stack.
    type: str
    required: true
  now:
    description:
      - The controller's time in seconds since the epoch, to compare this host's with.
    type: float
  peer_host:
    description:
      - The other host's address, to try to connect to.
    type: str
  peer_port:
    description:
      - The port of the other host's SSH server.
    type: int
    default: 22
  files:
    description:
      - The files of a deployment, names and texts, to have Compose explain. They are not kept.
    type: dict
  working_dir:
    description:
      - The folder in which O(files) will lie.
    type: path
    default: /opt/echo
  env_file:
    description:
      - Which of O(files) has Compose's variables, as C(docker compose --env-file) names it.
    type: str
    default: .env
  paths:
    description:
      - Paths to ask for the free space of.
    type: list
    elements: path
    default: []
extends_documentation_fragment:
  - echo_music.ops.engine
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_migration
"""

EXAMPLES = r"""
- name: How far is the migration of this host?
  echo_music.ops.echo_migration_info:
    project: echo
  register: host

- name: Say it
  ansible.builtin.debug:
    msg: "{{ host.migration.phase | default('none') }}"
"""

RETURN = r"""
migration:
  description: The record of a migration on this host, as M(echo_music.ops.echo_migration) returns it.
  returned: success
  type: dict
architecture:
  description: The machine's architecture.
  returned: success
  type: str
  sample: x86_64
clock_offset:
  description: Seconds that this host's clock is ahead of O(now), with the time that the task took to get here.
  returned: success
  type: float
  sample: 0.3
login:
  description: The user who logged in.
  returned: success
  type: str
  sample: root
connected_from:
  description: The address that the connection comes from, if it comes over SSH.
  returned: success
  type: str
  sample: 192.0.2.1
host_keys:
  description: The public keys of the SSH server.
  returned: success
  type: list
  elements: str
rsync:
  description: The version of rsync.
  returned: success
  type: str
  sample: 3.2.7
rrsync:
  description: Where rrsync is.
  returned: success
  type: str
  sample: /usr/bin/rrsync
compose:
  description: The version of Docker Compose.
  returned: success
  type: str
  sample: 2.26.1
listening:
  description: TCP ports that are in use.
  returned: success
  type: list
  elements: int
  sample: [22, 4567]
peer:
  description: Whether the other host could be reached, and this host's address on the way there.
  returned: success
  type: dict
  sample: {"host": "192.0.2.7", "port": 22, "reachable": true, "own_address": "192.0.2.8", "error": null}
engine:
  description: The Docker Engine with its images, containers and volumes, or an C(error).
  returned: success
  type: dict
free:
  description: Free bytes by path, of O(paths), of the Engine's folder, and of the folders that the deployment mounts.
  returned: success
  type: dict
  sample: {"/var/backups": 41943040000}
disks:
  description: The device that each path of RV(free) is on.
  returned: success
  type: dict
  sample: {"/var/backups": 65024}
deployment:
  description: What Compose makes of O(files), without environments, or an C(error).
  returned: success
  type: dict
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: MigrationError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: Look at it.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.engine import ENGINE_ARGUMENTS, Engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.migration_survey import survey

ARGUMENTS = dict(
    project=dict(type="str", required=True),
    now=dict(type="float"),
    peer_host=dict(type="str"),
    peer_port=dict(type="int", default=22),
    files=dict(type="dict", no_log=True),
    working_dir=dict(type="path", default="/opt/echo"),
    env_file=dict(type="str", default=".env"),
    paths=dict(type="list", elements="path", default=[]),
    **ENGINE_ARGUMENTS,
)


def main():
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    options = module.params
    engine = Engine(options.pop("docker_host"))
    host, port = options.pop("peer_host"), options.pop("peer_port")
    try:
        result = survey(engine, peer=dict(host=host, port=port) if host else None, **options)
    except EchoError as error:
        module.fail_json(**error.as_result())
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
