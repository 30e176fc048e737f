"""What the hosts that share an upstream know of each other: who charged what, who waits, who gets what share.

The strategy. Each host says four times a second what it has charged in all, and what it knows of the limits. The others
charge the difference to what it said before, as if it were their own: so it is no drain by unknown users, and is never
counted twice, however often it is said, and if Redis forgets it. Of references and rates, whoever has clearly newer
ones is believed. What each may send is a share: those with calls waiting divide among them, by the number of these,
what those without leave.

Redis away: nobody can be heard. Then each host goes on with what it sent of late: what the others sent becomes drain,
which each learns anew by itself, and a pace learnt from refusals is cut to its own part. When another is heard again,
the difference to what it had said tells what it sent meanwhile, and that is drain no more.

Pure: the clocks (monotonic, and Redis's, the same for all) are arguments. See also: news (what is said).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from openai_gateway.limits.host_limiter import HostLimiter
from openai_gateway.limits.limits_file import Demand
from openai_gateway.limits.news import Amounts, HostNews

# A host that says nothing for so long has ended, or can't reach Redis: its share is free.
GONE_S: Final = 3.0
# What it said is taken out of Redis later, for it may come back.
_FORGOTTEN_S: Final = 600.0
# Rates are means over about so long.
_RATE_S: Final = 3.0
_TURNS_S: Final = 60.0
_LEAST_SHARE: Final = 0.01
_NOTHING: Final = Amounts()


class Heard(msgspec.Struct, array_like=True):
    """What was last heard of another host: at what time (Redis's), and what it sent a second."""

    epoch: int
    at: float
    charged: Amounts
    per_s: Amounts = _NOTHING
    for_rate: int = 0
    is_apart: bool = False


class _Notes(msgspec.Struct, array_like=True):
    epoch: int
    counted: Amounts
    heard: dict[str, Heard]


_notes_decoder = msgspec.msgpack.Decoder(_Notes)
_news_decoder = msgspec.msgpack.Decoder(HostNews)


class HostLedger:
    """The hosts that share one upstream, as the one named `host` knows them; `notes` are what it noted before."""

    def __init__(self, host: str, notes: bytes) -> None:
        self._host = host
        self._notes = _Notes(int.from_bytes(os.urandom(4), "big"), _NOTHING, {})
        if notes:
            with contextlib.suppress(msgspec.MsgspecError):
                self._notes = _notes_decoder.decode(notes)
        self._own_per_s = _NOTHING
        self._own_before: tuple[float, Amounts] | None = None
        # How many other hosts were heard the last time.
        self.others = 0
        # Since when Redis is there (its clock).
        self._back_at: float | None = None

    def to_notes(self) -> bytes:
        """Return what whoever speaks for this host next has to know."""
        return msgspec.msgpack.encode(self._notes)

    def to_news(self, limiter: HostLimiter, for_rate: int, now: float, clock: float) -> bytes:
        """Return what to tell the others."""
        counted = {name: heard.charged for name, heard in self._notes.heard.items()}
        news = HostNews(clock, self._notes.epoch, limiter.own, for_rate, counted)
        # What was learnt while others couldn't be heard holds for this host alone.
        if not any(heard.is_apart for heard in self._notes.heard.values()):
            news = limiter.to_news(news, now)
        return msgspec.msgpack.encode(news)

    def take(
        self, limiter: HostLimiter, found: Mapping[str, bytes], demand: Demand, now: float, clock: float
    ) -> tuple[bool, list[str]]:
        """Hear what the others say; tell whether the limits are known or any better now, and whom to forget."""
        self._measure_own(limiter, now)
        self._back_at = clock if self._back_at is None else self._back_at
        forgotten: list[str] = []
        said: dict[str, HostNews] = {}
        for name, text in found.items():
            try:
                news = _news_decoder.decode(text)
            except msgspec.MsgspecError:
                forgotten.append(name)
                continue
            # Redis's clock may have been set back since.
            age_s = abs(clock - news.at)
            if age_s > _FORGOTTEN_S:
                forgotten.append(name)
            elif name != self._host and age_s < GONE_S:
                said[name] = news
        self.others = len(said)
        for name, news in said.items():
            self._hear(limiter, name, news, now)
        for name, heard in list(self._notes.heard.items()):
            # Who says nothing once Redis is back has ended meanwhile; the first one back hears nobody yet.
            silent_s = clock - (max(heard.at, self._back_at) if heard.is_apart else heard.at)
            if name not in said and silent_s > (GONE_S if heard.is_apart else _FORGOTTEN_S):
                del self._notes.heard[name]
        self._charge(limiter, said, now, clock)
        is_new = False
        for news in said.values():
            age_s = max(0.0, clock - news.at)
            is_new = limiter.adopt(news, age_s, self._unheard_by(limiter, news, said), now) or is_new
            if news.refused is not None:
                limiter.hear_refusals(news.refused, now - age_s, demand.running, now)
        if said and not any(news.refused is not None and news.refused.rate_s_ago < math.inf for news in said.values()):
            limiter.hear_of_none(demand.running)
        # Not always the same one first: what the first one finds is its own.
        limiter.take_turn((sum(name < self._host for name in said) + int(clock / _TURNS_S)) % (len(said) + 1))
        apart = [heard.per_s for name, heard in self._notes.heard.items() if heard.is_apart and name not in said]
        hosts, part = len(said) + len(apart) + 1, self._own_part(_add(apart).requests) if apart else 1.0
        limiter.set_share(self._compute_share(limiter, said, demand.for_rate, now), hosts, part)
        return is_new or limiter.is_bound, forgotten

    def miss(self, limiter: HostLimiter, now: float) -> None:
        """Go on alone, for Redis is away."""
        self._measure_own(limiter, now)
        self._back_at, self.others = None, 0
        near = [heard for heard in self._notes.heard.values() if not heard.is_apart]
        if near:
            others = _add([heard.per_s for heard in near])
            limiter.part(others, self._own_part(others.requests), now)
        for heard in near:
            heard.is_apart = True
        self._notes.counted = limiter.others

    def _charge(self, limiter: HostLimiter, said: Mapping[str, HostNews], now: float, clock: float) -> None:
        """Charge what the others said they have, and what they have since then, by their rate."""
        heard = [self._notes.heard[name] for name in said]
        ages_s = [max(0.0, clock - each.at) for each in heard]
        expected = [
            Amounts(each.per_s.requests * age_s, each.per_s.tokens * age_s)
            for each, age_s in zip(heard, ages_s, strict=True)
        ]
        limiter.hear(_add([self._notes.counted, *expected]), _add([each.per_s for each in heard]), now)

    def _hear(self, limiter: HostLimiter, name: str, news: HostNews, now: float) -> None:
        before = self._notes.heard.get(name)
        if before is None or before.epoch != news.epoch:
            # What it charged before is no news to anybody.
            self._notes.heard[name] = Heard(news.epoch, news.at, news.charged, for_rate=news.for_rate)
            return
        passed_s = news.at - before.at
        if passed_s == 0:
            return
        charged = Amounts(news.charged.requests - before.charged.requests, news.charged.tokens - before.charged.tokens)
        if passed_s > 0:
            per_s = Amounts(max(0.0, charged.requests / passed_s), max(0.0, charged.tokens / passed_s))
        else:
            # Redis's clock was set back, or another Redis took over: the sums hold, of the rate nothing is known.
            per_s, passed_s = before.per_s, 0.0
        if before.is_apart:
            limiter.meet(per_s, self._own_part(per_s.requests), now)
        elif passed_s > GONE_S:
            # It was not heard for a while, and taken for another user of the key.
            limiter.meet(per_s, 1.0, now)
        else:
            self._notes.counted = _add([self._notes.counted, charged])
            per_s = _fade(before.per_s, per_s, passed_s)
        self._notes.heard[name] = Heard(news.epoch, news.at, news.charged, per_s, news.for_rate)

    def _measure_own(self, limiter: HostLimiter, now: float) -> None:
        own = limiter.own
        if self._own_before is not None and now > self._own_before[0]:
            at, before = self._own_before
            passed_s = now - at
            per_s = Amounts(
                max(0.0, (own.requests - before.requests) / passed_s), max(0.0, (own.tokens - before.tokens) / passed_s)
            )
            self._own_per_s = _fade(self._own_per_s, per_s, passed_s)
        self._own_before = (now, own)

    def _own_part(self, others_per_s: float) -> float:
        own = max(self._own_per_s.requests, 0.1)
        return max(_LEAST_SHARE, own / (own + others_per_s))

    def _unheard_by(self, limiter: HostLimiter, news: HostNews, said: Mapping[str, HostNews]) -> Amounts:
        """Return what was charged that this host knows of and the one that says the news didn't."""
        own, told = limiter.own, news.counted.get(self._host, _NOTHING)
        requests, tokens = own.requests - told.requests, own.tokens - told.tokens
        for name, other in said.items():
            if other is not news and name in news.counted:
                requests += other.charged.requests - news.counted[name].requests
                tokens += other.charged.tokens - news.counted[name].tokens
        return Amounts(max(0.0, requests), max(0.0, tokens))

    def _compute_share(self, limiter: HostLimiter, said: Mapping[str, HostNews], for_rate: int, now: float) -> float:
        """Return this host's share: those with calls waiting divide what those without leave, by what waits."""
        left, waiting = 1.0, 0
        for name, news in said.items():
            if news.for_rate:
                waiting += news.for_rate
            else:
                per_s = self._notes.heard[name].per_s
                left -= limiter.used_share(per_s.requests, per_s.tokens, now)
        own = max(for_rate, 1)
        return max(_LEAST_SHARE, left * own / (own + waiting))


def _add(sums: Sequence[Amounts]) -> Amounts:
    return Amounts(sum(each.requests for each in sums), sum(each.tokens for each in sums))


def _fade(mean: Amounts, latest: Amounts, passed_s: float) -> Amounts:
    share = 1 - math.exp(-passed_s / _RATE_S)
    return Amounts(
        mean.requests + share * (latest.requests - mean.requests), mean.tokens + share * (latest.tokens - mean.tokens)
    )
