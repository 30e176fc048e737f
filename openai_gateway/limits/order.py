"""Which of the waiting calls goes next.

The strategy. The rollout that began first goes first: its calls come soon after one another, stay inside the upstream's
prompt cache, and rollouts are finished one by one rather than all at the end (of 200, 92 instead of 23 at half time).
A call that was refused goes before all others of its client. Nobody waits longer than 60 seconds, or three times the
median wait if that is longer: then who came first goes first. `fifo` has them go in the order in which they came.

Between clients, the one that has had least by its weight goes first (virtual counters, arXiv 2401.00588); one that
comes back starts with as much as the least of those waiting. With one client, all this is one heap.

Pure: the clock (monotonic seconds) is an argument.
"""

from __future__ import annotations

import heapq
from collections import deque
from statistics import median
from typing import Final

import msgspec

_LONGEST_WAIT_S: Final = 60.0
_MEDIANS: Final = 3.0
_RECENT: Final = 101
_MOST_ROLLOUTS: Final = 8192


class Place(msgspec.Struct, eq=False):
    """One call's place in the queue. Lower goes first.

    `rollout` is when its rollout began; `is_limited` False waits for a slot only. `share` is its client's weight.
    """

    rollout: float
    tokens: float = 0.0
    is_limited: bool = True
    client: str = ""
    share: float = 1.0
    is_refused: bool = False
    since: float = 0.0
    number: int = 0
    has_left: bool = False

    def __lt__(self, other: Place) -> bool:
        return (not self.is_refused, self.rollout, self.number) < (not other.is_refused, other.rollout, other.number)


class Order:
    """The waiting calls of one server."""

    def __init__(self, *, is_fifo: bool = False) -> None:
        self._is_fifo = is_fifo
        self._lanes: dict[str, list[Place]] = {}
        self._had: dict[str, float] = {}
        self._by_age: deque[Place] = deque()
        self._waits_s: deque[float] = deque(maxlen=_RECENT)
        self._longest_s = _LONGEST_WAIT_S
        self._number = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, place: Place, now: float) -> None:
        """Put a call in the queue."""
        self._number += 1
        place.number, place.since, place.has_left = self._number, now, False
        if self._is_fifo:
            place.rollout = 0.0
        lane = self._lanes.get(place.client)
        if lane is None:
            least = min((self._had[client] for client in self._lanes), default=0.0)
            self._had[place.client] = max(self._had.get(place.client, 0.0), least)
            lane = self._lanes[place.client] = []
        heapq.heappush(lane, place)
        self._by_age.append(place)
        self._waiting += 1

    def first(self, now: float) -> Place | None:
        """Return the call that goes next, None if none waits."""
        if not self._waiting:
            return None
        while self._by_age[0].has_left:
            self._by_age.popleft()
        oldest = self._by_age[0]
        if now - oldest.since > self._longest_s:
            return oldest
        lanes = self._lanes
        client = next(iter(lanes)) if len(lanes) == 1 else min(lanes, key=self._had.__getitem__)
        return lanes[client][0]

    def admit(self, place: Place, now: float) -> None:
        """Take a call out of the queue: it goes."""
        self._had[place.client] += (place.tokens or 1.0) / place.share
        self._waits_s.append(now - place.since)
        if place.number % _RECENT == 0:
            self._longest_s = max(_LONGEST_WAIT_S, _MEDIANS * median(self._waits_s))
        self.remove(place)

    def remove(self, place: Place) -> None:
        """Take a call out of the queue; it gives up."""
        if place.has_left:
            return
        place.has_left = True
        self._waiting -= 1
        lane = self._lanes[place.client]
        # Those that gave up within are passed over when they come first.
        while lane and lane[0].has_left:
            heapq.heappop(lane)
        if not lane:
            del self._lanes[place.client]
        if not self._waiting:
            self._by_age.clear()


class Rollouts:
    """When each rollout began, of those that were seen of late."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._earlier: dict[str, float] = {}

    def began(self, rollout: str, now: float) -> float:
        """Return when a rollout's first call came."""
        began = self._began.get(rollout)
        if began is None:
            began = self._earlier.get(rollout, now)
            self.remember(rollout, began)
        return began

    def remember(self, rollout: str, began: float) -> None:
        """Note when a rollout began, under one of its names."""
        if len(self._began) >= _MOST_ROLLOUTS:
            self._earlier, self._began = self._began, {}
        self._began[rollout] = began
