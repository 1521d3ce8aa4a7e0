#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_restore
short_description: Restore an Echo host, or bring its old data back
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Restores database and volumes of an Echo stack from a backup set, from a set of the 2024 script, or from one file.
  - The new data is put together and checked beside the live one, in a database of another name and in hidden folders
    of the volumes. A damaged archive therefore fails the restore before anything live is touched.
  - Only then the app stops, names are swapped, and the app starts on the new data. When it isn't healthy in time, or
    tables are missing, the old data is swapped back by itself.
  - After the commit, the old data stays for O(keep_previous) seconds, and O(state=rolled_back) brings it back.
  - Every step is in a durable journal in C(/var/lib/echo_music.ops) before it is taken. Whatever the state asked for, a
    restore that an earlier run left half done is ended first, back if its activation wasn't complete, else forward.
options:
  source:
    description:
      - The id of a set in O(root), V(latest), V(latest_proven), or an absolute path.
      - V(latest_proven) is the newest set with a C(proof.json), which no module of this release writes yet.
      - A path names a set of ours, a set of the 2024 script, a folder with some of their files, or one file, which is
        a dump (C(*.backup), C(*.dump), C(*.sql), C(*.sql.gz)) or an archive (C(uploads.tar.gz), C(config.tar.gz),
        C(data.tar.gz), C(data-backup.tar.gz)).
      - Not needed to go on with a restore that rests staged or activated.
    type: str
  root:
    description:
      - The folder of the backup sets.
    type: path
    default: /var/backups/echo
  components:
    description:
      - What is restored; without it, all that the source has.
    type: list
    elements: str
    choices: [database, uploads, config, data]
  state:
    description:
      - V(staged) puts the new data together beside the live one, checks it, and leaves it there.
      - V(activated) swaps it in, and waits for the app's health and the row counts.
      - V(committed) is the whole way, and the end of a restore that rests at one of the former.
      - V(rolled_back) brings the old data back, of a restore that rests or of the last one that was committed. What was
        written since is lost.
      - V(reconciled) only ends what an earlier run left half done, and removes old data whose time is over.
    type: str
    choices: [staged, activated, committed, rolled_back, reconciled]
    default: committed
  keep_previous:
    description:
      - Seconds for which the old data stays after the commit. The first run of this module after that removes it.
      - With O(state=reconciled) a smaller number ends the time of what is kept, V(0) at once.
    type: int
    default: 86400
  health_timeout:
    description:
      - Seconds that the app may take to become healthy.
    type: int
    default: 360
extends_documentation_fragment:
  - echo_music.ops.engine
  - echo_music.ops.engine.stack
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Shows both sides; what the archives and dumps hold is not read.
  diff_mode:
    support: full
    details: Compares the live data with the source, by sizes and rows.
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_info
  - module: echo_music.ops.echo_backup_set
"""

EXAMPLES = r"""
- name: Restore the latest set
  echo_music.ops.echo_restore:
    source: latest

- name: Restore the covers alone, from a set that the 2024 script made
  echo_music.ops.echo_restore:
    source: /opt/echo/backups/backup_2024-12-01_03-00-00
    components: [uploads]

- name: Restore a dump of the unified era
  echo_music.ops.echo_restore:
    source: /opt/echo/backups/echo-db-backup-20250301_030000.sql.gz

# ansible-playbook --check --diff: what would be overwritten, and with what?
- name: Look before
  echo_music.ops.echo_restore:
    source: latest
  check_mode: true
  diff: true

- name: Bring back what the last restore replaced
  echo_music.ops.echo_restore:
    state: rolled_back
"""

RETURN = r"""
state:
  description: The state that was reached.
  returned: success
  type: str
  sample: committed
id:
  description: The restore. V(null) in check mode, and where there is none.
  returned: success
  type: str
  sample: 6f1c2a9b
source:
  description:
    - What was restored. C(origin) is V(ours), V(script) or V(file); C(time) is that of the snapshot, for other origins
      that of the name or the file.
  returned: success
  type: dict
  sample:
    origin: ours
    id: backup_2026-11-24_03-00-00
    path: /var/backups/echo/backup_2026-11-24_03-00-00
    time: "2026-11-24T03:00:01.201156Z"
components:
  description: What was restored from which file.
  returned: success
  type: list
  elements: dict
  sample:
    - component: database
      kind: custom
      file: /var/backups/echo/backup_2026-11-24_03-00-00/postgres_dump.backup
      bytes: 162355
tables:
  description:
    - Rows of each table, live C(before), in the C(backup), and live C(after). V(null) where the side has no such
      table, or was not counted.
  returned: success
  type: dict
  sample: {"public.users": {"before": 0, "backup": 5, "after": 5}}
live:
  description: What is overwritten, by component.
  returned: in check mode, and when data was restored
  type: dict
  sample:
    uploads:
      source: /var/lib/docker/volumes/echo-uploads/_data
      bytes: 2194304
      files: 62
downtime:
  description: Seconds from before the app was stopped until it was started again. V(null) if it didn't run.
  returned: success
  type: float
  sample: 0.9
healthy_after:
  description: Seconds from before the app was stopped until it was healthy.
  returned: success
  type: float
  sample: 4.1
previous_until:
  description: Until when the old data is kept. V(null) if none is.
  returned: success
  type: str
  sample: "2026-11-25T03:10:00Z"
reconciled:
  description:
    - The restore that an earlier run left half done, the step at which it broke off, and the C(direction) in which it
      was ended. V(null) for none. In check mode, what would be ended.
  returned: success
  type: dict
  sample:
    id: 0b7e11d4
    step: swap
    direction: back
rolled_back:
  description: Whether the old data is live again.
  returned: when staging or activation failed
  type: bool
  sample: true
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: ArchiveError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: Use another backup.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.engine import ENGINE_ARGUMENTS, Engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.restore import ensure_restored
from ansible_collections.echo_music.ops.plugins.module_utils.stack import STACK_ARGUMENTS

ARGUMENTS = dict(
    source=dict(type="str"),
    root=dict(type="path", default="/var/backups/echo"),
    components=dict(type="list", elements="str", choices=["database", "uploads", "config", "data"]),
    state=dict(
        type="str",
        choices=["staged", "activated", "committed", "rolled_back", "reconciled"],
        default="committed",
    ),
    keep_previous=dict(type="int", default=86400),
    health_timeout=dict(type="int", default=360),
    **ENGINE_ARGUMENTS,
    **STACK_ARGUMENTS,
)


def main():
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = ensure_restored(Engine(module.params.pop("docker_host")), check=module.check_mode, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
