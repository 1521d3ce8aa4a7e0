#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: echo_notify
short_description: Tell people and watchdogs how an operation on an Echo host ended
version_added: 1.0.0
author:
  - Contributors to echo_music.ops (@echo-music)
description:
  - Sends the outcome of an operation to any number of targets, which are Healthchecks or what speaks its protocol, ntfy,
    webhooks, and mail.
  - A target that can't be reached is tried three times, then told in a warning and in RV(failures). The module doesn't
    fail because of it.
  - URLs, tokens, headers and passwords are secrets, and appear in no output. Redirections are not followed.
options:
  targets:
    description:
      - Who is told.
    type: list
    elements: dict
    required: true
    suboptions:
      type:
        description:
          - V(healthchecks) posts to the URL for a success, to C(/start) below it for the start and to C(/fail) for an
            alarm or failure. As it expects a ping at certain times, it also notices the backup that never ran.
          - V(ntfy) posts a message to a topic.
          - V(webhook) posts a JSON object with C(event), C(operation), C(subject), C(title), C(text), C(alarms) and
            C(facts).
          - V(mail) sends a mail by SMTP.
        type: str
        choices: [healthchecks, ntfy, webhook, mail]
        required: true
      events:
        description:
          - What it is told. An alarm is a success that a person is to look at.
          - By default everything for V(healthchecks), success, alarm and failure for V(webhook), alarm and failure for
            V(ntfy) and V(mail).
        type: list
        elements: str
        choices: [start, success, alarm, failure]
      operations:
        description:
          - Of which operations it is told, such as V(backup) or V(verify).
          - By default of V(backup) alone for V(healthchecks), because a check waits for one thing, and of all for others.
            Have a second check for V(verify).
        type: list
        elements: str
      url:
        description:
          - The address, of the scheme C(https) or C(http). Needed for all types but V(mail).
        type: str
      token:
        description:
          - A bearer token.
        type: str
      headers:
        description:
          - More headers.
        type: dict
      host:
        description:
          - The mail server.
        type: str
        default: localhost
      port:
        description:
          - Its port. By default 587, or 465 for O(targets[].secure=tls) and 25 for O(targets[].secure=none).
        type: int
      secure:
        description:
          - How the connection to the mail server is secured; its certificate is checked.
        type: str
        choices: [starttls, tls, none]
        default: starttls
      username:
        description:
          - The user at the mail server. Refused with O(targets[].secure=none).
        type: str
      password:
        description:
          - The password at the mail server.
        type: str
      from:
        description:
          - The sender's address. Needed for V(mail).
        type: str
      to:
        description:
          - The addresses of a mail. Needed for V(mail).
        type: list
        elements: str
  event:
    description:
      - What happened.
    type: str
    choices: [start, success, alarm, failure]
    required: true
  operation:
    description:
      - What was done.
    type: str
    default: backup
  subject:
    description:
      - The host that it was done to.
    type: str
    required: true
  text:
    description:
      - More about it in plain text. What is longer than a target takes is cut off.
    type: str
    default: ""
  alarms:
    description:
      - What a person is to look at, one thing each.
    type: list
    elements: str
    default: []
  facts:
    description:
      - What a webhook gets besides, as it is.
    type: dict
    default: {}
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
    details: Says who would be told; sends nothing.
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: echo_music.ops.echo_metrics
"""

EXAMPLES = r"""
- name: Tell the watchdog that all is well
  echo_music.ops.echo_notify:
    event: success
    subject: nas.example.org
    targets:
      - type: healthchecks
        url: https://hc-ping.com/4b3c2f6e-0000-0000-0000-000000000000

- name: Tell people of a failure
  echo_music.ops.echo_notify:
    event: failure
    operation: verify
    subject: nas.example.org
    text: "SHA256SUMS does not match uploads.tar.gz."
    targets:
      - type: ntfy
        url: https://ntfy.example.org/echo
        token: "{{ vault_ntfy_token }}"
      - type: mail
        host: mail.example.org
        username: echo
        password: "{{ vault_mail_password }}"
        from: echo@example.org
        to: [admin@example.org]
"""

RETURN = r"""
title:
  description: The title of the message.
  returned: success
  type: str
  sample: "Echo backup of nas.example.org: FAILED"
told:
  description: The targets that were told, by type and place in the list.
  returned: success
  type: list
  elements: str
  sample: [healthchecks (target 1)]
failures:
  description: The targets that were not, and why.
  returned: success
  type: list
  elements: dict
  sample: [{"problem": "Connection refused.", "target": "ntfy (target 2)"}]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.echo_music.ops.plugins.module_utils.notify import notify

EVENTS = ["start", "success", "alarm", "failure"]
TARGET = dict(
    type=dict(type="str", choices=["healthchecks", "ntfy", "webhook", "mail"], required=True),
    events=dict(type="list", elements="str", choices=EVENTS),
    operations=dict(type="list", elements="str"),
    url=dict(type="str", no_log=True),
    token=dict(type="str", no_log=True),
    headers=dict(type="dict", no_log=True),
    host=dict(type="str", default="localhost"),
    port=dict(type="int"),
    secure=dict(type="str", choices=["starttls", "tls", "none"], default="starttls"),
    username=dict(type="str"),
    password=dict(type="str", no_log=True),
    to=dict(type="list", elements="str"),
    **{"from": dict(type="str")},
)
NEEDED = [("type", kind, ["url"]) for kind in ("healthchecks", "ntfy", "webhook")] + [("type", "mail", ["from", "to"])]


def main():
    module = AnsibleModule(
        argument_spec=dict(
            targets=dict(type="list", elements="dict", options=TARGET, required_if=NEEDED, required=True),
            event=dict(type="str", choices=EVENTS, required=True),
            operation=dict(type="str", default="backup"),
            subject=dict(type="str", required=True),
            text=dict(type="str", default=""),
            alarms=dict(type="list", elements="str", default=[]),
            facts=dict(type="dict", default={}),
        ),
        supports_check_mode=True,
    )
    result = notify(check=module.check_mode, **module.params)
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
