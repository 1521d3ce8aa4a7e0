# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edits change what they must and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.echo_music.ops.plugins.module_utils.compose_file import (
    ComposeFileError,
    image_of,
    rename_volume,
    set_image,
    set_variables,
    split_reference,
)

STACKS = Path(__file__).resolve().parents[3] / "stacks"
DIGEST = "sha256:" + "0123456789abcdef" * 4
FILE = """\
# image: not/this:1
x-image: &default not/this:2
services:
  postgres:
    image: postgres:16-alpine
  echo-app:
    # image: not/this:3
    environment:
      image: not/this:4
    image: %s
    restart: unless-stopped
  other:
    image: not/this:5
volumes:
  postgres-data:
  echo-uploads:
    name: "echo-uploads"   # as ever
  external-data:
    external: true
  flow: {name: flow}
"""


def edited(written, version, current="ghcr.io/alexzafra13/echo:1.0"):
    text, variables = set_image(FILE % written, "echo-app", version, current)
    return image_of(text, "echo-app"), variables, text


@pytest.mark.parametrize(
    ("written", "version", "becomes"),
    [
        ("ghcr.io/alexzafra13/echo:1.0", "1.1", "ghcr.io/alexzafra13/echo:1.1"),
        ("ghcr.io/alexzafra13/echo", "1.1", "ghcr.io/alexzafra13/echo:1.1"),
        ("localhost:5000/echo", "1.1", "localhost:5000/echo:1.1"),
        ("localhost:5000/echo:1.0", DIGEST, "localhost:5000/echo@" + DIGEST),
        ("echo@" + DIGEST, "1.1", "echo:1.1"),
        ("echo:1.0@" + DIGEST, "1.1", "echo:1.1"),
        ("${REGISTRY:-ghcr.io}/echo:1.0", "1.1", "${REGISTRY:-ghcr.io}/echo:1.1"),
        ("echo:v${MAJOR}.1", "v2", "echo:v2"),
    ],
)
def test_a_version_in_the_file_is_changed_there(written, version, becomes):
    image, variables, text = edited(written, version)
    assert (image, variables) == (becomes, {})
    changed = [(old, new) for old, new in zip((FILE % written).split("\n"), text.split("\n")) if old != new]
    assert changed == [("    image: " + written, "    image: " + becomes)]


@pytest.mark.parametrize(
    ("written", "version", "variables"),
    [
        ("echo:${VERSION:-latest}", "1.1", {"VERSION": "1.1"}),
        ("echo:${VERSION}", "1.1", {"VERSION": "1.1"}),
        ("echo:$VERSION", "1.1", {"VERSION": "1.1"}),
        ("'echo:${VERSION:?say which}'", "1.1", {"VERSION": "1.1"}),
        ("echo:${VERSION:-latest}", DIGEST, {"VERSION": "1.0@" + DIGEST}),
        ("${IMAGE:-ghcr.io/alexzafra13/echo:latest}", "1.1", {"IMAGE": "ghcr.io/alexzafra13/echo:1.1"}),
        ("${IMAGE}", DIGEST, {"IMAGE": "ghcr.io/alexzafra13/echo@" + DIGEST}),
    ],
)
def test_a_version_in_a_variable_is_changed_there(written, version, variables):
    image, found, text = edited(written, version)
    assert found == variables
    assert text == FILE % written


def test_quotes_comments_and_line_ends_stay():
    text = (FILE % '"echo:1.0"   # pinned').replace("\n", "\r\n")
    after = set_image(text, "echo-app", "1.1", "echo:1.0")[0]
    assert '    image: "echo:1.1"   # pinned\r\n' in after
    assert after.count("\r\n") == text.count("\r\n")


@pytest.mark.parametrize("written", ["*default", "!reset null", "|"])
def test_what_is_no_plain_value_is_refused(written):
    with pytest.raises(ComposeFileError, match="not a plain value"):
        edited(written, "1.1")


@pytest.mark.parametrize("version", ["", "a b", "1.0\nevil: true", "-x", "sha256:12"])
def test_a_version_that_is_none_is_refused(version):
    with pytest.raises(ComposeFileError, match="neither a tag nor a digest"):
        edited("echo:1.0", version)


def test_a_service_without_an_image_is_refused():
    with pytest.raises(ComposeFileError, match="no image"):
        set_image("services:\n  echo-app:\n    build: .\n", "echo-app", "1.1", "echo:1.0")


def test_a_tab_is_refused():
    with pytest.raises(ComposeFileError, match="tab"):
        set_image("services:\n\techo-app:\n\t\timage: echo:1\n", "echo-app", "1.1", "echo:1.0")


def test_the_compose_files_of_both_layouts_are_understood():
    for layout, service in (("classic", "echo-app"), ("unified", "echo")):
        text = (STACKS / layout / "docker-compose.yml").read_text(encoding="utf-8")
        assert set_image(text, service, "2", "echo-test-app:1") == (text, {"VERSION": "2"})
        assert set_image(text, "postgres", "17", "echo-test-postgres:15") == (text, {"POSTGRES_TAG": "17"})
        assert set_image(text, "redis", "8", "echo-test-redis:7")[0].count("image: echo-test-redis:8\n") == 1


def test_the_name_and_the_version_of_a_reference():
    assert split_reference("localhost:5000/a/b") == ("localhost:5000/a/b", "")
    assert split_reference("a:1@" + DIGEST) == ("a", ":1@" + DIGEST)
    assert split_reference("${A:-b:c}/d:${E:-f}") == ("${A:-b:c}/d", ":${E:-f}")


def test_variables_are_changed_where_they_stand_and_added_where_not():
    text = "# VERSION=0\nexport VERSION = 1\nOTHER=VERSION=3\n"
    assert set_variables(text, {"VERSION": "2"}) == "# VERSION=0\nexport VERSION =2\nOTHER=VERSION=3\n"
    assert set_variables(text, {"NEW": "2"}) == text + "NEW=2\n"
    assert set_variables("A=1", {"NEW": "2"}) == "A=1\nNEW=2\n"
    assert set_variables("", {"NEW": "2"}) == "NEW=2\n"


def test_a_volume_gets_another_name():
    text = FILE % "echo:1"
    assert "  postgres-data:\n    name: echo-postgres-17\n  echo-uploads:" in rename_volume(
        text, "postgres-data", "echo-postgres-17"
    )
    assert '    name: "other"   # as ever\n' in rename_volume(text, "echo-uploads", "other")


@pytest.mark.parametrize(
    ("volume", "problem"), [("absent", "not declared"), ("external-data", "external"), ("flow", "plain value")]
)
def test_a_volume_that_can_not_be_renamed_is_refused(volume, problem):
    with pytest.raises(ComposeFileError, match=problem):
        rename_volume(FILE % "echo:1", volume, "other")
