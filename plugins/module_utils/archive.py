# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One volume or folder to one archive, in one pass and with flat memory.

GNU tar reads the folder, because it knows holes, hard links, extended attributes and ACLs.
Where the folder can't be read here, the Engine API delivers a tar stream, whose members are
renamed on the way. Either stream is packed, hashed and staged by :class:`StagedFile`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import threading
import time

from ansible_collections.echo_music.ops.plugins.module_utils.codec import (
    BLOCK,
    SUFFIXES,
    StagedFile,
    read_archive,
)
from ansible_collections.echo_music.ops.plugins.module_utils.engine import awaits_mount
from ansible_collections.echo_music.ops.plugins.module_utils.engine_tar import rename_members
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, EchoError
from ansible_collections.echo_music.ops.plugins.module_utils.progress import phase
from ansible_collections.echo_music.ops.plugins.module_utils.reuse import fingerprint, is_settled, link, unchanged
from ansible_collections.echo_music.ops.plugins.module_utils.survey import relative, shown, survey
from ansible_collections.echo_music.ops.plugins.module_utils.tar_guard import RESERVED
from ansible_collections.echo_music.ops.plugins.module_utils.tar_scan import TarScan

SNAPSHOT_TIMEOUT = 120
SNAPSHOT_POLL = 0.1
RETRIES = 2

TAR_NAMES = ("tar", "gtar")
TAR_OPTIONS = (
    "--create",
    "--file=-",
    "--format=posix",
    # Equal data gives equal archives: no time of access, no number of a process.
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    "--numeric-owner",
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
    # In this order a disk's heads move least.
    "--sort=inode",
    "--blocking-factor=128",
    "--quoting-style=escape",
    "--anchored",
)
# What GNU tar says, in the C locale, about a folder that is in use.
CHANGED = re.compile(
    rb"^[^:]+: (?P<name>.*): (file changed as we read it|File removed before we read it"
    rb"|File shrank by \d+ bytes?; padding with zeros)$"
)
# A socket that was born after the survey; a file system that has no extended attributes (FUSE, CIFS).
IGNORED = re.compile(rb": (socket ignored|Warning: Cannot l?f?listxattr(at)?: (Operation not supported|Function not implemented))$")
MESSAGES_SHOWN = 5
# What a restore keeps of the data that it replaced is no part of the data.
KEPT_BY_RESTORES = RESERVED + "*"
F_SETPIPE_SZ = 1031
# A pax header, a header, and half a record of padding.
BYTES_A_MEMBER = 1792
FACTS_KEPT = ("file", "bytes_in", "bytes_out", "members", "codec", "sha256", "fingerprint")


def back_up(
    engine, dest, volume=None, path=None, mountpoint=None, component=None, check_mode=False, retries=RETRIES, **options
):
    """Archive a named volume, or a folder of the engine's host, by whichever way is open.

    ``dest`` is a file, or a folder in which the file is named after the component, the
    volume or the folder. ``mountpoint`` is where the volume lies, if that is known: the engine
    isn't asked then. ``options`` are those of :func:`back_up_folder`. Returns the result
    of the module ``echo_volume_backup``; in check mode it says what would be done.
    """
    known = path or mountpoint
    source = os.path.normpath(known) if known else _mountpoint(engine, volume)
    name = component or volume or os.path.basename(source)
    if os.path.isdir(dest):
        dest = os.path.join(dest, name + SUFFIXES[options["codec"]])
    _check_dest(dest, source)
    options["exclude"] = list(options["exclude"]) + [KEPT_BY_RESTORES]
    result = dict(changed=True, dest=dest, source=volume or source, warnings=[])
    forerunner = dict(forerunner=options.pop("forerunner", None), rehash=options.pop("rehash", False))
    if _is_readable(engine, source, path, bool(known)) and _gnu_tar():
        result.update(method="mount")
        if check_mode:
            return dict(result, **_prediction(source, dest, options, **forerunner))
        artifact = back_up_folder(source, dest, retries=retries, **options, **forerunner)
    else:
        container, inside = _mounted_by(engine, volume, source)
        result.update(method="api")
        if check_mode:
            return dict(result, bytes=None, files=None, skipped=[], reused=False)
        artifact = back_up_container_path(engine, container, inside, dest, **options)
    reused = artifact.get("reused") is not None
    result.update(reused=reused, bytes_written=0 if reused else artifact["bytes_out"])
    result.update(skipped=artifact.pop("skipped"), changed_files=artifact.pop("changed"))
    result["warnings"] += artifact.pop("warnings")
    return dict(result, artifact=dict(artifact, role=name, source=volume or source))


