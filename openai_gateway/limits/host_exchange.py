"""What one worker does for its host at one upstream: it tells other hosts, and writes down what they say.

The strategy. Between the workers and Redis stands the file that the workers share anyway: here it is read and written
four times a second or more, and a call never waits for Redis. Where refusals alone tell of a limit, each is told at
once: whoever hears of it later is refused, too. See also: sharing (the workers' side), host_ledger
(charges and rates), permits (the cap), redis_exchange (when, and what if Redis is away).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from openai_gateway.limits.attempts import ConfiguredLimits
from openai_gateway.limits.host_ledger import HostLedger
from openai_gateway.limits.host_limiter import PERIOD_S, HostLimiter
from openai_gateway.limits.leadership import Leadership
from openai_gateway.limits.limits_file import LimitsFile
from openai_gateway.limits.permits import Permits
from openai_gateway.limits.redis_link import Command

_KEY: Final = "openai-gateway:limits:"
_TABLE: Final = "openai-gateway:permits:"
_KEPT_MS: Final = 3_600_000
_HOST_CHARS: Final = 32
# All are told of each: a hundred hosts that asked fifty times a second would be more than Redis can tell.
_PERIOD_OF_HOST_S: Final = 0.0025
# Each says what it has counted of each other: what all have said takes a hundred hosts 4 ms to look at.
_LOOK_OF_PAIR_S: Final = 4e-6


class UpstreamPart:
    """This host's part in sharing one upstream; `cap` is that on calls in flight of all hosts, None is none.

    Raises OSError, as do its methods, if the file can't be used.
    """

    def __init__(self, path: Path, told: ConfiguredLimits, cap: int | None, now: float) -> None:
        # The same for all versions: what hosts tell each other doesn't depend on the file's layout.
        self.name = path.stem
        self.channel = _KEY + self.name
        self.period_s = PERIOD_S
        self._file = LimitsFile(path)
        self._leadership = Leadership(path.with_name(f"{path.name}.leader"))
        self._limiter = HostLimiter(told, now)
        self._permits = Permits(cap) if cap is not None else None
        self._cap = cap
        self._ledger: HostLedger | None = None
        self._asked_at = now
        self._has_told = False
        # What hosts said last, and what of it was told at once since Redis was asked: that is newer than its reply.
        self._said: dict[str, bytes] = {}
        self._told_since: dict[str, bytes] = {}
        # Whether hosts tell each other of refusals at once; of which one this host has told last, and when.
        self.is_listening = False
        self.wake: Callable[[], None] = lambda: None
        self._told_refused_at, self._hurried_at = self._file.refused_at, -math.inf
        self._heard_at = -math.inf

    def lead(self, now: float) -> bool:
        """Tell whether this worker speaks for its host."""
        # Without its file, too, nothing is urgent.
        is_listening, self.is_listening = self.is_listening, False
        if not self._leadership.confirm(now):
            self._ledger, self.period_s = None, PERIOD_S
            return False
        if self._ledger is None:
            self._ledger = HostLedger(self._file.host, self._file.read_notes())
        self.is_listening = is_listening
        return True

    def say_refused(self, now: float) -> None:
        """Have the others hear at once, from whichever worker speaks for this host, that a call was refused here."""
        self._file.say_refused(now)
        if self.is_listening:
            self.wake()

    def is_urgent(self, now: float) -> bool:
        """Tell whether a call was refused of which the others are to hear at once."""
        is_new = self.is_listening and self._file.refused_at > self._told_refused_at
        return is_new and now - self._hurried_at >= _PERIOD_OF_HOST_S * (len(self._said) + 1)

    def make_commands(self, now: float, clock: float) -> list[Command]:
        """Return what to ask Redis, whose time is `clock`."""
        self._asked_at, self._told_since = now, {}
        commands: list[Command] = []
        key, ledger, is_urgent = self.channel, self._ledger, self.is_urgent(now)
        assert ledger is not None
        refused_at = self._file.refused_at
        self._begin()
        try:
            demand = self._file.demand(now)
            self._has_told = self._file.is_in_use
            if self._has_told:
                news = ledger.to_news(self._limiter, demand.for_rate, now, clock)
                commands += [("HSET", key, self._file.host, news), ("PEXPIRE", key, _KEPT_MS)]
                if is_urgent:
                    commands.append(("PUBLISH", key, self._file.host.encode() + news))
                    self._told_refused_at, self._hurried_at = refused_at, now
            commands.append(("HGETALL", key))
            if self._permits is not None:
                lease = self._file.lease
                kept = self._permits.count_kept(lease.permits, demand.running, demand.for_slot)
                if lease.is_known:
                    # First nobody uses what is given back, then others are told of it.
                    self._file.set_lease(kept, lease.until)
                asked = demand.running + demand.for_slot
                commands.append(self._permits.make_command(_TABLE + self.name, self._file.host, kept, asked, clock))
        finally:
            self._file.end(None)
        return commands

    def take(self, replies: list[Any], now: float, clock: float) -> list[Command]:
        """Write down what Redis said; return what to tell it next time, besides."""
        lease = self._permits.take(replies.pop(), self._asked_at) if self._permits is not None else None
        found: Mapping[bytes, bytes] = replies.pop()
        self._said = {name.decode("latin-1"): news for name, news in found.items()} | self._told_since
        forgotten = self._take_said(now, clock, lease)
        return [("HDEL", self.channel, *forgotten)] if forgotten else []

    def hear(self, message: bytes, now: float, clock: float) -> None:
        """Write down what a host, maybe this one, has just told all."""
        host, news = message[:_HOST_CHARS].decode("latin-1"), message[_HOST_CHARS:]
        # Channels are those of all databases of a Redis: others may be there that share nothing with this host.
        if self._ledger is not None and host != self._file.host and host in self._said:
            self._said[host] = self._told_since[host] = news
            if now - self._heard_at >= _LOOK_OF_PAIR_S * len(self._said) ** 2:
                self._heard_at = now
                self._take_said(now, clock, None)

    def _take_said(self, now: float, clock: float, lease: tuple[int, float] | None) -> list[str]:
        """Write down what the hosts have said last, and this one's lease; return which of them are to be forgotten."""
        ledger = self._ledger
        assert ledger is not None
        self._begin()
        known = None
        try:
            if lease is not None:
                self._file.set_lease(*lease)
            demand = self._file.demand(now)
            is_of_use, forgotten = ledger.take(self._limiter, self._said, demand, now, clock)
            # Who is alone, or has no calls, meets no limit together with others.
            may_meet = ledger.others and demand.running + demand.for_rate
            period_s = self._limiter.exchange_every_s if may_meet else PERIOD_S
            self.is_listening = bool(may_meet) and self._limiter.is_untold
            self.period_s = min(PERIOD_S, max(period_s, _PERIOD_OF_HOST_S * len(self._said)))
            if is_of_use:
                self._file.put_in_use()
            if self._file.is_in_use:
                known = self._limiter.to_known(is_whole=True)
            self._file.write_notes(ledger.to_notes())
            self._file.set_link(is_up=True, hosts=ledger.others + 1)
        finally:
            self._file.end(known)
        return forgotten

    def miss(self, now: float) -> None:
        """Go on alone, for Redis is away: with the pace and the permits that this host has."""
        ledger = self._ledger
        assert ledger is not None
        self.period_s, self.is_listening = PERIOD_S, False
        self._begin()
        known = None
        try:
            if self._permits is not None and self._cap is not None:
                self._permits.forget()
                lease = self._file.lease
                self._file.set_lease(lease.permits if lease.is_known else self._cap, math.inf)
            if self._file.is_in_use:
                ledger.miss(self._limiter, now)
                known = self._limiter.to_known(is_whole=True)
            self._file.write_notes(ledger.to_notes())
            self._file.set_link(is_up=False, hosts=1)
        finally:
            self._file.end(known)

    def _begin(self) -> None:
        try:
            known = self._file.begin()
            if known is not None:
                self._limiter.take(known)
        except BaseException:
            # A lock that is left would stop every worker of the host.
            self._file.end(None)
            raise
