# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The app's files, from the old host to the new one by rsync, as often as one likes: each time the difference."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import subprocess
import tempfile
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_command import Listener
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_rsync import FIGURES
from ansible_collections.echo_music.ops.plugins.module_utils.progress import phase, wanted
from ansible_collections.echo_music.ops.plugins.module_utils.restore_layout import PLACES
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained

# Whole attributes, times to the nanosecond, and what is not there any more goes.
RSYNC = ["rsync", "-aHAXS", "--numeric-ids", "--modify-window=-1", "--delete", "--stats", "--timeout=60"]
# What restores keep in a volume is the host's own.
EXCLUDED = "/.echo-*"
STATS = {
    "files": re.compile(r"Number of regular files transferred: ([0-9,.]+)"),
    "bytes": re.compile(r"Total transferred file size: ([0-9,.]+)"),
    "sent": re.compile(r"Total bytes received: ([0-9,.]+)"),
    "all_files": re.compile(r"Number of files: ([0-9,.]+)"),
    "all_bytes": re.compile(r"Total file size: ([0-9,.]+)"),
}
# Files that vanished while they were read: the app is at work, and the last pass is without it.
VANISHED = 24
SAID = 600
BLOCK = 64 * 1024
LISTED = re.compile(r"(?P<type>.)\S+\s+[0-9,.]+\s+\S+\s+\S+\s(?P<name>.*)\Z")


class CopyError(EchoError):
    """rsync came to no end, or to a bad one."""


def copy(parts, ssh, keys, lock, run=None):
    """Copy each part, and return what that took; a part is ``{"name", "component", "role", "dest"}``.

    ``ssh`` is ``{"host", "port", "user", "alias", "known_hosts"}``; the key ``keys/<name>``
    leads to the part's folder on the old host.
    """
    run = run or _run
    copied = []
    with _alone(lock):
        for part in parts:
            began = time.monotonic()
            counts = dict.fromkeys(STATS, 0)
            shell = _shell(ssh, os.path.join(keys, part["name"]))
            for source, dest, options in _ways(part, shell, ssh, run):
                # How much has changed since the last copy, only rsync finds out on its way.
                with phase(part["name"]) as told:
                    listener = dict(listener=Listener(told, FIGURES)) if wanted() else {}
                    said = run(RSYNC + options + ["-e", shell, _address(ssh, source), dest], **listener)
                for name, pattern in STATS.items():
                    found = pattern.search(said)
                    counts[name] += int(re.sub(r"[,.]", "", found.group(1))) if found else 0
            run(["sync", "-f", part["dest"]])
            copied.append(dict(counts, name=part["name"], seconds=round(time.monotonic() - began, 3)))
    return copied


def _ways(part, shell, ssh, run):
    """Yield ``(source, destination, options)`` of each rsync that a part takes."""
    dest = part["dest"].rstrip("/") + "/"
    places = PLACES.get((part["component"], part["role"])) if part["component"] != part["role"] else None
    if not places:
        yield "./", dest, ["--exclude=" + EXCLUDED]
        return
    there = _listing(run(["rsync", "--list-only", "--timeout=60", "-e", shell, _address(ssh, "./"), dest]))
    for name, place in sorted(places.items()):
        if there.get(name) == "d":
            yield name + "/", dest + place + "/", []
        elif name in there:
            yield name, dest + place, []


def _listing(said):
    matches = [LISTED.match(line) for line in said.splitlines()]
    return dict((match.group("name"), match.group("type")) for match in matches if match)


def _address(ssh, path):
    return "%s@%s:%s" % (ssh["user"], ssh["alias"], path)


def _shell(ssh, key):
    options = [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "IdentityFile=" + key,
        "StrictHostKeyChecking=yes",
        "UserKnownHostsFile=" + ssh["known_hosts"],
        "GlobalKnownHostsFile=/dev/null",
        # The alias is all that rsync and known_hosts know; where it leads is said here.
        "HostName=" + ssh["host"],
        "HostKeyAlias=" + ssh["alias"],
        "ConnectTimeout=15",
        "ServerAliveInterval=5",
        "ServerAliveCountMax=3",
    ]
    argv = ["ssh", "-F", "/dev/null", "-p", str(ssh["port"])]
    for option in options:
        argv += ["-o", option]
    return " ".join(shlex.quote(word) for word in argv)


@contextlib.contextmanager
def _alone(path):
    """Let a copy that outlived its controller end before another begins."""
    with explained("lock", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with explained("lock", path):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _run(argv, listener=None):
    env = dict(os.environ, LC_ALL="C")
    streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    try:
        done = _followed(argv, listener, streams) if listener else subprocess.run(argv, check=False, **streams)
    except OSError as error:
        raise CopyError("Could not run rsync: %s." % error.strerror, "Install it.")
    if done.returncode not in (0, VANISHED):
        raise CopyError(
            "rsync from %s ended with exit code %d: %s"
            % (argv[-2], done.returncode, done.stderr.decode("utf-8", "replace").strip()[-SAID:]),
            "Does the old host let the key in, from this address (echo_migrate_from)? Is there room here?",
        )
    return done.stdout.decode("utf-8", "replace")


def _followed(argv, listener, streams):
    """Do what ``subprocess.run`` does, with a listener to rsync's figures."""
    said = []
    with tempfile.TemporaryFile() as errors:
        command = argv[:1] + ["--info=progress2"] + argv[1:]
        with subprocess.Popen(command, **dict(streams, stderr=errors)) as process:
            with contextlib.ExitStack() as on_error:
                # Whatever interrupts us ends the program as well.
                on_error.callback(process.kill)
                for block in iter(lambda: process.stdout.read1(BLOCK), b""):
                    said.append(block)
                    listener.hear(block)
                on_error.pop_all()
        errors.seek(0)
        return subprocess.CompletedProcess(argv, process.returncode, b"".join(said), errors.read())
