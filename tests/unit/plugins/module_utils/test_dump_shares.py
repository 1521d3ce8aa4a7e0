# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of a dump, dealt out: each row is in one share, whole, and nothing else is."""

from __future__ import annotations

import collections
import io
import os
import stat
import threading
import zlib

import pytest
from fake_archive import archive, data, entry, integer, large_objects
from fake_engine import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.module_utils import dump_shares
from ansible_collections.echo_music.ops.plugins.module_utils.codec import DAMAGE
from ansible_collections.echo_music.ops.plugins.module_utils.dump_shares import Dealer, Shares, Unread
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.pg_archive import Contents, Source, UnknownArchive

OWNER = (os.getuid(), os.getgid())
NUMBERS = {1: b"users", 2: b"empty", 5: b"play_history", 7: b"last"}
LONG = b"long " * 200000 + b"\n"
END = b"\\.\n\n\n"
ROWS = {
    1: [b"%d\tme\n" % n for n in range(5)],
    2: [],
    5: [b"%d\t%s\n" % (n, os.urandom(n % 40).hex().encode()) for n in range(60000)] + [LONG] * 3,
    7: [b"1\tlast\n"],
}
# What an archive's version names its codecs.
PLAIN, GZIP, OLD_GZIP, LZ4, ZSTD = 0, 1, -1, 2, 3


def packed(codec, rows):
    text = b"".join(rows) + END
    if codec in (GZIP, OLD_GZIP):
        return zlib.compress(text, 1)
    if codec == ZSTD:
        return pytest.importorskip("zstandard").compress(text, 1)
    return text


def dump(version=16, codec=GZIP, rows=None, size=4096, extra=large_objects(_16511=b"blob", _16512=b"more" * 5000)):
    """Return a dump with large objects before the last table."""
    settings = [entry(90 + n, tag, tag, b"", version) for n, tag in enumerate((b"ENCODING", b"STDSTRINGS", b"SEARCHPATH"))]
    others = [entry(80, b"users", b"TABLE", b"", version)]
    tables = [entry(number, tag, version=version) for number, tag in NUMBERS.items()]
    blocks = []
    for number, table in (rows or ROWS).items():
        text = packed(codec, table)
        # As pg_dump does it, a row a chunk where nothing is compressed.
        chunks = table + [END] if codec == PLAIN else [text[at : at + size] for at in range(0, len(text), size)]
        blocks += [extra] * (number == 7) + [data(number, *chunks)]
    return archive(*blocks, version=version, codec=codec, entries=settings + others + tables)


SMALL = dict(
    (codec, dump(codec=codec, rows={1: ROWS[1], 2: [], 5: ROWS[5][:50], 7: ROWS[7]})) for codec in (PLAIN, GZIP)
)


def shares_of(content, count=3):
    """Return the shares that as many threads write."""
    dealer = Dealer(io.BytesIO(content))
    shares = [io.BytesIO() for unused in range(count)]
    start = threading.Barrier(count)

    def work(share):
        start.wait()
        dealer.write_share(share.write)

    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [share.getvalue() for share in shares]


def read(share):
    """Return what a share's head says, and the text of each table, as pg_restore would find them."""
    source = Source(io.BytesIO(share).read)
    contents = Contents(source)
    texts = {}
    for table in [found for found in contents.entries if found.kind == b"TABLE DATA"]:
        assert (source.take(1), source.integer()) == (b"\x01", table.number)
        texts[table.number] = b"".join(source.chunks())
    assert source.at_end()
    return contents, texts


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("version, codec", [(14, PLAIN), (14, OLD_GZIP), (15, GZIP), (16, PLAIN), (16, GZIP), (16, ZSTD)])
def test_each_row_is_in_one_share(version, codec, count):
    shares = [read(share) for share in shares_of(dump(version, codec), count)]
    for number, rows in ROWS.items():
        lines = [line for unused, texts in shares for line in texts[number].splitlines(True)]
        assert collections.Counter(lines) == collections.Counter(rows)
    for contents, texts in shares:
        assert contents.codec == "none"
        kinds = [found.kind for found in contents.entries]
        assert kinds == [b"ENCODING", b"STDSTRINGS", b"SEARCHPATH"] + [b"TABLE DATA"] * 4
        assert [found.tag for found in contents.entries[3:]] == list(NUMBERS.values())


