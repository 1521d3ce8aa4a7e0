# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore: staged, activated, committed, or rolled back; and how the next run ends one that broke off.

The new data is put together and checked beside the live data. Then the app stops, names are
swapped, and the app starts on the new data. Until the commit, rolling back is the swap the
other way round; after it, the old data stays for ``keep_previous`` seconds.

Each step that changes live data is in the journal before it is taken, and each is told from
the disk, so that it can be repeated: a restore that broke off before its activation was
complete goes back, one that broke off after it goes forward.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.echo_music.ops.plugins.module_utils import stack as echo_stack
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Gone
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError, SetError, SpaceError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.journal import FOLDER, Journal, JournalError
from ansible_collections.echo_music.ops.plugins.module_utils.live_database import (
    ABOUT,
    BROKEN,
    DAMAGED,
    MISSING,
    STOPPED,
    ServerBroken,
    await_server,
    look_at_database,
)
from ansible_collections.echo_music.ops.plugins.module_utils.progress import phase
from ansible_collections.echo_music.ops.plugins.module_utils.restore_layout import moved_folders, moves, place
from ansible_collections.echo_music.ops.plugins.module_utils.migration import is_held_back
from ansible_collections.echo_music.ops.plugins.module_utils.restore_parts import RESERVE, make_part
from ansible_collections.echo_music.ops.plugins.module_utils.restore_source import resolve
from ansible_collections.echo_music.ops.plugins.module_utils.server_roles import plan_roles
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import free_bytes, human, nearest, timestamp
from ansible_collections.echo_music.ops.plugins.module_utils.set_lock import holder, read_lock
from ansible_collections.echo_music.ops.plugins.module_utils.set_use import reading
from ansible_collections.echo_music.ops.plugins.module_utils.side_rows import choose, full_name, only

KEEP_PREVIOUS = 24 * 60 * 60
HEALTH_TIMEOUT = 360
HEALTH_POLL = 0.2
RUNNING = ("running", "restarting")
ALWAYS = "always"
PROBLEMS = {
    MISSING: "The live database is gone, and is made anew. %s",
    DAMAGED: "The live database is damaged. %s",
    STOPPED: "The database server is started for the restore. %s",
    BROKEN: "The database server can't run: all of its data is put aside, and a new one takes its place. %s",
}
# Where a restore rests until the next call; one that is found anywhere else broke off.
REST = "rest"
# In their order; a restore rests in one of the first two.
STATES = ("staged", "activated", "committed")


def ensure_restored(
    engine,
    state="committed",
    source=None,
    root=None,
    components=None,
    tables=None,
    keep_previous=KEEP_PREVIOUS,
    health_timeout=HEALTH_TIMEOUT,
    start=False,
    check=False,
    folder=FOLDER,
    **where
):
    """Bring a stack to the state; return the result of the module ``echo_restore``.

    ``tables`` are those whose rows alone are restored, with all else of the database left as it
    is. ``where`` goes to ``discover``. What an earlier run left half done is ended first. With
    ``start`` the whole stack runs once the new data is live, whatever ran before.
    """
    if tables and not components:
        components = ["database"]
    stack = echo_stack.discover(engine, **where)
    journal = Journal(stack["project"] or "echo", folder)
    if check:
        return _predict(engine, stack, journal, state, source, root, components, tables, keep_previous)
    with journal:
        restore = Restore(engine, journal, stack, health_timeout)
        reconciled = restore.reconcile()
        expired = any([restore.expire(state, keep_previous), restore.pay()])
        result = dict(_to_state(restore, state, source, root, components, tables, keep_previous, start), reconciled=reconciled)
        result["changed"] = result["changed"] or reconciled is not None or expired
        return result


def _to_state(restore, state, source, root, components, tables, keep_previous, start):
    operation, kept = restore.journal.operation, restore.journal.kept
    if state == "reconciled":
        return _result(False, state, operation or kept, kept)
    require_no_backup(root, restore.stack)
    if state == "rolled_back":
        return restore.roll_back()
    if operation is None:
        found = resolve(source, root, components)
        with reading(found["path"]), restore.server(found) as broken:
            restore.stage(plan(restore.engine, restore.stack, found, tables, broken), keep_previous, start)
    else:
        _require_source(operation, source, root, components, tables)
        operation["facts"]["keep_previous"] = keep_previous
    return restore.advance(state, changed=operation is None)


