"""The limiter as the worker has it that speaks for this host: what it can learn from other hosts, and tell them.

It has the same state as the workers' limiters, which the shared file carries. What is learnt from refusals alone (a
rate, a window of calls in flight) stays each host's own: it is that of its part, for the others take theirs. But that a
call was refused, others hear: nothing was left of the rate then, and nobody need try for a while whether more calls may
be in flight. A first refusal that has one host guess a rate has all of them guess one; they forget it with that host,
if it was only that call's own affair. See also: host_ledger (when what of this is done), limiter (what becomes of the
calls).
"""

from __future__ import annotations

import math
from typing import Final

from openai_gateway.limits.attempts import ConfiguredLimits
from openai_gateway.limits.causes import SOON_S
from openai_gateway.limits.ledger import Ledger
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.news import Amounts, HostNews, RefusalNews

PERIOD_S: Final = 0.25
# At first, when hosts that begin together share what is left.
_FIRST_PERIOD_S: Final = 0.02
_FIRST_CALLS: Final = 2000
# Only what is so much newer than what is known is worth to be taken over.
_NEWER_S: Final = 1.0
# Refusals at several hosts that are nearer to one another are one event.
_SAME_EVENT_S: Final = 0.5
# What is heard later says nothing of what is sent now.
_AT_ONCE_S: Final = 1.0
# No call's number: another host's call.
_ELSEWHERE: Final = -1
# Long enough for a host to hear what came of another's try.
_TURN_S: Final = 0.75


