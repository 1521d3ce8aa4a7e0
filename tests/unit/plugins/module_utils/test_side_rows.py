# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of single tables are exchanged in one transaction, or not at all."""

from __future__ import annotations

import json
import re

import pytest
from fake_engine import FakeCommand, FakeEngine, container

from ansible_collections.echo_music.ops.plugins.module_utils import side_database, side_rows
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import END_OF_ANSWER, Database
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import names
from ansible_collections.echo_music.ops.plugins.module_utils.side_rows import SideRows, choose, only

TAG = "0a1b2c3d"
SIDE, PREVIOUS = names("echo", TAG)
PLAYLISTS, TRACKS = "public.playlists", "public.playlist_tracks"
COUNTS = {PLAYLISTS: 2, TRACKS: 3, "public.users": 1, "public.shares": 1}
ROWS = b"1\tfiesta\n2\t\\\\.\n"


def key(name, table, parent, emptied=None):
    return dict(
        name=name,
        table="public." + table,
        parent="public." + parent,
        relation="public." + table,
        dangling="c.%s_id IS NOT NULL AND NOT EXISTS (...)" % parent,
        emptied=emptied,
    )


KEYS = [
    key("of_playlist", "playlist_tracks", "playlists"),
    key("of_user", "playlists", "users"),
    key("of_share", "shares", "playlists", emptied="playlist_id = NULL"),
    key("of_vote", "votes", "playlist_tracks"),
    key("of_comment", "comments", "votes"),
    key("of_album", "tracks", "albums"),
]
LIVE_COLUMNS = {PLAYLISTS: ["id", 'na"me', "colour"], TRACKS: ["id"]}


class Server:
    """A fake PostgreSQL: it remembers each transaction of the live database, and what a session was told."""

    def __init__(self, databases=("echo", SIDE), dangling=None, comes=None, rows=None):
        self.databases = databases
        # How many rows dangle, for each key and each time that it is asked.
        self.dangling = dict((name, list(counts)) for name, counts in (dangling or {}).items())
        self.comes = comes or {PLAYLISTS: ["id", 'na"me'], TRACKS: ["id"]}
        self.rows = rows or (lambda: FakeCommand(ROWS))
        self.told = []
        self.kept = []
        env = dict(POSTGRES_USER="echo", POSTGRES_PASSWORD="secret")
        self.engine = FakeEngine(
            container("echo-postgres", env=env, networks=["echo_default"]),
            answers=dict(psql=self.psql, helper=lambda call: FakeCommand()),
        )
        self.side = SideRows(Database(self.engine, "echo-postgres"), TAG, [PLAYLISTS, TRACKS])

    def psql(self, call):
        if call.stdin:
            log = self.told if call.env["PGDATABASE"] == "echo" else self.kept
            return FakeCommand(reply=lambda data: self.reply(data, log))
        question = call.argv[-1]
        if question.startswith("COPY"):
            return self.rows()
        answers = {
            side_database.SERVER: dict(version=150018, port="5432"),
            side_database.DATABASES: dict((name, 16384) for name in self.databases),
            side_rows.COLUMNS: dict(
                self.comes, **{"echo_music_previous.rows_0": ["id"], "echo_music_previous.rows_1": ["id"]}
            ),
        }
        if "query_to_xml" in question:
            return FakeCommand(b"{}\n", json.dumps(COUNTS).encode() + b"\n")
        return FakeCommand(json.dumps(answers.get(question, 0)).encode() + b"\n")

    def reply(self, data, log):
        text = data.decode()
        log.append(text.replace("\\echo " + END_OF_ANSWER.decode(), "").strip())
        if END_OF_ANSWER not in data:
            return []
        answer = ""
        if side_rows.FOREIGN_KEYS in text:
            answer = json.dumps(KEYS)
        elif side_rows.COLUMNS in text:
            answer = json.dumps(LIVE_COLUMNS)
        elif side_rows.SEQUENCES in text:
            owned = dict(table=PLAYLISTS, column="id", sequence="public.playlists_id_seq")
            answer = json.dumps([owned, dict(owned, table="public.users")])
        elif "count(*)" in text:
            answer = str(self.count_dangling(text))
        return [answer.encode() + b"\n" * bool(answer) + END_OF_ANSWER]

    def count_dangling(self, text):
        for found in KEYS:
            if found["relation"] + " c" in text and found["dangling"] in text:
                counts = self.dangling.get(found["name"], [])
                return counts.pop(0) if counts else 0
        raise LookupError(text)


def test_chosen_tables():
    found = dict(id="backup_1", components=dict(database={}), tables=COUNTS)
    assert choose(["playlists", "public.users", PLAYLISTS], COUNTS, found) == [PLAYLISTS, "public.users"]
    with pytest.raises(DatabaseError, match="live database has no table public.nope.*It has: public.playlist_tracks"):
        choose(["nope"], COUNTS, found)
    with pytest.raises(DatabaseError, match="backup backup_1 has no table public.users.*It has: public.shares"):
        choose(["users"], COUNTS, dict(found, tables={"public.shares": 1}))
    # A dump that doesn't tell is asked once it is loaded.
    assert choose(["users"], COUNTS, dict(found, tables=None)) == ["public.users"]
    with pytest.raises(DatabaseError, match="database is not"):
        choose(["users"], COUNTS, dict(found, components={}))
    with pytest.raises(DatabaseError, match="can't be asked"):
        choose(["users"], None, found)


