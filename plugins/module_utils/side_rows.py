# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of single tables: loaded into a side database, put into the live one in one transaction.

The live database stays the one that it is, so nothing that happened to its other tables is
lost, neither by the restore nor by going back. One transaction takes the rows out, puts the
others in, holds them against every foreign key and gives the side database its next name. So
here as well, which databases exist tells how far a restore got.

The rows that were live are kept in the side database, in a schema of ours, as text.

Out of what a dump has made of the side database only plain tables are read, and by column
names, so no function, view or rule of it runs. Triggers, and what a foreign key does when a
row goes, are switched off: rows come as they were, and what would dangle is refused. Going
back can't be refused, for the old rows are the ones that count: what was written since and
leads nowhere without the restored rows goes, or is set to NULL, as its foreign key says.
"""

from __future__ import annotations

import contextlib
import json

from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import PSQL, SESSION_ENVIRONMENT, USER_TABLES
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import (
    JOBS,
    LOCK_TIMEOUT,
    SideDatabase,
    Superuser,
    identifier,
    literal,
    require_tables,
)

KEPT = "echo_music_previous"
SCHEMA = "public"

# Both ends of a copy must write and read dates and numbers in one way.
FORMATS = {"datestyle": "ISO", "intervalstyle": "postgres", "extra_float_digits": "3", "bytea_output": "hex"}
ROWS_ENVIRONMENT = dict(
    SESSION_ENVIRONMENT,
    PGOPTIONS=" ".join([SESSION_ENVIRONMENT["PGOPTIONS"]] + ["-c %s=%s" % setting for setting in FORMATS.items()]),
)
BEGIN = ["BEGIN;"] + [
    "SET LOCAL %s = '%s';" % setting
    for setting in dict(FORMATS, lock_timeout=LOCK_TIMEOUT, session_replication_role="replica").items()
]

# Generated columns are not in a dump, and fill themselves.
COLUMNS = (
    """
SELECT coalesce(json_object_agg(n.nspname || '.' || c.relname, (
    SELECT coalesce(json_agg(a.attname ORDER BY a.attnum), '[]') FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '')), '{}')"""
    + USER_TABLES
    + ";"
)
FOREIGN_KEYS = """
SELECT coalesce(json_agg(json_build_object(
    'name', k.conname,
    'table', tn.nspname || '.' || t.relname,
    'parent', pn.nspname || '.' || p.relname,
    'relation', format('%I.%I', tn.nspname, t.relname),
    'dangling', format('%s AND NOT EXISTS (SELECT FROM %I.%I p WHERE %s)', m.known, pn.nspname, p.relname, m.same),
    'emptied', CASE WHEN k.confdeltype IN ('n', 'd') AND m.can_be_null THEN m.emptied END) ORDER BY k.conname), '[]')
FROM pg_constraint k
    JOIN pg_class t ON t.oid = k.conrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
    JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace,
    LATERAL (
        SELECT string_agg(format('c.%I IS NOT NULL', a.attname), ' AND ') AS known,
            string_agg(format('p.%I OPERATOR(%I.%s) c.%I', b.attname, n.nspname, o.oprname, a.attname), ' AND ') AS same,
            string_agg(format('%I = NULL', a.attname), ', ') AS emptied,
            bool_and(NOT a.attnotnull) AS can_be_null
        FROM unnest(k.conkey, k.confkey, k.conpfeqop) AS u(child, parent, operator)
            JOIN pg_attribute a ON (a.attrelid, a.attnum) = (k.conrelid, u.child)
            JOIN pg_attribute b ON (b.attrelid, b.attnum) = (k.confrelid, u.parent)
            JOIN pg_operator o ON o.oid = u.operator JOIN pg_namespace n ON n.oid = o.oprnamespace) m
WHERE k.contype = 'f';
"""
# A sequence that is behind would hand out a key that came back with the rows.
SEQUENCES = """
SELECT coalesce(json_agg(json_build_object(
    'table', n.nspname || '.' || t.relname, 'column', a.attname, 'sequence', format('%I.%I', sn.nspname, s.relname))), '[]')
