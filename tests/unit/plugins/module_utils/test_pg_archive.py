# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive of pg_dump's, compressed on its way."""

from __future__ import annotations

import errno
import os
import struct

import pytest

pytest.importorskip("isal")

from ansible_collections.echo_music.ops.plugins.module_utils import pg_archive
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError


def integer(value):
    return struct.pack("<BI", value < 0, abs(value))


def string(value):
    return integer(-1) if value is None else integer(len(value)) + value


def stream(*chunks):
    return b"".join(integer(len(chunk)) + chunk for chunk in chunks) + integer(0)


def entry(number, tag):
    strings = b"".join(string(text) for text in (b"0", b"0", tag, b"TABLE DATA"))
    more = b"".join(string(text) for text in (b"", b"", b"COPY", b"public", None, b"heap", b"me", b"false"))
    return integer(number) + integer(1) + strings + integer(3) + more + string(b"7") + string(None) + b"\x01" + b"\0" * 8


def archive(*blocks, start=b"PGDMP\x01\x0e\x00\x04\x08\x01"):
    head = start + integer(0) + b"".join(integer(part) for part in (1, 2, 3, 4, 5, 126, 0))
    names = string(b"music_server") + string(b"15.18") + string(b"15.18")
    return head + names + integer(2) + entry(1, b"users") + entry(2, b"tracks") + b"".join(blocks)


def data(number, *chunks):
    return b"\x01" + integer(number) + stream(*chunks)


def large_objects(**objects):
    return (
        b"\x03" + integer(9) + b"".join(integer(int(n[1:])) + stream(body) for n, body in objects.items()) + integer(0)
    )


def recompress(tmp_path, dump):
    path = tmp_path / "out"
    with open(str(path), "wb") as output:
        recompressor = pg_archive.Recompressor(str(tmp_path / "pipe"), output)
        with recompressor:
            with open(str(tmp_path / "pipe"), "wb") as pipe:
                pipe.write(dump)
    return recompressor, path


BIG = os.urandom(3 << 20)
BLOCKS = (
    data(1, b"row 1\n", b"row 2\n", b"\\.\n"),
    data(2),
    data(3, b"blank " * 400000, BIG, b"after\n"),
    large_objects(_16511=b"blob", _16512=BIG[:70000]),
    data(4, *[b"%d\n" % n for n in range(50000)]),
)


def test_holds_the_same_data(tmp_path):
    recompressor, path = recompress(tmp_path, archive(*BLOCKS))
    recompressor.read_back(str(path))
    assert path.stat().st_size < len(archive(*BLOCKS)) - 2000000
    with open(str(path), "rb", buffering=0) as written:
        total = pg_archive._Total()
        plain = b"".join(
            pg_archive._rewritten(pg_archive._Source(written.read), lambda source: pg_archive._inflated(source, total))
        )
    expected = b"".join(
        pg_archive._rewritten(pg_archive._Source(_reader(archive(*BLOCKS))), lambda source: source.chunks())
    )
    assert plain == expected


def _reader(content):
    rest = memoryview(content)

    def read(size):
        nonlocal rest
        piece, rest = bytes(rest[: min(size, 65536)]), rest[min(size, 65536) :]
        return piece

    return read


@pytest.mark.parametrize("size", [5, 40, 300, 1000, 500000])
def test_dump_that_ends_in_the_middle(tmp_path, size):
    with pytest.raises(DatabaseError, match="ended in the middle"):
        recompress(tmp_path, archive(*BLOCKS)[:size])


@pytest.mark.parametrize("start", [b"PGDMP\x01\x10\x00\x04\x08\x01", b"PGDMP\x01\x0e\x00\x08\x08\x01", b"other archive"])
def test_unknown_archive(tmp_path, start):
    with pytest.raises(DatabaseError, match="unknown kind"):
        recompress(tmp_path, archive(start=start))


def test_unknown_block(tmp_path):
    with pytest.raises(DatabaseError, match="unknown type 7"):
        recompress(tmp_path, archive(b"\x07" + integer(1)))


@pytest.mark.parametrize("position", [-200, -2000000])
def test_damage_on_disk_is_found(tmp_path, position):
    recompressor, path = recompress(tmp_path, archive(*BLOCKS))
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DatabaseError):
        recompressor.read_back(str(path))


def test_missing_end_on_disk_is_found(tmp_path):
    recompressor, path = recompress(tmp_path, archive(*BLOCKS))
    path.write_bytes(path.read_bytes()[: -len(data(4, b""))])
    with pytest.raises(DatabaseError):
        recompressor.read_back(str(path))


def test_writer_that_never_comes(tmp_path):
    with open(str(tmp_path / "out"), "wb") as output:
        with pytest.raises(ZeroDivisionError):
            with pg_archive.Recompressor(str(tmp_path / "pipe"), output):
                raise ZeroDivisionError
    assert not (tmp_path / "pipe").exists()


def test_full_disk_outweighs_what_the_writer_says_of_it(tmp_path):
    with open("/dev/full", "wb", buffering=0) as output:
        with pytest.raises(OSError) as caught:
            with pg_archive.Recompressor(str(tmp_path / "pipe"), output):
                with open(str(tmp_path / "pipe"), "wb") as pipe:
                    pipe.write(archive(*BLOCKS))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "codec, version, can",
    [("gzip:1", 150018, True), ("gzip:6", 150018, False), ("gzip:1", 170012, False), ("none", 150018, False)],
)
def test_when_it_is_done(codec, version, can):
    assert pg_archive.can_recompress(codec, version) is can
