"""The queue of one server: calls wait here for a slot and for the limiter's word, and go in the order's order.

The strategy. `learn` lets calls go for as long as the first in order may. It runs whenever that may have changed: a
call comes, a slot is given back, the upstream said something, or the time came that the limiter named (one timer).
Whoever is let go has slot and charge already when its greenlet wakes; a greenlet that is killed before gives both back.
A call that finds nobody waiting, a slot, and no limit goes through without any of this.

See also: limiter (what is known of the limits), order (who goes first).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

import gevent

from openai_gateway.errors import Saturated, Unavailable
from openai_gateway.limits.attempts import Bounds, SentAttempt, Tries
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.order import Order, Place, Rollout
from openai_gateway.limits.patience import Patience, Waiting
from openai_gateway.limits.sharing import SharedLimits
from openai_gateway.limits.slots import Admitted, Slots
from openai_gateway.limits.state import Known
from openai_gateway.wire.rate_limits import RateLimit, Refusal

# A timer that is due a little too early would only have to be set again.
_LATER_S: Final = 0.0005
_LOOK_AGAIN_S: Final = 0.01
_ELDERS_S: Final = 0.03


class Queue:
    """The queue of one server."""

    def __init__(self, limiter: Limiter, order: Order, bounds: Bounds) -> None:
        self.waiting: dict[Place, Waiting] = {}
        self.slots = Slots(bounds.cap, self.waiting, self._on_free)
        self.limiter = limiter
        # What the first call waits for.
        self.reason = ""
        self._order = order
        self._max_queue, self._timeout_s = bounds.max_queue, bounds.timeout_s
        self._patience = Patience(bounds.patience_s)
        self._shared: SharedLimits | None = None
        self._most_of_host = bounds.most_of_host
        self._joined_at = 0.0
        # Since when an older rollout's call in another worker is let go first.
        self._yields_since = math.inf
        self._has_joined = self._is_closed = self._is_look = False
        self._timer: Any = None
        self._due = 0.0

    def share(self, shared: SharedLimits, *, at_once: bool = False) -> None:
        """Share cap and limiter with the other workers of this host, at once or as soon as a limit is known to any."""
        self._shared = shared
        if at_once or self._most_of_host is not None:
            self._start_sharing()
        self._begin()
        self._end(has_learnt=False)

    def take_at_once(self, rollout: Rollout, tokens: float, *, is_limited: bool) -> Admitted | None:
        """Admit a call that need not wait; None if it must; as for `take`'s place."""
        if self.waiting:
            return None
        limiter, slots, running = self.limiter, self.slots, self.slots.in_flight
        is_alone = self._most_of_host is None and (self._shared is None or not self._shared.is_in_use)
        if is_limited and is_alone and not limiter.is_bound and running < limiter.window.most and slots.take():
            # What `_let_go` comes to for most calls, for no limit is known, in fewer steps.
            return Admitted(slots, limiter.start(tokens, running, monotonic()))
        now = monotonic()
        # Only other workers' calls come before it.
        shared = slots.on_host
        rank = self._order.rank(rollout, now) if shared is not None and shared.has_waiting(now) else now
        return self._let_go(rank, tokens, is_limited, now)

    def take(self, place: Place) -> Admitted:
        """Admit a call, which waits if need be. Raises Saturated."""
        if self._max_queue is not None and len(self.waiting) >= self._max_queue:
            raise Saturated(
                f"The gateway's queue is full ({self._max_queue} calls are waiting).",
                code="gateway_queue_full",
                retry_after_s=1,
            )
        admitted = self._wait(place, self._timeout_s, is_first=True)
        if admitted is None:
            raise Saturated(
                f"The call waited {self._timeout_s:g} s for a slot in vain.",
                code="gateway_queue_timeout",
                retry_after_s=1,
            )
        return admitted

    def take_again(self, place: Place, until: float | None) -> Admitted | None:
        """Admit a call that was refused; None if it could not be by `until`."""
        return self._wait(place, None if until is None else max(0.0, until - monotonic()))

    def answer(self, sent: SentAttempt, limits: Mapping[str, RateLimit], refused: Tries | None = None) -> None:
        """Learn from an answer that is no refusal, of a call that was `refused` before, and let calls go that may."""
        # What was sent before was not charged where others see it.
        limits = limits if sent.at >= self._joined_at else {}
        if refused is not None or not self.limiter.is_unmoved(limits):
            self._begin()
            try:
                if refused is not None:
                    self.limiter.vouch(refused, monotonic())
                self.limiter.answer(sent, limits)
            finally:
                self._end(has_learnt=True)
        if self.waiting:
            self._patience.passed_at = monotonic()
            self.learn()

    def refuse(
        self, sent: SentAttempt, limits: Mapping[str, RateLimit], refusal: Refusal, tries: Tries, now: float
    ) -> float | None:
        """Learn from a 429; return how long its call must wait at least, None if it can't pass at all."""
        running = self._begin()
        try:
            if sent.at < self._joined_at:
                return self.limiter.refuse_earlier(sent, running, refusal, tries, now)
            return self.limiter.refuse(sent, limits, refusal, tries, now)
        finally:
            self._end(has_learnt=True)

    def close(self) -> None:
        """Have all calls that wait, or would have to, give up: they raise Unavailable."""
        self._is_closed = True
        for waiting in self.waiting.values():
            waiting.event.set()

    def charge_again(self, sent: SentAttempt) -> SentAttempt:
        """Charge a further attempt of a call that keeps its slot."""
        running = self._begin()
        try:
            return self.limiter.start(sent.tokens, running - 1, monotonic())
        finally:
            self._end(has_learnt=True)

    def cancel(self, sent: SentAttempt) -> None:
        """Take back the charge of an attempt that was never sent."""
        self._begin()
        try:
            # What was charged before is not in the account that this process has joined.
            if sent.at >= self._joined_at:
                self.limiter.cancel(sent)
        finally:
            self._end(has_learnt=True)

    def learn(self) -> None:
        """Let calls go that may, now that a slot is free or the limiter has learnt something."""
        now = monotonic()
        while not self._is_closed and (place := self._order.first(now)) is not None:
            reason = self.reason
            admitted = self._let_go(place.rank_of_host, place.tokens, place.is_limited, now)
            if admitted is None:
                return
            admitted.reason = reason
            self._order.admit(place, now)
            waiting = self.waiting.pop(place)
            waiting.admitted = admitted
            waiting.event.set()

    def _wait(self, place: Place, timeout_s: float | None, *, is_first: bool = False) -> Admitted | None:
        waiting = self.waiting[place] = Waiting()
        self._order.add(place, monotonic())
        try:
            self.learn()
            if waiting.admitted is None and not self._is_closed:
                if not is_first:
                    waiting.event.wait(timeout_s)
                elif self._patience.wait(waiting.event, timeout_s, self._is_refused):
                    raise Saturated("The upstream refuses every call.", code="gateway_queue_timeout", retry_after_s=1)
            if waiting.admitted is None and self._is_closed:
                raise Unavailable("The gateway lets no more calls wait.", retry_after_s=1)
            return waiting.admitted
        except BaseException:
            if waiting.admitted is not None:
                self._take_back(waiting.admitted)
            raise
        finally:
            if self.waiting.pop(place, None) is not None:
                self._order.remove(place)
                self.learn()

    def _is_refused(self) -> bool:
        """Tell whether the upstream refuses every call: it has accepted none of those that are in flight, either."""
        running = self._begin()
        self._end(has_learnt=False)
        return self.limiter.refuses_all and not running

    def _take_back(self, admitted: Admitted) -> None:
        if admitted.sent is not None:
            self.cancel(admitted.sent)
        admitted.release()

    def _on_free(self) -> None:
        self._order.learn_end(self.slots.in_flight + 1, monotonic())
        self.learn()

    def _let_go(self, rank: float, tokens: float, is_limited: bool, now: float) -> Admitted | None:
        """Admit a call if it may go now; else the timer is set for when it may."""
        wait_s, waits_for, sent = 0.0, "", None
        running = self._begin()
        try:
            if self._is_look:
                self._is_look = False
                self.limiter.look(running, now)
            if self._most_of_host is not None and running >= self._find_most(now):
                wait_s, waits_for = _LOOK_AGAIN_S, "slot"
            elif is_limited:
                wait_s, waits_for = self.limiter.wait_s(tokens, running, now)
            shared = self.slots.on_host
            is_elders = wait_s <= 0 and shared is not None and is_limited and shared.has_elder(rank, now)
            self._yields_since = min(self._yields_since, now) if is_elders else math.inf
            # What flows in is for the elder, or a call of many tokens would never go. Of calls in flight nothing is
            # saved up: one that does not go after all must not cost any of that limit.
            if is_elders and (not self.limiter.window.is_held or now - self._yields_since < _ELDERS_S):
                wait_s, waits_for = _LOOK_AGAIN_S, "rate"
            if wait_s <= 0:
                if not self.slots.take():
                    self.reason = "slot"
                    return None
                if is_limited:
                    sent = self.limiter.start(tokens, running, now)
            elif shared is not None:
                shared.say_head(rank, now, waits_for, max(1, len(self.waiting)))
        finally:
            self._end(has_learnt=sent is not None or self.limiter.has_news)
        if wait_s > 0:
            self.reason = waits_for
            # What another worker gives back, it tells nobody.
            self._set_timer(now, min(wait_s, _LOOK_AGAIN_S) if shared is not None else wait_s + _LATER_S)
            return None
        return Admitted(self.slots, sent)

    def _find_most(self, now: float) -> int:
        most, shared = self._most_of_host or 0, self.slots.on_host
        return most if shared is None else shared.most(most, now)

    def _begin(self) -> int:
        """Return how many calls are in flight, with the limiter as it is on this host; `_end` has to follow."""
        shared = self.slots.on_host
        if shared is None:
            if self._shared is None or not (self.limiter.is_bound or self._shared.is_in_use):
                return self.slots.in_flight
            shared = self._start_sharing()
        try:
            known = shared.begin()
            if self._joined_at < 0:
                self._join(known)
            elif known is not None:
                self.limiter.take(known)
            most, most_of_host = self.limiter.window.most, self._most_of_host
            return shared.running(most if most_of_host is None or most < most_of_host else most_of_host)
        except BaseException:
            # A lock that is left would stop every worker of the host.
            shared.end(None)
            raise

    def _join(self, known: Known | None) -> None:
        """Add what this worker does to what others have learnt; the first one's own is what is known."""
        self._joined_at, self._has_joined = 0.0, True
        if known is not None:
            now = self._joined_at = monotonic()
            self.limiter.join(known, self.slots.in_flight, now)

    def _start_sharing(self) -> SharedLimits:
        shared = self.slots.on_host = self._shared
        assert shared is not None
        shared.join(self.slots.in_flight)
        # Known with the first look at what others have learnt.
        self._joined_at = -1.0
        return shared

    def _end(self, *, has_learnt: bool) -> None:
        shared, limiter = self.slots.on_host, self.limiter
        if shared is None:
            return
        known: Known | None = None
        try:
            if has_learnt or self._has_joined:
                known, self._has_joined = limiter.to_known(is_whole=shared.needs_state), False
        finally:
            shared.end(known)

    def _set_timer(self, now: float, wait_s: float) -> None:
        if now < self._due <= now + wait_s:
            return
        if self._timer is not None:
            self._timer.close()
        self._due, self._timer = now + wait_s, gevent.get_hub().loop.timer(wait_s)
        self._timer.start(self._on_time, update=True)

    def _on_time(self) -> None:
        self._due, self._is_look = 0.0, True
        self.learn()
