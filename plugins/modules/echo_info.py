#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_info
short_description: Tell which Echo runs on a host, what its data is, and which backup sets exist
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Finds the Echo music server on a Docker Engine by Compose's labels, then by the container names of
    Echo's own Compose files, whether its containers run or not.
  - Knows both layouts, V(classic) (volumes C(echo-config), C(echo-uploads), C(echo-logs)) and V(unified)
    (one volume or folder at C(/app/data)).
  - Changes nothing, and shows no password.
options:
  gather:
    description:
      - What to read beyond the containers, volumes and Compose files themselves.
      - V(sizes) walks the volumes and counts bytes and files.
      - V(database) asks PostgreSQL for its version, owner, encoding, collation, extensions and size.
      - V(tables) counts the rows of every table exactly, which reads each table once; it brings V(database) along.
      - V(backup_sets) lists the sets in O(root).
    type: list
    elements: str
    choices: [sizes, database, tables, backup_sets]
    default: [sizes, database, tables, backup_sets]
  volumes:
    description:
      - Volumes or absolute folders by role, for mounts that discovery can't know; V(uploads), for example, may be
        V(/srv/echo/uploads).
    type: dict
    default: {}
  contents_of:
    description:
      - Role of a volume whose files are to be listed, such as V(uploads) or V(data).
    type: str
  contents_depth:
    description:
      - How many levels of folders O(contents_of) shows.
    type: int
    default: 1
  root:
    description:
      - The folder of the backup sets.
    type: path
    default: /var/backups/echo
  query:
    description:
      - A JMESPath expression over the whole result; its value is returned as RV(result).
      - See U(https://jmespath.org) for the language.
    type: str
extends_documentation_fragment:
  - echo_music.ops.engine
  - echo_music.ops.engine.stack
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: The module only reads.
  diff_mode:
    support: N/A
    details: The module changes nothing.
  platform:
    platforms: posix
requirements:
  - jmespath, for O(query)
seealso:
  - module: echo_music.ops.echo_backup_set
"""

EXAMPLES = r"""
# ansible echo -m echo_music.ops.echo_info
- name: Look at the Echo stack
  echo_music.ops.echo_info:
  register: echo

- name: Show its layout and how many users it has
  ansible.builtin.debug:
    msg: "{{ echo.stack.layout }}: {{ echo.stack.database.tables['public.users'] }} users"

# ansible echo -m echo_music.ops.echo_info -a "query='stack.volumes[].[role,bytes]'"
- name: Ask for the size of each volume alone
  echo_music.ops.echo_info:
    gather: [sizes]
    query: "stack.volumes[].{role: role, bytes: bytes}"
  register: sizes

- name: See what the classic layout's uploads hold, two levels deep
  echo_music.ops.echo_info:
    gather: []
    contents_of: uploads
    contents_depth: 2
  register: uploads
"""

RETURN = r"""
stack:
  description: The Echo stack.
  returned: success
  type: dict
  contains:
    layout:
      description: V(classic) or V(unified).
      type: str
      returned: success
      sample: classic
    project:
      description: Compose project; V(null) for containers that Compose didn't make.
      type: str
      returned: success
      sample: echo
    engine:
      description: Version and address of the Docker Engine; C(local) tells whether its files can be read directly.
      type: dict
      returned: success
      sample: {"api_version": "1.41", "host": "unix:///var/run/docker.sock", "local": true, "version": "20.10.24"}
    containers:
      description:
        - The containers by role (C(database), C(redis), C(app)).
        - Each with image reference, image id, registry digests, state, health and restart policy.
      type: dict
      returned: success
      sample:
        database:
          health: healthy
          id: 4f1c7ab6c5d8
          image: postgres:16-alpine
          image_digests: []
          image_id: sha256:8d2c1f
          name: echo-postgres
          restart_policy: unless-stopped
          service: postgres
          started_at: "2026-11-24T18:20:01.1Z"
          state: running
    volumes:
      description:
        - The stack's volumes and bind-mounted folders, with their role, mount point on the host, bytes and files.
        - C(bytes) and C(files) are V(null) where the engine's files can't be read directly.
        - C(mounts_inside) are what else the container writes to below the destination; a backup is without that.
      type: list
      elements: dict
      returned: success
      sample:
        - bytes: 52428800
          container: echo-app
          destination: /app/uploads
          files: 512
          mounts_inside: []
          name: echo-uploads
          role: uploads
          source: /var/lib/docker/volumes/echo-uploads/_data
          type: volume
    database:
      description:
        - The database as PostgreSQL describes it; C(tables) holds the exact rows per table.
        - C(error) alone, beside the container, where it could not be asked.
      type: dict
      returned: when O(gather) has V(database) or V(tables)
      sample:
        bytes: 9323311
        collate: C
        container: echo-postgres
        ctype: C
        encoding: UTF8
        extensions: [{"name": "pg_trgm", "version": "1.6"}]
        name: music_server
        owner: music_admin
        server_version: "15.18"
        server_version_num: 150018
        tables: {"public.users": 3}
        user: music_admin
    deployment:
      description:
        - Compose's folder, files and environment files, by the containers' labels. C(env_file) is the last of those that are
          there, which outvotes the others.
      type: dict
      returned: success
      sample:
        env_file: /opt/echo/.env
        env_files: [/opt/echo/.env]
        files: [/opt/echo/docker-compose.yml]
        project: echo
        working_dir: /opt/echo
backup_sets:
  description: The published sets in O(root), oldest first, and what is wrong with one that isn't complete.
  returned: when O(gather) has V(backup_sets)
  type: list
  elements: dict
  sample:
    - bytes: 61240112
      complete: true
      components: [config, database, deployment, uploads]
      id: backup_2026-11-24_03-00-00
      path: /var/backups/echo/backup_2026-11-24_03-00-00
      pinned: false
      accepted: false
      drill: {"passed": true, "rto_seconds": 14.2, "time": "2026-11-24T04:12:09Z"}
      parts: {"config": 212, "database": 9323311, "deployment": 2419, "uploads": 52428800}
      holds: {"all tables": 48211, "config": 212, "public.playlists": 31, "public.users": 4, "uploads": 52428800}
      proven: true
      time: "2026-11-24T03:00:00Z"
backup_space:
  description: Bytes of the file system that O(root) is on.
  returned: when O(gather) has V(backup_sets)
  type: dict
  sample: {"free": 78920024064, "total": 270553174016}
runs:
  description: How the operations on O(root) ended, counted over all their runs, as M(echo_music.ops.echo_metrics) records it.
  returned: when O(gather) has V(backup_sets)
  type: dict
  sample:
    backup:
      finished: {"success": 1795489201.7}
      last: {"alarms": 0, "outcome": "success", "seconds": 3.1}
      runs: {"failure": 0, "success": 41}
contents:
  description: The files of the volume that O(contents_of) names.
  returned: when O(contents_of) is given
  type: list
  elements: dict
  sample:
    - {"bytes": 4096, "gid": 1001, "mode": "0755", "mtime": 1795542001, "path": "covers", "type": "directory", "uid": 1001}
result:
  description: What O(query) found.
  returned: when O(query) is given
  type: raw
  sample: [{"bytes": 52428800, "role": "uploads"}]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.engine import ENGINE_ARGUMENTS, Engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.report import report
from ansible_collections.echo_music.ops.plugins.module_utils.stack import STACK_ARGUMENTS

READABLE = ["sizes", "database", "tables", "backup_sets"]


def main():
    module = AnsibleModule(
        argument_spec=dict(
            gather=dict(type="list", elements="str", choices=READABLE, default=READABLE),
            volumes=dict(type="dict", default={}),
            contents_of=dict(type="str"),
            contents_depth=dict(type="int", default=1),
            root=dict(type="path", default="/var/backups/echo"),
            query=dict(type="str"),
            **ENGINE_ARGUMENTS,
            **STACK_ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    try:
        result = report(Engine(module.params.pop("docker_host")), **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
