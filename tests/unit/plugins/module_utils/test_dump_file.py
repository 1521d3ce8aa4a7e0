# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dump files: who made them, and what of their SQL is left out."""

from __future__ import annotations

import gzip
import io
import struct

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils import dump_file
from ansible_collections.echo_music.ops.plugins.module_utils.errors import DatabaseError

HEAD = (
    b"--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\n"
    b"-- Dumped from database version %s (Debian)\n-- Dumped by pg_dump version %s\n\n"
)
END = b"--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n\n"


def passed(sql):
    return b"".join(dump_file.sql_blocks(io.BytesIO(sql), "/a.sql"))


def custom(server=b"15.18 (Debian 15.18-1)", client=b"15.18", minor=14):
    def integer(value):
        return struct.pack("<BI", 0, value)

    compression = integer(1) if minor < 15 else b"\1"
    names = b"".join(integer(len(name)) + name for name in (b"music_server", server, client))
    return b"PGDMP" + bytes([1, minor, 0, 4, 8, 1]) + compression + integer(7) * 7 + names + b"the rest"


def write(folder, content, kind):
    path = folder / "a"
    path.write_bytes(gzip.compress(content) if kind == "sql.gz" else content)
    return str(path)


DUMPS = {
    "custom": lambda server, client: custom(server + b" (Debian)", client, minor=16),
    "sql": lambda server, client: HEAD % (server, client) + END,
}
DUMPS["sql.gz"] = DUMPS["sql"]


@pytest.mark.parametrize("kind", sorted(DUMPS))
@pytest.mark.parametrize(
    "server, client, target, named",
    [
        (b"15.18", b"15.18", 150004, None),
        (b"15.18", b"15.18", 170012, None),
        (b"9.6.24", b"13.1", 130001, None),
        (b"17.12", b"17.12", 150018, "17.12"),
        (b"15.18", b"17.12", 150018, "17.12"),
        (b"18beta1", b"18beta1", 170012, "18beta1"),
    ],
)
def test_newer_dump_is_refused_with_both_versions(tmp_path, kind, server, client, target, named):
    path = write(tmp_path, DUMPS[kind](server, client), kind)
    if not named:
        dump_file.require_loadable(path, kind, target)
        return
    with pytest.raises(DatabaseError) as caught:
        dump_file.require_loadable(path, kind, target)
    for part in (path, named, "%d.%d" % divmod(target, 10000)):
        assert part in caught.value.what


def test_archive_of_before_16_is_read(tmp_path):
    assert dump_file.versions(write(tmp_path, custom(), "custom"), "custom") == ("15.18", "15.18")


def test_sql_that_does_not_tell_is_taken(tmp_path):
    dump_file.require_loadable(write(tmp_path, b"SELECT 1;\n", "sql"), "sql", 150018)


@pytest.mark.parametrize("content", [b"", b"PGDMP", b"no dump at all", custom()[:60]])
def test_what_is_no_custom_dump(tmp_path, content):
    with pytest.raises(DatabaseError, match="custom format"):
        dump_file.versions(write(tmp_path, content, "custom"), "custom")


def test_broken_gzip_is_damage(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(b"SELECT 1;\n" * 1000)[:-9])
    with pytest.raises(DatabaseError, match="is damaged"):
        with dump_file.opened(str(path), "sql.gz") as source:
            b"".join(dump_file.sql_blocks(source, str(path)))


@pytest.mark.parametrize(
    "line",
    [
        b"ALTER TABLE public.users OWNER TO music_admin;\n",
        b"ALTER FUNCTION public.f(a text, b integer) OWNER TO music_admin;\n",
        b'ALTER TABLE public."odd; table" OWNER TO "odd; role";\r\n',
        b"GRANT SELECT ON TABLE public.users TO grafana;\n",
        b"REVOKE ALL ON SCHEMA public FROM PUBLIC;\n",
        b"ALTER DEFAULT PRIVILEGES FOR ROLE a IN SCHEMA public GRANT SELECT ON TABLES TO b;\n",
        b"COMMENT ON EXTENSION pg_trgm IS 'text''s; similarity';\n",
        b"CREATE ROLE music_admin;\n",
        b"ALTER ROLE music_admin WITH SUPERUSER LOGIN PASSWORD 'SCRAM-SHA-256$4096:a$b:c';\n",
        b"CREATE DATABASE music_server WITH TEMPLATE = template0 ENCODING = 'UTF8';\n",
        b"SET SESSION AUTHORIZATION DEFAULT;\n",
        b"\\connect music_server\n",
        b"\\restrict abc\n",
    ],
)
def test_statements_about_roles_and_databases_are_left_out(line):
    assert passed(b"SELECT 1;\n" + line + b"SELECT 2;\n") == b"SELECT 1;\n\nSELECT 2;\n"


GRANT = b"GRANT SELECT ON TABLE t TO r;\n"


@pytest.mark.parametrize(
    "sql",
    [
        b"COPY public.t (a) FROM stdin;\n" + GRANT + b"it's\n" + GRANT + b"\\.\n",
        b'COPY public.t ("two\nlines") FROM stdin;\n' + GRANT + b"\\.\n",
        b"INSERT INTO t VALUES ('\n" + GRANT + b"');\n",
        b"INSERT INTO t VALUES ('it''s;\n" + GRANT + b"');\n",
        b"INSERT INTO t VALUES ('a\\', ';\n" + GRANT + b"');\n",
        b"INSERT INTO t VALUES (E'a\\';\n" + GRANT + b"');\n",
        b'INSERT INTO t ("a;\n' + GRANT + b'") VALUES (1);\n',
        b"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$\n" + GRANT + b"$$;\n",
        b"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $_a1$ $$;\n" + GRANT + b"$_a1$;\n",
        b"/* a comment;\n" + GRANT + b"*/;\n",
        b"SELECT\n" + GRANT,
        b"SELECT 1 -- one;\n" + GRANT,
        b"ALTER TABLE t ADD a text; ALTER TABLE t OWNER TO r;\n",
        b"ALTER TABLE ONLY public.t ADD CONSTRAINT c PRIMARY KEY (id);\n",
        b"COMMENT ON TABLE t IS 'x';\n",
    ],
)
def test_what_only_looks_like_them_stays(sql):
    assert passed(sql) == sql
    assert passed(sql + GRANT) == sql + b"\n"


def test_comment_before_a_statement_does_not_hide_it():
    assert passed(b"-- it's\n--\n\n" + GRANT) == b"-- it's\n--\n\n\n"


def test_long_lines_come_in_pieces(monkeypatch):
    monkeypatch.setattr(dump_file, "LINE_LIMIT", 7)
    data = b"COPY t FROM stdin;\n1234567\\.\n" + GRANT + b"\\.\n"
    assert passed(data) == data


def test_large_dump_comes_in_blocks():
    sql = HEAD % (b"15.18", b"15.18") + b"COPY t FROM stdin;\n" + b"row\n" * 200000 + b"\\.\n" + END
    blocks = list(dump_file.sql_blocks(io.BytesIO(sql), "/a.sql"))
    assert len(blocks) > 2
    assert b"".join(blocks) == sql.replace(b"\\restrict abc", b"").replace(b"\\unrestrict abc", b"")


@pytest.mark.parametrize("rows", [0, 200000])
def test_dump_without_its_closing_line_is_cut_short(rows):
    sql = HEAD % (b"15.18", b"15.18") + b"COPY t FROM stdin;\n" + b"row\n" * rows
    with pytest.raises(DatabaseError, match="/a.sql is cut short"):
        passed(sql)
