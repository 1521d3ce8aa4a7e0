# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set proves itself: its checksums, its structure, or a drill; each level holds the ones before it.

What is found goes to the set's ``proof.json``. A set that fails gets a proof of that, too. Where
the host failed (no image, no room, an engine that went away), or another release that the set
was tried with, nothing is proven either way, and the last proof stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from ansible_collections.echo_music.ops.plugins.module_utils.archive import read_to_end
from ansible_collections.echo_music.ops.plugins.module_utils.drill import LIKE, MOUNTS, NAMES, AppError, Drill
from ansible_collections.echo_music.ops.plugins.module_utils.drill_images import named, recorded_image, server_image
from ansible_collections.echo_music.ops.plugins.module_utils.dump_file import (
    CLOSING,
    TAIL_SIZE,
    opened,
    raw_blocks,
    versions,
)
from ansible_collections.echo_music.ops.plugins.module_utils.errors import (
    ArchiveError,
    CommandError,
    DatabaseError,
    EchoError,
    EngineError,
    SetError,
    SpaceError,
    StackError,
)
from ansible_collections.echo_music.ops.plugins.module_utils.extract import examine, root_of
from ansible_collections.echo_music.ops.plugins.module_utils.named_files import check_named_files
from ansible_collections.echo_music.ops.plugins.module_utils.offsite_receipt import RECEIPT
from ansible_collections.echo_music.ops.plugins.module_utils.postgres import last_lines
from ansible_collections.echo_music.ops.plugins.module_utils.progress import phase
from ansible_collections.echo_music.ops.plugins.module_utils.proof import (
    CHECKSUM,
    DRILL,
    LEVELS,
    STRUCTURE,
    fingerprint,
    record,
)
from ansible_collections.echo_music.ops.plugins.module_utils.restore_parts import GROWTH, RESERVE
from ansible_collections.echo_music.ops.plugins.module_utils.restore_source import (
    COMPONENTS,
    DUMPS,
    ORIGIN_FILE,
    ORIGIN_OURS,
    locate,
    resolve,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import (
    BLOCK,
    CHECKSUMS,
    LATEST,
    MANIFEST,
    PROOF,
    SIDECARS,
    explained,
    free_bytes,
    human,
    read_small,
    sha256_of,
    timestamp,
)
from ansible_collections.echo_music.ops.plugins.module_utils.set_manifest import read_manifest
from ansible_collections.echo_music.ops.plugins.module_utils.set_use import reading
from ansible_collections.echo_music.ops.plugins.module_utils.side_database import ServerError, compare
from ansible_collections.echo_music.ops.plugins.module_utils.stack import find_containers
from ansible_collections.echo_music.ops.plugins.module_utils.survey import shown
from ansible_collections.echo_music.ops.plugins.module_utils.version import VERSION

HEALTH_TIMEOUT = 360
SUMS_LIMIT = 1024 * 1024
SUM = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9][A-Za-z0-9._-]{0,199})\Z")
GLOBALS = "postgres_globals.sql"
DUMP = "/dump"
REFUSED = 1
READERS = 2
# A new PostgreSQL and its log, beside the database.
SERVER_BYTES = 128 * 1024 * 1024
LOG_BYTES = 1024 * 1024 * 1024
SHOWN = 5


class VerifyError(EchoError):
    """A set is not what it has to be; ``problems`` lists all that was found."""

    def __init__(self, path, problems):
        more = ["and %d more." % (len(problems) - SHOWN)] if len(problems) > SHOWN else []
        super(VerifyError, self).__init__(
            "%s doesn't prove itself: %s" % (path, " ".join(problems[:SHOWN] + more)),
            "Use another set or another copy of this one, and find out what became of it.",
            problems=problems,
        )


def ensure_verified(
    engine,
    source=LATEST,
    root=None,
    level=DRILL,
    server_version=None,
    server_image=None,
    app_image=None,
    app_env=None,
    ignore_columns=(),
    health_timeout=HEALTH_TIMEOUT,
    check=False,
    **where
):
    """Verify a set, or one file, and return the result of the module ``echo_verify``.

    ``where`` goes to ``find_containers``: where there is a live stack, its images serve if
    those of the set aren't here. It is not touched.
    """
    options = dict(
        server_version=server_version,
        server_image=server_image,
        app_image=app_image,
        app_env=app_env or {},
        ignore_columns=ignore_columns,
        health_timeout=health_timeout,
    )
    subject = Subject(locate(source, root), root)
    planned = plan(engine, subject, level, options, where)
    verification = Verification(engine, subject, level, planned, options)
    if check:
        return verification.result()
    with reading(subject.path):
        return verification.run()


