#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_pg_dump
short_description: Dump Echo's database, all of it from one moment
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Writes the database of an Echo stack as C(postgres_dump.backup) (custom format, for C(pg_restore)), C(postgres_dump.sql)
    (for C(psql)) and C(postgres_globals.sql) (roles and tablespaces), and counts the rows of every table.
  - Dump, SQL and row counts show one moment. The module exports a snapshot that it holds open
    (PostgreSQL manual, "Snapshot Synchronization Functions"), gives it to C(pg_dump --snapshot), and lets C(pg_restore)
    turn the dump into SQL, which also reads the dump to its end.
  - Nothing is written inside the database's container. On the engine's own host a helper container of the database's
    image, with O(dest) mounted, dumps past the engine; it sees that container's processes and files, and for that has
    C(CAP_SYS_PTRACE). Elsewhere the output is streamed through the engine.
  - The files appear when all of them are whole and on disk, with mode 0600; after a failure none does. Each run writes
    them anew, so RV(ignore:changed) is always V(true).
options:
  dest:
    description:
      - Folder for the files. It is created with mode 0700.
    type: path
    required: true
  plain:
    description:
      - Whether to write C(postgres_dump.sql).
    type: bool
    default: true
  globals:
    description:
      - Whether to write C(postgres_globals.sql).
    type: bool
    default: true
  role_passwords:
    description:
      - Whether C(postgres_globals.sql) holds the roles' password hashes. It takes a superuser to read them.
    type: bool
    default: false
  compression:
    description:
      - How C(postgres_dump.backup) is compressed.
      - V(auto) takes zstd from PostgreSQL 16 on where C(pg_dump) was built with it, and gzip otherwise.
    type: str
    choices: [auto, zstd, gzip, none]
    default: auto
  compression_level:
    description:
      - Level of the compression. Higher ones cost far more time than they save room.
    type: int
    default: 1
  snapshot_file:
    description:
      - File that is written as soon as the moment of the dump is fixed, with its C(id), C(wal_lsn) and C(time), or with
        C(error) if it fails before. The option O(echo_music.ops.echo_volume_backup#module:after_snapshot) waits for it.
      - By default C(.snapshot.json) in O(dest).
    type: path
  database:
    description:
      - Name of the database, if it isn't the one that the container's C(POSTGRES_DB) names.
    type: str
  user:
    description:
      - Role that connects, if it isn't the one that the container's C(POSTGRES_USER) names.
      - The password is the container's C(POSTGRES_PASSWORD), or what C(POSTGRES_PASSWORD_FILE) holds.
    type: str
extends_documentation_fragment:
  - echo_music.ops.engine
  - echo_music.ops.engine.stack
  - echo_music.ops.progress
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Asks the database what would be dumped; writes nothing.
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_backup_set
  - module: echo_music.ops.echo_volume_backup
  - name: Snapshot Synchronization Functions
    description: What holds the dump, the SQL and the counts together.
    link: https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION
  - name: pg_dump
    description: The options C(--snapshot), C(--format) and C(--compress).
    link: https://www.postgresql.org/docs/current/app-pgdump.html
"""

EXAMPLES = r"""
# ansible echo -m echo_music.ops.echo_pg_dump -a 'dest=/root/dump'
- name: Dump the database of the one Echo stack here
  echo_music.ops.echo_pg_dump:
    dest: /root/dump
  register: dump

- name: Show how many users the dump holds
  ansible.builtin.debug:
    msg: "{{ dump.tables['public.users'] }} users at {{ dump.snapshot.time }}"

# ansible echo -m echo_music.ops.echo_pg_dump -a 'dest=/root/dump' --check
- name: Say what would be dumped
  echo_music.ops.echo_pg_dump:
    dest: /root/dump
  check_mode: true

- name: Dump one of two stacks, custom format alone, as gzip for tools that know no zstd
  echo_music.ops.echo_pg_dump:
    dest: /root/dump
    project: echo-family
    plain: false
    globals: false
    compression: gzip
"""

RETURN = r"""
artifacts:
  description: The files that were written.
  returned: when not in check mode
  type: list
  elements: dict
  contains:
    role:
      description: Always V(database).
      type: str
      returned: always
      sample: database
    file:
      description: Name of the file in O(dest).
      type: str
      returned: always
      sample: postgres_dump.backup
    source:
      description: Container and database.
      type: str
      returned: always
      sample: echo-postgres:music_server
    bytes_in:
      description: Bytes of the database on the server's disk; those of the file itself for C(postgres_globals.sql).
      type: int
      returned: always
      sample: 928388787
    bytes_out:
      description: Bytes of the file.
      type: int
      returned: always
      sample: 224644597
    members:
      description: Tables; roles for C(postgres_globals.sql).
      type: int
      returned: always
      sample: 14
    codec:
      description: Compression and level, or V(none).
      type: str
      returned: always
      sample: zstd:1
    sha256:
      description: SHA-256 of the file.
      type: str
      returned: always
      sample: fb85959c5cf631dcd558eda539bc8d20b5827e07394d0415462ddfde0067459f
    seconds:
      description: How long it took. On the engine's own host the dump and its SQL are written at the same time.
      type: float
      returned: always
      sample: 3.399
snapshot:
  description: The moment of the dump.
  returned: when not in check mode
  type: dict
  contains:
    id:
      description: Identifier of the exported snapshot.
      type: str
      returned: always
      sample: 0000001B-00000002-1
    wal_lsn:
      description: Position in the write-ahead log.
      type: str
      returned: always
      sample: 0/41F75DD0
    time:
      description: The server's clock, UTC.
      type: str
      returned: always
      sample: "2026-11-24T18:39:08.201156Z"
tables:
  description: The exact rows of every table in the snapshot.
  returned: when not in check mode
  type: dict
  sample: {"public.users": 3}
table_count:
  description: How many tables would be dumped.
  returned: in check mode
  type: int
  sample: 14
database:
  description: The database as PostgreSQL describes it.
  returned: success
  type: dict
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
    user: music_admin
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.dump import run
from ansible_collections.echo_music.ops.plugins.module_utils.engine import ENGINE_ARGUMENTS, Engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.stack import STACK_ARGUMENTS


def main():
    module = AnsibleModule(
        argument_spec=dict(
            dest=dict(type="path", required=True),
            plain=dict(type="bool", default=True),
            globals=dict(type="bool", default=True),
            role_passwords=dict(type="bool", default=False),
            compression=dict(type="str", choices=["auto", "zstd", "gzip", "none"], default="auto"),
            compression_level=dict(type="int", default=1),
            snapshot_file=dict(type="path"),
            database=dict(type="str"),
            user=dict(type="str"),
            **ENGINE_ARGUMENTS,
            **STACK_ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    engine = Engine(module.params.pop("docker_host"))
    try:
        result = run(engine, check_mode=module.check_mode, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
