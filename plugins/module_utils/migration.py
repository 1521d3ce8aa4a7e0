# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration as both hosts record it, so that never two live copies come of one.

Each host has a record of its own, on its disk before what it tells of is done. The old host
goes ``serving``, ``fencing``, ``fenced``, ``granted``, ``migrated``, or back by ``releasing``
to ``released``; the new one ``preparing``, ``live``, ``committed``, or ``abandoned``.

* The new app starts for its clients only in ``live``, and ``live`` takes a record of the old
  host that says ``granted``, which takes a stopped app.
* The old app starts again from ``fenced`` whenever it wants: nobody was granted anything. From
  ``granted`` it takes a record of the new host that says ``abandoned``, after which that host
  never goes ``live`` for this migration.

So whoever dies at whatever point, the two records tell which host may serve. Where only one
of them can be read and it says ``granted``, the answer is to wait for the other.

Between the modules of a migration nothing of ours lives on the old host, so a guard does: a
small process that releases it when a fence has stood longer than was agreed on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import time
import uuid

from ansible_collections.echo_music.ops.plugins.module_utils import migration_keys
from ansible_collections.echo_music.ops.plugins.module_utils import stack as echo_stack
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Gone
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.journal import FOLDER, NAME
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
from ansible_collections.echo_music.ops.plugins.module_utils.process import leave_behind
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained, read_small, replace_file, write_file
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import compare

FORMAT = "echo-migration/1"
SUFFIX = ".migration.json"
# On the new host: keys, the old host's key, the set with the database.
WORK = ".migrate"
ALIAS = "echo-migrate-old"
LIMIT = 4 * 1024 * 1024
LOCK_TIMEOUT, LOCK_POLL = 120, 0.2
STOP_TIMEOUT = 30
HEALTH_POLL = 0.2
LEASE = 1800
GUARD_POLL = 2
RUNNING = ("running", "restarting")
NEVER = "0001-01-01"
PEERS = {"source": "target", "target": "source"}

# What has been written to a database since its statistics began.
WRITTEN = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables;"


class MigrationError(EchoError):
    """A step of a migration that the two records don't allow, or that failed."""


def ensure_migration(engine, state, project, folder=FOLDER, check=False, **options):
    """Bring one host's part of a migration to a state; return the result of ``echo_migration``."""
    with Record(project, folder) as record:
        before = record.public()
        if not check:
            steps = Source if state in Source.STATES else Target
            details = getattr(steps(engine, record, options), Source.STATES.get(state) or Target.STATES[state])()
        else:
            details = None
        result = dict(changed=check or record.public() != before, migration=record.public())
        return dict(result, **(details or {}))


class Record:
    """What one host knows of the migration of one project; use it as a context manager.

    ``content`` is None, or ``{"id", "side", "project", "peer", "phase", "facts", "steps":
    [{"phase", "time"}]}``.
    """

    def __init__(self, project, folder=FOLDER):
        if not NAME.match(project):
            raise MigrationError("%.80r is not the name of a Compose project." % project)
        self.project = project
        self.path = os.path.join(folder, project + SUFFIX)
        self.content = None
        self._lock = None

    def __enter__(self):
        with explained("create", os.path.dirname(self.path)):
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        with explained("lock", self.path):
            self._lock = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._acquire()
            self.content = read(self.path)
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *unused):
        os.close(self._lock)
        self._lock = None

    @property
    def phase(self):
        """How far this host is, None without a migration."""
        return self.content["phase"] if self.content else None

    @property
    def facts(self):
        """What this host has to know later on."""
        return self.content["facts"]

    def begin(self, side, migration_id, peer, phase, **facts):
        """Start the record of a migration in place of an ended one."""
        self.content = dict(
            format=FORMAT, id=migration_id, side=side, project=self.project, peer=peer, phase=None, facts=facts, steps=[]
        )
        self.enter(phase)

    def enter(self, phase, **facts):
        """Bring the next phase down to the disk, before what it stands for is done."""
        self.facts.update(facts)
        if phase != self.phase:
            self.content["phase"] = phase
            self.content["steps"].append(dict(phase=phase, time=time.time()))
        replace_file(self.path, (json.dumps(self.content, sort_keys=True) + "\n").encode("utf-8"))

    def require(self, side, migration_id, *phases):
        """Raise ``MigrationError`` unless this host is on that side of the migration, in one of the phases."""
        if self.content is None or (self.content["id"], self.content["side"]) != (migration_id, side):
            raise MigrationError(
                "This host has no migration %s as its %s: %s." % (migration_id, side, told(self.content)),
                "Run the playbook again: it looks at both hosts first.",
            )
        if phases and self.phase not in phases:
            raise MigrationError(
                "The migration %s is %s here, not %s." % (migration_id, self.phase, " or ".join(phases)),
                "Run the playbook again: it looks at both hosts first.",
            )

    def public(self):
        """Return a copy of the record for the other side, None if there is none."""
        return json.loads(json.dumps(self.content))

    def _acquire(self):
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise MigrationError("Another step of a migration is at work here (%s)." % self.path, "Wait for its end.")
                time.sleep(LOCK_POLL)