class Subject:
    """What is verified, as far as can be told without reading it."""

    def __init__(self, path, root):
        self.path = path
        self.problem = None
        self.found = dict(id=os.path.basename(path), origin=ORIGIN_OURS, time=None, components={}, tables=None, database=None)
        self.manifest = None
        is_ours = os.path.lexists(os.path.join(path, MANIFEST))
        try:
            if is_ours:
                self.manifest = read_manifest(os.path.join(path, MANIFEST))
            self.found = resolve(path, root)
        except SetError as error:
            if not is_ours:
                raise
            # Which of its files are wrong, the checksums tell.
            self.problem = error.what

    @property
    def is_set(self):
        """Whether it is a folder, in which a proof can lie."""
        return self.found["origin"] != ORIGIN_FILE

    @property
    def dump(self):
        """The dump that a restore would load, None without one."""
        return self.found["components"].get("database")

    @property
    def archives(self):
        """The archives that a restore would unpack, by component."""
        return dict((name, part) for name, part in self.found["components"].items() if part["kind"] == "archive")

    @property
    def layout(self):
        """Which Echo it is of."""
        if self.manifest:
            return self.manifest["layout"]
        return "unified" if "data" in self.archives else "classic"

    def images(self, role):
        """Return what the manifest says of the image of a role, None for nothing."""
        return (self.manifest or {}).get("images", {}).get(role)

    def files(self):
        """Return ``[(path, artifact)]`` of all archives and dumps; artifact None without a manifest."""
        if self.manifest:
            return [(os.path.join(self.path, artifact["file"]), artifact) for artifact in self.manifest["artifacts"]]
        paths = [part["file"] for part in self.found["components"].values()]
        if self.is_set:
            paths += [os.path.join(self.path, name) for name in DUMPS if os.path.exists(os.path.join(self.path, name))]
        return [(path, None) for path in dict.fromkeys(paths)]


# -- the plan -----------------------------------------------------------------------------------


def plan(engine, subject, level, options, where):
    """Return with what a subject would be verified: ``{"server", "app", "redis", "not_checked", "bytes_needed"}``.

    Changes nothing; raises ``EchoError`` for what would stop the verification.
    """
    planned = dict(server=None, app=None, redis=None, not_checked=[], bytes_needed=0)
    if subject.problem:
        return planned
    if level == CHECKSUM:
        if subject.found["origin"] != ORIGIN_OURS:
            raise SetError(
                "%s has no checksums: it is no set of this collection." % subject.path, "Choose level structure or drill."
            )
        return planned
    if not engine.is_local():
        raise StackError(
            "The files of the Docker Engine at %s can't be reached." % engine.host,
            "Verify on the engine's own host, as root (become: true); level checksum needs no engine.",
        )
    live = _live(engine, where)
    if subject.dump:
        planned["server"] = server_image(
            engine,
            _release(subject.dump),
            subject.images("database"),
            live.get("database"),
            options["server_version"],
            options["server_image"],
        )
    if level == DRILL:
        _plan_app(engine, subject, options, live, planned)
        _plan_space(engine, subject, planned)
    return planned


def _live(engine, where):
    """Return the live stack's containers by role, none where there is no single one."""
    try:
        return find_containers(engine, **where)
    except StackError:
        return {}


def _release(dump):
    """Return the major release that a dump needs, 0 if it doesn't tell."""
    majors = [re.match(r"\d+", version) for version in versions(dump["file"], dump["kind"]) if version]
    return max([int(major.group()) for major in majors if major] or [0])


def _plan_app(engine, subject, options, live, planned):
    if options["app_image"]:
        app = engine.image(options["app_image"])
        if app is None:
            raise StackError("There is no image %s on this host." % options["app_image"], "Pull or build it first.")
    else:
        app = recorded_image(engine, subject.images("app"), None if subject.manifest else live.get("app"))
    redis = recorded_image(engine, subject.images("redis"), live.get("redis"))
    missing = [
        what
        for what, there in (
            ("a database in the set", subject.dump),
            ("the app's files in the set", subject.archives),
            ("its image on this host", app),
            ("an image of Redis on this host", redis),
        )
        if not there
    ]
    if missing:
        planned["not_checked"].append("The app was not started, for want of %s." % " and ".join(missing))
    else:
        planned.update(app=app, redis=redis)


