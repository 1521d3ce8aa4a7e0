# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an upgrade would change of a deployment: files, images, volumes. Nothing is changed here.

Compose says what it makes of the files as they are and as they would be, so the plan is what
the upgrade does, in check mode too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile

from ansible_collections.echo_music.ops.plugins.module_utils import compose_file
from ansible_collections.echo_music.ops.plugins.module_utils.compose import Checkout, ToolError
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError, StackError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import explained
from ansible_collections.echo_music.ops.plugins.module_utils.stack import MOUNTS, SERVICES

IMAGE, GIT, LAYOUT, REBUILD = "image", "git", "layout", "rebuild"
LIMIT = 1024 * 1024


class UpgradeError(EchoError):
    """An upgrade can't begin, or the new version isn't what it should be."""


def make_plan(engine, stack, compose, version=None, postgres_version=None, compose_text=None, rebuild=False, env=None):
    """Return the plan as a dict of JSON types, but for ``new_files``, which may hold secrets.

    Keys: ``kind``, ``version``, ``deployment``, ``services`` (role to service, now), ``new_services``,
    ``images`` (role, reference and id of what runs), ``wanted`` (role to reference), ``pulls`` (those
    of them that aren't built), ``git`` (None, or folder, ref and commit, old and new), ``new_files``
    (path to text), ``fresh`` (roles whose data comes into a new volume), ``touched`` (roles whose
    volume the new version mounts too), ``reconfigured``, ``up_to_date``, ``before`` and ``after``
    (for people).
    """
    deployment = _require_deployment(stack)
    old = compose.config()
    services = _services(old)
    texts = _texts(deployment)
    checkout = None
    if compose_text is not None:
        kind, edited = LAYOUT, _layout_texts(deployment, compose_text, env or {})
    elif version and _is_built(old, services):
        kind, edited = GIT, {}
        checkout = _git_plan(old["services"][services["app"]], version)
    else:
        kind, edited = REBUILD if rebuild else IMAGE, {}
        if version:
            _merge(edited, texts, _with_version(texts, deployment, services["app"], version, old))
    if postgres_version:
        _merge(edited, texts, _with_version(dict(texts, **edited), deployment, services["database"], postgres_version, old))
    new = config_of(compose, deployment, edited) if edited else old
    if postgres_version and kind != LAYOUT:
        new = _edit_volume(compose, deployment, texts, edited, old, new)
    if kind == IMAGE:
        _check_wanted(new, services, version, postgres_version)
    told = _told(engine, stack, kind, version, checkout, old, new, edited)
    return dict(told, postgres_version=postgres_version, builds=kind in (GIT, REBUILD) and _is_built(old, services))


def plan_checked_out(engine, stack, compose, old, plan):
    """Return what ``plan`` becomes by the Compose files that a git ref brought; ``old`` is what Compose made of those before."""
    deployment, version = _require_deployment(stack), plan["postgres_version"]
    new = compose.config()
    services = _services(new)
    texts, edited = _texts(deployment), {}
    if version:
        _merge(edited, texts, _with_version(texts, deployment, services["database"], version, new))
        new = config_of(compose, deployment, edited) if edited else new
        new = _edit_volume(compose, deployment, texts, edited, old, new)
        _check_wanted(new, services, None, version)
    told = _told(engine, stack, GIT, plan["version"], plan["git"], old, new, edited)
    keys = ("new_services", "wanted", "pulls", "new_files", "touched", "fresh", "reconfigured", "after")
    return dict(((key, told[key]) for key in keys), builds=_is_built(new, services))


