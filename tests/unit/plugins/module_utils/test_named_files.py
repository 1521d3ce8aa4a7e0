# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which columns name files, and whether the files are there."""

from __future__ import annotations

import json
import re

import pytest
from fake_engine import FakeCommand, FakeEngine, container

from ansible_collections.echo_music.ops.plugins.module_utils.named_files import check_named_files
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import Database


@pytest.fixture
def mounts(tmp_path):
    uploads = tmp_path / "uploads"
    for name in ("covers/a.jpg", "covers/Björk '\n.jpg", "avatars/ana/1.png", "music/x.mp3"):
        path = uploads / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return {"/app/uploads": str(uploads)}


def database(columns, cut=7):
    """A database of ``{(schema, table, column): [value]}``, whose lines come in pieces of ``cut`` bytes."""

    def psql(call):
        if not call.stdin:
            listed = [[schema, table, [column]] for schema, table, column in columns]
            return FakeCommand(json.dumps(listed).encode() + b"\n")
        return FakeCommand(reply=values)

    def values(written):
        asked = re.search(r'encode\(convert_to\("(.*)", \'UTF8\'.*FROM ONLY "(.*)"\."(.*)"\n', written.decode())
        column, schema, table = (name.replace('""', '"') for name in asked.groups())
        text = "".join(value.encode().hex() + "\n" for value in columns[schema, table, column]).encode()
        return [text[at : at + cut] for at in range(0, len(text), cut)]

    return Database(FakeEngine(container("pg"), answers=dict(psql=psql)), "pg", "echo", "echo")


def check(columns, mounts, ignore=()):
    found = check_named_files(database(columns), mounts, ignore)
    return dict((item.pop("column"), item) for item in found)


def test_files_are_looked_for_wherever_names_may_start(mounts):
    found = check(
        {
            ("public", "albums", "cover_path"): ["a.jpg", "Björk '\n.jpg", "covers/a.jpg", "gone.jpg"],
            ("public", "users", "avatarPath"): ["/app/uploads/avatars/ana/1.png", "ana/1.png", "/app/uploads/no.png"],
        },
        mounts,
    )
    assert found == {
        "public.albums.cover_path": dict(files=4, missing=1, elsewhere=0, examples=["gone.jpg"]),
        "public.users.avatarPath": dict(files=3, missing=1, elsewhere=0, examples=["/app/uploads/no.png"]),
    }


def test_what_is_no_file_of_the_backup_is_elsewhere(mounts):
    values = ["https://x.example/a.jpg", "/music/a.jpg", "../../etc/passwd", "default", "/api/covers/1", "covers/a.jpg"]
    found = check({("public", "artists", "image_url"): values}, mounts)
    assert found["public.artists.image_url"] == dict(files=1, missing=0, elsewhere=5, examples=[])


@pytest.mark.parametrize(
    "column, values, is_checked",
    [
        ("cover_art_path", ["gone.jpg"], True),
        ("logo", ["gone.png"], True),
        ("background_image", ["gone.png"], True),
        # Paths of the music library, until one turns out to be of the backup.
        ("path", ["Ana/01.mp3", "Ana/02.mp3"], False),
        ("path", ["Ana/01.mp3", "music/x.mp3"], True),
        ("file", ["/app/uploads/gone.mp3"], True),
        ("cover_mime", ["image/jpeg"], False),
        ("image_updated_by", ["a/b.c"], False),
        ("name", ["AC/DC"], False),
        ("artist", ["AC/DC"], False),
        ("cover_path", [], False),
    ],
)
def test_the_names_of_columns_tell(mounts, column, values, is_checked):
    assert ("s.t." + column in check({("s", "t", column): values}, mounts)) is is_checked


def test_columns_can_be_ignored_and_names_are_quoted(mounts):
    columns = {('a"b', 'c"; DROP', "cover"): ["gone.jpg"], ("s", "t", "cover"): ["gone.jpg"]}
    assert list(check(columns, mounts, ignore={"s.t.cover"})) == ['a"b.c"; DROP.cover']


def test_examples_are_few(mounts):
    found = check({("s", "t", "cover"): ["gone%d.jpg" % number for number in range(100)]}, mounts)
    assert found["s.t.cover"]["missing"] == 100
    assert len(found["s.t.cover"]["examples"]) == 5
