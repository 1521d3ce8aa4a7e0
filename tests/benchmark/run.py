# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure our modules against the commands of the 2024 script, side by side; see README.md.

    make bench
    .venv/bin/python tests/benchmark/run.py --only dump --repetitions 5 --json figures.json

Needs root, a local Docker Engine with the test images, and 8 GB of disk space. Ends with 1 if an output is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
from pathlib import Path

from measure import measure
from subjects import ENVIRONMENT, PREFIX, Postgres, Volume, WrongOutput, command, fill_logs, fill_uploads, remove

SUBJECTS = (
    ("volume", functools.partial(Volume, "uploads", fill_uploads)),
    ("volume", functools.partial(Volume, "logs", fill_logs)),
    ("dump", functools.partial(Postgres, 15)),
    ("dump", functools.partial(Postgres, 17)),
)
WAYS = ("script", "floor", "ours")
MEASURES = ("volume", "dump", "memory")
SMALL = 0.25
LOCK = "/tmp/echo-bench.lock"
SAID = 2000
# What may be lost to the clock's grain and to noise before a figure counts as impossible.
TOLERANCE = 0.9


def main():
    options = arguments()
    if os.geteuid():
        raise SystemExit("The benchmark reads volumes where they lie, which takes root: sudo make bench.")
    signal.signal(signal.SIGTERM, lambda *_unused: sys.exit(143))
    with open(LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("Another benchmark runs on this machine.") from None
        clean_up(options.work_dir)
        try:
            report = bench(options)
        finally:
            clean_up(options.work_dir)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["wrong"] else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=MEASURES, action="append", help="one measure; may be repeated")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--scale", type=float, default=1, help="size of the data; 1 is about 1 GiB of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the runs")
    parser.add_argument("--patience", type=float, default=30, help="seconds to wait for an idle machine (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every run's figures")
    parser.add_argument("--work-dir", type=Path, default="/var/tmp", help="where outputs go (default: /var/tmp)")
    return parser.parse_args()


def clean_up(work_dir):
    """Remove what this benchmark made, or one that was killed."""
    for kind, listing in (("container", ("ps", "-aq")), ("volume", ("volume", "ls", "-q"))):
        names = command("docker", *listing, "--filter", f"name={PREFIX}").split()
        if names:
            remove(kind, names)
    for folder in work_dir.glob(PREFIX + "*"):
        shutil.rmtree(folder)


def bench(options):
    """Measure what was asked for, print it as it comes, and return all figures."""
    measures = options.only or MEASURES
    report = dict(environment=environment(), scale=options.scale, subjects=[], peaks=[], wrong=[])
    print(f"# Benchmark\n\n{', '.join(f'{name} {value}' for name, value in report['environment'].items())}\n")
    order = random.Random(options.seed)
    for kind, make in SUBJECTS:
        timed = kind in measures
        peaks = []
        if timed or "memory" in measures:
            with make(options.scale) as subject:
                say(f"{subject}: made")
                repetitions = options.repetitions if timed else 1
                runs = repeat(subject, WAYS if timed else ("ours",), repetitions, options, order, report["wrong"])
                peaks.append(peak(subject, runs))
                if timed:
                    show(subject, runs)
                    report["subjects"].append(entry(subject, runs))
                    report["wrong"] += implausible(subject, runs)
        if "memory" in measures:
            with make(options.scale * SMALL) as subject:
                peaks.insert(0, peak(subject, repeat(subject, ("ours",), 1, options, order, report["wrong"])))
        report["peaks"] += peaks
    show_peaks(report["peaks"])
    for complaint in report["wrong"]:
        print(f"- **WRONG**: {complaint}")
    return report


def environment():
    return dict(
        CPUs=os.cpu_count(),
        Linux=platform.release(),
        Python=platform.python_version(),
        isal=importlib.metadata.version("isal"),
        Docker=command("docker", "version", "-f", "{{.Server.Version}}").strip(),
        tar=command("tar", "--version").split("\n")[0].split()[-1],
    )


