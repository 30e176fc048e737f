"""How values spread over magnitudes: counted by steps, of which eight make a doubling, the same size for any number.

Of a report's token counts, costs, latencies and lengths. See also: plots (how they are drawn).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

import msgspec

_STEPS: Final = 8
# Values below are counted as nothing: no token, cost or time of interest is smaller.
_LEAST: Final = 1e-9


class Bar(msgspec.Struct, frozen=True):
    """Values from `low` up to `high`, how many there are."""

    low: float
    high: float
    count: int


class Spread(msgspec.Struct):
    """The values added so far."""

    steps: Counter[int] = msgspec.field(default_factory=Counter)
    zeros: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    @property
    def count(self) -> int:
        """How many values there are."""
        return self.zeros + self.steps.total()

    def add(self, value: float) -> None:
        """Add a value that is not negative."""
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        if value < _LEAST:
            self.zeros += 1
        else:
            self.steps[math.floor(math.log2(value) * _STEPS)] += 1

    def find_quantile(self, share: float) -> float:
        """Return what a share of the values don't exceed, to within 9 %; 0 if there are none."""
        rest = self.count * share - self.zeros
        if rest <= 0:
            return 0.0
        for step, count in sorted(self.steps.items()):
            rest -= count
            if rest <= 0:
                return min(2 ** ((step + 1) / _STEPS), self.most)
        return self.most

    def make_bars(self, most_bars: int) -> list[Bar]:
        """Return the counts in at most so many bars of equal steps, from the least value to the most."""
        if not self.steps:
            return []
        low, high = min(self.steps), max(self.steps)
        width = max(1, math.ceil((high - low + 1) / most_bars))
        bars = []
        for start in range(low, high + 1, width):
            count = sum(self.steps[step] for step in range(start, start + width))
            bars.append(Bar(2 ** (start / _STEPS), 2 ** ((start + width) / _STEPS), count))
        return bars
