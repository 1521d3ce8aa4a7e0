# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker Compose and git on the host: what a deployment is, and what brings it up again.

The roles bring a new version up with ``community.docker.docker_compose_v2``. What must go on
when the controller is gone, above all the way back, is done here.
"""

from __future__ import annotations

import json
import os
import subprocess

from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError

SHORT, LONG = 120, 3600
SAID = 2000


class ToolError(EchoError):
    """A program on the host is missing, or ended with an error."""


class Compose:
    """Docker Compose for one deployment, as ``discover`` describes it."""

    def __init__(self, deployment, docker_host, run=None):
        self._deployment = deployment
        self._docker_host = docker_host
        self._run = run or run_tool

    def config(self, files=None, env_file=None):
        """Return what Compose makes of the files, the deployment's own or others in their place."""
        argv = self._argv(files or self._deployment["files"], env_file or self._deployment["env_file"])
        return json.loads(self._call(argv + ["config", "--format", "json"]))

    def build(self, service):
        """Build the image of a service."""
        self._call(self._argv() + ["build", service], timeout=LONG)

    def create(self, remove_orphans=False):
        """Create what is missing or has changed, and start nothing; orphans are containers of services not declared."""
        argv = self._argv() + ["up", "--no-start", "--pull", "never", "--no-build"]
        self._call(argv + ["--remove-orphans"] * remove_orphans, timeout=LONG)

    def down(self):
        """Remove containers, networks, and the volumes that the Compose files declare."""
        self._call(self._argv() + ["down", "--volumes"], timeout=LONG)

    def up(self, *services):
        """Start services, or all, that are created already."""
        self._call(self._argv() + ["up", "--detach", "--no-recreate", "--pull", "never", "--no-build", *services], timeout=LONG)

    def _argv(self, files=None, env_file=None):
        here = self._deployment
        argv = ["docker", "compose", "--ansi", "never", "--project-name", here["project"]]
        argv += ["--project-directory", here["working_dir"]]
        env_file = env_file or here["env_file"]
        if env_file:
            argv += ["--env-file", env_file]
        for name in files or here["files"]:
            argv += ["--file", name]
        return argv

    def _call(self, argv, timeout=SHORT):
        env = dict(os.environ, DOCKER_HOST=self._docker_host)
        return self._run(argv, cwd=self._deployment["working_dir"], env=env, timeout=timeout)


class Checkout:
    """A git checkout of Echo's source."""

    def __init__(self, folder, run=None):
        self.folder = folder
        self._run = run or run_tool

    def current(self):
        """Return ``{"ref", "commit"}``; the ref is a branch, or the commit where none is checked out."""
        ref = self._git("rev-parse", "--abbrev-ref", "HEAD").strip()
        commit = self._git("rev-parse", "HEAD").strip()
        return dict(ref=commit if ref == "HEAD" else ref, commit=commit)

    def changes(self):
        """Return the files that differ from what is checked out, without those git doesn't know."""
        return self._git("status", "--porcelain", "--untracked-files=no").splitlines()

    def tags(self):
        """Return the tags, the newest first."""
        return self._git("tag", "--sort=-creatordate").split()

    def fetch(self):
        """Learn what the remotes have, if there are any."""
        if self._git("remote").strip():
            self._git("fetch", "--tags", "--quiet", timeout=LONG)

    def resolve(self, ref):
        """Return the commit that a ref names, a remote's branch before a local one of that name; None for no such ref."""
        for name in ("refs/remotes/origin/" + ref, ref):
            try:
                return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", name + "^{commit}").strip()
            except ToolError:
                continue
        return None

    def remote_commit(self, ref):
        """Return the commit that a branch or tag has at the remote, None without a remote or such a ref."""
        if not self._git("remote").strip():
            return None
        listed = self._git("ls-remote", "origin", "refs/heads/" + ref, "refs/tags/" + ref, "refs/tags/%s^{}" % ref)
        commits = dict(line.split("\t")[::-1] for line in listed.splitlines())
        for name in ("refs/heads/" + ref, "refs/tags/%s^{}" % ref, "refs/tags/" + ref):
            if name in commits:
                return commits[name]
        return None

    def check_out(self, ref, commit):
        """Check a commit out; a local branch is moved to it only if that loses nothing."""
        branches = self._git("branch", "--list", "--format=%(refname:short)").split("\n")
        if ref in branches:
            self._git("checkout", "--quiet", ref, "--")
            self._git("merge", "--ff-only", "--quiet", commit)
        else:
            self._git("checkout", "--quiet", "--detach", commit)

    def go_back(self, ref, commit):
        """Bring ref and commit of :meth:`current` back."""
        self._git("checkout", "--quiet", "--force", ref, "--")
        self._git("reset", "--quiet", "--hard", commit)

    def _git(self, *argv, timeout=SHORT):
        env = dict(os.environ, GIT_TERMINAL_PROMPT="0", GIT_OPTIONAL_LOCKS="0")
        # The checkout of another user is this collection's to use: its operator named it.
        return self._run(
            ["git", "-c", "safe.directory=" + self.folder, "-C", self.folder, *argv], cwd=self.folder, env=env, timeout=timeout
        )


def run_tool(argv, cwd, env, timeout):
    """Run a program of the host; return what it prints, or raise ``ToolError`` with what it said."""
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError("%s didn't end within %d s." % (_short(argv), timeout))
    except OSError as error:
        raise ToolError("Could not run %s in %s: %s." % (argv[0], cwd, error.strerror), "Is it installed?")
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-SAID:]
        raise ToolError("%s ended with exit code %d: %s" % (_short(argv), done.returncode, said))
    return done.stdout.decode("utf-8", "replace")


def _short(argv):
    """Name a command by its program and what it was asked for."""
    words = [word for word in argv[1:] if word in WORDS]
    return " ".join([argv[0]] + words)


WORDS = ("compose", "config", "build", "up", "down", "rev-parse", "status", "tag", "remote", "ls-remote", "fetch", "checkout", "merge", "reset", "branch")
