# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pipe that a program elsewhere fills: its end, and what happens when either side fails."""

from __future__ import annotations

import errno
import os

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils.named_pipe import NamedPipe


def taking(into):
    def work(read):
        for block in iter(lambda: read(1000), b""):
            into.append(block)

    return work


def test_all_that_writers_wrote_has_come_when_the_block_ends(tmp_path):
    path, came, sent = str(tmp_path / "pipe"), [], os.urandom(3 << 20)
    with NamedPipe(path, taking(came)):
        for part in (sent[:70000], sent[70000:]):
            with open(path, "wb") as pipe:
                pipe.write(part)
    assert b"".join(came) == sent
    assert not os.path.exists(path)


def test_a_writer_that_never_comes(tmp_path):
    path, came = str(tmp_path / "pipe"), []
    with pytest.raises(ZeroDivisionError):
        with NamedPipe(path, taking(came)):
            raise ZeroDivisionError
    assert came == []
    assert not os.path.exists(path)


def full_disk(read):
    read(1)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cut(read):
    while read(1000):
        pass
    raise ValueError("it ended in the middle")


@pytest.mark.parametrize(
    "work, writer_fails, raised", [(full_disk, True, OSError), (cut, True, KeyError), (cut, False, ValueError)]
)
def test_the_cause_outweighs_what_follows_from_it(tmp_path, work, writer_fails, raised):
    path = str(tmp_path / "pipe")
    with pytest.raises(raised):
        with NamedPipe(path, work):
            try:
                with open(path, "wb", buffering=0) as pipe:
                    pipe.write(b"x")
            except BrokenPipeError:
                pass
            if writer_fails:
                raise KeyError("what the program says")
    assert not os.path.exists(path)