def _predict(engine, stack, journal, state, source, root, components, tables, keep_previous):
    journal.look()
    told = dict(reconciled=_foresee_reconcile(journal))
    restore = Restore(engine, journal, stack)
    expires = restore.is_over(state, keep_previous)
    operation, kept = journal.operation, None if expires else journal.kept
    goes = expires or restore.can_pay()
    if state == "reconciled":
        return dict(_result(goes or told["reconciled"] is not None, state, operation or kept, kept), **told)
    require_no_backup(root, stack)
    if state == "rolled_back":
        return dict(_result(True, state, _require_operation(operation or kept)), **told)
    if operation is None:
        found = resolve(source, root, components)
        planned = plan(engine, stack, found, tables, restore.look_at_server(found))
        return dict(_result(True, state, dict(id=None, facts=planned)), **told)
    _require_source(operation, source, root, components, tables)
    reached = max(state, resting(operation), key=STATES.index)
    return dict(_result(goes or reached != resting(operation), reached, operation), **told)


def _foresee_reconcile(journal):
    """Have a journal that is only looked at tell what it would once it is reconciled; return what that returns."""
    operation, told = journal.operation, broken_off(journal.operation)
    if told:
        journal.operation = None
        if told["direction"] == "forward":
            journal.kept = _kept(operation)
        elif journal.kept and journal.kept["id"] == operation["id"]:
            journal.kept = None
    return told


def _require_source(operation, source, root, components, tables):
    """Raise ``JournalError`` unless a source, if one is named, and what is wanted of it are those of the restore that rests."""
    if source is None:
        return
    found, parts = resolve(source, root, components), operation["facts"]["parts"]
    chosen = sorted(sum((part.get("chosen") or [] for part in parts), []))
    if (
        found["path"] != operation["facts"]["source"]["path"]
        or (components and set(found["components"]) != set(part["component"] for part in parts))
        or (tables and sorted(set(map(full_name, tables))) != chosen)
    ):
        raise JournalError(
            "A restore of %s rests here, %s; it is about %s."
            % (
                operation["facts"]["source"]["id"],
                resting(operation),
                ", ".join(chosen or [part["component"] for part in parts]),
            ),
            "End it first: state=committed without a source, or state=rolled_back.",
        )


def require_no_backup(root, stack):
    """Raise ``SetError`` while a set of this stack is being made in the root."""
    record = read_lock(root) if root and os.path.isdir(root) else None
    held = holder(root, record)
    # A record that can't be understood may be of any stack.
    if held and record["stack"].get("project", stack["project"]) == stack["project"]:
        raise SetError(
            "The backup %s of this Echo is under way in %s; its last sign of life was at %s."
            % (held["id"], root, held["last_sign_of_life"]),
            "Wait for its end. If it is dead, this works %s." % held["free"],
            under_way=held,
        )


# -- the plan -----------------------------------------------------------------------------------


