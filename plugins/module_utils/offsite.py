# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets off the host: copied, listed, fetched back, pruned and verified at one destination.

What the kinds of destinations have in common is here; a far end (``offsite_rsync``,
``offsite_restic``, ``offsite_rclone``) knows how to list, put, fetch, verify and remove sets. A
copy counts only when it was checked at the far end, whatever broke before. The local set is
never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import tempfile
import time

from ansible_collections.echo_music.ops.plugins.module_utils import offsite_plan as plans
from ansible_collections.echo_music.ops.plugins.module_utils import offsite_receipt as receipts
from ansible_collections.echo_music.ops.plugins.module_utils.errors import EchoError, SetError
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_command import (
    OffsiteError,
    Programs,
    persist,
)
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_rclone import RcloneEnd
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_restic import ResticEnd
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_rsync import RsyncEnd
from ansible_collections.echo_music.ops.plugins.module_utils.progress import phase, wanted
from ansible_collections.echo_music.ops.plugins.module_utils.proof import fingerprint
from ansible_collections.echo_music.ops.plugins.module_utils.prune import protected, survey_sets
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    ID,
    LATEST,
    MANIFEST,
    PINNED,
    allocated,
    checked_id,
    explained,
    free_bytes,
    human,
    prepare_root,
    published,
    staging,
    sync_file,
    sync_folder,
    write_file,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_list import list_sets, point_latest
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import read_manifest
from ansible_collections.echo_music.ops.plugins.module_utils.set_use import reading
from ansible_collections.echo_music.ops.plugins.module_utils.shrink import ALARM

LATEST_PROVEN = "latest_proven"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
# A host is a folder at the far end.
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}\Z")
INLINE_PASSWORD = re.compile(r"//[^/@\s]*:[^/@\s]+@")
WHERE = {"rsync": "target", "restic": "repository", "rclone": "remote"}
# Seconds after which no other set that was missed is begun, so that the next backup need not wait.
WITHIN = 4 * 60 * 60


def ensure_offsite(
    state,
    destination,
    root,
    source=LATEST,
    shrink_alarm=ALARM,
    known=None,
    within=WITHIN,
    protect=(),
    check=False,
    run=None,
    sleep=time.sleep,
):
    """Bring a set, or the sets, at one destination to a state; return the module's result."""
    started = time.monotonic()
    try:
        _check_destination(destination)
        with _workplace(root, destination["name"], writes=not check and state in WRITES) as (scratch, lock):
            programs = _programs(destination, lock, run)
            job = Job(destination, root, scratch, programs, shrink_alarm, known, within, protect, check, sleep)
            if state != "planned" or known is None:
                job.persist(job.end.prepare)
            result = STATES[state](job, source)
    except EchoError as error:
        error.what = "Destination %s: %s" % (destination["name"], error.what)
        error.details["destination"] = destination["name"]
        raise
    return dict(
        dict(changed=False, retried=job.retried, seconds=round(time.monotonic() - started, 1)),
        destination=dict(name=destination["name"], type=destination["type"], host=job.host),
        **result,
    )


class Job:
    """One destination at work: its far end, where we put temporary files, and how patient we are."""

    def __init__(self, destination, root, scratch, programs, shrink_alarm, known, within, protect, check, sleep):
        self.host = destination.get("host") or socket.gethostname()
        self.destination = destination
        self.root = root
        self.scratch = scratch
        self.programs = programs
        self.shrink_alarm = shrink_alarm
        self.known = known
        self.within = within
        self.protect = protect
        self.check = check
        self.retried = 0
        self.rules = destination.get("retention") or {}
        self.end = _far_end(destination, self.host, scratch, programs)
        self._sleep = sleep

    def persist(self, action):
        """Do something at the far end, several times if the link fails."""
        result, tries = persist(action, self.destination["retries"], self.destination["retry_delay"], self._sleep)
        self.retried += tries - 1
        return result

    @contextlib.contextmanager
    def followed(self, set_id, total, done=None):
        """Have the progress of a set on its way told to those who asked; without ``done`` by what the programs say."""
        with phase("%s, %s" % (self.destination["name"], set_id), total, done) as told:
            self.programs.phase = None if done else told
            try:
                yield
            finally:
                self.programs.phase = None

    def local_sets(self):
        """Return what is known of the complete sets of ours that lie here, by id."""
        found = survey_sets(self.root, self.shrink_alarm)
        return dict((item["id"], item) for item in found if item["good"] and item["origin"] == "collection")

    def described(self, receipt):
        """Return what a result says of a copy."""
        keys = ("id", "time", "bytes", "age", "components", "project", "holds") + receipts.FLAGS
        return dict(dict((key, receipt.get(key)) for key in keys), where=self.end.where(receipt["id"]))

    def receipt_file(self, receipt):
        """Write a receipt where a far end can take it from."""
        path = os.path.join(self.scratch, receipts.RECEIPT)
        write_file(path, receipts.text(receipt))
        return path


