"""Which worker of this host speaks for all of them: one at a time, another within a second when it ends.

The strategy. A file of a few bytes holds who leads, and when that was last confirmed; it is locked (flock) for each
look. A leader confirms four times a second. One whose process has ended is replaced at the next look of any other, one
that stands still after three seconds; it asks again before it acts on what it was told meanwhile.

See also: redis_exchange (what the leader does).
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from openai_gateway.processes import start_of

# Start, pid, when it was confirmed (monotonic clock: the host's).
_LEADER: Final = struct.Struct("<QId")
_STANDS_STILL_S: Final = 3.0


class Leadership:
    """The file at `path`, for this process. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._pid = os.getpid()
        self._start = start_of(self._pid)

    def confirm(self, now: float) -> bool:
        """Tell whether this process leads, from now on too; take the lead if nobody has it."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            found = os.pread(self._fd, _LEADER.size, 0)
            if len(found) == _LEADER.size:
                start, pid, at = _LEADER.unpack(found)
                is_own = (start, pid) == (self._start, self._pid)
                if not is_own and 0 <= now - at < _STANDS_STILL_S and start_of(pid) == start:
                    return False
            os.pwrite(self._fd, _LEADER.pack(self._start, self._pid, now), 0)
            return True
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; whoever leads is found to have ended, or stands still, by the others."""
        os.close(self._fd)
