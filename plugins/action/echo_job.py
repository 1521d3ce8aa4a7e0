# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows in a terminal how far the module is."""

from __future__ import annotations

from ansible_collections.echo_music.ops.plugins.plugin_utils.progress import ActionModule

__all__ = ["ActionModule"]
