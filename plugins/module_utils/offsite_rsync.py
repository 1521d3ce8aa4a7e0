# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets at the far end of rsync: a NAS or server over SSH, or a folder of this host such as a USB disk.

A set is put together under a hidden name and renamed when it was checked there. Where SSH lets
nothing but rsync through, it is written in its place, and the receipt, which comes last, makes
it count. Files that the last set has as well are hard links to it.
"""

from __future__ import annotations

import os
import re
import shlex

from ansible_collections.echo_music.ops.plugins.module_utils.offsite_command import (
    LinkError,
    OffsiteError,
    failure,
    ssh_command,
)
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_receipt import (
    LIMIT,
    MARK,
    MARK_TEXT,
    NOT_COPIED,
    RECEIPT,
    parse,
)
from ansible_collections.echo_music.ops.plugins.module_utils.progress import wanted
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    ID,
    PROOF,
    explained,
    read_small,
    staging,
    write_file,
)

MINIMUM = (3, 1)
EXCLUDED = ["--exclude=/" + name for name in NOT_COPIED]
# Of rsync's exit codes those that tell of more than a moment's trouble: usage, protocol, files, disk full.
LASTING = {1, 2, 3, 4, 6, 11, 13, 14, 22}
PARTIAL_TRANSFER = 23
SSH_FAILED, SSH_REFUSED = 255, (
    "Permission denied",
    "Host key verification failed",
    "Could not resolve",
    "not accessible",
)
FIGURES = re.compile(rb"(?P<done>[\d,]+) +\d+%")
MISSING = re.compile(r"(change_dir|link_stat).*No such file or directory", re.S)
REMOTE = re.compile(r"(?P<host>[A-Za-z0-9_][A-Za-z0-9._@\-]*|[A-Za-z0-9._\-]*@?\[[0-9a-fA-F:.%]+\]):(?P<path>.+)\Z")
# The far end's shell, and old rsyncs, would take a path with others apart.
PATH = re.compile(r"[\w./~+@,=:-]+\Z", re.A)

# Scripts for the far end's shell, which may be that of busybox.
PROBE = "command -v mv >/dev/null && command -v sha256sum >/dev/null && echo shell"
PREPARE = """
umask 077
mkdir -p "$1" && cd "$1" || exit 1
shift
for left in .backup_*.partial .trash_backup_*; do
  for kept do
    if [ "$left" = "$kept" ]; then continue 2; fi
  done
  rm -rf "$left" || exit 1
done
if [ -e "$1" ]; then echo begun; fi
"""
# The sums are compared as well: they could be those of another set, and its files with them.
CHECK = """
cd "$1" && sha256sum -c SHA256SUMS >/dev/null || exit 1
set -- "$2" $(sha256sum <SHA256SUMS)
if [ "$1" != "$2" ]; then echo "its SHA256SUMS is another one" >&2; exit 1; fi
"""
# Where sync can be told which file system, it tells of errors as well.
FLUSH = """
case $(sync --help 2>&1) in
  *-f* | *-df*) sync -f . || exit 1 ;;
  *) sync || exit 1 ;;
esac
"""
# A copy counts once it has its name, so its data comes down to the disk before that.
PUBLISH = """
cd "$1" || exit 1
""" + FLUSH + """
if [ -e "$3" ]; then mv "$3" ".trash_$3" || exit 1; fi
mv "$2" "$3" || exit 1
rm -rf ".trash_$3"
""" + FLUSH
REMOVE = """
cd "$1" || exit 1
shift
for set do
  if [ -e "$set" ]; then mv "$set" ".trash_$set" || exit 1; fi
  rm -rf ".trash_$set" || exit 1
