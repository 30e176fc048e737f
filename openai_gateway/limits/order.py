"""Which of the waiting calls goes next.

The strategy. Calls go as they came; but each is taken to have come earlier by 1.55 times what calls take for each call
that its rollout has made (and a quarter once), at most by 2.25 mean waits and 1.35 times what calls take, or by three
quarters of its age. So a rollout that was begun is done early, its calls stay inside the upstream's prompt cache, and
yet a newcomer waits little longer than if all went as they came. It waits until those that are ahead have gone, so what
these wait all the same makes them be ahead by less. (Simulated, 50 calls of 1.9 s a second. Rollouts of 4 calls, 1.5
and 2 times as many as these feed for 30 s, 4 times as many for 60 s: the calls' p99 is 1.06, 1.10, 1.08 of first come,
first served; half of as many rollouts as could be done are done within 1.00, 1.03, 1.20 of the time of strictly the
oldest first; first come, first served takes 1.08, 1.22, 1.45. Twice as many of 8 calls for 60 s and of 16 for 120 s:
p99 1.22 and 1.48, half done within 1.05 and .98; first come, first served 1.30 and .99.)

Besides, rollouts of many calls get ahead: of six by one mean wait, of twelve by 16, of three by a 16th. (Of 200
rollouts of 10 to 30 calls begun at once each is done after 564 s on average; in order of rollouts after 430, of calls
after 662.)

Of calls that name one rollout and wait at once, the fifth is ahead by half, the later ones by less, and all but the
first by no waits besides. So the calls of a step are done soon, but a batch with one `prompt_cache_key` for all goes as
it came, and leaves others their share. (Rollouts of 4 steps of 3 calls, four times as many as the limit feeds: p99 1.3
of first come, first served, done 19 % earlier.)

A call that was refused goes before all others of its client. Nobody is passed by longer than 60 seconds, or three times
the mean wait if that is longer: then who came first goes first. Of the throughput, that takes a third at most. (Not the
median: most calls of old rollouts hardly wait at all.) `fifo` has calls go in the order in which they came.

Between clients, the one that has had least by its weight goes first (virtual counters, arXiv 2401.00588); one that
comes back starts with as much as the least of those waiting. With one client, all this is one heap.

Pure: the clock (monotonic seconds) is an argument. See also: queue (who waits).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import Final

import msgspec

_LONGEST_WAIT_S: Final = 60.0
_MEANS: Final = 3.0
# The mean wait is that of so many calls: few, for what newcomers wait depends on it.
_RECENT: Final = 30
_RECENT_ENDS: Final = 100
# A call is ahead by so much of its rollout's age, at most: of rollouts that began together, all get to begin.
_BY_AGE: Final = 0.75
# It is ahead by so many times what calls take, for each call that its rollout has made: who has come further is sooner.
_BY_CALL: Final = 1.55
_BY_BEGUN: Final = 0.25
# It is ahead by so many mean waits and so many times what calls take, at most: bounds what a newcomer waits.
_BY_WAIT: Final = 2.25
_BY_TAKEN: Final = 1.35
# Both less by so much of what those wait all the same who are ahead of newcomers: a newcomer waits until all of these
# have gone, and where many rollouts began at once, that takes long. The first by what a call takes at most.
_LESS_BY_CALL: Final = 0.5
_LESS_BY_WAIT: Final = 1.1
# A rollout that has made so many calls is ahead by one mean wait, besides.
_CALLS_AHEAD: Final = 6
_POWER: Final = 4
# Behind so many of its rollout's calls that wait a call is ahead by half as much: what names one rollout at once may
# be a whole batch, whose age and calls are no reason to let others wait.
_AT_ONCE: Final = 4
_MOST_ROLLOUTS: Final = 8192


class Rollout(msgspec.Struct, eq=False):
    """When a rollout's first call came, how many of its calls have gone, and how many wait."""

    began: float
    calls: int = 0
    waiting: int = 0


class Place(msgspec.Struct, eq=False):
    """One call's place in the queue; the lowest `rank` goes first.

    `is_limited` False waits for a slot only. `share` is its client's weight. No other passes a call that `is_overdue`,
    or of its client one that `is_refused`. One that `is_next` is the only one of a begun rollout that waits.
    """

    rollout: Rollout
    tokens: float = 0.0
    is_limited: bool = True
    client: str = ""
    share: float = 1.0
    is_refused: bool = False
    is_overdue: bool = False
    is_next: bool = False
    rank: float = 0.0
    since: float = 0.0
    number: int = 0
    has_left: bool = False

    def __lt__(self, other: Place) -> bool:
        return (not self.is_refused, self.rank, self.number) < (not other.is_refused, other.rank, other.number)

    @property
    def rank_of_host(self) -> float:
        """The rank among the calls of all workers of the host."""
        return -math.inf if self.is_refused or self.is_overdue else self.rank


