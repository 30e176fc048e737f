"""The queue of one server: calls wait here for a slot and for the limiter's word, and go in the order's order.

The strategy. `_pump` lets calls go for as long as the first in order may. It runs whenever that may have changed: a
call comes, a slot is given back, the upstream said something, or the time came that the limiter named (one timer).
Whoever is let go has slot and charge already when its greenlet wakes; a greenlet that is killed before gives both back.
A call that finds nobody waiting, a slot, and no limit goes through without any of this.

What is known of the limits is `limiter`'s, who goes first is `order`'s.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

import gevent
from gevent.event import Event

from openai_gateway.errors import Saturated
from openai_gateway.limits.limiter import Limiter, Sent
from openai_gateway.limits.order import Order, Place
from openai_gateway.limits.slots import Slots

# A timer that is due a little too early would only have to be set again.
_LATER_S: Final = 0.0005


class Turn:
    """What a call has while it is under way: a slot, and its charge if limits apply to it.

    `reason` is what it waited for last: slot, rate, tokens, window, pause; "" if for nothing.
    """

    __slots__ = ("_slots", "reason", "sent")

    def __init__(self, slots: Slots, sent: Sent | None, reason: str) -> None:
        self._slots: Slots | None = slots
        self.sent = sent
        self.reason = reason

    def release(self) -> None:
        """Give the slot back; once is enough, more does nothing."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.give_back()


class _Waiting:
    __slots__ = ("event", "turn")

    def __init__(self) -> None:
        self.event = Event()
        self.turn: Turn | None = None


class Queue:
    """The queue of one server; at most `max_queue` calls wait in it, each at most `timeout_s` seconds."""

    def __init__(
        self, cap: int | None, limiter: Limiter, order: Order, max_queue: int | None, timeout_s: float | None
    ) -> None:
        self.slots = Slots(cap, self.learn)
        self.limiter = limiter
        # What the first call waits for.
        self.reason = ""
        self._order = order
        self._max_queue = max_queue
        self._timeout_s = timeout_s
        self._waiting: dict[Place, _Waiting] = {}
        self._timer: Any = None
        self._due = 0.0

    @property
    def queued(self) -> int:
        """Return how many calls wait."""
        return len(self._waiting)

    def take_at_once(self, tokens: float, *, is_limited: bool) -> Turn | None:
        """Return the turn of a call that needn't wait, None if it must."""
        return None if self._waiting else self._let_go(tokens, is_limited, monotonic(), "")

    def take(self, place: Place) -> Turn:
        """Return a call's turn, waiting for it if need be. Raises Saturated."""
        if self._max_queue is not None and len(self._waiting) >= self._max_queue:
            raise Saturated(
                f"The gateway's queue is full ({self._max_queue} calls are waiting).",
                code="gateway_queue_full",
                retry_after_s=1,
            )
        turn = self._wait(place, self._timeout_s)
        if turn is None:
            raise Saturated(
                f"The call waited {self._timeout_s:g} s for a slot in vain.",
                code="gateway_queue_timeout",
                retry_after_s=1,
            )
        return turn

    def take_again(self, place: Place, until: float | None) -> Turn | None:
        """Return the turn of a call that was refused, before all others; None if there is none by `until`."""
        place.is_refused = True
        return self._wait(place, None if until is None else max(0.0, until - monotonic()))

    def learn(self) -> None:
        """Let calls go that may, now that a slot is free or the limiter has learnt something."""
        if self._waiting:
            self._pump()

    def _wait(self, place: Place, timeout_s: float | None) -> Turn | None:
        waiting = self._waiting[place] = _Waiting()
        self._order.add(place, monotonic())
        try:
            self._pump()
            if waiting.turn is None:
                waiting.event.wait(timeout_s)
            return waiting.turn
        except BaseException:
            if waiting.turn is not None:
                if waiting.turn.sent is not None:
                    self.limiter.cancel(waiting.turn.sent)
                waiting.turn.release()
            raise
        finally:
            if self._waiting.pop(place, None) is not None:
                self._order.remove(place)
                self.learn()

    def _pump(self) -> None:
        now = monotonic()
        while (place := self._order.first(now)) is not None:
            turn = self._let_go(place.tokens, place.is_limited, now, self.reason)
            if turn is None:
                return
            self._order.admit(place, now)
            waiting = self._waiting.pop(place)
            waiting.turn = turn
            waiting.event.set()

    def _let_go(self, tokens: float, is_limited: bool, now: float, reason: str) -> Turn | None:
        """Return a call's turn if it may go now; else the timer is set for when it may."""
        slots, limiter = self.slots, self.limiter
        running = slots.in_flight
        if is_limited:
            wait_s, waits_for = limiter.wait_s(tokens, running, now)
            if wait_s > 0:
                self.reason = waits_for
                self._set_timer(now, wait_s + _LATER_S)
                return None
        if not slots.take():
            self.reason = "slot"
            return None
        return Turn(slots, limiter.start(tokens, running, now) if is_limited else None, reason)

    def _set_timer(self, now: float, wait_s: float) -> None:
        if now < self._due <= now + wait_s:
            return
        if self._timer is not None:
            self._timer.close()
        self._due = now + wait_s
        self._timer = gevent.get_hub().loop.timer(wait_s)
        self._timer.start(self._on_time, update=True)

    def _on_time(self) -> None:
        self._due = 0.0
        self.learn()
