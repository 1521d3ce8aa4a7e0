#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_prune
short_description: Delete backup sets of an Echo host that no retention rule keeps
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Applies retention rules to the sets in a folder, says of each why it stays or goes, and deletes those that go.
  - Whatever the rules say, these stay - the newest good set, the newest one that was proven by a restore drill, both
    also among the sets that did not shrink, and every pinned one (M(echo_music.ops.echo_backup_set) with
    C(state=pinned)).
  - A set that is damaged, or that shrank beyond O(shrink_alarm), evicts nothing. It is kept as long as a rule would
    keep it among its like and still has room for a good set of that age.
  - A set is evicted only by sets of the same Compose project that hold all of its data. So copies of the database
    alone, made every hour, leave the complete sets in place.
  - A set that goes gets a hidden name first and is emptied then, so a run that is killed leaves no half set. One that
    is being verified or restored stays for now.
  - Nothing but sets is touched. Folders of the 2024 script are listed in RV(foreign), see O(script_sets).
options:
  root:
    description:
      - The folder of the backup sets.
    type: path
    default: /var/backups/echo
  retention:
    description:
      - The rules. A set is kept if any of them keeps it; without rules all are kept.
      - C(keep_last) is a number of newest sets. C(keep_hourly), C(keep_daily), C(keep_weekly), C(keep_monthly) and
        C(keep_yearly) keep the newest set of that many hours, days, … that have one. V(-1) stands for all.
      - C(keep_within) keeps all sets of a time before the newest, such as V(30d), V(12h) or V(1y6m).
      - They do what the options of the same name of C(restic forget) do, with hours, days and weeks (from Monday on)
        in UTC. While a rule has slots left, the oldest set has one of them.
    type: dict
    default: {}
  shrink_alarm:
    description:
      - The share of rows or bytes that a set may hold less than the one before it, from V(0) (no alarm) to V(1).
      - Compared are the rows of all tables together, those of each table that nothing brings back (users, playlists,
        ratings, …), and the bytes of C(uploads), C(config) and C(data), with the newest earlier set that did not
        shrink.
      - If the loss is right, M(echo_music.ops.echo_backup_set) with C(state=accepted) ends the alarm.
    type: float
    default: 0.5
  script_sets:
    description:
      - Apply the rules to folders of the 2024 script as well, and delete those that no rule keeps.
    type: bool
    default: false
  protect:
    description:
      - Ids of sets that stay whatever the rules say, such as the one that was just made. Where the host's clock was put
        back, it looks like the oldest.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Says what would be deleted, in the same words, and deletes nothing.
  diff_mode:
    support: full
    details: Shows the names of the sets before and after.
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_backup_set
  - module: echo_music.ops.echo_info
"""

EXAMPLES = r"""
# What would go, and why?
# ansible echo -m echo_music.ops.echo_prune -a '{"retention": {"keep_last": 7, "keep_weekly": 4}}' --check

- name: A home server with a backup a week keeps four of them
  echo_music.ops.echo_prune:
    retention:
      keep_weekly: 4

- name: A production server with a backup a day keeps thirty days
  echo_music.ops.echo_prune:
    retention:
      keep_within: 30d

- name: Seven days stay on the host, where copies on a NAS are kept longer
  echo_music.ops.echo_prune:
    retention:
      keep_within: 7d

- name: Every set of the last two days, then thinner and thinner, and the folders of the 2024 script with them
  echo_music.ops.echo_prune:
    retention:
      keep_within: 2d
      keep_daily: 7
      keep_weekly: 4
      keep_monthly: 12
    script_sets: true
"""

RETURN = r"""
root:
  description: The folder of the sets, with no link in its path.
  returned: success
  type: str
  sample: /var/backups/echo
deleted:
  description: The sets that were deleted, or would be in check mode, newest first, as in RV(kept).
  returned: success
  type: list
  elements: dict
  sample:
    - id: backup_2026-10-15_21-25-05
      reasons: [no rule keeps it]
      time: 1792099505
      bytes: 81000
      good: true
      lost: []
      origin: collection
      pinned: false
      problem: null
      project: echo
      proven: false
      shrunk: false
kept:
  description: The sets that stay, newest first.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Its name.
      type: str
    reasons:
      description: Why it stays or goes.
      type: list
      elements: str
    time:
      description: When it was made, in seconds since the epoch.
      type: int
    bytes:
      description: The size of its files. Sets may share an archive on the disk, see RV(bytes_freed).
      type: int
    project:
      description: The Compose project.
      type: str
    origin:
      description: V(collection), or V(script) for one of the 2024 script.
      type: str
    good:
      description: Whether it is complete.
      type: bool
    problem:
      description: What is wrong with it, V(null) for nothing.
      type: str
    proven:
      description: Whether it passed a restore drill.
      type: bool
    pinned:
      description: Whether it is pinned.
      type: bool
    shrunk:
      description: Whether it holds less than may be.
      type: bool
    lost:
      description: What it holds less.
      type: list
      elements: str
  sample:
    - id: backup_2026-11-22_21-25-05
      reasons: [newest good set that did not shrink, "keep_last: 1 of 2"]
      time: 1795382705
      bytes: 81000
      good: true
      lost: []
      origin: collection
      pinned: false
      problem: null
      project: echo
      proven: false
      shrunk: false
foreign:
  description: Folders of the 2024 script in O(root), which O(script_sets) leaves alone; as in RV(kept) without reasons.
  returned: success
  type: list
  elements: dict
  sample: []
bytes_freed:
  description: What the deleted sets took on the disk. A file that another set has too isn't counted.
  returned: success
  type: int
  sample: 319488
alarms:
  description: What a person should know - the newest set shrank, or a set is damaged. Also shown as warnings.
  returned: success
  type: list
  elements: str
  sample:
    - >-
      The backup set backup_2026-11-23_21-25-05 holds much less than before (all tables: 2 rows, 2000 rows in
      backup_2026-11-22_21-25-05). It evicts no other set. If that is right, accept it: echo_backup_set with state=accepted.
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: SetError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: Give one from 0 (off) to 1.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.prune import ensure_pruned


def main():
    module = AnsibleModule(
        argument_spec=dict(
            root=dict(type="path", default="/var/backups/echo"),
            retention=dict(type="dict", default={}),
            shrink_alarm=dict(type="float", default=0.5),
            script_sets=dict(type="bool", default=False),
            protect=dict(type="list", elements="str", default=[]),
        ),
        supports_check_mode=True,
    )
    try:
        result = ensure_pruned(check=module.check_mode, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    for alarm in result["alarms"]:
        module.warn(alarm)
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
