#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_offsite
short_description: Keep copies of backup sets off the host
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Copies a backup set to another place with C(rsync), C(restic) or C(rclone), checks the copy there, lists and prunes
    what lies there, and brings a set back.
  - A copy counts only when it is complete and was checked at the far end. With C(rsync) it is put together under a hidden
    name and renamed; with C(rclone) a receipt, C(offsite.json), is uploaded last; with C(restic) a tag is added last.
  - While the link fails, every step is tried again after a pause that doubles, as often as O(destination.retries) says.
    The local set is never touched.
  - The programs come from the packages C(rsync), C(restic), C(rclone), C(age) and C(openssh-client) of Debian and Ubuntu.
    Secrets reach them through their environment or files, never through their arguments.
options:
  state:
    description:
      - With V(copied), the set O(source) of O(root) lies at the destination. What was learnt of older sets since they
        were copied, such as a passed drill, is brought to their copies.
      - With V(caught_up), every complete set of O(root) lies at the destination that O(destination.retention) would keep
        there, so also those that were made while it couldn't be reached. The newest are copied first; what is broken off
        goes on at the next run.
      - V(planned) tells what V(caught_up) would copy, also of a destination that this host can't ask, see O(known).
      - With V(fetched), the set O(source) of the destination lies in O(root), checked and, if need be, decrypted.
      - V(listed) tells which sets of the host there are.
      - V(verified) reads the copy O(source) at the destination and compares its checksums.
      - With V(pruned), only the sets that O(destination.retention) keeps are there. The newest set and the newest proven
        one always stay.
      - V(received) is for a set that was copied by other means to C(.<id>.partial) in a folder of this host, below the
        host's name. It is checked and renamed.
    type: str
    choices: [copied, caught_up, planned, listed, fetched, pruned, verified, received]
    default: copied
  source:
    description:
      - Which set, a set's id, V(latest) or V(latest_proven).
      - For O(state=received) an id.
    type: str
    default: latest
  root:
    description:
      - The folder of the backup sets on this host.
    type: path
    default: /var/backups/echo
  shrink_alarm:
    description:
      - As for M(echo_music.ops.echo_prune). A copy of a set that shrank evicts no other.
      - A set is compared with those at the destination as well, so one of a host that was made anew, and holds next to
        nothing, evicts none of what was there before. RV(alarms) tells it.
    type: float
    default: 0.5
  within:
    description:
      - For O(state=caught_up), seconds after which no other set is begun, so that the next backup doesn't have to wait.
    type: int
    default: 14400
  known:
    description:
      - For O(state=planned), the sets that the destination has, as V(listed) tells them in RV(sets). The destination isn't
        asked then.
      - For O(state=received), what V(planned) told in RV(sets) on the host that the sets are of. It goes to the receipts.
    type: list
    elements: dict
  protect:
    description:
      - For O(state=pruned), ids of sets that stay whatever the rules say, such as the one that was just made. Where the
        host's clock was put back, it looks like the oldest.
    type: list
    elements: str
    default: []
  destination:
    description:
      - The other place.
    type: dict
    required: true
    suboptions:
      name:
        description:
          - What it is called in messages.
        type: str
        required: true
      type:
        description:
          - What it is reached with.
        type: str
        choices: [rsync, restic, rclone]
        required: true
      host:
        description:
          - The name under which the sets of this host are kept there, a folder with C(rsync) and C(rclone), the host of
            the snapshots with C(restic). Each host and each stack needs one of its own.
          - Without it, the host's own name.
        type: str
      target:
        description:
          - For C(rsync), C([user@]host:folder), or an absolute path on this host, which must exist, such as a mounted disk.
        type: str
      repository:
        description:
          - For C(restic), the repository, as C(sftp:backup@nas:/echo) or C(s3:https://s3.example.org/echo). It is made
            if it isn't there. One on this host must be an empty folder.
          - One with credentials in its URL belongs to O(destination.secret_environment), as E(RESTIC_REPOSITORY).
        type: str
      remote:
        description:
          - For C(rclone), C(remote:path). The remote is defined in rclone's configuration or by variables such as
            E(RCLONE_CONFIG_S3_TYPE).
        type: str
      port:
        description:
          - The port of SSH, for C(rsync), and for C(restic) over SFTP.
        type: int
      ssh_key:
        description:
          - Path to the private key for SSH on this host.
        type: path
      ssh_options:
        description:
          - More options of SSH, such as V(StrictHostKeyChecking=accept-new). SSH never asks for anything.
        type: list
        elements: str
        default: []
      password:
        description:
          - The password of the C(restic) repository.
        type: str
      password_file:
        description:
          - Path to a file on this host with the password of the C(restic) repository.
        type: path
      config_file:
        description:
          - Path to rclone's configuration on this host.
        type: path
      environment:
        description:
          - Environment variables for the program. They are shown in results.
        type: dict
        default: {}
      secret_environment:
        description:
          - Environment variables for the program that are kept secret, such as E(AWS_SECRET_ACCESS_KEY).
        type: dict
        default: {}
      bandwidth_limit:
        description:
          - The most bytes per second, as V(2M).
        type: bytes
      recipients:
        description:
          - Public keys of C(age) or SSH. With them, every file of a copy by C(rsync) or C(rclone) is encrypted. Encrypting
            needs as much free space in O(root) as the set has.
          - Whoever loses the identities of all recipients has lost the copies.
        type: list
        elements: str
        default: []
      identity_file:
        description:
          - Path to the C(age) identity or SSH key on this host, to decrypt what is fetched. It is needed for nothing else.
        type: path
      read_data_subset:
        description:
          - For C(restic), how much of the repository's data is read back after a copy, as V(1/7), V(5%) or V(500M).
        type: str
      retention:
        description:
          - For O(state=pruned), C(keep_last), C(keep_hourly), C(keep_daily), C(keep_weekly), C(keep_monthly),
            C(keep_yearly), C(keep_within). Without rules everything stays.
          - For O(state=caught_up), nothing is copied that they wouldn't keep.
        type: dict
        default: {}
      retries:
        description:
          - How often a step is tried again when the link fails.
        type: int
        default: 3
      retry_delay:
        description:
          - Seconds before the first other try. Each pause is twice the one before, up to ten minutes.
        type: int
        default: 30
      timeout:
        description:
          - Seconds that one run of a program may take.
        type: int
        default: 43200
extends_documentation_fragment:
  - echo_music.ops.progress
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: The destination is asked what it has; nothing is written there or here.
  diff_mode:
    support: full
    details: Shows where a set would come to lie, and which copies would go.
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_backup_set
  - module: echo_music.ops.echo_restore
"""

EXAMPLES = r"""
- name: Copy the latest set to a NAS
  echo_music.ops.echo_offsite:
    destination:
      name: nas
      type: rsync
      target: backup@nas.example.org:/volume1/echo
      ssh_key: /root/.ssh/id_nas
      bandwidth_limit: 5M

- name: Copy it to a restic repository, and keep four weeks there
  echo_music.ops.echo_offsite:
    state: "{{ item }}"
    destination:
      name: cellar
      type: restic
      repository: sftp:backup@cellar.example.org:/srv/restic
      password_file: /root/.restic-password
      retention: {keep_daily: 7, keep_weekly: 4}
  loop: [copied, caught_up, pruned]

- name: Copy it to S3, encrypted for a key that only exists on paper
  echo_music.ops.echo_offsite:
    destination:
      name: cloud
      type: rclone
      remote: s3:my-bucket/echo
      environment:
        RCLONE_CONFIG_S3_TYPE: s3
        RCLONE_CONFIG_S3_PROVIDER: AWS
        RCLONE_CONFIG_S3_REGION: eu-south-2
      secret_environment:
        RCLONE_CONFIG_S3_ACCESS_KEY_ID: "{{ vault_s3_key_id }}"
        RCLONE_CONFIG_S3_SECRET_ACCESS_KEY: "{{ vault_s3_key }}"
      recipients: [age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p]

- name: Bring the newest set that a drill has proven back to a host that has nothing left
  echo_music.ops.echo_offsite:
    state: fetched
    source: latest_proven
    destination:
      name: cellar
      type: restic
      host: old-server
      repository: sftp:backup@cellar.example.org:/srv/restic
      password: "{{ vault_restic_password }}"
"""

RETURN = r"""
set:
  description: The set at the destination.
  returned: when O(state=copied), O(state=fetched), O(state=received) or O(state=verified)
  type: dict
  contains:
    id:
      description: Its name.
      type: str
      returned: success
    where:
      description: Where it lies there, for people.
      type: str
      returned: success
    time:
      description: The moment that it shows.
      type: str
      returned: success
    bytes:
      description: The size of its files.
      type: int
      returned: success
    components:
      description: What it consists of.
      type: list
      elements: str
      returned: success
    project:
      description: The Compose project that it is of.
      type: str
      returned: success
    age:
      description: Whether its files are encrypted by C(age).
      type: bool
      returned: success
    proven:
      description: Whether a restore drill passed.
      type: bool
      returned: success
    pinned:
      description: Whether someone said that it stays.
      type: bool
      returned: success
    shrunk:
      description: Whether it holds much less than the ones before it.
      type: bool
      returned: success
    accepted:
      description: Whether someone said that it is right nevertheless.
      type: bool
      returned: success
    holds:
      description: How much it holds by which a loss is found, rows of tables and bytes of parts.
      type: dict
      returned: success
  sample:
    accepted: false
    age: false
    bytes: 2872156
    components: [database, uploads, config, deployment]
    holds: {"all tables": 2000, "public.users": 40, "uploads": 3145728}
    id: backup_2026-11-24_21-06-34
    pinned: false
    project: echo
    proven: false
    shrunk: false
    time: "2026-11-24T21:06:37.142017Z"
    where: backup@nas.example.org:/volume1/echo/music/backup_2026-11-24_21-06-34
sets:
  description:
    - With O(state=listed), the sets of this host that lie there, oldest first, each as in RV(set).
    - With O(state=caught_up) and O(state=planned), the complete sets of O(root), newest first, each with
      C(proven), C(pinned), C(shrunk) and C(accepted) as in RV(set), and with what follows.
  returned: when O(state=listed), O(state=caught_up) or O(state=planned)
  type: list
  elements: dict
  contains:
    id:
      description: Its name.
      type: str
      returned: success
    status:
      description:
        - V(present) if it lies at the destination, V(copied) if it was copied, or would be in check mode, V(missing) if it
          is to be copied, V(unwanted) if no rule would keep it there.
      type: str
      returned: when O(state=caught_up) or O(state=planned)
    reasons:
      description: Why the rules would keep it there, or not.
      type: list
      elements: str
      returned: when O(state=caught_up) or O(state=planned)
    problem:
      description: Why it could not be copied.
      type: str
      returned: failure of that set
    bytes:
      description: The size of its files.
      type: int
      returned: success
    bytes_sent:
      description: What the copy cost, by the program's own figures.
      type: int
      returned: when O(state=caught_up) copied it
    verified:
      description: How the copy was checked. V(null) in check mode.
      type: str
      returned: when O(state=caught_up) copied it
    where:
      description: Where it lies there, for people.
      type: str
      returned: when O(state=listed), or O(state=caught_up) copied it
    manifest_sha256:
      description: By which it is known.
      type: str
      returned: when O(state=caught_up) or O(state=planned)
missing:
  description: Complete sets of O(root) that the destination lacks and would keep, newest first.
  returned: when O(state=copied) or O(state=caught_up)
  type: list
  elements: str
  sample: [backup_2026-11-23_03-00-00]
copied:
  description: Whether the set was not there before.
  returned: when O(state=copied) or O(state=received)
  type: bool
  sample: true
refreshed:
  description: Sets of which something new was told to their copies, such as a passed drill or a pin.
  returned: when O(state=copied) or O(state=received)
  type: list
  elements: str
  sample: [backup_2026-11-23_03-00-00]
bytes_sent:
  description: What the copy cost, by the program's own figures. V(null) if nothing was copied.
  returned: when O(state=copied)
  type: int
  sample: 13333
verified:
  description: How the copy was checked. V(null) if it was not, as in check mode or for a set that was there.
  returned: when O(state=copied), O(state=received) or O(state=verified)
  type: str
  sample: sha256sum at the far end
path:
  description: Where the set lies on this host.
  returned: when O(state=fetched)
  type: str
  sample: /var/backups/echo/backup_2026-11-24_21-06-34
decisions:
  description: For each set there, newest first, whether it stays and why.
  returned: when O(state=pruned)
  type: list
  elements: dict
  sample:
    - id: backup_2026-11-24_21-06-34
      keep: true
      reasons: ["newest good set", "newest good set that did not shrink", "keep_last: 1 of 1"]
    - id: backup_2026-11-24_21-02-53
      keep: false
      reasons: [no rule keeps it]
removed:
  description: The copies that went.
  returned: when O(state=pruned)
  type: list
  elements: str
  sample: [backup_2026-11-24_21-02-53]
alarms:
  description: What a person should know - the newest copy holds much less than those before it there. Also shown as warnings.
  returned: when O(state=pruned)
  type: list
  elements: str
  sample: []
destination:
  description: The destination's C(name) and C(type), and the C(host) under which the sets lie there.
  returned: success
  type: dict
  sample:
    name: nas
    type: rsync
    host: music
retried:
  description: How often a step was tried again.
  returned: success
  type: int
  sample: 0
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 4.8
error:
  description: The kind of failure; V(LinkError) is one that another try may mend.
  returned: failure
  type: str
  sample: LinkError
attempts:
  description: How often the step that failed was tried.
  returned: failure of the link
  type: int
  sample: 4
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: Is the disk mounted?
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.offsite import ensure_offsite

DESTINATION = dict(
    name=dict(type="str", required=True),
    type=dict(type="str", choices=["rsync", "restic", "rclone"], required=True),
    host=dict(type="str"),
    target=dict(type="str"),
    repository=dict(type="str"),
    remote=dict(type="str"),
    port=dict(type="int"),
    ssh_key=dict(type="path", no_log=False),
    ssh_options=dict(type="list", elements="str", default=[]),
    password=dict(type="str", no_log=True),
    password_file=dict(type="path", no_log=False),
    config_file=dict(type="path"),
    environment=dict(type="dict", default={}),
    secret_environment=dict(type="dict", default={}, no_log=True),
    bandwidth_limit=dict(type="bytes"),
    recipients=dict(type="list", elements="str", default=[]),
    identity_file=dict(type="path"),
    read_data_subset=dict(type="str"),
    retention=dict(type="dict", default={}),
    retries=dict(type="int", default=3),
    retry_delay=dict(type="int", default=30),
    timeout=dict(type="int", default=43200),
)

ARGUMENTS = dict(
    state=dict(
        type="str",
        choices=["copied", "caught_up", "planned", "listed", "fetched", "pruned", "verified", "received"],
        default="copied",
    ),
    source=dict(type="str", default="latest"),
    root=dict(type="path", default="/var/backups/echo"),
    shrink_alarm=dict(type="float", default=0.5),
    within=dict(type="int", default=14400),
    known=dict(type="list", elements="dict"),
    protect=dict(type="list", elements="str", default=[]),
    destination=dict(type="dict", options=DESTINATION, required=True),
)


def main():
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = ensure_offsite(check=module.check_mode, **module.params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    for alarm in result.get("alarms", ()):
        module.warn(alarm)
    if not module._diff:
        result.pop("diff", None)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