@pytest.mark.parametrize("long_row", [4, 64 << 10])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 64])
@pytest.mark.parametrize("rows", [[], [b"\n"], [b"\n"] * 9, [b"x\\\\.\n"], [b"\\\\.\n", b"\\\\.\n"], [b"longer\\\\.\n", b"\n"], [b"1\tme\n", b"2\t\\\\\n"]])
def test_the_end_of_the_rows_is_found_wherever_a_piece_ends(monkeypatch, long_row, size, rows):
    monkeypatch.setattr(dump_shares, "LONG_ROW", long_row)
    dealer = Dealer(io.BytesIO(dump(codec=PLAIN, rows={1: rows, 2: [], 5: rows + rows, 7: []})))
    dealer._plain = lambda chunks: (text[at : at + size] for text in [b"".join(chunks)] for at in range(0, len(text), size))
    share = io.BytesIO()
    dealer.write_share(share.write)
    unused, texts = read(share.getvalue())
    assert texts == {1: b"".join(rows), 2: b"", 5: b"".join(rows + rows), 7: b""}


def test_who_waits_gets_less():
    dealer, shares = Dealer(io.BytesIO(dump())), [io.BytesIO(), io.BytesIO()]
    slow = threading.Event()

    def write_slowly(chunk):
        slow.wait()
        shares[0].write(chunk)

    thread = threading.Thread(target=dealer.write_share, args=(write_slowly,))
    thread.start()
    dealer.write_share(shares[1].write)
    slow.set()
    thread.join()
    (unused, few), (unused, many) = (read(share.getvalue()) for share in shares)
    assert len(few[5]) < len(many[5])
    assert len(few[5]) + len(many[5]) == len(b"".join(ROWS[5]))


def test_memory_is_flat_whatever_the_ratio():
    sizes = []
    Dealer(io.BytesIO(dump(rows={1: [], 2: [], 5: [b"\\N\n" * 1000] * 20000, 7: []}))).write_share(
        lambda chunk: sizes.append(len(chunk))
    )
    assert sum(sizes) > 60000000
    assert max(sizes) < 1 << 20


@pytest.mark.parametrize(
    "content",
    [
        b"SELECT 1;\n" * 10,
        dump(version=13),
        dump(version=17),
        dump(version=16, codec=LZ4),
        dump(version=16, codec=9),
        archive(entries=[entry(1, b"users"), entry(2, b"tracks", copy=b"")]),
        archive(entries=[entry(1, b"users", b"TABLE")]),
        archive(entries=[entry(1, b"users")[:10] + integer((64 << 20) + 1)]),
    ],
)
def test_what_cannot_be_dealt_out_is_left_to_pg_restore(shares, content):
    with pytest.raises(UnknownArchive):
        Dealer(io.BytesIO(content))
    with shares(content) as volume:
        assert volume is None


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_dump_that_ends_in_its_head_is_left_to_pg_restore(shares, size):
    with shares(dump()[:size]) as volume:
        assert volume is None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_hostile_dump_is_dealt_out_whole_or_refused(draws):
    content = bytearray(SMALL[draws.draw(st.sampled_from(sorted(SMALL)))])
    for unused in range(draws.draw(st.integers(1, 4))):
        at = draws.draw(st.integers(0, len(content)))
        content[at : at + draws.draw(st.integers(0, 40))] = draws.draw(st.binary(max_size=40))
    share = io.BytesIO()
    try:
        Dealer(io.BytesIO(bytes(content))).write_share(share.write)
    except (UnknownArchive, EOFError) + DAMAGE:
        return
    read(share.getvalue())


# -- through the pipes --------------------------------------------------------------------------


