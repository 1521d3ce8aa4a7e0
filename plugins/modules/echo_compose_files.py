#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_compose_files
short_description: Put the Compose files of a backup set in place
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Writes the Compose files and the environment file that a set of this collection holds (C(deployment.tar.gz)) to a
    folder of a host, so that a stack can be created there to restore into.
  - A file that is there already is never changed; RV(kept) names those that differ from the set's.
  - Containers, volumes and images are not looked at.
options:
  source:
    description:
      - The id of a set in O(root), V(latest), V(latest_proven), or an absolute path to a set.
    type: str
    required: true
  root:
    description:
      - The folder of the backup sets.
    type: path
    default: /var/backups/echo
  dest:
    description:
      - The project's folder. Without it, the one where the set found the files.
      - Files that lay elsewhere go below it by their whole path.
    type: path
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Shows Compose files. Environment files hold passwords and are not shown.
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_restore
  - name: Compose
    description: The module C(community.docker.docker_compose_v2) brings up what this one prepares.
    link: https://docs.ansible.com/ansible/latest/collections/community/docker/docker_compose_v2_module.html
"""

EXAMPLES = r"""
- name: Put the Compose files of the latest set where they were
  echo_music.ops.echo_compose_files:
    source: latest
  register: compose

- name: Create the stack, and don't start it before its data is there
  community.docker.docker_compose_v2:
    project_src: "{{ compose.folder }}"
    project_name: "{{ compose.project }}"
    files: "{{ compose.files }}"
    state: stopped

- name: Restore, and start all of it
  echo_music.ops.echo_restore:
    source: "{{ compose.set.path }}"
    project: "{{ compose.project }}"
    start: true
"""

RETURN = r"""
set:
  description: The set.
  returned: success
  type: dict
  sample:
    id: backup_2026-11-24_20-42-55
    path: /var/backups/echo/backup_2026-11-24_20-42-55
project:
  description: The Compose project that the set is of, V(null) if it was none.
  returned: success
  type: str
  sample: echo
layout:
  description: V(classic) or V(unified).
  returned: success
  type: str
  sample: classic
folder:
  description: The project's folder.
  returned: success
  type: str
  sample: /opt/echo
files:
  description: The Compose files, relative to RV(folder), in the order in which Compose merges them.
  returned: success
  type: list
  elements: str
  sample: [docker-compose.yml]
env_files:
  description: The environment files, relative to RV(folder).
  returned: success
  type: list
  elements: str
  sample: [.env]
written:
  description: What was not there and was written.
  returned: success
  type: list
  elements: str
  sample: [docker-compose.yml, .env]
kept:
  description: What is there, is not the set's, and stays as it is.
  returned: success
  type: list
  elements: str
  sample: []
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: SetError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: Use another copy of this set.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.deployment_files import ensure_files
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError


def main():
    module = AnsibleModule(
        argument_spec=dict(
            source=dict(type="str", required=True),
            root=dict(type="path", default="/var/backups/echo"),
            dest=dict(type="path"),
        ),
        supports_check_mode=True,
    )
    try:
        result = ensure_files(check=module.check_mode, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
