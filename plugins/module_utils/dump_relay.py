# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What pg_dump writes, on its way to a file and to pg_restore at once.

Both programs run in a container, so named pipes lead to us and on. A shell's ``tee`` could do
that; here the bytes can be rewritten between the two.
"""

from __future__ import annotations

import os
import threading

from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError
from ansible_collections.echo_music.ops.plugins.module_utils.named_pipe import opened_to_read, opened_to_write, write_all

# What pg_dump writes into, and what pg_restore reads from.
WRITTEN, READ = PIPES = ("postgres_dump.backup.written", "postgres_dump.backup.read")
BLOCK = 256 << 10


def as_it_is(read):
    """Yield what ``read(size)`` returns up to its end."""
    return iter(lambda: read(BLOCK), b"")


class Relay:
    """A context manager around programs that fill the first pipe and empty the second.

    The pipes lie in ``folder``. ``output`` is an open file. ``rewritten`` takes a function
    ``read(size)`` and yields the bytes that go on. Left with no error, all of them are in
    the file, and were read by whoever empties the second pipe.
    """

    def __init__(self, folder, output, rewritten=as_it_is):
        self._paths = [os.path.join(folder, name) for name in PIPES]
        self._output = output
        self._rewritten = rewritten
        self._over = threading.Event()
        self._error = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        for path in self._paths:
            os.mkfifo(path, 0o600)
        self._thread.start()
        return self

    def __exit__(self, kind, *unused):
        self._over.set()
        self._thread.join()
        for path in self._paths:
            os.unlink(path)
        # A pipe that breaks or ends too early is what another program's error causes, and says
        # less than it. A full disk of ours causes the other's.
        disk = isinstance(self._error, OSError) and not isinstance(self._error, BrokenPipeError)
        if self._error and (kind is None or disk):
            raise self._error

    def _work(self):
        try:
            with self._opened(opened_to_read, WRITTEN, "pg_dump wrote nothing.") as source:
                with self._opened(opened_to_write, READ, "pg_restore read nothing of the dump.") as reader:
                    for piece in self._rewritten(source.read):
                        self._output.write(piece)
                        write_all(reader, piece)
                    # Before the second pipe ends: who has read it to its end finds the file whole.
                    self._output.flush()
        except Exception as error:
            self._error = error

    def _opened(self, opened, name, complaint):
        pipe = opened(self._paths[PIPES.index(name)], self._over)
        if pipe is None:
            raise DatabaseError(complaint, "Try again.")
        return pipe
