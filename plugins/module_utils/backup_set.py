# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The set on disk: opened, published whole or not at all, or abandoned.

A set is put together in the hidden folder ``.<id>.partial``. Publishing checks and hashes what
the writers left there, writes manifest and checksums, brings all of it down to the disk, and
renames the folder once. ``docs/format.md`` describes the result.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import socket
import time

from ansible_collections.echo_music.ops.plugins.module_utils.errors import SetError
from ansible_collections.echo_music.ops.plugins.module_utils.reuse import vouched
from ansible_collections.echo_music.ops.plugins.module_utils.set_deployment import (
    deployment_bytes,
    write_deployment,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    CHECKSUMS,
    INFO,
    MANIFEST,
    SNAPSHOT,
    allocated,
    checked_id,
    discard,
    explained,
    free_bytes,
    inspect_root,
    leftovers,
    new_id,
    prepare_root,
    published,
    sha256_of,
    staging,
    sync_file,
    sync_folder,
    timestamp,
    write_file,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_list import (
    forerunners,
    latest_manifest,
    list_sets,
    point_latest,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_lock import (
    LEASE,
    guarded,
    holder,
    own,
    quiesce as quiesce_container,
    read_lock,
    refuse,
    release,
    renew,
    resume,
    write_lock,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import (
    FORMAT,
    check_manifest,
    describe_artifact,
    info_text,
    manifest_text,
    read_manifest,
    summary,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_marks import STATES, mark_set
from ansible_collections.echo_music.ops.plugins.module_utils.set_plan import (
    check_stack,
    plan,
    require_space,
)
from ansible_collections.echo_music.ops.plugins.module_utils.version import VERSION

__all__ = ["abandon_set", "ensure_set", "list_sets", "open_set", "plan", "predict_set", "publish_set"]


def ensure_set(engine, state, root, check=False, guard=None, **options):
    """Bring a set to a state; return the module's result. ``check`` changes nothing.

    ``guard(engine, root, id)`` is called before an app is paused or stopped, see ``set_guard``.
    """
    if state == "open":
        chosen = dict(
            (name, options[name]) for name in ("stack", "components", "codec", "quiesce", "owner", "lease", "reserve")
        )
        return predict_set(engine, root, **chosen) if check else open_set(engine, root, guard=guard, **chosen)
    set_id = checked_id(options["id"])
    if state in STATES:
        return mark_set(root, set_id, state, check=check)
    if state == "published":
        return publish_set(engine, root, set_id, options["artifacts"], options["database"], check=check)
    return abandon_set(engine, root, set_id, keep=options["keep"], check=check)


# -- open -------------------------------------------------------------------------------------


def open_set(
    engine, root, stack, components=None, codec="gzip", quiesce="none", owner="", lease=LEASE, reserve=0, guard=None
):
    """Take the lock, clear what a dead run left, and make the staging folder of a new set."""
    check_stack(stack)
    warnings = prepare_root(root)
    with guarded(root):
        held = holder(root, read_lock(root))
        if held:
            refuse(root, held)
        resumed, removed = _clear(engine, root)
        planned = _plan(root, stack, components, codec, reserve, free_bytes(root))
        require_space(planned, root, reserve)
        set_id = new_id(root, removed)
        record = dict(
            id=set_id,
            owner=owner,
            taken=timestamp(),
            started=time.time(),
            lease=lease,
            parts=planned["parts"],
            deployment=None,
            quiesced=None,
            stack=_stack_of_manifest(stack),
        )
        write_lock(root, record)
    try:
        with explained("create", staging(root, set_id)):
            os.mkdir(staging(root, set_id), 0o700)
            sync_folder(root)
        if any(part["kind"] == "deployment" for part in planned["parts"]):
            record["deployment"], more = write_deployment(stack["deployment"], staging(root, set_id))
            warnings += more
            if not record["deployment"]:
                record["parts"] = [part for part in record["parts"] if part["kind"] != "deployment"]
            write_lock(root, record)
        if quiesce != "none" and "app" in stack["containers"]:
            quiesce_container(engine, root, record, quiesce, stack["containers"]["app"]["name"], guard)
    except BaseException:
        abandon_set(engine, root, set_id)
        raise
    return _opened(root, set_id, dict(planned, parts=record["parts"]), record["deployment"], removed, resumed, warnings)


def predict_set(engine, root, stack, components=None, codec="gzip", quiesce="none", owner="", lease=LEASE, reserve=0):
    """Return what :func:`open_set` would, from the same planner; a set under way is told, not fatal."""
    check_stack(stack)
    open_mode = inspect_root(root)
    warnings = [] if open_mode is None else ["%s is open to other users; it would become 0700." % root]
    record = read_lock(root)
    held = holder(root, record)
    removed = [] if held else leftovers(root)
    resumed = record["quiesced"]["container"] if record and record["quiesced"] and not held else None
    free = free_bytes(root) + sum(allocated(os.path.join(root, name)) for name in removed)
    planned = _plan(root, stack, components, codec, reserve, free)
    if held:
        warnings.append("The set %s is under way in %s; it could be taken over %s." % (held["id"], root, held["free"]))
    return _opened(root, new_id(root, removed), planned, None, removed, resumed, warnings, predicted=True, under_way=held)


def _opened(root, set_id, planned, deployment, removed, resumed, warnings, predicted=False, under_way=None):
    parts = planned["parts"]
    before = latest_manifest(root)
    after = dict(
        id=set_id,
        components=_components(parts),
        files=dict((part["file"], part["estimated_bytes_out"]) for part in parts),
    )
    return dict(
        changed=True,
        predicted=predicted,
        set=dict(id=set_id, path=staging(root, set_id), root=root, parts=parts),
        deployment=deployment,
        bytes_needed=planned["bytes_needed"],
        bytes_free=planned["bytes_free"],
        fits=planned["fits"],
        removed_leftovers=removed,
        resumed=resumed,
        under_way=under_way,
        left_out=planned["left_out"],
        warnings=warnings + planned["warnings"],
        diff=_diff(summary(before) if before else None, after),
    )


def _clear(engine, root):
    """Undo what a dead run left; return the container that runs again, and the folders removed."""
    record = read_lock(root)
    resumed = resume(engine, record) if record else None
    removed = leftovers(root)
    for name in removed:
        discard(root, name)
    # A run may have died between publishing its set and pointing to it.
    point_latest(root)
    release(root)
    return resumed, removed


def _plan(root, stack, components, codec, reserve, free):
    return plan(
        stack,
        components,
        codec=codec,
        history=latest_manifest(root),
        deployment_bytes=deployment_bytes(stack["deployment"]),
        free=free,
        reserve=reserve,
        forerunners=forerunners(root, stack.get("project")),
    )


def _stack_of_manifest(stack):
    """What the manifest says of the stack; kept in the lock until then."""
    return dict(
        layout=stack["layout"],
        project=stack.get("project"),
        user=(stack.get("database") or {}).get("user"),
        images=dict(
            (
                role,
                dict(
                    name=container["name"],
                    image=container.get("image") or "",
                    image_id=container.get("image_id") or "",
                    digests=container.get("image_digests") or [],
                ),
            )
            for role, container in stack["containers"].items()
        ),
    )


# -- publish ----------------------------------------------------------------------------------


def publish_set(engine, root, set_id, artifacts, database=None, check=False):
    """Check, describe and rename a set whose parts are written. Published again, it stays as it is."""
    done = published(root, set_id)
    if os.path.isdir(done):
        manifest = read_manifest(os.path.join(done, MANIFEST))
        if not check:
            with guarded(root):
                _settle(root, set_id)
        return _published(root, manifest, changed=False)
    if check:
        return _predict_published(root, set_id, artifacts, database)
    own(root, set_id)
    with guarded(root):
        record = own(root, set_id)
        resumed = resume(engine, record)
        write_lock(root, record)
    manifest = _stage(root, record, artifacts, database)
    with guarded(root):
        own(root, set_id)
        with explained("publish", done):
            os.rename(staging(root, set_id), done)
            sync_folder(root)
        warning = _settle(root, set_id)
    return _published(root, manifest, changed=True, resumed=resumed, warnings=[warning] if warning else [])


def _predict_published(root, set_id, artifacts, database):
    """Judge the set as publishing would, but for the contents; after a predicted opening there is none to judge."""
    record = read_lock(root)
    if record is None or record["id"] != set_id:
        nothing = _diff(None, None)
        return dict(changed=True, set=dict(id=set_id, path=published(root, set_id)), warnings=[], diff=nothing)
    found = _complete_artifacts(root, record, artifacts, database)
    return _published(root, _manifest(record, found, database), changed=True)


def _stage(root, record, artifacts, database):
    """Write manifest, information and checksums into a complete staging folder; return the manifest."""
    folder = staging(root, record["id"])
    found = _complete_artifacts(root, record, artifacts, database)
    sums = {}
    for artifact in found:
        path = os.path.join(folder, artifact["file"])
        digest, size = _sum_of(root, artifact, path)
        if (digest, size) != (artifact["sha256"], artifact["bytes_out"]):
            raise SetError(
                "%s is not what its writer reported: %d bytes with SHA-256 %s, not %d with %s."
                % (path, size, digest, artifact["bytes_out"], artifact["sha256"]),
                "Was it written twice, or is the disk failing (dmesg)? Make the set again.",
            )
        sums[artifact["file"]] = digest
    manifest = _manifest(record, found, database)
    texts = {MANIFEST: manifest_text(manifest), INFO: info_text(manifest, record["parts"], record["stack"]["user"])}
    for name, text in texts.items():
        write_file(os.path.join(folder, name), text.encode("utf-8"))
        sums[name] = sha256_of(os.path.join(folder, name))[0]
    lines = ["%s  %s\n" % (digest, name) for name, digest in sorted(sums.items())]
    write_file(os.path.join(folder, CHECKSUMS), "".join(lines).encode("utf-8"))
    with explained("write to the disk", folder):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, SNAPSHOT))
        for artifact in found:
            os.chmod(os.path.join(folder, artifact["file"]), 0o600)
            sync_file(os.path.join(folder, artifact["file"]))
            renew(root)
        sync_folder(folder)
    return manifest


def _sum_of(root, artifact, path):
    """The SHA-256 and size of a file of the set; one that is a published set's as well was hashed there."""
    known = vouched(published(root, artifact["reused"]), artifact, path) if "reused" in artifact else None
    return known or sha256_of(path, progress=lambda: renew(root))


def _artifacts(record, artifacts, database):
    """All artifacts by file, with the component that the plan gives them."""
    components = dict((part["file"], part["component"]) for part in record["parts"])
    given = list(artifacts or []) + list((database or {}).get("artifacts") or [])
    if record["deployment"]:
        given.append(record["deployment"])
    try:
        described = [describe_artifact(artifact, components) for artifact in given]
    except ValueError as error:
        raise SetError(
            "An artifact is not as the modules report it: %s" % error,
            "Pass the results of echo_pg_dump and echo_volume_backup on as they are.",
        )
    found = dict((artifact["file"], artifact) for artifact in described)
    return [found[name] for name in sorted(found)]


def _complete_artifacts(root, record, artifacts, database):
    """The artifacts, once it is sure that they are all that was planned, and all that is there."""
    folder = staging(root, record["id"])
    found = _artifacts(record, artifacts, database)
    with explained("read", folder):
        present = os.listdir(folder)
    names = [artifact["file"] for artifact in found]
    unreported = [part["file"] for part in record["parts"] if part["file"] not in names]
    absent = [name for name in names if name not in present]
    unknown = sorted(set(present) - set(names) - {MANIFEST, INFO, CHECKSUMS, SNAPSHOT})
    for missing, how in ((unreported, "no artifact reports"), (absent, "its folder lacks")):
        if missing:
            raise SetError(
                "The set %s is not complete: %s %s." % (record["id"], how, ", ".join(missing)),
                "Did the task that writes it fail? Abandon this set (state=abandoned) and make a new one.",
                missing=missing,
            )
    if unknown:
        raise SetError(
            "The set %s holds files that nothing reports: %s." % (record["id"], ", ".join(unknown)),
            "Did a writer break off, or is one still running? Abandon this set (state=abandoned) and make a new one.",
            unknown=unknown,
        )
    return found


def _manifest(record, found, database):
    described = None
    if any(artifact["component"] == "database" for artifact in found):
        try:
            described = dict(database["database"], snapshot=database["snapshot"])
            tables, snapshot = database["tables"], database["snapshot"]["time"]
        except (KeyError, TypeError) as error:
            raise SetError(
                "The set has a dump, but the option database doesn't describe it (%s)." % error,
                "Pass the result of echo_pg_dump on as the option database.",
            )
    else:
        tables, snapshot = {}, None
    manifest = dict(
        format=FORMAT,
        id=record["id"],
        times=dict(started=timestamp(record["started"]), snapshot=snapshot, finished=timestamp()),
        host=socket.gethostname(),
        collection_version=VERSION,
        layout=record["stack"]["layout"],
        project=record["stack"]["project"],
        components=_components(record["parts"]),
        images=record["stack"]["images"],
        database=described,
        tables=tables,
        artifacts=found,
    )
    try:
        return check_manifest(manifest)
    except ValueError as error:
        raise SetError(
            "The set %s can't be described: %s" % (record["id"], error),
            "Pass the results of echo_pg_dump and echo_volume_backup on as they are.",
        )


def _settle(root, set_id):
    """End a published set's way: ``latest`` points on, the lock is free. Returns why ``latest`` doesn't, or None."""
    warning = point_latest(root)
    record = read_lock(root)
    if record and record["id"] == set_id:
        release(root)
    return warning


def _published(root, manifest, changed, resumed=None, warnings=()):
    artifacts = manifest["artifacts"]
    started, finished = (
        calendar.timegm(time.strptime(manifest["times"][key][:19], "%Y-%m-%dT%H:%M:%S"))
        for key in ("started", "finished")
    )
    return dict(
        changed=changed,
        set=dict(
            id=manifest["id"],
            path=published(root, manifest["id"]),
            bytes_in=sum(artifact["bytes_in"] for artifact in artifacts),
            bytes_out=sum(artifact["bytes_out"] for artifact in artifacts),
            bytes_written=sum(artifact["bytes_out"] for artifact in artifacts if not artifact.get("reused")),
            seconds=finished - started,
            components=manifest["components"],
            artifacts=artifacts,
        ),
        resumed=resumed,
        warnings=list(warnings),
        diff=_diff(None if changed else manifest, manifest),
    )


# -- abandon ----------------------------------------------------------------------------------


def abandon_set(engine, root, set_id, keep=False, check=False):
    """End a set that can't be published: its container runs again, its files go or are kept as evidence."""
    folder = staging(root, set_id)
    there = os.path.isdir(folder)
    evidence = os.path.join(root, ".failed_" + set_id) if keep and there else None
    record = read_lock(root)
    ours = record is not None and record["id"] == set_id
    resumed = None
    if (ours or there) and not check:
        with guarded(root):
            if ours:
                resumed = resume(engine, own(root, set_id))
            if evidence:
                with explained("keep", folder):
                    os.rename(folder, evidence)
                    sync_folder(root)
            elif there:
                discard(root, os.path.basename(folder))
            _settle(root, set_id)
    before = dict(id=set_id, state="open" if ours or there else "abandoned")
    return dict(
        changed=ours or there,
        set=dict(id=set_id, path=evidence),
        resumed=resumed,
        warnings=[],
        diff=_diff(before, dict(id=set_id, state="abandoned")),
    )


def _components(parts):
    return list(dict.fromkeys(part["component"] for part in parts))


def _diff(before, after):
    def text(value):
        return json.dumps(value, indent=2, sort_keys=True) + "\n" if value else ""

    return dict(before=text(before), after=text(after))