def read(path):
    """Return a record, None without a file; what isn't one is refused."""
    if not os.path.lexists(path):
        return None
    try:
        content = json.loads(read_small(path, LIMIT).decode("utf-8"))
        keys = {"format", "id", "side", "project", "peer", "phase", "facts", "steps"}
        if not isinstance(content, dict) or content.get("format") != FORMAT or set(content) != keys:
            raise ValueError("it is not of the format %s" % FORMAT)
    except (ValueError, RecursionError) as error:
        raise MigrationError(
            "%s can't be understood: %s." % (path, error),
            "It tells which host may serve. Look at it, and move it away only if you know that no migration is under way.",
        )
    return content


def is_held_back(project, folder=FOLDER):
    """Tell whether the app of a project must not be started here: another host may serve."""
    record = read(os.path.join(folder, project + SUFFIX))
    held = {"source": ("fencing", "fenced", "granted", "migrated"), "target": ("preparing",)}
    return bool(record and record["phase"] in held[record["side"]])


def leave_stopped(project, name, folder=FOLDER):
    """Tell whether a container that a backup stopped is held back; its migration then knows that it ran."""
    if not is_held_back(project, folder):
        return False
    with Record(project, folder) as record:
        if not is_held_back(project, folder):
            return False
        if name in record.facts.get("containers", {}):
            record.facts["containers"][name]["ran"] = True
            record.enter(record.phase)
    return True


def told(record):
    """Say in a few words what a record tells."""
    if not record:
        return "it knows of none"
    return "it is the %s of %s, %s" % (record["side"], record["id"], record["phase"])


# -- the old host -------------------------------------------------------------------------------


