"""Keeps this host in touch with others through Redis: a greenlet exchanges what they share, four times a second.

A part may ask for more, for itself: as long as refusals alone tell of a limit, hosts meet it together, and each is
refused anew until it hears of the first refusal. So of that it tells at once, and another greenlet listens.

No call ever waits for it. In each of the host's workers one runs, but only that of the worker that leads speaks; parts
are led apart from each other. Redis away: each part is told so, calls go on, and the log has one line, and another when
it is back. See also: host_exchange and accounting.spend_exchange (the parts), redis_link (the connection).
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, Protocol

import gevent
from gevent.event import Event

from openai_gateway.limits.host_limiter import PERIOD_S
from openai_gateway.limits.redis_link import Command, Link, RedisAway

_log = logging.getLogger("openai_gateway")
# What is urgent in another worker of this host is seen within so long.
_LOOK_S: Final = 0.01
_LISTEN_AGAIN_S: Final = 1.0
# A part whose period is over but for so little needn't wait for another round.
_NEARLY: Final = 0.9


class Part(Protocol):
    """Something that hosts share, by its name."""

    name: str
    # How long it is from one exchange to the next.
    period_s: float
    # Where other hosts say what is urgent, and whether it is to be heard now.
    channel: str
    is_listening: bool
    # To be called if an exchange has to be at once.
    wake: Callable[[], None]

    def is_urgent(self, now: float) -> bool:
        """Tell whether the next exchange has to be at once."""

    def hear(self, message: bytes, now: float, clock: float) -> None:
        """Write down what was said in the channel."""

    def lead(self, now: float) -> bool:
        """Tell whether this worker speaks for its host."""

    def make_commands(self, now: float, clock: float) -> list[Command]:
        """Return what to ask Redis, whose time is `clock`."""

    def take(self, replies: list[Any], now: float, clock: float) -> list[Command]:
        """Write down what Redis said; return what to tell it next time, besides."""

    def miss(self, now: float) -> None:
        """Go on without, for Redis is away."""


class RedisExchange:
    """The exchange of some parts over one link."""

    def __init__(self, link: Link) -> None:
        self._parts: dict[str, Part] = {}
        self._link = link
        self._asked_at: dict[str, float] = {}
        self._next: list[Command] = []
        self._is_up: bool | None = None
        self._broken: set[str] = set()
        self._woken = Event()

    @property
    def period_s(self) -> float:
        """How long it is from one exchange to the next."""
        return min((part.period_s for part in self._parts.values()), default=PERIOD_S)

    def add(self, part: Part) -> None:
        """Exchange this, too; servers with the same upstream, key and model have one part between them."""
        self._parts.setdefault(part.name, part)
        part.wake = self._woken.set

    def start(self) -> None:
        """Exchange from now on, and listen, in greenlets."""
        gevent.spawn(self._run)
        gevent.spawn(self._listen)

    def find_due(self, now: float) -> list[Part]:
        """Return the parts whose period is over, or that can't wait for that; it begins anew."""
        due = [
            part
            for part in self._parts.values()
            if now - self._asked_at.get(part.name, -math.inf) >= _NEARLY * part.period_s or part.is_urgent(now)
        ]
        self._asked_at.update((part.name, now) for part in due)
        return due

    def once(self, due: Sequence[Part] | None = None) -> None:
        """Exchange once, those parts that this worker leads: all, or of those that are due."""
        leading = [part for part in self._parts.values() if self._try(part, part.lead, monotonic())]
        if not leading:
            self._link.close()
        elif asking := [part for part in leading if due is None or part in due]:
            self._exchange(asking)

    def _exchange(self, leading: Sequence[Part]) -> None:
        try:
            clock = self._link.clock()
            now = monotonic()
            asked = {part.name: self._ask_for(part, now, clock) for part in leading}
            besides, self._next = self._next, []
            replies = self._link.ask([*besides, *itertools.chain.from_iterable(asked.values())])[len(besides) :]
        except RedisAway as away:
            self._tell(is_up=False, why=str(away))
            for part in leading:
                if self._try(part, part.lead, monotonic()):
                    self._try(part, part.miss, monotonic())
            return
        self._tell(is_up=True)
        for part in leading:
            own, replies = replies[: len(asked[part.name])], replies[len(asked[part.name]) :]
            # Whoever stood still for so long that another took over must not write what is old by now.
            if own and self._try(part, part.lead, monotonic()):
                more = self._try(part, part.take, own, monotonic(), self._link.clock())
                if more is None:
                    self._try(part, part.miss, monotonic())
                self._next += more or []

    def _ask_for(self, part: Part, now: float, clock: float) -> list[Command]:
        commands: list[Command] | None = self._try(part, part.make_commands, now, clock)
        if commands is None:
            # For its calls that is as if Redis were away: they go on.
            self._try(part, part.miss, now)
        return commands or []

    def _run(self) -> None:
        # Hosts that were started together are not to ask together.
        gevent.sleep(PERIOD_S * random.random())
        while True:
            self.once(self.find_due(monotonic()))
            due_at = min((self._asked_at[name] + part.period_s for name, part in self._parts.items()), default=0.0)
            self._wait_until(max(due_at, monotonic() + self.period_s / 5))

    def _wait_until(self, due_at: float) -> None:
        while (left_s := due_at - (now := monotonic())) > 0 and not any(
            part.is_urgent(now) for part in self._parts.values()
        ):
            is_listening = any(part.is_listening for part in self._parts.values())
            self._woken.wait(min(left_s, _LOOK_S) if is_listening else left_s)
            self._woken.clear()

    def _listen(self) -> None:
        while True:
            self.listen_once()

    def listen_once(self) -> None:
        """Hear what is urgent on other hosts, for a second at most, or see that there is nothing to listen to."""
        parts = {part.channel: part for part in self._parts.values() if part.is_listening}
        if not parts:
            self._link.stop_hearing()
            gevent.sleep(PERIOD_S)
            return
        try:
            heard = self._link.hear(parts)
            # Whoever asks may have found meanwhile that Redis is away.
            if heard is not None and (part := parts[heard[0]]).is_listening and self._try(part, part.lead, monotonic()):
                self._try(part, part.hear, heard[1], monotonic(), self._link.clock())
        except RedisAway:
            # Whoever asks says so; without hearing anything at once, it goes on.
            gevent.sleep(_LISTEN_AGAIN_S)

    def _try(self, part: Part, do: Callable[..., Any], *given: Any) -> Any:
        """Return what a part does; None if it can't, such as without its file: other parts, and later rounds, go on."""
        try:
            return do(*given)
        except RedisAway:
            raise
        except Exception:
            if part.name not in self._broken:
                _log.exception("%s can't be shared with other hosts; this is said once", part.name)
            self._broken.add(part.name)
            return None

    def _tell(self, *, is_up: bool, why: str = "") -> None:
        if is_up and self._is_up is False:
            _log.info("Redis is back: limits are shared with other hosts again")
        elif not is_up and self._is_up is not False:
            _log.warning("Redis is away (%s): calls go on, by what this host knows and has", why)
        self._is_up = is_up
