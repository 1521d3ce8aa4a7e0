# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets in a restic repository: encrypted, and what two sets have in common is stored once.

A set is one snapshot of its folder, with its id and what retention wants to know as tags. The
tag ``complete`` comes last, after the copy was checked; a snapshot without it doesn't count.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_command import (
    LinkError,
    OffsiteError,
    failure,
    ssh_command,
)
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_receipt import (
    FLAGS,
    FORMAT,
    LIMIT,
    NOT_COPIED,
    checked_holds,
    parse_sums,
    set_files,
)
from ansible_collections.echo_music.ops.plugins.module_utils.progress import wanted
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    CHECKSUMS,
    ID,
    ID_TIME,
    explained,
    read_small,
)

MINIMUM = (0, 12)
TAG, COMPLETE = "echo_music.ops", "complete"
# restic 0.17 has exit codes for these; before, the words tell.
NO_REPOSITORY, WRONG_PASSWORD, READ_INCOMPLETE = 10, 12, 3
MISSING = re.compile(r"Is there a repository at the following location|repository does not exist|NoSuchBucket")
WRONG = re.compile(r"wrong password or no key found|empty password|password.*not (found|exist)", re.I)
REFUSED = re.compile(r"Permission denied \(|Host key verification failed|AccessDenied|InvalidAccessKeyId")
SFTP = re.compile(r"sftp:(//)?(?P<host>[A-Za-z0-9_][A-Za-z0-9._@\-]*)(:(?P<port>\d+)(?=/))?[:/]")
LOCKED = "already locked"
FIGURES = re.compile(rb'"total_bytes":(?P<total>\d+),"bytes_done":(?P<done>\d+)')
# What restic says while it is at work: with --quiet nothing, without it sixty times a second.
FIGURES_A_SECOND = "1"


