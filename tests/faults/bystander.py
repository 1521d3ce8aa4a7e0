# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bystander sees of an Echo and of a folder of backup sets: coreutils and the docker client, none of our code.

    python tests/faults/bystander.py --project echo --root /var/backups/echo --url http://127.0.0.1:4567/health
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request

HELPER_LABEL = "echo_music.ops.helper"
PROJECT_LABEL = "com.docker.compose.project"
HEALTH_TIMEOUT = 60


def look(project, root, url):
    """Return what can be seen; ``problems`` of a set, ``leftovers`` of a run, and whether the app answers."""
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    latest = os.path.join(root, "latest")
    return dict(
        sets=dict((name, problem(os.path.join(root, name))) for name in names if name.startswith("backup_")),
        latest=os.readlink(latest) if os.path.islink(latest) else None,
        leftovers=[name for name in names if not name.startswith("backup_") and name not in ("latest", ".mutex")],
        helpers=helpers(root),
        containers=containers(project),
        health=health(url),
    )


def is_calm(seen):
    """Tell whether nothing is under way or left, every set is whole and Echo runs."""
    return (
        not any(seen["sets"].values())
        and (seen["latest"] in seen["sets"] or not seen["sets"])
        and not seen["leftovers"]
        and not seen["helpers"]
        and set(seen["containers"].values()) == {"running"}
        and seen["health"] == 200
    )


def problem(folder):
    """Return what is wrong with a set, None if nothing is."""
    if not os.path.exists(os.path.join(folder, "manifest.json")):
        return "no manifest"
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return (checked.stderr + checked.stdout).strip() or None


def helpers(root):
    """Return the helper containers that write below the root."""
    found = docker("ps", "--all", "--quiet", "--filter", "label=" + HELPER_LABEL).split()
    binds = ((name, docker("inspect", "--format", "{{.Mounts}}", name)) for name in found)
    return [name for name, mounted in binds if root in mounted]


def containers(project):
    """Return the state of each container of a project."""
    listed = docker(
        "ps", "--all", "--filter", "label=%s=%s" % (PROJECT_LABEL, project), "--format", "{{.Names}} {{.State}}"
    )
    return dict(line.split(" ", 1) for line in listed.splitlines())


def health(url, wait=0):
    """Return the HTTP status that the app answers with, None without an answer; wait for a 200 if asked to."""
    deadline = time.monotonic() + wait
    while True:
        status = None
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            status = error.code
        except OSError:
            pass
        if status == 200 or time.monotonic() > deadline:
            return status
        time.sleep(0.2)


def docker(*argv):
    """Return what the docker client prints; nothing for what has just vanished."""
    return subprocess.run(["docker"] + list(argv), capture_output=True, text=True, check=False).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--calm", action="store_true", help="wait for the app to be well, and fail unless all is calm")
    options = parser.parse_args()
    if options.calm:
        health(options.url, wait=HEALTH_TIMEOUT)
    seen = look(options.project, options.root, options.url)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(seen))
    if options.calm and not is_calm(seen):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
