# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A named pipe through which a program that we don't start ourselves, as one in a container, hands us its output."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading

F_SETPIPE_SZ = 1031
SIZE = 1 << 20


class NamedPipe:
    """A context manager around whatever fills the pipe; ``work(read)`` empties it in a thread.

    ``read(size)`` is that of an unbuffered file. Left with no error, the work is done.
    """

    def __init__(self, path, work):
        self._path = path
        self._work = work
        self._error = None
        self._keeper = None
        self._thread = None

    def __enter__(self):
        os.mkfifo(self._path, 0o600)
        # Without O_NONBLOCK this would wait for a writer, who may never come. Our own writing
        # end keeps the pipe from ending before he does.
        reader = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        self._keeper = os.open(self._path, os.O_WRONLY)
        os.set_blocking(reader, True)
        with contextlib.suppress(OSError):
            fcntl.fcntl(reader, F_SETPIPE_SZ, SIZE)
        self._thread = threading.Thread(target=self._run, args=(reader,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, *unused):
        os.close(self._keeper)
        self._thread.join()
        os.unlink(self._path)
        # An output that ends too early is what the writer's error causes, and says less than it.
        if self._error and (kind is None or isinstance(self._error, OSError)):
            raise self._error

    def _run(self, reader):
        try:
            with os.fdopen(reader, "rb", buffering=0) as source:
                self._work(source.read)
        except Exception as error:
            self._error = error
