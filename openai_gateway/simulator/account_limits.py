"""The limits of a simulated account: requests, tokens and calls in flight, as real upstreams count them.

A call is charged when it is admitted; what it is told then stays what its answer's headers say, however long the answer
takes. Beside each limit of a minute there may be a hidden one, which counts in a shorter window and which no header
tells of.

The clock is an argument (seconds). See also: buckets (one limit), dialects (the words they are told in), simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.simulator.buckets import Bucket
from openai_gateway.simulator.settings import SimulatorSettings

_MINUTE_S: Final = 60.0
_DAY_S: Final = 86_400.0
# Nobody knows when a call in flight will end.
_IN_FLIGHT_WAIT_S: Final = 1.0


@dataclass(frozen=True)
class LimitStatus:
    """What is told of a limit as a call was admitted or refused; `limit` None is none."""

    limit: int | None
    remaining: int
    reset_s: float


@dataclass(frozen=True)
class LimitExceeded:
    """A call that is not admitted, and for which limit: `requests`, `requests_per_day`, `tokens` or `in_flight`.

    `wait_s` is infinite if it never can be: it needs more than the whole limit.
    """

    kind: str
    limit: int
    used: int
    requested: int
    wait_s: float


class Charge:
    """What an admitted call was charged; `end` has to be called once it is over."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end: Callable[[], None] | None = on_end

    def end(self) -> None:
        """End the call; once is enough, more does nothing."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()


class Limits:
    """The limits of one account; time counts from its first call."""

    def __init__(self, settings: SimulatorSettings, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: float | None = None
        self._changes = list(settings.limit_changes)
        self._in_flight = 0
        self._most_in_flight = settings.in_flight
        self._are_refusals_charged = settings.refusals_charged
        self._is_unused_given_back = settings.unused_given_back
        self._window_s = settings.window_s
        self._others_share = settings.others_share
        is_fixed = settings.fixed_window
        self._told = {
            "requests": Bucket(settings.rpm, _MINUTE_S, settings.burst_s, is_fixed=is_fixed),
            "tokens": Bucket(settings.tpm, _MINUTE_S, settings.burst_s, is_fixed=is_fixed),
            "requests_per_day": Bucket(settings.rpd, _DAY_S, _DAY_S, is_fixed=is_fixed),
        }
        # The limits of the shorter window, fixed ones.
        self._hidden = {
            kind: Bucket(self._find_hidden(amount), self._window_s or _MINUTE_S, 0.0, is_fixed=True)
            for kind, amount in (("requests", settings.rpm), ("tokens", settings.tpm))
        }
        self._apply({"others_share": settings.others_share})

    def admit(self, tokens: int, unused_tokens: int) -> Charge | LimitExceeded:
        """Charge one request of so many tokens, of which `unused_tokens` will not be used; or refuse it."""
        if self._began is None:
            self._began = self._clock()
        self._advance()
        refusal = self._find_refusal(tokens)
        if refusal is not None:
            if self._are_refusals_charged:
                for kind, bucket in self._buckets():
                    if kind != "tokens":
                        bucket.take(1)
            return refusal
        self._in_flight += 1
        for kind, bucket in self._buckets():
            bucket.take(tokens if kind == "tokens" else 1)
        return Charge(lambda: self._end(unused_tokens if self._is_unused_given_back else 0))

    def tell(self) -> dict[str, LimitStatus]:
        """Return what is told now of `requests`, `tokens` and `requests_per_day`."""
        self._advance()
        return {
            kind: LimitStatus(None, 0, 0.0)
            if bucket.amount is None
            else LimitStatus(int(bucket.amount), bucket.left(), bucket.reset_s())
            for kind, bucket in self._told.items()
        }

    def _end(self, unused_tokens: int) -> None:
        self._advance()
        self._in_flight -= 1
        for kind, bucket in self._buckets():
            if kind == "tokens":
                bucket.give_back(unused_tokens)

    def _find_refusal(self, tokens: int) -> LimitExceeded | None:
        slots = math.inf if self._most_in_flight is None else int(self._most_in_flight * (1 - self._others_share))
        if self._in_flight >= slots:
            return LimitExceeded("in_flight", int(slots), self._in_flight, 1, _IN_FLIGHT_WAIT_S)
        waits_s: dict[str, float] = {}
        for kind, bucket in self._buckets():
            charge = float(tokens if kind == "tokens" else 1)
            # Of a window too short for a call, the call takes all.
            charge = charge if bucket is self._told[kind] else min(charge, bucket.capacity)
            waits_s[kind] = max(bucket.wait_s(charge), waits_s.get(kind, 0.0))
        kind = max(waits_s, key=lambda name: waits_s[name])
        if waits_s[kind] <= 0:
            return None
        limit = int(self._told[kind].amount or 0)
        used = max(0, limit - self._told[kind].left())
        return LimitExceeded(kind, limit, used, tokens if kind == "tokens" else 1, waits_s[kind])

    def _buckets(self) -> list[tuple[str, Bucket]]:
        return [*self._told.items(), *self._hidden.items()]

    def _advance(self) -> None:
        """Let the time pass that has passed, with the changes that were due in it."""
        if self._began is None:
            return
        now = self._clock() - self._began
        while self._changes and self._changes[0]["at_s"] <= now:
            change = self._changes.pop(0)
            self._flow(change["at_s"])
            self._apply(change)
        self._flow(now)

    def _flow(self, now: float) -> None:
        for _, bucket in self._buckets():
            bucket.advance(now)

    def _apply(self, change: Mapping[str, Any]) -> None:
        self._most_in_flight = change.get("in_flight", self._most_in_flight)
        self._others_share = change.get("others_share", self._others_share)
        for _, bucket in self._buckets():
            bucket.others_share = self._others_share
        for kind, name in (("requests", "rpm"), ("tokens", "tpm")):
            if name in change:
                self._told[kind].change(change[name])
                self._hidden[kind].change(self._find_hidden(change[name]))

    def _find_hidden(self, amount: int | None) -> float | None:
        return amount * self._window_s / _MINUTE_S if amount is not None and self._window_s else None
