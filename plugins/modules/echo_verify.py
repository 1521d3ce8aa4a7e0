#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_verify
short_description: Have a backup set prove that it restores
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Verifies a backup set, a set of the 2024 script, or one file, at one of three levels. Each holds those before it.
  - What was found goes to C(proof.json) in the set, which is no part of the set and replaced by one rename. A set that
    fails gets a proof of that, and the module fails with all that is wrong.
  - C(latest_proven) of M(echo_music.ops.echo_restore) is the newest set of which a drill passed, and nothing failed
    since.
  - Where the host failed (no image, no room, an engine that went away), or a release that O(server_version),
    O(server_image) or O(app_image) name, nothing is proven either way, and C(proof.json) stays as it was.
  - The live stack is not touched. A drill has a network of its own, that leads nowhere, and publishes no port.
    Containers, networks and volumes of a drill that was killed are removed by the next run of this module, and of every
    other one that starts a helper container.
  - Images are never pulled.
options:
  source:
    description:
      - The id of a set in O(root), V(latest), V(latest_proven), or an absolute path to a set or to one dump or archive.
        For a single file no proof is written.
    type: str
    default: latest
  root:
    description:
      - The folder of the backup sets.
    type: path
    default: /var/backups/echo
  level:
    description:
      - V(checksum) compares every file with C(SHA256SUMS) and the manifest. The 2024 script wrote none.
      - V(structure) also reads every archive to its end, with the checks of a restore on each member, has pg_restore
        read the dump to its end, and looks for the closing line of SQL dumps.
      - V(drill) also restores all of it into a throwaway PostgreSQL and throwaway volumes, counts the rows of each table
        against the manifest, looks for every file that the database names, and starts the app on it with a throwaway
        Redis, until it is healthy.
    type: str
    choices: [checksum, structure, drill]
    default: drill
  server_version:
    description:
      - The major release of PostgreSQL to load the dump into, such as V(17) before an upgrade to it.
      - By default the image of the set, then that of the live stack, then any other one on this host, of the dump's own
        release before newer ones. Images tell their release as the official one does, by C(PG_MAJOR).
    type: int
  server_image:
    description:
      - The image of PostgreSQL to use, of this host.
    type: str
  app_image:
    description:
      - The image of the app to start, of this host, such as that of a new release before an upgrade to it.
      - By default the one that the manifest tells of. If it isn't here, or there is no image of Redis, the app is not
        started, and RV(not_checked) says so.
    type: str
  app_env:
    description:
      - Environment variables that the app needs beyond those of Echo's own Compose files.
    type: dict
    default: {}
  ignore_columns:
    description:
      - Columns, as C(schema.table.column), whose values are no names of files although the column's name says so.
    type: list
    elements: str
    default: []
  health_timeout:
    description:
      - Seconds that the app may take to become healthy.
    type: int
    default: 360
extends_documentation_fragment:
  - echo_music.ops.engine
  - echo_music.ops.engine.stack
  - echo_music.ops.progress
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Says with which images it would verify and checks the free space; no file of the set is read.
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_restore
  - module: echo_music.ops.echo_backup_set
"""

EXAMPLES = r"""
- name: Let the latest set prove itself by a drill
  echo_music.ops.echo_verify:

- name: Look for bit rot in an older one, quickly
  echo_music.ops.echo_verify:
    source: backup_2026-11-24_03-00-00
    level: checksum

- name: Find out whether the latest set restores into PostgreSQL 17
  echo_music.ops.echo_verify:
    server_version: 17

- name: Verify a set that the 2024 script made
  echo_music.ops.echo_verify:
    source: /opt/echo/backups/backup_2024-12-01_03-00-00
"""

RETURN = r"""
level:
  description: The level.
  returned: success, and when the set failed
  type: str
  sample: drill
set:
  description:
    - What was verified. C(origin) is V(ours), V(script) or V(file); C(time) is that of the snapshot, for other origins
      that of the name or the file.
  returned: success, and when the set failed
  type: dict
  sample:
    id: backup_2026-11-24_20-41-11
    origin: ours
    path: /var/backups/echo/backup_2026-11-24_20-41-11
    time: "2026-11-24T20:41:13.059630Z"
