"""One limit of a simulated account: so many in a period, refilled steadily or all at once.

Times are seconds since the account's first call, given by whoever asks; they never go back. See also: account_limits
(several together).
"""

from __future__ import annotations

import math
from typing import Final

# Sums of floats that should be a whole number may lack so much of it.
_NEARLY: Final = 1e-6


class Bucket:
    """A limit of `amount` in each `period_s`; None is no limit.

    It refills steadily and holds what flows in within `holds_s`; or, with `is_fixed`, it is full again at the end of
    each period and takes in nothing before. `others_share` of what flows in is somebody else's.
    """

    def __init__(self, amount: float | None, period_s: float, holds_s: float, *, is_fixed: bool) -> None:
        self.amount = amount
        self.period_s = period_s
        self.others_share = 0.0
        self._holds_s = period_s if is_fixed else holds_s
        self._is_fixed = is_fixed
        self._now = 0.0
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        """What it holds when it is full: one at least."""
        return math.inf if self.amount is None else max(1.0, self.amount * self._holds_s / self.period_s)

    def change(self, amount: float | None) -> None:
        """Have another limit from now on; what is above its capacity is lost."""
        was_unlimited, self.amount = self.amount is None, amount
        self.level = self.capacity if was_unlimited else min(self.level, self.capacity)

    def advance(self, now: float) -> None:
        """Let time pass: what flows in is added, what others take is taken away."""
        began, self._now = self._now, now
        if self.amount is None:
            return
        if self._is_fixed and now // self.period_s > began // self.period_s:
            began, self.level = now - now % self.period_s, self.capacity
        inflow = -self.others_share if self._is_fixed else 1 - self.others_share
        flowed = (now - began) * inflow * self.amount / self.period_s
        self.level = max(0.0, min(self.capacity, self.level + flowed))

    def wait_s(self, charge: float) -> float:
        """Return how long until `charge` can be taken; 0 if it can be now, infinite if never."""
        missing = charge - self.level
        if self.amount is None or missing <= _NEARLY:
            return 0.0
        if charge > self.capacity + _NEARLY:
            return math.inf
        if self._is_fixed:
            return self.reset_s()
        return missing * self.period_s / self.amount / (1 - self.others_share)

    def take(self, charge: float) -> None:
        """Take `charge`, as far as there is so much."""
        self.level = max(0.0, self.level - charge)

    def give_back(self, charge: float) -> None:
        """Put back what was not used; what doesn't fit is lost."""
        self.level = min(self.capacity, self.level + charge)

    def left(self) -> int:
        """Return what is left, whole ones only."""
        return math.floor(self.level + _NEARLY)

    def reset_s(self) -> float:
        """Return how long until it is full: until the period's end, or until the rest has flowed in."""
        if self.amount is None:
            return 0.0
        if self._is_fixed:
            return self.period_s - self._now % self.period_s
        return (self.capacity - self.level) * self.period_s / self.amount
