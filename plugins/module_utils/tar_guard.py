# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tar stream from anywhere, turned into one that is safe to extract.

Two readers of one archive may disagree about what it says, and an attacker needs only one
such case. So a header is never passed on: what we understood of it is written anew, and GNU
tar sees nothing else. The contents of files pass through as they are.
"""

from __future__ import annotations

import os

from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, SpaceError
from ansible_collections.echo_music.ops.plugins.module_utils.survey import shown
from ansible_collections.echo_music.ops.plugins.module_utils.tar_scan import ANNOUNCEMENTS, RECORD, ZEROS

# Top-level names that belong to restores under way and to what they keep.
RESERVED = ".echo-restore-"

FILE, HARD_LINK, SYMBOLIC_LINK, FOLDER, OLD_SPARSE = b"0", b"1", b"2", b"5", b"S"
ALIASES = {b"\0": FILE, b"7": FILE}
KINDS = (FILE, HARD_LINK, SYMBOLIC_LINK, FOLDER, OLD_SPARSE)
SPECIAL = {b"3": "a character device", b"4": "a block device", b"6": "a named pipe"}
SET_UID, SET_GID = 0o4000, 0o2000

NAME_SIZE = 100
PATH_MAX = 4096
ANNOUNCEMENT_MAX = 1 << 20
LENGTH_DIGITS = len(str(ANNOUNCEMENT_MAX)) + 1
NUMBER_DIGITS = 20
# What the table of links may take, for that is all that grows with an archive.
LINKS_MAX = 32 << 20
LINK_COST = 256
# What is told of that was left out or changed; the rest is a number.
REMARKS_SHOWN = 5
UNPLACED_MAX = 20

GNU_MAGIC = b"ustar  \0"
USTAR_MAGIC = b"ustar\0"
# Magic and version; no user's or group's name, no device, no prefix.
USTAR_REST = (b"ustar\x0000").ljust(RECORD - 257, b"\0")
SPARSE_NAME = b"GNU.sparse.name"
OVERRIDES = (b"path", b"linkpath", b"size", SPARSE_NAME)
KEPT = (b"mtime", b"uid", b"gid")
KEPT_FAMILIES = (b"SCHILY.acl.", b"SCHILY.xattr.user.")
SPARSE_FAMILY = b"GNU.sparse."
CAPABILITY = b"SCHILY.xattr.security.capability"

USE_ANOTHER = "Use another backup."
MADE_BY_ECHO = "No Echo writes such a thing: find out where this archive comes from before you use any of it."


class TarGuard:
    """Checks each member before the bytes that create it come out.

    Refused are: names that are absolute or hold ``..``, links that lead out, members behind
    a symbolic link or again under its name, devices and named pipes, set-user-ID bits and
    file capabilities, set-group-ID bits but on folders (where they only hand the group on),
    names of our own, and more bytes than there is room for. Names are bytes: a line break
    or what is not UTF-8 is kept as it is.

    ``strip`` is the folder that all members must lie in and that their names lose. ``places``
    maps the first part of a name to what stands for it; the root and all that has no place
    is checked and left out. All the rules hold for the names that come of it.

    With ``contain`` what is refused for its kind alone is made harmless instead: set-ID bits
    and capabilities are taken away, devices and pipes left out, and links that lead out kept
    as they are, for nothing is ever written through a link. :attr:`remarks` tells of it.
    """

    def __init__(self, archive, strip="", bytes_free=None, files_free=None, places=None, contain=False):
        self.members = 0
        self.files = 0
        self.bytes = 0
        #: ``(uid, gid)`` of the root, None while it has not come.
        self.owner = None
        self._archive = archive
        self._strip = os.fsencode(strip)
        self._bytes_free = bytes_free
        self._files_free = files_free
        self._places = places and dict((os.fsencode(name), os.fsencode(place)) for name, place in places.items())
        self._contain = contain
        self._said = []
        self._unsaid = 0
        self._unplaced = set()
        self._left_out = False
        self._spared = 0
        self._made = 0
        self._carry = b""
        self._contents = 0
        self._map_goes_on = False
        self._zeros = 0
        self._member = b""
        self._announced = {}
        self._records = []
        self._sparse_records = []
        self._links = {}
        self._links_size = 0

    @property
    def member(self):
        """The name of the last member that was come to, printable."""
        return shown(self._member)

    @property
    def remarks(self):
        """What was left out or changed, each in words."""
        return self._said + ["%d more such members" % self._unsaid] * (self._unsaid > 0)

    @property
    def unplaced(self):
        """The first parts of names that have no place, printable, as far as they are kept track of."""
        return sorted(shown(name) for name in self._unplaced)

    def feed(self, piece):
        """Take a piece of any size, return what may be extracted of it and what was before it."""
        self.bytes += len(piece)
        data = self._carry + piece if self._carry else piece
        view = memoryview(data)
        safe = []
        at = 0
        while self._zeros < 2:
            if self._contents and not self._map_goes_on:
                passing = min(self._contents, len(data) - at)
                if self._left_out:
                    self._spared += passing
                else:
                    safe.append(view[at : at + passing])
                self._contents -= passing
                at += passing
            if len(data) - at < RECORD:
                break
            taken = self._record(data, at, safe)
            if not taken:
                break
            at += taken
        self._carry = b"" if self._zeros == 2 else data[at:]
        self._require_room(self.bytes - self._spared)
        return b"".join(safe)

    def finish(self):
        """Return the end of the stream; raise ``ArchiveError`` if it has not come."""
        if self._zeros < 2:
            raise self._damaged("it ends too early, after %d bytes" % self.bytes)
        return ZEROS * 2

    # -- records ----------------------------------------------------------------------------

    def _record(self, data, at, safe):
        """Deal with the record at ``at``; return how many bytes were used, 0 if more must come first."""
        header = data[at : at + RECORD]
        if self._map_goes_on:
            if not self._left_out:
                safe.append(header)
            self._map_goes_on = header[504] != 0
            return RECORD
        if header == ZEROS:
            self._zeros += 1
            return RECORD
        if self._zeros:
            raise self._damaged("something follows its end")
        if self._number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise self._damaged("a header has a wrong checksum")
        kind = header[156:157]
        size = self._number(header[124:136])
        if kind in ANNOUNCEMENTS:
            return self._announcement(kind, data, at + RECORD, size)
        safe += self._checked(header, kind, size, self.bytes - (len(data) - at))
        return RECORD

    def _announcement(self, kind, data, at, size):
        if size > ANNOUNCEMENT_MAX:
            raise self._damaged("a header about the next member claims %d bytes" % size)
        if len(data) - at < _padded(size):
            return 0
        content = data[at : at + size]
        if kind == b"L":
            self._announced.setdefault(b"path", content.partition(b"\0")[0])
        elif kind == b"K":
            self._announced.setdefault(b"linkpath", content.partition(b"\0")[0])
        elif kind == b"g":
            for key, unused_value, unused_end in self._pax(content):
                if key != b"comment":
                    raise self._refused("a global header sets %s for all members" % shown(key))
        else:
            self._member_header(content)
        return RECORD + _padded(size)

    def _member_header(self, content):
        self._records, self._sparse_records = [], []
        for key, value, record in self._pax(content):
            if key in OVERRIDES:
                self._announced[key] = value
            elif key in KEPT or key.startswith(KEPT_FAMILIES):
                self._records.append(record)
            elif key.startswith(SPARSE_FAMILY):
                self._sparse_records.append(record)
            elif key == CAPABILITY and not self._contain:
                raise self._refused("the member after %s has file capabilities" % (self.member or "the start"))

    def _pax(self, content):
        """Yield ``(key, value, record)``; a record is ``<its length> <key>=<value>\\n``."""
        at = 0
        while at < len(content):
            length = content[at : at + LENGTH_DIGITS].partition(b" ")[0]
            end = at + int(length) if length.isdigit() else 0
            record = content[at:end]
            key, equals, value = record[len(length) + 1 : -1].partition(b"=")
            if not equals or end > len(content) or record[-1:] != b"\n":
                raise self._damaged("a pax header is malformed")
            yield key, value, record
            at = end

    # -- members ----------------------------------------------------------------------------

    def _checked(self, header, kind, size, position):
        """Check a member; return the records that stand for it."""
        announced, self._announced = self._announced, {}
        records, self._records = self._records, []
        sparse_records, self._sparse_records = self._sparse_records, []
        self._member = announced.get(SPARSE_NAME) or announced.get(b"path") or _name(header)
        self.members += 1
        kind = ALIASES.get(kind, kind)
        # Before there were folders in tar, a slash marked them.
        if kind == FILE and self._member.endswith(b"/"):
            kind = FOLDER
        self._left_out = False
        mode = self._number(header[100:108]) & 0o7777
        if kind not in KINDS:
            what = SPECIAL.get(kind, "of the unknown kind %s" % shown(kind))
            if not self._contain or kind not in SPECIAL:
                raise self._refused("%s is %s" % (self.member, what))
            self._left_out = True
            self._remark("%s is %s and was left out" % (self.member, what))
        if mode & SET_UID or (mode & SET_GID and kind != FOLDER):
            self._tolerate("%s has the mode %04o, a set-ID bit" % (self.member, mode), "which was taken away")
            mode &= ~(SET_UID if kind == FOLDER else SET_UID | SET_GID)
        parts = self._inside(self._member)
        if parts is None:
            self._left_out = True
        elif not parts:
            self._take_root(kind, header, records)
        name = b"/".join(parts or [])
        if name in self._links:
            raise self._refused("%s comes twice, first as a symbolic link" % self.member)
        link = b""
        if kind in (HARD_LINK, SYMBOLIC_LINK):
            link = announced.get(b"linkpath") or _until_nul(header[157:257])
            if not self._left_out:
                link = self._checked_link(parts, kind, link)
        if kind in (FILE, OLD_SPARSE):
            if b"size" in announced:
                size = self._number(announced[b"size"], base=10)
            self.files += not self._left_out
        else:
            # Whatever a folder or link claims, no contents follow.
            size = 0
        if kind == FILE:
            records += sparse_records
        self._contents = _padded(size)
        if kind == OLD_SPARSE:
            if header[257:265] != GNU_MAGIC:
                raise self._damaged("%s is sparse in a format that has no such files" % self.member)
            self._map_goes_on = header[482] != 0
        if self._left_out:
            return []
        self._made += 1
        self._require_room(position + size - self._spared)
        return _written(header, kind, name or b".", link, mode, size, b"".join(records))

    def _take_root(self, kind, header, records):
        if kind != FOLDER:
            raise self._refused("%s stands for the root and is no folder" % self.member)
        ids = dict((key, value) for record in records for key, value, unused in self._pax(record))
        self.owner = tuple(
            self._number(ids[key], base=10) if key in ids else self._number(field)
            for key, field in ((b"uid", header[108:116]), (b"gid", header[116:124]))
        )
        self._left_out = bool(self._places)

    def _tolerate(self, why, contained):
        """Refuse a member, or tell how it was contained."""
        if not self._contain:
            raise self._refused(why)
        self._remark("%s, %s" % (why, contained))

    def _remark(self, why):
        if len(self._said) < REMARKS_SHOWN:
            self._said.append(why)
        else:
            self._unsaid += 1

    def _inside(self, path):
        """Return the parts of a name below the root, None for one that has no place."""
        if b"\0" in path or not path or len(path) >= PATH_MAX:
            raise self._refused("a member has no proper name: %.100s" % shown(path))
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if path.startswith(b"/") or b".." in parts:
            raise self._refused("the name %s leads out" % shown(path))
        if self._strip:
            if parts[:1] != [self._strip]:
                raise self._refused("%s lies outside of %s" % (shown(path), shown(self._strip)))
            del parts[0]
        if self._places and parts:
            if parts[0] not in self._places:
                if len(self._unplaced) < UNPLACED_MAX:
                    self._unplaced.add(parts[0])
                return None
            parts[:1] = self._places[parts[0]].split(b"/")
        if parts and parts[0].startswith(os.fsencode(RESERVED)):
            raise self._refused("the name %s is one of those that restores use" % shown(path))
        if self._links:
            for depth in range(1, len(parts)):
                if b"/".join(parts[:depth]) in self._links:
                    raise self._refused("%s lies behind a symbolic link of this archive" % shown(path))
        return parts

    def _checked_link(self, parts, kind, link):
        """Return where a link leads, as it is to be written."""
        target = link
        if kind == HARD_LINK:
            inside = self._inside(link)
            if inside is None:
                raise self._refused("%s is a second name of %s, which has no place" % (self.member, shown(link)))
            link = b"/".join(inside)
            # A second name of a symbolic link: its target now counts from another folder.
            target = self._links.get(link)
        if target is not None:
            self._check_target(parts, target)
            name = b"/".join(parts)
            self._links_size += len(name) + len(target) + LINK_COST
            if self._links_size > LINKS_MAX:
                raise self._refused("it holds more symbolic links than can be kept track of")
            self._links[name] = target
        if not link:
            raise self._refused("the link %s leads to the root" % self.member)
        return link

    def _check_target(self, parts, target):
        steps = [step for step in target.split(b"/") if step not in (b"", b".")]
        up = 0
        while steps[up : up + 1] == [b".."]:
            up += 1
        # A .. behind a name is another matter once that name is a link itself.
        if not target or b"\0" in target:
            raise self._refused("the link %s leads out, to %.200s" % (self.member, shown(target)))
        if len(target) >= PATH_MAX:
            raise self._refused("the link %s leads to a name of %d bytes" % (self.member, len(target)))
        if target.startswith(b"/") or up >= len(parts) or b".." in steps[up:]:
            self._tolerate("the link %s leads out, to %.200s" % (self.member, shown(target)), "and was kept as it is")

    # -- small change -----------------------------------------------------------------------

    def _number(self, field, base=8):
        if base == 8 and field[0] & 0x80:
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b" \0") or b"0"
        if not digits.isdigit() or len(digits) > NUMBER_DIGITS:
            raise self._damaged("a header holds %.40r where a number belongs" % field)
        try:
            return int(digits, base)
        except ValueError:
            raise self._damaged("a header holds %.40r where a number belongs" % field)

    def _require_room(self, size):
        if self._files_free is not None and self._made > self._files_free:
            raise SpaceError(
                "%s unpacks to more than the %d files and folders that there is room for (reached at %s)."
                % (self._archive, self._files_free, self.member),
                "Make room, or find out whether this archive is what it claims to be.",
                archive=self._archive,
            )
        if self._bytes_free is not None and size > self._bytes_free:
            raise SpaceError(
                "%s unpacks to more than the %d bytes that are free (reached at %s)."
                % (self._archive, self._bytes_free, self.member),
                "Make room, or find out whether this archive is what it claims to be.",
                archive=self._archive,
            )

    def _damaged(self, how):
        after = " after %s" % self.member if self.members else " at its first member"
        return ArchiveError(
            "%s is not a whole tar archive: %s,%s." % (self._archive, how, after), USE_ANOTHER, archive=self._archive
        )

    def _refused(self, why):
        return ArchiveError(
            "%s is not safe to extract: %s." % (self._archive, why), MADE_BY_ECHO, archive=self._archive
        )


def _written(header, kind, name, link, mode, size, records):
    """Return the records that tell GNU tar of a member, in nobody's words but ours."""
    pieces = []
    if records:
        pieces += _announced(b"x", records)
    if len(name) > NAME_SIZE:
        pieces += _announced(b"L", name + b"\0")
    if len(link) > NAME_SIZE:
        pieces += _announced(b"K", link + b"\0")
    rest = header[257:] if kind == OLD_SPARSE else USTAR_REST
    pieces.append(_header(name, b"%07o\0" % mode + header[108:124], _size(size), header[136:148], kind, link, rest))
    return pieces


def _announced(kind, content):
    ids = b"0000644\0" + b"0000000\0" * 2
    header = _header(b"././@Announced", ids, _size(len(content)), b"%011o\0" % 0, kind, b"", USTAR_REST)
    return [header, content.ljust(_padded(len(content)), b"\0")]


def _header(name, mode_and_ids, size, time, kind, link, rest):
    start = name[:NAME_SIZE].ljust(NAME_SIZE, b"\0") + mode_and_ids + size + time
    end = kind + link[:NAME_SIZE].ljust(NAME_SIZE, b"\0") + rest
    return start + b"%06o\0 " % (sum(start) + 8 * 32 + sum(end)) + end


def _size(size):
    return b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(11, "big")


def _name(header):
    name = _until_nul(header[:NAME_SIZE])
    prefix = _until_nul(header[345:500]) if header[257:263] == USTAR_MAGIC else b""
    return prefix + b"/" + name if prefix else name


def _until_nul(field):
    return field.partition(b"\0")[0]


def _padded(size):
    return -(-size // RECORD) * RECORD
