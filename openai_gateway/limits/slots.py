"""The slots that cap concurrent upstream calls of this process.

Waiting for one is `queue`'s; that each is given back once is `Turn`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gevent.lock import BoundedSemaphore

from openai_gateway.limits.sharing import SharedLimits


class Slots:
    """The slots of one server: at most `cap` taken, None is any number; `on_free` is called for each given back."""

    def __init__(self, cap: int | None, on_free: Callable[[], None]) -> None:
        self.cap: Final = cap
        self.in_flight = 0
        # Where calls in flight are counted for all workers of the host; locked by whoever takes a slot.
        self.on_host: SharedLimits | None = None
        self._on_free = on_free
        self._semaphore = BoundedSemaphore(cap) if cap is not None else None

    def take(self) -> bool:
        """Take a slot; False if none is free."""
        if self._semaphore is not None and not self._semaphore.acquire(blocking=False):
            return False
        self.in_flight += 1
        if self.on_host is not None:
            self.on_host.count(1)
        return True

    def give_back(self) -> None:
        """Give one slot back."""
        self.in_flight -= 1
        if self._semaphore is not None:
            self._semaphore.release()
        if self.on_host is not None:
            self.on_host.begin_counting()
            self.on_host.count(-1)
            self.on_host.end(None)
        self._on_free()
