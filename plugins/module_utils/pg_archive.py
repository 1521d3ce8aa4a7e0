# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compress an uncompressed custom-format dump on its way, faster than pg_dump before PostgreSQL 16 can.

pg_dump 15 has gzip alone, and zlib's level 1 takes longer than everything else together.
``isal`` does the same four times as fast. The format, as ``pg_backup_custom.c`` and
``pg_backup_archiver.c`` of PostgreSQL 12 to 15 write it (archive version 1.14):

* the magic, three bytes of version, the sizes of an integer and of an offset, the format;
* integers (a sign byte, then little endian) and strings (a length, -1 for none, then bytes):
  the compression, seven of a date, three names, the number of entries, and the entries;
* blocks of data: a type, the number of the entry, and one stream, or several for large
  objects, each after its number and with a 0 behind the last. A stream is chunks with
  their length before them, up to one of length 0. Compressed, it is one zlib stream.
"""

from __future__ import annotations

import struct

from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError

try:
    from isal import isal_zlib
except ImportError:
    isal_zlib = None

START = struct.Struct("<5sBBBBBB")
KNOWN_START = (b"PGDMP", 1, 14)
KNOWN_SIZES = (4, 8, 1)
VERSIONS = range(120000, 160000)
INTEGER = struct.Struct("<BI")
LENGTH = struct.Struct("<xI")
DATE_PARTS = 7
NAMES = 3
STRINGS_BEFORE_SECTION = 4
STRINGS_AFTER_SECTION = 8
OFFSET_SIZE = 9
DATA = 1
LARGE_OBJECTS = 3
BLOCK = 1 << 20
LEVEL = 1
REMEDY = "Choose another compression than gzip:1, and report it."


def can_recompress(codec, server_version):
    """Tell whether a dump of this release can get its compression here."""
    return isal_zlib is not None and codec == "gzip:%d" % LEVEL and server_version in VERSIONS


def recompressed(read):
    """Yield a dump anew, compressed, of what ``read(size)`` returns.

    A table's data is one stream that ends with zlib's checksum of it, so whoever reads the
    dump notices if the compression went wrong.
    """
    source = _Source(read)
    start = source.take(START.size)
    fields = START.unpack(start)
    if fields[:3] != KNOWN_START or fields[4:] != KNOWN_SIZES:
        raise DatabaseError("pg_dump wrote an archive of an unknown kind: %r." % start, REMEDY)
    yield start
    source.integer()
    yield INTEGER.pack(0, LEVEL)
    yield _contents(source)
    while not source.at_end():
        head = source.take(1 + INTEGER.size)
        yield head
        if head[0] == DATA:
            yield from _deflated(source)
        elif head[0] == LARGE_OBJECTS:
            yield from _large_objects(source)
        else:
            raise DatabaseError("pg_dump wrote a block of the unknown type %d." % head[0], REMEDY)


def _contents(source):
    """Return the date, the names and the table of contents as they are."""
    source.recording = bytearray()
    for unused in range(DATE_PARTS):
        source.integer()
    for unused in range(NAMES):
        source.string()
    for unused in range(source.integer()):
        source.integer()
        source.integer()
        for also_unused in range(STRINGS_BEFORE_SECTION):
            source.string()
        source.integer()
        for also_unused in range(STRINGS_AFTER_SECTION):
            source.string()
        while source.string() is not None:
            pass
        source.take(OFFSET_SIZE)
    recorded, source.recording = bytes(source.recording), None
    return recorded


def _large_objects(source):
    while True:
        number = source.take(INTEGER.size)
        yield number
        if not any(number):
            return
        yield from _deflated(source)


def _deflated(source):
    compressor = isal_zlib.compressobj(LEVEL)
    for data in source.chunks():
        yield from _chunk(compressor.compress(data))
    yield from _chunk(compressor.flush())
    yield INTEGER.pack(0, 0)


def _chunk(data):
    return (INTEGER.pack(0, len(data)), data) if data else ()


class _Source:
    """What is read, in the units that the format has."""

    def __init__(self, read):
        self.recording = None
        self._read = read
        self._buffer = b""
        self._position = 0

    def at_end(self):
        """Tell whether nothing is left."""
        return self._position == len(self._buffer) and not self._more()

    def take(self, size):
        """Return the next bytes, exactly so many."""
        while len(self._buffer) - self._position < size:
            if not self._more():
                raise DatabaseError("The dump ended in the middle.", "Try again.")
        start, self._position = self._position, self._position + size
        taken = self._buffer[start : self._position]
        if self.recording is not None:
            self.recording += taken
        return taken

    def integer(self):
        """Return the next integer."""
        negative, value = INTEGER.unpack(self.take(INTEGER.size))
        return -value if negative else value

    def string(self):
        """Return the next string, None where there is none."""
        size = self.integer()
        return None if size < 0 else self.take(size)

    def chunks(self):
        """Yield the data of one stream, in pieces of any size.

        pg_dump writes a chunk a row, so the loop over those that lie in the buffer is what
        costs.
        """
        length_at = LENGTH.unpack_from
        while True:
            buffer, position, parts = self._buffer, self._position, []
            last = len(buffer) - LENGTH.size
            size = None
            while position <= last:
                (size,) = length_at(buffer, position)
                end = position + LENGTH.size + size
                if not size or end > len(buffer):
                    break
                parts.append(buffer[position + LENGTH.size : end])
                position = end
            self._position = position
            if parts:
                yield b"".join(parts)
            (size,) = length_at(self.take(LENGTH.size))
            if not size:
                return
            while size:
                if self.at_end():
                    raise DatabaseError("The dump ended in the middle.", "Try again.")
                piece = self.take(min(size, len(self._buffer) - self._position))
                size -= len(piece)
                yield piece

    def _more(self):
        data = self._read(BLOCK)
        self._buffer = self._buffer[self._position :] + data
        self._position = 0
        return bool(data)
