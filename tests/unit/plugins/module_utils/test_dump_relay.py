# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A dump between two programs that may come late, never, or end in the middle."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils.dump_relay import PIPES, READ, WRITTEN, Relay
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError

DUMP = os.urandom(3 << 20)


def write(folder, content=DUMP):
    with open(str(folder / WRITTEN), "wb") as pipe:
        pipe.write(content)


class Reader(threading.Thread):
    """Reads the second pipe to its end, or some bytes of it."""

    def __init__(self, folder, size=-1):
        super(Reader, self).__init__(daemon=True)
        self.found = None
        self._path = str(folder / READ)
        self._size = size

    def run(self):
        with open(self._path, "rb") as pipe:
            self.found = pipe.read(self._size)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *unused):
        self.join()


def pipes_in(folder):
    return [name for name in os.listdir(str(folder)) if name in PIPES]


def test_file_and_reader_get_all_of_it(tmp_path):
    with open(str(tmp_path / "out"), "wb") as output, Relay(str(tmp_path), output):
        with Reader(tmp_path) as reader:
            write(tmp_path)
        # Before the relay is left: its reader has come to the end.
        assert (tmp_path / "out").read_bytes() == DUMP
    assert reader.found == DUMP
    assert pipes_in(tmp_path) == []


def test_what_is_rewritten_goes_on(tmp_path):
    with open(str(tmp_path / "out"), "wb") as output:
        with Relay(str(tmp_path), output, lambda read: iter(lambda: read(1 << 20)[::2], b"")):
            with Reader(tmp_path) as reader:
                write(tmp_path, b"a.b.c.")
    assert reader.found == (tmp_path / "out").read_bytes() == b"abc"


def test_writer_that_never_comes(tmp_path):
    with open(str(tmp_path / "out"), "wb") as output:
        with pytest.raises(DatabaseError, match="wrote nothing"):
            with Relay(str(tmp_path), output):
                pass
    assert pipes_in(tmp_path) == []


def test_reader_that_never_comes(tmp_path):
    with open(str(tmp_path / "out"), "wb") as output:
        with pytest.raises(DatabaseError, match="read nothing"):
            with Relay(str(tmp_path), output):
                write(tmp_path, b"PGDMP")


def test_error_of_the_programs_says_more_than_a_broken_pipe(tmp_path):
    with open(str(tmp_path / "out"), "wb") as output:
        with pytest.raises(ZeroDivisionError):
            with Relay(str(tmp_path), output):
                with Reader(tmp_path, 10), pytest.raises(BrokenPipeError):
                    write(tmp_path)
                raise ZeroDivisionError
    assert pipes_in(tmp_path) == []


def test_reader_that_ends_early_is_an_error(tmp_path):
    with open(str(tmp_path / "out"), "wb") as output:
        with pytest.raises(BrokenPipeError):
            with Relay(str(tmp_path), output):
                with Reader(tmp_path, 10), pytest.raises(BrokenPipeError):
                    write(tmp_path)


def test_full_disk_outweighs_what_the_programs_say_of_it(tmp_path):
    with open("/dev/full", "wb", buffering=0) as output:
        with pytest.raises(OSError) as caught:
            with Relay(str(tmp_path), output):
                with Reader(tmp_path), pytest.raises(BrokenPipeError):
                    write(tmp_path)
                raise ZeroDivisionError
    assert caught.value.errno == errno.ENOSPC