def config_of(compose, deployment, texts):
    """Return what Compose makes of the deployment with other texts for some of its files."""
    folder = tempfile.mkdtemp(prefix="echo_upgrade.")
    try:
        paths = {}
        for number, (path, text) in enumerate(sorted(texts.items())):
            paths[path] = os.path.join(folder, "%d-%s" % (number, os.path.basename(path)))
            with open(paths[path], "w", encoding="utf-8") as target:
                target.write(text)
        files = [paths.get(name, name) for name in deployment["files"]]
        env_file = _env_path(deployment)
        return compose.config(files, paths.get(env_file, deployment["env_file"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def mounted(config):
    """Return the names of volumes and the folders that the services of a Compose configuration mount."""
    declared = config.get("volumes") or {}
    found = set()
    for service in config["services"].values():
        for mount in service.get("volumes") or []:
            if mount["type"] == "volume" and mount.get("source"):
                found.add((declared.get(mount["source"]) or {}).get("name") or mount["source"])
            elif mount["type"] == "bind":
                found.add(os.path.realpath(mount["source"]))
    return found


def _require_deployment(stack):
    deployment = stack["deployment"]
    if not deployment["project"] or not deployment["working_dir"] or not deployment["files"]:
        raise StackError("This Echo was not brought up by Compose.", "Bring it up with a Compose file first.")
    missing = [path for path in deployment["files"] if not os.path.isfile(path)]
    if missing or not os.path.isdir(deployment["working_dir"]):
        raise StackError(
            "The Compose files of project %s are not where its containers say: %s."
            % (deployment["project"], ", ".join(missing) or deployment["working_dir"]),
            "Put them back, or bring the stack up from where they are now.",
        )
    if len(deployment.get("env_files") or ()) > 1:
        raise StackError(
            "The project %s was brought up with several environment files: %s."
            % (deployment["project"], ", ".join(deployment["env_files"])),
            "Bring it up with one; which of them would have to name the new version can't be told.",
        )
    for role in ("database", "app"):
        if role not in stack["containers"]:
            raise StackError("The project %s has no container for the %s." % (deployment["project"], role), "Bring it up.")
    return deployment


def _services(config):
    found = {}
    for role, names in SERVICES.items():
        for name in names:
            if name in config["services"]:
                found.setdefault(role, name)
    absent = [role for role in ("database", "app") if role not in found]
    if absent:
        raise UpgradeError(
            "The Compose files have no service for the %s." % " and the ".join(absent),
            "Its name would be %s." % " or ".join(SERVICES[absent[0]]),
        )
    return found


def _env_path(deployment):
    return deployment["env_file"] or os.path.join(deployment["working_dir"], ".env")


def _texts(deployment):
    texts = {}
    for path in deployment["files"] + [_env_path(deployment)]:
        with explained("read", path), contextlib.suppress(FileNotFoundError):
            with open(path, encoding="utf-8", newline="") as source:
                texts[path] = source.read(LIMIT)
    return texts


def _merge(edited, texts, changes):
    for path, text in changes.items():
        if text != texts.get(path):
            edited[path] = text


def _with_version(texts, deployment, service, version, old):
    """Return the texts that another version of a service's image changes; the last file with one counts."""
    current = old["services"][service].get("image")
    for path in reversed(deployment["files"]):
        if compose_file.image_of(texts[path], service) is not None:
            text, variables = compose_file.set_image(texts[path], service, version, current)
            if not variables:
                return {path: text}
            env_path = _env_path(deployment)
            return {env_path: compose_file.set_variables(texts.get(env_path, ""), variables)}
    raise UpgradeError(
        "No Compose file says which image the service %s has." % service, "Give it an 'image:', then try again."
    )


def _edit_volume(compose, deployment, texts, edited, old, new):
    """Add to the edited texts what gives PostgreSQL a new volume, if it needs one; return what Compose makes of them then."""
    changes = _fresh_volume(dict(texts, **edited), deployment, old, new)
    _merge(edited, texts, changes)
    return config_of(compose, deployment, edited) if changes else new


def _fresh_volume(texts, deployment, old, new):
    """Return the texts that give PostgreSQL a new volume; none is needed for the same major version."""
    before, service = _services(old)["database"], _services(new)["database"]
    major = _major(_reference(new, service))
    if _major(_reference(old, before)) == major:
        return {}
    for mount in new["services"][service].get("volumes") or []:
        if mount["target"] != "/var/lib/postgresql/data":
            continue
        if mount["type"] != "volume":
            raise UpgradeError(
                "PostgreSQL keeps its data in the folder %s." % mount["source"],
                "A major upgrade loads it into a new volume: use a named volume for it, by a restore onto such a stack.",
            )
        current = new["volumes"][mount["source"]]["name"]
        if current not in mounted(old):
            return {}
        # A second major upgrade replaces the first one's ending.
        base = current.rpartition("-pg")[0] if current.rpartition("-pg")[2].isdigit() else current
        name = "%s-pg%s" % (base, major)
        for path in reversed(deployment["files"]):
            with contextlib.suppress(compose_file.ComposeFileError):
                return {path: compose_file.rename_volume(texts[path], mount["source"], name)}
        raise UpgradeError(
            "The volume %s is declared in a way that can't be edited." % mount["source"],
            "Write it as 'volumes: %s: name: …' on lines of their own." % mount["source"],
        )
    raise UpgradeError("The service %s mounts no volume at /var/lib/postgresql/data." % service)


def _major(reference):
    """Return the major version that a PostgreSQL image's tag begins with, else the whole tag."""
    tag = compose_file.split_reference(reference)[1].partition("@")[0].lstrip(":")
    digits = tag.split(".")[0].split("-")[0]
    return digits if digits.isdigit() else tag


def _layout_texts(deployment, compose_text, env):
    if len(deployment["files"]) > 1:
        raise UpgradeError(
            "The stack is made of %d Compose files: %s." % (len(deployment["files"]), ", ".join(deployment["files"])),
            "Make one of them first ('docker compose config'), then change the layout.",
        )
    texts = {deployment["files"][0]: compose_text}
    if env:
        env_path = _env_path(deployment)
        texts[env_path] = compose_file.set_variables(_texts(deployment).get(env_path, ""), env)
    return texts


def _reference(config, service):
    """Return the whole reference of a service's image; one that is only built has the name that Compose gives it."""
    name = config["services"][service].get("image") or "%s-%s" % (config["name"], service)
    return name if compose_file.split_reference(name)[1] else name + ":latest"


def _is_built(config, services):
    return bool(config["services"][services["app"]].get("build"))


def _git_plan(service, ref):
    context = service["build"].get("context") or "."
    checkout = Checkout(context)
    try:
        current = checkout.current()
    except ToolError as error:
        raise UpgradeError(
            "The app is built from %s, which is no git checkout: %s" % (context, error.what),
            "Put the new source there, then use the role echo_rebuild.",
        )
    changes = checkout.changes()
    if changes:
        raise UpgradeError(
            "The checkout %s has changes of its own: %s." % (context, ", ".join(changes[:5])),
            "Commit or stash them ('git stash'), then try again.",
        )
    commit = checkout.remote_commit(ref) or checkout.resolve(ref)
    if commit is None:
        raise UpgradeError(
            "There is no %s in the checkout %s, nor at its remote." % (ref, context),
            "Tags there: %s." % (", ".join(checkout.tags()[:10]) or "none"),
        )
    return dict(folder=context, ref=current["ref"], commit=current["commit"], new_ref=ref, new_commit=commit)


def _check_wanted(new, services, version, postgres_version):
    """Compose has the last word: a variable of the shell's, or another file, may outvote what was edited."""
    for role, wanted in (("app", version), ("database", postgres_version)):
        image = _reference(new, services[role])
        if wanted and not compose_file.split_reference(image)[1].endswith(wanted):
            raise UpgradeError(
                "With version %s set, Compose would still start %s." % (wanted, image),
                "Which file or environment variable says so? Set it there by hand.",
            )


def _told(engine, stack, kind, version, checkout, old, new, edited):
    services, new_services = _services(old), _services(new)
    images = [
        dict(
            role=role,
            service=container["service"],
            reference=container["image"],
            id=container["image_id"],
            digests=container["image_digests"],
        )
        for role, container in sorted(stack["containers"].items())
    ]
    wanted = dict((role, _reference(new, name)) for role, name in sorted(new_services.items()))
    old_mounts, new_mounts = mounted(old), mounted(new)
    touched, fresh = [], []
    for volume in stack["volumes"]:
        place = volume["name"] if volume["type"] == "volume" else os.path.realpath(volume["source"])
        if place in new_mounts:
            touched.append(volume["role"])
        elif volume["role"] in ("database", "uploads", "config", "data"):
            fresh.append(volume["role"])
    same = not edited and (checkout is None or checkout["commit"] == checkout["new_commit"])
    return dict(
        kind=kind,
        version=version,
        deployment=stack["deployment"],
        services=services,
        new_services=new_services,
        images=images,
        wanted=wanted,
        pulls=sorted(set(wanted[role] for role, name in new_services.items() if not new["services"][name].get("build"))),
        git=checkout,
        new_files=edited,
        touched=touched,
        fresh=fresh,
        reconfigured=old != new,
        up_to_date=same and kind != REBUILD and runs_wanted(engine, stack, wanted),
        before=_shown(old, services, checkout and checkout["commit"], old_mounts),
        after=_shown(new, new_services, checkout and checkout["new_commit"], new_mounts),
    )


def runs_wanted(engine, stack, wanted):
    """Tell whether app and database run on the very images that the wanted references name here."""
    for role in ("app", "database"):
        image = engine.image(wanted[role])
        if image is None or image["id"] != stack["containers"][role]["image_id"]:
            return False
    return True


def _shown(config, services, commit, mounts):
    data = set(target for targets in MOUNTS.values() for target in targets)
    shown = dict(images=dict((name, _reference(config, name)) for name in sorted(services.values())))
    shown["volumes"] = sorted(
        mount["source"]
        for service in config["services"].values()
        for mount in service.get("volumes") or []
        if mount["target"] in data and mount["type"] == "bind"
    ) + sorted(place for place in mounts if not place.startswith("/"))
    if commit:
        shown["commit"] = commit
    return json.dumps(shown, indent=2, sort_keys=True) + "\n"