def plan(engine, stack, found, tables=None, broken=None):
    """Return what a restore of a resolved source would overwrite, and with what; change nothing.

    Raises ``EchoError`` for whatever would stop the restore, as far as that shows beforehand.
    """
    if not engine.is_local():
        raise StackError(
            "The files of the Docker Engine at %s can't be reached." % engine.host,
            "Restore on the engine's own host, as root (become: true).",
        )
    app = stack["containers"].get("app")
    if app and app["state"] == "paused":
        raise StackError(
            "The container %s is paused." % app["name"], "'docker unpause %s' lets it go on, then try again." % app["name"]
        )
    live = echo_stack.describe(engine, stack)
    warnings = ["There is no file of %s in %s." % (name, found["path"]) for name in found["missing"]]
    if "database" in found["components"]:
        live["database"] = look_at_database(engine, live["database"], found["database"], broken)
        if live["database"]["problem"]:
            warnings.append(PROBLEMS[live["database"]["state"]] % live["database"]["problem"])
    if tables:
        chosen = choose(tables, live["database"].get("tables"), found)
        live["database"] = dict(live["database"], tables=only(live["database"]["tables"], chosen))
        found = dict(found, tables=only(found["tables"], chosen), chosen=chosen)
    elif "database" in found["components"]:
        found = dict(found, roles=plan_roles(engine, live["database"], found))
        if found["roles"]:
            warnings += ["%s: %s." % (found["roles"]["file"], remark) for remark in found["roles"].pop("remarks")]
    placed = place(found["components"], live)
    found = dict(found, moved=moved_folders(placed))
    parts, needs = [], []
    for component, source in placed.items():
        part = make_part(engine, None, part_facts(component, source, found, live))
        part.check_plan()
        parts.append(part.facts)
        needs.append(part.needs())
    require_space(needs)
    return dict(
        source=dict((key, found[key]) for key in ("origin", "id", "path", "time")),
        parts=parts,
        before=live["database"]["tables"] if "database" in found["components"] else None,
        expected=found["tables"],
        live=_live(live, placed),
        warnings=warnings,
    )


def part_facts(component, source, found, live):
    """Return what a part must know, in JSON types, for the journal keeps it."""
    if component == "database":
        database, recorded = live["database"], found["database"]
        like = dict((key, database[key]) for key in ABOUT)
        like["extensions"] = (recorded or database)["extensions"]
        where = dict(container=database["container"], name=database["name"], like=like, recorded=recorded)
        if database["state"] == BROKEN:
            volume = echo_stack.volume_of(live, "database")
            where.update(broken=database["problem"], live=volume["source"], volume=volume["name"])
            where.update(project=live["project"], destination=volume["destination"])
        where.update(folder=echo_stack.volume_of(live, "database")["source"], chosen=found.get("chosen"), moved=found["moved"])
        where.update(roles=found.get("roles"))
    else:
        volume = echo_stack.volume_of(live, source["role"])
        where = dict(live=volume["source"], volume=volume["name"], container=volume["container"], project=live["project"])
    return dict(source, component=component, tables=found["tables"], **where)


def require_space(needs):
    """Raise ``SpaceError`` unless ``[(path, bytes)]`` fit beside the live data, on every file system."""
    needed = {}
    for path, size in needs:
        path = nearest(path)
        device = os.stat(path).st_dev
        unused_path, before = needed.get(device, (path, 0))
        needed[device] = (path, before + size)
    for path, size in needed.values():
        free = free_bytes(path)
        if size + RESERVE > free:
            raise SpaceError(
                "The restore needs %s beside the live data at %s, and %s are free." % (human(size), path, human(free)),
                "Make room there; state=reconciled with keep_previous=0 drops what the last restore kept.",
            )


def diff(planned):
    """Return both sides of a plan as diff mode shows them."""
    comes = dict(
        (
            part["component"],
            dict(
                file=part["file"],
                bytes=part["bytes"],
                time=planned["source"]["time"],
                tables=planned["expected"] if part["component"] == "database" else None,
                roles=_roles([part]),
                places=moves(part),
            ),
        )
        for part in planned["parts"]
    )
    return dict(before=_text(planned["live"]), after=_text(comes))


def _live(live, placed):
    """What the restore overwrites."""
    shown = {}
    for component, source in placed.items():
        if component == "database":
            shown[component] = dict((key, live["database"][key]) for key in ("container", "name", "bytes", "tables"))
        else:
            volume = echo_stack.volume_of(live, source["role"])
            shown[component] = dict((key, volume[key]) for key in ("source", "bytes", "files"))
    return shown


def _text(value):
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


# -- the restore --------------------------------------------------------------------------------


