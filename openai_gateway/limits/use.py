"""How much of an upstream's limits was used of late: what this worker sent, and what the limits let in meanwhile.

The strategy. Calls only add to sums. Whoever asks takes a sample of these sums, and of what flowed in since the last
sample by what is known of the limits; the totals are published twice a second, so somebody asks. A minute's and an
hour's figures are differences between samples. What was sent before a limit was known counts for neither.

Used are charges that the upstream took; refused ones are counted apart. Pure: the clock (monotonic seconds) is an
argument. See also: limiter (which decides what may start).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec

from openai_gateway.limits.limiter import Limiter
from openai_gateway.wire.rate_limits import KINDS, Attempts, LearnedLimit

WINDOWS_S: Final = (60.0, 3600.0)
# So many samples make up each window.
_SAMPLES: Final = 60
# Used and let in, of requests and of tokens; attempts, and those of them that were refused.
_SUMS: Final = 6
_Sample = tuple[float, ...]


class UnderWay(msgspec.Struct, frozen=True):
    """How much is under way in this process; `cap` None is no cap.

    `retrying` counts the calls that wait for another attempt, by why the last one failed. `queue_reason` is why calls
    wait in the queue, `paused_s` how long a refusal still holds all of them up. `learned_limits` are what is known
    of the upstream's limits, `most_in_flight` is how many calls it was found to take at a time, None if that is not its
    limit. `attempts` are those of the last minute and hour. `is_redis_up` tells whether
    other hosts share the limits now (None: they aren't to), `hosts` how many there are.
    """

    in_flight: int
    queued: int
    cap: int | None
    retrying: dict[str, int]
    queue_reason: str
    paused_s: float
    learned_limits: dict[str, LearnedLimit]
    most_in_flight: float | None
    attempts: Attempts
    is_redis_up: bool | None = None
    hosts: int = 1


class LimitUse:
    """The use of one server's limits; calls add to `requests` and `tokens`."""

    def __init__(self, now: float) -> None:
        self.requests = 0
        self.tokens = 0.0
        self.refused = 0
        self._not_used = 0
        self._known_at = math.inf
        self._at = now
        self._seen = (0.0, 0.0)
        self._known: frozenset[str] = frozenset()
        self._sums = [0.0, 0.0, 0.0, 0.0]
        self._last: _Sample = ()
        self._samples: tuple[deque[tuple[float, _Sample]], ...] = tuple(deque() for _ in WINDOWS_S)

    def refuse(self, sent_at: float, tokens: float) -> None:
        """Take back a call that was refused; one that was sent before a limit was known was never counted as used."""
        self.refused += 1
        if sent_at >= self._known_at:
            self._not_used += 1
            self.tokens -= tokens

    def find_out(self, limiter: Limiter, dialect: str, now: float) -> dict[str, LearnedLimit]:
        """Return what the limiter has found out of the limits on requests and tokens; `dialect` is the headers'."""
        buckets = {"requests": limiter.requests, "tokens": limiter.tokens}
        known = {kind: bucket for kind, bucket in buckets.items() if bucket.is_known}
        inflows = {kind: bucket.rate - bucket.drain for kind, bucket in known.items()}
        if limiter.blind.is_known and "requests" not in known:
            inflows["requests"] = limiter.blind.pace(now)
        self.look(inflows, now)
        found = {}
        for kind, inflow in inflows.items():
            bucket, (used, allowed) = known.get(kind), self.used(kind)
            found[kind] = LearnedLimit(
                per_minute=60 * (inflow if bucket is None else bucket.rate),
                # Of what is learnt from refusals alone, nothing is ever left but for the next call.
                free=0.0 if bucket is None else max(0.0, bucket.level(now)),
                taken_by_others_per_minute=0.0 if bucket is None else 60 * max(0.0, bucket.drain),
                dialect="refusals" if bucket is None else dialect,
                margin=0.0 if bucket is None else bucket.margin(now),
                used=used,
                allowed=allowed,
            )
        return found

    def look(self, inflows: Mapping[str, float], now: float) -> None:
        """Take a sample; `inflows` is what flows in a second of the limits that are known."""
        seen = (float(self.requests - self._not_used), self.tokens)
        for index, kind in enumerate(KINDS):
            if kind in inflows and kind in self._known:
                self._sums[2 * index] += seen[index] - self._seen[index]
                self._sums[2 * index + 1] += max(0.0, inflows[kind]) * (now - self._at)
        if inflows and not self._known:
            self._known_at = now
        self._at, self._seen, self._known = now, seen, frozenset(inflows)
        self._last = (*self._sums, float(self.requests), float(self.refused))
        for samples, window_s in zip(self._samples, WINDOWS_S, strict=True):
            if not samples or now - samples[-1][0] >= window_s / _SAMPLES:
                samples.append((now, self._last))
            while now - samples[0][0] > window_s:
                samples.popleft()

    def used(self, kind: str) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return what was used of a kind in the last minute and hour, and what was let in of it."""
        index = 2 * KINDS.index(kind)
        minute, hour = self._since()
        return (max(0.0, minute[index]), max(0.0, hour[index])), (minute[index + 1], hour[index + 1])

    def attempts(self) -> Attempts:
        """Return how many attempts there were in the last minute and hour, and how many were refused."""
        minute, hour = self._since()
        return Attempts((int(minute[4]), int(hour[4])), (int(minute[5]), int(hour[5])))

    def _since(self) -> list[list[float]]:
        if not self._last:
            return [[0.0] * _SUMS for _ in WINDOWS_S]
        return [[a - b for a, b in zip(self._last, samples[0][1], strict=True)] for samples in self._samples]
