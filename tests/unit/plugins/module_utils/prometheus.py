# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' own tool, for the tests of metrics and alert rules."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

CACHED = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "echo_music.ops" / "promtool"
PROMTOOL = shutil.which("promtool") or (str(CACHED) if CACHED.exists() else None)

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing: tests/tools/ensure-promtool.sh")


def promtool(*words, text=None):
    """Run it; return ``(exit code, all that it said)``."""
    done = subprocess.run(
        [PROMTOOL, *map(str, words)],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout
