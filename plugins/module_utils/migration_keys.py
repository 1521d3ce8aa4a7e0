# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys of one migration: made on the new host, let in on the old one for one folder each, and gone after it.

What such a key may do stands before it in ``authorized_keys``, as :manpage:`sshd(8)` has it:
run ``rrsync`` (which comes with rsync) for reading one folder, from the new host's address, for
a few days. Nothing else: no shell, no forwarding.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained

TAG = "echo_music.ops:%s:"
PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/=]+\Z")
ADDRESS = re.compile(r"[0-9A-Za-z.:*_/-]*\Z")
FOLDER_NAME = re.compile(r"[A-Za-z0-9/._@+=:,-]+\Z")
LIFETIME = 2 * 24 * 60 * 60
RRSYNC = ("/usr/bin/rrsync", "/usr/local/bin/rrsync", "/usr/share/rsync/scripts/rrsync")


def make(folder, migration_id, names):
    """Make a key for each name in a folder, anew; return ``{name: public key}``."""
    with explained("create", folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)
    made = {}
    for name in names:
        path = os.path.join(folder, name)
        for old in (path, path + ".pub"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(old)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", TAG % migration_id + name, "-f", path]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            raise EchoError("ssh-keygen made no key: %s" % done.stdout.decode("utf-8", "replace").strip())
        with explained("read", path), open(path + ".pub") as public:
            made[name] = " ".join(public.read().split()[:2])
    return made


def authorize(login, migration_id, keys, source_address=""):
    """Let keys in: ``{name: {"key", "folder"}}``, each to read one folder; those of this migration before are gone."""
    if not ADDRESS.match(source_address):
        raise EchoError("%.80r is no address to let in." % source_address)
    lines = []
    for name, wanted in sorted(keys.items()):
        if not PUBLIC_KEY.match(wanted["key"]):
            raise EchoError("%.80r is no public key." % wanted["key"])
        options = ["restrict", 'command="%s"' % _command(login, wanted["folder"])]
        if source_address:
            options.append('from="%s"' % source_address)
        options.append('expiry-time="%s"' % time.strftime("%Y%m%d%H%M", time.localtime(time.time() + LIFETIME)))
        lines.append("%s %s %s%s" % (",".join(options), wanted["key"], TAG % migration_id, name))
    _rewrite(login, migration_id, lines)


def withdraw(login, migration_id):
    """Let the keys of a migration in no longer."""
    _rewrite(login, migration_id, [])


def rrsync():
    """Return where rrsync is, None if it isn't there."""
    return next((path for path in RRSYNC if os.access(path, os.X_OK)), None)


def authorized_keys(login):
    """Return the path of a user's authorized keys."""
    return os.path.join(pwd.getpwnam(login).pw_dir, ".ssh", "authorized_keys")


def _command(login, folder):
    """The one command that a key runs, as sshd hands it to the user's shell, inside of double quotes."""
    if not FOLDER_NAME.match(folder):
        raise EchoError("The folder %r has a name that no key can be limited to." % folder, "Rename it, or mount it elsewhere.")
    command = "%s -ro %s" % (rrsync() or RRSYNC[0], folder)
    if pwd.getpwnam(login).pw_uid == 0:
        return command
    # The data belongs to several users. sudo keeps no variables, and rrsync reads this one.
    return 'sudo -n env SSH_ORIGINAL_COMMAND=\\"$SSH_ORIGINAL_COMMAND\\" ' + command


def _rewrite(login, migration_id, lines):
    path, user = authorized_keys(login), pwd.getpwnam(login)
    folder = os.path.dirname(path)
    with explained("change", path):
        if not os.path.isdir(folder):
            if not lines:
                return
            os.makedirs(folder, mode=0o700)
            os.chown(folder, user.pw_uid, user.pw_gid)
        before = []
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            before = file.read().splitlines()
        after = [line for line in before if TAG % migration_id not in line] + lines
        if after == before:
            return
        with open(path + ".new", "w", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            file.write("".join(line + "\n" for line in after))
            file.flush()
            os.fsync(file.fileno())
        status = os.stat(path) if before else None
        os.chown(path + ".new", user.pw_uid, user.pw_gid)
        os.chmod(path + ".new", status.st_mode & 0o7777 if status else 0o600)
        os.replace(path + ".new", path)
