"""What clients have spent and what their calls in flight may still cost: one truth for all workers, in a mapped file.

Strategy: one table in a file that every worker maps. Each touch of it is done under an exclusive flock, so that
"is there room?" and "then it is taken" are one step. A row belongs to a client or a run, for good: workers remember
where it is. In a row, what is spent is counted for the day, the month and in all, so that a budget's period may be
changed at any time; what is reserved and in flight stands in one column for each worker. A worker owns its column by
an open file description's lock on a byte beyond the file's end: the kernel gives that up when the worker ends, however
it ends, and whoever sees it free clears the column. So a reservation never outlives its worker.

The file stays: a restart finds in it what was spent. With several hosts, a row also has what the others said of theirs,
and counts as the sum. See also: spend_history (the usage log's word on the same), spend_exchange (the other hosts).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from openai_gateway.accounting.spend import Full, Limit, RowSums, Spend, hash_name, to_periods
from openai_gateway.mapped_file import map_file

_MAGIC: Final = b"OGSPEND2"
_WORKERS: Final = 128
_MOST_ROWS: Final = 4096
# The magic and the number of rows; the host's name; a byte for each worker's column: whether it may hold anything.
_HEADER: Final = struct.Struct("=8sI")
_HOST_AT: Final = _HEADER.size
_HOST_BYTES: Final = 16
_COLUMNS_AT: Final = _HOST_AT + _HOST_BYTES
_ROWS_AT: Final = 192
# Key, whether it is a run's, last use; day and month that are counted in; spent in the day, the month, in all.
_HEAD: Final = struct.Struct("=16sIqiiqqq")
_RESERVED: Final = struct.Struct(f"={_WORKERS}q")
_IN_FLIGHT: Final = struct.Struct(f"={_WORKERS}i")
_RESERVED_AT: Final = _HEAD.size
_IN_FLIGHT_AT: Final = _RESERVED_AT + _RESERVED.size
# Of the other hosts: day and month, spent in the day, the month, in all; reserved, in flight.
_OTHERS: Final = struct.Struct("=iiqqqqi")
_OTHERS_AT: Final = _IN_FLIGHT_AT + _IN_FLIGHT.size
_ROW_BYTES: Final = _OTHERS_AT + _OTHERS.size
_SIZE: Final = _ROWS_AT + _MOST_ROWS * _ROW_BYTES
_LOCKS_AT: Final = 1 << 40
_RUN_IDLE_S: Final = 60.0
# Far beyond any budget, and sums of it still fit.
_MOST_NANO_USD: Final = 1 << 60


class SpendFile:
    """The table at `path`, or one of this process alone if that is None. Raises OSError if it can't be had."""

    def __init__(self, path: str | None) -> None:
        self._rows: dict[str, int] = {}
        self._lock = threading.Lock()
        self._fd, self.is_first, self._worker = -1, True, 0
        if path is None:
            self._map: mmap.mmap = mmap.mmap(-1, _SIZE)
            self._begin_anew()
            return
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._locked():
                self._map = map_file(self._fd, _SIZE)
                if _HEADER.unpack_from(self._map)[0] != _MAGIC:
                    self._map[:] = bytes(_SIZE)
                    self._begin_anew()
                self._worker = self._own_column()
                self._clear_dead()
                self.is_first = not any(self._is_alive(worker) for worker in range(_WORKERS) if worker != self._worker)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Give up the column, and with it what is reserved in it."""
        self._map.close()
        if self._fd >= 0:
            os.close(self._fd)

    def reserve(self, limits: Iterable[Limit], nano_usd: int, now: float) -> None:
        """Set aside what a call may cost in each limit's row, and count the call. Raises Full, having done nothing."""
        limits = tuple(limits)
        with self._locked():
            for limit in limits:
                full = self._find_full(limit, nano_usd, now)
                if full is not None and self._fd >= 0 and self._clear_dead():
                    full = self._find_full(limit, nano_usd, now)
                if full is not None:
                    raise full
            for limit in limits:
                self._add(self._find_row(limit.name, is_run=limit.is_run), nano_usd, 1)

    def settle(self, limits: Iterable[Limit], reserved: int, charge: int, reserved_at: float) -> None:
        """Put what a call did cost in the place of what was set aside for it when it came."""
        with self._locked():
            for limit in limits:
                row = self._find_row(limit.name, is_run=limit.is_run)
                self._add(row, -reserved, -1)
                self._charge(row, charge, reserved_at)

    def read(self, names: Iterable[str], now: float) -> dict[str, Spend]:
        """Return how the rows of these names stand; one that isn't there is left out."""
        with self._locked():
            if self._fd >= 0:
                self._clear_dead()
            found = ((name, self._seek(name)) for name in names)
            return {name: self._sum_up_spend(row, now) for name, row in found if row is not None}

    def raise_spent(self, name: str, spent: Mapping[str, int], now: float) -> int:
        """Make sure that a row has spent at least this much; return by how much it had spent more, in all."""
        with self._locked():
            row = self._find_row(name, is_run=False)
            more = self._sum_up_own(row, now).total - spent["total"]
            day, month = to_periods(now)
            self._raise(row, RowSums(day, month, spent["day"], spent["month"], spent["total"]), now)
            return max(more, 0)

    def _begin_anew(self) -> None:
        _HEADER.pack_into(self._map, 0, _MAGIC, 0)
        self._map[_HOST_AT : _HOST_AT + _HOST_BYTES] = os.urandom(_HOST_BYTES)

    @property
    def host(self) -> str:
        """The name of this file's host among those that share budgets."""
        return self._map[_HOST_AT : _HOST_AT + _HOST_BYTES].hex()

    def read_own(self, names: Iterable[str], now: float) -> dict[bytes, RowSums]:
        """Return what this host has spent, by the row's key: clients (`names` among them), and runs under way."""
        with self._locked():
            self._clear_dead()
            for name in names:
                self._find_row(name, is_run=False)
            rows = [row for row in self._all_rows() if self._is_under_way(row, now)]
            return {self._map[row : row + 16]: self._sum_up_own(row, now) for row in rows}

    def write_others(self, others: Mapping[bytes, RowSums], own: Mapping[bytes, RowSums], now: float) -> None:
        """Note what other hosts have spent, and at least which of it this one had; by rows' keys."""
        with self._locked():
            for row in self._all_rows():
                key = self._map[row : row + 16]
                if key in others:
                    _OTHERS.pack_into(self._map, row + _OTHERS_AT, *msgspec.structs.astuple(others[key]))
                if key in own:
                    self._raise(row, own[key], now)

    def _is_under_way(self, row: int, now: float) -> bool:
        _, is_run, used, *_ = _HEAD.unpack_from(self._map, row)
        return not is_run or used > now - _RUN_IDLE_S or any(_IN_FLIGHT.unpack_from(self._map, row + _IN_FLIGHT_AT))

    def _raise(self, row: int, least: RowSums, now: float) -> None:
        key, is_run, used, day, month, of_day, of_month, total = self._roll(row, now)
        of_day = max(of_day, least.of_day if least.day == day else 0)
        of_month = max(of_month, least.of_month if least.month == month else 0)
        _HEAD.pack_into(self._map, row, key, is_run, used, day, month, of_day, of_month, max(total, least.total))

    def _sum_up_own(self, row: int, now: float) -> RowSums:
        _, _, _, day, month, of_day, of_month, total = self._roll(row, now)
        reserved = sum(_RESERVED.unpack_from(self._map, row + _RESERVED_AT))
        in_flight = sum(_IN_FLIGHT.unpack_from(self._map, row + _IN_FLIGHT_AT))
        return RowSums(day, month, of_day, of_month, total, reserved, in_flight)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._fd < 0:
            yield
            return
        with self._lock:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _find_full(self, limit: Limit, nano_usd: int, now: float) -> Full | None:
        spend = self._sum_up_spend(self._find_row(limit.name, is_run=limit.is_run), now)
        if limit.most_in_flight is not None and spend.in_flight >= limit.most_in_flight:
            return Full(limit, spend, is_busy=True)
        if limit.nano_usd is not None and spend.spent[limit.per] + spend.reserved + nano_usd > limit.nano_usd:
            return Full(limit, spend, is_busy=False)
        return None

    def _add(self, row: int, nano_usd: int, calls: int) -> None:
        at, count_at = row + _RESERVED_AT + 8 * self._worker, row + _IN_FLIGHT_AT + 4 * self._worker
        (reserved,), (count,) = struct.unpack_from("=q", self._map, at), struct.unpack_from("=i", self._map, count_at)
        struct.pack_into("=q", self._map, at, min(max(reserved + nano_usd, 0), _MOST_NANO_USD))
        struct.pack_into("=i", self._map, count_at, max(count + calls, 0))

    def _charge(self, row: int, nano_usd: int, at: float) -> None:
        """Add to what is spent in the periods in which the call came; a period that is over is no longer counted."""
        key, is_run, used, day, month, of_day, of_month, total = self._roll(row, time.time())
        own_day, own_month = to_periods(at)
        of_day += nano_usd if own_day == day else 0
        of_month += nano_usd if own_month == month else 0
        sums = [min(each, _MOST_NANO_USD) for each in (of_day, of_month, total + nano_usd)]
        _HEAD.pack_into(self._map, row, key, is_run, used, day, month, *sums)

    def _roll(self, row: int, now: float) -> tuple[bytes, int, int, int, int, int, int, int]:
        """Return a row's head with the periods of now."""
        key, is_run, _, day, month, of_day, of_month, total = _HEAD.unpack_from(self._map, row)
        this_day, this_month = to_periods(now)
        # While a clock that was set back catches up, spending is counted in the period there is.
        if this_day > day:
            day, of_day = this_day, 0
        if this_month > month:
            month, of_month = this_month, 0
        return key, is_run, int(now), day, month, of_day, of_month, total

    def _sum_up_spend(self, row: int, now: float) -> Spend:
        own, others = self._sum_up_own(row, now), RowSums(*_OTHERS.unpack_from(self._map, row + _OTHERS_AT))
        spent = {
            "day": own.of_day + (others.of_day if others.day == own.day else 0),
            "month": own.of_month + (others.of_month if others.month == own.month else 0),
            "total": own.total + others.total,
        }
        return Spend(spent, own.reserved + others.reserved, own.in_flight + others.in_flight)

    def _seek(self, name: str) -> int | None:
        """Return where a name's row begins, None if it has none."""
        key = hash_name(name)
        row = self._rows.get(name)
        # A run's row may have become another's.
        if row is not None and self._map[row : row + 16] == key:
            return row
        for row in self._all_rows():
            if self._map[row : row + 16] == key:
                self._rows[name] = row
                return row
        return None

    def _find_row(self, name: str, *, is_run: bool) -> int:
        row = self._seek(name)
        if row is not None:
            return row
        count = _HEADER.unpack_from(self._map)[1]
        if count < _MOST_ROWS:
            row = _ROWS_AT + count * _ROW_BYTES
            _HEADER.pack_into(self._map, 0, _MAGIC, count + 1)
        else:
            row = self._oldest_run()
        self._map[row : row + _ROW_BYTES] = bytes(_ROW_BYTES)
        _HEAD.pack_into(self._map, row, hash_name(name), is_run, int(time.time()), 0, 0, 0, 0, 0)
        if len(self._rows) >= 2 * _MOST_ROWS:
            # Of runs that have lost their row to others.
            self._rows.clear()
        self._rows[name] = row
        return row

    def _oldest_run(self) -> int:
        runs = [
            (_HEAD.unpack_from(self._map, row)[2], row)
            for row in self._all_rows()
            if _HEAD.unpack_from(self._map, row)[1] and not any(_IN_FLIGHT.unpack_from(self._map, row + _IN_FLIGHT_AT))
        ]
        if not runs:
            raise OSError("the table of budgets is full")
        return min(runs)[1]

    def _all_rows(self) -> range:
        count = _HEADER.unpack_from(self._map)[1]
        return range(_ROWS_AT, _ROWS_AT + count * _ROW_BYTES, _ROW_BYTES)

    def _own_column(self) -> int:
        for worker in range(_WORKERS):
            with contextlib.suppress(BlockingIOError):
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _make_lock(fcntl.F_WRLCK, worker))
                self._clear(worker)
                self._map[_COLUMNS_AT + worker] = 1
                return worker
        raise OSError(f"more than {_WORKERS} workers share {self._fd}")

    def _is_alive(self, worker: int) -> bool:
        found = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _make_lock(fcntl.F_WRLCK, worker))
        return bool(struct.unpack_from("h", found)[0] != fcntl.F_UNLCK)

    def _clear_dead(self) -> bool:
        """Clear the columns of workers that have ended; tell whether there were any."""
        used = [worker for worker in range(_WORKERS) if self._map[_COLUMNS_AT + worker] and worker != self._worker]
        dead = [worker for worker in used if not self._is_alive(worker)]
        for worker in dead:
            self._clear(worker)
        return bool(dead)

    def _clear(self, worker: int) -> None:
        for row in self._all_rows():
            struct.pack_into("=q", self._map, row + _RESERVED_AT + 8 * worker, 0)
            struct.pack_into("=i", self._map, row + _IN_FLIGHT_AT + 4 * worker, 0)
        self._map[_COLUMNS_AT + worker] = 0


def _make_lock(kind: int, worker: int) -> bytes:
    """Return a `struct flock` for a worker's byte."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, _LOCKS_AT + worker, 1, 0)
