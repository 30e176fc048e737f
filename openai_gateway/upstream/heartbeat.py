"""Gives a sign of life while a stream is silent, so that no balancer on the way takes its connection for dead.

Looks a few times within the interval whether the stream has moved, which costs its events nothing. See also: pump (what
the sign is, and whether it may be given now).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import gevent

_TICKS: Final = 4


class Heartbeat:
    """Has the hub call `beat` when what `measure` returns has stayed the same for nearly `seconds`, and so on."""

    def __init__(self, seconds: float, measure: Callable[[], int], beat: Callable[[], None]) -> None:
        self._measure = measure
        self._beat = beat
        self._last = measure()
        self._silent_ticks = 0
        self._timer = gevent.get_hub().loop.timer(seconds / _TICKS, seconds / _TICKS)
        self._timer.start(self._tick)

    def _tick(self) -> None:
        now = self._measure()
        self._silent_ticks = self._silent_ticks + 1 if now == self._last else 0
        self._last = now
        if self._silent_ticks >= _TICKS - 1:
            self._silent_ticks = 0
            self._beat()

    def stop(self) -> None:
        """Beat no more."""
        self._timer.stop()
        self._timer.close()