class Order:
    """The waiting calls of one server."""

    def __init__(self, *, is_fifo: bool = False) -> None:
        self._is_fifo = is_fifo
        self._lanes: dict[str, list[Place]] = {}
        self._had: dict[str, float] = {}
        self._by_age: deque[Place] = deque()
        # The mean wait of those admitted of late.
        self._wait_s = 0.0
        # Of those among them that came one after the other, as the next call of their rollout.
        self._begun_wait_s = 0.0
        # What calls take is the time that they were running, all together, by how many ended; unlike the mean of those
        # that ended, it isn't too low at first, when only the shortest have. Looked at while others wait.
        self._running_s = 0.0
        self._ended = 0
        self._looked_at = 0.0
        self._number = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def rank(self, rollout: Rollout, now: float) -> float:
        """Return the rank of a call of this rollout that comes now."""
        calls = rollout.calls
        if self._is_fifo or not calls:
            return now
        ahead_s, waiting = _BY_AGE * (now - rollout.began), rollout.waiting
        if self._ended:
            takes_s, wait_s = self._running_s / self._ended, self._wait_s
            begun_wait_s = self._begun_wait_s
            by_calls_s = min(
                (_BY_BEGUN + _BY_CALL * calls) * takes_s - min(_LESS_BY_CALL * begun_wait_s, takes_s),
                _BY_WAIT * wait_s + _BY_TAKEN * takes_s - _LESS_BY_WAIT * begun_wait_s,
            )
            if waiting:
                by_calls_s /= 1 + waiting / _AT_ONCE
            else:
                by_calls_s += wait_s * (calls / _CALLS_AHEAD) ** _POWER
            ahead_s = max(0.0, min(ahead_s, by_calls_s))
        return now - ahead_s

    def add(self, place: Place, now: float) -> None:
        """Put a call in the queue."""
        if not self._waiting:
            self._looked_at = now
        self._number += 1
        place.number, place.since, place.has_left, place.is_overdue = self._number, now, False, False
        rollout = place.rollout
        place.rank = self.rank(rollout, now)
        place.is_next = rollout.calls > 0 and not rollout.waiting and not place.is_refused
        lane = self._lanes.get(place.client)
        if lane is None:
            least = min((self._had[client] for client in self._lanes), default=0.0)
            self._had[place.client] = max(self._had.get(place.client, 0.0), least)
            lane = self._lanes[place.client] = []
        heapq.heappush(lane, place)
        self._by_age.append(place)
        self._waiting += 1
        rollout.waiting += 1

    def learn_end(self, running: int, now: float) -> None:
        """Learn that one of `running` calls has ended, while others wait."""
        if self._ended >= 2 * _RECENT_ENDS:
            self._running_s, self._ended = self._running_s / 2, self._ended // 2
        self._running_s += running * (now - self._looked_at)
        self._ended += 1
        self._looked_at = now

    def first(self, now: float) -> Place | None:
        """Return the call that goes next, None if none waits."""
        if not self._waiting:
            return None
        while self._by_age[0].has_left:
            self._by_age.popleft()
        oldest = self._by_age[0]
        if now - oldest.since > max(_LONGEST_WAIT_S, _MEANS * self._wait_s):
            oldest.is_overdue = True
            return oldest
        lanes = self._lanes
        client = next(iter(lanes)) if len(lanes) == 1 else min(lanes, key=self._had.__getitem__)
        return lanes[client][0]

    def admit(self, place: Place, now: float) -> None:
        """Take a call out of the queue: it goes."""
        self._had[place.client] += (place.tokens or 1.0) / place.share
        wait_s = now - place.since
        self._wait_s += (wait_s - self._wait_s) / _RECENT
        if place.is_next:
            self._begun_wait_s += (wait_s - self._begun_wait_s) / _RECENT
        self.remove(place)

    def remove(self, place: Place) -> None:
        """Take a call out of the queue; it gives up."""
        if place.has_left:
            return
        place.has_left = True
        self._waiting -= 1
        place.rollout.waiting -= 1
        lane = self._lanes[place.client]
        # Those that gave up within are passed over when they come first.
        while lane and lane[0].has_left:
            heapq.heappop(lane)
        if not lane:
            del self._lanes[place.client]
        if not self._waiting:
            self._by_age.clear()


class Rollouts:
    """The rollouts that were seen of late."""

    def __init__(self) -> None:
        self._known: dict[str, Rollout] = {}
        self._earlier: dict[str, Rollout] = {}

    def find(self, name: str, now: float) -> Rollout:
        """Return a rollout, which begins now if this is its first call."""
        rollout = self._known.get(name)
        if rollout is None:
            rollout = self._earlier.get(name) or Rollout(now)
            self.remember(name, rollout)
        return rollout

    def remember(self, name: str, rollout: Rollout) -> None:
        """Note one of a rollout's names."""
        if len(self._known) >= _MOST_ROLLOUTS:
            self._earlier, self._known = self._known, {}
        self._known[name] = rollout
