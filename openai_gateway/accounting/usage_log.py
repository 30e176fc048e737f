"""The usage log: one JSON line for each call that is over, appended whole by one write.

All workers append to the same file without a lock: the kernel keeps writes of O_APPEND apart. A line that could be
written only in part (a full disk) is taken back. See also: usage_summary (which sums the lines up).
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import time
from typing import Final

import msgspec

from openai_gateway.accounting.line_file import append_line, end_torn_line
from openai_gateway.errors import Unauthorized
from openai_gateway.wire.call import CallRecord

_log = logging.getLogger("openai_gateway")
_encoder = msgspec.json.Encoder()
# A FIFO that nobody reads must not hold up the worker; regular files don't care.
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
_CHECK_S: Final = 1.0
_WARN_S: Final = 60.0


class UsageLog:
    """Appends records to the file at `path`; an observer.

    A file that was moved away is noticed within a second and made anew. One that grows beyond `most_bytes` is renamed
    to `<path>.<UTC time>`; None leaves that to others, and so does a symbolic link, whose target may be anywhere.
    `lost` counts the calls that could not be written.
    """

    def __init__(self, path: str, most_bytes: int | None = None) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._fd: int | None = None
        self._check_at = 0.0
        self._warn_at = 0.0
        self._is_link_told = False
        self.lost = 0
        # How many calls were lost since writing began to fail.
        self._lost_now = 0

    def observe(self, record: CallRecord) -> None:
        """Append a record; a disk that is full costs the line and a warning, never the call.

        Calls without a valid key are left out: they cost nothing, and anybody could fill the disk with them.
        """
        if record.error_code == Unauthorized.code and not record.attempts:
            return
        line = _encoder.encode(record) + b"\n"
        try:
            append_line(self._open(), line)
        except OSError as error:
            # A part of the line may be in the file. Opening the file anew ends that line first.
            self._close()
            self.lost += 1
            self._lost_now += 1
            self._warn(error)
        else:
            if self._lost_now:
                self._tell_recovered()

    def _open(self) -> int:
        now = time.monotonic()
        if self._fd is None or now >= self._check_at:
            self._check_at = now + _CHECK_S
            self._reopen_if_moved()
        assert self._fd is not None
        return self._fd

    def _reopen_if_moved(self) -> None:
        if self._fd is not None and self._is_current(self._fd):
            self._rotate(self._fd)
            if self._is_current(self._fd):
                return
        self._close()
        self._fd = os.open(self._path, _FLAGS, 0o640)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OSError("it is no regular file")
        end_torn_line(self._fd)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _is_current(self, fd: int) -> bool:
        try:
            there, ours = os.stat(self._path), os.fstat(fd)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _rotate(self, fd: int) -> None:
        if self._most_bytes is None or os.fstat(fd).st_size <= self._most_bytes:
            return
        if os.path.islink(self._path):
            if not self._is_link_told:
                self._is_link_told = True
                _log.warning("the usage log %s is a symbolic link: usage_log_max_bytes leaves it alone", self._path)
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another worker renames the file now.
            return
        try:
            # Another worker may have renamed it before the lock was taken.
            if self._is_current(fd):
                moment = time.time_ns()
                stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(moment // 10**9))
                os.rename(self._path, f"{self._path}.{stamp}.{moment % 10**9:09d}")
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def _warn(self, error: OSError) -> None:
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + _WARN_S
            _log.error("calls are missing in the usage log %s: %s", self._path, error.strerror or error)

    def _tell_recovered(self) -> None:
        _log.warning("the usage log %s is written again; it lacks %d calls", self._path, self._lost_now)
        self._lost_now = 0
        self._warn_at = 0.0