def back_up_folder(
    source,
    dest,
    codec="gzip",
    exclude=(),
    after_snapshot=None,
    snapshot_timeout=SNAPSHOT_TIMEOUT,
    retries=RETRIES,
    forerunner=None,
    rehash=False,
):
    """Archive a folder of this host by GNU tar, or link the archive of an earlier set, ``forerunner``.

    Returns the artifact's facts, ``skipped`` (``[{"name", "type", "reason"}]``: sockets,
    devices, named pipes) and ``changed``: the files that changed or vanished while they were
    read, in the last of ``1 + retries`` passes. ``fingerprint`` and ``reused`` are those of
    the manifest, None where there is no such thing; ``warnings`` are for people.
    """
    program = _gnu_tar()
    if not program:
        raise ArchiveError("There is no GNU tar (1.28 or later) on this host.", "Install the package tar.")
    _check_dest(dest, source)
    await_snapshot(after_snapshot, snapshot_timeout)
    started = time.monotonic()
    for retries_left in range(retries, -1, -1):
        begun_ns = time.time_ns()
        found = survey(source, exclude)
        known = fingerprint(found, source, codec, exclude)
        earlier, warning = unchanged(forerunner, os.path.basename(dest), known, rehash)
        if earlier and link(earlier["path"], dest):
            return _facts_again(earlier, started, source, found["special"])
        with StagedFile(dest, codec) as staged, _followed(staged, _stream_bytes(found)):
            scan = TarScan(source)
            changed = _run_tar(_tar_command(program, source, exclude, found), source, staged, scan)
            if changed and retries_left:
                continue
            scan.finish()
            staged.publish()
            break
    facts = _facts(staged, scan.members, started, source, codec, found["special"], changed)
    if is_settled(found, begun_ns) and not changed:
        facts["fingerprint"] = known
    return dict(facts, warnings=[warning] if warning else [])


def back_up_container_path(
    engine, container, path, dest, codec="gzip", exclude=(), after_snapshot=None, snapshot_timeout=SNAPSHOT_TIMEOUT
):
    """Archive a folder of a container through the Engine API; the result is that of :func:`back_up_folder`.

    The engine leaves out fractions of seconds, user attributes, ACLs, holes and sockets, and
    doesn't tell which files change under its hands.
    """
    await_snapshot(after_snapshot, snapshot_timeout)
    started = time.monotonic()
    source = "%s:%s" % (container, path)
    with StagedFile(dest, codec) as staged, _followed(staged):
        members, special = rename_members(engine.archive_of(container, path), staged, source, path, exclude)
        staged.publish()
    return _facts(staged, members, started, source, codec, special, [])


def read_to_end(path):
    """Read an archive to its very end and return ``{"members", "bytes"}``; damage is an ``ArchiveError``."""
    scan = TarScan(path)
    for piece in read_archive(path):
        scan.feed(piece)
    scan.finish()
    return dict(members=scan.members, bytes=scan.bytes)


def await_snapshot(path, timeout=SNAPSHOT_TIMEOUT):
    """Wait until the database's dump has announced its snapshot in the file ``path``.

    Read after that moment, a volume holds every file that the dump speaks of.
    """
    if not path:
        return
    deadline = time.monotonic() + timeout
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise ArchiveError(
                "No database snapshot was announced in %s within %s seconds." % (path, timeout),
                "Look at what the dump reports.",
            )
        time.sleep(SNAPSHOT_POLL)
    with open(path) as announced:
        failure = json.load(announced).get("error")
    if failure:
        raise ArchiveError("The database's dump failed before this archive was begun: %s" % failure)


# -- GNU tar ---------------------------------------------------------------------------------


def _gnu_tar():
    """Return the name of a GNU tar that takes our options without a word of protest, or None."""
    for name in TAR_NAMES:
        try:
            trial = subprocess.run(
                [name] + list(TAR_OPTIONS) + ["--sparse", "--files-from=/dev/null"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        except OSError:
            continue
        if trial.returncode == 0 and not trial.stderr:
            return name
    return None


def _tar_command(program, source, exclude, found):
    command = [program] + list(TAR_OPTIONS)
    # busybox lists a sparse member but can't extract it, so this is for folders that need it.
    if found["sparse"]:
        command.append("--sparse")
    command += ["--exclude=./" + relative(pattern) for pattern in exclude]
    command.append("--no-wildcards")
    command += ["--exclude=./" + name for name, unused in found["special"]]
    return command + ["--directory=" + source, "."]


def _run_tar(command, source, staged, scan):
    """Let tar write into ``staged``; return the names of files that changed meanwhile."""
    said = []
    with _tar_process(command, source) as process:
        listener = threading.Thread(target=lambda: said.extend(_worth_hearing(process.stderr)), daemon=True)
        listener.start()
        try:
            for block in iter(lambda: process.stdout.read(BLOCK), b""):
                scan.feed(block)
                staged.write(block)
        except BaseException:
            process.kill()
            raise
        finally:
            listener.join()
    return _judge(process.wait(), said, source)


def _tar_process(command, source):
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, LC_ALL="C"),
        )
    except OSError as error:
        raise ArchiveError("Could not start %s for %s: %s." % (command[0], source, error.strerror))
    with contextlib.suppress(OSError):
        fcntl.fcntl(process.stdout, F_SETPIPE_SZ, BLOCK)
    return process


def _worth_hearing(lines):
    """Yield what tar says without what it would say of every file."""
    return (line for line in lines if not IGNORED.search(line))


