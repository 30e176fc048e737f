"""How many connections each worker has open, told to the others, so that new ones go where there are fewest.

All workers accept from one listening socket, and the kernel wakes whichever is first: with connections that are kept
for long, one worker may get nearly all. So a worker that has more than another leaves a new connection to that one for
a few milliseconds, and takes it if nobody does: a worker that died or hangs keeps nobody waiting for longer.

One file of a master's workers, mapped into each: a place by a worker's age, with the time it was last written, the
count, and the pid. A place is no worker's any more if it is not written anew each second, or the worker has ended. Who
has a place accepts, but for one that stays out: its count is infinite.

See also: listener (who asks before it accepts), successors.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from time import monotonic
from typing import Final

from openai_gateway.mapped_file import map_file
from openai_gateway.processes import start_of

PLACES: Final = 64
_IN_PLACE: Final = 3
_PLACE_BYTES: Final = 8 * _IN_PLACE
_FRESH_S: Final = 3.0
_PART_MORE: Final = 8


class Balance:
    """One worker's place among those of its master."""

    def __init__(self, path: Path, age: int) -> None:
        """Open the file, made if need be. Raises OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._places = memoryview(map_file(fd, PLACES * _PLACE_BYTES)).cast("d")
        finally:
            os.close(fd)
        self._own = age % PLACES * _IN_PLACE
        self._pid = os.getpid()
        # Whoever had this place before may have been killed.
        self._places[self._own] = 0.0
        self._places[self._own + 1] = math.nan
        self._places[self._own + 2] = self._pid

    def publish(self, count: float) -> None:
        """Tell how many connections this worker has."""
        self._places[self._own + 1] = count
        # With very many workers, an old one may share its place with a new one.
        self._places[self._own + 2] = self._pid
        self._places[self._own] = monotonic()

    def leave(self) -> None:
        """Tell that this worker takes no more."""
        self._places[self._own] = 0.0

    def stay_out(self) -> None:
        """Tell that this worker lives and takes none, for it can't serve."""
        self.publish(math.inf)

    def count_of(self, pid: int) -> float | None:
        """Return how many connections a worker has, or had when it left; infinity if it stays out.

        None if it has said nothing yet.
        """
        places = self._places
        for place in range(0, PLACES * _IN_PLACE, _IN_PLACE):
            if places[place + 2] == pid and not math.isnan(places[place + 1]):
                return places[place + 1]
        return None

    def has_others(self) -> bool:
        """Tell whether any other worker accepts, be it a busy one that has said nothing for long."""
        places = self._places
        return any(
            places[place] and places[place + 1] < math.inf and not _has_ended(int(places[place + 2]))
            for place in range(0, PLACES * _IN_PLACE, _IN_PLACE)
            if place != self._own
        )

    def has_more_than_another(self, count: int) -> bool:
        """Tell whether a worker with so many should leave the next connection to another.

        Of many it may have an eighth more: when hundreds come at once, workers that took only one in turn, between the
        calls that they serve, would have them wait for seconds.
        """
        oldest, fair = monotonic() - _FRESH_S, count - count // _PART_MORE
        places = self._places
        for place in range(0, PLACES * _IN_PLACE, _IN_PLACE):
            if places[place] > oldest and places[place + 1] < fair and place != self._own:
                # The clients of one that was killed come back all at once, and each would wait for it.
                if not _has_ended(int(places[place + 2])):
                    return True
                places[place] = 0.0
        return False


def _has_ended(pid: int) -> bool:
    try:
        return start_of(pid) == 0
    except OSError:
        # No file descriptor is left to tell by.
        return False
