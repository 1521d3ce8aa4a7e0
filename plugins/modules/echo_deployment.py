#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_deployment
short_description: Save a deployment of Echo, switch it to another version, or bring the saved one back
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - The steps of an upgrade that change a host's deployment, for the roles C(echo_upgrade) and C(echo_rebuild). Between
    them the roles fetch images, take backup sets and start containers.
  - An upgrade goes from V(saved) over V(stopped), V(switched) and V(verified) to V(committed). From everywhere before
    the last, V(restored) brings back the images, the Compose files and C(.env), the commit of a git checkout, the
    database and the files, and the app's health.
  - Each step is in a durable journal in C(/var/lib/echo_music.ops) before it is taken, so V(restored) also ends an
    upgrade whose controller died, and may itself be repeated.
options:
  state:
    description:
      - V(present) only tells what runs, what is there, and whether an upgrade is under way.
      - V(saved) plans the new version and saves the old one; nothing else changes. In check mode it is the plan.
      - V(built) checks out the git ref, plans again by the Compose files that it brought, and builds the image, while the
        app runs on.
      - V(stopped) stops the app, unless the images that run are the new ones already.
      - V(switched) stages the data of O(source) beside the live one, as the way back, and puts the new Compose files in
        place. Volumes that only the new version has are filled from O(source).
      - V(verified) waits until the new version is healthy, watches it for O(settle) seconds, and counts rows.
      - V(committed) lets the new version stay.
      - V(restored) brings the old version back. Without an upgrade under way it does nothing.
    type: str
    choices: [present, saved, built, stopped, switched, verified, committed, restored]
    default: present
  version:
    description:
      - The app's new version, an image's tag or digest (V(sha256:...)), or a git ref where the app is built from a
        checkout. It is set where the Compose file or C(.env) says it now.
    type: str
  postgres_version:
    description:
      - Tag of PostgreSQL's image. Another major version gets a new volume, and the old one stays as it was.
    type: str
  compose_text:
    description:
      - The text of a Compose file to take the place of the present one, for a change of layout.
    type: str
  env:
    description:
      - Variables to set in C(.env) for O(compose_text).
    type: dict
    default: {}
  rebuild:
    description:
      - Whether the same version counts as a new one, because its image is built or fetched anew.
    type: bool
    default: false
  source:
    description:
      - For V(switched), the set that was taken since the app stopped, as an id in O(root) or a path.
    type: str
  root:
    description:
      - The folder of the backup sets.
    type: path
    default: /var/backups/echo
  delete_data:
    description:
      - For V(switched), whether the volumes are removed instead, so that the stack starts from nothing. The role
        C(echo_rebuild) asks for it against a typed phrase.
      - V(restored) then loads O(source) again, if there is one.
    type: bool
    default: false
  tables:
    description:
      - Tables that must not have fewer rows in the new version.
    type: list
    elements: str
    default:
      - users
      - playlists
      - playlist_tracks
      - user_ratings
      - play_history
      - user_play_stats
      - play_queue
      - bookmarks
      - shares
      - radio_stations
  health_timeout:
    description:
      - Seconds that the app may take to become healthy.
    type: int
    default: 360
  settle:
    description:
      - Seconds for which the new version must stay healthy.
    type: int
    default: 15
  owner:
    description:
      - The process that controls the upgrade, as C(<machine> <pid> <start time>). One that is known to be dead
        loses the upgrade at once.
    type: str
    default: ""
  lease:
    description:
      - Seconds after its last step for which an upgrade of another owner counts as alive, where that can't be known.
    type: int
    default: 900
extends_documentation_fragment:
  - echo_music.ops.engine
  - echo_music.ops.engine.stack
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: V(saved) returns the plan; Compose says what it makes of files that are changed in a temporary folder.
  diff_mode:
    support: full
    details: Compares images, volumes and commit, not the files themselves, which may hold passwords.
  platform:
    platforms: posix
requirements:
  - Docker Compose 2
  - git, where the app is built from a checkout
seealso:
  - module: echo_music.ops.echo_restore
  - name: Compose
    description: The module C(community.docker.docker_compose_v2) brings up what this one prepares.
    link: https://docs.ansible.com/ansible/latest/collections/community/docker/docker_compose_v2_module.html
"""

EXAMPLES = r"""
# ansible-playbook --check --diff: what would the upgrade change?
- name: Plan an upgrade
  echo_music.ops.echo_deployment:
    state: saved
    version: 1.2.0
  check_mode: true
  diff: true

- name: Bring back what an upgrade that broke off left
  echo_music.ops.echo_deployment:
    state: restored
