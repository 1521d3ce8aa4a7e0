# -*- coding: utf-8 -*-
# Copyright: Contributors to the echo_music.ops collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an archive is packed: gzip, zstd or not at all, and the file that it is written to.

Covers and music don't compress. The gzip encoder tries a sample of each block and stores
those that don't shrink, which is what makes it as fast as no compression at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import os
import struct
import traceback
import zlib

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.echo_music.ops.plugins.module_utils.direct_file import DirectFile
from ansible_collections.echo_music.ops.plugins.module_utils.errors import ArchiveError, SpaceError
from ansible_collections.echo_music.ops.plugins.module_utils.set_files import sync_folder

try:
    from isal import igzip
    from isal import isal_zlib as deflate
except ImportError:
    igzip = gzip
    deflate = zlib
DAMAGE = (zlib.error, deflate.error)

try:
    import zstandard

    ZSTD_IMPORT_ERROR = None
    DAMAGE += (zstandard.ZstdError,)
except ImportError:
    ZSTD_IMPORT_ERROR = traceback.format_exc()

SUFFIXES = {"gzip": ".tar.gz", "zstd": ".tar.zst", "none": ".tar"}
BLOCK = 1 << 20
PIECE = 256 << 10

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# No name, no time, "fastest" (RFC 1952, 2.3.1).
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
RAW_DEFLATE = -15
STORED_MAX = 65535
LAST_BLOCK = b"\x01\x00\x00\xff\xff"
SAMPLE = 32 << 10
WORTHWHILE = 0.97
LEVEL = 1
ZSTD_PIECE = 1 << 10


def encoder(codec):
    """Return the encoder of a codec: ``encode(block)`` and ``finish()``, both of which return pieces of bytes.

    In pieces, so that a block which is stored need not be copied.
    """
    if codec not in SUFFIXES:
        raise ArchiveError("There is no codec %s." % codec, "Choose one of %s." % ", ".join(sorted(SUFFIXES)))
    return {"gzip": GzipEncoder, "zstd": ZstdEncoder, "none": PlainEncoder}[codec]()


class GzipEncoder:
    """One gzip member in which each block is either compressed by itself or stored."""

    def __init__(self):
        self._start = GZIP_HEADER
        self._crc = 0
        self._size = 0

    def encode(self, block):
        """Return a block's share of the file."""
        self._crc = deflate.crc32(block, self._crc)
        self._size += len(block)
        start, self._start = self._start, b""
        return [start] + (_compressed(block) if _shrinks(block) else _stored(block))

    def finish(self):
        """Return the end of the file: the last deflate block, checksum and size."""
        return [self._start, LAST_BLOCK, struct.pack("<LL", self._crc, self._size & 0xFFFFFFFF)]


class ZstdEncoder:
    """One zstd frame with a checksum."""

    def __init__(self):
        _require_zstd()
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, threads=1, write_checksum=True).compressobj()

    def encode(self, block):
        """Return what is ready so far."""
        return [self._compressor.compress(block)]

    def finish(self):
        """Return the rest of the frame."""
        return [self._compressor.flush()]


class PlainEncoder:
    """The bytes as they are."""

    def encode(self, block):
        """Return the block."""
        return [block]

    def finish(self):
        """Return nothing: there is nothing to end."""
        return []


def read_archive(path):
    """Yield an archive's tar stream in pieces, whatever its codec, which the first bytes tell.

    Damage that the codec notices raises ``ArchiveError``, and so does a file that was cut.
    """
    try:
        with open(path, "rb") as raw:
            magic = raw.read(len(ZSTD_MAGIC))
            raw.seek(0)
            if magic == ZSTD_MAGIC:
                pieces = zstd_decompressed(_read_blocks(raw))
            elif magic.startswith(GZIP_MAGIC):
                pieces = _read_blocks(igzip.open(raw, "rb"))
            else:
                pieces = _read_blocks(raw)
            yield from pieces
    except (EOFError, OSError) + DAMAGE as error:
        raise ArchiveError("%s can't be read to its end: %s." % (path, error), "Use another backup.")


def inflated(blocks):
    """Yield what one zlib stream (RFC 1950) holds, in pieces of at most ``PIECE`` bytes or little more."""
    stream = deflate.decompressobj()
    for packed in _sliced(blocks, PIECE):
        while packed:
            yield stream.decompress(packed, PIECE)
            packed = stream.unconsumed_tail
    yield stream.flush()
    if not stream.eof:
        raise EOFError("the zlib stream has no end")


