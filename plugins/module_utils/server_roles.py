# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles that a server had, out of ``pg_dumpall --globals-only``, of which the missing ones are created.

The file is somebody else's word, and what it asks for would be done by a superuser. So nothing
of it is run. Lines of a few known forms are taken apart, and statements made anew of what is
harmless: a name, whether it may log in, how often and until when, what the server kept of its
password, and who is a member of whom among the roles that are created. What gives power over a
server is left out, and so are superusers, for the server has its own. A role that is there is
never touched.

A role that a restore created carries its mark in a comment, so that going back removes those and
no other, whatever happened meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import re

from ansible_collections.echo_music.ops.plugins.module_utils.dump_file import Sieve
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError, SetError
from ansible_collections.echo_music.ops.plugins.module_utils.live_database import BROKEN, ROLES, STOPPED
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import read_small
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import (
    LOADER,
    MAINTENANCE,
    Superuser,
    identifier,
    literal,
)

LIMIT = 4 * 1024 * 1024
NAME_BYTES = 63
RESERVED = re.compile(r"(?:pg_|(?:public|none)\Z)")
SHOWN = 5

NAME = r'(?:[a-z_][a-z0-9_$]*|"(?:[^"\\\x00-\x1f]|"")+")'
FLAGS = ("SUPERUSER", "INHERIT", "CREATEROLE", "CREATEDB", "LOGIN", "REPLICATION", "BYPASSRLS")
POWERS = ("CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS")
ATTRIBUTE = r"(?:(?:NO)?(?:%s)|CONNECTION LIMIT (?:-1|[0-9]{1,9})|(?:PASSWORD|VALID UNTIL) '[^'\\]*')" % "|".join(FLAGS)
CREATE = re.compile(r"CREATE ROLE (%s);\Z" % NAME)
ALTER = re.compile(r"ALTER ROLE (%s) WITH (%s(?: %s)*);\Z" % (NAME, ATTRIBUTE, ATTRIBUTE))
SETTING = re.compile(r"ALTER ROLE (%s) (?:IN DATABASE %s )?SET " % (NAME, NAME))
MEMBER_OPTION = r"(?:ADMIN OPTION|INHERIT (?:TRUE|FALSE)|SET (?:TRUE|FALSE))"
GRANT = re.compile(
    r"GRANT (%s) TO (%s)(?: WITH (%s(?:, %s)*))?(?: GRANTED BY %s)?;\Z" % (NAME, NAME, MEMBER_OPTION, MEMBER_OPTION, NAME)
)
# Neither do these matter, nor are they worth a word.
SILENT = re.compile(r"(?:SET [a-z_]+ = |COMMENT ON ROLE |--|\Z)")
RESTRICT = re.compile(r"\\(?:un)?restrict [A-Za-z0-9]+\Z")
KEYWORDS = re.compile(r"[A-Z]+(?: [A-Z]+)*")
LIMITED = re.compile(r"CONNECTION LIMIT (-?[0-9]+)")
PASSWORD = re.compile(r"PASSWORD '([^']*)'")
VALID = re.compile(r"VALID UNTIL '([^']*)'")
# What a server keeps of a password. A password itself never comes out of pg_dumpall.
VERIFIER = re.compile(r"(?:SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+|md5[0-9a-f]{32})\Z")
MOMENT = re.compile(r"(?:infinity|[0-9]{4,6}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?[+-][0-9:]{2,8})\Z")
# They show how a server does, and no data. The others read files, run programs, or reach other databases.
HARMLESS_GROUPS = ("pg_monitor", "pg_read_all_settings", "pg_read_all_stats", "pg_stat_scan_tables")

