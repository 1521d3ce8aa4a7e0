# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive of pg_dump's, compressed on its way."""

from __future__ import annotations

import io
import os
import zlib

import pytest
from fake_archive import archive, data, integer, large_objects

pytest.importorskip("isal")

from ansible_collections.echo_music.ops.plugins.module_utils import pg_archive
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError


def recompress(dump, size=65536):
    return b"".join(pg_archive.recompressed(reader(dump, size)))


def reader(content, size):
    rest = memoryview(content)

    def read(wanted):
        nonlocal rest
        piece, rest = bytes(rest[: min(size, wanted)]), rest[min(size, wanted) :]
        return piece

    return read


def taken(source):
    """Return a data stream of a dump as it was before it was compressed."""
    packed = b"".join(source.chunks())
    inflater = zlib.decompressobj()
    plain = inflater.decompress(packed)
    assert inflater.eof and not inflater.unused_data
    return plain


BIG = os.urandom(3 << 20)
TABLES = (
    (1, (b"row 1\n", b"row 2\n", b"\\.\n")),
    (2, ()),
    (3, (b"blank " * 400000, BIG, b"after\n")),
    (4, [b"%d\n" % n for n in range(50000)]),
)
BLOCKS = [data(number, *chunks) for number, chunks in TABLES]
BLOCKS.insert(3, large_objects(_16511=b"blob", _16512=BIG[:70000]))


@pytest.mark.parametrize("size", [7, 65536])
def test_holds_the_same_data(size):
    dump = recompress(archive(*BLOCKS), size)
    assert len(dump) < len(archive(*BLOCKS)) - 2000000
    source = pg_archive.Source(io.BytesIO(dump).read)
    head = archive()
    # The one number that says how the data is compressed.
    at = pg_archive.START.size
    assert source.take(len(head)) == head[:at] + integer(1) + head[at + len(integer(1)) :]
    for number, chunks in TABLES[:3]:
        assert source.take(6) == b"\x01" + integer(number)
        assert taken(source) == b"".join(chunks)
    assert source.take(6) == b"\x03" + integer(9)
    for number, body in ((16511, b"blob"), (16512, BIG[:70000])):
        assert source.take(5) == integer(number)
        assert taken(source) == body
    assert source.take(5) == integer(0)
    assert source.take(6) == b"\x01" + integer(4)
    assert taken(source) == b"".join(TABLES[3][1])
    assert source.at_end()


@pytest.mark.parametrize("size", [5, 40, 300, 1000, 500000])
def test_dump_that_ends_in_the_middle(size):
    with pytest.raises(DatabaseError, match="ended in the middle"):
        recompress(archive(*BLOCKS)[:size])


@pytest.mark.parametrize("start", [b"PGDMP\x01\x11\x00\x04\x08\x01", b"PGDMP\x01\x0d\x00\x04\x08\x01", b"PGDMP\x01\x0e\x00\x08\x08\x01", b"other archive"])
def test_unknown_archive(start):
    with pytest.raises(DatabaseError, match="unknown kind"):
        recompress(archive(start=start))


def test_unknown_block():
    with pytest.raises(DatabaseError, match="unknown kind: a block of the type 7"):
        recompress(archive(b"\x07" + integer(1)))


@pytest.mark.parametrize(
    "codec, version, can",
    [("gzip:1", 150018, True), ("gzip:6", 150018, False), ("gzip:1", 170012, False), ("none", 150018, False)],
)
def test_when_it_is_done(codec, version, can):
    assert pg_archive.can_recompress(codec, version) is can
