"""How fast calls were sent of late: over the last span of some calls and a second at least, and the one under way.

Pure: the clock (monotonic seconds) is an argument, and so is the number of calls sent so far. See also: limiter,
blind (what is made of it).
"""

from __future__ import annotations

from typing import Final

import msgspec

# Whoever counts calls says so at each of so many.
SPAN_CALLS: Final = 16
_SPAN_S: Final = 1.0
# Nothing is told from a shorter time.
_SHORTEST_S: Final = 0.1


class SeenRate(msgspec.Struct, array_like=True, eq=False):
    """Calls and seconds of the span before, and when the one under way began, after how many calls."""

    _calls: float = 0.0
    _passed_s: float = 0.0
    _at: float = 0.0
    _number: int = 0

    def look(self, number: int, now: float) -> bool:
        """Learn that the call of this number is sent now; tell whether a span ends with it."""
        if now - self._at < _SPAN_S:
            return False
        self._calls, self._passed_s = (number - 1.0 - self._number, now - self._at) if self._at else (0.0, 0.0)
        self._at, self._number = now, number - 1
        return True

    def per_s(self, number: int, now: float) -> float:
        """Return how many calls a second were sent, so many being sent by now."""
        calls, passed_s = number - self._number, now - self._at
        # Before a rush there may have been nothing for long.
        of_rush = calls / max(passed_s, _SHORTEST_S) if calls >= SPAN_CALLS else 0.0
        return max((self._calls + calls) / max(self._passed_s + passed_s, _SHORTEST_S), of_rush)

    def calls(self, number: int, now: float) -> float:
        """Return how many calls `per_s` counts; none if that was long ago."""
        return self._calls + number - self._number if now - self._at < 2 * _SPAN_S else 0.0

    def join(self, per_s: float, now: float) -> None:
        """Take in somebody else's calls, so many a second, in both spans: the one under way will be the one before."""
        self._calls += per_s * self._passed_s
        self._number -= round(per_s * max(now - self._at, _SHORTEST_S - self._passed_s))
