# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Another version of a deployment: saved, stopped, switched, verified, committed; or the old one restored.

An upgrade takes many tasks, and its controller may die between any two. So before anything
changes, what runs is saved on the host: the images under names of their own, the Compose files,
``.env``, the commit. Each step is in a journal before it is taken. Once the app has stopped, its
data is staged beside the live one (``restore.py``), from a set that was taken of it since. Going
back is then a matter of names, and needs neither room nor a connection.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time

from ansible_collections.echo_music.ops.plugins.module_utils import migration
from ansible_collections.echo_music.ops.plugins.module_utils import stack as echo_stack
from ansible_collections.echo_music.ops.plugins.module_utils.compose import Checkout, Compose
from ansible_collections.echo_music.ops.plugins.module_utils.compose_file import split_reference
from ansible_collections.echo_music.ops.plugins.module_utils.deployment_plan import (
    LAYOUT,
    REBUILD,
    UpgradeError,
    make_plan,
    mounted,
    plan_checked_out,
    runs_wanted,
)
from ansible_collections.echo_music.ops.plugins.module_utils.engine import Gone
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.journal import FOLDER, Journal, JournalError, read
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
from ansible_collections.echo_music.ops.plugins.module_utils.process import is_alive, is_local
from ansible_collections.echo_music.ops.plugins.module_utils.restore import RUNNING, ensure_restored
from ansible_collections.echo_music.ops.plugins.module_utils.restore_source import resolve
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained, sync_folder, timestamp, write_file
from ansible_collections.echo_music.ops.plugins.module_utils.set_lock import LEASE, OWNER
from ansible_collections.echo_music.ops.plugins.module_utils.tables import USER_TABLES

HEALTH_TIMEOUT = 360
SETTLE = 15
POLL = 0.5
SERVER_TIMEOUT = 180
CRASHES = 3
LOG_LINES = 20
KEEP = "echo-keep"
STATES = ("present", "saved", "built", "stopped", "switched", "verified", "committed", "restored")


def ensure_deployment(
    engine,
    state="present",
    owner="",
    lease=LEASE,
    plan=None,
    source=None,
    root=None,
    delete_data=False,
    tables=USER_TABLES,
    health_timeout=HEALTH_TIMEOUT,
    settle=SETTLE,
    check=False,
    folder=FOLDER,
    project=None,
    make_compose=Compose,
    **where
):
    """Bring the upgrade of a stack to a state; return the result of the module ``echo_deployment``.

    ``plan`` are the keywords of ``make_plan``; ``source`` and ``root`` name the set that was
    taken since the app stopped; ``where`` goes to ``discover``.
    """
    if state in ("present", "saved"):
        stack = echo_stack.discover(engine, project=project, **where)
        project = stack["project"]
    project = project or _only_project(folder)
    if project is None:
        if state != "restored":
            raise JournalError("No upgrade is under way here.", "It begins with state=saved.")
        return _result(False, None)
    if state in ("saved", "stopped", "switched"):
        _require_served(project, folder)
    journal = Journal("%s.upgrade" % project, folder)
    if check or state == "present":
        return _predict(engine, journal, state, plan, stack if state in ("present", "saved") else None, make_compose)
    with journal:
        work = Deployment(engine, journal, folder, make_compose, health_timeout)
        if journal.operation is not None:
            require_free(journal.operation, owner, lease)
        if state == "saved":
            return work.save(stack, make_plan(engine, stack, make_compose(stack["deployment"], engine.host), **plan), owner, lease)
        if state == "restored":
            with work.released_on_failure():
                return work.restore()
        work.require(state)
        return {
            "built": work.build,
            "stopped": work.stop,
            "switched": lambda: work.switch(source, root, delete_data),
            "verified": lambda: work.verify(settle, tables),
            "committed": work.commit,
        }[state]()


def require_free(operation, owner, lease, now=None):
    """Raise ``JournalError`` if an upgrade is another's, and that other one may live."""
    facts, last = operation["facts"], operation["steps"][-1]
    if facts.get("released") or (owner and facts["owner"] == owner):
        return
    now = time.time() if now is None else now
    if OWNER.match(facts["owner"]) and is_local(facts["owner"]):
        if not is_alive(facts["owner"]):
            return
        free = "as soon as the process %s here has ended" % facts["owner"].split(" ")[1]
    # A step of the future is one from before the clock was set back.
    elif abs(now - last["time"]) < min(lease, facts["lease"]):
        free = "after %s" % timestamp(last["time"] + min(lease, facts["lease"]))
    else:
        return
    raise JournalError(
        "An upgrade of %s is under way here, at the step %s since %s."
        % (facts["deployment"]["project"], last["step"], timestamp(last["time"])),
        "Wait for its end. If it is dead, the next run takes over %s; a lease of 0 says that you know it is." % free,
    )


