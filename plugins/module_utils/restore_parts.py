# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a restore: a database or a volume, each staged beside the live one, swapped, swapped back.

A part is made anew from the facts in the journal by every run. What state it is in, the disk
and the server tell; so every method but ``stage`` may be called again, or for nothing.
"""

from __future__ import annotations

import os
import time

from ansible_collections.echo_music.ops.plugins.module_utils import exchange
from ansible_collections.echo_music.ops.plugins.module_utils.dump_file import require_loadable
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, EchoError, SetError
from ansible_collections.echo_music.ops.plugins.module_utils.extract import root_of, unpack
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import free_bytes, sha256_of
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import SWAPPED, SideDatabase, compare

# Kept free of a restore: a live database beside it must go on writing.
RESERVE = 256 * 1024 * 1024
GZIP_MAGIC = b"\x1f\x8b"
# A database with its indexes, by the size of a dump that doesn't tell it.
GROWTH = {"custom": 8, "sql.gz": 8, "sql": 2}
SERVER_TIMEOUT = 60
SERVER_POLL = 0.5
SHOWN = 5


def make_part(engine, tag, facts):
    """Return the part that the facts describe, of the restore ``tag``."""
    kind = DatabasePart if facts["component"] == "database" else VolumePart
    return kind(engine, tag, facts)


class DatabasePart:
    """A database; staged and previous data are databases of other names."""

    def __init__(self, engine, tag, facts):
        self.component = facts["component"]
        self.facts = facts
        self._database = Database(engine, facts["container"], name=facts["name"])
        self._side = SideDatabase(self._database, tag)

    def check_plan(self):
        """Refuse what can't succeed, before anything is written."""
        require_loadable(self.facts["file"], self.facts["kind"], self.facts["like"]["server_version_num"])

    def needs(self):
        """Return ``(path, bytes)``: where how much room is needed."""
        recorded = self.facts["recorded"]
        size = recorded["bytes"] if recorded else self.facts["bytes"] * GROWTH[self.facts["kind"]]
        return self.facts["folder"], size

    def stage(self):
        """Load and count the dump; return the rows of its tables."""
        file, expected = self.facts["file"], self.facts["tables"]
        if self.facts.get("sha256") and sha256_of(file)[0] != self.facts["sha256"]:
            raise DatabaseError("%s is not the file that its manifest tells of." % file, "Use another copy of this set.")
        self._side.create(self.facts["like"])
        self._side.load(file, self.facts["kind"])
        self._side.finish(self.facts["like"]["owner"])
        found = self._side.count()
        if not found:
            raise DatabaseError("There is no table in %s." % file, "Restore from another backup.")
        differences = compare(expected, found) if expected else []
        if differences:
            raise DatabaseError(
                "%s, loaded, differs from its manifest: %s." % (file, _told(differences)),
                "Restore from another set.",
                differences=differences,
            )
        return found

    def swap(self):
        """Make the staged data the live one."""
        self._side.swap()

    def is_swapped(self):
        """Tell whether the staged database is the live one."""
        return self._awaited_state() == SWAPPED

    def swap_back(self):
        """Make the previous data the live one."""
        self._side.swap_back()

    def verify(self, staged):
        """Count the live rows and return them; raise if tables that were staged are gone or empty.

        The app is at work already, so single rows may have come and gone.
        """
        found = self._database.describe()["tables"]
        lost = [item for item in compare(staged, found) if item["expected"] and not item["found"]]
        if lost:
            raise DatabaseError(
                "After the swap the database has lost rows: %s." % _told(lost), "What did the app do when it started?"
            )
        return found

    def discard(self):
        """Remove what is staged."""
        self._side.drop_side()

    def forget(self):
        """Remove the previous data."""
        self._awaited_state()
        self._side.drop_previous()

    def _awaited_state(self):
        """Return the state; a server that was started just now is waited for."""
        deadline = time.monotonic() + SERVER_TIMEOUT
        while True:
            try:
                return self._side.state()
            except EchoError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(SERVER_POLL)


class VolumePart:
    """A volume or bind-mounted folder; staged and previous data lie in a hidden folder of its root."""

    def __init__(self, unused_engine, tag, facts):
        self.component = facts["component"]
        self.facts = facts
        self._live = facts["live"]
        self._staging = ".echo-restore-%s/new" % tag
        self._previous = ".echo-restore-%s/old" % tag

    def check_plan(self):
        """Refuse what can't succeed, before anything is written."""
        if not os.path.isdir(self._live):
            raise SetError("The folder %s of the %s is not there." % (self._live, self.component), "Is it mounted?")

    def needs(self):
        """Return ``(path, bytes)``: where how much room is needed."""
        return self._live, self.facts.get("bytes_in") or _unpacked_size(self.facts["file"])

    def stage(self):
        """Unpack and check the archive; a failure leaves nothing."""
        exchange.discard(self._live, self._staging)
        unpack(
            self.facts["file"],
            os.path.join(self._live, self._staging),
            strip=root_of(self.facts["file"]),
            expected=dict((key, self.facts.get(key)) for key in ("sha256", "bytes_in", "members")),
            bytes_free=max(0, free_bytes(self._live) - RESERVE),
            like=self._live,
        )

    def swap(self):
        """Make the staged data the live one."""
        exchange.swap(self._live, self._staging, self._previous)

    def is_swapped(self):
        """Tell whether :meth:`swap` was begun and not undone."""
        return exchange.is_swapped(self._live, self._previous)

    def swap_back(self):
        """Make the previous data the live one."""
        exchange.swap_back(self._live, self._staging, self._previous)

    def verify(self, unused_staged):
        """Nothing is left to tell that unpacking didn't: renames don't change files."""

    def discard(self):
        """Remove what is staged."""
        exchange.discard(self._live, self._staging)

    def forget(self):
        """Remove the previous data."""
        exchange.discard(self._live, self._previous)


def _unpacked_size(path):
    """Return how large an archive is unpacked, by the last bytes of a gzip file (modulo 4 GiB), else its own size."""
    with open(path, "rb") as archive:
        if archive.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
            return os.path.getsize(path)
        archive.seek(-4, os.SEEK_END)
        return max(int.from_bytes(archive.read(4), "little"), os.path.getsize(path))


def _told(differences):
    words = ["%(table)s has %(found)s rows instead of %(expected)s" % item for item in differences[:SHOWN]]
    return ", ".join(words + ["and %d more" % (len(differences) - SHOWN)] * (len(differences) > SHOWN))