FROM pg_depend d
    JOIN pg_class s ON s.oid = d.objid JOIN pg_namespace sn ON sn.oid = s.relnamespace
    JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace n ON n.oid = t.relnamespace
    JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.refobjid, d.refobjsubid)
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    AND s.relkind = 'S';
"""
RAISE_SEQUENCE = """
SELECT setval({name}, m.highest) FROM (SELECT max({column}) AS highest FROM {table}) m
WHERE m.highest >= (SELECT last_value FROM {sequence});
"""


def choose(tables, live, found):
    """Return the full names of chosen tables; refuse those that the live database, or the backup, lacks.

    ``live`` counts its rows, None where it can't be asked; ``found`` is what ``resolve`` returned.
    """
    if "database" not in found["components"]:
        raise DatabaseError("Tables are chosen, but the database is not.", "Add the component database.")
    if live is None:
        raise DatabaseError(
            "The live database can't be asked, so single tables have nowhere to go.", "Restore the whole database."
        )
    chosen = sorted(set(map(full_name, tables)))
    require_tables(chosen, live, "The live database")
    if found["tables"] is not None:
        require_tables(chosen, found["tables"], "The backup %s" % found["id"])
    return chosen


def full_name(table):
    """Return a table's name with its schema."""
    return table if "." in table else "%s.%s" % (SCHEMA, table)


def only(counts, chosen):
    """Return the counts of chosen tables, all if none are chosen."""
    if counts is None or chosen is None:
        return counts
    return dict((table, counts[table]) for table in chosen if table in counts)


