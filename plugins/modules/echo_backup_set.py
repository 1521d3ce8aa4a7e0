#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_backup_set
short_description: Open, publish or abandon a backup set of an Echo host
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - A backup set is one folder that holds a whole Echo server at one moment. It is published whole or not at all.
  - V(state=open) takes the lock, clears what a dead run left, checks the free space, and makes a hidden staging
    folder with the Compose files in it. The other modules then write their parts there.
  - V(state=published) checks that every planned part is there, hashes all files, writes manifest and checksums,
    brings everything down to the disk, and renames the folder once.
  - V(state=abandoned) ends a set that can't be published.
  - V(state=pinned) has M(echo_music.ops.echo_prune) keep a published set whatever its rules say, V(state=unpinned) ends
    that. V(state=accepted) says that a set rightly holds less than the one before it, which ends the alarm about it.
    The files C(pinned) and C(accepted) in the set's folder say so, and may be made and removed by hand.
  - Opening a set ends a restore of the same Echo that broke off first, as M(echo_music.ops.echo_restore) does, and
    is refused while one lives. A set therefore never holds a mixture of old and new data.
  - A container that was paused or stopped for the set runs again as the first thing when the set is published or
    abandoned; after a crash, the next run sees to it.
options:
  state:
    description:
      - What is to become of the set.
    type: str
    choices: [open, published, abandoned, pinned, unpinned, accepted]
    default: open
  root:
    description:
      - The folder of the backup sets. It is created with mode 0700, and must belong to the user who runs the module.
      - One lock serves the whole folder, so two Echo projects that are to be backed up at once need one each.
    type: path
    default: /var/backups/echo
  stack:
    description:
      - The Echo stack, as M(echo_music.ops.echo_info) returns it. Its sizes feed the free-space check.
      - Required for O(state=open).
    type: dict
  components:
    description:
      - What the set consists of.
      - Without it, V(database), V(uploads), V(config) and V(deployment) in the classic layout, V(database), V(data)
        and V(deployment) in the unified one.
      - V(cache) is the volume of Redis, V(deployment) the Compose files and the environment file.
      - V(postgres-data) is the volume of PostgreSQL as it lies, to keep a database that can't be dumped any more. It is
        no backup of a server that runs.
    type: list
    elements: str
    choices: [database, uploads, config, data, deployment, cache, logs, postgres-data]
  codec:
    description:
      - How the volumes will be compressed. Decides the names of the planned files.
    type: str
    choices: [gzip, zstd, none]
    default: gzip
  quiesce:
    description:
      - Pause or stop the app's container, if it runs, until the set is published or abandoned.
      - Not needed for a consistent set, because the database is dumped from one snapshot and the volumes are read
        after it. It keeps uploads from growing past the snapshot.
    type: str
    choices: [none, pause, stop]
    default: none
  id:
    description:
      - The set, as O(state=open) returned it in RV(set.id).
      - Required for all but O(state=open).
    type: str
  artifacts:
    description:
      - What the modules that wrote the parts returned, either the whole result or its artifact alone.
      - The artifacts in O(database) and the one of V(deployment) need not be repeated.
    type: list
    elements: dict
    default: []
  database:
    description:
      - The result of M(echo_music.ops.echo_pg_dump), of which C(database), C(snapshot), C(tables) and C(artifacts)
        are used. Required for a set with V(database) among its components.
    type: dict
  keep:
    description:
      - For O(state=abandoned), keep the files as evidence in C(.failed_<id>) instead of removing them.
    type: bool
    default: false
  owner:
    description:
      - The process that controls the backup, as C(<machine> <pid> <start time>) where the machine is its boot id and
        PID namespace. If that was this machine, the lock is free as soon as the process has ended.
      - Without it, or with an owner on another machine, O(lease) alone decides.
    type: str
    default: ""
  lease:
    description:
      - Seconds without a sign of life after which another run may take the lock over. Every file that grows in the
        staging folder is a sign of life.
    type: int
    default: 900
  reserve:
    description:
      - Bytes that must stay free on the file system of O(root), for example V(1G).
    type: bytes
    default: 64M
