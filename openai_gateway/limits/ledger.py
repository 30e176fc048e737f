"""The ledger of one limit (requests or tokens): how much of it is left now, and how fast it may be spent.

The strategy. An upstream says what remains as it was when a call was *admitted*, but we hear it with the answer,
seconds or minutes later. So each call notes, as it is sent, the sum of all charges so far; what remains now is what
remained then, less what was charged since, plus what flowed in since. Of several answers the one that was *sent* last
counts, and older ones are passed over (a bucket corrected by each answer as it comes swings up to 96 % of 429s).

Two such references also tell what really flowed in between them, and how well the level is foreseen (`inflow`). What
the bucket can hold is the most that was ever left in it, and what flows in within a second at least.

Spending: evenly, at what flows in, and what is above a reserve besides: within half a second as long as nobody else is
seen to use the key, else over three, and only our part of it; over one and a half where charge is given back, for of
what is spent so much comes again. No call goes that would leave less than the margin, a few
calls. The reserve is the margin, or what the level is wrong by, some times over. A 429 widens the margin; it fades.

With several hosts, what the others charge is charged here, too: what they said they have, and what they are expected to
have since, by their rate (`hear`). Each paces its calls to its share of the speed. While they can't hear of each other,
the others are drain.

A fixed window is told from a bucket by its end, which stays the same while nothing flows in. It is spent evenly.

Pure: the clock (monotonic seconds) is an argument. See also: limiter (which asks this for both kinds of limit).
"""

from __future__ import annotations

import math
from typing import Final

from openai_gateway.limits.inflow import SLOWEST, Inflow
from openai_gateway.limits.news import LedgerNews
from openai_gateway.wire.rate_limits import RateLimit

_SPREAD_S: Final = 3.0
_SPREAD_ALONE_S: Final = 0.5
_SPREAD_GIVEN_S: Final = 1.5
# Whose part lacks so much of the whole isn't alone at all.
_NOT_ALONE: Final = 0.4
# Where so much is given back, what others take can't be told from it.
_GIVEN_BACK: Final = -0.3
# Of what flows in in this time a call that is late makes up for.
_CATCH_UP_S: Final = 0.1
_LEAST_CATCH_UP_S: Final = 0.02
_MARGIN_OF_LIMIT: Final = 0.001
# Hosts hear late what others charge.
_MARGIN_OF_HOSTS: Final = 0.005
_MARGIN_OF_MOST: Final = 0.1
_WIDER_BY: Final = 0.01
_WIDEST: Final = 0.3
_FADE_S: Final = 60.0
# A period that several answers agree on within this share; a minute is what is meant if they don't.
_SAME: Final = 0.03
_MINUTE_S: Final = 60.0
_PERIODS_S: Final = (_MINUTE_S, 3_600.0, 86_400.0)
# The end of a window, told in whole seconds, moves by less.
_MOVED_S: Final = 2.0
_WINDOW_LOOK_S: Final = 2.0
# No bucket is smaller than what flows into it in this time.
_SMALLEST_S: Final = 1.0


