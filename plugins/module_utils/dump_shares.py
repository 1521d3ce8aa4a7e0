# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of a custom-format dump, dealt out to several pg_restore at once.

``pg_restore --jobs`` loads a table in one session, however many there are, and nearly all
rows of an Echo are those of one table, its plays. Here each session gets a share of every
table: an archive of its own, with the table of contents that it needs, and blocks of whole
rows, dealt out to whoever has room. Each row of COPY's text format is one line (PostgreSQL
manual, "COPY", "Text Format"), so a share is found by its line ends.

Such an archive needs a pg_restore that neither creates nor truncates the tables, so one that
is given no jobs, and finds them there.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import threading

from ansible_collections.echo_music.ops.plugins.module_utils.codec import ZSTD_IMPORT_ERROR, inflated, zstd_decompressed
from ansible_collections.echo_music.ops.plugins.module_utils.dump_file import undamaged
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.named_pipe import opened_to_write, write_all
from ansible_collections.echo_music.ops.plugins.module_utils.pg_archive import (
    DATA,
    INTEGER,
    LARGE_OBJECTS,
    Contents,
    Source,
    UnknownArchive,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained

READERS = {"none": iter, "gzip": inflated}
if not ZSTD_IMPORT_ERROR:
    READERS["zstd"] = zstd_decompressed
TABLE_DATA = b"TABLE DATA"
# How the rows are to be read, whatever the session that reads them is used to.
SETTINGS = (b"ENCODING", b"STDSTRINGS", b"SEARCHPATH")
NEWLINE = b"\n"
# As a line of its own, no row is like it: COPY writes a backslash twice. Two empty lines follow it.
END_OF_ROWS = re.compile(rb"\n(\\\.\n{1,3})\Z")
TAIL = 8
# A shorter one is whole in its block.
LONG_ROW = 64 << 10
END = INTEGER.pack(0, 0)


class Unread(DatabaseError):
    """Whoever was to read a share to its end has not."""

    def __init__(self):
        super(Unread, self).__init__("pg_restore didn't read all rows of the dump.", "Try again.")


class Shares:
    """A context manager around programs in a container that read a dump's shares to their ends.

    Entered, it returns the volume with the named pipes, one a share, or None for a dump whose
    rows can't be dealt out. ``owner`` (user, group) is who may read them. Left with no error,
    all rows were read. The volume of a process that was killed goes with its containers.
    """

    def __init__(self, engine, path, count, owner):
        self._engine = engine
        self._path = path
        self._count = count
        self._owner = owner
        self._stack = contextlib.ExitStack()
        self._over = threading.Event()
        self._threads = []
        self._errors = []

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            try:
                dealer = Dealer(stack.enter_context(open(self._path, "rb")))
                volume = "echo-load-%s" % secrets.token_hex(4)
                stack.callback(self._remove, volume)
                pipes = self._pipes(self._engine.throwaway_volume(volume))
            except (OSError, EOFError, UnknownArchive):
                return None
            self._threads = [threading.Thread(target=self._work, args=(dealer, pipe), daemon=True) for pipe in pipes]
            for thread in self._threads:
                thread.start()
            self._stack = stack.pop_all()
        return volume

    def __exit__(self, kind, *unused):
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._stack.close()
        # Why it stopped reading, a program says by the way it ended.
        for error in self._errors:
            if kind is None or not isinstance(error, Unread):
                raise error

    def _pipes(self, folder):
        # As the Engine makes it, everybody may look into it.
        os.chmod(folder, 0o700)
        os.chown(folder, *self._owner)
        pipes = [os.path.join(folder, "%d" % number) for number in range(self._count)]
        for pipe in pipes:
            os.mkfifo(pipe, 0o600)
            os.chown(pipe, *self._owner)
        return pipes

    def _work(self, dealer, path):
        try:
            with explained("read", self._path), undamaged(self._path):
                pipe = opened_to_write(path, self._over)
                if pipe is None:
                    raise Unread()
                with pipe:
                    dealer.write_share(functools.partial(_write, pipe))
        except Exception as error:
            self._errors.append(error)

    def _remove(self, volume):
        # What can't go now goes with the next run, as after a process that was killed.
        with contextlib.suppress(EchoError):
            self._engine.remove_throwaway(volumes=[volume])


def _write(pipe, data):
    try:
        write_all(pipe, data)
    except BrokenPipeError:
        raise Unread()


def _write_chunk(write, block):
    write(INTEGER.pack(0, len(block)))
    write(block)


class Dealer:
    """The rows of an open dump, for as many threads as there are shares.

    Raises ``UnknownArchive`` for a dump whose rows can't be dealt out.
    """

    def __init__(self, file):
        self._source = Source(file.read)
        contents = Contents(self._source)
        self._tables = [entry for entry in contents.entries if entry.kind == TABLE_DATA and entry.has_data]
        if not self._tables or not all(table.copy and table.number > 0 for table in self._tables):
            raise UnknownArchive("it has no rows as COPY takes them")
        if contents.codec not in READERS:
            raise UnknownArchive("its codec is unknown here")
        self._plain = READERS[contents.codec]
        self._head = contents.packed([entry for entry in contents.entries if entry.kind in SETTINGS] + self._tables)
        self._turn = -1
        self._blocks = iter(())
        self._lock = threading.Lock()

    def write_share(self, write):
        """Have a share written: the head, then of each table as much as ``write`` takes while others do the same."""
        write(self._head)
        for turn, table in enumerate(self._tables):
            write(bytes([DATA]) + INTEGER.pack(0, table.number))
            while self._deal(turn, write):
                pass
            write(END)

    def _deal(self, turn, write):
        """Have the next block of a table written; tell whether there was one."""
        with self._lock:
            try:
                if turn > self._turn:
                    self._turn, self._blocks = turn, self._rows(self._tables[turn])
                # Whoever is at another table is behind, and the rows of that are dealt out.
                block = next(self._blocks, None) if turn == self._turn else None
                # Of a row that is longer than a block nobody else gets a part.
                while block and not block.endswith(NEWLINE):
                    _write_chunk(write, block)
                    block = next(self._blocks, None)
            except BaseException:
                # One says what is wrong. The others find that nothing is left.
                self._turn = len(self._tables)
                raise
        if block:
            _write_chunk(write, block)
        return block is not None

    def _rows(self, table):
        """Yield the rows in blocks, each of which ends with a row, or is a part of a long one."""
        self._find(table)
        pieces = self._plain(self._source.chunks())
        before, rest = NEWLINE, b""
        for piece in pieces:
            end = piece.rfind(NEWLINE) + 1
            if not end and len(rest) + len(piece) < LONG_ROW:
                rest += piece
                continue
            end = end or len(piece)
            block, rest = rest + piece[:end], piece[end:]
            marker = END_OF_ROWS.search(block[-TAIL:] if len(block) >= TAIL else before + block)
            if marker:
                block, rest = block[: len(block) - len(marker.group(1))], b""
            if block:
                yield block
                before = block[-1:]
            if marker:
                break
        # What pg_dump has behind the rows is for whoever reads its SQL: empty lines, which COPY would take for rows.
        for unused in pieces:
            pass
        if rest:
            yield rest

    def _find(self, table):
        while True:
            kind, number = self._source.take(1)[0], self._source.integer()
            if kind == DATA and number == table.number:
                return
            if kind != LARGE_OBJECTS:
                raise EOFError("the rows of %s are not where its contents have them" % table.tag.decode("utf-8", "replace"))
            while self._source.integer():
                for unused in self._source.chunks():
                    pass