WITHOUT_POWER = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
MARK = "Created by a restore of echo_music.ops, %s"
# A statement with a password's verifier belongs in no log of the server.
UNLOGGED = [
    "SET LOCAL log_statement = 'none';",
    "SET LOCAL log_min_error_statement = 'panic';",
    "SET LOCAL log_min_duration_statement = -1;",
    "SET LOCAL log_min_duration_sample = -1;",
    "SET LOCAL log_transaction_sample_rate = 0;",
]
# Privileges, property and policies in any database depend on a role; so do members that were added to it.
DROP = """
SELECT format('DROP ROLE %I', r.rolname) FROM pg_roles r
WHERE r.rolname IN ({names}) AND shobj_description(r.oid, 'pg_authid') = {mark}
    AND NOT EXISTS (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid)
    AND NOT EXISTS (
        SELECT FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member
        WHERE a.roleid = r.oid AND shobj_description(m.oid, 'pg_authid') IS DISTINCT FROM {mark}) \\gexec
"""


class Role:
    """What a file says of one role."""

    def __init__(self):
        self.flags = set()
        self.connection_limit = None
        self.password = None
        self.valid_until = None
        self.left_out = []


class Globals:
    """A file of globals, taken apart: ``roles`` by name, ``members`` as ``(role, member, options)``, ``ignored`` kinds."""

    def __init__(self, text):
        self.roles = {}
        self.members = []
        self.ignored = []
        sieve = Sieve()
        for line in text.replace("\r\n", "\n").split("\n"):
            if RESTRICT.match(line):
                continue
            # What looks like a statement may be the second line of a comment.
            if sieve.follow(line.encode("utf-8") + b"\n"):
                self._take(line)

    def _take(self, line):
        create, alter, setting, grant = (form.match(line) for form in (CREATE, ALTER, SETTING, GRANT))
        if create:
            self.roles.setdefault(unquoted(create.group(1)), Role())
        elif alter and unquoted(alter.group(1)) in self.roles:
            _describe(self.roles[unquoted(alter.group(1))], alter.group(2))
        elif setting and unquoted(setting.group(1)) in self.roles:
            self.roles[unquoted(setting.group(1))].left_out.append("its settings")
        elif grant:
            self.members.append((unquoted(grant.group(1)), unquoted(grant.group(2)), grant.group(3)))
        elif not SILENT.match(line):
            # By its first words alone: what follows may be secret.
            found = KEYWORDS.match(line)
            self.ignored.append(found.group() if found else "a line of an unknown kind")

    def missing(self, there, not_these):
        """Return the names of the roles to create where some are there; ``not_these`` have another name here."""
        return [
            name
            for name, role in self.roles.items()
            if name not in there and name not in not_these and name != LOADER
            if "SUPERUSER" not in role.flags and not RESERVED.match(name) and len(name.encode("utf-8")) <= NAME_BYTES
        ]

    def remarks(self, names, there, not_these):
        """Return what is left out where these roles are created, for people."""
        said = []
        superusers = [name for name, role in self.roles.items() if "SUPERUSER" in role.flags]
        absent = [name for name in superusers if name not in there and name not in not_these]
        if absent:
            said.append("superusers are not created: %s" % listed(absent))
        for name in names:
            role = self.roles[name]
            left_out = [power for power in POWERS if power in role.flags] + sorted(set(role.left_out))
            if "LOGIN" in role.flags and not role.password and "its password" not in left_out:
                left_out.append("a password, which the set doesn't hold")
            if left_out:
                said.append("the role %s is created without %s" % (name, ", ".join(left_out)))
        groups = sorted(set(group for group, member, unused in self.members if member in names and not _may(group, names)))
        if groups:
            said.append("no role becomes a member of %s" % listed(groups))
        if self.ignored:
            said.append("left out: %s" % listed(sorted(set(self.ignored))))
        return said

    def statements(self, names, mark):
        """Return SQL that creates the roles of these names."""
        made = []
        for name in names:
            role = self.roles[name]
            options = [flag if flag in role.flags else "NO" + flag for flag in ("LOGIN", "INHERIT")]
            if role.connection_limit is not None:
                options.append("CONNECTION LIMIT %d" % role.connection_limit)
            if role.valid_until:
                options.append("VALID UNTIL %s" % literal(role.valid_until))
            made.append("CREATE ROLE %s %s %s;" % (identifier(name), WITHOUT_POWER, " ".join(options)))
            made.append("COMMENT ON ROLE %s IS %s;" % (identifier(name), literal(mark)))
            if role.password:
                made.append("ALTER ROLE %s PASSWORD %s;" % (identifier(name), literal(role.password)))
        for group, member, options in self.members:
            if member in names and _may(group, names):
                made.append(
                    "GRANT %s TO %s%s;" % (identifier(group), identifier(member), " WITH " + options if options else "")
                )
        return made