class Ledger(Inflow):
    """One limit as we know it. Unknown until the first reference."""

    spent: float = 0.0
    free_at: float = 0.0
    window_ends_at: float | None = None
    period_s: float = _MINUTE_S
    _at: float = -math.inf
    _level_at: float = 0.0
    _spent_at: float = 0.0
    _widened: float = 0.0
    _widened_at: float = 0.0
    # Of an earlier reference: when it was sent, when its reset would be, what remained, what had been charged.
    _earlier: tuple[float, float, float, float] | None = None
    # The period that the answers of late agree on, if it is another than thought, and the first reset that said so.
    _period_seen: tuple[float, float] = (0.0, 0.0)
    # How many hosts charge it, and what share of the speed this one has.
    hosts: int = 1
    share: float = 1.0
    # What is taken to be of other hosts in `spent`, and what they add a second from then on.
    others: float = 0.0
    others_per_s: float = 0.0
    _others_at: float = 0.0

    @property
    def is_known(self) -> bool:
        """Tell whether anything is known that a call could wait for."""
        return self.most > 0.0

    def tell(self, per_minute: float, now: float) -> None:
        """Take a limit from the configuration: five seconds of it are the most that is saved up."""
        self.limit, self.rate, self.most = per_minute, per_minute / 60, max(self._unit, per_minute / 12)
        self._at, self._level_at = now, max(self._unit, self.rate)

    def level(self, now: float) -> float:
        """Return how much is left; below 0 if more was spent than there was."""
        if self.others_per_s:
            self._expect(now)
        if self.window_ends_at is None:
            level = self._level_at + (self.rate - self.drain) * (now - self._at) - (self.spent - self._spent_at)
        else:
            if now >= self.window_ends_at:
                # Whoever used the last one is forgotten with it.
                self._set_base(now, self.most, self.spent)
                self.window_ends_at += self.period_s * math.ceil((now - self.window_ends_at + 1e-9) / self.period_s)
            level = self._level_at - (self.spent - self._spent_at)
        if level > self.most:
            self._set_base(now, self.most, self.spent)
            return self.most
        return level

    @property
    def inflow(self) -> float:
        """Return what flows in a second, on balance."""
        return 0.0 if self.window_ends_at is not None else self.rate - self.drain

    def margin(self, now: float) -> float:
        """Return what is left untouched, for calls that overtake each other."""
        margin = (_MARGIN_OF_LIMIT if self.hosts == 1 else _MARGIN_OF_HOSTS) * self.limit
        of_most, least = _MARGIN_OF_MOST * self.most, self.hosts * self._unit
        if margin > of_most:
            margin = of_most
        if margin < least:
            margin = least
        return margin + self._widened * math.exp((self._widened_at - now) / _FADE_S) if self._widened else margin

    def wait_s(self, charge: float, now: float) -> float:
        """Return how long a call of this charge has to wait; 0 if it may go now."""
        lacking = min(charge + self.margin(now), self.most) - self.level(now)
        pace_s = self.free_at - now
        if lacking <= 0:
            return pace_s if pace_s > 0.0 else 0.0
        if self.window_ends_at is not None:
            return max(0.0, self.window_ends_at - now)
        return max(pace_s, lacking / max(self.inflow, SLOWEST * self.rate, 1e-9))

    def take(self, charge: float, now: float) -> None:
        """Charge a call that is sent now."""
        if self.others_per_s:
            self._expect(now)
        self.spent += charge
        # Of an upstream that tells only what is left there is no pace to keep.
        if self.rate > 0.0:
            speed, inflow = self.speed(now), self.rate - self.drain
            # Whoever is late may catch up a little; a rush where much may be spent would meet limits that aren't told.
            late_s = _CATCH_UP_S if inflow >= speed else max(_LEAST_CATCH_UP_S, _CATCH_UP_S * inflow / speed)
            since = self.free_at if self.free_at > now - late_s else now - late_s
            self.free_at = since + charge / (self.share * speed)
            # What little is left of a window must not hold up calls of the next one.
            if self.window_ends_at is not None and self.free_at > self.window_ends_at:
                self.free_at = self.window_ends_at

    def give_back(self, charge: float) -> None:
        """Take back the charge of a call that was refused or never sent."""
        self.spent -= charge

    def widen(self, now: float) -> None:
        """Keep more in reserve: a call was refused that should have passed."""
        now_wide = self._widened * math.exp((self._widened_at - now) / _FADE_S)
        self._widened = min(now_wide + max(self._unit, _WIDER_BY * self.most), max(self._unit, _WIDEST * self.most))
        self._widened_at = now

    def refer(self, told: RateLimit, charge: float, sent_at: float, spent: float, *, is_refused: bool = False) -> bool:
        """Learn what was left when a call of this charge was admitted, `spent` being the sum of charges at its sending.

        That has a refused call's charge, too, which what remains doesn't lack. Return whether it told more than how
        much is left and flows in.
        """
        if told.remaining is None:
            return False
        if sent_at <= self.referred_at:
            if is_refused:
                self.learn_late_refusal(charge)
            return False
        charged = 0.0 if is_refused else charge
        before = (self.limit, self.most, self.period_s, self.window_ends_at, self._earlier, self._period_seen)
        self._learn_rate(told, sent_at)
        self._learn_window(told, sent_at, spent)
        self.most = max(self.most, told.remaining + charged, 2 * self._unit, _SMALLEST_S * self.rate)
        is_comparable = self.moved_at <= self.referred_at and self.referred_spent < math.inf
        if self.window_ends_at is None and is_comparable and self.limit == before[0]:
            self.learn_drain(told.remaining, charged, sent_at, spent - charge + charged)
        self.referred_at, self.referred_level, self.referred_spent = sent_at, told.remaining, spent
        self._set_base(sent_at, self.to_now(told.remaining, sent_at), spent)
        return before != (
            self.limit,
            self.most,
            self.period_s,
            self.window_ends_at,
            self._earlier,
            self._period_seen,
        )

    def speed(self, now: float) -> float:
        """Return how much a second may be spent, by all hosts together."""
        level, margin = self.level(now), self.margin(now)
        if self.window_ends_at is not None:
            return max(level - margin, self._unit) / max(self.window_ends_at - now, 0.05)
        inflow, kept = self.rate - self.drain, self.kept_for_wrong
        surplus, spread_s, part = level - (kept if kept > margin else margin), _SPREAD_S, self.part
        if self.hosts == 1:
            if self.drain <= _GIVEN_BACK * self.rate:
                spread_s = _SPREAD_GIVEN_S
            elif surplus > 0.0 and 1.0 - part < _NOT_ALONE:
                spread_s = _SPREAD_ALONE_S + (_SPREAD_S - _SPREAD_ALONE_S) * (1.0 - part) / _NOT_ALONE
        speed = inflow + surplus / spread_s
        if part < 1.0:
            now_per_s = min(self.charged_per_s, self.rate)
            speed = now_per_s + part * (speed - now_per_s)
        return speed if speed > inflow > 0.0 else max(speed, 0.2 * part * inflow, SLOWEST * self.rate, 1e-9)

    def hear(self, others: float, per_s: float, now: float) -> None:
        """Charge what other hosts have charged by now, in all, and from now on what they add a second."""
        self.spent += others - self.others
        self.others, self.others_per_s, self._others_at = others, per_s, now

    def _expect(self, now: float) -> None:
        charge = self.others_per_s * (now - self._others_at)
        self.hear(self.others + charge, self.others_per_s, now)

    def add_drain(self, drain: float, now: float) -> None:
        """Take hosts that can't be heard of any more for other users of the key; below 0: they are heard of again."""
        self._expect(now)
        self.others_per_s = 0.0
        if not self.is_known:
            return
        self._set_base(now, self.level(now), self.spent)
        self.move_to_drain(drain, now)

    def to_news(self, now: float) -> LedgerNews | None:
        """Return what another host wants to know; None if nothing is known."""
        if not self.is_known or self.referred_at == -math.inf:
            return None
        level = self.level(now)
        ends_in_s = None if self.window_ends_at is None else self.window_ends_at - now
        told = (self.limit, self.rate, self.drain, self.most, self.period_s, ends_in_s)
        return LedgerNews(*told, level, now - self.referred_at)

    def adopt(self, news: LedgerNews, level: float, referred_at: float, now: float) -> None:
        """Take what another host has heard of the upstream in place of what was known; `level` is what is left now."""
        self.limit, self.rate, self.drain, self.period_s = news.limit, news.rate, news.drain, news.period_s
        self.most, self.referred_at = max(self.most, news.most), referred_at
        self.referred_spent = math.inf
        ends_in_s = news.window_ends_in_s
        self.window_ends_at = None if ends_in_s is None else now + ends_in_s
        self._set_base(now, level, self.spent)

    def _set_base(self, at: float, level: float, spent: float) -> None:
        self._at, self._level_at, self._spent_at = at, level, spent

    def _learn_rate(self, told: RateLimit, sent_at: float) -> None:
        limit = told.limit or self.limit
        used = limit - (told.remaining or 0.0)
        if told.reset_s and used > 0:
            self._learn_period(limit * told.reset_s / used, sent_at + told.reset_s)
        if limit != self.limit and self.limit:
            self.most *= limit / self.limit
        before, rate = self.rate, limit / self.period_s
        if rate > before and self.free_at > sent_at:
            # What was charged at a slower pace takes so much less time.
            self.free_at = sent_at + (self.free_at - sent_at) * before / rate
        self.limit, self.rate = limit, rate

    def _learn_period(self, period_s: float, full_at: float) -> None:
        """The limit is a minute's unless resets that are the time to full say twice that it is an hour's or a day's.

        The end of a fixed window may agree with that, too, for a moment; but while it does, it stays where it is.
        """
        found_s = next((each for each in _PERIODS_S if abs(period_s / each - 1) < _SAME), self.period_s)
        if found_s == self.period_s:
            self._period_seen = (0.0, 0.0)
        elif found_s != self._period_seen[0]:
            self._period_seen = (found_s, full_at)
        elif abs(full_at - self._period_seen[1]) > _MOVED_S:
            self.period_s, self._period_seen = found_s, (0.0, 0.0)

    def _learn_window(self, told: RateLimit, sent_at: float, spent: float) -> None:
        """See whether the reset is a fixed window's end: it stays the same for a while, and nothing flows in."""
        if told.reset_s is None or told.remaining is None:
            return
        ends_at = sent_at + told.reset_s
        if self.window_ends_at is not None:
            if abs(ends_at - self.window_ends_at) > max(1.0, 0.05 * self.period_s):
                # Either the next window came before we thought, or this never was one: then it will be seen anew.
                self.window_ends_at = ends_at if ends_at > self.window_ends_at else None
            self._earlier = None
            return
        earlier, self._earlier = self._earlier, self._earlier or (sent_at, ends_at, told.remaining, spent)
        if earlier is None or sent_at - earlier[0] < _WINDOW_LOOK_S:
            return
        passed_s = sent_at - earlier[0]
        flowed = told.remaining - earlier[2] + spent - earlier[3]
        if abs(ends_at - earlier[1]) < 0.2 * passed_s and abs(flowed) < 0.2 * self.rate * passed_s:
            self.window_ends_at = ends_at
            self.most = max(self.most, self.limit)
        self._earlier = (sent_at, ends_at, told.remaining, spent)
