# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies at the far end of a plain copy (rsync, rclone), and the receipt that makes it count.

``offsite.json`` is the last file to arrive: a copy without one is none. It tells, without a key,
what a listing and retention need. With recipients, every file of the set is encrypted by ``age``
into ``<file>.age``, and a ``SHA256SUMS`` of those lies beside them, so that whoever runs the far
end can check the copy, and only who has the identity can read it.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import re
import shutil
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_command import OffsiteError, failure
from ansible_collections.echo_music.ops.plugins.module_utils.proof import fingerprint, is_proven
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    ACCEPTED,
    CHECKSUMS,
    ID,
    ID_TIME,
    MANIFEST,
    PINNED,
    PROOF,
    explained,
    free_bytes,
    human,
    read_small,
    sha256_of,
    timestamp,
    write_file,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import files_problem, read_manifest
from ansible_collections.echo_music.ops.plugins.module_utils.shrink import holdings

RECEIPT = "offsite.json"
# Of a folder that isn't whole.
MARK = "offsite.partial"
MARK_TEXT = b"The copy is not complete without offsite.json.\n"
FORMAT = "echo-offsite/1"
SUFFIX = ".age"
LIMIT = 1024 * 1024
RESERVE = 16 * 1024 * 1024
AGE_MINIMUM = (1, 0)
# What people said of a set is in the receipt.
NOT_COPIED = (RECEIPT, PINNED, ACCEPTED)
KEYS = dict(host=str, time=str, bytes=int, age=bool, components=list, manifest_sha256=str, sums_sha256=str)
FLAGS = ("proven", "pinned", "shrunk", "accepted")
# What a set holds is told by names that end no line, and no tag of restic.
HELD = re.compile(r"[A-Za-z0-9_. -]{1,128}\Z")
SUM = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9][A-Za-z0-9._-]*)\Z")


def describe(folder, host, known=None):
    """Return the receipt of a set in a folder; raise ``SetError`` if it isn't complete.

    ``known`` is what retention wants to know of it, see :func:`flags_of`.
    """
    manifest = read_manifest(os.path.join(folder, MANIFEST))
    problem = files_problem(folder, manifest)
    if problem:
        raise SetError("The set %s is not complete: %s" % (folder, problem), "Copy another one.")
    described = dict(
        format=FORMAT,
        id=manifest["id"],
        host=host,
        time=manifest["times"]["snapshot"] or manifest["times"]["started"],
        project=manifest["project"],
        layout=manifest["layout"],
        components=manifest["components"],
        bytes=sum(os.path.getsize(os.path.join(folder, name)) for name in set_files(folder)),
        holds=checked_holds(holdings(manifest)),
        manifest_sha256=fingerprint(folder),
        sums_sha256=sha256_of(os.path.join(folder, CHECKSUMS))[0],
        age=False,
        copied=timestamp(),
    )
    return dict(described, **flags_of(known or dict(proven=is_proven(folder))))


def flags_of(known):
    """Return the part of what is known of a set that retention wants to know at the far end."""
    return dict((name, bool(known.get(name))) for name in FLAGS)


def _is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


def checked_holds(holds):
    """Return of what a set is said to hold what can be compared: ``{name: rows or bytes}``."""
    told = holds.items() if isinstance(holds, dict) else ()
    return dict((name, size) for name, size in told if HELD.match(name) and _is_number(size))


def parse(data):
    """Return a receipt read at the far end, None for what isn't one."""
    try:
        receipt = json.loads(data.decode("utf-8"))
        if receipt["format"] != FORMAT or not ID.match(receipt["id"]):
            return None
        if not all(isinstance(receipt[name], kind) for name, kind in KEYS.items()):
            return None
        return dict(dict.fromkeys(FLAGS, False), **dict(receipt, holds=checked_holds(receipt.get("holds"))))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def text(receipt):
    """Return the receipt as it is written."""
    return (json.dumps(receipt, indent=2, sort_keys=True) + "\n").encode("utf-8")


def moment(set_id):
    """Return when a set was opened, in seconds since the epoch."""
    return calendar.timegm(time.strptime(set_id, ID_TIME))


def set_files(folder):
    """Return the names of the files that a copy of the set has."""
    with explained("list", folder):
        return sorted(name for name in os.listdir(folder) if not name.startswith(".") and name not in NOT_COPIED)


