# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard of a quiesced app: a small process that lets it run again if the backup dies.

Between the modules of a backup nothing of ours lives on the host, and the controller may be
killed or cut off at any time. The guard outlives the module that started it, ends with the
set, and gives a set up that nobody holds any more.
"""

from __future__ import annotations

import time

from ansible_collections.echo_music.ops.plugins.module_utils.backup_set import abandon_set
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.process import leave_behind
from ansible_collections.echo_music.ops.plugins.module_utils.set_lock import holder, read_lock

POLL = 2


def start(engine, root, set_id):
    """Leave a guard behind; return at once."""
    leave_behind(lambda: guard(engine.anew(), root, set_id))


def guard(engine, root, set_id, poll=POLL):
    """Wait for the set's end, or bring it about when its lock has no living holder."""
    while True:
        try:
            record = read_lock(root)
            if record is None or record["id"] != set_id or not record["quiesced"]:
                return
            if holder(root, record) is None:
                abandon_set(engine, root, set_id)
                return
        except (EchoError, OSError):
            # The engine or the disk may be back at the next look; the app still waits for it.
            pass
        time.sleep(poll)
