# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A dump as a file: which PostgreSQL made it, and its SQL as a role without rights can run it.

Nothing here guards against hostile SQL: what runs it does. See ``side_database``.
"""

from __future__ import annotations

import contextlib
import gzip
import re

from ansible_collections.echo_music.ops.plugins.module_utils.codec import DAMAGE
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError
from ansible_collections.echo_music.ops.plugins.module_utils.pg_archive import Head, Source, UnknownArchive
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained

HEAD_SIZE = 64 * 1024
BLOCK = 256 * 1024
# Longer lines are read in pieces. A piece may end inside a token, and what follows is then
# not taken apart as it should be: a statement that should be left out may stay, and fail.
LINE_LIMIT = 16 * 1024 * 1024

SERVER_LINE = re.compile(rb"^-- Dumped from database version (\S+)", re.M)
CLIENT_LINE = re.compile(rb"^-- Dumped by pg_dump version (\S+)", re.M)
HEADING = re.compile(rb"^-- PostgreSQL database (?:cluster )?dump\r?$", re.M)
CLOSING = re.compile(rb"^-- PostgreSQL database (?:cluster )?dump complete\r?$", re.M)
TAIL_SIZE = 4096
MAJOR = re.compile(r"\d+")

NAME = rb'(?:"[^"]*"|[^\s";]+)'
# One-line statements as pg_dump and pg_dumpall write them, which are about roles and databases
# rather than about data. The new owner gets everything anyway.
LEFT_OUT = re.compile(
    rb'(?:ALTER (?:"[^"]*"|[^";])+ OWNER TO ' + NAME + rb";"
    rb'|(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES) (?:"[^"]*"|[^";])+;'
    rb"|COMMENT ON EXTENSION " + NAME + rb" IS (?:'(?:[^']|'')*'|NULL);"
    rb'|(?:CREATE|ALTER|DROP) (?:ROLE|DATABASE) (?:"[^"]*"|[^";])+;'
    rb"|(?:SET|RESET) SESSION AUTHORIZATION(?: [^;]+)?;"
    rb"|\\(?:connect|restrict|unrestrict) .*)\s*\Z"
)
STRING_END = re.compile(rb"[^']*'")
ESCAPED_STRING_END = re.compile(rb"[^'\\]*(?:\\.[^'\\]*)*'", re.S)
COMMENT_END = re.compile(rb".*?\*/", re.S)
ENDS = {b"'": STRING_END, b"E'": ESCAPED_STRING_END, b"e'": ESCAPED_STRING_END, b'"': re.compile(rb'[^"]*"')}
COPY = re.compile(rb"COPY ")
COPY_FROM_STDIN = re.compile(rb"\bFROM stdin;\s*\Z", re.I)
END_OF_COPY = b"\\."
TOKEN = re.compile(rb"""--[^\n]*|/\*|[eE]'|'|"|\$(?:[^\W\d]\w*)?\$|;|[^\s;'"$/eE-]+|\S""")


def require_loadable(path, kind, server_version_num):
    """Raise ``DatabaseError`` if a dump was made by a newer PostgreSQL than the server it is for.

    ``kind`` is ``custom``, ``sql`` or ``sql.gz``. SQL that doesn't tell is taken.
    """
    target = _name_of(server_version_num)
    for what, version in zip(("of PostgreSQL", "by pg_dump"), versions(path, kind)):
        if version and _major(version) > _major(target):
            raise DatabaseError(
                "The dump %s was made %s %s, which is newer than the PostgreSQL %s that it is for."
                % (path, what, version, target),
                "Restore it into PostgreSQL %d or newer." % _major(version),
                dump_version=version,
                server_version=target,
            )


def versions(path, kind):
    """Return the releases of the server and of the pg_dump that made a dump, None where it doesn't tell."""
    with explained("read", path):
        return _custom_versions(path) if kind == "custom" else _sql_versions(path, kind)


@contextlib.contextmanager
def opened(path, kind):
    """Open a dump for reading, plain SQL out of its gzip."""
    with explained("read", path), gzip.open(path, "rb") if kind == "sql.gz" else open(path, "rb") as source, undamaged(path):
        yield source


