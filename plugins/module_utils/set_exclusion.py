# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set is opened only of data that no restore is changing.

The journal of the stack stays open until the set's lock is written, and a restore looks at
that lock with the journal open: whichever comes second finds the first. A restore that broke
off is ended, so that the set shows the old data or the new one, and never a mixture.
"""

from __future__ import annotations

from ansible_collections.echo_music.ops.plugins.module_utils.backup_set import ensure_set
from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.journal import FOLDER, Journal, JournalBusy, read
from ansible_collections.echo_music.ops.plugins.module_utils.restore import Restore, broken_off
from ansible_collections.echo_music.ops.plugins.module_utils.set_plan import check_stack

# Both have the journal open; which of them it is, a lock doesn't tell.
HELD = "A restore of this Echo is under way, or another backup of it begins"


def ensure_set_alone(engine, state, root, check=False, folder=FOLDER, **options):
    """Do what ``ensure_set`` does; opening a set ends a restore that broke off, and refuses while one lives.

    ``reconciled`` in the result tells of the one that was ended, as ``echo_restore`` does.
    Restores work as root on the engine's own host, so elsewhere there is none to look for.
    """
    if state != "open" or not engine.is_local():
        return dict(ensure_set(engine, state, root, check=check, **options), reconciled=None)
    stack = options["stack"]
    check_stack(stack)
    journal = Journal(stack.get("project") or "echo", folder)
    if check:
        return _predict(engine, root, journal, options)
    try:
        with journal:
            reconciled = Restore(engine, journal, stack).reconcile()
            result = ensure_set(engine, state, root, **options)
    except JournalBusy:
        raise SetError(
            "%s (%s)." % (HELD, journal.path),
            "Wait for its end: a set of data that is being replaced would be neither old nor new.",
        )
    return _told(result, reconciled, "was")


def _predict(engine, root, journal, options):
    held = journal.is_held()
    result = ensure_set(engine, "open", root, check=True, **options)
    if held:
        result["warnings"].append("%s (%s); the set would be refused." % (HELD, journal.path))
        return dict(result, reconciled=None)
    return _told(result, broken_off(read(journal.path)["operation"]), "would be")


def _told(result, reconciled, when):
    if reconciled:
        result["warnings"].append(
            "The restore %s broke off at the step %s; it %s ended first, %s."
            % (reconciled["id"], reconciled["step"], when, reconciled["direction"])
        )
    return dict(result, reconciled=reconciled)
