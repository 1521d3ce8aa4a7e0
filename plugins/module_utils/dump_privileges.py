# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dump says of privileges, as SQL that somebody else wrote; taken apart, not trusted.

``GRANT`` and ``REVOKE`` are for the role to run that loads the dump, which owns nothing but the
side database: there they can do no more than the rest of the dump could. They are taken if they
stand on one line, have nothing in them that psql would act upon, and end in a role that is there.
Privileges by default belong to the role that will create objects, which is the owner to come. A
superuser has to set them, so these are taken apart and written anew.
"""

from __future__ import annotations

import json
import re

from ansible_collections.echo_music.ops.plugins.module_utils.live_database import ROLES
from ansible_collections.echo_music.ops.plugins.module_utils.server_roles import NAME, listed, unquoted
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import identifier

PUBLIC = "PUBLIC"
# Neither a quote of a string, nor what psql takes for a command, a variable or the end.
OBJECT = r'(?:"[^"\\\x00-\x1f]*"|[^"\\;:\'`\x00-\x1f])+'
COLUMNS = r'(?:\((?:"[^"\\\x00-\x1f]*"|[^"\\;:\'`()\x00-\x1f])+\))?'
WORD = "(?:ALL|SELECT|INSERT|UPDATE|DELETE|TRUNCATE|REFERENCES|TRIGGER|MAINTAIN|USAGE|EXECUTE|CREATE)"
DOING = "(?:GRANT|REVOKE) (?:GRANT OPTION FOR )?{word}{columns}(?:, ?{word}{columns})* ON "
OPTION = "(?: WITH GRANT OPTION)?"
STATEMENT = re.compile(
    (DOING + r"{object} (?:TO|FROM) ({name}|PUBLIC){option};\Z").format(
        word=WORD, columns=COLUMNS, object=OBJECT, name=NAME, option=OPTION
    )
)
DEFAULT = re.compile(
    (
        r"ALTER DEFAULT PRIVILEGES FOR ROLE (?P<role>{name})(?: IN SCHEMA (?P<schema>{name}))? "
        r"(?P<what>" + DOING + r"(?:TABLES|SEQUENCES|FUNCTIONS|TYPES|SCHEMAS)) "
        r"(?P<to>TO|FROM) (?P<grantee>{name}|PUBLIC)(?P<option>{option});\Z"
    ).format(word=WORD, columns="", name=NAME, option=OPTION)
)
LINE_LIMIT = 8192
IS_ABOUT_THEM = re.compile(r"(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES) ")


class Privileges:
    """The privileges in a dump's SQL: ``statements`` for the loader, ``defaults`` for a superuser, ``remarks``.

    ``roles`` are those that are there, ``owner`` is the one to come, ``former`` that of the dump, if known.
    """

    def __init__(self, text, roles, owner, former=None):
        self.statements = []
        self.defaults = []
        self._roles = roles
        self._owners = (owner, former)
        self._absent = set()
        self._unknown = 0
        for line in text.split("\n"):
            self._take(line)

    @property
    def remarks(self):
        """What is left out, for people."""
        said = []
        if self._absent:
            said.append("privileges of roles that are not on this server were left out: %s" % listed(sorted(self._absent)))
        if self._unknown:
            said.append("privileges of a form that is not known were left out: %d" % self._unknown)
        return said

    def _take(self, line):
        statement = default = None
        if len(line) <= LINE_LIMIT:
            statement, default = STATEMENT.match(line), DEFAULT.match(line)
        if default and unquoted(default.group("role")) in self._owners:
            if self._is_there(default.group("grantee")):
                self.defaults.append(self._anew(default.groupdict()))
        elif statement:
            if self._is_there(statement.group(1)):
                self.statements.append(line)
        elif IS_ABOUT_THEM.match(line):
            self._unknown += 1

    def _is_there(self, grantee):
        name = unquoted(grantee)
        if grantee == PUBLIC or name in self._roles:
            return True
        # The former owner's are the owner's anyway.
        if name not in self._owners:
            self._absent.add(name)
        return False

    def _anew(self, parts):
        grantee = parts["grantee"] if parts["grantee"] == PUBLIC else identifier(unquoted(parts["grantee"]))
        schema = " IN SCHEMA " + identifier(unquoted(parts["schema"])) if parts["schema"] else ""
        words = (identifier(self._owners[0]), schema, parts["what"], parts["to"], grantee, parts["option"])
        return "ALTER DEFAULT PRIVILEGES FOR ROLE %s%s %s %s %s%s;" % words


def grant(side, path, text, owner, former=None):
    """Grant again what a custom dump says of privileges, before the loader of a side database goes.

    ``text`` is what loading it returned. Returns ``(defaults, remarks)``, what is left for a superuser to do, and what people are told.
    """
    if not text:
        return [], []
    found = Privileges(text, json.loads(side.query(ROLES)[0]), owner, former)
    refused = side.grant(path, found.statements) if found.statements else []
    remarks = found.remarks
    if refused:
        remarks.append("privileges that PostgreSQL didn't grant again: %d, the first for %s" % (len(refused), refused[0]))
    return found.defaults, remarks
