# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a restore: a database, a volume, a server; each staged beside the live one, swapped, swapped back.

A part is made anew from the facts in the journal by every run. What state it is in, the disk
and the server tell; so every method but ``stage`` may be called again, or for nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.echo_music.ops.plugins.module_utils import exchange
from ansible_collections.echo_music.ops.plugins.module_utils.codec import GZIP_MAGIC
from ansible_collections.echo_music.ops.plugins.module_utils.dump_file import require_loadable
from ansible_collections.echo_music.ops.plugins.module_utils.dump_privileges import grant
from ansible_collections.echo_music.ops.plugins.module_utils.engine import mounted_by_engine
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, EchoError, SetError
from ansible_collections.echo_music.ops.plugins.module_utils.extract import root_of, sync_tree, unpack
from ansible_collections.echo_music.ops.plugins.module_utils.live_database import await_server
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
from ansible_collections.echo_music.ops.plugins.module_utils.progress import phase, seldom
from ansible_collections.echo_music.ops.plugins.module_utils.restore_layout import stored_paths
from ansible_collections.echo_music.ops.plugins.module_utils.server_roles import ServerRoles
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained, free_bytes, sha256_of
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import (
    SIZE_EVERY,
    SWAPPED,
    SideDatabase,
    Superuser,
    compare,
)
from ansible_collections.echo_music.ops.plugins.module_utils.side_rows import SideRows, only

# Kept free of a restore: a live database beside it must go on writing.
RESERVE = 256 * 1024 * 1024
# A database with its indexes, by the size of a dump that doesn't tell it.
GROWTH = {"custom": 8, "sql.gz": 8, "sql": 2}
# What a new server takes before it holds anything.
EMPTY_SERVER = 64 * 1024 * 1024
# Without them, Compose complains of a volume that it didn't create.
VOLUME_LABELS = ("com.docker.compose.project", "com.docker.compose.volume")
SERVER_TIMEOUT = 60
SERVER_POLL = 0.5
SHOWN = 5


def make_part(engine, tag, facts):
    """Return the part that the facts describe, of the restore ``tag``."""
    if facts["component"] != "database":
        return VolumePart(engine, tag, facts)
    return (ServerPart if facts.get("broken") else DatabasePart)(engine, tag, facts)


