# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The database that a restore replaces, which may be whole, damaged, gone, or asleep.

What a side database must be like is asked of the live one, as far as it answers; else the
backup's manifest tells it, else the server's own template.
"""

from __future__ import annotations

import json
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import MAINTENANCE

WHOLE, DAMAGED, MISSING, STOPPED, BROKEN = "whole", "damaged", "missing", "stopped", "broken"
ABOUT = ("encoding", "collate", "ctype", "owner", "server_version_num", "extensions")
SERVER_TIMEOUT = 180
SERVER_POLL = 0.5
# A server counts as one that can't run when the engine had to start it anew so often, or waits so many polls
# before it tries once more: the engine doubles that time with each try, up to a minute.
STARTS, WAITS = 3, 6
# A server whose network doesn't include itself is ready when its socket has been so for that many polls.
SOCKET_POLLS = 20
ROLES = "SELECT coalesce(json_agg(rolname), '[]') FROM pg_roles;"


class ServerBroken(StackError):
    """The database server ends as soon as it is started."""


def look_at_database(engine, described, recorded=None, broken=None):
    """Return what a restore must know of the live database, whatever became of it.

    ``described`` is what ``stack.describe`` told of it, ``recorded`` the manifest's
    description, ``broken`` why the server can't run. Keys: ``state`` (``whole``,
    ``damaged``, ``missing``; of the server ``stopped``, ``broken``),
    ``problem`` (None, or why it isn't whole), ``container name bytes tables`` and
    :data:`ABOUT`. What nobody knows is None. Raises ``EchoError`` where the server runs and
    lets nobody in.
    """
    found = dict.fromkeys(("name", "bytes", "tables") + ABOUT)
    if not described.get("error"):
        return dict(described, state=WHOLE, problem=None)
    found.update(container=described["container"], problem=described["error"])
    container = engine.container(described["container"])
    if broken or container["state"] != "running":
        found.update(_known(recorded or {}), name=_name(container["env"], recorded))
        found.update(server_version_num=None, state=STOPPED)
        if broken or container["state"] == "restarting":
            found.update(state=BROKEN, problem=broken or described["error"])
        return found
    live = Database(engine, described["container"])
    try:
        # Its rows can't all be read, but the catalog tells what it is.
        return dict(found, state=DAMAGED, **_known(live.describe(tables=False), more=("name", "bytes")))
    except EchoError as error:
        like, roles = _ask_template(live, error)
        there = error.details.get("databases")
    # A server that can't open a database often can rename it.
    found.update(state=DAMAGED if there is None or live.name in there else MISSING, name=live.name)
    found.update(_known(like), owner=live.user)
    if recorded:
        found.update((key, recorded[key]) for key in ("encoding", "collate", "ctype", "extensions"))
        found.update(owner=recorded["owner"] if recorded["owner"] in roles else live.user)
    return found


def _ask_template(live, cause):
    """Return what the server's own template is like, and the roles; raise the cause if it can't be asked either."""
    template = Database(live.engine, live.container, user=live.user, name=MAINTENANCE)
    try:
        return template.describe(tables=False), json.loads(template.query(ROLES)[0])
    except EchoError:
        raise cause


def await_server(engine, container, timeout=SERVER_TIMEOUT):
    """Wait until a server that was started takes connections.

    The images of PostgreSQL start a server without a network first, on an empty volume, so
    the local socket alone tells nothing. Raises ``ServerBroken`` if the server ends instead.
    """
    deadline = time.monotonic() + timeout
    starts, waits, on_socket = set(), 0, 0
    while True:
        found = engine.container(container)
        state = found["state"]
        starts.add(found["started_at"])
        waits += state == "restarting"
        if state in ("exited", "dead") or len(starts) > STARTS or waits > WAITS:
            raise ServerBroken(
                "The database server in the container %s stopped when it was started." % container,
                "'docker logs %s' has its side." % container,
            )
        if state == "running" and _answers(engine, container, "--host=127.0.0.1"):
            return
        on_socket = on_socket + 1 if state == "running" and _answers(engine, container) else 0
        if on_socket > SOCKET_POLLS:
            return
        if time.monotonic() > deadline:
            raise StackError(
                "The database server in the container %s didn't take connections within %d s." % (container, timeout),
                "'docker logs %s' has its side." % container,
            )
        time.sleep(SERVER_POLL)


def _answers(engine, container, *where):
    try:
        with engine.run_in(container, ["pg_isready", "--quiet"] + list(where)) as command:
            command.finish()
        return True
    except EchoError:
        return False


def _known(described, more=()):
    return dict((key, described.get(key)) for key in ABOUT + more)


def _name(env, recorded):
    """Return the database's name as ``Database`` finds it, without a server to ask for a file."""
    return env.get("POSTGRES_DB") or env.get("POSTGRES_USER") or (recorded or {}).get("name") or "postgres"
