# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore into throwaway servers: PostgreSQL, Redis and the app, in a network that leads nowhere.

What restores live data does the work here as well: the side database, the extractor, the
exchange. All that is created carries the identity of this process, so what is left of one
that was killed goes at the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
import urllib.parse
import uuid

from ansible_collections.echo_music.ops.plugins.module_utils import exchange
from ansible_collections.echo_music.ops.plugins.module_utils.drill_images import named
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError, EchoError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.extract import root_of, unpack
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database, last_lines
from ansible_collections.echo_music.ops.plugins.module_utils.progress import phase, seldom
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import (
    SIZE_EVERY,
    ServerError,
    SideDatabase,
    Superuser,
)

MOUNTS = {"uploads": "/app/uploads", "config": "/app/config", "data": "/app/data"}
# Names of the database and its owner, and what it is like, where no manifest tells.
NAMES = {"classic": ("music_server", "music_admin"), "unified": ("echo", "echo")}
LIKE = dict(encoding="UTF8", collate="C", ctype="C", extensions=[])

STAGED, REPLACED = ".echo-restore-drill/new", ".echo-restore-drill/old"
SERVER_TIMEOUT = 180
POLL = 0.2
ALIVE = ("created", "running")

PG_HEALTH = ["CMD", "pg_isready", "--quiet", "--host=127.0.0.1"]
REDIS_HEALTH = ["CMD-SHELL", 'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli ping | grep -q PONG']
# The password goes from the environment to the configuration, and is no argument on the way.
REDIS = ["sh", "-c", "printf 'protected-mode no\\nsave \"\"\\nrequirepass %s\\n' \"$REDIS_PASSWORD\" | redis-server -"]
NOBODY = "65534:65534"
APP_HEALTH = {"classic": "/health", "unified": "/api/health"}
APP_PORT = "4567"

ROLE_NAMES = "SELECT coalesce(json_agg(quote_ident(rolname)), '[]') FROM pg_roles;"
CREATE_ROLE = re.compile(rb'^CREATE ROLE ([a-z_][a-z0-9_$]*|"(?:[^"\n]|"")+");\r?$', re.M)


class AppError(EchoError):
    """The app doesn't work on the data that was restored."""


