"""Whether and when a failed attempt of a call is made again: as the official SDKs would, and within bounds.

The bounds are `max_retries` and `retry_budget_s` for a call, and `retry_ratio` for all calls together: at an upstream
that fails every call, retries must not multiply the load. A 429 or 503 that says how long to wait pauses all calls, for
each would only be refused; when the pause is over they start spread, not all at once. A refusal that passes by itself
(a limit) is no failure: its call is queued again.

States of a call between two attempts: waiting (a wait of its own) -> paused (with all others) -> sent; or it gives up,
and its last answer or error goes out.

See also: admission (calls that met a limit), wire.retries (which outcomes may be tried again at all).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from time import monotonic, time
from typing import Final

import gevent

from openai_gateway.config import ServerConfig
from openai_gateway.limits.admission import may_readmit
from openai_gateway.limits.queued_call import QueuedCall
from openai_gateway.wire.retries import MAX_RETRY_AFTER_S, Outcome, choose_wait_s, is_retryable, read_pause_s

_LOOK_EVERY_S: Final = 0.5
_SPREAD_SHARE: Final = 0.1
_MIN_SPREAD_S: Final = 0.5

RETRY_FLOOR: Final = 10
_HALF_LIFE_S: Final = 30.0
# The upstream may go on working on what timed out, and charge for it: each more attempt may be paid, too.
_MOST_TIMED_OUT: Final = 2
_TIMED_OUT: Final = ("upstream_timeout", "504")
# In `waiting`: calls that wait as another one was told to.
_PAUSED: Final = "paused"


class Pause:
    """The time before which no attempt of a server starts; `draw` gives a random number in [0, 1)."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self.until = 0.0
        self._spread_s = 0.0

    def learn(self, outcome: Outcome, now: float) -> None:
        """Pause as long as a 429 or 503 asks, if it asks for no longer than the SDKs would wait."""
        pause_s = read_pause_s(outcome, now)
        if pause_s is not None and 0 < pause_s <= MAX_RETRY_AFTER_S and monotonic() + pause_s > self.until:
            self.until = monotonic() + pause_s
            self._spread_s = max(_MIN_SPREAD_S, _SPREAD_SHARE * pause_s)

    def left_s(self) -> float:
        """Return how long the pause still lasts."""
        return max(0.0, self.until - monotonic())

    def wait(self, deadline: float | None, give_up: Callable[[], bool]) -> None:
        """Wait until the pause is over, then a little more so that not all start at once.

        Ends early at `deadline` (of the monotonic clock) and when `give_up()` is true: others may renew the pause again
        and again.
        """
        while monotonic() < self.until:
            start = self.until + self._spread_s * self._draw()
            while (left := start - monotonic()) > 0:
                if give_up() or (deadline is not None and monotonic() >= deadline):
                    return
                gevent.sleep(min(left, _LOOK_EVERY_S))


class RetryRatio:
    """At most `share` of recent calls may be retries, and RETRY_FLOOR more for when there are few; None is no bound.

    Recent: counts halve every 30 s.
    """

    def __init__(self, share: float | None) -> None:
        self._share = share
        # First attempts, counted by whoever makes them.
        self.calls = 0.0
        self._retries = 0.0
        self._halved_at = monotonic()

    def take(self) -> bool:
        """Take the right to one retry; False if too many were taken of late."""
        self._fade()
        if self._share is not None and self._retries >= RETRY_FLOOR + self._share * self.calls:
            return False
        self._retries += 1
        return True

    def _fade(self) -> None:
        periods = int((monotonic() - self._halved_at) / _HALF_LIFE_S)
        if periods:
            self._halved_at += periods * _HALF_LIFE_S
            self.calls *= 0.5**periods
            self._retries *= 0.5**periods


class Retries:
    """The retries of one server's calls; `waiting` counts the calls that wait for one, by why they failed."""

    def __init__(self, server: ServerConfig, waiting: Counter[str]) -> None:
        self._server = server
        self._pause = Pause(random.random)
        self._ratio = RetryRatio(server.retry_ratio)
        self._waiting = waiting

    def wait_for_pause(self, queued: QueuedCall, deadline: float | None, give_up: Callable[[], bool]) -> None:
        """Wait while the upstream has asked everybody to; to be called before each attempt."""
        if not queued.attempts:
            self._ratio.calls += 1
        if monotonic() >= self._pause.until:
            return
        self._waiting[_PAUSED] += 1
        try:
            self._pause.wait(deadline, give_up)
        finally:
            self._waiting[_PAUSED] -= 1

    def may_wait_s(self, outcome: Outcome, reason: str, queued: QueuedCall, deadline: float | None) -> float | None:
        """Return the wait before another attempt, None if there is to be none: used up, too late, or no use.

        `reason` is why the last attempt failed, as it will stand in `queued.retries`.
        """
        now = time()
        if may_readmit(outcome, is_learning=self._server.learn_limits) and queued.call.is_metered:
            return None
        self._pause.learn(outcome, now)
        failures = queued.attempts - sum(each == "429" for each in queued.retries)
        if failures > self._server.max_retries or not is_retryable(outcome, now):
            return None
        if reason in _TIMED_OUT and sum(each in _TIMED_OUT for each in queued.retries) + 1 >= _MOST_TIMED_OUT:
            return None
        wait_s = max(choose_wait_s(outcome, failures - 1, now, random.random), self._pause.left_s())
        if deadline is not None and monotonic() + wait_s > deadline:
            return None
        if outcome.status != 429 and not self._ratio.take():
            return None
        return wait_s

    def wait(self, wait_s: float, reason: str, queued: QueuedCall) -> None:
        """Wait before another attempt, and note why there is one."""
        queued.retries += (reason,)
        self._waiting[reason] += 1
        try:
            gevent.sleep(wait_s)
        finally:
            self._waiting[reason] -= 1