# -- states -----------------------------------------------------------------------------------


def _copied(job, source):
    local = job.local_sets()
    folder = _local_set(job.root, local, source)
    there = job.persist(job.end.sets)
    missing = plans.missing(_judged(job, local, list(there.values())))
    result, there = _copy(job, folder, local, there, missing)
    refreshed = _refresh(job, local, there)
    return dict(
        result,
        changed=result["copied"] or bool(refreshed),
        refreshed=refreshed,
        missing=[set_id for set_id in missing if set_id != result["set"]["id"]],
        diff=dict(before="", after="%s\n" % result["set"]["where"] if result["copied"] else ""),
    )


def _copy(job, folder, local, there, missing):
    """Have one set lie at the far end; return ``({"copied", "bytes_sent", "verified", "set"}, what is there now)``.

    Of the sets that are ``missing`` an unfinished copy stays, for whoever takes it up again.
    """
    receipt = receipts.describe(folder, job.host, local.get(os.path.basename(folder)))
    known = there.get(receipt["id"])
    if known and known.get("manifest_sha256") != receipt["manifest_sha256"]:
        raise OffsiteError(
            "%s is another set of the same name." % job.end.where(receipt["id"]),
            "Do two hosts or stacks copy to one place? Give each a host of its own there.",
        )
    result = dict(copied=known is None, bytes_sent=None, verified=None)
    recipients = job.destination.get("recipients")
    receipt["age"] = bool(recipients)
    if known is None and not job.check:
        with reading(folder), receipts.payload(job.programs, folder, receipt, recipients, job.scratch) as wrapped:
            receipt_file = job.receipt_file(receipt)
            with job.followed(receipt["id"], _expected_bytes(folder, receipt, there)):
                result["bytes_sent"], result["verified"] = job.persist(
                    lambda: job.end.put(receipt, wrapped, receipt_file, there, missing)
                )
        there = dict(job.persist(job.end.sets))
        if receipt["id"] not in there:
            raise OffsiteError("The copy %s is not there." % receipt["id"], "Does something else remove copies there?")
    return dict(result, set=job.described(known or receipt)), there


def _expected_bytes(folder, receipt, there):
    """Return about how much of a set is to be sent, for those who asked for progress: what a set there has is linked."""
    if not wanted() or receipt["age"]:
        return receipt["bytes"]
    artifacts = read_manifest(os.path.join(folder, MANIFEST))["artifacts"]
    return receipt["bytes"] - sum(artifact["bytes_out"] for artifact in artifacts if artifact.get("reused") in there)


def _planned(job, unused_source):
    there = job.persist(job.end.sets).values() if job.known is None else _checked_known(job.known)
    return dict(sets=_judged(job, job.local_sets(), list(there)))


def _caught_up(job, unused_source):
    local, there = job.local_sets(), job.persist(job.end.sets)
    judged = _judged(job, local, list(there.values()))
    missed = [item for item in judged if item["status"] == plans.MISSING]
    failures, came, began = [], [], time.monotonic()
    for item in missed:
        if time.monotonic() - began >= job.within:
            break
        try:
            result, there = _copy(job, local[item["id"]]["path"], local, there, plans.missing(judged))
        except EchoError as error:
            failures.append(error)
            item["problem"] = str(error)
            if not _answers(job):
                break
            continue
        item.update(status=plans.COPIED, where=result["set"]["where"])
        item.update((key, result[key]) for key in ("bytes_sent", "verified"))
        came.append(item)
    if failures:
        failures[0].what = "%d of %d missed sets were not copied. %s" % (len(failures), len(missed), failures[0].what)
        failures[0].details["sets"] = judged
        raise failures[0]
    diff = dict(before="", after="".join("%s\n" % item["where"] for item in came))
    return dict(changed=bool(came), sets=judged, missing=plans.missing(judged), diff=diff)


