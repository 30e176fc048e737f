"""Keeps this host in touch with others through Redis: a greenlet exchanges what they share, four times a second.

No call ever waits for it. In each of the host's workers one runs, but only that of the worker that leads speaks; parts
are led apart from each other. Redis away: each part is told so, calls go on, and the log has one line, and another when
it is back. See also: host_exchange and accounting.spend_exchange (the parts), redis_link (the connection).
"""

from __future__ import annotations

import logging
import random
from time import monotonic
from typing import Any, Final, Protocol

import gevent

from openai_gateway.limits.redis_link import Command, Link, RedisAway

_log = logging.getLogger("openai_gateway")
PERIOD_S: Final = 0.25


class Part(Protocol):
    """Something that hosts share, by its name."""

    name: str

    def lead(self, now: float) -> bool:
        """Tell whether this worker speaks for its host."""

    def to_commands(self, now: float, clock: float) -> list[Command]:
        """Return what to ask Redis, whose time is `clock`."""

    def take(self, replies: list[Any], now: float, clock: float) -> list[Command]:
        """Write down what Redis said; return what to tell it next time, besides."""

    def miss(self, now: float) -> None:
        """Go on without, for Redis is away."""


class Exchange:
    """The exchange of some parts over one link."""

    def __init__(self, link: Link) -> None:
        self._parts: dict[str, Part] = {}
        self._link = link
        self._next: list[Command] = []
        self._is_up: bool | None = None
        self._is_broken = False

    def add(self, part: Part) -> None:
        """Exchange this, too; servers with the same upstream, key and model have one part between them."""
        self._parts.setdefault(part.name, part)

    def start(self) -> None:
        """Exchange from now on, in a greenlet."""
        gevent.spawn(self._run)

    def once(self) -> None:
        """Exchange once, those parts that this worker leads."""
        leading = [part for part in self._parts.values() if part.lead(monotonic())]
        if not leading:
            self._link.close()
            return
        try:
            clock = self._link.clock()
            now = monotonic()
            commands, self._next = [*self._next], []
            besides, sizes = len(commands), []
            for part in leading:
                asked = part.to_commands(now, clock)
                sizes.append(len(asked))
                commands += asked
            replies = self._link.ask(commands)[besides:]
        except RedisAway as away:
            self._tell(is_up=False, why=str(away))
            for part in leading:
                if part.lead(monotonic()):
                    part.miss(monotonic())
            return
        self._tell(is_up=True)
        for part, size in zip(leading, sizes, strict=True):
            own, replies = replies[:size], replies[size:]
            # Whoever stood still for so long that another took over must not write what is old by now.
            if part.lead(monotonic()):
                self._next += part.take(own, monotonic(), self._link.clock())

    def _run(self) -> None:
        # Hosts that were started together are not to ask together.
        gevent.sleep(PERIOD_S * random.random())
        while True:
            began = monotonic()
            try:
                self.once()
            # Whatever it is: the rounds to come must not end with this one.
            except Exception:
                if not self._is_broken:
                    _log.exception("limits are shared with other hosts no more, until the next round that succeeds")
                self._is_broken = True
            else:
                self._is_broken = False
            gevent.sleep(max(PERIOD_S / 5, PERIOD_S - (monotonic() - began)))

    def _tell(self, *, is_up: bool, why: str = "") -> None:
        if is_up and self._is_up is False:
            _log.info("Redis is back: limits are shared with other hosts again")
        elif not is_up and self._is_up is not False:
            _log.warning("Redis is away (%s): calls go on, by what this host knows and has", why)
        self._is_up = is_up
