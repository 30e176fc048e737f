"""The file in memory in which the workers of this host share one upstream's limits: its layout, its lock.

A table of workers, two halves for what was learnt, of which one is in use, and what this host knows of other hosts. See
also: sharing (what a worker does with it), host_exchange (what the one worker does that speaks for the host).
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from pathlib import Path
from typing import Final

import msgspec

from openai_gateway.limits.state import State
from openai_gateway.processes import start_of

# A layout has a file of its own: during an upgrade, processes of two versions must not read each other's.
LAYOUT: Final = 5
_MAGIC: Final = b"gwlim-%d\0" % LAYOUT
# How many rows of the table were ever taken: nobody is below. In 32-bit words, as the counts are.
_ROWS_WORD: Final = 14
_HALF_AT: Final = 60
IN_USE_AT: Final = 61
_HOST_AT: Final = 64
_HOST_BYTES: Final = 16
# Until when, how many calls, and one of the modes below.
LEASE_AT: Final = 80
LEASE = struct.Struct("<dIB")
_NEVER, _LEASED, KEPT = 0, 1, 2
# Whether Redis was reached the last time (1: yes, 2: no), and how many hosts were in touch then.
_LINK_AT: Final = 96
_LINK = struct.Struct("<BI")
WORKERS: Final = 128
# The calls that each worker has in flight. One word each, written in one go, so that a worker needs no lock to take off
# what has ended; it adds with the lock held, for others decide by the sum.
COUNTS_WORD: Final = 32
TABLE_AT: Final = 4 * (COUNTS_WORD + WORKERS)
# Start, pid; when the rollout of the first call that waits began, and when that was said; how many wait for a slot, and
# for a rate.
WORKER = struct.Struct("<QIddII")
HEAD_AT: Final = 12
HEAD = struct.Struct("<ddII")
STATE_AT: Final = TABLE_AT + WORKERS * WORKER.size
_STATE_BYTES: Final = 16 * 1024
_NOTES_AT: Final = STATE_AT + 2 * _STATE_BYTES
_NOTES_BYTES: Final = 32 * 1024
_LENGTH = struct.Struct("<I")
SIZE: Final = _NOTES_AT + _NOTES_BYTES
_SEQUENCE_AND_LENGTH = struct.Struct("<QI")
# A worker that said so long ago that its calls wait may be busy, or they don't wait any more.
_WAITING_HOLDS_S: Final = 0.3

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)


class Demand(msgspec.Struct, frozen=True):
    """What this host's workers have in flight, and have waiting: for a slot, and for a rate."""

    running: int
    for_slot: int
    for_rate: int


class Lease(msgspec.Struct, frozen=True):
    """How many calls this host may have in flight, until when (monotonic), and whether Redis was ever reached."""

    permits: int
    until: float
    is_known: bool


