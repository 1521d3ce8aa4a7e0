# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What modules that take long have in common."""

    DOCUMENTATION = r"""
options: {}
notes:
  - In a terminal the controller shows per cent, rate and remaining time while this module runs. Logs, pipes and CI have
    nothing of it; E(ECHO_PROGRESS) set to V(0) on the controller turns it off.
"""
