# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An upgrade breaks off after every step of its journal; the old version, its files and its data come back."""

from __future__ import annotations

import json
import re
import subprocess
import time

import pytest
import yaml

from ansible_collections.echo_music.ops.plugins.module_utils import deployment as module
from ansible_collections.echo_music.ops.plugins.module_utils.compose import Checkout, ToolError, run_tool
from ansible_collections.echo_music.ops.plugins.module_utils.deployment import ensure_deployment, require_free
from ansible_collections.echo_music.ops.plugins.module_utils.deployment_plan import UpgradeError, make_plan
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EngineError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.journal import Journal, JournalError
from ansible_collections.echo_music.ops.plugins.module_utils.process import identity

from fake_engine import FakeEngine, container

COMPOSE = """\
services:
  postgres:
    image: postgres:${POSTGRES:-15}
    volumes:
      - postgres-data:/var/lib/postgresql/data
  echo-app:
    image: echo:${VERSION:-latest}
volumes:
  postgres-data:
    name: echo-postgres-data
"""
BUILT = """\
services:
  postgres:
    image: postgres:${POSTGRES:-15}
    volumes:
      - postgres-data:/var/lib/postgresql/data
  echo-app:
    build: .
    volumes:
      - uploads:/app/uploads
volumes:
  postgres-data:
    name: echo-postgres-data
  uploads:
    name: echo-uploads
"""
ENV = "SECRET=x\nVERSION=1\nPOSTGRES=15\n"
PLAN = dict(version=None, postgres_version=None, compose_text=None, env={}, rebuild=False)
TABLES = {"public.users": 5, "public.albums": 7}


class Images(FakeEngine):
    """An engine with named images, whose containers Compose makes anew."""

    def __init__(self, *containers):
        super().__init__(*containers)
        self.names = {"echo:1": "old-app", "echo:2": "new-app", "postgres:15": "old-pg", "postgres:17": "new-pg"}
        self.log = ["migration failed"]
        self.there = ["echo-postgres-data"]

    def image(self, reference):
        found = self.names.get(reference)
        return found and dict(id=found, tags=[reference], digests=[], env={}, healthcheck=None)

    def images(self):
        return [self.image(name) for name in sorted(self.names)]

    def name_image(self, image_id, name):
        self.names[name] = image_id

    def volumes(self):
        return [dict(name=name) for name in self.there]

    def remove_volume(self, name):
        self.there.remove(name)

    def forget_image_name(self, name):
        self.names.pop(name, None)

    def stop(self, name):
        self.set_state(name, "exited")

    def start(self, name):
        self.set_state(name, "running")

    def logs(self, unused_name, unused_lines):
        return "\n".join(self.log)

    def change(self, name, **facts):
        self._containers[name] = dict(self._containers[name], **facts)


class Compose:
    """Compose, as far as the tests' files need it."""

    def __init__(self, engine, deployment):
        self._engine = engine
        self._deployment = deployment

    def config(self, files=None, env_file=None):
        text = open((files or self._deployment["files"])[0], encoding="utf-8").read()
        env_file = env_file or self._deployment["env_file"]
        env = dict(line.split("=", 1) for line in open(env_file, encoding="utf-8").read().split("\n") if "=" in line)
        text = re.sub(r"\$\{(\w+):-(\w+)\}", lambda match: env.get(match.group(1), match.group(2)), text)
        config = dict(yaml.safe_load(text), name="echo")
        for service in config["services"].values():
            mounts = [mount.split(":") for mount in service.get("volumes", [])]
            service["volumes"] = [dict(type="volume", source=source, target=target) for source, target in mounts]
            if "build" in service:
                service["build"] = dict(context=self._deployment["working_dir"])
        return config

    def build(self, service):
        self._engine.names["echo-%s:latest" % service] = open(self._deployment["working_dir"] + "/source", encoding="utf-8").read()

    def create(self, remove_orphans=False):
        config = self.config()
        volumes = [volume["name"] for volume in config["volumes"].values()]
        self._engine.there += [volume for volume in volumes if volume not in self._engine.there]
        for name in ("echo-app", "postgres"):
            reference = config["services"][name].get("image", "echo-%s:latest" % name)
            image = self._engine.names[reference]
            if self._engine.container(name)["image_id"] != image:
                self._engine.change(name, image=reference, image_id=image, state="created", restarts=0)

    def up(self, *services):
        for name in services:
            self._engine.start(name)

    def down(self):
        pass