@contextlib.contextmanager
def undamaged(path):
    """Name the dump where what reads it finds that it can't be."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile) + DAMAGE as error:
        raise DatabaseError("The dump %s is damaged: %s." % (path, error), "Restore from another one.")


def raw_blocks(source):
    """Yield a file in blocks."""
    return iter(lambda: source.read(BLOCK), b"")


def sql_blocks(source, path):
    """Yield a dump's SQL in blocks, without the statements that only its old owner could run.

    A line that is left out stays as an empty one, so that PostgreSQL's line numbers are the
    file's. A dump whose closing line is missing ends in an error, not in a half.
    """
    sieve, kept, size = Sieve(), [], 0
    start = tail = b""
    for piece in iter(lambda: source.readline(LINE_LIMIT), b""):
        kept.append(sieve.passed(piece))
        size += len(piece)
        if size >= BLOCK:
            block, kept, size = b"".join(kept), [], 0
            start, tail = start or block[:TAIL_SIZE], (tail + block)[-TAIL_SIZE:]
            yield block
    block = b"".join(kept)
    start, tail = start or block[:TAIL_SIZE], (tail + block)[-TAIL_SIZE:]
    if HEADING.search(start) and not CLOSING.search(tail):
        raise DatabaseError(
            "The dump %s is cut short: its closing line is missing." % path, "Restore from another one."
        )
    yield block


class Sieve:
    """Tells statements from the data, strings and comments that look like them, line by line."""

    def __init__(self):
        self._closing = None
        self._between_statements = True
        self._at_line_start = True
        self._is_copy = False
        self._in_data = False

    def follow(self, piece):
        """Take a line into account as it is; tell whether a statement may begin with it."""
        begins = self._between_statements and not self._closing
        self._follow(piece)
        return begins

    def passed(self, piece):
        """Return a line, or a piece of a long one, or an empty line in place of what is left out."""
        whole = self._at_line_start
        self._at_line_start = piece.endswith(b"\n")
        if self._in_data:
            self._in_data = not (whole and piece.rstrip(b"\r\n") == END_OF_COPY)
            return piece
        if whole and self._between_statements and not self._closing:
            if LEFT_OUT.match(piece):
                return b"\n"
            self._is_copy = bool(COPY.match(piece))
        self._follow(piece)
        if self._is_copy and self._between_statements and not self._closing:
            self._is_copy = False
            self._in_data = bool(COPY_FROM_STDIN.search(piece))
        return piece

    def _follow(self, piece):
        position = 0
        while position < len(piece):
            if self._closing:
                end = self._closing.match(piece, position)
                if not end:
                    return
                position, self._closing = end.end(), None
                continue
            token = TOKEN.search(piece, position)
            if not token:
                return
            position = token.end()
            self._take(token.group())

    def _take(self, token):
        if token.startswith(b"--"):
            return
        if token == b"/*":
            self._closing = COMMENT_END
            return
        self._between_statements = token == b";"
        if token in ENDS:
            self._closing = ENDS[token]
        elif len(token) > 1 and token.startswith(b"$") and token.endswith(b"$"):
            self._closing = re.compile(rb".*?" + re.escape(token), re.S)


def _custom_versions(path):
    try:
        with open(path, "rb") as source:
            head = Head(Source(source.read))
    except (EOFError, UnknownArchive) as error:
        raise DatabaseError(
            "%s is not a dump of pg_dump's custom format: %s." % (path, error), "Restore from another one."
        )
    told = [(name or b"").decode("utf-8", "replace").split(" ")[0] for name in (head.server, head.client)]
    return tuple(version or None for version in told)


def _sql_versions(path, kind):
    with opened(path, kind) as source:
        head = source.read(HEAD_SIZE)
    found = (SERVER_LINE.search(head), CLIENT_LINE.search(head))
    return tuple(match.group(1).decode("ascii", "replace") if match else None for match in found)


def _major(version):
    number = MAJOR.match(version)
    return int(number.group()) if number else 0


def _name_of(server_version_num):
    return "%d.%d" % (server_version_num // 10000, server_version_num % 10000)