class ServerRoles:
    """The roles of a running server, as far as a restore is about them."""

    def __init__(self, database, tag):
        self._database = database
        self._mark = MARK % tag

    @property
    def _server(self):
        """Made when it is needed: a server that sleeps can't be asked for its user."""
        return Superuser(self._database, MAINTENANCE)

    def create(self, facts):
        """Create the roles that :func:`plan_roles` found missing; all of them or none."""
        if not facts or not facts["create"]:
            return
        there = json.loads(self._server.query(ROLES)[0])
        names = [name for name in facts["create"] if name not in there]
        statements = _read(facts).statements(names, self._mark)
        self._server.tell("create roles through", "BEGIN;", *(UNLOGGED + statements + ["COMMIT;"]))

    def drop(self, facts):
        """Remove those that :meth:`create` created, but for roles that something depends on by now."""
        if facts and facts["create"]:
            names = ", ".join(map(literal, facts["create"]))
            self._server.tell("drop roles through", DROP.format(names=names, mark=literal(self._mark)))


def plan_roles(engine, live, found):
    """Return ``{"file", "sha256", "create": [names], "remarks"}`` of a source's globals, None where there are none.

    ``live`` is what ``look_at_database`` returned, ``found`` what ``resolve`` did. Of a server that
    can't be asked ``create`` is None, unless it is to be made anew.
    """
    if not found["globals"]:
        return None
    facts = dict(found["globals"], create=[], remarks=[])
    try:
        declared = _read(facts)
    except EchoError as error:
        # Nothing of the data is in it.
        return dict(facts, remarks=["no role is created: %s" % error])
    if live["state"] == STOPPED:
        return dict(facts, create=None)
    if live["state"] == BROKEN:
        env = engine.container(live["container"])["env"]
        there = [env.get("POSTGRES_USER") or "postgres"]
    else:
        there = json.loads(Superuser(Database(engine, live["container"]), MAINTENANCE).query(ROLES)[0])
    # Everything of the owner becomes the property of the owner here.
    not_these = [found["database"]["owner"]] if found["database"] else []
    names = declared.missing(there, not_these)
    return dict(facts, create=names, remarks=declared.remarks(names, there, not_these))


def unquoted(name):
    """Return a name that SQL has, as it is."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _read(facts):
    data = read_small(facts["file"], LIMIT)
    if facts["sha256"] != hashlib.sha256(data).hexdigest():
        raise SetError("%s is not the file that its manifest tells of." % facts["file"], "Use another copy of this set.")
    try:
        return Globals(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise SetError("%s is not UTF-8." % facts["file"], "Create what it names by hand, as far as it is needed.")


def _describe(role, attributes):
    words = re.sub(r"'[^']*'", "", attributes).split()
    role.flags = set(words).intersection(FLAGS)
    limit, password, valid = (form.search(attributes) for form in (LIMITED, PASSWORD, VALID))
    role.connection_limit = int(limit.group(1)) if limit else None
    if password and VERIFIER.match(password.group(1)):
        role.password = password.group(1)
    elif password:
        role.left_out.append("its password")
    if valid and MOMENT.match(valid.group(1)):
        role.valid_until = valid.group(1)
    elif valid:
        role.left_out.append("the end of its validity")


def _may(group, names):
    return group in names or group in HARMLESS_GROUPS


def listed(names):
    """Return names for people, not too many of them."""
    return ", ".join(names[:SHOWN] + ["and %d more" % (len(names) - SHOWN)] * (len(names) > SHOWN))