def zstd_decompressed(blocks):
    """Yield what one zstd frame holds; one piece has no limit but the format's: 29 MiB a KiB of the frame."""
    _require_zstd()
    # The stream reader of this library takes a frame that was cut for one that ended, so the
    # frame's state is asked.
    frame = zstandard.ZstdDecompressor().decompressobj()
    for packed in _sliced(blocks, ZSTD_PIECE):
        if not frame.eof:
            yield frame.decompress(packed)
    if not frame.eof:
        raise EOFError("the zstd frame has no end")


class StagedFile:
    """A file that is whole or not there: written as ``dest.partial``, renamed when it is complete.

    A context manager around :meth:`write` and :meth:`publish`. Left before :meth:`publish`,
    the partial file goes and an older ``dest`` stays as it was.
    """

    def __init__(self, dest, codec):
        self.dest = dest
        self.bytes_in = 0
        self.sha256 = None
        self._codec = codec
        self._partial = dest + ".partial"
        self._waiting = bytearray()
        self._encoder = None
        self._file = None
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        self._encoder = encoder(self._codec)
        with _writable(self._partial):
            self._file = self._stack.enter_context(DirectFile(_open_exclusively(self._partial)))
        self._stack.callback(self._give_up)
        return self

    def __exit__(self, *unused):
        self._stack.close()

    @property
    def bytes_out(self):
        """The file's size."""
        return self._file.bytes

    def write(self, data):
        """Take bytes in pieces of any size; encode them in blocks of at least ``BLOCK``."""
        self.bytes_in += len(data)
        if self._waiting or len(data) < BLOCK:
            self._waiting += data
            if len(self._waiting) < BLOCK:
                return
            data, self._waiting = bytes(self._waiting), bytearray()
        self._put(self._encoder.encode(data))

    def publish(self):
        """End the file, make it durable and give it its name."""
        if self._waiting:
            self._put(self._encoder.encode(bytes(self._waiting)))
        self._put(self._encoder.finish())
        with _writable(self._partial):
            self._file.finish()
            os.rename(self._partial, self.dest)
            sync_folder(os.path.dirname(self.dest) or ".")
        self.sha256 = self._file.sha256

    def _give_up(self):
        if self.sha256 is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._partial)

    def _put(self, pieces):
        with _writable(self._partial):
            self._file.put(pieces)


def _shrinks(block):
    sample = block[:SAMPLE]
    return len(deflate.compress(sample, LEVEL)) < len(sample) * WORTHWHILE


def _compressed(block):
    stream = deflate.compressobj(LEVEL, zlib.DEFLATED, RAW_DEFLATE)
    # A full flush ends on a whole byte and without a last block, so that another may follow.
    return [stream.compress(block), stream.flush(zlib.Z_FULL_FLUSH)]


def _stored(block):
    view = memoryview(block)
    pieces = []
    for start in range(0, len(block), STORED_MAX):
        piece = view[start : start + STORED_MAX]
        pieces += (struct.pack("<BHH", 0, len(piece), len(piece) ^ 0xFFFF), piece)
    return pieces


def _read_blocks(stream):
    return iter(lambda: stream.read(BLOCK), b"")


def _sliced(blocks, size):
    for block in blocks:
        for start in range(0, len(block), size):
            yield block[start : start + size]


def _require_zstd():
    if ZSTD_IMPORT_ERROR:
        raise ArchiveError(
            missing_required_lib("zstandard"),
            "Debian and Ubuntu have it as the package python3-zstandard; the codec gzip needs nothing.",
            exception=ZSTD_IMPORT_ERROR,
        )


@contextlib.contextmanager
def _writable(path):
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(
                "No space left while writing %s." % path, "Make room in %s." % (os.path.dirname(path) or "."), path=path
            )
        raise ArchiveError(
            "Could not write %s: %s." % (path, error.strerror or error), "Is its folder there and writable?", path=path
        )


def _open_exclusively(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between our open and our lock another process may have renamed or removed the file.
        if not os.path.samestat(os.fstat(fd), os.lstat(path)):
            raise BlockingIOError(errno.EAGAIN, "another process was writing it just now")
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
    except BlockingIOError:
        os.close(fd)
        raise ArchiveError("Another process writes %s." % path, "Wait for it to end.", path=path)
    except BaseException:
        os.close(fd)
        raise
    return fd