def repeat(subject, ways, repetitions, options, order, wrong):
    """Run all the ways in a new order, time and again; return ``{way: [run, or None where it went wrong]}``."""
    runs = {way: [] for way in ways}
    for repetition in range(repetitions):
        for way in order.sample(ways, len(ways)):
            try:
                run = once(subject, way, options, thorough=repetition == 0)
                say(f"{subject.name}, {way}, {repetition + 1}: {run.seconds:.2f} s")
            except WrongOutput as error:
                run = None
                wrong.append(f"{subject.name}, {way}, run {repetition + 1}: {error}")
                say(wrong[-1])
            runs[way].append(run)
    return runs


def once(subject, name, options, thorough):
    """Run one way into a folder of its own, and check what it wrote."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=options.work_dir) as folder:
        dest = Path(folder)
        way = subject.ways(dest)[name]
        run = measure(way.argv, dest, options.patience, way.stdin, ENVIRONMENT)
        if run.code:
            raise WrongOutput(f"exit code {run.code}: {(run.stdout + run.stderr)[-SAID:].strip()}")
        try:
            run.output = subject.check(name, run, dest, thorough)
        except FileNotFoundError as error:
            raise WrongOutput(f"{error.filename} is missing") from error
        return run


def ratios(runs):
    """Return ``{ratio: {clock: [one per repetition]}}`` of the runs of one repetition."""
    return {
        name: {
            clock: [getattr(a, clock) / getattr(b, clock) for a, b in zip(runs[first], runs[second]) if a and b]
            for clock in ("seconds", "on_disk")
        }
        for name, first, second in (("speedup", "script", "ours"), ("over_floor", "ours", "floor"))
    }


def implausible(subject, runs):
    """Yield what can't be: a way faster than its floor, which it includes, or with more CPU time than there was."""
    floors = [run.seconds for run in runs["floor"] if run]
    for way, done in runs.items():
        for run in filter(None, done):
            if floors and run.seconds < min(floors) * TOLERANCE:
                yield f"{subject.name}, {way}: {run.seconds:.2f} s, but the least of it takes {min(floors):.2f} s"
            if run.own * TOLERANCE > run.seconds * os.cpu_count():
                yield f"{subject.name}, {way}: {run.own:.2f} s of CPU in {run.seconds:.2f} s"


def entry(subject, runs):
    """Return the report's part about a subject; what the commands said is left out."""
    unwanted = ("stdout", "stderr")
    figures = [
        dict((name, value) for name, value in dataclasses.asdict(run).items() if name not in unwanted) | dict(way=way)
        for way, done in runs.items()
        for run in done
        if run
    ]
    return dict(subject=str(subject), runs=figures, ratios=ratios(runs))


def peak(subject, runs):
    return dict(subject=str(subject), bytes=max((run.peak for run in runs["ours"] if run), default=None))


def show(subject, runs):
    print(f"## {subject}\n")
    print("| way | seconds | until on disk | CPU own | containers | Docker | others | output MB | peak MB |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    titles = subject.ways(Path("DEST"))
    for way, done in runs.items():
        good = [run for run in done if run]
        if good:
            cells = [titles[way].title, spread([run.seconds for run in good]), spread([run.on_disk for run in good])]
            for who in ("own", "containers", "engine", "others"):
                used = [getattr(run, who) for run in good if getattr(run, who) is not None]
                cells.append(f"{statistics.median(used):.1f}" if used else "?")
            cells += [f"{good[0].output / 1e6:,.0f}", f"{max(run.peak for run in good) / 1e6:.0f}"]
            print(f"| {' | '.join(cells)} |")
    print("\n| ratio, in pairs | as the command returns | until on disk |")
    print("|---|--:|--:|")
    names = dict(speedup=f"times as fast as {subject.titles[0]}", over_floor=f"times as long as {subject.titles[1]}")
    for ratio, clocks in ratios(runs).items():
        print(f"| {names[ratio]} | {' | '.join(spread(values) for values in clocks.values())} |")
    busy = sum(not run.idle for done in runs.values() for run in done if run)
    if busy:
        print(f"\n{busy} of the runs began while something else kept the machine busy.")
    print(flush=True)


def show_peaks(peaks):
    print("## Peak memory of our way\n\n| data | peak MB |\n|---|--:|")
    for found in peaks:
        print(f"| {found['subject']} | {'?' if found['bytes'] is None else round(found['bytes'] / 1e6)} |")
    print()


def spread(values):
    """Return median, least and greatest."""
    if not values:
        return "?"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