class Source:
    """The host that is left. The methods are the states of the module ``echo_migration``."""

    STATES = {
        "serving": "open",
        "fenced": "fence",
        "granted": "grant",
        "released": "release",
        "migrated": "migrate",
        "retired": "retire",
    }

    def __init__(self, engine, record, options):
        self.engine = engine
        self.record = record
        self.options = options
        self._id = options.get("id")

    def open(self):
        """Begin: remember what runs here, and how it would be started again."""
        # The last two are those of a host that was migrated to, which may be left in turn.
        if self.record.phase not in (None, "serving", "released", "retired", "committed", "abandoned"):
            raise MigrationError(
                "A migration to %s is under way here: %s." % (self.record.content["peer"], told(self.record.content)),
                "Run the playbook for that pair: it ends it. Where the data was migrated, this host has nothing to serve.",
            )
        if self.record.phase == "serving" and self.record.content["id"] == self._id:
            return self._let_in()
        if self.record.phase == "serving":
            self._withdraw()
        containers = {}
        for role, container in self._containers().items():
            containers[container["name"]] = dict(
                role=role, policy=container["restart_policy"], ran=container["state"] in RUNNING
            )
        self.record.begin(
            "source",
            self._id or uuid.uuid4().hex[:8],
            self.options["peer"],
            "serving",
            containers=containers,
            login=self.options["login"],
        )
        self._let_in()
        return dict(owners=self._owners())

    def fence(self):
        """Stop the app, so that neither a crash nor a reboot brings it back."""
        self.record.require("source", self._id, "serving", "fencing", "fenced")
        began = time.time()
        self._note_running()
        self.record.enter("fencing", deadline=began + self.options["lease"], began=self.record.facts.get("began", began))
        start_guard(self.engine, self.record)
        for name in self._apps():
            self.engine.set_restart_policy(name, "no")
            self.engine.stop(name, timeout=self.options.get("stop_timeout") or STOP_TIMEOUT)
        self._require_stopped()
        self.record.enter("fenced")
        return dict(seconds=round(time.time() - began, 3))

    def grant(self):
        """Let the other host go live; from now on this one needs its word to serve again."""
        self.record.require("source", self._id, "fenced", "granted")
        self._require_stopped()
        self.record.enter("granted")

    def release(self, timeout=None):
        """Serve again, as before the migration."""
        if self.record.phase in ("released", None):
            return
        self.record.require("source", self._id)
        if self.record.phase in ("granted", "migrated"):
            self._require_abandoned()
        elif self.record.phase == "retired":
            raise MigrationError("The data of this host was retired.", "Restore a backup set: echo_restore.")
        self.record.enter("releasing")
        self._let_run()
        self._withdraw()
        self.record.enter("released")

    def migrate(self):
        """Stay stopped and complete, marked with where the data went."""
        self.record.require("source", self._id, "granted", "migrated")
        peer = self.options["other"]
        if not _speaks_for(peer, "target", self._id, "live", "committed"):
            raise MigrationError("The new host doesn't serve: %s." % told(peer), "Run the playbook again.")
        self.record.enter("migrated", at=self.record.facts.get("at") or time.time(), to=self.record.content["peer"])
        for name in self._known():
            self.engine.set_restart_policy(name, "no")
            self.engine.stop(name, timeout=STOP_TIMEOUT)
        self._withdraw()

    def retire(self):
        """Note that the data was removed; who does that asks for this first."""
        self.record.require("source", self._id, "migrated", "retired")
        self._require_stopped()
        self.record.enter("retired")

    def _require_abandoned(self):
        peer = self.options.get("other")
        if self.options.get("force") and self.record.phase == "granted":
            return
        if not _speaks_for(peer, "target", self._id, "abandoned"):
            raise MigrationError(
                "This host granted %s to serve, and that may be what it does: %s." % (self.record.content["peer"], told(peer)),
                "Bring that host back and run the playbook again. Only if it is gone for good, force the release "
                "(echo_migrate_target_lost).",
            )

    def _require_stopped(self):
        for name in self._apps():
            state = self.engine.container(name)["state"]
            if state in RUNNING + ("paused",):
                raise MigrationError("The container %s is %s." % (name, state), "Who started it? Stop it, and try again.")

    def _note_running(self):
        """A backup may have had the app stopped when the migration began, and may have it paused now."""
        for name in self._apps():
            if self.engine.container(name)["state"] in RUNNING + ("paused",):
                self.record.facts["containers"][name]["ran"] = True

    def _let_run(self):
        """Bring the containers back to how they were; the app last."""
        known = self.record.facts["containers"]
        for name in sorted(self._known(), key=lambda item: known[item]["role"] == "app"):
            state = self.engine.container(name)["state"]
            if known[name]["ran"] and state == "paused":
                self.engine.unpause(name)
            elif known[name]["ran"] and state not in RUNNING:
                self.engine.start(name)
            self.engine.set_restart_policy(name, known[name]["policy"])
        for name in self._apps():
            if known[name]["ran"]:
                await_health(self.engine, name, self.options.get("health_timeout") or 360)

    def _let_in(self):
        """Let the keys of the new host in, now that the record tells whose they are."""
        if self.options.get("keys"):
            migration_keys.authorize(
                self.record.facts["login"], self._id, self.options["keys"], self.options.get("key_from") or ""
            )

    def _owners(self):
        """Whose the folders of Echo's data are: ``{role: [uid, gid, mode]}``."""
        owners = {}
        for part, container in self._containers().items():
            for mount in container["mounts"]:
                role = echo_stack.MOUNTS[part].get(mount["destination"])
                if role and os.path.isdir(mount["source"]):
                    status = os.stat(mount["source"])
                    owners[role] = [status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)]
        return owners

    def _withdraw(self):
        migration_keys.withdraw(self.record.facts["login"], self.record.content["id"])

    def _containers(self):
        return echo_stack.find_containers(
            self.engine, self.record.project, self.options.get("database_container"), self.options.get("app_container")
        )

    def _known(self):
        """The recorded containers that are still there."""
        there = set(container["name"] for container in self.engine.containers())
        return [name for name in self.record.facts["containers"] if name in there]

    def _apps(self):
        return [name for name in self._known() if self.record.facts["containers"][name]["role"] == "app"]