def _plan_space(engine, subject, planned):
    size = sum(part.get("bytes_in") or part["bytes"] * 2 for part in subject.archives.values())
    if subject.dump:
        recorded = subject.found["database"]
        database = recorded["bytes"] if recorded else subject.dump["bytes"] * GROWTH[subject.dump["kind"]]
        size += database + min(database, LOG_BYTES) + SERVER_BYTES
    planned["bytes_needed"] = size
    free = free_bytes(engine.data_root())
    if size + RESERVE > free:
        raise SpaceError(
            "The drill needs about %s in %s, and %s are free there." % (human(size), engine.data_root(), human(free)),
            "Make room there, or choose level structure.",
            bytes_needed=size,
            bytes_free=free,
        )


# -- the verification ---------------------------------------------------------------------------


class Verification:
    """One verification of a subject, and what it has found so far."""

    def __init__(self, engine, subject, level, planned, options):
        self._engine = engine
        self._subject = subject
        self._level = level
        self._planned = planned
        self._options = options
        self._started = timestamp()
        self._manifest_sha256 = fingerprint(subject.path) if subject.is_set else None
        self._seconds = {}
        self._checked = {}
        self._server_version = None
        self._rto = None

    def run(self):
        """Verify, record the proof, and return the result; raise what was found."""
        try:
            self._verify()
        except EchoError as error:
            problems = error.details.get("problems", [error.what])
            error.details.update(self.result(problems), changed=False, proof=None)
            if self._tells_of_the_set(error):
                error.details.update(self._recorded_failure(problems))
            raise
        self._record(True)
        return self.result()

    def result(self, problems=()):
        """Return what was found, and with what; before :meth:`run`, what it would be done with."""
        found = self._subject.found
        return dict(
            changed=self._subject.is_set,
            level=self._level,
            set=dict(id=found["id"], origin=found["origin"], path=self._subject.path, time=found["time"]),
            checked=self._checked,
            not_checked=self._planned["not_checked"],
            server=self._image("server", version=self._server_version),
            app=self._image("app"),
            bytes_needed=self._planned["bytes_needed"],
            seconds=self._seconds,
            rto_seconds=self._rto,
            problems=list(problems),
            proof=os.path.join(self._subject.path, PROOF) if self._subject.is_set else None,
        )

    def _tells_of_the_set(self, error):
        """Tell an error of the set from one of the host, or of an image that it was tried with; they prove nothing."""
        tried = (AppError,) if self._options["app_image"] else ()
        if self._options["server_version"] or self._options["server_image"]:
            tried += (DatabaseError,)
        of_the_host = (SpaceError, StackError, EngineError, ServerError)
        # What lacks a library says so with the exception.
        return "exception" not in error.details and not isinstance(error, of_the_host + tried)

    def _recorded_failure(self, problems):
        """Write the proof of a failure; that it can't be written must not hide what it says."""
        try:
            self._record(False, problems)
        except EchoError as error:
            return dict(problems=problems + ["The proof of that was not written: %s" % error.what])
        return dict(changed=self._subject.is_set, proof=self.result()["proof"])

    def _record(self, passed, problems=()):
        """Write the proof beside the manifest; nothing for a single file."""
        if not self._subject.is_set:
            return
        result = self.result(problems)
        proof = dict((key, result[key]) for key in PROVEN)
        proof.update(
            passed=passed,
            started=self._started,
            finished=timestamp(),
            host=socket.gethostname(),
            collection_version=VERSION,
            manifest_sha256=self._manifest_sha256,
        )
        record(self._subject.path, proof)

    def _image(self, role, **more):
        image = self._planned[role]
        if not image:
            return None
        recorded = self._subject.images("database" if role == "server" else role) or {}
        known_as = self._options[role + "_image"] or recorded.get("image")
        return dict(more, image=named(image, known_as), image_id=image["id"])

    @contextlib.contextmanager
    def _timed(self, phase):
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[phase] = round(time.monotonic() - began, 3)

    def _verify(self):
        if self._subject.found["origin"] == ORIGIN_OURS:
            with self._timed("checksum"):
                self._checked.update(check_files(self._subject.path))
        if self._subject.problem:
            raise VerifyError(self._subject.path, [self._subject.problem])
        if LEVELS.index(self._level) >= LEVELS.index(STRUCTURE):
            with self._timed("structure"):
                self._structure()
        if self._level == DRILL:
            self._drill()

    # -- structure --------------------------------------------------------------------------

    def _structure(self):
        """Read all archives and dumps to their ends, several at once."""
        files, problems = self._subject.files(), []
        self._checked.update(archives={}, dumps=[])
        with ThreadPoolExecutor(max_workers=READERS) as threads:
            reading = [(path, threads.submit(self._read, path, artifact)) for path, artifact in files]
        for path, read in reading:
            try:
                found = read.result()
            except (ArchiveError, SetError, VerifyError) as error:
                if not self._tells_of_the_set(error):
                    raise
                problems += error.details.get("problems", [error.what])
                continue
            if found:
                self._checked["archives"][os.path.basename(path)] = found
            else:
                self._checked["dumps"].append(os.path.basename(path))
        if problems:
            raise VerifyError(self._subject.path, problems)

    def _read(self, path, artifact):
        """Read one file; return what is in an archive, None of a dump."""
        if ".tar" in os.path.basename(path) or path.endswith(".tgz"):
            return self._read_archive(path, artifact)
        kind = resolve(path, None)["components"]["database"]["kind"]
        if kind == "custom":
            self._read_dump(path)
        else:
            read_sql(path, kind)
        return None

    def _read_archive(self, path, artifact):
        expected = dict((key, artifact[key]) for key in ("bytes_in", "members")) if artifact else {}
        if artifact is None or artifact["component"] in COMPONENTS:
            return examine(path, root_of(path), expected, contain=artifact is not None)
        # No restore unpacks these: Compose files, logs, the cache.
        found = read_to_end(path)
        if found["members"] != expected["members"]:
            raise ArchiveError(
                "%s has %d members, its manifest says %d." % (path, found["members"], expected["members"])
            )
        return found

    def _read_dump(self, path):
        """Have pg_restore turn a dump into SQL for nobody, for which it reads all of it."""
        status = os.stat(path)
        try:
            with self._engine.helper(
                self._planned["server"]["id"],
                ["pg_restore", "--file=/dev/null", DUMP],
                env=dict(LC_ALL="C"),
                binds={os.path.realpath(path): {"bind": DUMP, "mode": "ro"}},
                user="%d:%d" % (status.st_uid, status.st_gid),
                entrypoint=["env"],
            ) as command:
                command.finish()
        except CommandError as error:
            if error.details.get("exit_code") != REFUSED:
                raise
            said = last_lines(error.details.get("stderr") or "")
            raise VerifyError(path, ["pg_restore can't read it to its end: %s" % said])

    # -- drill ------------------------------------------------------------------------------

    def _drill(self):
        problems, folders, began = [], {}, time.monotonic()
        with Drill(self._engine) as drill:
            if self._subject.dump:
                self._start_server(drill)
                began = time.monotonic()
                problems += self._load(drill)
            with self._timed("volumes"):
                for component, part in self._subject.archives.items():
                    folders[component] = self._unpack(drill, component, part)
            self._rto = round(time.monotonic() - began, 3)
            if self._subject.dump:
                problems += self._look_for_named_files(drill, folders)
            if problems:
                raise VerifyError(self._subject.path, problems)
            if self._planned["app"]:
                self._start_app(drill)

    def _names(self):
        """Return the names of database and owner, as recorded or as Echo's Compose files have them."""
        recorded = self._subject.found["database"]
        return (recorded["name"], recorded["owner"]) if recorded else NAMES[self._subject.layout]

    def _start_server(self, drill):
        with self._timed("server"):
            drill.start_server(self._planned["server"]["id"], *self._names())

    def _load(self, drill):
        """Load the dump; return what differs from the manifest."""
        dump, expected = self._subject.dump, self._subject.found["tables"]
        globals_file = os.path.join(self._subject.path, GLOBALS)
        with self._timed("database"):
            loaded = drill.load(
                dump["file"],
                dump["kind"],
                self._subject.found["database"] or LIKE,
                globals_file if os.path.isfile(globals_file) else None,
            )
        self._server_version = loaded["server_version"]
        self._checked.update(tables=loaded["tables"], tables_compared=expected is not None)
        if not loaded["tables"]:
            return ["There is no table in %s." % os.path.basename(dump["file"])]
        if expected is None:
            return []
        return [
            "The table %s has %s rows, its manifest says %s."
            % (item["table"], _or_none(item["found"]), _or_none(item["expected"]))
            for item in compare(expected, loaded["tables"])
        ]

    def _unpack(self, drill, component, part):
        expected = dict((key, part.get(key)) for key in ("bytes_in", "members"))
        free = max(0, free_bytes(self._engine.data_root()) - RESERVE)
        # As a restore treats it: a set of ours comes back whatever was in the volume.
        return drill.unpack(component, part["file"], expected, free, contain="sha256" in part)

    def _look_for_named_files(self, drill, folders):
        """Return which files the database names in vain."""
        if not {"uploads", "data"}.intersection(folders):
            self._planned["not_checked"].append("Files that the database names were not looked for: the set has none.")
            return []
        with self._timed("named_files"):
            mounts = dict((MOUNTS[component], folder) for component, folder in folders.items())
            columns = check_named_files(drill.database, mounts, set(self._options["ignore_columns"]))
        self._checked["columns"] = columns
        return [
            "%(column)s names %(files)d files, of which %(missing)d are in no archive: " % column
            + ", ".join(column["examples"])
            + "."
            for column in columns
            if column["missing"]
        ]

    def _start_app(self, drill):
        with self._timed("app"):
            healthy_after = drill.start_app(
                self._planned["app"],
                self._planned["redis"],
                self._subject.layout,
                self._options["app_env"],
                self._options["health_timeout"],
            )
        self._checked["app_healthy_after"] = round(healthy_after, 3)
        if self._options["app_image"]:
            # What another version made of the rows is for those to compare who rehearse it.
            self._checked["tables_with_app"] = drill.database.describe()["tables"]
        self._rto = round(self._rto + healthy_after, 3)