def _require_served(project, folder):
    """Refuse what ends in a start of the app where a migration lets another host serve."""
    if migration.is_held_back(project, folder):
        raise UpgradeError(
            "A migration holds the app of %s back. Of this host its record says: %s." % (project, _held_by(project, folder)),
            "Run the playbook migrate for that pair again: it ends it. Where the data was migrated, the other host serves.",
        )


def _held_by(project, folder):
    return migration.told(migration.read(os.path.join(folder, project + migration.SUFFIX)))


def _only_project(folder):
    """Return the one project whose upgrade is under way, its containers may be gone; None for none."""
    with contextlib.suppress(FileNotFoundError):
        found = [name[: -len(".upgrade.json")] for name in sorted(os.listdir(folder)) if name.endswith(".upgrade.json")]
        busy = [name for name in found if read(os.path.join(folder, name + ".upgrade.json"))["operation"]]
        if len(busy) == 1:
            return busy[0]
        if busy:
            raise JournalError("Upgrades of several projects are under way: %s." % ", ".join(busy), "Name one: project.")
    return None


def _predict(engine, journal, state, plan, stack, make_compose):
    operation = read(journal.path)["operation"]
    result = _result(False, operation)
    if state == "present":
        runs = [
            dict(role=role, service=c["service"], reference=c["image"], id=c["image_id"], digests=c["image_digests"])
            for role, c in sorted(stack["containers"].items())
        ]
        return dict(result, images=runs, available=_available(engine, stack, make_compose))
    if state == "saved":
        planned = make_plan(engine, stack, make_compose(stack["deployment"], engine.host), **plan)
        return dict(_planned(result, planned), changed=not planned["up_to_date"], predicted=True)
    return dict(result, changed=operation is not None)


def _available(engine, stack, make_compose):
    """Return the versions of the app that are on the host: its images, and its checkout's tags."""
    app = stack["containers"].get("app")
    if not app:
        return []
    name = split_reference(app["image"])[0]
    found = [tag for image in engine.images() for tag in image["tags"] if split_reference(tag)[0] == name]
    with contextlib.suppress(EchoError):
        config = make_compose(stack["deployment"], engine.host).config()
        build = config["services"][app["service"]].get("build")
        if build:
            found += Checkout(build["context"]).tags()[:20]
    return sorted(found)


