"""Bounds how long a connection waits for its client between calls: idle, for a head's rest, for a body nobody reads.

All waits of a kind are equally long, so that the oldest is always the next to end: a look at the clock costs the same
for ten connections and for ten thousand. See also: client_connection, transport.watch (what bounds a call).
"""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import Any, Final

import gevent

from openai_gateway.transport.ticker import Ticked

TICK_S: Final = 0.25


class Wait(BaseException):
    """Thrown into the greenlet of a connection whose wait is over; one for the life of a connection.

    A BaseException, so that no `except Exception` on the way takes it for an error.
    """

    __slots__ = ("_greenlet",)

    def __init__(self) -> None:
        super().__init__()
        self._greenlet = gevent.getcurrent()

    def end(self) -> None:
        """End the wait now; to be called from the hub."""
        self._greenlet.throw(self)


class Waits:
    """The waits of one kind that are under way."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends: dict[Wait, float] = {}
        # Neither is a call of Python's: a connection waits before every request.
        self.start = self._ends.__setitem__
        self.stop = self._ends.pop

    def __len__(self) -> int:
        return len(self._ends)

    def tick(self, now: float) -> None:
        """End the waits that are over; to be called from the hub."""
        while self._end_oldest(now):
            pass

    def end_oldest(self, now: float, least_s: float) -> bool:
        """End the wait that began first, if it has lasted for so long; to be called from the hub."""
        return self._end_oldest(now + self.seconds - least_s)

    def shorten(self, seconds: float) -> None:
        """Have waits last no longer than that from now on, those that are under way, too."""
        change = min(0.0, seconds - self.seconds)
        self.seconds += change
        for wait in self._ends:
            self._ends[wait] += change

    def end_all(self) -> None:
        """End every wait; to be called from the hub."""
        while self._end_oldest(inf):
            pass

    def _end_oldest(self, until: float) -> bool:
        wait = next(iter(self._ends), None)
        if wait is None or self._ends[wait] > until:
            return False
        del self._ends[wait]
        wait.end()
        return True


def tick_forever(*kinds: Ticked) -> None:
    """Have the hub end what is over, as long as the process lives."""
    timer: Any = gevent.get_hub().loop.timer(TICK_S, TICK_S, ref=False)

    def tick() -> None:
        now = monotonic()
        for kind in kinds:
            kind.tick(now)

    timer.start(tick)
    _timers.append(timer)


_timers: list[Any] = []