done
"""


class RsyncEnd:
    """The sets of one host below a target ``/folder`` or ``[user@]host:folder``."""

    def __init__(self, programs, host, target, scratch, port=None, ssh_key=None, ssh_options=(), bandwidth_limit=None):
        self._programs = programs
        self._scratch = scratch
        self._limit = bandwidth_limit
        self._ssh = None
        self._base = target
        found = None if target.startswith("/") else REMOTE.match(target)
        if found:
            self._ssh = ssh_command(port, ssh_key, ssh_options)
            self._server = found.group("host")
            # Brackets keep an IPv6 address from a path; SSH wants none.
            self._ssh_name = re.sub(r"[][]", "", self._server)
            self._base = found.group("path")
        self._host = host
        self._target = target
        self._checksum = False
        self._has_shell = None
        self._partial = set()
        self.folder = os.path.join(self._base, host)

    def where(self, set_id):
        """Return where a set lies, for people."""
        return "%s/%s/%s" % (self._target.rstrip("/"), self._host, set_id)

    def prepare(self):
        """Check programs and names, and that the far end answers; change nothing."""
        if not self._target.startswith("/") and not self._ssh:
            raise OffsiteError(
                "The target %s is neither an absolute path nor [user@]host:folder." % self._target,
                "Examples: /mnt/usb/echo, backup@nas:/volume1/echo.",
            )
        self._programs.require("rsync", MINIMUM)
        if not self._ssh:
            if not os.path.isdir(self._base):
                raise OffsiteError(
                    "There is no folder %s." % self._base,
                    "Is the disk mounted? Make the folder there; it is not made here, so that nothing is written "
                    "beside a disk that is missing.",
                )
            return
        self._programs.require("ssh", (0,), "openssh-client", ask=("-V",))
        if not PATH.match(self.folder):
            raise OffsiteError(
                "The folder %s has characters that a shell would take apart." % self.folder,
                "Name one of letters, digits and ./~+@,=:-_",
            )
        self._shell()

    # -- what is there -------------------------------------------------------------------------

    def sets(self):
        """Return ``{id: receipt}``."""
        inbox = os.path.join(self._scratch, "receipts")
        with explained("create", inbox):
            os.makedirs(inbox, mode=0o700, exist_ok=True)
        only = ["--include=/backup_*/"] + ["--include=/backup_*/" + name for name in (RECEIPT, MARK)]
        only += ["--exclude=*", "--delete", "--ignore-times"]
        finished = self._rsync(["--recursive", "--prune-empty-dirs"] + only, self._far() + "/", inbox + "/")
        if finished.code == PARTIAL_TRANSFER and MISSING.search(finished.stderr):
            return {}
        self._check(finished, "Could not list the sets in %s" % self.where(""))
        self._partial = set()
        found = {}
        for name in os.listdir(inbox):
            path = os.path.join(inbox, name, RECEIPT)
            if not ID.match(name):
                continue
            if os.path.lexists(path):
                receipt = parse(read_small(path, LIMIT))
                if receipt and receipt["id"] == name:
                    found[name] = receipt
            elif os.path.lexists(os.path.join(inbox, name, MARK)):
                self._partial.add(name)
        return found

    # -- a copy --------------------------------------------------------------------------------

    def put(self, receipt, folder, receipt_file, known, missing):
        """Copy a set, check it there, and let it count; return ``(bytes sent, how it was checked)``."""
        set_id = receipt["id"]
        shell = self._shell()
        partial = ".%s.partial" % set_id if shell else set_id
        if shell:
            begun = self._prepare([set_id] + missing)
        else:
            self._make_folder()
            self._remove_from_here(sorted(self._partial - {set_id} - set(missing)))
            begun = True
        sent = self._send(folder, partial, _neighbours(set_id, known), begun)
        if shell:
            checked = self._verify_there(partial, receipt)
        else:
            checked = self._verify_from_here(partial, folder, set_id)
        self._send_file(receipt_file, partial, RECEIPT)
        if shell:
            self._at_far_end(PUBLISH, "Could not publish %s" % self.where(set_id), self.folder, partial, set_id)
        return sent, checked

    def adopt(self, receipt, receipt_file, missing=None):
        """Let a set count that others copied to its hidden name, once it was checked.

        Where it is known which sets are still ``missing``, what else was begun is removed.
        """
        partial = os.path.basename(staging(self.folder, receipt["id"]))
        if missing is not None:
            self._prepare([receipt["id"]] + missing)
        checked = self._verify_there(partial, receipt)
        self._send_file(receipt_file, partial, RECEIPT)
        self._at_far_end(PUBLISH, "Could not publish %s" % self.folder, self.folder, partial, receipt["id"])
        return checked

    def refresh(self, receipt, folder, receipt_file):
        """Bring what is newly known of a set to its copy."""
        if os.path.lexists(os.path.join(folder, PROOF)):
            self._send_file(os.path.join(folder, PROOF), receipt["id"], PROOF)
        self._send_file(receipt_file, receipt["id"], RECEIPT)

    def verify(self, receipt, local):
        """Check a copy at the far end; return how."""
        if self._shell():
            return self._verify_there(receipt["id"], receipt)
        if local and not receipt["age"]:
            return self._verify_from_here(receipt["id"], local, receipt["id"])
        raise OffsiteError(
            "%s has no shell, and there is no local set to compare %s with." % (self._target, receipt["id"]),
            "Fetch it (state=fetched): that checks every file.",
        )

    def fetch(self, receipt, folder):
        """Copy a set back."""
        options = ["--recursive", "--times", "--partial", "--chmod=D700,F600"]
        options += ["--exclude=/" + name for name in (RECEIPT, MARK)]
        source = "%s/%s/" % (self._far(), receipt["id"])
        self._check(self._rsync(options, source, folder + "/"), "Could not fetch %s" % self.where(receipt["id"]))

    def remove(self, receipts):
        """Remove copies; those that are gone already are no failure."""
        names = [receipt["id"] for receipt in receipts]
        if self._shell():
            self._at_far_end(REMOVE, "Could not remove sets from %s" % self.where(""), self.folder, *names)
            return
        marked = os.path.join(self._scratch, "marked")
        for name in names:
            with explained("create", marked):
                os.makedirs(os.path.join(marked, name), mode=0o700, exist_ok=True)
            write_file(os.path.join(marked, name, MARK), MARK_TEXT)
        # By it a later run finds what this one can't remove any more.
        finished = self._rsync(["--recursive", "--chmod=D700,F600"], marked + "/", self._far() + "/")
        self._check(finished, "Could not remove sets from %s" % self.where(""))
        self._remove_from_here(names)

    # -- rsync ---------------------------------------------------------------------------------

    def _remove_from_here(self, names):
        nothing = os.path.join(self._scratch, "nothing")
        with explained("create", nothing):
            os.makedirs(nothing, mode=0o700, exist_ok=True)
        for name in names:
            # First the receipt, so that what is half removed doesn't count, last the mark, by which it is found.
            every, marked = "--include=/%s/***" % name, "--exclude=/%s/%s" % (name, MARK)
            for words in (["--include=/%s/%s" % (name, RECEIPT)], [marked, every], [every]):
                only = ["--recursive", "--delete", "--include=/%s/" % name] + words
                finished = self._rsync(only + ["--exclude=*"], nothing + "/", self._far() + "/")
                self._check(finished, "Could not remove %s" % self.where(name))

    def _prepare(self, set_ids):
        """Make the host's folder, and remove what of other sets was begun; tell whether the first one was."""
        kept = [".%s.partial" % set_id for set_id in set_ids]
        told = self._at_far_end(PREPARE, "Could not prepare %s" % self.where(""), self.folder, *kept)
        return told.stdout.strip() == "begun"

    def _send(self, folder, name, neighbours, begun):
        """Copy a set's files, of those ``begun`` before only what lacks; return the bytes sent."""
        linked = ["--link-dest=../" + other for other in neighbours]
        if not (begun and linked):
            return self._transfer(folder, name, linked)
        # rsync would compare a file that is there with the neighbour's alone, and so send it once more.
        sent = self._transfer(folder, name, ["--existing"])
        return sent + self._transfer(folder, name, linked + ["--ignore-existing"])

    def _transfer(self, folder, name, more):
        options = ["--recursive", "--times", "--chmod=D700,F600", "--partial-dir=.rsync-partial", "--delete", "--stats"]
        options += ["--exclude=/.*"] + EXCLUDED + (["--checksum"] if self._checksum else []) + more
        options += ["--info=progress2"] if wanted() else []
        finished = self._rsync(options, folder + "/", "%s/%s/" % (self._far(), name))
        self._check(finished, "Could not copy %s to %s" % (folder, self.where("")))
        found = re.search(r"Total bytes sent: ([\d,.]+)", finished.stdout)
        return int(re.sub(r"\D", "", found.group(1))) if found else 0

    def _send_file(self, path, name, as_name):
        # A receipt may change within a second, and keep its size.
        finished = self._rsync(["--ignore-times", "--times", "--chmod=F600"], path, "%s/%s/%s" % (self._far(), name, as_name))
        self._check(finished, "Could not copy %s to %s" % (as_name, self.where("")))

    def _make_folder(self):
        """Make the host's folder: rsync makes no folder above the one it writes to."""
        nothing = os.path.join(self._scratch, "folder", self._host)
        with explained("create", nothing):
            os.makedirs(nothing, mode=0o700, exist_ok=True)
        target = "%s:%s/" % (self._server, self._base)
        self._check(self._rsync(["--recursive"], nothing, target), "Could not make %s" % self.where(""))

    def _verify_there(self, name, receipt):
        finished = self._run_there(CHECK, os.path.join(self.folder, name), receipt["sums_sha256"])
        if finished.code == SSH_FAILED and self._ssh:
            raise failure("Lost %s" % self._server, finished)
        if finished.code:
            raise self._different(receipt["id"], finished.stderr)
        return "sha256sum at the far end"

    def _verify_from_here(self, name, folder, set_id):
        options = ["--recursive", "--checksum", "--dry-run", "--itemize-changes", "--exclude=/.*"] + EXCLUDED
        finished = self._rsync(options, folder + "/", "%s/%s/" % (self._far(), name))
        self._check(finished, "Could not compare with %s" % self.where(set_id))
        different = [line for line in finished.stdout.splitlines() if line[:1] in "<>c*" and line[1:2] != "d"]
        if different:
            raise self._different(set_id, " ".join(different[:3]))
        return "rsync --checksum"

    def _different(self, set_id, told):
        # The next try compares contents instead of times and sizes, and so mends it.
        self._checksum = True
        return LinkError(
            "The copy %s is not what it should be: %s" % (self.where(set_id), self._programs.hide(told)[-300:]),
            "Is a disk failing there? Where this stays, check the local set too (sha256sum -c SHA256SUMS).",
        )

    def _rsync(self, options, source, target):
        command = ["rsync"] + options
        if self._limit:
            command.append("--bwlimit=%d" % max(1, self._limit // 1024))
        if self._ssh:
            command += ["--timeout=300", "--rsh=%s" % " ".join(shlex.quote(word) for word in self._ssh)]
        return self._programs(command + ["--", source, target], figures=FIGURES)

    def _check(self, finished, what):
        if not finished.code:
            return
        lasting = finished.code in LASTING or any(sign in finished.stderr for sign in SSH_REFUSED)
        lasting = lasting or (finished.code == PARTIAL_TRANSFER and not self._ssh)
        raise failure(what, finished, lasting, remedy=self._remedy(finished))

    def _remedy(self, finished):
        if "Permission denied (" in finished.stderr or "Host key" in finished.stderr:
            return (
                "Does `ssh %s` work on this host, as this user, without a question? Name the key as ssh_key."
                % self._server
            )
        if "No space left" in finished.stderr:
            return "Remove old sets there, or let retention do it."
        return None

    def _far(self):
        return "%s:%s" % (self._server, self.folder) if self._ssh else self.folder

    # -- the far end's shell -------------------------------------------------------------------

    def _shell(self):
        """Tell whether commands can be run at the far end."""
        if not self._ssh:
            return True
        if self._has_shell is None:
            finished = self._run_there(PROBE)
            if finished.code == SSH_FAILED:
                lasting = any(sign in finished.stderr for sign in SSH_REFUSED)
                raise failure("Could not reach %s" % self._server, finished, lasting, self._remedy(finished))
            self._has_shell = finished.stdout.strip() == "shell"
        return self._has_shell

    def _at_far_end(self, script, what, *words):
        finished = self._run_there(script, *words)
        if finished.code:
            lasting = not (self._ssh and finished.code == SSH_FAILED)
            raise failure(what, finished, lasting, self._remedy(finished))
        return finished

    def _run_there(self, script, *words):
        if not self._ssh:
            return self._programs(["sh", "-c", script, "sh"] + list(words))
        # A shell expands ~ for rsync; for ours it has to be asked.
        quoted = " ".join(word if PATH.match(word) else shlex.quote(word) for word in words)
        return self._programs(self._ssh + ["--", self._ssh_name, "sh -c %s sh %s" % (shlex.quote(script), quoted)])


def _neighbours(set_id, known):
    """Return the sets just before and after one, of those that are there: what is unchanged is in one of them."""
    before = [other for other in known if other < set_id]
    after = [other for other in known if other > set_id]
    return ([max(before)] if before else []) + ([min(after)] if after else [])
