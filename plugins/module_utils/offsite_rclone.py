# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets in whatever rclone reaches: S3, cloud drives, WebDAV, SFTP.

Object stores can't rename. So a folder carries a mark while it is being filled, and only the
receipt, which is uploaded last, makes it count; what a dead run left is known by its mark.
"""

from __future__ import annotations

import hashlib
import json
import os
import re

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_command import LinkError, OffsiteError, failure
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_receipt import (
    LIMIT,
    MARK,
    MARK_TEXT,
    NOT_COPIED,
    RECEIPT,
    parse,
    parse_sums,
)
from ansible_collections.echo_music.ops.plugins.module_utils.progress import wanted
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    CHECKSUMS,
    ID,
    PROOF,
    explained,
    read_small,
    write_file,
)

MINIMUM = (1, 54)
EXCLUDED = ["--exclude=/" + name for name in NOT_COPIED + (MARK, ".*")]
USAGE, FOLDER_MISSING, FILE_MISSING, NO_RETRY, FATAL = 2, 3, 4, 6, 7
LASTING = {USAGE, FOLDER_MISSING, FILE_MISSING, NO_RETRY, FATAL}
FIGURES = re.compile(rb'"stats":\{"bytes":(?P<done>\d+),[^{]*?"totalBytes":(?P<total>\d+)')
NEVER_BETTER = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "didn't find section",
    "401 Unauthorized",
)
# We try again ourselves, with longer pauses.
OPTIONS = ["--retries=1", "--low-level-retries=3", "--contimeout=15s", "--timeout=2m"]


class RcloneEnd:
    """The sets of one host below ``remote:path``."""

    def __init__(self, programs, host, remote, scratch, config_file=None, bandwidth_limit=None):
        self._programs = programs
        self._scratch = scratch
        self._remote = remote
        self._base = "%s%s%s" % (remote, "" if remote.endswith((":", "/")) else "/", host)
        self._options = list(OPTIONS)
        if config_file:
            self._options.append("--config=" + config_file)
        if bandwidth_limit:
            self._options.append("--bwlimit=%dK" % max(1, bandwidth_limit // 1024))
        self._partial = set()

    def where(self, set_id):
        """Return where a set lies, for people."""
        return "%s/%s" % (self._programs.hide(self._base), set_id)

    def prepare(self):
        """Check the program; change nothing."""
        if ":" not in self._remote:
            raise OffsiteError("The remote %s is not remote:path." % self._remote, "An example: s3:bucket/echo.")
        self._programs.require("rclone", MINIMUM, ask=("version",))

    def sets(self):
        """Return ``{id: receipt}``."""
        inbox = os.path.join(self._scratch, "receipts")
        only = ["--include=/backup_*/" + RECEIPT, "--include=/backup_*/" + MARK]
        finished = self._rclone("sync", *(only + [self._base, inbox]))
        if finished.code == FOLDER_MISSING:
            return {}
        self._check(finished, "Could not list the sets in %s" % self.where(""))
        self._partial = set()
        found = {}
        for name in os.listdir(inbox) if os.path.isdir(inbox) else []:
            path = os.path.join(inbox, name, RECEIPT)
            if not ID.match(name):
                continue
            receipt = parse(read_small(path, LIMIT)) if os.path.lexists(path) else None
            if receipt and receipt["id"] == name:
                found[name] = receipt
            elif os.path.lexists(os.path.join(inbox, name, MARK)):
                self._partial.add(name)
        return found

    def put(self, receipt, folder, receipt_file, unused_known, missing):
        """Copy a set, check it there, and let it count; return ``(bytes sent, how it was checked)``."""
        set_id = receipt["id"]
        for left in sorted(self._partial - {set_id} - set(missing)):
            self._remove(left)
        self._upload(self._write_mark(), set_id, MARK)
        self._partial.add(set_id)
        sent = self._send(folder, set_id)
        checked = self._compare(folder, set_id)
        self._upload(receipt_file, set_id, RECEIPT)
        # The receipt counts; a mark beside it says nothing.
        self._do("deletefile", "Could not remove the mark of %s" % self.where(set_id), self._place(set_id, MARK))
        return sent, checked

    def refresh(self, receipt, folder, receipt_file):
        """Bring what is newly known of a set to its copy."""
        if os.path.lexists(os.path.join(folder, PROOF)):
            self._upload(os.path.join(folder, PROOF), receipt["id"], PROOF)
        self._upload(receipt_file, receipt["id"], RECEIPT)

    def verify(self, receipt, unused_local):
        """Read a copy and check its sums; return how."""
        set_id = receipt["id"]
        told = self._do("cat", "Could not read %s" % self.where(set_id), self._place(set_id, CHECKSUMS))
        if hashlib.sha256(told.stdout.encode("utf-8")).hexdigest() != receipt["sums_sha256"]:
            raise SetError("%s of %s is another one." % (CHECKSUMS, self.where(set_id)), "Remove that copy.")
        wanted = parse_sums(told.stdout, self.where(set_id))
        read = self._do(
            "hashsum", "Could not read %s" % self.where(set_id), "SHA-256", "--download", self._place(set_id)
        )
        found = {}
        for line in read.stdout.splitlines():
            digest, unused_sep, name = line.partition("  ")
            found[name] = digest
        for name, digest in sorted(wanted.items()):
            if found.get(name) != digest:
                raise SetError(
                    "%s of %s is %s." % (name, self.where(set_id), "different" if name in found else "missing"),
                    "Remove that copy; the next run makes it again.",
                )
        return "SHA-256 of what was read back"

    def fetch(self, receipt, folder):
        """Copy a set back."""
        what = "Could not fetch %s" % self.where(receipt["id"])
        self._do("copy", what, "--exclude=/" + RECEIPT, "--exclude=/" + MARK, self._place(receipt["id"]), folder)
        for name in os.listdir(folder):
            with explained("make private", os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o600)

    def remove(self, receipts):
        """Remove copies, first the receipt, so that what is half removed doesn't count; those that are gone are no failure."""
        mark = self._write_mark()
        for receipt in receipts:
            # By it a later run finds what this one can't remove any more.
            self._upload(mark, receipt["id"], MARK)
            self._remove(receipt["id"])

    # -- rclone --------------------------------------------------------------------------------

    def _send(self, folder, set_id):
        report = ["--use-json-log", "--log-level=INFO", "--stats=%s" % ("1s" if wanted() else "10h")]
        what = "Could not copy %s to %s" % (folder, self.where(set_id))
        return _bytes_sent(self._do("sync", what, *(EXCLUDED + report + [folder, self._place(set_id)])).stderr)

    def _compare(self, folder, set_id):
        finished = self._rclone("check", *(EXCLUDED + [folder, self._place(set_id)]))
        how = "rclone check, by hash"
        if not finished.code and ("No common hash" in finished.stderr or "could not be checked" in finished.stderr):
            finished = self._rclone("check", *(EXCLUDED + ["--download", folder, self._place(set_id)]))
            how = "rclone check, read back"
        if "differences found" in finished.stderr and finished.code:
            raise LinkError(
                "The copy %s is not what it should be: %s" % (self.where(set_id), finished.stderr[-300:]),
                "Where this stays, check the local set (sha256sum -c SHA256SUMS).",
            )
        self._check(finished, "Could not compare with %s" % self.where(set_id))
        return how

    def _remove(self, set_id):
        what = "Could not remove %s" % self.where(set_id)
        for which in ("--include=/" + RECEIPT, "--exclude=/" + MARK):
            self._do("delete", what, which, self._place(set_id))
        self._do("purge", what, self._place(set_id))

    def _write_mark(self):
        path = os.path.join(self._scratch, MARK)
        write_file(path, MARK_TEXT)
        return path

    def _upload(self, path, set_id, name):
        self._do("copyto", "Could not write %s of %s" % (name, self.where(set_id)), path, self._place(set_id, name))

    def _place(self, *names):
        return "/".join((self._base,) + names)

    def _do(self, verb, what, *words):
        finished = self._rclone(verb, *words)
        self._check(finished, what)
        return finished

    def _rclone(self, verb, *words):
        return self._programs(["rclone", verb] + self._options + list(words), figures=FIGURES)

    @staticmethod
    def _check(finished, what):
        if finished.code:
            refused = any(sign in finished.stderr for sign in NEVER_BETTER)
            remedy = "Are the remote and its keys right? `rclone lsd <remote>:` tells." if refused else None
            raise failure(what, finished, refused or finished.code in LASTING, remedy)


def _bytes_sent(log):
    """Return what rclone's last figures say was sent, None where it says nothing."""
    for line in reversed(log.splitlines()):
        try:
            return json.loads(line)["stats"]["bytes"]
        except (ValueError, KeyError, TypeError):
            continue
    return None
