"""The file in memory in which the workers of this host share one upstream's limits: its layout, its lock.

A table of workers, what was learnt, and what this host knows of other hosts. What was learnt is in two parts: what each
call changes, some numbers, and all of it (`learnt`). Each of the two stands twice, and is written where it is not in
use. The numbers say which of the others they go with; one byte says which numbers are in use, and is written last. So
a worker that is killed in the midst of it leaves what was.

See also: sharing (what a worker does with it), host_exchange (what the one worker does that speaks for the host).
"""

from __future__ import annotations

import math
import os
import struct
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import Final

import msgspec

from openai_gateway.limits.state import VALUES_FORMAT, Known, State
from openai_gateway.mapped_file import map_file
from openai_gateway.processes import start_of

# A layout has a file of its own: during an upgrade, processes of two versions must not read each other's.
LAYOUT: Final = 14
_MAGIC: Final = b"gwlim-%d\0" % LAYOUT
# How many rows of the table were ever taken: nobody is below. In 32-bit words, as the counts are.
ROWS_WORD: Final = 14
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
# When a worker last said that calls wait there, and when a call was last refused.
_SAID_AT: Final = 104
_REFUSED_AT: Final = 112
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
# Two, each after the number of this writing, and that of the state which they go with.
VALUES_AT: Final = TABLE_AT + WORKERS * WORKER.size
_VALUES = struct.Struct(f"<QQ{VALUES_FORMAT}")
_VALUES_BYTES: Final = _VALUES.size
# Two, each after its length; that of an even number is the first.
STATE_AT: Final = VALUES_AT + 2 * _VALUES_BYTES
_STATE_BYTES: Final = 16 * 1024
_NOTES_AT: Final = STATE_AT + 2 * _STATE_BYTES
_NOTES_BYTES: Final = 32 * 1024
_LENGTH = struct.Struct("<I")
SIZE: Final = _NOTES_AT + _NOTES_BYTES
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
        # The numbers of the writing and of the state that are known here.
        self._written = self._seen = 0
        self._half = 0
        # Whether what stands there is of no use, so that all that is known has to be written.
        self.needs_state = True
        flock(self._fd, LOCK_EX)
        try:
            os.utime(self._fd)
            self._map = map_file(self._fd, SIZE)
            self._words = memoryview(self._map)[:TABLE_AT].cast("I")
            self._said_at = memoryview(self._map)[_SAID_AT : _SAID_AT + 8].cast("d")
            self._refused_at = memoryview(self._map)[_REFUSED_AT : _REFUSED_AT + 8].cast("d")
            boot = _MAGIC + _read_boot_id()
            if self._map[: len(boot)] != boot:
                self._map[:] = bytes(SIZE)
                self._map[: len(boot)] = boot
                self._map[_HOST_AT : _HOST_AT + _HOST_BYTES] = os.urandom(_HOST_BYTES)
        finally:
            flock(self._fd, LOCK_UN)

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

    def begin(self) -> Known | None:
        """Lock the file; return what was learnt by others since the last look, None if nothing was."""
        flock(self._fd, LOCK_EX)
        self._half = half = self._map[_HALF_AT] & 1
        found = _VALUES.unpack_from(self._map, VALUES_AT + half * _VALUES_BYTES)
        if found[0] == self._written:
            return None
        state, self._written = None, found[0]
        if found[1] != self._seen:
            self._seen = found[1]
            state = self._read_state()
            self.needs_state = state is None
        return None if self.needs_state else (found[2:], state)

    def _read_state(self) -> State | None:
        at = STATE_AT + (self._seen & 1) * _STATE_BYTES
        (length,) = _LENGTH.unpack_from(self._map, at)
        begin = at + _LENGTH.size
        try:
            return _decoder.decode(self._map[begin : begin + length])
        except msgspec.MsgspecError:
            # Damaged: as if nothing were known, until the next who learns something writes it anew.
            return None

    def begin_counting(self) -> None:
        """Lock the file for counts, lease or notes only."""
        flock(self._fd, LOCK_EX)

    def end(self, known: Known | None) -> None:
        """Write what is known now, if it is to be written, and unlock."""
        try:
            if known is not None:
                values, state = known
                if state is not None:
                    self._write_state(state)
                self._written = written = self._written + 1
                half = 1 - self._half
                _VALUES.pack_into(self._map, VALUES_AT + half * _VALUES_BYTES, written, self._seen, *values)
                self._map[_HALF_AT] = half
        finally:
            flock(self._fd, LOCK_UN)

    def _write_state(self, state: State) -> None:
        text = _encoder.encode(state)
        self._seen += 1
        at = STATE_AT + (self._seen & 1) * _STATE_BYTES
        _LENGTH.pack_into(self._map, at, len(text))
        begin = at + _LENGTH.size
        self._map[begin : begin + len(text)] = text
        self.needs_state = False

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

    @property
    def refused_at(self) -> float:
        """When a call was last refused on this host, without a lock."""
        return self._refused_at[0]

    def say_refused(self, now: float) -> None:
        """Note that a call was refused, for whoever tells other hosts."""
        self._refused_at[0] = now

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
        return self._words[ROWS_WORD]

    def _take_row(self, start: int, pid: int) -> int:
        """Return the row that is this process's from now on; below 0 if there is none."""
        row = next((row for row in range(WORKERS) if self._worker(row)[1] == 0), -1)
        if row >= 0:
            self._words[COUNTS_WORD + row] = 0
            WORKER.pack_into(self._map, self._find_offset(row), start, pid, 0.0, 0.0, 0, 0)
            self._words[ROWS_WORD] = max(self._rows, row + 1)
        return row

    def _find_offset(self, row: int) -> int:
        return TABLE_AT + row * WORKER.size

    def _worker(self, row: int) -> tuple[int, int]:
        start, pid, *_ = WORKER.unpack_from(self._map, self._find_offset(row))
        return start, pid

    def count_all(self) -> int:
        """Return how many calls are in flight on this host; those of workers that were killed may be among them."""
        return sum(self._words[COUNTS_WORD : COUNTS_WORD + self._words[ROWS_WORD]])

    def _drop_dead(self) -> int:
        """Take workers out that have ended; return how many calls those that live have in flight."""
        for row in range(self._rows):
            start, pid = self._worker(row)
            if pid and _has_ended(pid, start):
                # First its calls: whoever is killed in between must not leave them to a row that is nobody's.
                self._words[COUNTS_WORD + row] = 0
                WORKER.pack_into(self._map, self._find_offset(row), 0, 0, 0.0, 0.0, 0, 0)
        return self.count_all()


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
