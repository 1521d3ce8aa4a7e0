# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Per cent, rate and remaining time, for any host's word and any terminal's width."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.echo_music.ops.plugins.plugin_utils.progress_text import Pace, duration, line, parse

GIB = 1024**3
MIB = 1024**2


def phase(done=None, total=None, seconds=10.0, label="uploads.tar.gz"):
    return dict(label=label, done=done, total=total, seconds=seconds)


def file_of(*phases, module=17):
    return json.dumps(dict(id=module, phases=phases)) + "\n"


class TestLine:
    @pytest.mark.parametrize(
        "told, rate, expected",
        [
            (
                phase(int(4.4 * GIB), int(9.8 * GIB)),
                312 * MIB,
                "  uploads.tar.gz   44 %   4.4 of 9.8 GiB   312.0 MiB/s   0:17 left",
            ),
            (phase(0, 9 * GIB), None, "  uploads.tar.gz   0 %   0 bytes of 9.0 GiB"),
            (phase(900 * MIB, None), 30 * MIB, "  uploads.tar.gz   900.0 MiB   30.0 MiB/s"),
            (phase(), None, "  uploads.tar.gz   0:10"),
            # An estimate that was too low, and one that is reached before the end.
            (phase(12 * GIB, 9 * GIB), 30 * MIB, "  uploads.tar.gz   99 %   9.0 of 9.0 GiB   30.0 MiB/s"),
            (phase(9 * GIB, 9 * GIB), 30 * MIB, "  uploads.tar.gz   99 %   9.0 of 9.0 GiB   30.0 MiB/s"),
            (phase(MIB, 90 * GIB), MIB, "  uploads.tar.gz   0 %   1.0 MiB of 90.0 GiB   1.0 MiB/s   25:35:59 left"),
        ],
    )
    def test_says_what_is_known(self, told, rate, expected):
        assert line(told, rate, 100) == expected

    def test_names_the_host_where_there_are_several(self):
        assert line(phase(GIB, 2 * GIB), None, 80, "nas.example.org") == (
            "  nas.example.org: uploads.tar.gz   50 %   1.0 of 2.0 GiB"
        )

    @pytest.mark.parametrize(
        "width, expected",
        [
            (66, "  uploads.tar.gz   50 %   5.0 of 10.0 GiB   100.0 MiB/s   0:51 left"),
            (65, "  uploads.tar.gz   50 %   100.0 MiB/s   0:51 left"),
            (45, "  uploads.tar.gz   50 %   0:51 left"),
            (34, "  uploads.tar.gz   50 %"),
            (22, "  uploads.tar.gz"),
            (10, "  uploads~"),
            (1, "~"),
        ],
    )
    def test_gives_way_where_there_is_little_room(self, width, expected):
        assert line(phase(5 * GIB, 10 * GIB), 100 * MIB, width + (width == 66)) == expected

    @given(
        st.one_of(st.none(), st.integers(0, 10**18)),
        st.one_of(st.none(), st.integers(0, 10**18)),
        st.one_of(st.none(), st.floats(1e-6, 1e12)),
        st.floats(0, 1e9),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80),
        st.integers(1, 200),
    )
    def test_is_never_wider_than_the_terminal(self, done, total, rate, seconds, label, width):
        assert len(line(phase(done, total, seconds, label), rate, width, "host")) <= width


class TestPace:
    def test_the_first_figures_count_from_the_start(self):
        assert Pace().rate(phase(100, seconds=2.0), 0) == 50

    def test_nothing_is_known_before_anything_is_done(self):
        assert Pace().rate(phase(0, 100, seconds=2.0), 0) is None
        assert Pace().rate(phase(None, seconds=2.0), 0) is None
        assert Pace().rate(phase(5, seconds=0.0), 0) is None

    def test_the_last_half_minute_counts(self):
        pace = Pace()
        for second in range(0, 101, 10):
            pace.rate(phase(second * 100, seconds=float(second)), second)
        for second in range(110, 161, 10):
            rate = pace.rate(phase(10000 + (second - 100), seconds=float(second)), second)
        assert rate == 1

    def test_a_pass_that_begins_anew_is_no_step_back(self):
        pace = Pace()
        pace.rate(phase(1000, seconds=10.0), 10)
        assert pace.rate(phase(30, seconds=1.0), 12) == 30
        assert pace.rate(phase(20, seconds=2.0), 13) == 10

    def test_who_is_silent_for_long_is_dead(self):
        pace = Pace()
        assert not pace.is_dead(phase(10, seconds=1.0), 0)
        pace.rate(phase(10, seconds=1.0), 0)
        assert not pace.is_dead(phase(10, seconds=1.0), 10)
        pace.rate(phase(10, seconds=1.0), 10)
        assert not pace.is_dead(phase(10, seconds=2.0), 20)
        assert pace.is_dead(phase(10, seconds=1.0), 16)


class TestParse:
    def test_takes_every_module_and_phase(self):
        text = file_of(phase(1, 2), phase(3, label="config.tar.gz")) + file_of(phase(5), module=18)
        assert parse(text) == {
            ("17", "uploads.tar.gz"): phase(1, 2),
            ("17", "config.tar.gz"): phase(3, label="config.tar.gz"),
            ("18", "uploads.tar.gz"): phase(5),
        }

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "Welcome to this host!\n",
            "[]\n",
            "{}\n",
            '{"id": 1, "phases": 7}\n',
            '{"id": 1, "phases": [[]]}\n',
            file_of(dict(label="x")),
            file_of(phase("many")),
            file_of(phase(-1)),
            file_of(phase(float("nan"))),
            file_of(phase(float("inf"))),
            file_of(phase(True)),
            file_of(phase(10**19)),
            file_of(phase(1, seconds=None)),
            file_of(phase(1, label=None)),
            "[" * 100000 + "\n",
        ],
        ids=range(16),
    )
    def test_what_is_none_of_ours_is_nothing(self, text):
        assert parse(text + file_of(phase(1))) == {("17", "uploads.tar.gz"): phase(1)}
        assert parse(text) == {}

    def test_a_name_does_nothing_to_the_terminal(self):
        found = parse(file_of(phase(label="a\x1b]0;pwned\x07\x9b2J\r\nb\u202ec")))
        assert [told["label"] for told in found.values()] == ["a?]0;pwned??2J??b?c"]


@pytest.mark.parametrize("seconds, expected", [(0.4, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")])
def test_times_as_people_read_them(seconds, expected):
    assert duration(seconds) == expected
