"""The slots that cap concurrent upstream calls of this process, and what a call has that was given one.

See also: queue (waiting for one).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import msgspec
from gevent.lock import BoundedSemaphore

from openai_gateway.limits.attempts import SentAttempt
from openai_gateway.limits.sharing import SharedLimits


class Slots:
    """The slots of one server: at most `cap` taken, None is any number.

    `on_free` is called for each given back while there is anybody in `waiting`.
    """

    def __init__(self, cap: int | None, waiting: Collection[object], on_free: Callable[[], None]) -> None:
        self.cap: Final = cap
        self.in_flight = 0
        # Where calls in flight are counted for all workers of the host; locked by whoever takes a slot.
        self.on_host: SharedLimits | None = None
        # Bounded: one given back twice is an error that shows, not a cap that has grown.
        self._semaphore = BoundedSemaphore(cap) if cap is not None else None
        self._waiting = waiting
        self._on_free = on_free

    def take(self) -> bool:
        """Take a slot; False if none is free."""
        semaphore = self._semaphore
        if semaphore is not None and not semaphore.acquire(blocking=False):
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
            self.on_host.count(-1)
        if self._waiting:
            self._on_free()


class Admitted(msgspec.Struct, eq=False):
    """What a call has while it is under way: a slot, and its charge if limits apply to it.

    `reason` is what it waited for last: slot, rate, tokens, window, pause; "" if for nothing.
    """

    slots: Slots | None
    sent: SentAttempt | None
    reason: str = ""

    def release(self) -> None:
        """Give the slot back; once is enough, more does nothing."""
        slots, self.slots = self.slots, None
        if slots is not None:
            slots.give_back()
