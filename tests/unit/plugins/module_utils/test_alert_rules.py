# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The alert rules alarm when they should, and only then; they ask for metrics that there are."""

from __future__ import annotations

import pathlib
import re

import yaml
from prometheus import needs_promtool, promtool

from ansible_collections.echo_music.ops.plugins.module_utils import metrics

HERE = pathlib.Path(__file__).resolve().parent
RULES = HERE.parents[3] / "roles" / "echo_schedule" / "files" / "echo.rules.yml"


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


@needs_promtool
def test_prometheus_accepts_the_rules():
    code, output = promtool("check", "rules", "--lint-fatal", RULES)
    assert code == 0 and "SUCCESS: %d rules" % len(rules()) in output


@needs_promtool
def test_the_rules_alarm_when_they_should():
    assert promtool("test", "rules", HERE / "alert_rules.yml") == (0, "Unit Testing:  %s\n  SUCCESS\n\n" % (HERE / "alert_rules.yml"))


def test_each_alert_is_played_both_ways():
    tests = yaml.safe_load((HERE / "alert_rules.yml").read_text())["tests"]
    played = [(case["alertname"], bool(case.get("exp_alerts"))) for test in tests for case in test["alert_rule_test"]]
    assert set(played) == {(rule["alert"], alarms) for rule in rules() for alarms in (True, False)}


def test_the_rules_ask_for_metrics_that_there_are(tmp_path):
    found, unused_warnings = metrics.families(str(tmp_path), {}, 0)
    named = {name for rule in rules() for name in re.findall(r"echo_[a-z_]+", rule["expr"])}
    assert named and named <= {family.name for family in found}
