"""A pace that calls are held to for a while: after `slow_down`, and where limits count in shorter windows than told.

Calls go evenly, no more than the rate held; it grows again by itself, in 15 minutes by a factor. While all that ask are
told to slow down, however few they are, that says nothing of the rate: it stays, and calls are put off ever longer.
After that one asks, and if it isn't refused within a second, the others follow.

Pure: the clock (monotonic seconds) is an argument. See also: ledger, limiter (who holds calls to it).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

SLOW_DOWN_GROWTH: Final = 1.5
EVEN_GROWTH: Final = 1.05
_GROWTH_S: Final = 900.0
_MOST_STEPS: Final = 200.0
_SHARE: Final = 0.995
_SLOWEST: Final = 0.02
_LEFT_OUT_S: Final = 0.1
# A refusal comes sooner.
_ASKED_FOR_S: Final = 1.0
# A call that starts late by less is made up for.
_LATE_S: Final = 0.02


class HeldPace(msgspec.Struct, array_like=True, eq=False):
    """The pace; none until `hold`."""

    since: float | None = None
    free_at: float = 0.0
    _rate: float = math.inf
    _growth: float = 1.0
    # What share of the pace this host has.
    share: float = 1.0
    # Whether the next call asks for all.
    is_put_off: bool = False

    def hold(self, rate: float, growth: float, sent_at: float, now: float) -> None:
        """Hold to a little less than `rate` calls a second, and to `growth` times that in 15 minutes.

        A refusal of what was sent at `sent_at`, before it is held to a pace, says nothing of that pace.
        """
        if self.since is not None and sent_at <= self.since:
            return
        # By half at most: before a rush there may have been a pause.
        least = _SLOWEST if self.since is None else max(_SLOWEST, self._rate / 2)
        self._rate, self._growth, self.since, self.is_put_off = max(_SHARE * rate, least), growth, now, False
        self.free_at = max(self.free_at, now + _LEFT_OUT_S)

    def put_off(self, seconds: float, now: float) -> None:
        """Send nothing for so long; the rate stays, and grows from now on."""
        self.since, self.free_at, self.is_put_off = now, max(self.free_at, now + seconds), True

    def rate(self, now: float) -> float:
        """Return how many calls a second may go."""
        if self.since is None:
            return math.inf
        return float(self._rate * self._growth ** min((now - self.since) / _GROWTH_S, _MOST_STEPS))

    def scale(self, factor: float) -> None:
        """Hold this host alone from now on, or again all: to `factor` times what it was."""
        self._rate *= factor

    def take(self, now: float, *, is_first: bool) -> None:
        """Count a call that is sent now, as the first one since a refusal or not."""
        if self.since is not None:
            at_pace = max(self.free_at, now - _LATE_S) + 1 / (self.share * self.rate(now))
            self.free_at = max(at_pace, now + _ASKED_FOR_S) if is_first and self.is_put_off else at_pace