def _judged(job, local, there):
    """Return what each local set is to the far end, and what is known of it here."""
    # Of a set that lies on both sides more is known here.
    every = dict(dict((copy["id"], copy) for copy in there), **local)
    lost = plans.find_lost(every.values(), job.shrink_alarm)
    judged = plans.catch_up(local, there, job.rules, time.time(), lost)
    manifests = dict((copy["id"], copy.get("manifest_sha256")) for copy in there)
    for item in judged:
        known = local[item["id"]]
        item.update(receipts.flags_of(known), bytes=known["bytes"], manifest_sha256=fingerprint(known["path"]))
        if manifests.get(item["id"]) not in (None, item["manifest_sha256"]):
            # Copying it will say what stands in the way.
            item["status"] = plans.MISSING
    return judged


def _answers(job):
    """Tell whether it was one set that failed, and not the far end."""
    try:
        job.end.sets()
    except EchoError:
        return False
    return True


def _checked_known(known):
    """Return what others told of sets; names that lead elsewhere are refused."""
    for item in known:
        checked_id(item.get("id"))
    return known


def _refresh(job, local, there):
    """Bring what was learnt of local sets since they were copied to their copies; return their ids."""
    refreshed = []
    for set_id in sorted(set(local) & set(there)):
        known, folder = there[set_id], local[set_id]["path"]
        flags = receipts.flags_of(local[set_id])
        changed = any(flags[name] != known[name] for name in receipts.FLAGS)
        if changed and fingerprint(folder) == known["manifest_sha256"]:
            refreshed.append(set_id)
            if not job.check:
                _refresh_one(job, dict(known, **flags), folder)
    return refreshed


def _refresh_one(job, receipt, folder):
    path = job.receipt_file(receipt)
    job.persist(lambda: job.end.refresh(receipt, folder, path))


def _listed(job, unused_source):
    there = job.persist(job.end.sets)
    return dict(sets=[job.described(there[set_id]) for set_id in sorted(there)])


def _fetched(job, source):
    receipt = _chosen(job, source)
    path = published(job.root, receipt["id"])
    here = [item for item in list_sets(job.root) if item["id"] == receipt["id"]]
    if here and here[0]["complete"] and fingerprint(path) == receipt["manifest_sha256"]:
        return dict(path=path, set=job.described(receipt), diff=dict(before="", after=""))
    if os.path.lexists(path):
        raise SetError(
            "%s is there already, and is not the set that lies at %s." % (path, job.end.where(receipt["id"])),
            "Move it away, or name another root.",
        )
    if not job.check:
        _fetch(job, receipt, path)
    return dict(changed=True, path=path, set=job.described(receipt), diff=dict(before="", after="%s\n" % path))


def _fetch(job, receipt, path):
    # Encrypted files and their plain twins lie there one by one, so twice the largest is enough.
    need, free = receipt["bytes"] * (2 if receipt["age"] else 1), free_bytes(job.root)
    if need + receipts.RESERVE > free:
        raise SetError(
            "The set needs %s in %s, of which %s are free." % (human(need), job.root, human(free)),
            "Remove something, or name a root on another disk.",
        )
    inbox = os.path.join(job.scratch, receipt["id"])
    with explained("create", inbox):
        os.mkdir(inbox, 0o700)
    with job.followed(receipt["id"], receipt["bytes"], lambda: allocated(inbox)):
        job.persist(lambda: job.end.fetch(receipt, inbox))
    if receipt["age"]:
        receipts.unwrap(job.programs, inbox, job.destination.get("identity_file"))
    receipts.check_sums(inbox)
    if receipts.describe(inbox, job.host)["manifest_sha256"] != receipt["manifest_sha256"]:
        raise SetError("What was fetched is not the set %s." % receipt["id"], "Fetch another one.")
    if receipt["pinned"]:
        write_file(os.path.join(inbox, PINNED), b"")
    with explained("publish", path):
        for name in os.listdir(inbox):
            sync_file(os.path.join(inbox, name))
        sync_folder(inbox)
        os.rename(inbox, path)
        sync_folder(job.root)
    point_latest(job.root)


