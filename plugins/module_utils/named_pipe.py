# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Named pipes (POSIX, ``mkfifo``) to programs in a container, of which either side may fail to come."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time

AWAITED_EVERY = 0.01
# As fcntl(2) has it; the module's constant came with Python 3.10.
F_SETPIPE_SZ = 1031
PIPE_SIZE = 1 << 20


def opened_to_read(path, over):
    """Open a pipe that somebody has begun to write into; return it, or None if the event ``over`` came before."""
    pipe = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)
    # A pipe that nobody has opened for writing yet is at its end for read(2), not for select(2).
    while not select.select([pipe], [], [], AWAITED_EVERY)[0]:
        if over.is_set():
            pipe.close()
            return None
    return _prepared(pipe)


def opened_to_write(path, over):
    """Open a pipe that somebody has opened for reading; return it, or None if the event ``over`` came before."""
    while True:
        try:
            return _prepared(os.fdopen(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "wb", buffering=0))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        if over.is_set():
            return None
        time.sleep(AWAITED_EVERY)


def write_all(pipe, data):
    """Write all of the bytes to an unbuffered file, which takes as many at once as it likes."""
    with memoryview(data) as rest:
        at = 0
        while at < len(rest):
            at += pipe.write(rest[at:])


def _prepared(pipe):
    os.set_blocking(pipe.fileno(), True)
    # In the size that a pipe has by default, the programs would wait for one another all the time.
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
    return pipe
