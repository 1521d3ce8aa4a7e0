# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A restic repository whose password costs no time, to ask the real restic many questions."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

PASSWORD = "test"
CHEAP = {"N": 2, "r": 1, "p": 1}


class ResticRepository:
    """The repository in a folder; snapshots are of one small file, at any time."""

    def __init__(self, folder):
        self.folder = folder / "repository"
        self.file = folder / "file"

    def create(self):
        """Initialise it, and make its key cheap: restic spends half a second per command on it otherwise."""
        self.file.write_text("content")
        self.run("init")
        for path in list((self.folder / "keys").iterdir()):
            key = json.loads(path.read_text())
            master = _open(_derived(key), base64.b64decode(key["data"]))
            key.update(CHEAP)
            key["data"] = base64.b64encode(_seal(_derived(key), master)).decode()
            text = json.dumps(key).encode()
            path.unlink()
            (self.folder / "keys" / hashlib.sha256(text).hexdigest()).write_bytes(text)

    def snapshot(self, when):
        """Make a snapshot that claims to be of a time, ``2026-11-24 03:00:00`` in UTC."""
        self.run("backup", "--quiet", "--time", when, str(self.file))

    def kept(self, *options):
        """Return the times (ISO 8601) of the snapshots that ``forget`` would keep, newest first."""
        groups = json.loads(self.run("forget", "--dry-run", "--json", *options))
        return [snapshot["time"] for group in groups for snapshot in group["keep"]]

    def run(self, *arguments):
        """Run a command; return its output."""
        return subprocess.run(
            ["restic", "--repo", str(self.folder), "--no-cache", *arguments],
            env=dict(os.environ, RESTIC_PASSWORD=PASSWORD, TZ="UTC"),
            check=True,
            stdout=subprocess.PIPE,
            timeout=300,
        ).stdout


def _derived(key):
    return hashlib.scrypt(
        PASSWORD.encode(), salt=base64.b64decode(key["salt"]), n=key["N"], r=key["r"], p=key["p"], dklen=64, maxmem=1 << 28
    )


def _seal(key, plain):
    """Encrypt as restic does: AES-256 in counter mode, Poly1305-AES."""
    nonce = os.urandom(16)
    cipher = Cipher(algorithms.AES(key[:32]), modes.CTR(nonce)).encryptor()
    packed = cipher.update(plain) + cipher.finalize()
    pad = Cipher(algorithms.AES(key[32:48]), modes.ECB()).encryptor().update(nonce)
    return nonce + packed + Poly1305.generate_tag(key[48:64] + pad, packed)


def _open(key, sealed):
    return Cipher(algorithms.AES(key[:32]), modes.CTR(sealed[:16])).decryptor().update(sealed[16:-16])
