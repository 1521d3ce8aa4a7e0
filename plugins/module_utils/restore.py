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

from ansible_collections.echo_music.ops.plugins.module_utils import stack as echo_stack
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Gone
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError, SpaceError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.journal import FOLDER, Journal, JournalError, read
from ansible_collections.echo_music.ops.plugins.module_utils.restore_parts import RESERVE, make_part
from ansible_collections.echo_music.ops.plugins.module_utils.restore_source import resolve
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import free_bytes, human, timestamp

KEEP_PREVIOUS = 24 * 60 * 60
HEALTH_TIMEOUT = 360
HEALTH_POLL = 0.2
RUNNING = ("running", "restarting")
# Where a restore rests until the next call; one that is found anywhere else broke off.
REST = "rest"


def ensure_restored(
    engine,
    state="committed",
    source=None,
    root=None,
    components=None,
    keep_previous=KEEP_PREVIOUS,
    health_timeout=HEALTH_TIMEOUT,
    check=False,
    folder=FOLDER,
    **where
):
    """Bring a stack to the state; return the result of the module ``echo_restore``.

    ``where`` goes to ``discover``. What an earlier run left half done is ended first.
    """
    stack = echo_stack.discover(engine, **where)
    journal = Journal(stack["project"] or "echo", folder)
    if check:
        return _predict(engine, stack, journal, state, source, root, components)
    with journal:
        restore = Restore(engine, journal, stack, health_timeout)
        reconciled = restore.reconcile()
        expired = restore.expire(keep_previous)
        result = dict(_to_state(restore, state, source, root, components, keep_previous), reconciled=reconciled)
        result["changed"] = result["changed"] or reconciled is not None or expired
        return result


def _to_state(restore, state, source, root, components, keep_previous):
    if state == "reconciled":
        return _result(False, state, restore.journal.operation or restore.journal.kept)
    if state == "rolled_back":
        return restore.roll_back()
    operation = restore.journal.operation
    if operation is None:
        found = resolve(source, root, components)
        restore.stage(plan(restore.engine, restore.stack, found), keep_previous)
    elif source is not None and resolve(source, root, components)["path"] != operation["facts"]["source"]["path"]:
        raise JournalError(
            "A restore of %s rests here, %s." % (operation["facts"]["source"]["id"], restore.resting()),
            "End it first: state=committed without a source, or state=rolled_back.",
        )
    return restore.advance(state, changed=operation is None)


def _predict(engine, stack, journal, state, source, root, components):
    content = read(journal.path)
    operation, kept = content["operation"], content["kept"]
    broken = operation if operation and operation["steps"][-1]["step"] != REST else None
    told = dict(reconciled=_broken(broken) if broken else None)
    if state == "reconciled":
        return dict(_result(bool(broken), state, operation or kept), **told)
    if state == "rolled_back" or (operation and not broken):
        _require_operation(operation or kept)
        return dict(_result(True, state, operation or kept), **told)
    planned = plan(engine, stack, resolve(source, root, components))
    return dict(_result(True, state, dict(id=None, facts=planned)), **told)


# -- the plan -----------------------------------------------------------------------------------


def plan(engine, stack, found):
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
    if live["database"].get("error"):
        raise StackError("The live database can't be asked: %s" % live["database"]["error"], "Start it, then try again.")
    parts, needs = [], []
    for component, source in found["components"].items():
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
        live=_live(live, found["components"]),
        warnings=warnings,
    )


def part_facts(component, source, found, live):
    """Return what a part must know, in JSON types, for the journal keeps it."""
    if component == "database":
        database, recorded = live["database"], found["database"]
        like = dict((key, database[key]) for key in ("encoding", "collate", "ctype", "owner", "server_version_num"))
        like["extensions"] = (recorded or database)["extensions"]
        place = dict(container=database["container"], name=database["name"], like=like, recorded=recorded)
        place["folder"] = echo_stack.volume_of(live, "database")["source"]
    else:
        place = dict(live=echo_stack.volume_of(live, component)["source"])
    return dict(source, component=component, tables=found["tables"], **place)


def require_space(needs):
    """Raise ``SpaceError`` unless ``[(path, bytes)]`` fit beside the live data, on every file system."""
    needed = {}
    for path, size in needs:
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
            ),
        )
        for part in planned["parts"]
    )
    return dict(before=_text(planned["live"]), after=_text(comes))