class DatabasePart:
    """A database; staged and previous data are databases of other names."""

    # To remove the previous data.
    needs_server = True

    def __init__(self, engine, tag, facts):
        self.component = facts["component"]
        self.facts = facts
        self._database = Database(engine, facts["container"], name=facts["name"])
        self._tag = tag

    @property
    def _side(self):
        """Made when it is needed: a server that sleeps can't be asked for its user."""
        chosen = self.facts.get("chosen")
        return SideRows(self._database, self._tag, chosen) if chosen else SideDatabase(self._database, self._tag)

    def check_plan(self):
        """Refuse what can't succeed, before anything is written."""
        # A server that sleeps tells its version once it is started.
        if self.facts["like"]["server_version_num"]:
            require_loadable(self.facts["file"], self.facts["kind"], self.facts["like"]["server_version_num"])

    def needs(self):
        """Return ``(path, bytes)``: where how much room is needed."""
        recorded = self.facts["recorded"]
        size = recorded["bytes"] if recorded else self.facts["bytes"] * GROWTH[self.facts["kind"]]
        return self.facts["folder"], size

    def stage(self):
        """Load and count the dump; return the rows of its tables."""
        ServerRoles(self._database, self._tag).create(self.facts.get("roles"))
        return _load(self._side, self.facts, self.facts["like"])

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
        if self.facts.get("chosen"):
            return _verify(self._database, staged, self.facts["chosen"])
        return _verify_whole(self._database, staged)

    def discard(self):
        """Remove what is staged, the roles that were created for it, and what a load left that was killed."""
        self._database.engine.remove_stale_helpers()
        self._side.drop_side()
        ServerRoles(self._database, self._tag).drop(self.facts.get("roles"))

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
    """A volume or bind-mounted folder; staged and previous data lie in a hidden folder of its root.

    With ``places``, what has one comes into the volume, and the rest of that stays as it is.
    Then ``names``, which staging finds out, are those of the root that take part.
    """

    needs_server = False

    def __init__(self, engine, tag, facts):
        self._engine = engine
        self.component = facts["component"]
        self.facts = facts
        self._live = facts["live"]
        self._tag = tag
        # Several parts may have their places in one volume.
        own = facts["component"] + "-" if facts.get("places") else ""
        self._staging = ".echo-restore-%s/%snew" % (tag, own)
        self._previous = ".echo-restore-%s/%sold" % (tag, own)

    def check_plan(self):
        """Refuse what can't succeed, before anything is written."""
        if not os.path.isdir(self._live) and not self.facts.get("volume"):
            raise SetError("The folder %s of the %s is not there." % (self._live, self.component), "Is it mounted?")
        if mounted_by_engine(self._live) or self._has_own_driver():
            raise SetError(
                "The volume %s of the %s is mounted by the Engine (driver, driver_opts) only while a container uses it, and "
                "the app is stopped while data is swapped." % (self.facts["volume"], self.component),
                "Mount it on the host, and the folder into the container.",
            )

    def needs(self):
        """Return ``(path, bytes)``: where how much room is needed."""
        room = self.facts.get("room") or self.facts.get("bytes_in")
        return self._live, room or _unpacked_size(self.facts["file"])

    def stage(self):
        """Unpack and check the archive; a failure leaves nothing."""
        staging = os.path.join(self._live, self._staging)
        self._require_volume()
        exchange.discard(self._live, self._staging)
        unpacked = unpack(
            self.facts["file"],
            staging,
            strip=root_of(self.facts["file"]),
            expected=dict((key, self.facts.get(key)) for key in ("sha256", "bytes_in", "members")),
            bytes_free=max(0, free_bytes(self._live) - RESERVE),
            like=self._live,
            places=self.facts.get("places"),
            # A set of ours holds what was in a volume, and must come back whatever that was.
            contain=bool(self.facts.get("sha256")),
        )
        self.facts["names"] = sorted(os.listdir(staging)) if self.facts.get("places") else None
        remarks = unpacked["remarks"]
        homeless = [name for name in unpacked["unplaced"] if name not in self.facts.get("elsewhere", [])]
        if homeless:
            remarks.append("left in the backup, without a place here: %s" % ", ".join(homeless))
        self.facts["remarks"] = ["%s: %s." % (self.facts["file"], remark) for remark in remarks]

    def swap(self):
        """Make the staged data the live one."""
        exchange.swap(self._live, self._staging, self._previous, self._names())

    def is_swapped(self):
        """Tell whether :meth:`swap` was begun and not undone."""
        return exchange.is_swapped(self._live, self._previous)

    def swap_back(self):
        """Make the previous data the live one."""
        exchange.swap_back(self._live, self._staging, self._previous, self._names())

    def verify(self, unused_staged):
        """Nothing is left to tell that unpacking didn't: renames don't change files."""

    def discard(self):
        """Remove what is staged."""
        exchange.discard(self._live, self._staging)

    def forget(self):
        """Remove the previous data."""
        exchange.discard(self._live, self._previous)

    def _require_volume(self):
        """Have the volume and its folder be there; one of the host's folders is for its owner to mount."""
        if os.path.isdir(self._live):
            return
        if self._engine and self.facts["volume"] not in [volume["name"] for volume in self._engine.volumes()]:
            labels = dict(zip(VOLUME_LABELS, (self.facts["project"], self.facts["volume"])))
            self._engine.create_volume(self.facts["volume"], labels if self.facts["project"] else {})
        with explained("create", self._live):
            os.makedirs(self._live, mode=0o755, exist_ok=True)

    def _has_own_driver(self):
        """Tell whether a plugin mounts the volume, which leaves no note of it on the host."""
        volumes = self._engine.volumes() if self._engine and self.facts.get("volume") else []
        return any(volume["name"] == self.facts["volume"] and volume["driver"] != "local" for volume in volumes)

    def _names(self):
        """Return the names that take part, None for all; without places nothing else would be right."""
        return self.facts["names"] if self.facts.get("places") else None