def _pruned(job, unused_source):
    there = job.persist(job.end.sets)
    lost = plans.find_lost(dict(job.local_sets(), **there).values(), job.shrink_alarm)
    decided = protected(plans.judge(there.values(), job.rules, time.time(), lost), job.protect)
    leaving = [there[item["id"]] for item in decided if not item["keep"]]
    described = [job.end.where(receipt["id"]) for receipt in leaving]
    if leaving and not job.check:
        # All of them at each try: what is half removed isn't listed any more.
        job.persist(lambda: job.end.remove(leaving))
    return dict(
        changed=bool(leaving),
        decisions=decided,
        removed=[receipt["id"] for receipt in leaving],
        alarms=_alarms(job, there, lost),
        diff=dict(before="".join("%s\n" % line for line in described), after=""),
    )


def _alarms(job, there, lost):
    """Return what a person should know of, in sentences: the newest copy of each project, where only others tell its loss."""
    newest = dict((there[set_id].get("project"), set_id) for set_id in sorted(there))
    return [
        "The copy %s holds much less than those before it there (%s). It evicts none of them. If that is right, accept the "
        "set: echo_backup_set with state=accepted." % (job.end.where(set_id), "; ".join(lost[set_id]))
        for set_id in newest.values()
        if set_id in lost
    ]


def _verified(job, source):
    receipt = _chosen(job, source)
    local = published(job.root, receipt["id"])
    local = local if fingerprint(local) == receipt["manifest_sha256"] else None
    verified = None if job.check else job.persist(lambda: job.end.verify(receipt, local))
    return dict(set=job.described(receipt), verified=verified)


def _received(job, source):
    """Let a set count that was copied to its hidden name by other means."""
    if job.destination["type"] != "rsync" or not job.destination["target"].startswith("/"):
        raise OffsiteError("Only a folder of this host can receive a set.", "Name it as target, with the type rsync.")
    set_id = checked_id(source)
    there = job.persist(job.end.sets)
    told = dict((item["id"], item) for item in _checked_known(job.known or []))
    refreshed = _note(job, told, there)
    if set_id in there:
        described = job.described(there[set_id])
        return dict(changed=bool(refreshed), copied=False, refreshed=refreshed, verified=None, set=described)
    if job.check:
        return dict(changed=True, copied=True, refreshed=refreshed, verified=None, set=None)
    folder = staging(job.end.folder, set_id)
    receipt = receipts.describe(folder, job.host, told.get(set_id))
    if receipt["id"] != set_id:
        raise SetError("%s holds the set %s." % (folder, receipt["id"]), "Remove the folder, and copy the set again.")
    missing = None if job.known is None else plans.missing(job.known)
    verified = job.end.adopt(receipt, job.receipt_file(receipt), missing)
    return dict(changed=True, copied=True, refreshed=refreshed, verified=verified, set=job.described(receipt))


def _note(job, told, there):
    """Bring what others learnt of their sets to the receipts of the copies; return the ids of those."""
    refreshed = []
    for set_id in sorted(set(told) & set(there)):
        known, flags = there[set_id], receipts.flags_of(told[set_id])
        changed = any(flags[name] != known[name] for name in receipts.FLAGS)
        if changed and told[set_id].get("manifest_sha256") == known["manifest_sha256"]:
            refreshed.append(set_id)
            if not job.check:
                # What proves the set lies with the others: nothing of it is in this folder.
                _refresh_one(job, dict(known, **flags), job.scratch)
    return refreshed


STATES = {
    "copied": _copied,
    "planned": _planned,
    "caught_up": _caught_up,
    "listed": _listed,
    "fetched": _fetched,
    "pruned": _pruned,
    "verified": _verified,
    "received": _received,
}
WRITES = ("copied", "caught_up", "fetched", "pruned", "received")


# -- which set --------------------------------------------------------------------------------