def test_only_the_counts_of_chosen_tables():
    assert only(COUNTS, [PLAYLISTS, "public.nope"]) == {PLAYLISTS: 2}
    assert only(COUNTS, None) == COUNTS
    assert only(None, [PLAYLISTS]) is None


@pytest.mark.parametrize("kind, chosen", [("custom", True), ("sql", False)])
def test_a_custom_dump_is_loaded_in_part(tmp_path, monkeypatch, kind, chosen):
    monkeypatch.setattr(side_database, "require_loadable", lambda *unused: None)
    dump = tmp_path / "dump"
    dump.write_bytes(b"SELECT 1;\n")
    server = Server()
    server.side.load(str(dump), kind)
    calls = [call for call in server.engine.calls if call.network_mode]
    assert any("--table=playlists" in call.argv for call in calls) is chosen
    assert server.side.count() == {PLAYLISTS: 2, TRACKS: 3}
    other = SideRows(Database(server.engine, "echo-postgres"), TAG, ["public.nope"])
    with pytest.raises(DatabaseError, match="has no table public.nope.*It has: .*public.users"):
        other.load(str(dump), kind)


def test_it_is_tried_and_taken_back():
    server = Server()
    server.side.finish("echo")
    assert "COMMIT" not in "".join(server.told)
    assert [text for text in server.told if text.startswith("DELETE")]
    assert "setval" not in "".join(server.told)


def test_rows_are_exchanged_in_one_transaction():
    server = Server()
    server.side.swap()
    told = server.told
    assert told[0].startswith("BEGIN;") and "session_replication_role = 'replica'" in told[0]
    lock = next(text for text in told if text.startswith("LOCK"))
    # Nobody may write what the rows refer to, nor what refers to them.
    for table in ("playlists", "playlist_tracks", "users", "shares", "votes"):
        assert '"public"."%s"' % table in lock
    assert "comments" not in lock and "albums" not in lock
    assert 'DELETE FROM ONLY "public"."playlists";' in told
    at = told.index('COPY "public"."playlists" ("id", "na""me") FROM STDIN;')
    assert told[at + 1 : at + 3] == [ROWS.decode().strip(), "\\."]
    assert any("setval('public.playlists_id_seq'" in text for text in told)
    assert len([text for text in told if "setval" in text]) == 1
    assert told[-1] == 'ALTER DATABASE "%s" RENAME TO "%s";\nCOMMIT;' % (SIDE, PREVIOUS)
    # All columns of the live rows are kept, whatever the backup has.
    assert 'CREATE TABLE echo_music_previous.rows_0 ("id" text, "na""me" text, "colour" text);' in server.kept
    assert 'COPY echo_music_previous.rows_0 ("id", "na""me", "colour") FROM STDIN;' in server.kept
    assert "COMMIT" not in "".join(told[:-1])


@pytest.mark.parametrize(
    "dangling, reason, remedy",
    [
        ({"of_user": [3]}, "3 rows of public.playlists refer to rows of public.users", "with them: public.users"),
        ({"of_share": [1], "of_vote": [2]}, "1 rows of public.shares refer", "public.shares, public.votes"),
        ({"of_playlist": [1]}, "1 rows of public.playlist_tracks refer", "Restore the whole database"),
    ],
)
@pytest.mark.parametrize("doing", [lambda side: side.finish("echo"), lambda side: side.swap()])
def test_rows_that_would_dangle(doing, dangling, reason, remedy):
    server = Server(dangling=dangling)
    with pytest.raises(DatabaseError) as caught:
        doing(server.side)
    assert reason in caught.value.what and remedy in caught.value.remedy
    assert "COMMIT" not in "".join(server.told)


def test_columns_that_the_live_table_lacks():
    server = Server(comes={PLAYLISTS: ["id", "mood"], TRACKS: ["id"]})
    with pytest.raises(DatabaseError, match="public.playlists of the backup has columns that the live one lacks: mood"):
        server.side.finish("echo")


def test_rows_that_break_off_are_not_committed():
    server = Server(rows=lambda: FakeCommand(ROWS, exit_code=1, stderr="gone"))
    with pytest.raises(DatabaseError, match="read rows of"):
        server.side.swap()
    assert "\\." not in server.told and "COMMIT" not in "".join(server.told)


def test_going_back_lets_go_of_what_was_written_since():
    server = Server(("echo", PREVIOUS), dangling={"of_share": [1], "of_vote": [2], "of_comment": [4]})
    server.side.swap_back()
    assert '"public"."comments"' in next(text for text in server.told if text.startswith("LOCK"))
    changes = [text for text in server.told if "gone" in text]
    relations = [re.search(r"(UPDATE|DELETE FROM) public\.(\w+)", text).groups() for text in changes]
    assert relations == [
        ("DELETE FROM", "playlist_tracks"),
        ("DELETE FROM", "playlists"),
        ("UPDATE", "shares"),
        ("DELETE FROM", "votes"),
        # What referred to that goes as well; nobody else is looked at.
        ("DELETE FROM", "comments"),
    ]
    assert server.told[-1] == 'ALTER DATABASE "%s" RENAME TO "%s";\nCOMMIT;' % (PREVIOUS, SIDE)


def test_what_is_done_is_not_done_again():
    server = Server(("echo", PREVIOUS))
    server.side.swap()
    assert server.told == []
    server = Server()
    server.side.swap_back()
    assert server.told == []
    with pytest.raises(DatabaseError, match="There is no database"):
        Server(("echo",)).side.swap()