class SideRows(SideDatabase):
    """A side database for the rows of some tables (``schema.table``) of a live one."""

    def __init__(self, database, operation, tables):
        super(SideRows, self).__init__(database, operation)
        self._tables = tables

    def count(self):
        """Return the rows of the chosen tables in the side database."""
        return only(super(SideRows, self).count(), self._tables)

    def load(self, path, kind, jobs=JOBS, tables=None):
        """Load the rows; of SQL everything, for only a custom dump can be taken apart."""
        chosen = tables or self._tables
        super(SideRows, self).load(path, kind, jobs, chosen if kind == "custom" else None)
        require_tables(chosen, self.describe()["tables"], "The dump %s" % path)

    def finish(self, owner):
        """Remove the loader, and try the whole exchange once: it is taken back, whatever comes of it."""
        super(SideRows, self).finish(owner)
        with self._transaction() as session:
            self._put(session)

    def swap(self):
        """Put the rows in place, and keep those that were there; nothing if that is done."""
        if self.side not in self._databases():
            super(SideRows, self).swap()
            return
        with self._transaction() as session:
            self._keep(_told(session, COLUMNS))
            self._put(session)
            self._raise_sequences(session)
            self._end(session, self.side, self.previous)

    def swap_back(self):
        """Put the rows back that were there; nothing if that is done."""
        if self.previous not in self._databases():
            return
        kept = Superuser(self._live, self.previous)
        columns = _asked(kept, COLUMNS)
        with self._transaction(whole=True) as session:
            for number, table in enumerate(self._tables):
                self._replace(session, table, kept, _kept(number), columns[_kept(number)])
            self._let_go(session)
            self._end(session, self.previous, self.side)

    # -- in the live database -----------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self, whole=False):
        """Yield a session in a transaction that leaves nothing unless :meth:`_end` ends it.

        Nobody else writes meanwhile to what the rows refer to, or what refers to them; with
        ``whole``, to any table with a foreign key.
        """
        with self._live.session("exchange rows of") as session:
            session.ask(*BEGIN)
            related = set(self._tables)
            for key in _told(session, FOREIGN_KEYS):
                if whole or {key["table"], key["parent"]} & set(self._tables):
                    related.update((key["table"], key["parent"]))
            session.ask("LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE;" % ", ".join(map(_quoted, sorted(related))))
            yield session

    @staticmethod
    def _end(session, name, new_name):
        """Commit, and by the name of the side database tell of it."""
        session.ask("ALTER DATABASE %s RENAME TO %s;" % (identifier(name), identifier(new_name)), "COMMIT;")

    def _put(self, session):
        comes, live = _asked(self._side, COLUMNS), _told(session, COLUMNS)
        for table in self._tables:
            unknown = [column for column in comes[table] if column not in live[table]]
            if unknown:
                raise DatabaseError(
                    "The table %s of the backup has columns that the live one lacks: %s." % (table, ", ".join(unknown)),
                    "Restore the whole database, or into the version of Echo that the backup is of.",
                )
            self._replace(session, table, self._side, table, comes[table])
        self._require_keys(session)

    @staticmethod
    def _replace(session, table, database, source, columns):
        session.ask("DELETE FROM ONLY %s;" % _quoted(table))
        names = ", ".join(map(identifier, columns))
        session.copy("COPY %s (%s) FROM STDIN;" % (_quoted(table), names), _rows(database, source, columns))

    def _require_keys(self, session):
        problems, missing = [], set()
        for key in _told(session, FOREIGN_KEYS):
            if {key["table"], key["parent"]} & set(self._tables):
                (count,) = session.ask("SELECT count(*) FROM %(relation)s c WHERE %(dangling)s;" % key)
                if int(count):
                    problems.append(
                        "%s rows of %s refer to rows of %s that would not be there (%s)"
                        % (count, key["table"], key["parent"], key["name"])
                    )
                    missing.update({key["table"], key["parent"]} - set(self._tables))
        if problems:
            raise DatabaseError(
                "The tables can't be restored by themselves: %s." % "; ".join(problems),
                (
                    "Restore these with them: %s; or the whole database." % ", ".join(sorted(missing))
                    if missing
                    else "Restore the whole database."
                ),
                tables=sorted(missing),
            )

    def _let_go(self, session):
        """Let go of what refers to rows that are no more, and of what refers to that."""
        keys = _told(session, FOREIGN_KEYS)
        looked_at = [key for key in keys if {key["table"], key["parent"]} & set(self._tables)]
        while looked_at:
            lost = set()
            for key in looked_at:
                doing = "UPDATE %(relation)s c SET %(emptied)s" if key["emptied"] else "DELETE FROM %(relation)s c"
                statement = "WITH gone AS (" + doing + " WHERE %(dangling)s RETURNING 1) SELECT count(*) FROM gone;"
                (count,) = session.ask(statement % key)
                if int(count) and not key["emptied"]:
                    lost.add(key["table"])
            looked_at = [key for key in keys if key["parent"] in lost]

    def _raise_sequences(self, session):
        for owned in _told(session, SEQUENCES):
            if owned["table"] in self._tables:
                session.ask(
                    RAISE_SEQUENCE.format(
                        name=literal(owned["sequence"]),
                        sequence=owned["sequence"],
                        column=identifier(owned["column"]),
                        table=_quoted(owned["table"]),
                    )
                )

    # -- in the side database -----------------------------------------------------------

    def _keep(self, columns):
        """Copy the live rows to the side database; they can't change while the live tables are locked."""
        with self._side.session("keep rows in") as session:
            session.ask("DROP SCHEMA IF EXISTS %s CASCADE;" % KEPT, "CREATE SCHEMA %s;" % KEPT)
            for number, table in enumerate(self._tables):
                names = list(map(identifier, columns[table]))
                session.ask("CREATE TABLE %s (%s);" % (_kept(number), ", ".join(name + " text" for name in names)))
                statement = "COPY %s (%s) FROM STDIN;" % (_kept(number), ", ".join(names))
                session.copy(statement, _rows(self._live, table, columns[table]))


def _rows(database, table, columns):
    """Yield the rows of a table as COPY writes them, in blocks."""
    statement = "COPY %s (%s) TO STDOUT;" % (_quoted(table), ", ".join(map(identifier, columns)))
    with database.explained("read rows of"):
        with database.run(PSQL + ["-c", statement], ROWS_ENVIRONMENT) as command:
            yield from command.chunks()
            command.finish()


def _asked(database, question):
    return json.loads(database.query(question)[0])


def _told(session, question):
    return json.loads(session.ask(question)[0])


def _quoted(table):
    return ".".join(map(identifier, table.split(".", 1)))


def _kept(number):
    return "%s.rows_%d" % (KEPT, number)