def _local_set(root, local, source):
    """Return the folder of a local set: by id, ``latest`` or ``latest_proven``."""
    if ID.match(source):
        return published(root, source)
    wanted = [item for unused, item in sorted(local.items()) if source == LATEST or item["proven"]]
    if source not in (LATEST, LATEST_PROVEN) or not wanted:
        raise SetError(
            "There is no set %s in %s." % (source, root), "Name a set's id, %s or %s." % (LATEST, LATEST_PROVEN)
        )
    return wanted[-1]["path"]


def _chosen(job, source):
    """Return the receipt of a set at the far end."""
    there = job.persist(job.end.sets)
    wanted = [set_id for set_id in sorted(there) if source in (LATEST, set_id)]
    if source == LATEST_PROVEN:
        wanted = [set_id for set_id in sorted(there) if there[set_id]["proven"]]
    if not wanted:
        listed = ", ".join(sorted(there)[-5:])
        raise SetError(
            "There is no set %s of the host %s in %s." % (source, job.host, job.end.where("").rstrip("/")),
            "There are: %s." % listed if listed else "There is none of that host. Did it have another name (host)?",
        )
    return there[wanted[-1]]


# -- the destination --------------------------------------------------------------------------


def _check_destination(destination):
    kind, name = destination["type"], destination["name"]
    if not NAME.match(name):
        raise OffsiteError("%.80r is not a name for a destination." % name, "Use letters, digits and ._-")
    host = destination.get("host")
    if host and not HOST.match(host):
        raise OffsiteError("%.80r is not a name for a host." % host, "Use letters, digits and ._-")
    place = destination.get(WHERE[kind])
    # restic can take its repository from its environment.
    if not place and kind != "restic":
        raise OffsiteError("Where to is not told.", "A destination of the type %s has a %s." % (kind, WHERE[kind]))
    if place and INLINE_PASSWORD.search(place):
        raise OffsiteError(
            "There is a password in the %s, where everybody sees it." % WHERE[kind],
            "Give it in secret_environment, for restic the whole URL as RESTIC_REPOSITORY.",
        )
    if kind == "restic" and destination.get("recipients"):
        raise OffsiteError("restic encrypts by itself.", "Leave the recipients out.")


def _programs(destination, lock, run):
    environment = dict(destination.get("environment") or {}, **(destination.get("secret_environment") or {}))
    secrets = list((destination.get("secret_environment") or {}).values())
    if destination["type"] == "restic":
        if destination.get("password"):
            environment["RESTIC_PASSWORD"] = destination["password"]
            secrets.append(destination["password"])
        if destination.get("password_file"):
            environment["RESTIC_PASSWORD_FILE"] = destination["password_file"]
    environment = dict((name, str(value)) for name, value in environment.items())
    secrets = [str(secret) for secret in secrets]
    return Programs(environment, secrets, timeout=destination["timeout"], keep_open=lock, run=run)


def _far_end(destination, host, scratch, programs):
    limit = destination.get("bandwidth_limit")
    ssh = dict(
        port=destination.get("port"),
        ssh_key=destination.get("ssh_key"),
        ssh_options=destination.get("ssh_options") or (),
    )
    if destination["type"] == "rsync":
        return RsyncEnd(programs, host, destination["target"], scratch, bandwidth_limit=limit, **ssh)
    if destination["type"] == "rclone":
        config = destination.get("config_file")
        return RcloneEnd(programs, host, destination["remote"], scratch, config_file=config, bandwidth_limit=limit)
    return ResticEnd(
        programs,
        host,
        destination.get("repository"),
        scratch,
        bandwidth_limit=limit,
        read_data_subset=destination.get("read_data_subset"),
        **ssh,
    )


@contextlib.contextmanager
def _workplace(root, name, writes):
    """Yield a folder for temporary files, and the lock under which one process at a time writes to a destination.

    What only looks has a folder elsewhere, and no lock.
    """
    if not writes:
        scratch = tempfile.mkdtemp(prefix="echo_offsite.")
        try:
            yield scratch, None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return
    prepare_root(root)
    scratch = os.path.join(root, ".offsite_%s" % name)
    with explained("lock", scratch):
        lock = os.open(scratch + ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OffsiteError("Another run is at work there (%s.lock)." % scratch, "Wait for its end.")
        # What a run that was killed left: nobody else works in it.
        shutil.rmtree(scratch, ignore_errors=True)
        with explained("create", scratch):
            os.mkdir(scratch, 0o700)
        yield scratch, lock
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)
