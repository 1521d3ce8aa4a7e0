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
  - The live data may be damaged, or gone. A database that is missing or can't be read is replaced by one like the
    backup's, a database container that is stopped is started, and a volume that is missing is created.
  - While a backup of the same Echo is under way in O(root), nothing is restored or rolled back.
  - A backup of the classic layout (volumes for uploads and configuration) restores onto the unified one (one volume for
    all), and the other way round. Music, covers and C(secrets.env) find their places, and what the other layout has
    besides (C(setup.json), C(metadata), C(logs)) stays as it is.
  - With the database of a set of ours come the roles of its server that are missing here, and from a dump in the
    custom format the privileges of roles that are there. A role is created without anything that has power over the
    server, and with its password only if the set holds what the server kept of that; warnings tell what was left
    out. Roles that are there are never changed, superusers never created. Going back removes those that were created,
    unless something else depends on them by then. Plain SQL brings no privileges.
  - What the app's user owned where the backup was made is owned by the user of the live data, if that is another.
  - A set of ours comes back whatever was in its volumes. Set-ID bits are taken away, devices and pipes left out, and
    warnings tell of both, and of links that lead out. In other archives all these are refused.
  - Every step is in a durable journal in C(/var/lib/echo_music.ops) before it is taken. Whatever the state asked for, a
    restore that an earlier run left half done is ended first, back if its activation wasn't complete, else forward.
options:
  source:
    description:
      - The id of a set in O(root), V(latest), V(latest_proven), or an absolute path.
      - V(latest_proven) is the newest set of which a drill of M(echo_music.ops.echo_verify) passed, and nothing failed
        since.
      - A path names a set of ours, a set of the 2024 script, a folder with some of their files, or one file, which is
        a dump (C(*.backup), C(*.dump), C(*.sql), C(*.sql.gz)) or an archive (C(uploads.tar.gz), C(config.tar.gz),
        C(data.tar.gz), C(data-backup.tar.gz)). Of several C(echo-db-backup-*.sql.gz) in a folder the newest counts.
      - Not needed to go on with a restore that rests staged or activated.
    type: str
  root:
    description:
      - The folder of the backup sets.
    type: path
    default: /var/backups/echo
  components:
    description:
      - What is restored; without it, all that the source has of V(database), V(uploads), V(config) and V(data).
      - V(cache) is Redis's volume, which stops together with the app.
    type: list
    elements: str
    choices: [database, uploads, config, data, cache, logs]
  tables:
    description:
      - Tables whose rows alone are restored, C(playlists) or C(schema.playlists); all else in the database stays as it
        is, whatever happened to it since the backup.
      - In one transaction the live rows go, those of the backup come, and every foreign key from or to these tables is
        checked. It is tried before the app stops. A row that would refer to one that isn't there refuses the restore,
        and the message names the tables to restore with it.
      - Columns that the live table has and the backup lacks get their defaults.
      - O(state=rolled_back) brings the rows back that were live, and nothing else. What was written since and refers to
        restored rows alone goes, as its foreign key says.
      - Without O(components) this restores nothing but the database.
    type: list
    elements: str
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
      - Seconds for which the old data stays after the commit. The first run of this module after that removes it,
        unless it is one with O(state=rolled_back), which brings back what is still there.
      - An old database whose server is down when it is to go stays until a run finds that running.
      - With O(state=reconciled) a smaller number ends the time of what is kept, V(0) at once.
    type: int
    default: 86400
  start:
    description:
      - Run the whole stack once the new data is live, whatever ran before. Otherwise exactly the containers that ran
        before run again.
      - For a stack that was only just created, and has never run.
    type: bool
    default: false
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

- name: Bring back playlists that somebody deleted, and nothing else
  echo_music.ops.echo_restore:
    source: latest
    tables: [playlists, playlist_tracks]

# ansible-playbook --check --diff: what would be overwritten, and with what?
- name: Look before
  echo_music.ops.echo_restore:
    source: latest
  check_mode: true
  diff: true

# After docker compose create, with the Compose files of echo_compose_files
- name: Restore into a stack that has never run, and start it
  echo_music.ops.echo_restore:
    source: latest
    start: true

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
  description:
    - What was restored from which file, in C(places) what came C(from) where and went C(to) where, if the layout of
      the backup is not that of the stack.
  returned: success
  type: list
  elements: dict
  sample:
    - component: database
      kind: custom
      file: /var/backups/echo/backup_2026-11-24_03-00-00/postgres_dump.backup
      bytes: 162355
      places: []
tables:
  description:
    - Rows of each table, live C(before), in the C(backup), and live C(after). V(null) where the side has no such
      table, or was not counted.
  returned: success
  type: dict
  sample: {"public.users": {"before": 0, "backup": 5, "after": 5}}
roles:
  description:
    - Roles that the set's server had and this one lacks. They are created, in check mode they would be. V(null) in check
      mode where the server doesn't run and can't be asked. After O(state=rolled_back), those that were removed again, unless
      something depends on them.
  returned: success
  type: list
  elements: str
  sample: [readers, reporter]
live:
  description:
    - What is overwritten, by component. V(null) is what can't be told of a database or volume that is gone. Empty
      where there is no restore.
  returned: success
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
under_way:
  description: The backup that is under way, and when the restore works if that is dead.
  returned: when a backup was the reason of the failure
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
    components=dict(type="list", elements="str", choices=["database", "uploads", "config", "data", "cache", "logs"]),
    tables=dict(type="list", elements="str"),
    state=dict(
        type="str",
        choices=["staged", "activated", "committed", "rolled_back", "reconciled"],
        default="committed",
    ),
    keep_previous=dict(type="int", default=86400),
    start=dict(type="bool", default=False),
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
