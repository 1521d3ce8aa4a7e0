# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The structure of a tar stream, followed while the bytes pass: members, and whether it is whole."""

from __future__ import annotations

import zlib

from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError

RECORD = 512
ZEROS = bytes(RECORD)
PAX_HEADERS = b"xg"
# GNU's long names and links, which announce the member that follows as pax headers do.
ANNOUNCEMENTS = PAX_HEADERS + b"LK"
PAX_MAX = 16 << 20
# RFC 1950, 8.2: the low half of Adler-32 is one and the sum of the bytes, modulo this.
ADLER_BASE = 65521
ADLER_LOW = 0xFFFF


class TarScan:
    """Counts the members of a tar stream and notices where it is damaged or cut.

    Understands ustar, pax and GNU headers. ``feed`` takes pieces of any size; ``finish``
    raises ``ArchiveError`` unless the end of the archive has come.
    """

    def __init__(self, name):
        self.members = 0
        self.bytes = 0
        self._name = name
        self._carry = b""
        self._skip = 0
        self._size = None
        self._zeros = 0

    def feed(self, piece):
        """Follow the next bytes of the stream."""
        self.bytes += len(piece)
        if self._skip >= len(piece):
            self._skip -= len(piece)
            return
        data = self._carry + piece[self._skip :] if self._skip or self._carry else piece
        at = 0
        while self._zeros < 2 and len(data) - at >= RECORD:
            taken = self._header(data, at)
            if not taken:
                break
            at += taken
        if self._zeros == 2:
            at = len(data)
        self._carry = data[at:]
        self._skip = max(0, at - len(data))

    def finish(self):
        """Check that the stream has come to the archive's end (two records of zeros)."""
        if self._zeros < 2:
            raise self._damaged("it ends too early, after %d bytes and %d members" % (self.bytes, self.members))

    def _header(self, data, at):
        """Return how many bytes the header at ``at`` and its contents take; 0 if more must come first."""
        header = data[at : at + RECORD]
        if header == ZEROS:
            self._zeros += 1
            return RECORD
        self._zeros = 0
        kind = header[156:157]
        size = self._number(header[124:136])
        if self._number(header[148:156]) % ADLER_BASE != _checksum(header):
            raise self._damaged("the header of member %d has a wrong checksum" % (self.members + 1))
        if kind in ANNOUNCEMENTS:
            return self._announcement(kind, data, at + RECORD, size)
        if self._size is not None:
            size, self._size = self._size, None
        self.members += 1
        # Links, devices and folders have no contents, whatever size is given.
        return RECORD + (_padded(size) if kind not in b"123456" else 0)

    def _announcement(self, kind, data, at, size):
        if size > PAX_MAX:
            raise self._damaged("a pax header claims %d bytes" % size)
        if kind in PAX_HEADERS:
            if len(data) - at < _padded(size):
                return 0
            if kind == b"x":
                self._size = self._pax_size(data[at : at + size])
        return RECORD + _padded(size)

    def _pax_size(self, records):
        """Return the size that a pax header gives, for it outdoes the one of the member's own header."""
        if b" size=" not in records:
            return None
        found = None
        at = 0
        while at < len(records):
            length = records[at : records.find(b" ", at)]
            if not length.isdigit() or not int(length):
                raise self._damaged("a pax header is malformed")
            key, unused, value = records[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
            if key == b"size":
                found = self._number(value, base=10)
            at += int(length)
        return found

    def _number(self, field, base=8):
        if base == 8 and field[0] & 0x80:
            return int.from_bytes(field[1:], "big")
        try:
            return int(field.strip(b" \0") or b"0", base)
        except ValueError:
            raise self._damaged("a header holds %r where a number belongs" % field)

    def _damaged(self, how):
        return ArchiveError("%s is not a whole tar archive: %s." % (self._name, how), "Use another backup.")


def _checksum(header):
    """Return a header's checksum modulo ``ADLER_BASE``: the sum of its bytes, with blanks for the field itself."""
    adler = zlib.adler32(header[156:], zlib.adler32(b"        ", zlib.adler32(header[:148])))
    return ((adler & ADLER_LOW) - 1) % ADLER_BASE


def _padded(size):
    return -(-size // RECORD) * RECORD
