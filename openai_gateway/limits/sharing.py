"""Shares one upstream's limiter, and its calls in flight, between the workers of this host, by a file in memory.

The strategy. A file for each upstream, key and model is mapped into each worker, and locked (flock) for each decision
of a few microseconds. It holds what the limiter has learnt, and a table of workers: pid, when that process started,
calls in flight. The sum over the table is what runs on this host; a worker that was killed is found by its pid and
taken out of the table within a quarter of a second, and its charges stay, for they are true. What is learnt is written
into the half that is not in use, which then becomes the one in use: a worker killed in the midst of it leaves the other
half whole. Times are of the monotonic clock, the same for all processes of a host until it boots: a file of before is
void.

flock, not lockf: that is lost when any descriptor of the file is closed in the process. The descriptor is opened after
the fork, for a lock belongs to the open file, which a forked process would share.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import stat
import struct
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from openai_gateway.processes import start_of

_MAGIC: Final = b"gwlim-1\0"
_BOOT_AT: Final = 8
_RUNNING_AT: Final = 52
_HALF_AT: Final = 60
_IN_USE_AT: Final = 61
_TABLE_AT: Final = 64
_WORKERS: Final = 128
# Start, pid, calls in flight; when the rollout of the first call that waits began, and when that was said.
_WORKER = struct.Struct("<QIIdd")
_COUNT_AT: Final = 12
_HEAD_AT: Final = 16
_COUNT = struct.Struct("<I")
_HEAD = struct.Struct("<dd")
_RUNNING = struct.Struct("<I")
_STATE_AT: Final = _TABLE_AT + _WORKERS * _WORKER.size
_STATE_BYTES: Final = 16 * 1024
_SIZE: Final = _STATE_AT + 2 * _STATE_BYTES
_SEQUENCE_AND_LENGTH = struct.Struct("<QI")
_LOOKED_EVERY_S: Final = 0.2
# A worker that said so long ago that one of its calls waits may be busy, or not wait any more.
_HEAD_HOLDS_S: Final = 0.05
_KEPT_S: Final = 7 * 86400.0

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


class SharedLimits:
    """The file of one upstream; `begin` and `end` enclose each look at it or change. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._looked_at = 0.0
        self._seen = 0
        self._half = 0
        self._row = -1
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if os.fstat(self._fd).st_size != _SIZE:
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, _SIZE)
            os.utime(self._fd)
            self._map = mmap.mmap(self._fd, _SIZE)
            boot = _MAGIC + _read_boot_id()
            if self._map[: len(boot)] != boot:
                self._map[:] = bytes(_SIZE)
                self._map[: len(boot)] = boot
            self._drop_dead()
            if not any(self._worker(row)[0] for row in range(_WORKERS)):
                # What nobody has kept up to date may be true no more.
                self._map[_STATE_AT:] = bytes(_SIZE - _STATE_AT)
                self._map[_IN_USE_AT] = 0
            self._row = next((row for row in range(_WORKERS) if self._worker(row)[0] == 0), -1)
            if self._row < 0:
                raise OSError(f"more than {_WORKERS} workers share {path}")
            _WORKER.pack_into(self._map, self._to_at(self._row), start_of(os.getpid()), os.getpid(), 0, 0.0, 0.0)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    @property
    def is_in_use(self) -> bool:
        """Tell, without a lock, whether any worker has met a limit."""
        return self._map[_IN_USE_AT] != 0

    def join(self, running: int) -> None:
        """Take part from now on; `running` are in flight in this worker."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._map[_IN_USE_AT] = 1
        self.count(running)
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def begin(self) -> list[list[Any]] | None:
        """Lock the file; return what was learnt by others since the last look, None if nothing was."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._half = self._map[_HALF_AT] & 1
        at = _STATE_AT + self._half * _STATE_BYTES
        sequence, length = _SEQUENCE_AND_LENGTH.unpack_from(self._map, at)
        if sequence == self._seen or not length:
            return None
        self._seen = sequence
        begin = at + _SEQUENCE_AND_LENGTH.size
        try:
            state: list[list[Any]] = _decoder.decode(self._map[begin : begin + length])
        except msgspec.MsgspecError:
            # Damaged: as if nothing were known, until the next who learns something writes it anew.
            return None
        return state

    def begin_counting(self) -> None:
        """Lock the file for `count` only."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def end(self, state: list[list[Any]] | None) -> None:
        """Write what is known now, if it is to be written, and unlock."""
        try:
            if state is not None:
                text = _encoder.encode(state)
                half = 1 - self._half
                at = _STATE_AT + half * _STATE_BYTES
                self._seen += 1
                _SEQUENCE_AND_LENGTH.pack_into(self._map, at, self._seen, len(text))
                begin = at + _SEQUENCE_AND_LENGTH.size
                self._map[begin : begin + len(text)] = text
                self._map[_HALF_AT] = half
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def running(self, most: float) -> int:
        """Return how many calls are in flight on this host; if that is `most`, see first whether all workers live."""
        running: int = _RUNNING.unpack_from(self._map, _RUNNING_AT)[0]
        if running >= most:
            now = time.monotonic()
            if now - self._looked_at >= _LOOKED_EVERY_S:
                self._looked_at = now
                running = self._drop_dead()
        return running

    def count(self, calls: int) -> None:
        """Count calls that begin, or end if below 0, in this worker."""
        at = self._to_at(self._row) + _COUNT_AT
        _COUNT.pack_into(self._map, at, _COUNT.unpack_from(self._map, at)[0] + calls)
        # A worker killed between the two lines is found dead, and the sum made anew.
        running = _RUNNING.unpack_from(self._map, _RUNNING_AT)[0]
        _RUNNING.pack_into(self._map, _RUNNING_AT, max(0, running + calls))

    def has_elder(self, rollout: float, now: float) -> bool:
        """Tell whether a call of an older rollout waits in another worker."""
        for row in range(_WORKERS):
            _, pid, _, head, said_at = _WORKER.unpack_from(self._map, self._to_at(row))
            if not pid:
                return False
            if row != self._row and head < rollout and now - said_at < _HEAD_HOLDS_S:
                return True
        return False

    def say_head(self, rollout: float, now: float) -> None:
        """Say of which rollout the first call is that waits here."""
        _HEAD.pack_into(self._map, self._to_at(self._row) + _HEAD_AT, rollout, now)

    def _to_at(self, row: int) -> int:
        return _TABLE_AT + row * _WORKER.size

    def _worker(self, row: int) -> tuple[int, int, int]:
        start, pid, count, _, _ = _WORKER.unpack_from(self._map, self._to_at(row))
        return start, pid, count

    def _drop_dead(self) -> int:
        """Take workers out that have ended; return how many calls those that live have in flight."""
        running = 0
        for row in range(_WORKERS):
            start, pid, count = self._worker(row)
            if pid and start_of(pid) != start:
                _WORKER.pack_into(self._map, self._to_at(row), 0, 0, 0, 0.0, 0.0)
            else:
                running += count
        _RUNNING.pack_into(self._map, _RUNNING_AT, running)
        return running


def open_shared_limits(base_url: str, key: str, model: str) -> SharedLimits:
    """Return the file of an upstream, made if need be. Raises OSError."""
    folder = Path(tempfile.gettempdir(), f"openai_gateway_limits.{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _KEPT_S:
                path.unlink()
    # The key itself is not to be told from the name.
    name = hashlib.blake2b("\0".join((base_url, model)).encode(), key=key.encode()[:64], digest_size=16).hexdigest()
    return SharedLimits(folder / name)


def _read_boot_id() -> bytes:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b"unknown"
