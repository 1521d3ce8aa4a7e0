"""Restores, and dies before the step of the journal that is named: break_off.py PROJECT SOURCE STEP."""

import os
import signal
import sys

from ansible_collections.echo_music.ops.plugins.module_utils.engine import Engine
from ansible_collections.echo_music.ops.plugins.module_utils.journal import Journal
from ansible_collections.echo_music.ops.plugins.module_utils.restore import ensure_restored

project, source, wanted = sys.argv[1:]
record = Journal.record


def watched(journal, step, **data):
    """Record the step and die of it."""
    record(journal, step, **data)
    if step == wanted:
        os.kill(os.getpid(), signal.SIGKILL)


Journal.record = watched
ensure_restored(Engine(), source=source, project=project)