class Restore:
    """The restore that a journal tells of, on the stack that it is for."""

    def __init__(self, engine, journal, stack, health_timeout=HEALTH_TIMEOUT):
        self.engine = engine
        self.journal = journal
        self.stack = stack
        self.health_timeout = health_timeout

    # -- forward --------------------------------------------------------------------------

    @contextlib.contextmanager
    def server(self, found):
        """Have the database server run meanwhile, if the database is to be restored; yield why it can't, or None."""
        server = self._server()
        if "database" not in found["components"]:
            yield None
            return
        if server in self._running():
            yield self.look_at_server(found)
            return
        if self.engine.container(server)["state"] == "paused":
            raise StackError("The container %s is paused." % server, "'docker unpause %s' lets it go on." % server)
        nothing = dict(source=None, parts=[], live={}, before=None, expected=None, warnings=[], keep_previous=0)
        self.journal.begin("start", running=self._running(), started=[server], **nothing)
        with self._undone_on_failure("start of the database server"):
            self.journal.record("server")
            self.engine.start(server)
            broken = self._why_it_ends(server)
        try:
            yield broken
        except BaseException:
            # What is to be restored was refused, before anything of it was staged.
            if self.journal.operation and self.journal.operation["kind"] == "start":
                self._undo()
            raise

    def look_at_server(self, found):
        """Return what the database server dies of, None if it is at work, asleep, or not needed."""
        server = self._server()
        if "database" in found["components"] and server in self._running():
            return self._why_it_ends(server)
        return None

    def _why_it_ends(self, server):
        """Wait for the server; return what it died of, None if it runs."""
        try:
            await_server(self.engine, server)
            return None
        except ServerBroken as error:
            return str(error)

    def stage(self, planned, keep_previous, start=False):
        """Put the new data together beside the live one, and check it."""
        earlier = self.journal.operation["facts"] if self.journal.operation else {}
        self.journal.begin(
            "restore",
            source=planned["source"],
            parts=planned["parts"],
            live=planned["live"],
            before=planned["before"],
            expected=planned["expected"],
            warnings=planned["warnings"],
            running=earlier.get("running", self._running()),
            started=earlier.get("started", []),
            start=start or self.journal.unstarted or self._never_ran(),
            keep_previous=keep_previous,
        )
        with self._undone_on_failure("staging"):
            self.journal.record("stage")
            self.journal.record("staged", tables=self._stage_together())

    def _stage_together(self):
        """Stage all parts at the same time, for a load waits for the server most of the time; return the rows of the tables."""
        parts = self._parts()
        with ThreadPoolExecutor() as threads:
            staged = list(threads.map(lambda part: part.stage(), parts))
        return next(filter(None, staged), None)

    def advance(self, state, changed):
        """Go on from staged to the state."""
        operation = self.journal.operation
        if operation["steps"][-1]["step"] == REST:
            # What was stopped or started meanwhile is to stay so.
            started = operation["facts"].get("started", [])
            operation["facts"]["running"] = [name for name in self._running() if name not in started]
        if state != "staged" and self.journal.last("activated") is None:
            with self._undone_on_failure("activation"):
                self._activate()
            changed = True
        if state == "committed":
            self.commit()
            return _result(True, state, operation, self.journal.kept)
        if operation["steps"][-1]["step"] != REST:
            self.journal.record(REST)
        return _result(changed, resting(operation), operation)

    def commit(self):
        """Let the new data be the live one for good; the old is kept for a while, what was kept before goes.

        A database that goes may be of a server that sleeps, if only files were restored; it can wait.
        """
        operation, kept = self.journal.operation, self.journal.kept
        facts = operation["facts"]
        self.journal.record("commit")
        self._start(self._wanted() + facts.get("started", []))
        owed = self._forget(kept) if kept else []
        if facts["keep_previous"] <= 0:
            owed += self._forget(operation)
        facts["warnings"] += [
            "The old database of the restore %(id)s is still there, for its server doesn't answer; "
            "the first run that finds it running removes it." % left
            for left in owed
        ]
        self._settle(self._wanted())
        self.journal.end(_kept(operation), owed)

    def is_over(self, state, keep_previous):
        """Tell whether the kept old data is to go: at its time, which ``reconciled`` alone may end early.

        Never before ``rolled_back``, which asks for it.
        """
        kept = self.journal.kept
        if not kept or state == "rolled_back":
            return False
        seconds = kept["facts"]["keep_previous"]
        if time.time() < kept["facts"]["at"] + (min(seconds, keep_previous) if state == "reconciled" else seconds):
            return False
        # A server that sleeps, or ends again and again, can't be told to drop anything; a later run may find it running.
        has_database = any(part["component"] == "database" for part in kept["facts"]["parts"])
        return not has_database or self._server_runs()

    def expire(self, state, keep_previous):
        """Remove the kept old data once its time is over; tell whether it was."""
        if not self.is_over(state, keep_previous):
            return False
        self.journal.forget(self._forget(self.journal.kept))
        return True

    def can_pay(self):
        """Tell whether there is old data that had to wait for its server, which runs now."""
        return bool(self.journal.owed) and self._server_runs()

    def pay(self):
        """Remove the old data that had to wait for its server; tell whether anything went."""
        if not self.can_pay():
            return False
        left = sum((self._forget(operation) for operation in self.journal.owed), [])
        if left == self.journal.owed:
            return False
        self.journal.pay(left)
        return True

    def _forget(self, operation):
        """Remove the old data of an ended restore; return ``[operation]`` with the parts that have to wait, or nothing."""
        left = []
        for part in self._parts(operation):
            try:
                if part.needs_server and not self._server_runs():
                    left.append(part.facts)
                else:
                    part.forget()
            except EchoError:
                if not part.needs_server:
                    raise
                left.append(part.facts)
        return [dict(operation, facts=dict(operation["facts"], parts=left))] if left else []

    def _activate(self):
        wanted, app, parts = self._wanted(), self._app(), self._parts()
        tables = self.journal.last("staged")["tables"]
        policies = self._policies()
        self.journal.record("stop", policies=policies)
        started = time.monotonic()
        users = self._users()
        self._set_policies(dict.fromkeys(policies, "no"))
        self._stop(users)
        for part in parts:
            self.journal.record("swap", component=part.component)
            part.swap()
        self.journal.record("start")
        self._set_policies(policies)
        started_too = self.journal.operation["facts"].get("started", [])
        self._start([name for name in self._in_order(wanted + started_too) if name != app])
        if self._server() in users:
            await_server(self.engine, self._server())
        self._start(wanted)
        downtime = healthy_after = None
        if app in wanted:
            downtime = time.monotonic() - started
            with phase(app):
                self._await_health(app, wanted)
            healthy_after = time.monotonic() - started
        after = None
        for part in self._parts():
            after = part.verify(tables) or after
        self.journal.record("activated", tables=after, downtime=downtime, healthy_after=healthy_after)

    # -- back -------------------------------------------------------------------------------

    def roll_back(self):
        """Bring the old data back, of a restore that rests or of the last one that was committed."""
        operation = _require_operation(self.journal.operation or self.journal.kept)
        facts = dict(operation["facts"], running=self._running())
        if self.journal.operation and self._app() not in facts["running"]:
            # Of one that rests, what ran for it alone.
            facts["running"] = [name for name in facts["running"] if name not in facts.get("started", [])]
        if any(part["component"] == "database" for part in facts["parts"]):
            facts["started"] = [name for name in [self._server()] if name not in facts["running"]]
        if self.journal.operation is None:
            self.journal.begin("rollback", operation["id"], **facts)
        self.journal.operation["facts"] = facts
        self._undo()
        if self._app() in facts["running"]:
            try:
                self._await_health(self._app(), facts["running"])
            except StackError as error:
                error.what += " The old data is live again, which may not have been healthy either."
                error.details["rolled_back"] = True
                raise
        return _result(True, "rolled_back", operation)

    def reconcile(self):
        """End what a run left half done; return what it was, None for nothing."""
        operation = self.journal.operation
        told = broken_off(operation)
        if told is None:
            return None
        if told["direction"] == "forward":
            self.commit()
        else:
            self._undo()
        return told

    def _undo(self):
        operation = self.journal.operation
        policies = self._policies()
        self.journal.record("undo", policies=policies)
        facts, parts = operation["facts"], self._parts()
        users = self._users()
        # A server that was started for parts alone isn't needed for none.
        needed = facts["running"] + (facts.get("started", []) if parts else [])
        self._start([name for name in self._in_order(needed) if name not in users])
        if any(part.is_swapped() for part in parts):
            self._set_policies(dict.fromkeys(policies, "no"))
            self._stop(users)
            for part in parts:
                part.swap_back()
        self._set_policies(policies)
        self._start(facts["running"])
        for part in parts:
            part.discard()
        self._settle(facts["running"])
        kept = self.journal.kept
        # What was to be started anew still is, by the next restore.
        unstarted = operation["kind"] == "restore" and facts.get("start", False)
        self.journal.end(kept if kept and kept["id"] != operation["id"] else None, unstarted=unstarted)

    @contextlib.contextmanager
    def _undone_on_failure(self, phase):
        """Bring the old data back when a phase fails, and say so."""
        try:
            yield
        except BaseException as error:
            try:
                self._undo()
            except EchoError as second:
                raise EchoError(
                    "The %s failed: %s Going back failed as well: %s" % (phase, error, second),
                    "Mend the second cause; the next run (state=reconciled) goes on with going back.",
                    rolled_back=False,
                )
            if isinstance(error, EchoError):
                error.what += " The old data is live, nothing of it was lost."
                error.details["rolled_back"] = True
            raise

    # -- containers ---------------------------------------------------------------------------

    def _parts(self, operation=None):
        operation = operation or self.journal.operation
        return [make_part(self.engine, operation["id"], facts) for facts in operation["facts"]["parts"]]

    def _running(self):
        names = [container["name"] for container in self.stack["containers"].values()]
        return [name for name in names if self.engine.container(name)["state"] in RUNNING]

    def _server(self):
        return self.stack["containers"]["database"]["name"]

    def _server_runs(self):
        with contextlib.suppress(Gone):
            return self.engine.container(self._server())["state"] == "running"
        return False

    def _never_ran(self):
        """Tell whether the app was only created, as by a restore to a new host that broke off.

        One that a migration holds back until the old host has stopped was only created as well.
        """
        if not self._app() or self.engine.container(self._app())["state"] != "created":
            return False
        return not is_held_back(self.stack["project"] or "echo", os.path.dirname(self.journal.path))

    def _app(self):
        app = self.stack["containers"].get("app")
        return app["name"] if app else None

    def _wanted(self):
        """Return the containers that run once the new data is live: those that ran, or the whole stack."""
        facts = self.journal.operation["facts"]
        names = [container["name"] for container in self.stack["containers"].values()]
        if not facts.get("start"):
            # An app without its database is no use, even if it was found so.
            names = facts["running"] + (facts.get("started", []) if self._app() in facts["running"] else [])
        return self._in_order(names)

    def _users(self):
        """Return the containers that must not run while data is swapped: the app, and those whose own data it is."""
        parts = self.journal.operation["facts"]["parts"]
        own = [part.get("container") for part in parts if part["component"] == "cache" or part.get("broken")]
        return [name for name in [self._app()] + own if name]

    def _policies(self):
        """Return the containers that the Engine would start when it starts itself, though they were stopped.

        ``{name: restart policy}``, as the first step that was to change them found them; once the new data is live they
        are as they were.
        """
        found = {}
        for step in self.journal.operation["steps"]:
            found = {} if step["step"] == "activated" else dict(step["data"].get("policies", {}), **found)
        for name in self._users():
            with contextlib.suppress(Gone):
                if self.engine.container(name)["restart_policy"] == ALWAYS:
                    found.setdefault(name, ALWAYS)
        return found

    def _set_policies(self, policies):
        for name, policy in policies.items():
            with contextlib.suppress(Gone):
                if self.engine.container(name)["restart_policy"] != policy:
                    self.engine.set_restart_policy(name, policy)

    def _in_order(self, names):
        """Return the stack's containers of these names in the order in which they need each other."""
        roles = ("database", "redis", "app")
        ordered = [self.stack["containers"][role]["name"] for role in roles if role in self.stack["containers"]]
        return [name for name in ordered if name in names] + sorted(set(names) - set(ordered))

    def _stop(self, names):
        for name in names:
            with contextlib.suppress(Gone):
                if self.engine.container(name)["state"] in RUNNING:
                    self.engine.stop(name)

    def _settle(self, names):
        """Have the containers run that are to, and those not that ran for the restore alone."""
        self._start(names)
        self._stop([name for name in self.journal.operation["facts"].get("started", []) if name not in names])

    def _start(self, names):
        for name in names:
            # One that was removed since must not keep the data from being whole again.
            with contextlib.suppress(Gone):
                if self.engine.container(name)["state"] not in RUNNING:
                    self.engine.start(name)

    def _await_health(self, app, running):
        deadline = time.monotonic() + self.health_timeout
        while True:
            containers = [self.engine.container(name) for name in running]
            for container in containers:
                if container["state"] not in RUNNING:
                    raise StackError(
                        "The container %s stopped: its state is %s." % (container["name"], container["state"]),
                        "'docker logs %s' has its side." % container["name"],
                    )
            found = next(container for container in containers if container["name"] == app)
            if found["state"] == "running" and found["health"] in (None, "healthy"):
                return
            if time.monotonic() > deadline:
                raise StackError(
                    "The container %s didn't become healthy within %d s: its state is %s, its health %s."
                    % (app, self.health_timeout, found["state"], found["health"]),
                    "'docker logs %s' has its side." % app,
                )
            time.sleep(HEALTH_POLL)