class Drill:
    """Throwaway servers; a context manager that leaves nothing of them behind."""

    def __init__(self, engine):
        self._engine = engine
        self._name = "echo-drill-" + uuid.uuid4().hex[:8]
        self._containers = []
        self._volumes = {}
        self._secrets = []
        self._database = None

    def __enter__(self):
        self._engine.remove_stale_helpers()
        self._engine.throwaway_network(self._name)
        return self

    def __exit__(self, kind, *unused):
        # What went wrong before says more; what stays goes at the next run.
        with contextlib.suppress(*([EchoError] if kind else [])):
            self._engine.remove_throwaway(self._containers, self._volumes, self._name)

    def start_server(self, image, name, owner):
        """Start an empty PostgreSQL whose superuser is the owner of the database to come."""
        self._start(
            "postgres",
            image,
            PG_HEALTH,
            env=dict(POSTGRES_USER=owner, POSTGRES_PASSWORD=self._secret(), POSTGRES_DB=name),
        )
        container = self._await_healthy("postgres", SERVER_TIMEOUT)
        database = Database(self._engine, container["name"])
        self._database = Superuser(database, database.name)

    def load(self, file, kind, like, globals_file=None):
        """Load a dump as a restore does; return the database, described, with its rows counted."""
        side = SideDatabase(self._database, "drill")
        try:
            if globals_file:
                self._create_roles(globals_file)
            side.create(like)
            with phase(os.path.basename(file), like.get("bytes"), seldom(SIZE_EVERY, side.size)):
                side.load(file, kind)
            side.finish(self._database.user)
            side.swap()
            self._database.analyze()
            return self._database.describe()
        except DatabaseError as error:
            alive = self._engine.container(self._database.container)["state"] in ALIVE
            if alive and not isinstance(error, ServerError):
                raise
            raise StackError("The throwaway PostgreSQL failed under the dump: %s" % error.what, "Was memory or disk short?")

    def unpack(self, component, file, expected, bytes_free, contain):
        """Unpack an archive into a volume as a restore does; return the volume's folder on the host."""
        volume = "%s-%s" % (self._name, component)
        # Noted first: one that is created in the moment of a signal must go as well.
        self._volumes[volume] = MOUNTS[component]
        folder = self._engine.throwaway_volume(volume)
        staged = os.path.join(folder, STAGED)
        unpack(file, staged, root_of(file), expected, bytes_free=bytes_free, like=folder, contain=contain)
        exchange.swap(folder, STAGED, REPLACED)
        exchange.discard(folder, REPLACED)
        return folder

    @property
    def database(self):
        """The database that was loaded."""
        return self._database

    def start_app(self, image, redis_image, layout, more_env, timeout):
        """Start the app on what was restored; return the seconds until it was healthy."""
        password = self._secret()
        self._start("redis", redis_image["id"], REDIS_HEALTH, command=REDIS, env=dict(REDIS_PASSWORD=password), user=NOBODY)
        self._await_healthy("redis", SERVER_TIMEOUT)
        began = time.monotonic()
        address = "http://127.0.0.1:%s%s" % (APP_PORT, APP_HEALTH[layout])
        self._start(
            "app",
            image["id"],
            image["healthcheck"] or ["CMD", "wget", "-q", "-O", "/dev/null", address],
            env=dict(self._app_environment(layout, password), **more_env),
            volumes=self._volumes,
            # Echo looks for music at its start, and none of it is in a backup.
            tmpfs={"/music": ""},
        )
        try:
            with phase("app"):
                self._await_healthy("app", timeout)
        except StackError as error:
            raise AppError(error.what, "Its image is %s. Does it fit this set?" % named(image))
        return time.monotonic() - began

    def _app_environment(self, layout, redis_password):
        """Return what Echo's Compose files tell the app, of these servers."""
        account = self._database.environment()
        words = [urllib.parse.quote(account[key], safe="") for key in ("PGUSER", "PGPASSWORD", "PGDATABASE")]
        env = dict(
            NODE_ENV="production",
            HOST="0.0.0.0",
            PORT=APP_PORT,
            API_PREFIX="api",
            DATABASE_URL="postgresql://%s:%s@postgres:5432/%s?schema=public" % tuple(words),
            REDIS_HOST="redis",
            REDIS_PORT="6379",
            REDIS_PASSWORD=redis_password,
            MUSIC_LIBRARY_PATH="/music",
        )
        if layout == "classic":
            env.update(UPLOAD_PATH="/app/uploads/music", COVERS_PATH="/app/uploads/covers")
        return env

    def _create_roles(self, globals_file):
        """Create the roles that the server had, without any right: policies of a dump may name them."""
        with explained("read", globals_file), open(globals_file, "rb") as source:
            names = CREATE_ROLE.findall(source.read())
        there = json.loads(self._database.query(ROLE_NAMES)[0])
        missing = [name for name in (name.decode("utf-8", "replace") for name in names) if name not in there]
        with self._database.session() as session:
            session.ask(*["CREATE ROLE %s NOLOGIN;" % name for name in missing])

    def _secret(self):
        secret = secrets.token_urlsafe(24)
        self._secrets.append(secret)
        return secret

    def _start(self, alias, image, healthcheck, **options):
        name = "%s-%s" % (self._name, alias)
        self._containers.insert(0, name)
        self._engine.throwaway_container(name, image, self._name, alias, healthcheck, **options)

    def _await_healthy(self, alias, timeout):
        name = "%s-%s" % (self._name, alias)
        deadline = time.monotonic() + timeout
        while True:
            found = self._engine.container(name)
            if found["health"] == "healthy":
                return found
            if found["state"] not in ALIVE:
                raise self._failed(alias, "ended by itself")
            if time.monotonic() > deadline:
                raise self._failed(alias, "didn't become healthy within %d s" % timeout)
            time.sleep(POLL)

    def _failed(self, alias, how):
        said = last_lines(self._engine.logs("%s-%s" % (self._name, alias)))
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return StackError("The throwaway %s %s; it said last: %s" % (alias, how, said or "nothing."), "Look at its image.")