class HostLimiter(Limiter):
    """The limits of one upstream, key and model, among hosts."""

    def __init__(self, told: ConfiguredLimits, now: float) -> None:
        super().__init__(told, now)
        self._window_refused_at = self._rate_refused_at = -math.inf

    @property
    def own(self) -> Amounts:
        """What this host has charged."""
        return Amounts(self.requests.spent - self.requests.others, self.tokens.spent - self.tokens.others)

    @property
    def others(self) -> Amounts:
        """What other hosts are taken to have charged."""
        return Amounts(self.requests.others, self.tokens.others)

    @property
    def is_untold(self) -> bool:
        """Tell whether refusals alone tell of a limit, or may tell of one: not where many calls have met none."""
        is_told = not self._learns or self.requests.is_known or self.tokens.is_known
        return not is_told and (self.blind.is_known or self.window.is_held or self._number < _FIRST_CALLS)

    @property
    def exchange_every_s(self) -> float:
        """How often hosts have to hear of each other while there are calls."""
        is_first = self.is_untold and not (self.blind.is_known or self.window.is_held)
        return _FIRST_PERIOD_S if is_first else PERIOD_S

    def hear(self, others: Amounts, per_s: Amounts, now: float) -> None:
        """Charge what other hosts have charged by now, in all, and from now on what they add a second."""
        self.requests.hear(others.requests, per_s.requests, now)
        self.tokens.hear(others.tokens, per_s.tokens, now)
        for ledger, kind in self._told:
            if kind == "rate":
                ledger.hear(others.requests, per_s.requests, now)
            else:
                ledger.hear(others.tokens, per_s.tokens, now)

    def set_share(self, share: float, hosts: int, last_part: float = 1.0) -> None:
        """Pace calls to a share of what all hosts may send, those that can't be heard any more left out."""
        self.held.share = share
        for ledger in self._all_ledgers():
            ledger.share, ledger.hosts, ledger.last_part = share, hosts, last_part

    def used_share(self, requests_s: float, tokens_s: float, now: float) -> float:
        """Return the share of the limits that so many requests and tokens a second are; 0 if there is no limit."""
        shares = [0.0]
        if self.held.since is not None:
            shares.append(requests_s / self.held.rate(now))
        for ledger, kind in self._ledgers:
            shares.append((requests_s if kind == "rate" else tokens_s) / ledger.speed(now))
        return max(shares)

    def part(self, others: Amounts, share: float, now: float) -> None:
        """Take other hosts, who send so much a second, for other users of the key; `share` is this host's."""
        self.requests.add_drain(others.requests, now)
        self.tokens.add_drain(others.tokens, now)
        for ledger, kind in self._told:
            ledger.add_drain(others.requests if kind == "rate" else others.tokens, now)
        self.held.scale(share)
        # Nobody hears what came of another's try any more: the next host's is due when this one's next would be.
        self.window.take_turn(self.window.turn_s * self.window.try_every_s / _TURN_S)
        self.set_share(1.0, self.requests.hosts, share)

    def meet(self, others: Amounts, share: float, now: float) -> None:
        """Hear again of other hosts, who sent so much a second meanwhile; `share` of all was this host's."""
        self.requests.add_drain(-others.requests, now)
        self.tokens.add_drain(-others.tokens, now)
        for ledger, _ in self._told:
            # Nobody tells what drain there is of these.
            ledger.add_drain(-ledger.drain, now)
        self.held.scale(1 / share)

    def to_news(self, news: HostNews, now: float) -> HostNews:
        """Return the news with what is known of the limits."""
        return HostNews(
            news.at,
            news.epoch,
            news.charged,
            news.for_rate,
            news.counted,
            self.requests.to_news(now),
            self.tokens.to_news(now),
            self.token_factor,
            max(0.0, self.pause_until - now),
            RefusalNews(
                now - self.window.refused_at,
                self.window.try_every_s,
                math.inf if self._has_only_heard else now - self.blind.refused_at,
                now - self._unexplained,
                self.is_doubted,
            ),
        )

    def adopt(self, news: HostNews, age_s: float, unheard: Amounts, now: float) -> bool:
        """Learn from another host's news of `age_s` ago, `unheard` having been charged of which it didn't know.

        Tell whether there was anything new.
        """
        is_new = False
        found = (
            (self.requests, news.requests, unheard.requests),
            (self.tokens, news.tokens, unheard.tokens),
        )
        for ledger, told, charged in found:
            if told is None:
                continue
            referred_at = now - age_s - told.sent_ago_s
            if not ledger.is_known or referred_at > ledger.referred_at + _NEWER_S:
                level = told.level + (told.rate - told.drain) * age_s - charged
                ledger.adopt(told, min(level, told.most), referred_at, now)
                is_new = True
        if is_new and news.tokens is not None:
            self.token_factor = news.token_factor
        if news.pause_s > age_s and now + news.pause_s - age_s > self.pause_until + _NEWER_S:
            self.pause_until = now + news.pause_s - age_s
            is_new = True
        if is_new:
            self._is_bound = True
            self._find_ledgers()
            if not self.window.is_held:
                self.window.open()
        return is_new

    def take_turn(self, turn: int) -> None:
        """Try as the one of this number among the hosts whether more calls may be in flight."""
        self.window.take_turn(_TURN_S * turn)

    def hear_refusals(self, refused: RefusalNews, said_at: float, running: int, now: float) -> None:
        """Learn that another host was refused; `running` calls are in flight on this one."""
        refused_at = said_at - refused.window_s_ago
        if refused_at > self._window_refused_at + _SAME_EVENT_S:
            self._window_refused_at = refused_at
            self.window.hear(refused_at, refused.try_every_s, running, now)
        refused_at = said_at - refused.unexplained_s_ago
        self._unexplained_elsewhere = max(self._unexplained_elsewhere, refused_at)
        # Two hosts are refused two different calls: that is no affair of one.
        if self.is_doubted and not self._has_only_heard and abs(refused_at - self._unexplained) < SOON_S:
            self._guessed_by = 0
        self._hear_of_rate(said_at - refused.rate_s_ago, now, is_doubted=refused.is_doubted)

    def _hear_of_rate(self, refused_at: float, now: float, *, is_doubted: bool) -> None:
        if self._has_only_heard and not is_doubted and now - refused_at < SOON_S:
            self._guessed_by = 0
        if refused_at <= max(self._rate_refused_at, self.blind.refused_at) + _SAME_EVENT_S:
            return
        self._rate_refused_at = refused_at
        if self.blind.is_known:
            if not is_doubted:
                self._guessed_by = 0
                self.blind.hear(refused_at, now)
        elif not self.requests.is_known and now - refused_at < _AT_ONCE_S:
            # Hosts that begin together meet the limit together: nobody else need be refused to know it.
            self._meet_rate(self._number, refused_at, now)
            self._guessed_by = _ELSEWHERE if is_doubted else 0

    def hear_of_none(self, running: int) -> None:
        """Learn that no other host has met a rate, or takes one for met any more; `running` calls are in flight."""
        self._take_back_guess(_ELSEWHERE, running)

    @property
    def _has_only_heard(self) -> bool:
        """Tell whether a rate was guessed only because another host's call was refused, which may be its own affair."""
        return self._guessed_by == _ELSEWHERE and self.is_doubted

    def _all_ledgers(self) -> list[Ledger]:
        return [self.requests, self.tokens, *[ledger for ledger, _ in self._told]]