# -- the new host -------------------------------------------------------------------------------


class Target:
    """The host that takes over. The methods are the states of the module ``echo_migration``."""

    STATES = {"preparing": "open", "live": "live", "committed": "commit", "abandoned": "abandon"}

    def __init__(self, engine, record, options):
        self.engine = engine
        self.record = record
        self.options = options
        self._id = options.get("id")

    def open(self):
        """Begin: what is put together here serves nobody yet."""
        if self.record.phase not in (None, "preparing", "abandoned", "released", "retired"):
            raise MigrationError(
                "A migration is under way here already: %s." % told(self.record.content),
                "Run the playbook for that pair: it ends it.",
            )
        folders = self.options.get("folders") or []
        for folder in folders:
            if is_used(folder["path"]):
                raise MigrationError("%s is not an empty folder." % folder["path"], "Whose is what lies there? Move it away.")
        paths = [folder["path"] for folder in folders]
        self.record.begin("target", self._id, self.options["peer"], "preparing", folders=paths)
        for folder in folders:
            _make_folder(**folder)
        made = migration_keys.make(os.path.join(self._work, "keys"), self._id, self.options.get("key_names") or [])
        known = ["%s %s\n" % (ALIAS, key) for key in self.options.get("host_keys") or []]
        write_file(os.path.join(self._work, "known_hosts"), "".join(known).encode("ascii"))
        return dict(public_keys=made, work=self._work, alias=ALIAS)

    def live(self):
        """Serve, once the old host has said that it doesn't; return what was found."""
        self.record.require("target", self._id, "preparing", "live", "committed")
        if not _speaks_for(self.options["other"], "source", self._id, "granted", "migrated"):
            raise MigrationError(
                "The old host has not granted this one to serve: %s." % told(self.options["other"]),
                "Run the playbook again: it looks at both hosts first.",
            )
        app, server = self._parts()
        database = Database(self.engine, server)
        expected = self.options.get("tables") or self.record.facts.get("tables")
        began = time.time()
        first = self.record.phase == "preparing"
        if first:
            if self.engine.container(app)["state"] in RUNNING:
                raise MigrationError("The new app %s runs before its time." % app, "Who started it? Run the playbook again.")
            self.record.enter("live", tables=expected, written=_written(database), app=app, database=server)
        if self.engine.container(app)["state"] not in RUNNING:
            self.engine.start(app)
        await_health(self.engine, app, self.options["health_timeout"])
        seconds = time.time() - began
        found = database.describe()["tables"]
        # An earlier run may have left it serving: what clients deleted since is not lost.
        if first or _written(database) == self.record.facts["written"]:
            _require_rows(expected, found)
        return dict(tables=found, seconds=round(seconds, 3), healthy_at=began + seconds)

    def commit(self):
        """The new host serves for good."""
        self.record.require("target", self._id, "live", "committed")
        self.record.enter("committed", at=self.record.facts.get("at") or time.time())
        self._remove_work()

    def abandon(self):
        """Never go live for this migration; ``kept`` tells whether clients may have written here."""
        if self.record.phase in (None, "abandoned"):
            return dict(kept=bool(self.record.content and self.record.facts.get("kept")))
        self.record.require("target", self._id, "preparing", "live")
        kept = False
        if self.record.phase == "live":
            self._stop_all_but_database()
            kept = self._may_hold_writes()
        self.record.enter("abandoned", kept=kept)
        self._remove_work()
        return dict(kept=kept)

    def _stop_all_but_database(self):
        """Keep the stack from serving, whatever is left of it and whatever its app is called by now."""
        for container in self.engine.containers():
            if container["project"] == self.record.project and container["name"] != self.record.facts["database"]:
                with contextlib.suppress(Gone):
                    self.engine.set_restart_policy(container["name"], "no")
                    self.engine.stop(container["name"], timeout=STOP_TIMEOUT)

    def _may_hold_writes(self):
        """Tell whether clients may have written here; a database that can't be asked counts as written to."""
        facts = self.record.facts
        try:
            with contextlib.suppress(Gone):
                if (self.engine.container(facts["app"])["started_at"] or NEVER).startswith(NEVER):
                    return False
            return _written(Database(self.engine, facts["database"])) != facts["written"]
        except EchoError:
            return True

    @property
    def _work(self):
        return self.record.path[: -len(SUFFIX)] + WORK

    def _remove_work(self):
        with explained("remove", self._work), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._work)

    def _parts(self):
        found = echo_stack.find_containers(self.engine, self.record.project)
        if "app" not in found:
            raise StackError("The project %s has no container of the app." % self.record.project, "Bring it up again.")
        return found["app"]["name"], found["database"]["name"]


