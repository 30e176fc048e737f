"""Segments: files of kept answers that only grow, one writer each; a record is whole or isn't there.

A record is a fixed header, told as whole by its own checksum, and a payload with another. Headers hold all that the
index needs, so that a start reads 80 bytes a record; a payload is checked when it is served. A process that dies while
it writes leaves a torn last record, which is not read; nobody ever writes behind it, for a writer begins a file of its
own. A writer holds a lock on its file (flock), which tells `prune` that the file may still grow.

See also: kept (what a payload holds), runs (which answer goes to whom).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

SUFFIX: Final = ".segment"
# magic, payload's length and CRC-32, Unix time, key, asker, id; then the CRC-32 of these
_HEADER: Final = struct.Struct("<4sIId32s16s8s")
_CHECK: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CHECK.size
_MAGIC: Final = b"GWR1"
_ROLL_BYTES: Final = 64 * 1024 * 1024


class RecordHeader(msgspec.Struct, frozen=True):
    """A record's header: whose answer it is (`asker` all zeros: nobody in particular), and where its payload lies."""

    key: bytes
    asker: bytes
    id: bytes
    time: float
    payload_at: int
    payload_bytes: int
    crc: int


def scan(path: Path, start: int) -> Iterator[tuple[int, RecordHeader]]:
    """Give offset and header of each whole record from `start` on; ends at the first that isn't. Raises OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size - start < HEADER_BYTES:
            return
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
            at = start
            while (header := _read_header(data, at, size)) is not None:
                yield at, header
                at = header.payload_at + header.payload_bytes


def _read_header(data: mmap.mmap | bytes, at: int, size: int | None) -> RecordHeader | None:
    """Return the header at an offset, None if it isn't whole, or its payload goes beyond `size` (None: not asked)."""
    if len(data) - at < HEADER_BYTES:
        return None
    magic, length, crc, when, key, asker, answer_id = _HEADER.unpack_from(data, at)
    if magic != _MAGIC or _CHECK.unpack_from(data, at + _HEADER.size)[0] != zlib.crc32(data[at : at + _HEADER.size]):
        return None
    payload_at = at + HEADER_BYTES
    return (
        RecordHeader(key, asker, answer_id, when, payload_at, length, crc)
        if size is None or payload_at + length <= size
        else None
    )


def read_header(fd: int, at: int) -> RecordHeader | None:
    """Return the header at an offset of an open segment; None if there is none. Raises OSError."""
    found = _read_header(os.pread(fd, HEADER_BYTES, at), 0, None)
    return None if found is None else msgspec.structs.replace(found, payload_at=at + HEADER_BYTES)


def read_payload(fd: int, header: RecordHeader) -> bytes | None:
    """Return a record's payload; None if it isn't what was written. Raises OSError."""
    payload = os.pread(fd, header.payload_bytes, header.payload_at)
    return payload if len(payload) == header.payload_bytes and zlib.crc32(payload) == header.crc else None


def make_answer_id() -> bytes:
    """Return an id for a new answer."""
    return secrets.token_bytes(8)


class SegmentWriter:
    """Appends records to a segment of its own, made at the first one; begins another when that has grown large."""

    def __init__(self, folder: Path, roll_bytes: int = _ROLL_BYTES) -> None:
        self._folder = folder
        self._roll_bytes = roll_bytes
        self._fd: int | None = None
        self._size = 0
        self.path: Path | None = None

    def append(
        self, key: bytes, asker: bytes, payload: bytes, when: float | None = None, answer_id: bytes | None = None
    ) -> bytes:
        """Append a record and return its id; `when` None is now. Raises OSError, and then has written nothing."""
        fd = self._open()
        answer_id = answer_id or make_answer_id()
        when = time.time() if when is None else when
        fields = (_MAGIC, len(payload), zlib.crc32(payload), when, key, asker, answer_id)
        head = _HEADER.pack(*fields)
        record = head + _CHECK.pack(zlib.crc32(head)) + payload
        try:
            written = os.write(fd, record)
            if written < len(record):
                raise OSError("the disk is full")
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self._size)
                os.lseek(fd, self._size, os.SEEK_SET)
            raise
        self._size += len(record)
        return answer_id

    def _open(self) -> int:
        if self._fd is not None and (self._size >= self._roll_bytes or not self._is_there()):
            self.close()
        if self._fd is None:
            # Names sort by time, so that the oldest goes first when room is needed.
            self.path = self._folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}{SUFFIX}"
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = 0
        return self._fd

    def _is_there(self) -> bool:
        return self.path is not None and self.path.exists()

    def close(self) -> None:
        """End the segment; the next record begins another."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def find_segments(folder: Path) -> list[Path]:
    """Return a folder's segments, the oldest first. Raises OSError."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX))


def prune(folder: Path, most_bytes: int | None, most_age_s: float | None) -> list[Path]:
    """Remove the oldest segments beyond a size, and those whose last record is too old; return them.

    One that somebody may still write to is left. Raises OSError.
    """
    segments = [(path, path.stat()) for path in find_segments(folder)]
    total = sum(info.st_size for _, info in segments)
    removed = []
    for path, info in segments:
        is_old = most_age_s is not None and info.st_mtime < time.time() - most_age_s
        is_beyond = most_bytes is not None and total > most_bytes
        if (is_old or is_beyond) and _remove_unless_written(path):
            total -= info.st_size
            removed.append(path)
    return removed


def _remove_unless_written(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
