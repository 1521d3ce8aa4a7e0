# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure a second backup of a volume in which nothing changed, against the first one.

    .venv/bin/python tests/benchmark/unchanged.py [--repetitions 5] [--scale 0.1]

Needs root, a local Docker Engine, and 3 GB of disk space. Ends with 1 if the second one wrote anything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from subjects import ENVIRONMENT, ROOT, Volume, demand, fill_uploads, module

sys.path.insert(0, str(ROOT / ".ansible" / "collections"))

NAME = "uploads.tar.gz"
IDS = ("backup_2026-11-23_03-00-00", "backup_2026-11-24_03-00-00")
# What changed a moment ago is not trusted.
SETTLED = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1, help="size of the data; 1 is about 1 GiB")
    options = parser.parse_args()
    with Volume("unchanged", fill_uploads, options.scale) as volume:
        print(f"{volume}\n\n| | first | second | second of first, in pairs |\n|---|--:|--:|--:|")
        subprocess.run(["sync"], check=True)
        time.sleep(SETTLED)
        pairs = [pair(volume) for _unused in range(options.repetitions)]
    for number, title in enumerate(("the module's work", "whole process", "its CPU time")):
        first, second = ([side[number] for side in sides] for sides in zip(*pairs))
        shares = [100 * b / a for a, b in zip(first, second)]
        print(
            f"| {title} | {statistics.median(first):.2f} s | {statistics.median(second):.3f} s "
            f"| {statistics.median(shares):.1f} % ({min(shares):.1f} to {max(shares):.1f}) |"
        )


def pair(volume):
    """Return (work, whole, CPU time) in seconds of a first and of a second backup."""
    with tempfile.TemporaryDirectory(prefix="echo-bench-", dir="/var/tmp") as folder:
        sets = [Path(folder) / name for name in IDS]
        figures = []
        for number, place in enumerate(sets):
            place.mkdir()
            earlier = dict(forerunner=str(sets[0])) if number else {}
            # As the role says it, which knows where the volume lies.
            known = dict(volume="echo-bench-unchanged", mountpoint=str(volume.folder), component="uploads")
            way = module("echo_volume_backup", dest=str(place / NAME), **known, **earlier)
            os.sync()
            began, used = time.monotonic(), cpu()
            done = subprocess.run(way.argv, input=way.stdin, text=True, stdout=subprocess.PIPE, env=ENVIRONMENT, check=True)
            whole = time.monotonic() - began
            result = json.loads(done.stdout)
            demand(result["reused"] == bool(number), f"reused is {result['reused']} in run {number + 1}")
            figures.append((result["artifact"]["seconds"], whole, cpu() - used))
            describe(place, result)
        demand(os.path.samefile(sets[0] / NAME, sets[1] / NAME), "the archives are two files")
        demand(os.path.getsize(sets[0] / NAME) > 0 and result["bytes_written"] == 0, "something was written")
        return figures


def cpu():
    """Return the CPU time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def describe(place, result):
    """Write the manifest that makes the folder a set."""
    from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import describe_artifact

    stamp = "2026-11-24T03:00:00Z"
    manifest = dict(
        format="echo-backup/1",
        id=place.name,
        times=dict(started=stamp, snapshot=None, finished=stamp),
        host="bench",
        collection_version="0",
        layout="classic",
        project="bench",
        components=["uploads"],
        images={},
        database=None,
        tables={},
        artifacts=[describe_artifact(result, {})],
    )
    (place / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    main()