def read_sums(folder):
    """Return ``{file: SHA-256}`` of a ``SHA256SUMS``; names that lead elsewhere are refused."""
    return parse_sums(read_small(os.path.join(folder, CHECKSUMS), LIMIT).decode("utf-8", "replace"), folder)


def parse_sums(content, where):
    """Return ``{file: SHA-256}`` of the text of a ``SHA256SUMS``."""
    sums = {}
    for line in content.splitlines():
        found = SUM.match(line)
        if not found:
            raise SetError("%s of %s has a line that is none: %.80r" % (CHECKSUMS, where, line))
        sums[found.group(2)] = found.group(1)
    if not sums:
        raise SetError("%s of %s is empty." % (CHECKSUMS, where))
    return sums


def check_sums(folder):
    """Hash every file that ``SHA256SUMS`` names; raise ``SetError`` at the first that differs."""
    for name, digest in sorted(read_sums(folder).items()):
        if sha256_of(os.path.join(folder, name))[0] != digest:
            raise SetError(
                "%s is not what %s says." % (os.path.join(folder, name), CHECKSUMS),
                "It was damaged after it was written: is a disk failing (dmesg)? Use another set.",
            )


@contextlib.contextmanager
def payload(programs, folder, receipt, recipients, scratch):
    """Yield the folder whose files go to the far end: the set itself, or its encrypted twin.

    The receipt is told the sums of the twin.
    """
    if not recipients:
        yield folder
        return
    programs.require("age", AGE_MINIMUM)
    names = set_files(folder)
    twin = os.path.join(scratch, "encrypted")
    # That of the set before.
    shutil.rmtree(twin, ignore_errors=True)
    need, free = receipt["bytes"], free_bytes(scratch)
    if need + RESERVE > free:
        raise OffsiteError(
            "Encrypting the set needs %s beside it, of which %s are free." % (human(need), human(free)),
            "Remove old sets, or have restic encrypt: it needs no second copy.",
        )
    with explained("create", twin):
        os.mkdir(twin, 0o700)
    # What is damaged must not be locked away as if it were good.
    check_sums(folder)
    sums = {}
    for name in names:
        target = os.path.join(twin, name)
        if name == PROOF:
            # It changes when a drill is held, and has no secrets.
            write_file(target, read_small(os.path.join(folder, name), LIMIT * 16))
            continue
        encrypt(programs, os.path.join(folder, name), target + SUFFIX, recipients)
        sums[name + SUFFIX] = sha256_of(target + SUFFIX)[0]
    lines = ["%s  %s\n" % (digest, name) for name, digest in sorted(sums.items())]
    write_file(os.path.join(twin, CHECKSUMS), "".join(lines).encode("ascii"))
    receipt["sums_sha256"] = sha256_of(os.path.join(twin, CHECKSUMS))[0]
    yield twin


def encrypt(programs, source, target, recipients):
    """Encrypt a file for its recipients, streamed."""
    command = ["age", "--encrypt", "--output", target]
    for recipient in recipients:
        command += ["--recipient", recipient]
    finished = programs(command + [source])
    if finished.code:
        raise failure(
            "Could not encrypt %s" % source,
            finished,
            lasting=True,
            remedy="Are the recipients age's or SSH's public keys (age1…, ssh-ed25519 …)?",
        )
    os.chmod(target, 0o600)


def unwrap(programs, folder, identity_file):
    """Decrypt a fetched copy in its folder, after its encrypted files were checked."""
    if not identity_file:
        raise OffsiteError(
            "The copy is encrypted for age, and no identity is named.",
            "Put the identity (AGE-SECRET-KEY-…) into a file on this host and name it as identity_file.",
        )
    programs.require("age", AGE_MINIMUM)
    check_sums(folder)
    os.unlink(os.path.join(folder, CHECKSUMS))
    for name in set_files(folder):
        if not name.endswith(SUFFIX):
            continue
        source = os.path.join(folder, name)
        target = source[: -len(SUFFIX)]
        finished = programs(["age", "--decrypt", "--identity", identity_file, "--output", target, source])
        if finished.code:
            raise failure(
                "Could not decrypt %s" % name,
                finished,
                lasting=True,
                remedy="Does %s hold the identity of one of the recipients? Without it the copy can't be read."
                % identity_file,
            )
        os.unlink(source)