"""

RETURN = r"""
under_way:
  description: The upgrade under way, and the step that it took last. V(null) for none.
  returned: success
  type: dict
  sample: {"id": "6f1c2a9b", "step": "saved", "time": "2026-11-24T20:51:07Z"}
kind:
  description: V(image), V(git), V(layout) or V(rebuild). V(null) where nothing is planned.
  returned: success
  type: str
  sample: image
version:
  description: The version asked for.
  returned: success
  type: str
  sample: "2"
images:
  description: What runs, by role, or ran before.
  returned: success
  type: list
  elements: dict
  sample:
    - digests: []
      id: sha256:d341a3c563b9
      reference: echo-test-app:1
      role: app
      service: echo-app
wanted:
  description: The image of each role in the new version.
  returned: success
  type: dict
  sample: {"app": "echo-test-app:2", "database": "echo-test-postgres:15", "redis": "echo-test-redis:7"}
pulls:
  description:
    - Those of the images in RV(wanted) that aren't built. With a git ref, those of its own Compose files from V(built) on.
  returned: success
  type: list
  elements: str
  sample: ["echo-test-postgres:15", "echo-test-redis:7"]
git:
  description: The checkout that the app is built from, with its ref and commit, old and new. V(null) without one.
  returned: success
  type: dict
  sample: null
files:
  description: The files that the upgrade changes.
  returned: O(state=saved)
  type: list
  elements: str
  sample: [/opt/echo/.env]
touched:
  description: Volumes of the old version that the new one uses too, by role.
  returned: success
  type: list
  elements: str
  sample: [config, database, logs, redis, uploads]
fresh:
  description: Parts of the data that the new version has in other volumes, which are filled from a set.
  returned: success
  type: list
  elements: str
  sample: []
predicted:
  description: Whether this is the plan alone, in check mode.
  returned: O(state=saved)
  type: bool
  sample: false
builds:
  description: Whether the app's image is built on the host.
  returned: success
  type: bool
  sample: false
up_to_date:
  description: Whether the version asked for runs already.
  returned: success
  type: bool
  sample: false
available:
  description: Versions on the host, by the names of images and the tags of the checkout.
  returned: O(state=present)
  type: list
  elements: str
  sample: [echo-test-app:1, echo-test-app:2]
downtime:
  description: Seconds from the stop of the app until the new version was healthy. V(null) before that.
  returned: success
  type: float
  sample: 12.8
tables:
  description: Rows of each table, before and after.
  returned: O(state=verified)
  type: dict
  sample: {"public.users": {"before": 5, "after": 5}}
log:
  description: The last lines that the app of the new version printed.
  returned: O(state=restored) when something was brought back, and when O(state=verified) failed
  type: list
  elements: str
  sample: ["version 2.0.0-broken, migrations: ['loudness']"]
broke_off_at:
  description: The step that the upgrade had taken last.
  returned: O(state=restored) when something was brought back
  type: str
  sample: switched
direction:
  description: V(back), or V(forward) where the upgrade was being committed already.
  returned: O(state=restored) when something was ended
  type: str
  sample: back
error:
  description: The kind of failure.
  returned: failure
  type: str
  sample: UpgradeError
remedy:
  description: What to do about the failure.
  returned: failure
  type: str
  sample: The end of its log says more.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.deployment import STATES, ensure_deployment
from ansible_collections.echo_music.ops.plugins.module_utils.engine import ENGINE_ARGUMENTS, Engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.stack import STACK_ARGUMENTS
from ansible_collections.echo_music.ops.plugins.module_utils.tables import USER_TABLES

PLAN = dict(
    version=dict(type="str"),
    postgres_version=dict(type="str"),
    compose_text=dict(type="str"),
    env=dict(type="dict", default={}),
    rebuild=dict(type="bool", default=False),
)
ARGUMENTS = dict(
    state=dict(type="str", choices=list(STATES), default="present"),
    source=dict(type="str"),
    root=dict(type="path", default="/var/backups/echo"),
    delete_data=dict(type="bool", default=False),
    tables=dict(type="list", elements="str", default=list(USER_TABLES)),
    health_timeout=dict(type="int", default=360),
    settle=dict(type="int", default=15),
    owner=dict(type="str", default=""),
    lease=dict(type="int", default=900),
    **ENGINE_ARGUMENTS,
    **STACK_ARGUMENTS,
)


def main():
    module = AnsibleModule(argument_spec=dict(ARGUMENTS, **PLAN), supports_check_mode=True)
    params = module.params
    plan = dict((name, params.pop(name)) for name in PLAN)
    try:
        result = ensure_deployment(Engine(params.pop("docker_host")), plan=plan, check=module.check_mode, **params)
    except EchoError as error:
        module.fail_json(**error.as_result())
    if not module._diff:
        result.pop("diff")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
