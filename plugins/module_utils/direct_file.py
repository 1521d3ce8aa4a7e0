# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file that is hashed and written beside the work of whoever makes its bytes, past the page cache.

A backup is not read again soon. Kept in the page cache, it would push out what the database
and the app live on, and each page that it takes costs more than its copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import queue
import threading

# A multiple of each device's blocks, as open(2) wants it for O_DIRECT.
DIRECT_SIZE = 4 << 20
QUEUED = 4


class DirectFile:
    """An open file to fill. A context manager around :meth:`put` and :meth:`finish`; it closes the file.

    ``sha256`` is there once :meth:`finish` has made the file durable. Errors of the file
    system are raised as they are, by whatever is called next.
    """

    def __init__(self, fd):
        self.bytes = 0
        self.sha256 = None
        self._fd = fd
        self._hash = hashlib.sha256()
        self._output = None
        self._workers = ()

    def __enter__(self):
        self._output = _Output(self._fd)
        self._workers = (_Worker(self._digest), _Worker(self._output.write))
        return self

    def __exit__(self, *unused):
        for worker in self._workers:
            worker.end()
        os.close(self._fd)

    def put(self, pieces):
        """Take bytes in a list of pieces, which must not change any more."""
        self.bytes += sum(map(len, pieces))
        for worker in self._workers:
            worker.check()
            worker.queue.put(pieces)

    def finish(self):
        """Make the file whole and durable."""
        for worker in self._workers:
            worker.end()
            worker.check()
        self._output.finish()
        self.sha256 = self._hash.hexdigest()

    def _digest(self, pieces):
        for piece in pieces:
            self._hash.update(piece)


class _Output:
    """What is written goes past the page cache, where the file system lets it."""

    def __init__(self, fd):
        self._fd = fd
        self._buffer = mmap.mmap(-1, DIRECT_SIZE)
        self._filled = 0
        with contextlib.suppress(OSError):
            self._set_direct(os.O_DIRECT)

    def write(self, pieces):
        """Take bytes, in pieces of any size."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                taken = view[: DIRECT_SIZE - self._filled]
                self._buffer[self._filled : self._filled + len(taken)] = taken
                self._filled += len(taken)
                view = view[len(taken) :]
                if self._filled == DIRECT_SIZE:
                    self._flush()

    def finish(self):
        """Write what is left, which is no whole block, and make the file durable."""
        self._set_direct(0)
        self._flush()
        os.fsync(self._fd)

    def _set_direct(self, flag):
        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT | flag)

    def _flush(self):
        with memoryview(self._buffer) as buffer:
            at = 0
            while at < self._filled:
                at += os.write(self._fd, buffer[at : self._filled])
        self._filled = 0


class _Worker(threading.Thread):
    """Does one thing with all that is put in its queue.

    A daemon, so that no error elsewhere can leave the process hanging. After an error of its
    own it goes on emptying the queue, so that nobody waits for room in it.
    """

    def __init__(self, action):
        super(_Worker, self).__init__(daemon=True)
        self.queue = queue.Queue(QUEUED)
        self._action = action
        self._error = None
        self.start()

    def run(self):
        """Work until the end is announced."""
        for data in iter(self.queue.get, None):
            if self._error is None:
                try:
                    self._action(data)
                except Exception as error:
                    self._error = error

    def check(self):
        """Raise the error that the work met, if it met one."""
        if self._error is not None:
            raise self._error

    def end(self):
        """Wait until everything is done, or has failed."""
        if self.is_alive():
            self.queue.put(None)
            self.join()
