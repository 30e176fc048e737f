"""Keeps retries from becoming a storm: pauses a whole server when its upstream says so, and bounds the retry ratio.

Which failures may be tried again at all is `wire.retries`'.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

import gevent

from openai_gateway.wire.retries import MAX_RETRY_AFTER_S, Outcome, to_pause_s

_LOOK_EVERY_S: Final = 0.5
_SPREAD_SHARE: Final = 0.1
_MIN_SPREAD_S: Final = 0.5

RETRY_FLOOR: Final = 10
_HALF_LIFE_S: Final = 30.0


class Pause:
    """The time before which no attempt of a server starts; `draw` gives a random number in [0, 1)."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self.until = 0.0
        self._spread_s = 0.0

    def learn(self, outcome: Outcome, now: float) -> None:
        """Pause as long as a 429 or 503 asks, if it asks for no longer than the SDKs would wait."""
        pause_s = to_pause_s(outcome, now)
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
        self._calls = 0.0
        self._retries = 0.0
        self._halved_at = monotonic()

    def count_call(self) -> None:
        """Count a call's first attempt."""
        self._calls += 1

    def take(self) -> bool:
        """Take the right to one retry; False if too many were taken of late."""
        self._fade()
        if self._share is not None and self._retries >= RETRY_FLOOR + self._share * self._calls:
            return False
        self._retries += 1
        return True

    def _fade(self) -> None:
        periods = int((monotonic() - self._halved_at) / _HALF_LIFE_S)
        if periods:
            self._halved_at += periods * _HALF_LIFE_S
            self._calls *= 0.5**periods
            self._retries *= 0.5**periods