class Deployment:
    """The upgrade that a journal tells of."""

    def __init__(self, engine, journal, folder=FOLDER, make_compose=Compose, health_timeout=HEALTH_TIMEOUT):
        self.engine = engine
        self.journal = journal
        self.folder = folder
        self.health_timeout = health_timeout
        self._make_compose = make_compose

    # -- forward ----------------------------------------------------------------------------

    def save(self, stack, plan, owner, lease):
        """Save what runs; nothing else has changed then."""
        if self.journal.operation is not None:
            if self.journal.last("stopped") is not None or self.journal.operation["facts"]["owner"] != owner:
                raise JournalError("An upgrade broke off here.", "state=restored brings the old version back.")
        else:
            self._check_begin(stack)
        files = plan.pop("new_files")
        facts = dict(
            plan,
            change=plan["kind"],
            owner=owner,
            lease=lease,
            running=[c["name"] for c in stack["containers"].values() if c["state"] in RUNNING],
            ran=[c["service"] for c in stack["containers"].values() if c["state"] in RUNNING],
            was_healthy=stack["containers"]["app"]["health"] in (None, "healthy"),
            saved=sorted(set(stack["deployment"]["files"] + _env_paths(stack["deployment"]))),
            new=sorted(files),
        )
        # The operation itself has a kind.
        del facts["kind"]
        if self.journal.operation is None:
            self.journal.begin("upgrade", **facts)
        self.journal.operation["facts"] = facts
        for image in facts["images"]:
            self.engine.name_image(image["id"], self._kept_name(image))
        self._copy_old()
        self._copy_new(files)
        self.journal.record("saved")
        return _planned(_result(not plan["up_to_date"], self.journal.operation), dict(plan, new_files=files))

    def require(self, state):
        """Refuse a step that comes without the ones before it."""
        operation = self.journal.operation
        before = {"built": "saved", "stopped": "saved", "switched": "stopped", "verified": "switched", "committed": "saved"}
        if operation is None or self.journal.last(before[state]) is None or self.journal.last("undo") is not None:
            raise JournalError(
                "No upgrade is under way here that could be %s." % state, "It begins with state=saved, and goes on step by step."
            )

    def build(self):
        """Check the source out and build its image; the app runs on."""
        facts = self.journal.operation["facts"]
        self.journal.record("build")
        compose = self._compose()
        if facts["git"]:
            old = compose.config()
            checkout = Checkout(facts["git"]["folder"])
            checkout.fetch()
            checkout.check_out(facts["git"]["new_ref"], facts["git"]["new_commit"])
            # The new source brings its own Compose files.
            self._plan_again(compose, old)
        if facts["builds"]:
            compose.build(facts["new_services"]["app"])
        self.journal.record("built")
        return _result(True, self.journal.operation)

    def _plan_again(self, compose, old):
        facts = self.journal.operation["facts"]
        stack = echo_stack.discover(self.engine, project=self._project())
        plan = plan_checked_out(self.engine, stack, compose, old, facts)
        files = plan.pop("new_files")
        facts.update(plan, new=sorted(files))
        self._copy_new(files)

    def stop(self):
        """Stop the app: from here on nothing is written that the next set would not have."""
        facts = self.journal.operation["facts"]
        containers = self._containers()
        same = facts["change"] != REBUILD and not facts["new"] and not facts["reconfigured"]
        if same and runs_wanted(self.engine, dict(containers=containers), facts["wanted"]):
            return dict(_result(False, self.journal.operation), up_to_date=True)
        self._require_images()
        self.journal.record("stopped")
        if containers["app"]["state"] in RUNNING:
            self.engine.stop(containers["app"]["name"])
        return _result(True, self.journal.operation)

    def _require_images(self):
        for role, reference in sorted(self.journal.operation["facts"]["wanted"].items()):
            if self.engine.image(reference) is None:
                raise UpgradeError(
                    "There is no image %s for the %s on this host. The app was not stopped." % (reference, role),
                    "Pull or build it first. Does that version exist?",
                )

    def switch(self, source, root, delete_data):
        """Stage the way back, put the new files in place, and fill new volumes from the set.

        With ``delete_data`` the volumes go instead, and the way back is to load the set anew.
        """
        facts = self.journal.operation["facts"]
        found = resolve(source, root) if source else None
        touched = [role for role in (found["components"] if found else ()) if role in facts["touched"]]
        tables = None if delete_data or not found else found["tables"]
        self.journal.record("set", path=found and found["path"], tables=tables, components=touched)
        if touched and not delete_data:
            self._restore("staged", source=found["path"], components=touched)
        self.journal.record("switched")
        for number, path in enumerate(facts["new"]):
            self._put(os.path.join(self._place(), "new-%d" % number), path)
        if delete_data:
            self._delete_data()
        elif facts["fresh"] and found:
            self._fill(found)
        return _result(True, self.journal.operation)

    def _delete_data(self):
        """Remove the containers and the volumes, and empty the folders that stand for volumes."""
        stack = echo_stack.discover(self.engine, project=self._project())
        self._compose().down()
        for volume in stack["volumes"]:
            if volume["type"] == "bind":
                with explained("empty", volume["source"]):
                    for entry in os.scandir(volume["source"]):
                        if entry.is_dir(follow_symlinks=False):
                            shutil.rmtree(entry.path)
                        else:
                            os.unlink(entry.path)

    def verify(self, settle, tables):
        """Wait until the new version is healthy and stays so; compare the rows of the users' tables."""
        operation = self.journal.operation
        healthy = self._await_health(operation["facts"]["new_services"], settle)
        self.journal.record("verified", downtime=healthy - self._time_of("stopped"))
        recorded = self.journal.last("set")["tables"]
        found = Database(self.engine, self._containers()["database"]["name"]).describe()["tables"]
        fewer = _fewer(recorded or {}, found, tables)
        if fewer:
            raise UpgradeError(
                "The new version has fewer rows: %s." % ", ".join("%(table)s has %(found)s instead of %(expected)s" % item for item in fewer),
                "Ask its makers what became of them.",
                fewer=fewer,
                log=self._log(),
            )
        return dict(_result(True, operation), tables=_both(recorded or {}, found))

    def commit(self):
        """Let the new version stay: what was saved of the old one goes, but for its volumes and sets."""
        operation = self.journal.operation
        self.journal.record("commit")
        self._drop_staged()
        self._forget()
        self.journal.end()
        return _result(True, operation)

    # -- back -------------------------------------------------------------------------------

    def restore(self):
        """Bring version, files and data back as they were; may be repeated until it comes to its end."""
        operation = self.journal.operation
        if operation is None:
            return _result(False, None)
        if self.journal.last("commit") is not None:
            return dict(self.commit(), direction="forward")
        facts = operation["facts"]
        log = self.journal.last("undo") or dict(log=self._log(), at=operation["steps"][-1]["step"])
        self.journal.record("undo", **log)
        switched = self.journal.last("switched") is not None
        if switched:
            self._stop_apps()
        self._put_back(switched)
        held = migration.is_held_back(self._project(), self.folder)
        if switched and held:
            raise UpgradeError(
                "Files and images of the old version are back. Its data and its start wait for a migration. "
                "Of this host its record says: %s." % _held_by(self._project(), self.folder),
                "Once that migration has ended, run the playbook reconcile.",
            )
        compose = self._compose()
        if switched:
            compose.create(remove_orphans=facts["change"] == LAYOUT)
            compose.up(*[name for role, name in facts["services"].items() if role != "app"])
            self._bring_data_back()
            compose.up(*facts["ran"])
        else:
            self._drop_staged()
        for name in facts["running"]:
            # One that was removed meanwhile must not keep the rest from being as it was.
            with contextlib.suppress(Gone):
                runs = self.engine.container(name)["state"] in RUNNING
                if not runs and not migration.leave_stopped(self._project(), name, self.folder):
                    self.engine.start(name)
        if facts["was_healthy"] and facts["services"]["app"] in facts["ran"] and not held:
            self._await_health(facts["services"], settle=0)
        self._drop_unfilled()
        self._forget()
        self.journal.end()
        return dict(_result(True, operation), direction="back", log=log["log"], broke_off_at=log["at"])

    @contextlib.contextmanager
    def released_on_failure(self):
        """Let anybody's next run go on with a way back that failed, for whoever began it has given up."""
        try:
            yield
        except EchoError:
            operation = self.journal.operation
            operation["facts"]["released"] = True
            with contextlib.suppress(EchoError):
                self.journal.record(operation["steps"][-1]["step"], **operation["steps"][-1]["data"])
            raise

    def _put_back(self, switched):
        facts = self.journal.operation["facts"]
        git = facts["git"]
        if git and self.journal.last("build") is not None:
            Checkout(git["folder"]).go_back(git["ref"], git["commit"])
        for number, path in enumerate(facts["saved"]) if switched else ():
            self._put(os.path.join(self._place(), "old-%d" % number), path)
        for path in set(facts["new"]).difference(facts["saved"]) if switched else ():
            with explained("remove", path), contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for image in facts["images"]:
            self._name_again(image)

    def _name_again(self, image):
        """Let the reference of an old container's image name that image again, whatever was pulled or built since."""
        found = self.engine.image(image["reference"])
        if found and found["id"] == image["id"]:
            return
        if "@" not in image["reference"]:
            reference = image["reference"]
            tagged = ":" in reference.rpartition("/")[2]
            self.engine.name_image(image["id"], reference if tagged else reference + ":latest")

    def _bring_data_back(self):
        """Swap the staged old data in; what the new version wrote is kept for a day."""
        told = self.journal.last("set")
        if not told["components"] or self._is_from(told["path"], "kept"):
            return
        self._await_server()
        # A swap that broke off is ended first, and what was staged may be gone with it: then the set is loaded anew.
        self._restore("committed", source=told["path"], components=told["components"])

    def _drop_staged(self):
        told = self.journal.last("set")
        if told and told["components"] and self._is_from(told["path"], "operation"):
            self._restore("rolled_back")

    def _is_from(self, path, key):
        """Tell whether the journal of restores has one of this set, under way or kept."""
        restore = read(os.path.join(self.folder, "%s.json" % self._project()))[key]
        return restore is not None and restore["facts"]["source"]["path"] == path

    def _restore(self, state, **more):
        return ensure_restored(
            self.engine, state=state, project=self._project(), folder=self.folder, health_timeout=self.health_timeout, **more
        )

    def _fill(self, found):
        """Load the set into volumes that are new, before the app sees them."""
        facts = self.journal.operation["facts"]
        compose = self._compose()
        if self.journal.last("fill") is None:
            there = [volume["name"] for volume in self.engine.volumes()]
            places = sorted(mounted(compose.config()))
            self.journal.record("fill", created=[place for place in places if not os.path.isabs(place) and place not in there])
        compose.create(remove_orphans=facts["change"] == LAYOUT)
        compose.up(*[name for role, name in facts["new_services"].items() if role != "app"])
        self._await_server()
        ensure_restored(
            self.engine,
            state="committed",
            source=found["path"],
            components=[role for role in facts["fresh"] if role in found["components"]],
            keep_previous=0,
            project=self._project(),
            # A journal of its own: in the stack's the way back rests.
            folder=self._place(),
        )
        self.journal.record("filled")

    def _drop_unfilled(self):
        """Remove the volumes that this upgrade created and didn't fill: the next one would take them for a server's."""
        if self.journal.last("filled") is None:
            for name in (self.journal.last("fill") or dict(created=[]))["created"]:
                self.engine.remove_volume(name)

    # -- what is kept -------------------------------------------------------------------------

    def _project(self):
        return self.journal.operation["facts"]["deployment"]["project"]

    def _place(self):
        return os.path.join(self.folder, "%s.upgrade" % self._project())

    def _kept_name(self, image):
        return "%s:%s-%s-%s" % (KEEP, self._project(), self.journal.operation["id"], image["role"])

    def _copy_old(self):
        """Copy the files as they are."""
        place = self._place()
        with explained("create", place):
            os.makedirs(place, mode=0o700, exist_ok=True)
        for number, path in enumerate(self.journal.operation["facts"]["saved"]):
            with explained("read", path), open(path, "rb") as source:
                write_file(os.path.join(place, "old-%d" % number), source.read())
        sync_folder(self.folder)

    def _copy_new(self, files):
        """Copy the files as they will be; both kinds are on the disk then."""
        for number, path in enumerate(self.journal.operation["facts"]["new"]):
            write_file(os.path.join(self._place(), "new-%d" % number), files[path].encode("utf-8"))
        sync_folder(self._place())

    def _put(self, copy, path):
        """Let a file of the deployment have a copy's content; it keeps its owner and mode."""
        with explained("read", copy), open(copy, "rb") as source:
            data = source.read()
        with contextlib.suppress(FileNotFoundError), explained("read", path):
            with open(path, "rb") as live:
                if live.read() == data:
                    return
        fresh = path + ".echo-new"
        write_file(fresh, data)
        with explained("write", path):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(path)
                os.chown(fresh, status.st_uid, status.st_gid)
                os.chmod(fresh, status.st_mode & 0o7777)
            os.replace(fresh, os.path.realpath(path))
            sync_folder(os.path.dirname(os.path.realpath(path)))

    def _check_begin(self, stack):
        path = os.path.join(self.folder, "%s.json" % stack["project"])
        if read(path)["operation"] is not None:
            raise UpgradeError(
                "A restore is under way or rests here (%s)." % path,
                "End it first, with the module echo_restore: state=committed, or state=rolled_back.",
            )

    def _forget(self):
        for image in self.journal.operation["facts"]["images"]:
            self.engine.forget_image_name(self._kept_name(image))
        shutil.rmtree(self._place(), ignore_errors=True)

    # -- containers ---------------------------------------------------------------------------

    def _compose(self):
        return self._make_compose(self.journal.operation["facts"]["deployment"], self.engine.host)

    def _containers(self):
        return echo_stack.find_containers(self.engine, project=self._project())

    def _apps(self):
        """Return the project's app containers, of the old and of the new version."""
        services = set(echo_stack.SERVICES["app"])
        return [c for c in self.engine.containers() if c["project"] == self._project() and c["service"] in services]

    def _stop_apps(self):
        for container in self._apps():
            if container["state"] in RUNNING:
                with contextlib.suppress(Gone):
                    self.engine.stop(container["name"])

    def _log(self):
        """Return the last lines of the app's log."""
        return next(map(self._log_of, self._apps()), [])

    def _log_of(self, container):
        with contextlib.suppress(EchoError):
            return self.engine.logs(container["name"], LOG_LINES).splitlines()
        return []

    def _time_of(self, step):
        return next(recorded["time"] for recorded in self.journal.operation["steps"] if recorded["step"] == step)

    def _await_server(self):
        """Wait until PostgreSQL answers; it was started just now."""
        deadline = time.monotonic() + SERVER_TIMEOUT
        restarts = self._containers()["database"]["restarts"]
        while True:
            server = self._containers()["database"]
            try:
                return Database(self.engine, server["name"]).describe(tables=False)
            except EchoError:
                if server["restarts"] - restarts >= CRASHES:
                    raise self._failure("database", server, "crashes")
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL)

    def _await_health(self, services, settle):
        """Wait for the app's health, and that it lasts; return the moment at which it was healthy."""
        deadline = time.monotonic() + self.health_timeout
        first = crashes = None
        while True:
            app = next((c for c in self._apps() if c["service"] == services["app"]), None)
            if app is None:
                raise StackError("There is no container of the service %s." % services["app"], "Did Compose create it?")
            crashes = app["restarts"] if crashes is None else crashes
            crashed = app["restarts"] - crashes
            healthy = app["state"] == "running" and app["health"] in (None, "healthy")
            if first and (crashed or not healthy):
                raise self._failure("app", app, "was healthy, and then no more")
            if app["state"] not in RUNNING + ("created",) or crashed >= CRASHES:
                raise self._failure("app", app, "crashes")
            if healthy and first is None:
                first = (time.monotonic(), time.time())
            if first and time.monotonic() - first[0] >= settle:
                return first[1]
            if not first and time.monotonic() > deadline:
                raise self._failure("app", app, "didn't become healthy within %d s" % self.health_timeout)
            time.sleep(POLL)

    def _failure(self, role, container, how):
        return StackError(
            "The %s of the image %s %s: its state is %s, its health %s, restarts: %d."
            % (role, container["image"], how, container["state"], container["health"], container["restarts"]),
            "The end of its log says more.",
            log=self._log_of(container),
        )


