# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which images a drill takes."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine, image

from ansible_collections.echo_music.ops.plugins.module_utils.drill_images import named, recorded_image, server_image
from ansible_collections.echo_music.ops.plugins.module_utils.errors import StackError

PG15, PG16, PG17 = (image("postgres:%d-alpine" % major, dict(PG_MAJOR=str(major))) for major in (15, 16, 17))
OTHER15 = image("mine:15", dict(PG_MAJOR="15"), digests=["mine@sha256:1"])
UNTOLD = image("mine:latest")
REDIS = image("redis:7-alpine")


def recorded(name, image_id="gone", digests=()):
    return dict(name="echo-postgres", image=name, image_id=image_id, digests=list(digests))


def chosen(images, needed=15, **options):
    return named(server_image(FakeEngine(images=images), needed, **options))


@pytest.mark.parametrize(
    "images, record, expected",
    [
        ([PG15, OTHER15], recorded("mine:15"), "mine:15"),
        ([PG15, OTHER15], recorded("postgres:15-alpine", digests=["mine@sha256:1"]), "mine:15"),
        ([PG15, OTHER15], recorded("postgres:15-alpine", "sha256:mine:15"), "mine:15"),
        ([UNTOLD, PG15], recorded("mine:latest"), "mine:latest"),
        # Its tag has moved on to a newer release, and the old one is here by another name.
        ([PG17, PG15], recorded("postgres:17-alpine"), "postgres:15-alpine"),
        ([PG17, PG16], None, "postgres:16-alpine"),
        ([REDIS, UNTOLD, PG16], recorded("gone:15"), "postgres:16-alpine"),
    ],
)
def test_the_sets_own_image_comes_first_then_the_nearest_release(images, record, expected):
    assert chosen(images, recorded=record) == expected


def test_the_live_stacks_image_comes_before_others():
    assert chosen([PG15, OTHER15], live=dict(image_id="sha256:mine:15")) == "mine:15"


def test_a_version_or_an_image_can_be_chosen():
    assert chosen([PG15, PG16, PG17], version=17, recorded=recorded("postgres:15-alpine")) == "postgres:17-alpine"
    assert chosen([PG15, PG16], reference="postgres:16-alpine", recorded=recorded("postgres:15-alpine")) == "postgres:16-alpine"
    assert chosen([PG15, UNTOLD], reference="mine:latest") == "mine:latest"


@pytest.mark.parametrize(
    "needed, options, words",
    [
        (17, {}, "no image of PostgreSQL 17 or newer.*15, 16.*docker pull postgres:17-alpine"),
        (15, dict(version=18), "no image of PostgreSQL 18 on this host"),
        (16, dict(version=15), "PostgreSQL 16 can't be loaded into PostgreSQL 15"),
        (15, dict(reference="gone:1"), "no image gone:1"),
        (16, dict(reference="postgres:15-alpine"), "no image of PostgreSQL 16 or newer"),
    ],
)
def test_what_does_not_fit_is_refused(needed, options, words):
    with pytest.raises(StackError, match=words):
        chosen([PG15, PG16, REDIS], needed, **options)


def test_an_image_goes_by_the_name_that_people_know():
    assert named(dict(PG15, tags=["a:1", "b:2"]), "b:2") == "b:2"
    assert named(dict(PG15, tags=["a:1", "b:2"]), "gone:3") == "a:1"
    assert named(dict(PG15, tags=[])) == PG15["id"]


def test_an_image_of_the_app_is_the_recorded_one_or_none():
    engine = FakeEngine(images=[PG15, OTHER15])
    assert recorded_image(engine, recorded("gone:1")) is None
    assert recorded_image(engine, None) is None
    assert recorded_image(engine, recorded("gone:1"), dict(image_id="sha256:mine:15")) == OTHER15