# -- what is told -------------------------------------------------------------------------------


def broken_off(operation):
    """Tell where an operation broke off, and which way the next run ends it; None if it rests, or there is none."""
    if operation is None or operation["steps"][-1]["step"] == REST:
        return None
    steps = [step["step"] for step in operation["steps"]]
    forward = operation["kind"] == "restore" and "activated" in steps and "undo" not in steps
    return dict(id=operation["id"], step=steps[-1], direction="forward" if forward else "back")


def resting(operation):
    """Return the state in which an operation rests."""
    return "activated" if "activated" in [step["step"] for step in operation["steps"]] else "staged"


def _kept(operation):
    """Return an operation that is committed now as the journal keeps it, None if its old data doesn't stay."""
    facts = operation["facts"]
    return dict(operation, facts=dict(facts, at=time.time())) if facts["keep_previous"] > 0 else None


def _require_operation(operation):
    if operation is None:
        raise JournalError(
            "There is no restore to roll back: the old data of the last one is gone, or there was none.",
            "Restore an older set instead.",
        )
    return operation


def _result(changed, state, operation, kept=None):
    result = dict(changed=changed, state=state, id=None, source=None, components=[], tables={}, live={}, warnings=[])
    result.update(roles=[], downtime=None, healthy_after=None, previous_until=None, diff=dict(before="", after=""))
    if operation is None:
        return result
    facts = operation["facts"]
    data = dict((step["step"], step["data"]) for step in operation.get("steps", []))
    done = data.get("activated", {})
    result.update(
        id=operation["id"],
        source=facts["source"],
        components=[
            dict(((key, part[key]) for key in ("component", "kind", "file", "bytes")), places=moves(part))
            for part in facts["parts"]
        ],
        tables=_tables(facts["before"], data.get("staged", {}).get("tables") or facts["expected"], done.get("tables")),
        roles=_roles(facts["parts"]),
        live=facts["live"],
        downtime=done.get("downtime"),
        healthy_after=done.get("healthy_after"),
        previous_until=timestamp(kept["facts"]["at"] + kept["facts"]["keep_previous"]) if kept else None,
        # Two parts may have the same to say of the archive that both come out of.
        warnings=list(dict.fromkeys(facts["warnings"] + sum((part.get("remarks", []) for part in facts["parts"]), []))),
        diff=diff(facts),
    )
    return result


def _roles(parts):
    """Return the roles that a restore creates, None where the server can't be asked which are there."""
    planned = [part["roles"]["create"] for part in parts if part.get("roles")]
    return planned[0] if planned else []


def _tables(before, backup, after=None):
    """Return the rows of each table: live before, in the backup, live after."""
    sides = dict(before=before or {}, backup=backup or {}, after=after or {})
    names = sorted(set().union(*sides.values()))
    return dict((name, dict((side, counts.get(name)) for side, counts in sides.items())) for name in names)