class ServerPart(VolumePart):
    """A server that can't run any more: its data folder, made anew by a throwaway server of the same image.

    The folder is exchanged as a volume is, so the damaged one stays as it was found.
    """

    def check_plan(self):
        """Refuse what can't succeed, before anything is written."""
        if self.facts.get("chosen"):
            raise DatabaseError("The database server doesn't run, so no single tables can be restored.", self.facts["broken"])
        super(ServerPart, self).check_plan()

    def needs(self):
        """Return ``(path, bytes)``: where how much room is needed."""
        return self._live, DatabasePart.needs(self)[1] + EMPTY_SERVER

    def stage(self):
        """Load and count the dump; return the rows of its tables."""
        staging = os.path.join(self._live, self._staging)
        self._require_volume()
        self.discard()
        exchange.create_staging(staging, self._live)
        try:
            with self._throwaway(staging) as database:
                like = database.describe(tables=False)
                require_loadable(self.facts["file"], self.facts["kind"], like["server_version_num"])
                if self.facts["recorded"]:
                    known = ("encoding", "collate", "ctype", "extensions")
                    like.update((key, self.facts["recorded"][key]) for key in known)
                ServerRoles(database, self._tag).create(self.facts.get("roles"))
                side = SideDatabase(database)
                found = _load(side, self.facts, dict(like, owner=database.user))
                side.swap()
                side.drop_previous()
            sync_tree(staging)
        except BaseException:
            exchange.remove_folder(staging)
            raise
        return found

    def verify(self, staged):
        """Count the live rows and return them; raise if tables that were staged are gone or empty."""
        return _verify_whole(Database(self._engine, self.facts["container"], name=self.facts["name"]), staged)

    def discard(self):
        """Remove what is staged, and the server of a run that was killed."""
        self._engine.remove_stale_helpers()
        super(ServerPart, self).discard()

    @contextlib.contextmanager
    def _throwaway(self, staging):
        """Run a server like the live one on a staging folder, and yield its database; it ends in good order."""
        live = self._engine.container(self.facts["container"])
        binds = {staging: {"bind": self.facts["destination"], "mode": "rw"}}
        for mount in live["mounts"]:
            # Secrets and scripts of the first start, as far as there are any.
            if mount["destination"] != self.facts["destination"]:
                binds[mount["name"] or mount["source"]] = {"bind": mount["destination"], "mode": "ro"}
        server = self._engine.helper(live["image_id"], ["postgres"], live["env"], binds, network_mode="bridge")
        with server, ThreadPoolExecutor(max_workers=1) as threads, contextlib.ExitStack() as on_error:
            # What it says must be read, or it waits for ever to say more.
            ended = threads.submit(server.finish)
            on_error.callback(server.__exit__, None, None, None)
            await_server(self._engine, server.container)
            yield Database(self._engine, server.container, name=self.facts["name"])
            self._engine.stop(server.container, timeout=SERVER_TIMEOUT)
            on_error.pop_all()
            ended.result()


def _load(side, facts, like):
    """Load a dump into a side database and count it; return the rows of its tables."""
    file, expected = facts["file"], facts["tables"]
    if facts.get("sha256") and sha256_of(file)[0] != facts["sha256"]:
        raise DatabaseError("%s is not the file that its manifest tells of." % file, "Use another copy of this set.")
    side.create(like)
    total = facts["recorded"]["bytes"] if facts["recorded"] and not facts.get("chosen") else None
    with phase(os.path.basename(file), total, seldom(SIZE_EVERY, side.size)):
        privileges = side.load(file, facts["kind"])
    found = side.count()
    if not found:
        raise DatabaseError("There is no table in %s." % file, "Restore from another backup.")
    differences = compare(expected, found) if expected else []
    if differences:
        raise DatabaseError(
            "%s, loaded, differs from its manifest: %s." % (file, _told(differences)),
            "Restore from another set.",
            differences=differences,
        )
    defaults, remarks = [], []
    # Rows of single tables come into tables whose privileges stay.
    if not facts.get("chosen"):
        defaults, remarks = grant(side, file, privileges, like["owner"], (facts["recorded"] or {}).get("owner"))
    side.finish(like["owner"], *defaults)
    facts["remarks"] = ["%s: %s." % (file, remark) for remark in remarks] + stored_paths(side, facts.get("moved"))
    return found


def _verify(database, staged, chosen=None):
    """Return the live rows; raise if tables that were staged are gone or empty."""
    found = only(database.describe()["tables"], chosen)
    lost = [item for item in compare(staged, found) if item["expected"] and not item["found"]]
    if lost:
        raise DatabaseError(
            "After the swap the database has lost rows: %s." % _told(lost), "What did the app do when it started?"
        )
    return found


def _verify_whole(database, staged):
    """Do the same for a database of which all is new, and have it analyzed; the app needn't wait for that."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        analyzed = beside.submit(Superuser(database, database.name).analyze)
        found = _verify(database, staged)
        analyzed.result()
    return found


def _unpacked_size(path):
    """Return how large an archive is unpacked, by the last bytes of a gzip file (modulo 4 GiB), else its own size."""
    with explained("read", path), open(path, "rb") as archive:
        size = os.path.getsize(path)
        if archive.read(len(GZIP_MAGIC)) != GZIP_MAGIC:
            return size
        # One that was cut short may not even have them.
        archive.seek(max(0, size - 4))
        return max(int.from_bytes(archive.read(4), "little"), size)


def _told(differences):
    words = ["%(table)s has %(found)s rows instead of %(expected)s" % item for item in differences[:SHOWN]]
    return ", ".join(words + ["and %d more" % (len(differences) - SHOWN)] * (len(differences) > SHOWN))