extends_documentation_fragment:
  - echo_music.ops.engine
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: O(state=open) plans as it would for real, and tells in RV(fits) and RV(under_way) what would stop it.
  diff_mode:
    support: full
    details: Compares the latest set with the planned one; for O(state=published) it shows the manifest.
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_info
  - module: echo_music.ops.echo_pg_dump
  - module: echo_music.ops.echo_volume_backup
  - module: echo_music.ops.echo_restore
"""

EXAMPLES = r"""
- name: Look at the Echo stack
  echo_music.ops.echo_info:
    gather: [sizes, database]
  register: echo

- name: Back up the Compose files and the classic layout's configuration
  block:
    - name: Open a set
      echo_music.ops.echo_backup_set:
        stack: "{{ echo.stack }}"
        components: [config, deployment]
      register: opened

    - name: Archive the configuration
      echo_music.ops.echo_volume_backup:
        volume: echo-config
        component: config
        dest: "{{ opened.set.path }}/config.tar.gz"
      register: config

    - name: Publish the set
      echo_music.ops.echo_backup_set:
        state: published
        id: "{{ opened.set.id }}"
        artifacts: "{{ [config.artifact] }}"
  rescue:
    - name: Abandon the set, and keep what was written as evidence
      echo_music.ops.echo_backup_set:
        state: abandoned
        id: "{{ opened.set.id }}"
        keep: true
      when: opened.set is defined

- name: Keep the set from before the move for good
  echo_music.ops.echo_backup_set:
    state: pinned
    id: backup_2026-11-24_03-00-00

# ansible-playbook --check: what would be written, and does it fit?
- name: Plan a complete set without touching anything
  echo_music.ops.echo_backup_set:
    stack: "{{ echo.stack }}"
  check_mode: true
  register: planned

- name: Show the answer
  ansible.builtin.debug:
    msg: "{{ planned.bytes_needed }} bytes needed, {{ planned.bytes_free }} free: {{ planned.fits }}"
"""

RETURN = r"""
set:
  description: The set.
  returned: success
  type: dict
  contains:
    id:
      description: Its name.
      type: str
      returned: success
    path:
      description:
        - Where it lies, which is the staging folder for O(state=open) and the published one for O(state=published).
        - For O(state=abandoned) the folder that is kept as evidence, else V(null). For the marks the published one.
      type: str
      returned: success
    root:
      description: The folder of the backup sets.
      type: str
      returned: when O(state=open)
    parts:
      description:
        - What is to be written into the staging folder, one entry per file.
        - C(kind) is V(database), V(volume), or V(deployment), which is written already.
        - A volume is named by C(volume), or is the folder C(source) where C(volume) is V(null). C(forerunner) is the
          newest set whose archive may serve again, for M(echo_music.ops.echo_volume_backup).
      type: list
      elements: dict
      returned: when O(state=open)
    bytes_in:
      description: Bytes read.
      type: int
      returned: when O(state=published)
    bytes_out:
      description: Bytes written.
      type: int
      returned: when O(state=published)
    bytes_written:
      description: Bytes written, but for archives of earlier sets that were used again.
      type: int
      returned: when O(state=published)
    pinned:
      description: Whether M(echo_music.ops.echo_prune) keeps it whatever its rules say.
      type: bool
      returned: when O(state=pinned), O(state=unpinned) or O(state=accepted)
    accepted:
      description: Whether it rightly holds less than the one before it.
      type: bool
      returned: when O(state=pinned), O(state=unpinned) or O(state=accepted)
    seconds:
      description: How long the set took from opening to publishing.
      type: int
      returned: when O(state=published)
    components:
      description: What the set consists of.
      type: list
      elements: str
      returned: when O(state=published)
    artifacts:
      description: The files, as the manifest describes them.
      type: list
      elements: dict
      returned: when O(state=published)
  sample:
    id: backup_2026-11-24_18-39-40
    root: /var/backups/echo
    path: /var/backups/echo/.backup_2026-11-24_18-39-40.partial
    parts:
      - component: config
        container: echo-app
        destination: /app/config
        estimated_bytes_in: 301024
        estimated_bytes_out: 331126
        file: config.tar.gz
        kind: volume
        role: config
        source: /var/lib/docker/volumes/echo-config/_data
        volume: echo-config