def _judge(exit_code, said, source):
    changed = set()
    complaints = []
    for line in said:
        line = line.rstrip(b"\n")
        about_change = CHANGED.match(line)
        if about_change:
            changed.add(_unescaped(about_change.group("name")))
        else:
            complaints.append(line.decode("ascii", "backslashreplace"))
    if exit_code not in (0, 1) or complaints:
        raise ArchiveError(
            "tar could not read all of %s (exit code %s): %s"
            % (source, exit_code, "; ".join(complaints[:MESSAGES_SHOWN]) or "it said nothing."),
            "Mend what it names, or leave it out with exclude.",
        )
    return sorted(changed)


def _unescaped(name):
    """Undo ``--quoting-style=escape`` and the leading ``./``."""
    raw = name.decode("unicode_escape").encode("latin-1")
    return shown(os.fsdecode(raw[2:] if raw.startswith(b"./") else raw))


# -- where the data lies -----------------------------------------------------------------------


def _mountpoint(engine, volume):
    volumes = dict((found["name"], found["mountpoint"]) for found in engine.volumes())
    if volume not in volumes:
        raise ArchiveError(
            "There is no volume %s on the Docker Engine at %s." % (volume, engine.host),
            "Volumes there: %s." % (", ".join(sorted(volumes)) or "none"),
            candidates=sorted(volumes),
        )
    return volumes[volume]


def _is_readable(engine, source, path, known):
    """Tell whether a folder of the engine's host can be read here; one that is ``known`` isn't asked for.

    Containers write as other users. So without root only a ``path`` is read that none of them mounts.
    """
    if not (known or engine.is_local()) or awaits_mount(source):
        return False
    if os.geteuid() and not (path and _is_no_mount(engine, source)):
        return False
    return engine.host.startswith("unix://") and os.path.isdir(source) and os.access(source, os.R_OK | os.X_OK)


def _is_no_mount(engine, source):
    try:
        _mounted_by(engine, None, source)
    except EchoError:
        return True
    return False


def _mounted_by(engine, volume, source):
    """Return a container that mounts the data, and where: ``(container, path)``."""
    for container in engine.containers():
        for mount in container["mounts"]:
            if volume and mount["name"] == volume:
                return container["name"], mount["destination"]
            if not volume and mount["source"] and (source + "/").startswith(mount["source"].rstrip("/") + "/"):
                return container["name"], os.path.normpath(
                    os.path.join(mount["destination"], os.path.relpath(source, mount["source"]))
                )
    raise ArchiveError(
        "%s can't be read here%s, and no container of the Docker Engine at %s mounts it."
        % (volume or source, "" if _gnu_tar() else " (there is no GNU tar)", engine.host),
        "Does it exist? Run this on the engine's own host as root (become), or create a container that mounts it.",
    )


# -- small change ------------------------------------------------------------------------------


def _followed(staged, total=None):
    """Have the archive's progress told to those who asked."""
    return phase(os.path.basename(staged.dest), total, lambda: staged.bytes_in)


def _stream_bytes(found):
    """Return about how large the tar stream of a surveyed folder is."""
    return found["bytes"] + found["files"] * BYTES_A_MEMBER


def _facts(staged, members, started, source, codec, special, changed):
    return dict(
        file=os.path.basename(staged.dest),
        source=source,
        bytes_in=staged.bytes_in,
        bytes_out=staged.bytes_out,
        members=members,
        codec=codec,
        sha256=staged.sha256,
        seconds=round(time.monotonic() - started, 3),
        fingerprint=None,
        reused=None,
        skipped=_skipped(special),
        changed=changed,
        warnings=[],
    )


def _facts_again(earlier, started, source, special):
    """The facts of an archive that was linked."""
    kept = dict((key, earlier[key]) for key in FACTS_KEPT)
    seconds = round(time.monotonic() - started, 3)
    again = dict(source=source, seconds=seconds, reused=earlier["set"], warnings=[])
    return dict(kept, skipped=_skipped(special), changed=[], **again)


def _prediction(source, dest, options, forerunner, rehash):
    """What check mode says of a folder that can be read here."""
    found = survey(source, options["exclude"])
    known = fingerprint(found, source, options["codec"], options["exclude"])
    earlier, warning = unchanged(forerunner, os.path.basename(dest), known, rehash)
    return dict(
        bytes=found["bytes"],
        files=found["files"],
        skipped=_skipped(found["special"]),
        reused=earlier is not None,
        warnings=[warning] if warning else [],
    )


def _skipped(special):
    return [
        dict(name=shown(name), type=kind, reason="A %s holds no data and is not archived." % kind)
        for name, kind in special
    ]


def _check_dest(dest, source):
    folder = os.path.dirname(dest) or "."
    if not os.path.isdir(folder):
        raise ArchiveError("There is no folder %s for the archive." % folder, "Create it, or choose another dest.")
    inner, outer = os.path.realpath(dest), os.path.realpath(source)
    if os.path.commonpath([inner, outer]) == outer:
        raise ArchiveError("%s lies in %s, which is to be archived." % (dest, source), "Choose a dest elsewhere.")