# What of a result is in a proof.
PROVEN = ("level", "checked", "not_checked", "server", "app", "seconds", "rto_seconds", "problems")


def check_files(folder):
    """Compare a set's files with its checksums and its manifest; return ``{"files", "bytes"}``.

    Raises ``VerifyError`` with every file that is not as it was, that is missing, or that is
    in no list.
    """
    sums, problems = _read_sums(folder)
    artifacts = {}
    try:
        artifacts = dict((a["file"], a) for a in read_manifest(os.path.join(folder, MANIFEST))["artifacts"])
    except SetError as error:
        problems.append(error.what)
    names = sorted(set(sums) | set(artifacts))
    total = sum(artifact["bytes_out"] for artifact in artifacts.values())
    with phase(CHECKSUMS, total) as told, ThreadPoolExecutor(max_workers=READERS) as threads:
        hashed = list(threads.map(lambda name: _hashed(os.path.join(folder, name), told), names))
    for name, (digest, size, problem) in zip(names, hashed):
        artifact = artifacts.get(name, {})
        if problem:
            problems.append(problem)
        elif artifact.get("bytes_out", size) != size:
            problems.append("%s has %d bytes, its manifest says %d." % (name, size, artifact["bytes_out"]))
        elif digest not in (sums.get(name), artifact.get("sha256")):
            problems.append("%s is not what was written: its SHA-256 is %s." % (name, digest))
        elif artifact.get("sha256", digest) != digest or sums.get(name, digest) != digest:
            problems.append("%s differs from its %s." % (name, "manifest" if sums.get(name) == digest else CHECKSUMS))
        elif name not in sums:
            problems.append("%s is not in %s." % (name, CHECKSUMS))
    with explained("list", folder):
        unlisted = set(os.listdir(folder)) - set(names) - {CHECKSUMS, PROOF + ".new", RECEIPT} - set(SIDECARS)
    problems += ["%s is no file of the set." % shown(name) for name in sorted(unlisted)]
    if problems:
        raise VerifyError(folder, problems)
    return dict(files=len(names), bytes=sum(size for unused, size, unused_problem in hashed))


def read_sql(path, kind):
    """Read a dump in SQL to its end, which must have the line that pg_dump writes last."""
    tail = b""
    with opened(path, kind) as source:
        for block in raw_blocks(source):
            tail = (tail + block)[-TAIL_SIZE:]
    if not CLOSING.search(tail):
        raise VerifyError(path, ["Its closing line is missing, so it is cut short."])


def _read_sums(folder):
    """Return the sums by file name, and what is wrong with their list."""
    try:
        text = read_small(os.path.join(folder, CHECKSUMS), SUMS_LIMIT).decode("utf-8", "replace")
    except SetError as error:
        return {}, [error.what]
    sums, problems = {}, []
    for line in text.splitlines():
        match = SUM.match(line)
        if match:
            sums[match.group(2)] = match.group(1)
        else:
            problems.append("%s has a line that is none of its own: %.80r." % (CHECKSUMS, line))
    return sums, problems


def _hashed(path, told):
    try:
        return sha256_of(path, lambda: told.add(BLOCK)) + (None,)
    except SetError as error:
        return None, 0, error.what


def _or_none(rows):
    return "no" if rows is None else rows
