# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people say of a set: that it stays (``pinned``), that its being smaller is right (``accepted``).

Each is an empty file in the set's folder, so that ``touch`` and ``rm`` do the same by hand.
"""

from __future__ import annotations

import contextlib
import json
import os

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    ACCEPTED,
    PINNED,
    explained,
    marks,
    published,
    sync_folder,
    write_file,
)

STATES = {"pinned": (PINNED, True), "unpinned": (PINNED, False), "accepted": (ACCEPTED, True)}


def mark_set(root, set_id, state, check=False):
    """Bring a published set's mark to a state; return the module's result."""
    folder = published(root, set_id)
    if os.path.islink(folder) or not os.path.isdir(folder):
        raise SetError("There is no set %s in %s." % (set_id, root), "echo_info lists the sets.")
    name, wanted = STATES[state]
    before = marks(folder)
    if before[name] != wanted and not check:
        path = os.path.join(folder, name)
        if wanted:
            write_file(path, b"")
        else:
            with explained("remove", path), contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        with explained("write to the disk", folder):
            sync_folder(folder)
    after = dict(before, **{name: wanted})
    return dict(
        changed=before != after,
        set=dict(id=set_id, path=folder, **after),
        resumed=None,
        warnings=[],
        diff=dict(before=_text(before), after=_text(after)),
    )


def _text(value):
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