def _live(live, components):
    """What the restore overwrites."""
    shown = {}
    for component in components:
        if component == "database":
            shown[component] = dict((key, live["database"][key]) for key in ("container", "name", "bytes", "tables"))
        else:
            volume = echo_stack.volume_of(live, component)
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

    def stage(self, planned, keep_previous):
        """Put the new data together beside the live one, and check it."""
        self.journal.begin(
            "restore",
            source=planned["source"],
            parts=planned["parts"],
            live=planned["live"],
            before=planned["before"],
            expected=planned["expected"],
            warnings=planned["warnings"],
            running=self._running(),
            keep_previous=keep_previous,
        )
        with self._undone_on_failure("staging"):
            self.journal.record("stage")
            tables = None
            for part in self._parts():
                tables = part.stage() or tables
            self.journal.record("staged", tables=tables)

    def advance(self, state, changed):
        """Go on from staged to the state."""
        operation = self.journal.operation
        if operation["steps"][-1]["step"] == REST:
            # What was stopped or started meanwhile is to stay so.
            operation["facts"]["running"] = self._running()
        if state != "staged" and self.journal.last("activated") is None:
            with self._undone_on_failure("activation"):
                self._activate()
            changed = True
        if state == "committed":
            self.commit()
            return _result(True, state, operation, self.journal.kept)
        if operation["steps"][-1]["step"] != REST:
            self.journal.record(REST)
        return _result(changed, self.resting(), operation)

    def resting(self):
        """Return the state in which an operation rests."""
        return "staged" if self.journal.last("activated") is None else "activated"

    def commit(self):
        """Let the new data be the live one for good; the old is kept for a while, what was kept before goes."""
        operation, kept = self.journal.operation, self.journal.kept
        facts = operation["facts"]
        self.journal.record("commit")
        self._start(facts["running"])
        for part in self._parts(kept) if kept else []:
            part.forget()
        if facts["keep_previous"] > 0:
            self.journal.end(dict(operation, facts=dict(facts, at=time.time())))
        else:
            for part in self._parts():
                part.forget()
            self.journal.end()

    def expire(self, keep_previous):
        """Remove the kept old data once its time is over; tell whether it was."""
        kept = self.journal.kept
        if not kept or time.time() < kept["facts"]["at"] + min(keep_previous, kept["facts"]["keep_previous"]):
            return False
        for part in self._parts(kept):
            part.forget()
        self.journal.forget()
        return True

    def _activate(self):
        app = self._app_that_ran()
        tables = self.journal.last("staged")["tables"]
        self.journal.record("stop")
        started = time.monotonic()
        if app:
            self.engine.stop(app)
        for part in self._parts():
            self.journal.record("swap", component=part.component)
            part.swap()
        self.journal.record("start")
        downtime = healthy_after = None
        if app:
            self.engine.start(app)
            downtime = time.monotonic() - started
            self._await_health(app, self.journal.operation["facts"]["running"])
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
        if self.journal.operation is None:
            self.journal.begin("rollback", operation["id"], **facts)
        self.journal.operation["facts"] = facts
        app = self._app_that_ran()
        self._undo()
        if app:
            self._await_health(app, facts["running"])
        return _result(True, "rolled_back", operation)

    def reconcile(self):
        """End what a run left half done; return what it was, None for nothing."""
        operation = self.journal.operation
        if operation is None or operation["steps"][-1]["step"] == REST:
            return None
        told = _broken(operation)
        if told["direction"] == "forward":
            self.commit()
        else:
            self._undo()
        return told

    def _undo(self):
        operation = self.journal.operation
        self.journal.record("undo")
        app = self._app()
        running = operation["facts"]["running"]
        self._start([name for name in running if name != app])
        parts = self._parts()
        if any(part.is_swapped() for part in parts):
            if app and self.engine.container(app)["state"] in RUNNING:
                self.engine.stop(app)
            for part in parts:
                part.swap_back()
        self._start(running)
        for part in parts:
            part.discard()
        kept = self.journal.kept
        self.journal.end(kept if kept and kept["id"] != operation["id"] else None)

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

    def _app(self):
        app = self.stack["containers"].get("app")
        return app["name"] if app else None

    def _app_that_ran(self):
        """Return the app's container if it ran when the operation began."""
        app = self._app()
        return app if app in self.journal.operation["facts"]["running"] else None

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


def _broken(operation):
    """Tell where an operation broke off, and which way the next run ends it."""
    steps = [step["step"] for step in operation["steps"]]
    forward = operation["kind"] == "restore" and "activated" in steps and "undo" not in steps
    return dict(id=operation["id"], step=steps[-1], direction="forward" if forward else "back")


def _require_operation(operation):
    if operation is None:
        raise JournalError(
            "There is no restore to roll back: the old data of the last one is gone, or there was none.",
            "Restore an older set instead.",
        )
    return operation


def _result(changed, state, operation, kept=None):
    result = dict(changed=changed, state=state, id=None, source=None, components=[], tables={}, live={}, warnings=[])
    result.update(downtime=None, healthy_after=None, previous_until=None, diff=dict(before="", after=""))
    if operation is None:
        return result
    facts = operation["facts"]
    data = dict((step["step"], step["data"]) for step in operation.get("steps", []))
    done = data.get("activated", {})
    result.update(
        id=operation["id"],
        source=facts["source"],
        components=[
            dict((key, part[key]) for key in ("component", "kind", "file", "bytes")) for part in facts["parts"]
        ],
        tables=_tables(facts["before"], data.get("staged", {}).get("tables") or facts["expected"], done.get("tables")),
        live=facts["live"],
        downtime=done.get("downtime"),
        healthy_after=done.get("healthy_after"),
        previous_until=timestamp(kept["facts"]["at"] + kept["facts"]["keep_previous"]) if kept else None,
        warnings=facts["warnings"],
        diff=diff(facts),
    )
    return result


def _tables(before, backup, after=None):
    """Return the rows of each table: live before, in the backup, live after."""
    sides = dict(before=before or {}, backup=backup or {}, after=after or {})
    names = sorted(set().union(*sides.values()))
    return dict((name, dict((side, counts.get(name)) for side, counts in sides.items())) for name in names)
