# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of pg_dump's custom format, byte by byte."""

from __future__ import annotations

import struct


def integer(value):
    return struct.pack("<BI", value < 0, abs(value))


def string(value):
    return integer(-1) if value is None else integer(len(value)) + value


def stream(*chunks):
    return b"".join(integer(len(chunk)) + chunk for chunk in chunks) + integer(0)


def entry(number, tag, kind=b"TABLE DATA", copy=b"COPY", version=14):
    """Return an entry of the table of contents; without ``copy`` its data is statements."""
    strings = b"".join(string(text) for text in (b"0", b"0", tag, kind))
    more = b"".join(string(text) for text in (b"", b"", copy, b"public", None, b"heap"))
    more += (integer(114) if version >= 16 else b"") + string(b"me") + string(b"false")
    has_data = integer(kind == b"TABLE DATA")
    return integer(number) + has_data + strings + integer(3) + more + string(b"7") + string(None) + b"\x01" + b"\0" * 8


def archive(*blocks, start=None, version=14, codec=0, entries=None):
    """Return an archive of version 1.``version``; ``codec`` is gzip's level, or since 1.15 the number of a codec."""
    entries = entries or [entry(1, b"users", version=version), entry(2, b"tracks", version=version)]
    head = (start or b"PGDMP\x01%c\x00\x04\x08\x01" % version) + (bytes([codec]) if version >= 15 else integer(codec))
    head += b"".join(integer(part) for part in (1, 2, 3, 4, 5, 126, 0))
    names = string(b"music_server") + string(b"15.18") + string(b"15.18")
    return head + names + integer(len(entries)) + b"".join(entries) + b"".join(blocks)


def data(number, *chunks):
    return b"\x01" + integer(number) + stream(*chunks)


def large_objects(**objects):
    return (
        b"\x03" + integer(9) + b"".join(integer(int(n[1:])) + stream(body) for n, body in objects.items()) + integer(0)
    )
