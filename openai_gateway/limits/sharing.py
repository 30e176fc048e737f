"""Shares one upstream's limiter, and its calls in flight, between the workers of this host, by a file in memory.

The strategy. A file for each upstream, key and model is mapped into each worker, and locked (flock) for each decision
of a few microseconds. It holds what the limiter has learnt, and a table of workers: pid, when that process started,
calls in flight. The sum over the table is what runs on this host; a worker that was killed is found by its pid and
taken out of the table within a quarter of a second, and its charges stay, for they are true. What is learnt is written
into the half that is not in use, which then becomes the one in use: a worker killed in the midst of it leaves the other
half whole. Times are of the monotonic clock, the same for all processes of a host until it boots: a file of before is
void.

A worker that is alone has no file, until another is about to take its place (`Admission.hand_on`): that one needs half
a second to start, and by then what is known stands in the file.

With several hosts, the file is in use from the start, so that they know each other before any limit is met:
`host_exchange` in one worker of each tells them of one another. What others have charged is then part of what was
learnt here, and how many calls this host may have in flight stands in the file, for a time (its lease).

flock, not lockf: that is lost when any descriptor of the file is closed in the process. The descriptor is opened
after the fork, for a lock belongs to the open file, which a forked process would share. See also: limits_file (the
layout and its lock), queue (whose calls are counted), host_exchange.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from time import monotonic, time
from typing import Final

from openai_gateway.limits.limits_file import (
    COUNTS_WORD,
    HEAD,
    HEAD_AT,
    IN_USE_AT,
    KEPT,
    LAYOUT,
    LEASE,
    LEASE_AT,
    ROWS_WORD,
    SIZE,
    VALUES_AT,
    WORKERS,
    LimitsFile,
    has_workers,
)
from openai_gateway.processes import start_of

_LOOKED_EVERY_S: Final = 0.2
# A worker that said so long ago that one of its calls waits may be busy, or not wait any more.
_HEAD_HOLDS_S: Final = 0.05
_KEPT_S: Final = 7 * 86400.0


class SharedLimits(LimitsFile):
    """The file as one worker has it, which takes a row of its table. Raises OSError.

    `is_leased` False: the host shares its cap with no other.
    """

    def __init__(self, path: Path, *, is_leased: bool = False) -> None:
        super().__init__(path)
        self._is_leased = is_leased
        self._looked_at = 0.0
        self._row = -1
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._drop_dead()
            if not any(self._worker(row)[1] for row in range(self._rows)):
                self._forget()
            self._row = self._take_row(start_of(os.getpid()), os.getpid())
            if self._row < 0:
                raise OSError(f"more than {WORKERS} workers share {path}")
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _forget(self) -> None:
        """Forget what nobody has kept up to date, for it may be true no more; the permits wait to be confirmed."""
        self._map[VALUES_AT:] = bytes(SIZE - VALUES_AT)
        self._map[IN_USE_AT] = 0
        lease = self.lease
        if lease.is_known:
            self.set_lease(lease.permits, 0.0)

    def join(self, running: int) -> None:
        """Take part from now on; `running` are in flight in this worker."""
        self.put_in_use()
        self.count(running)

    def running(self, most: float) -> int:
        """Return how many calls are in flight on this host; if that is `most`, see first whether all workers live."""
        words = self._words
        running = sum(words[COUNTS_WORD : COUNTS_WORD + words[ROWS_WORD]])
        if running >= most:
            now = monotonic()
            if now - self._looked_at >= _LOOKED_EVERY_S:
                self._looked_at = now
                running = self._drop_dead()
        return running

    def most(self, total: int, now: float) -> int:
        """Return how many calls may be in flight on this host, `total` being the cap of all that share it."""
        if not self._is_leased:
            return total
        until, permits, mode = LEASE.unpack_from(self._map, LEASE_AT)
        return min(total, permits) if mode == KEPT or now < until else 0

    def count(self, calls: int) -> None:
        """Count calls that begin, with the file locked, or end if below 0, in this worker."""
        words, word = self._words, COUNTS_WORD + self._row
        calls += words[word]
        words[word] = calls if calls > 0 else 0

    def has_waiting(self, now: float) -> bool:
        """Tell whether calls wait in any worker."""
        return now - self._said_at[0] < _HEAD_HOLDS_S

    def has_elder(self, rollout: float, now: float) -> bool:
        """Tell whether a call of an older rollout waits in another worker."""
        if now - self._said_at[0] >= _HEAD_HOLDS_S:
            return False
        for row in range(self._rows):
            if row != self._row:
                head, said_at, *_ = HEAD.unpack_from(self._map, self._find_offset(row) + HEAD_AT)
                if head < rollout and now - said_at < _HEAD_HOLDS_S:
                    return True
        return False

    def say_head(self, rollout: float, now: float, waits_for: str, waiting: int) -> None:
        """Say of which rollout the first call is that waits here, for what, and how many wait with it."""
        for_slot, for_rate = (waiting, 0) if waits_for == "slot" else (0, waiting)
        HEAD.pack_into(self._map, self._find_offset(self._row) + HEAD_AT, rollout, now, for_slot, for_rate)
        self._said_at[0] = now


def derive_limits_path(base_url: str, key: str, model: str) -> Path:
    """Return where the file of an upstream is; its folder is made if need be. Raises OSError."""
    folder = Path(tempfile.gettempdir(), f"openai_gateway_limits.{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    # The key itself is not to be told from the name.
    name = hashlib.blake2b("\0".join((base_url, model)).encode(), key=key.encode()[:64], digest_size=16).hexdigest()
    asked = folder / f"{name}.{LAYOUT}"
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            # What workers write leaves the file's time as it was; and another may just be opening the one asked for.
            if path != asked and time() - path.stat().st_mtime > _KEPT_S and not has_workers(path):
                path.unlink()
    return asked
