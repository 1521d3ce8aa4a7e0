# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_dump's custom format: what stands where, and an uncompressed dump compressed on its way.

The format, as ``pg_backup_archiver.c`` and ``pg_backup_custom.c`` of PostgreSQL 12 to 18 write
it (archive versions 1.14 to 1.16):

* the magic, three bytes of version, the sizes of an integer and of an offset, the format;
* integers (a sign byte, then little endian) and strings (a length, -1 for none, then bytes):
  the compression (a byte since 1.15), seven of a date, three names, the number of entries, and
  the entries (with one more integer since 1.16);
* blocks of data: a type, the number of the entry, and one stream, or several for large
  objects, each after its number and with a 0 behind the last. A stream is chunks with
  their length before them, up to one of length 0. Compressed, it is one stream of its codec.

pg_dump 15 has gzip alone, and zlib's level 1 takes longer than everything else together.
``isal`` does the same four times as fast.
"""

from __future__ import annotations

import collections
import struct

from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError

try:
    from isal import isal_zlib
except ImportError:
    isal_zlib = None

START = struct.Struct("<5sBBBBBB")
MAGIC = b"PGDMP"
# The sizes of an integer and of an offset, and the number of the custom format.
LENGTH_SIZE = 4
KNOWN_SIZES = (LENGTH_SIZE, 8, 1)
FIRST, COMPRESSION_IS_BYTE, HAS_RELKIND, LAST = (1, 14), (1, 15), (1, 16), (1, 16)
CODECS = ("none", "gzip", "lz4", "zstd")
RECOMPRESSED_SERVERS = range(120000, 160000)
INTEGER = struct.Struct("<BI")
LENGTH = struct.Struct("<xI")
DATE_PARTS = 7
NAMES = 3
OFFSET_SIZE = 9
# A longer one is not what pg_dump writes, but what somebody does who wants memory to run out.
STRING_LIMIT = 64 << 20
DATA = 1
LARGE_OBJECTS = 3
BLOCK = 1 << 20
LEVEL = 1
REMEDY = "Choose another compression than gzip:1, and report it."

Entry = collections.namedtuple("Entry", "number has_data tag kind copy packed")


def can_recompress(codec, server_version):
    """Tell whether a dump of this release can get its compression here."""
    return isal_zlib is not None and codec == "gzip:%d" % LEVEL and server_version in RECOMPRESSED_SERVERS


def recompressed(read):
    """Yield a dump anew, compressed, of what ``read(size)`` returns.

    A table's data is one stream that ends with zlib's checksum of it, so whoever reads the
    dump notices if the compression went wrong.
    """
    try:
        yield from _recompressed(Source(read))
    except UnknownArchive as error:
        raise DatabaseError("pg_dump wrote an archive of an unknown kind: %s." % error, REMEDY)
    except EOFError:
        raise DatabaseError("The dump ended in the middle.", "Try again.")


class UnknownArchive(Exception):
    """The archive is of a version, or a build, that this was not written for."""


class Head:
    """What any archive begins with: ``server`` and ``client``, the releases that made it, None where it doesn't tell."""

    def __init__(self, source):
        self._start = source.take(START.size)
        magic, *version, unused_revision, source.integer_size, offset_size, format_number = START.unpack(self._start)
        if magic != MAGIC:
            raise UnknownArchive("it doesn't start as one")
        self._version = tuple(version)
        self._is_known = (source.integer_size, offset_size, format_number) == KNOWN_SIZES and FIRST <= self._version <= LAST
        if self._version < COMPRESSION_IS_BYTE:
            self.codec = "gzip" if source.integer() else "none"
        else:
            self.codec = dict(enumerate(CODECS)).get(source.take(1)[0])
        source.record()
        for unused in range(DATE_PARTS):
            source.integer()
        unused_name, self.server, self.client = (source.string() for unused in range(NAMES))
        self._names = source.recorded()


class Contents(Head):
    """What stands before the data: ``codec``, and ``entries`` of the table of contents.

    An entry's ``tag`` and ``kind`` are its name and what it is (``b"TABLE DATA"``), ``copy`` is
    the statement that takes its data, None or empty where the data is statements.
    """

    def __init__(self, source):
        super(Contents, self).__init__(source)
        if not self._is_known:
            raise UnknownArchive(repr(self._start))
        self.entries = [self._entry(source) for unused in range(source.integer())]

    def packed(self, entries, level=0):
        """Return all of it as it stands in an archive of these entries, with its data in gzip of the level, or as it is."""
        old = self._version < COMPRESSION_IS_BYTE
        compression = INTEGER.pack(0, level) if old else bytes([CODECS.index("gzip" if level else "none")])
        packed = [self._start, compression, self._names, INTEGER.pack(0, len(entries))]
        return b"".join(packed + [entry.packed for entry in entries])

    def _entry(self, source):
        source.record()
        number, has_data = source.integer(), bool(source.integer())
        unused_table_oid, unused_oid, tag, kind = (source.string() for unused in range(4))
        unused_section = source.integer()
        unused_create, unused_drop, copy, unused_schema, unused_tablespace, unused_method = (
            source.string() for unused in range(6)
        )
        if self._version >= HAS_RELKIND:
            source.integer()
        unused_owner, unused_oids = source.string(), source.string()
        while source.string() is not None:
            pass
        source.take(OFFSET_SIZE)
        return Entry(number, has_data, tag, kind, copy, source.recorded())


def _recompressed(source):
    contents = Contents(source)
    yield contents.packed(contents.entries, level=LEVEL)
    while not source.at_end():
        head = source.take(1 + INTEGER.size)
        yield head
        if head[0] == DATA:
            yield from _deflated(source)
        elif head[0] == LARGE_OBJECTS:
            yield from _large_objects(source)
        else:
            raise UnknownArchive("a block of the type %d" % head[0])


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


class Source:
    """What is read, in the units that the format has."""

    def __init__(self, read):
        self.integer_size = LENGTH_SIZE
        self._recording = None
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
                raise EOFError("it ends in the middle")
        start, self._position = self._position, self._position + size
        taken = self._buffer[start : self._position]
        if self._recording is not None:
            self._recording += taken
        return taken

    def record(self):
        """Keep what is taken from now on, for :meth:`recorded`."""
        self._recording = bytearray()

    def recorded(self):
        """Return what was taken since :meth:`record`."""
        recorded, self._recording = bytes(self._recording), None
        return recorded

    def integer(self):
        """Return the next integer."""
        negative, value = self.take(1)[0], int.from_bytes(self.take(self.integer_size), "little")
        return -value if negative else value

    def string(self):
        """Return the next string, None where there is none."""
        size = self.integer()
        if size > STRING_LIMIT:
            raise UnknownArchive("a name or statement of %d bytes" % size)
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
                    raise EOFError("it ends in the middle")
                piece = self.take(min(size, len(self._buffer) - self._position))
                size -= len(piece)
                yield piece

    def _more(self):
        data = self._read(BLOCK)
        self._buffer = self._buffer[self._position :] + data
        self._position = 0
        return bool(data)