deployment:
  description: The artifact of the Compose files, V(null) in check mode or if none could be read.
  returned: when O(state=open)
  type: dict
  sample:
    bytes_in: 17
    bytes_out: 230
    codec: gzip
    file: deployment.tar.gz
    members: 2
    role: deployment
    seconds: 0.002
    sha256: e4ba9fed244d661a10320de1f23253358ce598a2c3ad474bbce5c60758decd20
    source: /opt/echo
bytes_needed:
  description: What the set needs, by the sizes of its parts and the ratios of the last set.
  returned: when O(state=open)
  type: int
  sample: 1389959
bytes_free:
  description: What may be written to the file system of O(root), once leftovers are removed.
  returned: when O(state=open)
  type: int
  sample: 74783928320
fits:
  description: Whether the set fits and leaves O(reserve) free. Can be V(false) in check mode only.
  returned: when O(state=open)
  type: bool
  sample: true
removed_leftovers:
  description: Folders of dead runs in O(root) that were removed.
  returned: when O(state=open)
  type: list
  elements: str
  sample: [.backup_2026-11-23_03-00-00.partial]
resumed:
  description: The container that was paused or stopped for a set, this one or that of a dead run, and runs again.
  returned: success
  type: str
  sample: echo-app
reconciled:
  description:
    - The restore that an earlier run left half done, the step at which it broke off, and the C(direction) in which it
      was ended before the set was opened. V(null) for none. In check mode, what would be ended.
  returned: success
  type: dict
  sample:
    id: 0b7e11d4
    step: swap
    direction: back
predicted:
  description: Whether this is check mode's prediction, and so no set was opened.
  returned: when O(state=open)
  type: bool
  sample: false
left_out:
  description:
    - What of Echo's own data the set will not hold, in words. A volume that the layout should have and the stack hasn't,
      or a mount inside of a volume. Empty is as it should be.
  returned: when O(state=open)
  type: list
  elements: str
  sample: ["/app/data/uploads is mounted on its own inside of data: the set is made without what lies there."]
under_way:
  description: The set that holds the lock, and when it can be taken over. V(null) if it is free.
  returned: when O(state=open), and on failure because of it
  type: dict
  sample:
    id: backup_2026-11-24_18-39-40
    owner: null
    since: "2026-11-24T18:39:40Z"
    last_sign_of_life: "2026-11-24T18:39:40Z"
    free: after 2026-11-24T18:54:40Z, unless it shows a sign of life
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: SpaceError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: Remove old sets, name another root, or leave components out.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.engine import ENGINE_ARGUMENTS, Engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.set_exclusion import ensure_set_alone
from ansible_collections.echo_music.ops.plugins.module_utils.set_guard import start as start_guard

STATES = ["open", "published", "abandoned", "pinned", "unpinned", "accepted"]
ARGUMENTS = dict(
    state=dict(type="str", choices=STATES, default="open"),
    root=dict(type="path", default="/var/backups/echo"),
    stack=dict(type="dict"),
    components=dict(
        type="list",
        elements="str",
        choices=["database", "uploads", "config", "data", "deployment", "cache", "logs", "postgres-data"],
    ),
    codec=dict(type="str", choices=["gzip", "zstd", "none"], default="gzip"),
    quiesce=dict(type="str", choices=["none", "pause", "stop"], default="none"),
    id=dict(type="str"),
    artifacts=dict(type="list", elements="dict", default=[]),
    database=dict(type="dict"),
    keep=dict(type="bool", default=False),
    owner=dict(type="str", default=""),
    lease=dict(type="int", default=900),
    reserve=dict(type="bytes", default="64M"),
    **ENGINE_ARGUMENTS,
)


def main():
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        required_if=[("state", "open", ["stack"])] + [("state", state, ["id"]) for state in STATES[1:]],
        supports_check_mode=True,
    )
    try:
        engine = Engine(module.params.pop("docker_host"))
        result = ensure_set_alone(engine, check=module.check_mode, guard=start_guard, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