def _speaks_for(record, side, migration_id, *phases):
    """Tell whether a record of the other host is of this migration, in one of the phases."""
    return bool(
        record
        and record.get("format") == FORMAT
        and (record.get("side"), record.get("id")) == (side, migration_id)
        and record.get("phase") in phases
    )


def is_used(folder):
    """Tell whether something lies where a new stack will keep its data."""
    if not os.path.isdir(folder):
        return os.path.lexists(folder)
    with explained("read", folder), os.scandir(folder) as entries:
        return next(entries, None) is not None


def _make_folder(path, owner):
    with explained("create", path):
        os.makedirs(path, exist_ok=True)
        if owner:
            os.chown(path, *owner[:2])
            os.chmod(path, owner[2])


def _written(database):
    return int(database.query(WRITTEN)[0])


def _require_rows(expected, found):
    lost = [item for item in compare(expected, found) if (item["found"] or 0) < (item["expected"] or 0)]
    if lost:
        raise MigrationError("After its start the new app has lost rows: %s." % lost[:5], differences=lost)


def await_health(engine, name, timeout):
    """Wait until a container runs and is healthy, or has no health to tell."""
    deadline = time.monotonic() + timeout
    while True:
        found = engine.container(name)
        if found["state"] == "running" and found["health"] in (None, "healthy"):
            return
        if found["state"] not in RUNNING:
            raise StackError(
                "The container %s stopped: its state is %s." % (name, found["state"]),
                "'docker logs %s' has its side." % name,
            )
        if time.monotonic() > deadline:
            raise StackError(
                "The container %s didn't become healthy within %d s: its health is %s." % (name, timeout, found["health"]),
                "'docker logs %s' has its side." % name,
            )
        time.sleep(HEALTH_POLL)


# -- the guard ----------------------------------------------------------------------------------


def start_guard(engine, record):
    """Leave a process behind that releases this host when the fence has stood too long; return at once."""
    folder, migration_id = os.path.dirname(record.path), record.content["id"]
    leave_behind(lambda: guard(engine.anew(), record.project, folder, migration_id))


def guard(engine, project, folder, migration_id, poll=GUARD_POLL):
    """Release the host when nobody did anything else with the fence until its time was over."""
    while True:
        try:
            content = read(os.path.join(folder, project + SUFFIX))
            if not content or content["id"] != migration_id or content["phase"] not in ("fencing", "fenced", "releasing"):
                return
            if time.time() > content["facts"]["deadline"]:
                with Record(project, folder) as record:
                    if record.phase in ("fencing", "fenced", "releasing"):
                        Source(engine, record, dict(id=migration_id)).release()
                return
        except (EchoError, OSError):
            # The engine or the disk may be back at the next look; the app still waits for it.
            pass
        time.sleep(poll)
