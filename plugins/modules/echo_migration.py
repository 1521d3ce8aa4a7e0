#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_migration
short_description: Bring one host's part of a migration to a state
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - A migration moves an Echo from an old host to a new one. Each of them keeps a record of it in
    C(/var/lib/echo_music.ops), on the disk before what it tells of is done. This module moves one host on, and refuses
    whatever could let both hosts serve.
  - The old host goes V(serving), V(fenced), V(granted), V(migrated), or back to V(released). The new one goes
    V(preparing), V(live), V(committed), or to V(abandoned).
  - Some states need the record of the other host as this module returned it there, in O(other).
  - The role P(echo_music.ops.echo_migrate#role) does all of a migration.
options:
  state:
    description:
      - V(serving) begins a migration on the old host, which goes on serving. Once more with the same O(id), it lets
        O(keys) in.
      - V(fenced) stops the app and keeps a reboot from starting it. A guard process releases the host when that has
        stood for O(lease) seconds.
      - V(granted) lets the new host go live. From here on, the old one serves again only on the new one's word.
      - V(released) lets the old host serve as before; from V(granted) it needs O(other) to be V(abandoned).
      - V(migrated) stops all containers and marks the host with where the data went; O(other) must be V(live).
      - V(retired) notes that the data of a migrated host is removed.
      - V(preparing) begins on the new host, and makes keys.
      - V(live) starts the app on the new host, waits for its health and counts rows; O(other) must be V(granted).
      - V(committed) ends the migration on the new host.
      - V(abandoned) stops the app on the new host, which never goes live for this migration.
    type: str
    required: true
    choices: [serving, fenced, granted, released, migrated, retired, preparing, live, committed, abandoned]
  project:
    description:
      - The Compose project of the Echo stack on this host.
    type: str
    required: true
  id:
    description:
      - The migration. V(serving) makes one up where there is none.
    type: str
  peer:
    description:
      - The name of the other host, for people. Needed by V(serving) and V(preparing).
    type: str
  other:
    description:
      - The record of the other host, its RV(migration).
    type: dict
  lease:
    description:
      - Seconds from V(fenced) after which the old host serves again by itself, unless it has granted by then.
    type: int
    default: 1800
  stop_timeout:
    description:
      - Seconds that the app has to end by itself.
    type: int
    default: 30
  health_timeout:
    description:
      - Seconds that the app may take to become healthy.
    type: int
    default: 360
  tables:
    description:
      - Rows of each table that V(live) must find, at least. Where an earlier run left the app serving, and something was
        written since, they are not compared.
    type: dict
  force:
    description:
      - Whether V(released) does without the word of a new host that is gone for good.
      - If that host comes back it serves as well, and one of the two is lost.
    type: bool
    default: false
  login:
    description:
      - The user whose C(authorized_keys) let the new host in. Needed by V(serving).
    type: str
  keys:
    description:
      - Public keys to let in, each for reading one folder.
    type: dict
  key_from:
    description:
      - The address that the keys are good from; any, if it is empty.
    type: str
    default: ""
  key_names:
    description:
      - Names of the keys that V(preparing) makes.
    type: list
    elements: str
    default: []
  host_keys:
    description:
      - SSH host keys of the old host, for V(preparing).
    type: list
    elements: str
    default: []
  folders:
    description:
      - Folders of this host that V(preparing) makes for the new stack, each with its C(path), and with C(owner), the user id,
        the group id and the mode. Those that are there must be empty.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description:
          - The folder.
        type: path
        required: true
      owner:
        description:
          - User id, group id and mode, as in RV(owners).
        type: list
        elements: int
  docker_host:
    description:
      - The Docker Engine, as a URL such as V(unix:///var/run/docker.sock).
    type: str
requirements:
  - docker (Python SDK for Docker, Debian package python3-docker) >= 5.0
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: partial
    details: Changes nothing and reports a change; whether the other host's record allows it is not checked.
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_migration_info
  - module: echo_music.ops.echo_migration_copy
"""

EXAMPLES = r"""
- name: Fence the old host
  echo_music.ops.echo_migration:
    state: fenced
    project: echo
    id: 6f1c2a9b
  delegate_to: old.example.org
  register: fenced

- name: Bring the old host back, whose new host never went live
  echo_music.ops.echo_migration:
    state: released
    project: echo
    id: 6f1c2a9b
    other: "{{ abandoned.migration }}"
  delegate_to: old.example.org
"""

RETURN = r"""
migration:
  description: The record of this host. V(null) where there is none.
  returned: success
  type: dict
  contains:
    id:
      description: The migration.
      type: str
      sample: 6f1c2a9b
    side:
      description: V(source) on the old host, V(target) on the new one.
      type: str
      sample: source
    phase:
      description: How far it is.
      type: str
      sample: fenced
    peer:
      description: The other host.
      type: str
      sample: new.example.org
    facts:
      description: What the host has to know later on.
      type: dict
    steps:
      description: The phases, each with its time in seconds since the epoch.
      type: list
      elements: dict
      sample: [{"phase": "serving", "time": 1795550000.5}]
public_keys:
  description: The public keys that were made, by name.
  returned: state=preparing
  type: dict
  sample: {"uploads": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMj0"}
work:
  description: The folder of this migration on the new host; it goes with it.
  returned: state=preparing
  type: str
  sample: /var/lib/echo_music.ops/echo.migrate
alias:
  description: The name by which C(known_hosts) in the folder knows the old host.
  returned: state=preparing
  type: str
  sample: echo-migrate-old
owners:
  description: User id, group id and mode of the folder of each role.
  returned: state=serving
  type: dict
  sample: {"uploads": [1001, 1001, 493]}
tables:
  description: Rows of each table, with the app at work.
  returned: state=live
  type: dict
  sample: {"public.users": 5}
healthy_at:
  description: When the app was healthy, in seconds since the epoch.
  returned: state=live
  type: float
  sample: 1795550021.2
seconds:
  description: What stopping the app, or starting it until it was healthy, took.
  returned: state=fenced and state=live
  type: float
  sample: 3.1
kept:
  description:
    - Whether something was written on the new host while its app ran, so that its data must not be thrown away.
    - A database that can't be asked counts as written to.
  returned: state=abandoned
  type: bool
  sample: false
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: MigrationError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: "Run the playbook again: it looks at both hosts first."
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.engine import ENGINE_ARGUMENTS, Engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.migration import LEASE, Source, Target, ensure_migration

ARGUMENTS = dict(
    state=dict(type="str", choices=list(Source.STATES) + list(Target.STATES), required=True),
    project=dict(type="str", required=True),
    id=dict(type="str"),
    peer=dict(type="str"),
    other=dict(type="dict"),
    lease=dict(type="int", default=LEASE),
    stop_timeout=dict(type="int", default=30),
    health_timeout=dict(type="int", default=360),
    tables=dict(type="dict"),
    force=dict(type="bool", default=False),
    login=dict(type="str"),
    keys=dict(type="dict", no_log=False),
    key_from=dict(type="str", default="", no_log=False),
    key_names=dict(type="list", elements="str", default=[], no_log=False),
    host_keys=dict(type="list", elements="str", default=[], no_log=False),
    folders=dict(
        type="list",
        elements="dict",
        default=[],
        options=dict(path=dict(type="path", required=True), owner=dict(type="list", elements="int")),
    ),
    **ENGINE_ARGUMENTS,
)


def main():
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_if=[
            ("state", "serving", ["peer", "login"]),
            ("state", "preparing", ["peer", "id"]),
            ("state", "live", ["other", "id"]),
            ("state", "migrated", ["other", "id"]),
        ],
        supports_check_mode=True,
    )
    try:
        engine = Engine(module.params.pop("docker_host"))
        result = ensure_migration(engine, check=module.check_mode, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