class Reader(threading.Thread):
    """Reads a share, or some bytes of it."""

    def __init__(self, path, size=-1):
        super(Reader, self).__init__(daemon=True)
        self.found = None
        self._path = path
        self._size = size
        self.start()

    def run(self):
        with open(self._path, "rb") as pipe:
            self.found = pipe.read(self._size)


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(root=tmp_path)


@pytest.fixture
def shares(tmp_path, engine):
    def make(content, count=2):
        path = tmp_path / "postgres_dump.backup"
        path.write_bytes(content)
        return Shares(engine, str(path), count, OWNER)

    yield make
    assert engine.throwaways == []


@pytest.fixture
def read_all(tmp_path):
    def read_shares(volume, size=-1):
        started = [Reader(str(pipe), size) for pipe in sorted((tmp_path / volume / "_data").iterdir())]
        for thread in started:
            thread.join(60)
            assert not thread.is_alive()
        return [thread.found for thread in started]

    return read_shares


def test_shares_come_through_pipes_of_their_reader_alone(shares, read_all, tmp_path):
    with shares(dump()) as volume:
        folder = tmp_path / volume / "_data"
        modes = [path.lstat().st_mode for path in folder.iterdir()]
        assert [stat.S_ISFIFO(mode) and stat.S_IMODE(mode) for mode in modes] == [0o600] * 2
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        texts = [read(share)[1] for share in read_all(volume)]
    assert sorted(b"".join(text[5] for text in texts).splitlines(True)) == sorted(ROWS[5])


# PostgreSQL's zstd frames have no checksum, so a bit there is for the set's checksum to find.
@pytest.mark.parametrize(
    "codec, damage",
    [(GZIP, "flip")] + [(codec, damage) for codec in (GZIP, ZSTD) for damage in ("cut", "end", "other table")],
)
def test_damage_is_the_dumps(shares, read_all, codec, damage):
    content = dump(codec=codec)
    start = content.index(data(5)[:6] + b"\0") + 6
    if damage == "flip":
        content = content[: start + 5000] + bytes([content[start + 5000] ^ 1]) + content[start + 5001 :]
    elif damage == "cut":
        content = content[: start + 300000]
    elif damage == "end":
        # The stream of the codec, not that of the chunks, lacks its end.
        whole = packed(codec, ROWS[5])
        content = content.replace(data(5, *[whole[at : at + 4096] for at in range(0, len(whole), 4096)]), data(5, whole[:-9]))
    else:
        content = content[: start - 5] + data(6)[1:6] + content[start:]
    with pytest.raises(DatabaseError, match="The dump .*postgres_dump.backup is damaged: ") as caught:
        with shares(content) as volume:
            read_all(volume)
            # As pg_restore's side of it is told.
            raise ZeroDivisionError
    assert ("not where" in str(caught.value)) is (damage == "other table")
    assert not isinstance(caught.value, Unread)


def test_the_programs_error_says_more_than_that_it_stopped_reading(shares, read_all):
    with pytest.raises(ZeroDivisionError):
        with shares(dump()) as volume:
            read_all(volume, 100)
            raise ZeroDivisionError


def test_a_program_that_stops_reading_without_an_error_is_one(shares, read_all):
    with pytest.raises(Unread, match="didn't read all rows"):
        with shares(dump()) as volume:
            read_all(volume, 100)


def test_a_program_that_never_comes(shares):
    with pytest.raises(Unread):
        with shares(dump()):
            pass
    with pytest.raises(ZeroDivisionError):
        with shares(dump()):
            raise ZeroDivisionError


def test_a_file_that_cannot_be_read_on(shares, read_all, monkeypatch):
    def broken(unused_source):
        yield b"1\tme\n"
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Source, "chunks", broken)
    content = dump(codec=PLAIN)
    with pytest.raises(EchoError, match="Could not read .*postgres_dump.backup: .*Input/output"):
        with shares(content) as volume:
            read_all(volume)
            raise ZeroDivisionError


def test_pipes_that_cannot_be_made_leave_the_dump_to_pg_restore(shares, monkeypatch):
    def refuse(*unused):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with shares(dump()) as volume:
        assert volume is None