class ResticEnd:
    """The sets of one host in a repository."""

    def __init__(
        self,
        programs,
        host,
        repository,
        scratch,
        port=None,
        ssh_key=None,
        ssh_options=(),
        bandwidth_limit=None,
        read_data_subset=None,
    ):
        self._programs = programs
        self._host = host
        self._repository = repository
        self._scratch = scratch
        self._subset = read_data_subset
        self._options = ["--quiet"]
        # In which the times of sets are.
        programs.environment["TZ"] = "UTC"
        if wanted():
            programs.environment["RESTIC_PROGRESS_FPS"] = FIGURES_A_SECOND
        if repository:
            # In the environment: a repository's URL may carry credentials.
            programs.environment["RESTIC_REPOSITORY"] = repository
        sftp = SFTP.match(repository or "")
        if sftp and (port or ssh_key or ssh_options):
            words = ssh_command(port or sftp.group("port"), ssh_key, ssh_options) + [sftp.group("host"), "-s", "sftp"]
            self._options += ["--option", "sftp.command=" + " ".join(map(shlex.quote, words))]
        if bandwidth_limit:
            rate = max(1, bandwidth_limit // 1024)
            self._options += ["--limit-upload=%d" % rate, "--limit-download=%d" % rate]
        self._snapshots = {}
        self._missing = False

    def where(self, set_id):
        """Return where a set lies, for people."""
        snapshot = self._snapshots.get(set_id)
        repository = self._programs.hide(self._repository or "the repository")
        return "%s in %s" % ("snapshot %s" % snapshot["short_id"] if snapshot else set_id or "snapshots", repository)

    def prepare(self):
        """Check the program and what it needs; change nothing."""
        self._programs.require("restic", MINIMUM, ask=("version",))
        names = set(self._programs.environment)
        if not names & {"RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE"}:
            raise OffsiteError("No restic repository is named.", "Name it as repository.")
        if not names & {"RESTIC_PASSWORD", "RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND"}:
            raise OffsiteError("The restic repository needs a password.", "Give password_file or password.")
        if (self._repository or "").startswith("/") and not os.path.isdir(self._repository):
            raise OffsiteError(
                "There is no folder %s." % self._repository,
                "Is the disk mounted? Make the folder there; it is not made here, so that nothing is written "
                "beside a disk that is missing.",
            )

    def sets(self):
        """Return ``{id: receipt}``; a repository that isn't there yet has none."""
        finished = self._restic("snapshots", "--json", "--tag=" + TAG, "--host=" + self._host)
        self._missing = _repository_missing(finished)
        if self._missing:
            return {}
        self._check(finished, "Could not list the snapshots in %s" % self._repository)
        self._snapshots = {}
        found = {}
        for snapshot in json.loads(finished.stdout or "null") or []:
            receipt = _receipt(snapshot)
            if receipt and COMPLETE in snapshot["tags"]:
                found[receipt["id"]] = receipt
                self._snapshots[receipt["id"]] = snapshot
        return found

    def put(self, receipt, folder, unused_receipt_file, known, unused_missing):
        """Back a set up, check it there, and let it count; return ``(bytes added, how it was checked)``."""
        set_id = receipt["id"]
        if self._missing:
            self._make_repository()
        # A set that comes late is no newer for that: restic's own "latest" and its rules go by this time.
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.strptime(set_id, ID_TIME))
        command = ["backup", "--json", "--host=" + self._host, "--ignore-ctime", "--time=" + moment]
        command += ["--tag=" + tag for tag in _tags(receipt)]
        command += ["--exclude=" + os.path.join(folder, name) for name in NOT_COPIED + (".*",)]
        before = [self._snapshots[other]["id"] for other in sorted(known) if other in self._snapshots]
        command += ["--parent=" + before[-1]] if before else []
        finished = self._do("Could not copy %s to %s" % (folder, self._repository), *(command + ["."]), cwd=folder)
        summary = json.loads(finished.stdout.strip().splitlines()[-1])
        checked = self._verify_tree(summary["snapshot_id"], folder)
        self._do("Could not complete %s" % set_id, "tag", "--add=" + COMPLETE, summary["snapshot_id"])
        return summary["data_added"], checked

    def refresh(self, receipt, unused_folder, unused_receipt_file):
        """Bring what is newly known of a set to its copy."""
        snapshot = self._snapshots[receipt["id"]]
        for flag in FLAGS:
            if receipt[flag] != (flag in snapshot["tags"]):
                # The snapshot gets another id with its other tags.
                option = "--add=" if receipt[flag] else "--remove="
                self._do("Could not tag %s" % receipt["id"], "tag", option + flag, self._latest_id(receipt["id"]))

    def verify(self, receipt, unused_local):
        """Check the repository's structure, and read the set's files; return how."""
        self._structure()
        snapshot = self._snapshots[receipt["id"]]["id"]
        content = self._dump(snapshot, CHECKSUMS)
        for name, digest in sorted(parse_sums(content.decode("utf-8", "replace"), receipt["id"]).items()):
            found = hashlib.sha256()
            self._do("Could not read %s" % name, "dump", snapshot, "/" + name, consume=found.update)
            if found.hexdigest() != digest:
                raise SetError(
                    "%s of %s is not what it was." % (name, self.where(receipt["id"])),
                    "See `restic check --read-data`; the next backup makes another copy.",
                )
        return "restic check, SHA-256 of what was read back"

    def fetch(self, receipt, folder):
        """Copy a set back."""
        snapshot = self._snapshots[receipt["id"]]["id"]
        self._do("Could not fetch %s" % self.where(receipt["id"]), "restore", snapshot, "--target=" + folder)
        for name in os.listdir(folder):
            with explained("make private", os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o600)

    def remove(self, receipts):
        """Forget snapshots, and remove what no other one needs."""
        self.sets()
        # What an earlier try has forgotten already is no snapshot any more, and its data still to be removed.
        there = [self._snapshots[receipt["id"]]["id"] for receipt in receipts if receipt["id"] in self._snapshots]
        ids = there + self._unfinished()
        self._do("Could not remove snapshots", *(["forget", "--prune"] + ids if ids else ["prune"]))

    # -- restic --------------------------------------------------------------------------------

    def _make_repository(self):
        made = self._restic("init")
        # Of two that make it at once, one finds it made.
        if "already" not in made.stderr:
            self._check(made, "Could not make the repository %s" % self._repository)
        self._missing = False

    def _verify_tree(self, snapshot, folder):
        """Compare names and sizes, what the sums say, and let restic check the repository's structure."""
        finished = self._do("Could not list the snapshot", "ls", "--json", snapshot)
        entries = [json.loads(line) for line in finished.stdout.splitlines() if line.strip()]
        there = dict((entry["path"][1:], entry.get("size", 0)) for entry in entries if entry.get("type") == "file")
        here = dict((name, os.path.getsize(os.path.join(folder, name))) for name in set_files(folder))
        if there != here or self._dump(snapshot, CHECKSUMS) != read_small(os.path.join(folder, CHECKSUMS), LIMIT):
            self._do("Could not remove a wrong snapshot", "forget", snapshot)
            raise LinkError("The snapshot %s is not the set %s." % (snapshot, folder), "Did the set change meanwhile?")
        self._structure()
        return "restic check" + (" with %s of the data" % self._subset if self._subset else "")

    def _structure(self):
        # Without a lock: other hosts may be at work in the same repository.
        words = ["--read-data-subset=" + self._subset] if self._subset else []
        self._do("The repository %s is damaged" % self._repository, "check", "--no-lock", *words)

    def _dump(self, snapshot, name):
        return self._do("Could not read %s" % name, "dump", snapshot, "/" + name).stdout.encode("utf-8")

    def _unfinished(self):
        """Return the snapshots of this host that no run completed."""
        finished = self._do("Could not list", "snapshots", "--json", "--tag=" + TAG, "--host=" + self._host)
        listed = json.loads(finished.stdout or "null") or []
        return [snapshot["id"] for snapshot in listed if COMPLETE not in snapshot["tags"]]

    def _latest_id(self, set_id):
        self.sets()
        return self._snapshots[set_id]["id"]

    def _do(self, what, *words, **how):
        finished = self._restic(*words, **how)
        if finished.code and LOCKED in finished.stderr:
            # Removes the locks of dead processes alone, for the next try.
            self._restic("unlock")
        self._check(finished, what)
        return finished

    def _restic(self, *words, **how):
        said = ("ls", "backup") if wanted() else ("ls",)
        quiet = [option for option in self._options if option != "--quiet" or words[0] not in said]
        return self._programs(["restic"] + quiet + list(words), figures=FIGURES, **how)

    def _check(self, finished, what):
        if not finished.code:
            return
        if finished.code == WRONG_PASSWORD or WRONG.search(finished.stderr):
            raise failure(what, finished, True, "Is it the password that the repository was made with?")
        if finished.code == NO_REPOSITORY or REFUSED.search(finished.stderr):
            raise failure(what, finished, True, "Are the repository and its keys right? `restic snapshots` tells.")
        remedy = (
            "Another host may be at work in it; `restic unlock` helps if none is."
            if LOCKED in finished.stderr
            else None
        )
        raise failure(what, finished, remedy=remedy)


