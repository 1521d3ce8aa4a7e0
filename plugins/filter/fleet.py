# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role echo_status shows of many hosts: the domain's judgement as a filter."""

from __future__ import annotations

import time

from ansible_collections.echo_music.ops.plugins.module_utils.fleet import assess


def fleet(answers, max_age, max_proven_age, shrink_alarm, now=None):
    """Return ``assess`` of what the hosts answered, by default as of now."""
    return assess(answers, time.time() if now is None else now, max_age, max_proven_age, shrink_alarm)


class FilterModule:
    """The filter of the fleet's status."""

    def filters(self):
        """Return the filter by name."""
        return dict(fleet=fleet)