checked:
  description: What was looked at, by key as in C(docs/format.md). Empty in check mode.
  returned: success, and when the set failed
  type: dict
  contains:
    files:
      description: How many files were compared with their checksums, and C(bytes) with how many bytes.
      returned: for a set of this collection
      type: int
      sample: 8
    bytes:
      description: The bytes of those files.
      returned: for a set of this collection
      type: int
      sample: 2871752
    archives:
      description: The archives that were read to their ends.
      returned: from O(level=structure) on
      type: dict
      sample: {"uploads.tar.gz": {"bytes": 2293760, "members": 54}}
    dumps:
      description: The dumps that were read to their ends.
      returned: from O(level=structure) on
      type: list
      elements: str
      sample: [postgres_dump.backup, postgres_dump.sql, postgres_globals.sql]
    tables:
      description: Rows of each table after the restore.
      returned: for O(level=drill)
      type: dict
      sample: {"public.albums": 50, "public.users": 5}
    tables_compared:
      description: Whether they were compared with a manifest.
      returned: for O(level=drill)
      type: bool
      sample: true
    columns:
      description:
        - The columns that name files, how many different C(files), how many of them are C(missing), with some
          C(examples), and how many values are C(elsewhere), such as addresses of the web.
      returned: for O(level=drill) of a set with the app's files
      type: list
      elements: dict
      sample:
        - {"column": "public.albums.cover_path", "elsewhere": 0, "examples": [], "files": 50, "missing": 0}
    app_healthy_after:
      description: Seconds from the start of the app until it was healthy.
      returned: when the app was started
      type: float
      sample: 1.579
    tables_with_app:
      description: Rows of each table once the app was healthy, which may have migrated them.
      returned: when the app was started from O(app_image)
      type: dict
      sample: {"public.albums": 50, "public.equalizer_presets": 0, "public.users": 5}
not_checked:
  description: What a drill leaves out, and why.
  returned: success, and when the set failed
  type: list
  elements: str
  sample: ["The app was not started, for want of its image on this host."]
server:
  description: The image of PostgreSQL, and after a drill its release. V(null) if none is needed.
  returned: success, and when the set failed
  type: dict
  sample:
    image: postgres:15-alpine
    image_id: sha256:27cfa87126cc4c1dc19c42efada73c5369a0db5652e087a758e6bfeb128a8050
    version: "15.18"
app:
  description: The image of the app. V(null) if it is not started.
  returned: success, and when the set failed
  type: dict
  sample:
    image: ghcr.io/alexzafra13/echo:1.0.0
    image_id: sha256:d341a3c563b9d44c42a7ca5cf23575151cc981843a6112c5b28c39356befd811
bytes_needed:
  description: Room that a drill needs below Docker's folder.
  returned: success, and when the set failed
  type: int
  sample: 155613902
seconds:
  description: Seconds of each phase.
  returned: success, and when the set failed
  type: dict
  sample:
    app: 3.172
    checksum: 0.004
    database: 1.677
    named_files: 0.115
    server: 1.464
    structure: 0.233
    volumes: 0.063
rto_seconds:
  description: How long the restore took, from an empty server to a healthy app. V(null) below O(level=drill).
  returned: success, and when the set failed
  type: float
  sample: 3.319
proof:
  description: Where the proof was written. V(null) where none was.
  returned: success, and when the set failed
  type: str
  sample: /var/backups/echo/backup_2026-11-24_20-41-11/proof.json
problems:
  description: All that is wrong with the set.
  returned: success, and when the set failed
  type: list
  elements: str
  sample: ["public.albums.cover_path names 50 files, of which 1 are in no archive: 5f0c-1c2d.jpg."]
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: VerifyError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: Use another set or another copy of this one, and find out what became of it.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.engine import ENGINE_ARGUMENTS, Engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.stack import STACK_ARGUMENTS
from ansible_collections.echo_music.ops.plugins.module_utils.verify import ensure_verified

ARGUMENTS = dict(
    source=dict(type="str", default="latest"),
    root=dict(type="path", default="/var/backups/echo"),
    level=dict(type="str", choices=["checksum", "structure", "drill"], default="drill"),
    server_version=dict(type="int"),
    server_image=dict(type="str"),
    app_image=dict(type="str"),
    app_env=dict(type="dict", default={}, no_log=True),
    ignore_columns=dict(type="list", elements="str", default=[]),
    health_timeout=dict(type="int", default=360),
    **ENGINE_ARGUMENTS,
    **STACK_ARGUMENTS,
)


def main():
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = ensure_verified(Engine(module.params.pop("docker_host")), check=module.check_mode, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
