"""Asks the upstream how it is for whoever wants to know, without a key: one at a time, and its answer is kept.

See also: upstream.relay (how it is asked).
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from gevent.lock import BoundedSemaphore

KEPT_S: Final = 10.0


class KeptProbe:
    """What a probe said last; whoever asks meanwhile waits for the one that is under way."""

    def __init__(self, probe: Callable[[float], int | str], clock: Callable[[], float] = monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._turn = BoundedSemaphore(1)
        self._answer: int | str = ""
        self._answered_at = float("-inf")

    def ask(self, seconds: float) -> int | str:
        """Return the answer, made within `seconds` or at most KEPT_S old."""
        with self._turn:
            if self._clock() - self._answered_at >= KEPT_S:
                self._answer = self._probe(seconds)
                self._answered_at = self._clock()
            return self._answer