class Host:
    """A host with an Echo of version 1."""

    def __init__(self, tmp_path, monkeypatch):
        self.folder = tmp_path / "state"
        self.src = tmp_path / "src"
        self.src.mkdir()
        (self.src / "docker-compose.yml").write_text(COMPOSE)
        (self.src / ".env").write_text(ENV)
        labels = {
            "com.docker.compose.project.working_dir": str(self.src),
            "com.docker.compose.project.config_files": str(self.src / "docker-compose.yml"),
        }
        data = dict(type="volume", name="echo-postgres-data", source="/x", destination="/var/lib/postgresql/data", rw=True)
        self.engine = Images(
            container("postgres", project="echo", service="postgres", image="postgres:15", image_id="old-pg", labels=labels, mounts=[data]),
            container("echo-app", project="echo", service="echo-app", image="echo:1", image_id="old-app", health="healthy", labels=labels),
        )
        self.live, self.staged, self.rows = "old data", None, dict(TABLES)
        self.filled = None
        monkeypatch.setattr(module, "ensure_restored", self.restored)
        monkeypatch.setattr(module, "resolve", lambda source, root: dict(path=source, components={"database": {}}, tables=TABLES))
        monkeypatch.setattr(module, "Database", lambda engine, name: self)
        monkeypatch.setattr(module, "POLL", 0.001)

    def describe(self, tables=True):
        return dict(tables=self.rows)

    def restored(self, unused_engine, state, source=None, folder=None, components=None, **unused):
        """The restore, which has a journal of its own."""
        if folder == str(self.folder / "echo.upgrade"):
            self.filled = components
            return
        path = self.folder / "echo.json"
        rests = dict(id="0123abcd", kind="restore", facts=dict(source=dict(path=source or "set")), steps=[dict(step="rest", time=1, data={})])
        if state == "staged":
            self.staged = self.live
        elif state == "committed":
            self.live, self.staged = self.staged or "old data", None
        else:
            self.staged = None
        operation, kept = (rests, None) if state == "staged" else (None, rests if state == "committed" else None)
        path.write_text(json.dumps(dict(format="echo-journal/1", operation=operation, kept=kept)))

    def to(self, state, **more):
        plan = dict(PLAN, **more.pop("plan", {}))
        return ensure_deployment(
            self.engine,
            state,
            folder=str(self.folder),
            project="echo",
            plan=plan,
            make_compose=lambda deployment, unused: Compose(self.engine, deployment),
            owner=more.pop("owner", identity()),
            health_timeout=0.05,
            settle=0,
            **more
        )

    def start_new(self):
        """What the role does with ``docker_compose_v2``; the new version migrates."""
        compose = Compose(self.engine, dict(files=[str(self.src / "docker-compose.yml")], env_file=str(self.src / ".env")))
        compose.create()
        compose.up("postgres", "echo-app")
        self.live = "migrated data"

    def is_as_before(self):
        app = self.engine.container("echo-app")
        return (
            (app["image_id"], app["state"], self.live, self.staged) == ("old-app", "running", "old data", None)
            and (self.src / "docker-compose.yml").read_text() == COMPOSE
            and (self.src / ".env").read_text() == ENV
            and self.engine.names["echo:1"] == "old-app"
            and not [name for name in self.engine.names if name.startswith("echo-keep")]
            and not (self.folder / "echo.upgrade").exists()
        )


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def git(folder, *argv):
    author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(["git", *author, "-C", str(folder), *argv], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@pytest.fixture
def built(host):
    """A host whose app is built from a checkout, of the branch ``one``."""
    (host.src / "docker-compose.yml").write_text(BUILT)
    (host.src / "source").write_text("old-app")
    git(host.src, "init", "--quiet", "--initial-branch=one")
    git(host.src, "add", "docker-compose.yml", "source")
    git(host.src, "commit", "--quiet", "--message=one")
    uploads = dict(type="volume", name="echo-uploads", source="/y", destination="/app/uploads", rw=True)
    host.engine.change("echo-app", image="echo-echo-app", mounts=[uploads])
    host.engine.names["echo-echo-app:latest"] = "old-app"
    host.engine.there.append("echo-uploads")
    return host


def commit_two(host, compose, source="new-app"):
    """Commit a second version, as the tag ``two``."""
    (host.src / "docker-compose.yml").write_text(compose)
    (host.src / "source").write_text(source)
    git(host.src, "commit", "--quiet", "--all", "--message=two")
    git(host.src, "tag", "two")
    git(host.src, "reset", "--quiet", "--hard", "HEAD~1")


def killed(*unused, **also_unused):
    raise KeyboardInterrupt


def refuse(*unused, **also_unused):
    raise EngineError("The disk is full.")


def upgrade(host, until=None, owner=None, **plan):
    """Take the steps of an upgrade, up to one."""
    by = dict(owner=owner or identity())
    steps = [
        ("saved", lambda: host.to("saved", plan=plan, **by)),
        ("stopped", lambda: host.to("stopped", **by)),
        ("switched", lambda: host.to("switched", source="set", **by)),
        ("started", host.start_new),
        ("verified", lambda: host.to("verified", **by)),
        ("committed", lambda: host.to("committed", **by)),
    ]
    for name, step in steps:
        result = step()
        if name == until:
            break
    return result


def test_a_good_version_stays(host):
    result = upgrade(host, version="2")
    app = host.engine.container("echo-app")
    assert (app["image"], app["state"], host.live, host.staged) == ("echo:2", "running", "migrated data", None)
    assert (host.src / ".env").read_text() == ENV.replace("VERSION=1", "VERSION=2")
    assert result["downtime"] >= 0
    assert not (host.folder / "echo.upgrade").exists()
    assert host.to("saved", plan=dict(version="2"), check=True)["up_to_date"]


@pytest.mark.parametrize("step", ["saved", "stopped", "switched", "started", "verified"])
def test_whatever_step_it_broke_off_at_the_old_version_comes_back(host, step):
    upgrade(host, until=step, version="2")
    assert host.to("restored")["direction"] == "back"
    assert host.is_as_before()
    assert host.to("restored")["changed"] is False


@pytest.mark.parametrize("call", ["stop", "_put", "_restore", "name_image", "_await_health", "_forget"])
def test_a_way_back_that_breaks_off_is_gone_again(host, monkeypatch, call):
    upgrade(host, until="started", version="2")
    # A build has moved the old version's tag as well.
    host.engine.names["echo:1"] = "new-app"
    owner = host.engine if hasattr(host.engine, call) else module.Deployment
    with monkeypatch.context() as broken:
        broken.setattr(owner, call, killed)
        with pytest.raises(KeyboardInterrupt):
            host.to("restored")
    assert host.to("restored")["log"] == ["migration failed"]
    assert host.is_as_before()


def test_one_that_was_being_committed_goes_forward(host, monkeypatch):
    upgrade(host, until="verified", version="2")
    with monkeypatch.context() as broken:
        broken.setattr(module.Deployment, "_forget", killed)
        with pytest.raises(KeyboardInterrupt):
            host.to("committed")
    assert host.to("restored")["direction"] == "forward"
    assert host.engine.container("echo-app")["image"] == "echo:2"


def test_a_version_that_never_gets_healthy_is_told_with_its_log(host):
    upgrade(host, until="started", version="2")
    host.engine.change("echo-app", health="unhealthy")
    with pytest.raises(StackError, match="didn't become healthy") as caught:
        host.to("verified")
    assert caught.value.details["log"] == ["migration failed"]


def test_a_version_that_crashes_is_not_waited_for(host):
    upgrade(host, until="started", version="2")
    host.engine.change("echo-app", state="exited")
    with pytest.raises(StackError, match="crashes"):
        host.to("verified")


def test_a_version_that_is_healthy_and_then_crashes(host, monkeypatch):
    upgrade(host, until="started", version="2")
    monkeypatch.setattr(module.time, "sleep", lambda unused: host.engine.change("echo-app", restarts=1))
    with Journal("echo.upgrade", str(host.folder)) as journal:
        work = module.Deployment(host.engine, journal, str(host.folder), health_timeout=60)
        with pytest.raises(StackError, match="was healthy, and then no more"):
            work._await_health(dict(app="echo-app"), settle=60)


def test_a_version_that_drops_rows_of_users(host):
    upgrade(host, until="started", version="2")
    host.rows = {"public.users": 4, "public.albums": 0}
    with pytest.raises(UpgradeError, match="public.users has 4 instead of 5") as caught:
        host.to("verified")
    assert caught.value.details["fewer"] == [dict(table="public.users", expected=5, found=4)]


def test_an_image_that_is_missing_stops_nothing(host):
    host.to("saved", plan=dict(version="3"))
    with pytest.raises(UpgradeError, match="no image echo:3.*was not stopped"):
        host.to("stopped")
    assert host.engine.container("echo-app")["state"] == "running"
    host.to("restored")
    assert host.is_as_before()


def test_a_major_upgrade_of_postgres_gets_a_volume_of_its_own(host):
    result = host.to("saved", plan=dict(postgres_version="17"), check=True)
    assert result["fresh"] == ["database"] and result["touched"] == []
    assert result["wanted"] == {"app": "echo:1", "database": "postgres:17"}
    assert '"echo-postgres-data-pg17"' in result["diff"]["after"]
    assert "SECRET" not in json.dumps(result)
    assert not host.folder.exists()


def test_a_ref_that_renames_a_volume_has_it_filled(built, monkeypatch):
    components = {"database": {}, "uploads": {}}
    monkeypatch.setattr(module, "resolve", lambda source, root: dict(path=source, components=components, tables=TABLES))
    # The image is the same, but the containers are not.
    commit_two(built, BUILT.replace("name: echo-uploads", "name: echo-music"), source="old-app")
    assert built.to("saved", plan=dict(version="two"))["fresh"] == []
    result = built.to("built")
    assert (result["fresh"], result["touched"]) == (["uploads"], ["database"])
    assert '"echo-music"' in result["diff"]["after"]
    assert built.to("stopped")["changed"]
    built.to("switched", source="set")
    assert built.filled == ["uploads"]
    built.to("restored")
    assert (built.src / "docker-compose.yml").read_text() == BUILT
    assert git(built.src, "rev-parse", "--abbrev-ref", "HEAD") == "one"


def test_postgres_is_upgraded_in_the_files_that_a_ref_brought(built):
    brought = BUILT.replace("    build: .\n", "    build: .\n    user: echo\n")
    commit_two(built, brought)
    built.to("saved", plan=dict(version="two", postgres_version="17"))
    result = built.to("built")
    assert result["wanted"] == {"app": "echo-echo-app:latest", "database": "postgres:17"}
    assert (result["pulls"], result["fresh"]) == (["postgres:17"], ["database"])
    built.to("stopped")
    built.to("switched", source="set")
    assert (built.src / "docker-compose.yml").read_text() == brought.replace("echo-postgres-data", "echo-postgres-data-pg17")
    assert (built.src / ".env").read_text() == ENV.replace("POSTGRES=15", "POSTGRES=17")
    built.to("restored")
    assert (built.src / "docker-compose.yml").read_text() == BUILT
    assert (built.src / ".env").read_text() == ENV
    assert git(built.src, "status", "--porcelain", "--untracked-files=no") == ""


def test_a_ref_that_brings_a_volume_for_another_postgres_gets_no_second_one(built):
    brought = BUILT.replace("echo-postgres-data", "echo-new-data").replace("${POSTGRES:-15}", "17")
    commit_two(built, brought)
    built.to("saved", plan=dict(version="two", postgres_version="17"))
    assert built.to("built")["fresh"] == ["database"]
    built.to("stopped")
    built.to("switched", source="set")
    assert (built.src / "docker-compose.yml").read_text() == brought


def test_an_app_that_is_built_without_a_name_is_known_by_the_one_of_compose(built):
    commit_two(built, BUILT)
    current = built.to("saved", plan=dict(version="one"), check=True)
    assert current["wanted"]["app"] == "echo-echo-app:latest" and current["up_to_date"]
    assert not built.to("saved", plan=dict(version="two"), check=True)["up_to_date"]


def test_what_is_not_built_is_pulled_for_a_rebuild(built):
    assert built.to("saved", plan=dict(rebuild=True), check=True)["pulls"] == ["postgres:15"]


def test_an_image_without_a_tag_is_the_latest(host):
    (host.src / "docker-compose.yml").write_text(COMPOSE.replace("echo:${VERSION:-latest}", "echo"))
    host.engine.names["echo:latest"] = "old-app"
    assert host.to("saved", plan=dict(postgres_version="15"), check=True)["up_to_date"]


def test_a_server_of_the_new_version_that_crashes_is_not_waited_for(host, monkeypatch):
    def crash(*unused, **also_unused):
        server = host.engine.container("postgres")
        host.engine.change("postgres", restarts=server["restarts"] + 1)
        raise EngineError("It doesn't answer.")

    upgrade(host, until="stopped", postgres_version="17")
    with monkeypatch.context() as patched, pytest.raises(StackError, match="database of the image postgres:17 crashes") as caught:
        patched.setattr(host, "describe", crash)
        host.to("switched", source="set")
    assert caught.value.details["log"] == host.engine.log
    assert sorted(host.engine.there) == ["echo-postgres-data", "echo-postgres-data-pg17"]
    host.to("restored")
    assert host.is_as_before()
    assert host.engine.there == ["echo-postgres-data"]


def test_a_volume_that_the_new_version_had_filled_is_kept(host):
    upgrade(host, until="verified", postgres_version="17")
    host.to("restored")
    assert sorted(host.engine.there) == ["echo-postgres-data", "echo-postgres-data-pg17"]


def test_compose_has_the_last_word(host, monkeypatch):
    stubborn = dict(services={"postgres": dict(image="postgres:15"), "echo-app": dict(image="echo:1")}, volumes={})
    monkeypatch.setattr(Compose, "config", lambda *unused: stubborn)
    with pytest.raises(UpgradeError, match="would still start echo:1"):
        host.to("saved", plan=dict(version="2"), check=True)


def test_several_environment_files_are_refused(tmp_path):
    compose = tmp_path / "docker-compose.yml"
    compose.write_text(COMPOSE)
    deployment = dict(project="echo", working_dir=str(tmp_path), files=[str(compose)], env_files=["a.env", "b.env"], env_file="b.env")
    with pytest.raises(StackError, match="several environment files: a.env, b.env"):
        make_plan(None, dict(deployment=deployment, containers={}), None)


def test_steps_have_an_order(host):
    with pytest.raises(JournalError, match="begins with state=saved"):
        host.to("switched", source="set")
    upgrade(host, until="saved", version="2")
    with pytest.raises(JournalError, match="begins with state=saved"):
        host.to("verified")


def test_a_restore_that_rests_is_not_overtaken(host):
    host.folder.mkdir()
    host.restored(host.engine, "staged", source="other")
    with pytest.raises(UpgradeError, match="rests here"):
        host.to("saved", plan=dict(version="2"))


def hold_back(host, phase="migrated"):
    """Have a migration hold the app back, as on a host that is left."""
    host.folder.mkdir(exist_ok=True)
    content = dict(format="echo-migration/1", id="0a1b2c3d", side="source", project="echo", peer="new", phase=phase, steps=[])
    content["facts"] = dict(containers={"echo-app": dict(role="app", policy="always", ran=False)})
    (host.folder / "echo.migration.json").write_text(json.dumps(content))


@pytest.mark.parametrize("before", [None, "saved", "stopped"])
def test_a_host_that_was_migrated_away_is_not_upgraded(host, before):
    if before:
        upgrade(host, until=before, version="2")
    hold_back(host)
    with pytest.raises(UpgradeError, match="it is the source of 0a1b2c3d, migrated") as caught:
        host.to({None: "saved", "saved": "stopped", "stopped": "switched"}[before], plan=dict(version="2"), source="set")
    assert "playbook migrate" in caught.value.remedy
    with pytest.raises(UpgradeError, match="holds the app of echo back"):
        host.to("saved", plan=dict(rebuild=True), check=True)


def test_the_way_back_starts_nothing_that_a_migration_holds_back(host):
    upgrade(host, until="stopped", version="2")
    hold_back(host, "fenced")
    assert host.to("restored")["direction"] == "back"
    assert host.engine.container("echo-app")["state"] == "exited"
    # The migration starts it if it ends by going back.
    assert json.loads((host.folder / "echo.migration.json").read_text())["facts"]["containers"]["echo-app"]["ran"]
    assert host.to("restored")["changed"] is False


def test_the_way_back_of_data_waits_for_a_migration(host):
    upgrade(host, until="started", version="2")
    host.engine.names["echo:1"] = "new-app"
    hold_back(host, "fenced")
    with pytest.raises(UpgradeError, match="wait for a migration.*0a1b2c3d, fenced"):
        host.to("restored")
    assert (host.src / ".env").read_text() == ENV and host.engine.names["echo:1"] == "old-app"
    assert host.engine.container("echo-app")["state"] == "exited"
    hold_back(host, "released")
    host.to("restored", owner="elsewhere/x 1 2")
    assert host.is_as_before()


def test_another_living_upgrade_is_left_alone_and_a_dead_one_is_not(host):
    upgrade(host, until="stopped", version="2")
    with pytest.raises(JournalError, match="under way here, at the step stopped"):
        host.to("restored", owner="elsewhere/x 1 2")
    with Journal("echo.upgrade", str(host.folder)) as journal:
        journal.operation["facts"]["owner"] = identity().rpartition(" ")[0] + " 1"
        journal.record("stopped")
    host.to("restored", owner="elsewhere/x 1 2")
    assert host.is_as_before()


def test_a_way_back_that_failed_is_anybodys_to_go_on_with(host, monkeypatch):
    upgrade(host, until="started", version="2", owner="elsewhere/x 1 2")
    with monkeypatch.context() as patched, pytest.raises(EngineError, match="disk is full"):
        patched.setattr(host.engine, "start", refuse)
        host.to("restored", owner="elsewhere/x 1 2")
    host.to("restored", owner="elsewhere/y 3 4")
    assert host.is_as_before()


def test_from_elsewhere_the_lease_counts():
    operation = dict(facts=dict(owner="elsewhere/x 1 2", lease=900, deployment=dict(project="echo")), steps=[dict(step="saved", time=1000.0)])
    with pytest.raises(JournalError, match="a lease of 0"):
        require_free(operation, "", 900, now=1899)
    require_free(operation, "", 900, now=1901)
    require_free(operation, "", 0, now=1001)


def test_a_tool_that_fails_is_named(tmp_path):
    with pytest.raises(ToolError, match="git rev-parse ended with exit code"):
        Checkout(str(tmp_path)).current()
    with pytest.raises(ToolError, match="Could not run no-such-tool"):
        run_tool(["no-such-tool"], str(tmp_path), None, 5)
    begun = time.monotonic()
    with pytest.raises(ToolError, match="didn't end within"):
        run_tool(["sleep", "60"], str(tmp_path), None, 0.1)
    assert time.monotonic() - begun < 30