class LimitsFile:
    """The file of one upstream; `begin` and `end` enclose each look at what was learnt. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._seen = 0
        self._half = 0
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            if os.fstat(self._fd).st_size != SIZE:
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, SIZE)
            os.utime(self._fd)
            self._map = mmap.mmap(self._fd, SIZE)
            self._words = memoryview(self._map)[:TABLE_AT].cast("I")
            boot = _MAGIC + _read_boot_id()
            if self._map[: len(boot)] != boot:
                self._map[:] = bytes(SIZE)
                self._map[: len(boot)] = boot
                self._map[_HOST_AT : _HOST_AT + _HOST_BYTES] = os.urandom(_HOST_BYTES)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    @property
    def host(self) -> str:
        """The name of this host among those that share the upstream; it outlives the gateway."""
        return self._map[_HOST_AT : _HOST_AT + _HOST_BYTES].hex()

    @property
    def is_in_use(self) -> bool:
        """Tell, without a lock, whether any worker has met a limit."""
        return self._map[IN_USE_AT] != 0

    def put_in_use(self) -> None:
        """Have all workers take part from now on; the file is locked."""
        self._map[IN_USE_AT] = 1

    def begin(self) -> State | None:
        """Lock the file; return what was learnt by others since the last look, None if nothing was."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._half = self._map[_HALF_AT] & 1
        at = STATE_AT + self._half * _STATE_BYTES
        sequence, length = _SEQUENCE_AND_LENGTH.unpack_from(self._map, at)
        if sequence == self._seen or not length:
            return None
        self._seen = sequence
        begin = at + _SEQUENCE_AND_LENGTH.size
        try:
            return _decoder.decode(self._map[begin : begin + length])
        except msgspec.MsgspecError:
            # Damaged: as if nothing were known, until the next who learns something writes it anew.
            return None

    def begin_counting(self) -> None:
        """Lock the file for counts, lease or notes only."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def end(self, state: State | None) -> None:
        """Write what is known now, if it is to be written, and unlock."""
        try:
            if state is not None:
                text = _encoder.encode(state)
                half = 1 - self._half
                at = STATE_AT + half * _STATE_BYTES
                self._seen += 1
                _SEQUENCE_AND_LENGTH.pack_into(self._map, at, self._seen, len(text))
                begin = at + _SEQUENCE_AND_LENGTH.size
                self._map[begin : begin + len(text)] = text
                self._map[_HALF_AT] = half
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def demand(self, now: float) -> Demand:
        """Return what is in flight and waits on this host; workers that have ended are taken out first."""
        running, for_slot, for_rate = self._drop_dead(), 0, 0
        for row in range(self._rows):
            _, pid, _, said_at, slot, rate = WORKER.unpack_from(self._map, self._find_offset(row))
            if pid and now - said_at < _WAITING_HOLDS_S:
                for_slot, for_rate = for_slot + slot, for_rate + rate
        return Demand(running, for_slot, for_rate)

    @property
    def lease(self) -> Lease:
        """What this host may have in flight."""
        until, permits, mode = LEASE.unpack_from(self._map, LEASE_AT)
        return Lease(permits, math.inf if mode == KEPT else until, mode != _NEVER)

    def set_lease(self, permits: int, until: float) -> None:
        """Bound what this host may have in flight, until then; without end: as long as Redis is away."""
        mode = KEPT if until == math.inf else _LEASED
        LEASE.pack_into(self._map, LEASE_AT, 0.0 if mode == KEPT else until, permits, mode)

    @property
    def link(self) -> tuple[bool, int] | None:
        """Whether Redis was reached the last time, and how many hosts share the limits; None before the first time."""
        link, hosts = _LINK.unpack_from(self._map, _LINK_AT)
        return (link == 1, hosts) if link else None

    def set_link(self, *, is_up: bool, hosts: int) -> None:
        """Note whether Redis was reached, and how many hosts share the limits."""
        _LINK.pack_into(self._map, _LINK_AT, 1 if is_up else 2, hosts)

    def read_notes(self) -> bytes:
        """Return what the worker that speaks for this host noted, for the one after it."""
        (length,) = _LENGTH.unpack_from(self._map, _NOTES_AT)
        return self._map[_NOTES_AT + _LENGTH.size : _NOTES_AT + _LENGTH.size + length]

    def write_notes(self, notes: bytes) -> None:
        """Note something for the worker that will speak for this host next; what doesn't fit is left out whole."""
        notes = notes if len(notes) <= _NOTES_BYTES - _LENGTH.size else b""
        _LENGTH.pack_into(self._map, _NOTES_AT, len(notes))
        self._map[_NOTES_AT + _LENGTH.size : _NOTES_AT + _LENGTH.size + len(notes)] = notes

    @property
    def _rows(self) -> int:
        return self._words[_ROWS_WORD]

    def _take_row(self, start: int, pid: int) -> int:
        """Return the row that is this process's from now on; below 0 if there is none."""
        row = next((row for row in range(WORKERS) if self._worker(row)[1] == 0), -1)
        if row >= 0:
            WORKER.pack_into(self._map, self._find_offset(row), start, pid, 0.0, 0.0, 0, 0)
            self._words[_ROWS_WORD] = max(self._rows, row + 1)
        return row

    def _find_offset(self, row: int) -> int:
        return TABLE_AT + row * WORKER.size

    def _worker(self, row: int) -> tuple[int, int]:
        start, pid, *_ = WORKER.unpack_from(self._map, self._find_offset(row))
        return start, pid

    @property
    def _running(self) -> int:
        return sum(self._words[COUNTS_WORD : COUNTS_WORD + self._words[_ROWS_WORD]])

    def _drop_dead(self) -> int:
        """Take workers out that have ended; return how many calls those that live have in flight."""
        for row in range(self._rows):
            start, pid = self._worker(row)
            if pid and _has_ended(pid, start):
                WORKER.pack_into(self._map, self._find_offset(row), 0, 0, 0.0, 0.0, 0, 0)
                self._words[COUNTS_WORD + row] = 0
        return self._running


def has_workers(path: Path) -> bool:
    """Tell whether a worker that lives has a row in a file, if that has this layout. Raises OSError."""
    text = path.read_bytes()
    if len(text) != SIZE or not text.startswith(_MAGIC):
        return False
    workers = (WORKER.unpack_from(text, TABLE_AT + row * WORKER.size) for row in range(WORKERS))
    return any(pid and not _has_ended(pid, start) for start, pid, *_ in workers)


def _has_ended(pid: int, start: int) -> bool:
    try:
        return start_of(pid) != start
    except OSError:
        # Without a free descriptor nobody can tell: who lives must not lose its row.
        return False


def _read_boot_id() -> bytes:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b"unknown"
