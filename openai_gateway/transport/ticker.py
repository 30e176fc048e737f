"""One timer for many things that have to look at the clock: calls under way, open WebSockets.

A timer for each would cost a call more than the looking, and most are over before they would be due. What knows that
nothing is due for a while says so and is passed over until then, so that thousands of long streams cost little.

See also: watch (calls), websocket.tunnel.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

import gevent

TICK_S: Final = 0.1


class Ticked(Protocol):
    """What has to look at the clock now and then."""

    def tick(self, now: float) -> float | None:
        """Do what is due at `now`, on the monotonic clock; return for how long nothing can be due, if that is known."""


TickedT = TypeVar("TickedT", bound=Ticked)


class Ticker(Generic[TickedT]):
    """Ticks what was added and not discarded, ten times a second or when its rest is over.

    Without any it costs nothing. What rests must be added again before it is discarded. What is new may be put into
    `awake` itself if `is_running`.
    """

    def __init__(self) -> None:
        self.awake: set[TickedT] = set()
        self.is_running = False
        # What rests, by the number of the tick that ends its rest; and that number for each.
        self._resting: dict[int, set[TickedT]] = {}
        self._rests_until: dict[TickedT, int] = {}
        self._number = 0
        self._timer: Any = None
        self.discard = self.awake.discard

    def add(self, ticked: TickedT) -> None:
        """Tick this from now on, also if it rests."""
        number = self._rests_until.pop(ticked, None)
        if number is not None:
            self._resting[number].discard(ticked)
        self.awake.add(ticked)
        if not self.is_running:
            self.is_running = True
            self._timer = gevent.get_hub().loop.timer(TICK_S, TICK_S, ref=False)
            self._timer.start(self._tick)

    def __iter__(self) -> Iterator[TickedT]:
        """Give each that is still there when its turn comes: what one causes may discard others."""
        for ticked in [*self.awake, *self._rests_until]:
            if ticked in self.awake or ticked in self._rests_until:
                yield ticked

    def _tick(self) -> None:
        now = monotonic()
        self._number += 1
        for ticked in self._resting.pop(self._number, ()):
            del self._rests_until[ticked]
            self.awake.add(ticked)
        for ticked in list(self.awake):
            if ticked in self.awake:
                rest_s = ticked.tick(now)
                if rest_s is not None and rest_s >= TICK_S and ticked in self.awake:
                    self.awake.discard(ticked)
                    self._rests_until[ticked] = number = self._number + int(rest_s / TICK_S)
                    self._resting.setdefault(number, set()).add(ticked)
        if not self.awake and not self._rests_until:
            self._timer.stop()
            self._timer.close()
            self._timer, self.is_running = None, False
