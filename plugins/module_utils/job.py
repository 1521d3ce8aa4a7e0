# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A module in the background, which Ansible's ``async`` started, waited for on its own host.

All that is known of it is a file: Ansible says there that the job runs, in the end what the
module returned, or that its time was over.
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError

LOOK_EVERY = 0.1


class JobError(EchoError):
    """A job that can't be waited for."""


def await_job(path, timeout):
    """Return what a job's module returned, and remove its file; ``timeout`` is in seconds.

    One that can't be understood is taken for one that is still being written.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = _result(path)
        if result is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)
            return result
        if time.monotonic() >= deadline:
            raise JobError(
                "The job of %s has not ended within %d seconds." % (path, timeout),
                "Does its process live ('ps aux | grep ansible')? A larger timeout waits longer.",
            )
        time.sleep(LOOK_EVERY)


def _result(path):
    """Return what the job's file says of its end, None while it says of none."""
    try:
        with open(path, encoding="utf-8") as told:
            job = json.load(told)
    except FileNotFoundError:
        raise JobError(
            "There is no job %s." % path, "Name the results_file that the task in the background returned, of this very host."
        )
    except ValueError:
        return None
    except OSError as error:
        raise JobError("Could not read the job %s: %s." % (path, error.strerror), "Wait as the user who began it (become).")
    return None if "started" in job and not job.get("finished") else job
