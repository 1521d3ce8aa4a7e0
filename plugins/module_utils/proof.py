# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``proof.json``, the sidecar of a set: what its last verification of each level found.

It is no part of the set: ``SHA256SUMS`` doesn't cover it, and a set without one is complete.
"""

from __future__ import annotations

import fcntl
import json
import os

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    MANIFEST,
    PROOF,
    explained,
    read_small,
    replace_file,
    sha256_of,
)

FORMAT = "echo-proof/1"
CHECKSUM, STRUCTURE, DRILL = LEVELS = ("checksum", "structure", "drill")
LIMIT = 16 * 1024 * 1024


def read_proofs(folder):
    """Return the proofs of a set, the newest last; none where nothing readable tells of any."""
    path = os.path.join(folder, PROOF)
    if not os.path.lexists(path):
        return []
    try:
        content = json.loads(read_small(path, LIMIT).decode("utf-8"))
        if content["format"] != FORMAT:
            return []
        return [proof for proof in content["proofs"] if _is_proof(proof)]
    except (SetError, ValueError, RecursionError, KeyError, TypeError):
        return []


def record(folder, proof):
    """Let a set's ``proof.json`` hold a proof in place of the last one of its level."""
    with explained("open", folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Two verifications may run at once; the kernel frees the lock when we end.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        proofs = [other for other in read_proofs(folder) if other["level"] != proof["level"]] + [proof]
        content = dict(format=FORMAT, set=os.path.basename(folder), proofs=proofs)
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        replace_file(os.path.join(folder, PROOF), text.encode("utf-8"))
    finally:
        os.close(descriptor)


def is_proven(folder):
    """Tell whether a drill of this very set passed, and nothing failed since."""
    proofs = read_proofs(folder)
    while proofs and proofs[-1]["passed"] and proofs[-1]["level"] != DRILL:
        proofs.pop()
    return bool(proofs) and proofs[-1]["passed"] and proofs[-1].get("manifest_sha256") == fingerprint(folder)


def _is_proof(proof):
    rto = proof["rto_seconds"]
    return (
        proof["level"] in LEVELS
        and isinstance(proof["passed"], bool)
        and isinstance(proof["finished"], str)
        and (rto is None or (isinstance(rto, (int, float)) and not isinstance(rto, bool)))
    )


def fingerprint(folder):
    """Return the SHA-256 of a set's manifest, which tells of all its files; None without one."""
    path = os.path.join(folder, MANIFEST)
    return sha256_of(path)[0] if os.path.lexists(path) else None