def _env_paths(deployment):
    path = os.path.join(deployment["working_dir"], ".env")
    return [deployment["env_file"]] if deployment["env_file"] else [path] if os.path.exists(path) else []


def _fewer(before, after, tables):
    """Return the users' tables that lost rows."""
    wanted = ["public.%s" % name if "." not in name else name for name in tables]
    return [
        dict(table=name, expected=before[name], found=after.get(name, 0))
        for name in wanted
        if name in before and after.get(name, 0) < before[name]
    ]


def _both(before, after):
    """Return the rows of each table on both sides, None where a side has no such table."""
    return dict((name, dict(before=before.get(name), after=after.get(name))) for name in sorted(set(before) | set(after)))


# -- what is told -------------------------------------------------------------------------------


def _result(changed, operation):
    facts = operation["facts"] if operation else {}
    steps = operation["steps"] if operation else []
    data = dict((step["step"], step["data"]) for step in steps)
    return dict(
        changed=changed,
        under_way=operation and dict(id=operation["id"], step=steps[-1]["step"], time=timestamp(steps[-1]["time"])),
        kind=facts.get("change"),
        version=facts.get("version"),
        images=facts.get("images", []),
        wanted=facts.get("wanted", {}),
        pulls=facts.get("pulls", []),
        git=facts.get("git"),
        touched=facts.get("touched", []),
        fresh=facts.get("fresh", []),
        builds=facts.get("builds"),
        up_to_date=facts.get("up_to_date"),
        downtime=data.get("verified", {}).get("downtime"),
        diff=dict(before=facts.get("before", ""), after=facts.get("after", "")),
    )


def _planned(result, plan):
    keys = ("kind", "version", "images", "wanted", "pulls", "git", "touched", "fresh", "builds", "up_to_date")
    shown = dict((key, plan[key]) for key in keys)
    diff = dict(before=plan["before"], after=plan["after"])
    return dict(result, predicted=False, files=sorted(plan["new_files"]), diff=diff, **shown)
