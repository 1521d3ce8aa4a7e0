# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is every file that the database names there?

Which columns name files, their names tell, because Echo's schema changes from release to
release. A column of pictures (``albums.cover_path``, ``users.avatar``) must name files of the
backup. Any other column of paths does as soon as one of its files is found; else it is one
like ``tracks.path``, which names files of the music library.
"""

from __future__ import annotations

import json
import os
import re

from ansible_collections.echo_music.ops.plugins.module_utils.postgres import PSQL, SESSION_ENVIRONMENT, USER_TABLES
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import identifier
from ansible_collections.echo_music.ops.plugins.module_utils.survey import shown

TEXT_COLUMNS = (
    """
SELECT coalesce(json_agg(json_build_array(n.nspname, c.relname, (
    SELECT coalesce(json_agg(a.attname ORDER BY a.attnum), '[]') FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      AND a.atttypid IN ('text'::regtype, 'varchar'::regtype))) ORDER BY n.nspname, c.relname), '[]')"""
    + USER_TABLES
    + ";"
)
# In hexadecimal digits, so that a line is a value whatever it holds.
VALUES = """
COPY (SELECT DISTINCT encode(convert_to({column}, 'UTF8'), 'hex') FROM ONLY {table}
    WHERE {column} <> '' AND length({column}) < 4096) TO STDOUT;
"""

PICTURES = {
    *("cover", "covers", "avatar", "image", "img", "artwork", "art", "logo", "banner"),
    *("background", "poster", "thumbnail", "photo", "picture"),
}
PATHS = {"path", "file", "filename"}
ENDINGS = PATHS | PICTURES | {"name", "url", "uri"}
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# What is neither a path nor ends as a file's name does is no file: "default", "gravatar".
LIKE_A_FILE = re.compile(rb"/|\.[A-Za-z0-9]{1,5}\Z")
# Where relative names may start: the volume's folders down to this depth.
DEPTH = 2
FOLDERS_MAX = 1000
EXAMPLES = 5


def check_named_files(database, mounts, ignore=()):
    """Look for every file that a database names; ``mounts`` maps the app's folders to where they lie here.

    Returns ``[{"column", "files", "missing", "elsewhere", "examples"}]`` of the columns that
    name files of ``mounts``. ``files`` are the different names, ``missing`` how many of them
    are not there (``examples`` are some), ``elsewhere`` how many other values are: addresses
    of the web, files of the music library. ``ignore`` are columns, ``schema.table.column``.
    """
    checked = []
    search = Search(mounts)
    for schema, table, columns in json.loads(database.query(TEXT_COLUMNS)[0]):
        for column in columns:
            name = "%s.%s.%s" % (schema, table, column)
            words = HUMP.sub("_", column).lower().split("_")
            pictures = bool(PICTURES.intersection(words))
            if name in ignore or words[-1] not in (ENDINGS if pictures else PATHS):
                continue
            found = _check(search, _values(database, schema, table, column), surely=pictures)
            if found["files"]:
                checked.append(dict(found, column=name))
    return checked


class Search:
    """Where a name of the database leads, among the folders of the app."""

    def __init__(self, mounts):
        self._mounts = dict((os.fsencode(inside), os.fsencode(here)) for inside, here in mounts.items())
        self._folders = []
        for here in sorted(self._mounts.values()):
            self._folders += list(_folders(here, DEPTH))
        del self._folders[FOLDERS_MAX:]

    def is_there(self, name):
        """Tell whether a file is there; None for what can't be one of these folders."""
        if not LIKE_A_FILE.search(name) or b"://" in name or b".." in name.split(b"/"):
            return None
        if name.startswith(b"/"):
            for inside, here in self._mounts.items():
                if name.startswith(inside + b"/"):
                    return os.path.isfile(here + name[len(inside) :])
            return None
        for number, folder in enumerate(self._folders):
            if os.path.isfile(os.path.join(folder, name)):
                # The next one of the column lies there as well, most likely.
                self._folders.insert(0, self._folders.pop(number))
                return True
        return False


def _check(search, values, surely):
    found = dict(files=0, missing=0, elsewhere=0, examples=[])
    for value in values:
        is_there = search.is_there(value)
        found["elsewhere" if is_there is None else "files"] += 1
        # A whole path into the app's folders is no path of the music library.
        surely = surely or (is_there is not None and value.startswith(b"/"))
        if is_there is False:
            found["missing"] += 1
            if len(found["examples"]) < EXAMPLES:
                found["examples"].append(shown(value))
    if not surely and found["files"] == found["missing"]:
        return dict(found, files=0)
    return found


def _values(database, schema, table, column):
    """Yield the different values of a column, as bytes."""
    names = dict(table="%s.%s" % (identifier(schema), identifier(table)), column=identifier(column))
    rest = b""
    with database.explained("read"):
        with database.run(PSQL, SESSION_ENVIRONMENT, stdin=True) as command:
            command.write(VALUES.format(**names).encode("utf-8"))
            command.close_stdin()
            for chunk in command.chunks():
                *lines, rest = (rest + chunk).split(b"\n")
                yield from map(_decoded, lines)
            command.finish()


def _decoded(line):
    return bytes.fromhex(line.decode("ascii"))


def _folders(folder, depth):
    yield folder
    if depth:
        with os.scandir(folder) as entries:
            inner = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        for path in inner:
            yield from _folders(path, depth - 1)
