"""The slots that cap concurrent upstream calls, and the bounds of the queue for them.

Every slot taken is given back by `Slot.release()`, which may be called any number of times.
"""

from __future__ import annotations

from typing import Protocol

from gevent.lock import BoundedSemaphore

from openai_gateway.errors import Saturated


class _Counted(Protocol):
    in_flight: int

    def give_back(self) -> None: ...


class Slot:
    """One place among the concurrent upstream calls."""

    __slots__ = ("_slots",)

    def __init__(self, slots: _Counted) -> None:
        self._slots: _Counted | None = slots

    def release(self) -> None:
        """Give the slot back; once is enough, more does nothing."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.give_back()


class Slots:
    """The slots of one server: at most `cap` taken (None: any number), at most `max_queue` calls waiting.

    `queue_timeout_s` bounds the wait in seconds, None does not.
    """

    def __init__(self, cap: int | None, max_queue: int | None, queue_timeout_s: float | None) -> None:
        self.cap = cap
        self.in_flight = 0
        self.queued = 0
        self._max_queue = max_queue
        self._queue_timeout_s = queue_timeout_s
        self._semaphore = BoundedSemaphore(cap) if cap is not None else None

    def take(self) -> Slot:
        """Return a slot, waiting for it if need be. Raises Saturated."""
        semaphore = self._semaphore
        if semaphore is not None and not (self.queued == 0 and semaphore.acquire(blocking=False)):
            self._wait(semaphore)
        self.in_flight += 1
        return Slot(self)

    def give_back(self) -> None:
        """Take one call off the count; called by Slot."""
        self.in_flight -= 1
        if self._semaphore is not None:
            self._semaphore.release()

    def _wait(self, semaphore: BoundedSemaphore) -> None:
        if self._max_queue is not None and self.queued >= self._max_queue:
            raise Saturated(
                f"The gateway's queue is full ({self._max_queue} calls are waiting).",
                code="gateway_queue_full",
                retry_after_s=1,
            )
        self.queued += 1
        try:
            taken = semaphore.acquire(timeout=self._queue_timeout_s)
        finally:
            self.queued -= 1
        if not taken:
            raise Saturated(
                f"The call waited {self._queue_timeout_s:g} s for a slot in vain.",
                code="gateway_queue_timeout",
                retry_after_s=1,
            )
