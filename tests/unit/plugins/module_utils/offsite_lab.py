# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets to copy, and far ends on this machine: the real programs, with an SSH that goes nowhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess

from ansible_collections.echo_music.ops.plugins.module_utils import proof
from ansible_collections.echo_music.ops.plugins.module_utils.offsite import ensure_offsite
from ansible_collections.echo_music.ops.plugins.module_utils.set_list import point_latest
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import manifest_text
from restic_repository import PASSWORD, ResticRepository

SECRET = "correct horse battery staple"

# What sshd would do with its last arguments. SSH_FAILS holds how often it still fails, SSH_GUARD refuses all but rsync.
SSH = r"""#!/bin/sh
echo "$@" >>"$SSH_LOG"
if [ "$1" = -V ]; then echo OpenSSH_9.2p1 >&2; exit 0; fi
while [ $# -gt 0 ]; do
  case $1 in
    -o | -p | -i | -l) shift 2 ;;
    -s) exec /usr/lib/openssh/sftp-server ;;
    --) shift ;;
    *) break ;;
  esac
done
left=$(cat "$SSH_FAILS" 2>/dev/null || echo 0)
if [ "$left" -gt 0 ]; then
  echo $((left - 1)) >"$SSH_FAILS"
  echo "ssh: connect to host $1 port 22: Connection refused" >&2
  exit 255
fi
shift
if [ -n "$SSH_GUARD" ]; then
  case $* in
    "rsync --server"*) ;;
    *) echo "only rsync is allowed" >&2; exit 1 ;;
  esac
fi
exec sh -c "$*"
"""


def make_set(root, number, files=None, project="echo", shrunk=False):
    """Write a published set of the given day of November 2026; return its folder."""
    set_id = "backup_2026-11-%02d_03-00-00" % number
    folder = root / set_id
    folder.mkdir(parents=True)
    root.chmod(0o700)
    contents = dict({"uploads.tar.gz": b"covers " * 20000, "config.tar.gz": b"secret %d" % number}, **(files or {}))
    artifacts = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        artifacts.append(
            dict(
                component=name.split(".")[0],
                role=name.split(".")[0],
                file=name,
                source="/nowhere",
                bytes_in=0 if shrunk else 10**6,
                bytes_out=len(content),
                members=1,
                codec="gzip",
                sha256=hashlib.sha256(content).hexdigest(),
                seconds=0.1,
            )
        )
    moment = "2026-11-%02dT03:00:00Z" % number
    manifest = dict(
        format="echo-backup/1",
        id=set_id,
        times=dict(started=moment, snapshot=None, finished=moment),
        host="testhost",
        collection_version="1.0.0",
        layout="classic",
        project=project,
        components=["uploads", "config"],
        images={},
        database=None,
        tables={},
        artifacts=artifacts,
    )
    (folder / "manifest.json").write_text(manifest_text(manifest))
    (folder / "backup_info.txt").write_text("A set.\n")
    lines = [
        "%s  %s\n" % (hashlib.sha256((folder / name).read_bytes()).hexdigest(), name)
        for name in sorted(os.listdir(folder))
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))
    for name in os.listdir(folder):
        (folder / name).chmod(0o600)
    point_latest(str(root))
    return folder


def prove(folder):
    """Let a drill of the set have passed."""
    fingerprint = proof.fingerprint(str(folder))
    passed = dict(
        level="drill", passed=True, finished="2026-11-24T04:00:00Z", rto_seconds=7, manifest_sha256=fingerprint
    )
    proof.record(str(folder), passed)


def is_whole(folder):
    """Ask coreutils whether a set is what its sums say."""
    return (
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=str(folder), check=False).returncode == 0
    )


class Lab:
    """One host's sets, and the destinations that they go to."""

    def __init__(self, tmp_path, monkeypatch):
        self.path = tmp_path
        self.root = tmp_path / "sets"
        self.far = tmp_path / "far"
        self.far.mkdir()
        self.pauses = []
        self.fresh = False
        self._fails = tmp_path / "ssh_fails"
        self._log = tmp_path / "ssh_log"
        self._monkeypatch = monkeypatch
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "ssh").write_text(SSH)
        (programs / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", "%s:%s" % (programs, os.environ["PATH"]))
        monkeypatch.setenv("SSH_FAILS", str(self._fails))
        monkeypatch.setenv("SSH_LOG", str(self._log))
        monkeypatch.setenv("SSH_GUARD", "")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def guard(self):
        """Let SSH refuse all but rsync, as a NAS may."""
        self._monkeypatch.setenv("SSH_GUARD", "yes")

    def break_link(self, times):
        """Let SSH fail as often as that."""
        self._fails.write_text(str(times))

    def ssh_calls(self):
        """Return the arguments of every SSH so far."""
        return self._log.read_text().splitlines()

    def destination(self, kind="local", **more):
        """Return a destination: ``local``, ``ssh``, ``restic`` or ``rclone``."""
        common = dict(name=kind, type="rsync", host="music", retries=2, retry_delay=1, timeout=60)
        if kind == "local":
            common.update(target=str(self.far))
        elif kind == "ssh":
            common.update(target="backup@nas:%s" % self.far)
        elif kind == "restic":
            password = SECRET if self.fresh else self._cheap_repository()
            common.update(type="restic", repository=str(self.far), secret_environment={"RESTIC_PASSWORD": password})
        else:
            environment = {"RCLONE_CONFIG_FAR_TYPE": "alias", "RCLONE_CONFIG_FAR_REMOTE": str(self.far)}
            common.update(type="rclone", remote="far:", environment=environment)
        return dict(common, **more)

    def _cheap_repository(self):
        if not (self.far / "config").exists():
            repository = ResticRepository(self.path)
            repository.folder = self.far
            repository.create()
        return PASSWORD

    def do(self, state, destination, source="latest", **more):
        """Call the module's domain; pauses are noted, not made."""
        root = more.pop("root", self.root)
        return ensure_offsite(state, destination, str(root), source, sleep=self.pauses.append, **more)

    def listed(self, destination):
        """Return the ids that the destination has."""
        return [item["id"] for item in self.do("listed", destination)["sets"]]

    def copies(self):
        """Return what lies at the far end of a plain copy."""
        return sorted(os.listdir(str(self.far / "music")))


class Watch:
    """Runs programs for real and remembers what was asked of them; of ``answers`` each stands in for one."""

    def __init__(self, run, answers=()):
        self.calls = []
        self._run = run
        self._answers = list(answers)

    def __call__(self, argv, **how):
        self.calls.append((argv, how))
        for index, (start, answer) in enumerate(self._answers):
            if argv[: len(start)] == list(start):
                self._answers.pop(index)
                return answer
        return self._run(argv, **how)

    def arguments(self):
        """Return every word of every command line."""
        return json.dumps([argv for argv, unused_how in self.calls])
