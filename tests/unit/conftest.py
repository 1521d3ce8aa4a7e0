# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all unit tests share."""

from __future__ import annotations


def pytest_make_parametrize_id(val):
    """Name no test after bytes: archives hold the time, and processes that share the tests must agree on their names."""
    return "bytes" if isinstance(val, bytes) else None