def _repository_missing(finished):
    return finished.code == NO_REPOSITORY or bool(finished.code and MISSING.search(finished.stderr))


def _tags(receipt):
    tags = [TAG, "id:" + receipt["id"], "time:" + receipt["time"], "bytes:%d" % receipt["bytes"]]
    tags += ["manifest:" + receipt["manifest_sha256"], "layout:" + receipt["layout"]]
    tags += ["components:" + "+".join(receipt["components"])]
    tags += ["project:" + receipt["project"]] if receipt["project"] else []
    tags += ["holds:" + ";".join("%s=%d" % held for held in sorted(receipt["holds"].items()))]
    return tags + [flag for flag in FLAGS if receipt[flag]]


def _receipt(snapshot):
    """Return what a snapshot's tags say as a receipt, None for a snapshot of others."""
    tags = snapshot.get("tags") or []
    told = dict(tag.split(":", 1) for tag in tags if ":" in tag)
    if not ID.match(told.get("id", "")) or not told.get("bytes", "").isdigit():
        return None
    receipt = dict(
        format=FORMAT,
        id=told["id"],
        host=snapshot.get("hostname", ""),
        time=told.get("time", ""),
        project=told.get("project"),
        layout=told.get("layout"),
        components=[name for name in told.get("components", "").split("+") if name],
        bytes=int(told["bytes"]),
        manifest_sha256=told.get("manifest"),
        age=False,
        holds=checked_holds(dict(_held(held) for held in told.get("holds", "").split(";"))),
    )
    return dict(receipt, **dict((flag, flag in tags) for flag in FLAGS))


def _held(text):
    name, unused, size = text.rpartition("=")
    return name, int(size) if size.isdigit() else None
