"""Decides when the next call to an upstream may start, from what the upstream says and from what it refuses.

The strategy, the same for every upstream: a call starts when each of these agrees.

- the ledgers of requests and tokens, known once an answer tells what remains (`ledger`);
- the rate learnt from refusals, where an upstream tells nothing, or refuses though its ledgers have room (`blind`);
- the window of calls in flight, at the start and where that is what is limited (`window`);
- what the configuration tells as upper bounds (ledgers that nobody refers to).

A refusal is put down to the ledger that is empty. If none is, to what its text names: calls in flight, or requests. If
it names nothing, calls in flight are tried first: refused again with fewer of them, it must be a rate. Whoever is
refused three times while others pass, and none of them is refused, can't pass at all; that is told, and nobody waits
for it. (Refusals come at once, answers may take minutes: what was sent in between and isn't refused has passed.) So a
call that is refused again and again lets others go first. A first refusal that nothing explains changes nothing for
others until a second call is refused, too: it may be that call's own affair; unless it names requests, and many are
sent: then a rate is guessed, and forgotten again if only that call is refused further. Nor do others keep its
Retry-After before; the call itself does, unless a ledger tells its time.

Pure: the clock (monotonic seconds) is an argument, and so is the number of calls in flight. See also: queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from openai_gateway.limits.attempts import LONGEST_OWN_WAIT_S, PASSES_BETWEEN, SentAttempt, Tries
from openai_gateway.limits.held import EVEN_GROWTH, SLOW_DOWN_GROWTH
from openai_gateway.limits.learnt import FIRST_PROBE_S, GUESS_SHARE, Learnt
from openai_gateway.limits.ledger import Ledger
from openai_gateway.limits.seen import SPAN_CALLS
from openai_gateway.wire.rate_limits import RateLimit, Refusal

_LONGEST_PROBE_S: Final = 30.0
# What is left is told often enough by one call in so long; each more costs what reading it and telling others does.
_REFERENCE_EVERY_S: Final = 0.02
# A call whose refusals may be its own affair lets so many others go first.
_OTHERS_FIRST: Final = 2.0
_SHORT_WAIT_S, _LONGEST_PAUSE_S = 2.0, 120.0
_ROOM: Final = 0.05
# Slower nobody is held: whoever calls now and then has not grown too fast by that.
_LEAST_PER_S: Final = 1.0
# From fewer calls of late no rate is to be guessed, and few of them are refused together.
_SURE_CALLS: Final = 24
# Two refusals of different calls so soon after one another are no affair of one call.
SOON_S: Final = 2.0


class Limiter(Learnt):
    """The limits of one upstream, key and model."""

    @property
    def is_bound(self) -> bool:
        """Tell whether a limit is known."""
        return self._is_bound or self.window.is_held

    @property
    def refuses_all(self) -> bool:
        """Tell whether no call has passed since the last refusal."""
        return self._last_refused != 0 and not self._passed_since

    def wait_s(self, tokens: float, running: int, now: float) -> tuple[float, str]:
        """Return how long the next call has to wait (0: it may go now), and for what: rate, tokens, window, pause."""
        wait_s, reason, fair_s = 0.0, "", 0.0
        window = self.window
        if self._is_bound:
            # One above the limit is refused at once, or our estimate is wrong: no bucket is to fill for it.
            tokens = 0.0 if tokens > self.tokens.limit > 0.0 else tokens
            if self.pause_until > now:
                wait_s, reason = self.pause_until - now, "pause"
            for ledger, kind in self._ledgers:
                charge = tokens if kind == "tokens" else 1.0
                held_s = ledger.wait_s(charge, now)
                if held_s > wait_s:
                    wait_s, reason, fair_s = held_s, kind, ledger.fair_s(charge)
            held_s = max(self.blind.free_at, self.held.free_at) - now
            if held_s > wait_s:
                wait_s, reason, fair_s = held_s, "rate", 0.0
            if wait_s > 0 and reason in ("rate", "tokens") and (running == 0 or self._has_heard_all):
                # Nobody is under way who could tell more; that a call's charge has to flow in first needs no telling.
                wait_s = min(wait_s, max(0.0, self._started_at + max(self._probe_s, fair_s) - now))
        if wait_s <= 0 and (running >= window.most or now < window.quiet_until):
            if not window.begin_try(running, now):
                return window.wait_s(now), "window"
            self.has_news = True
        return wait_s, reason

    def look(self, running: int) -> None:
        """Learn that a call still waits, `running` being in flight: what came until the look before has been read."""
        if self.window.look(running):
            self.has_news = True

    def start(self, tokens: float, running: int, now: float) -> SentAttempt:
        """Charge a call that is sent now, beside `running` others."""
        requests, ledger_of_tokens = self.requests, self.tokens
        tokens = 0.0 if tokens > ledger_of_tokens.limit > 0.0 else tokens
        self._number = number = self._number + 1
        self._started_at = now
        if number % SPAN_CALLS == 1 and self.seen.look(number, now):
            self.has_news = True
        if not self._is_bound:
            # Of ledgers that nobody refers to as yet, the sums are all there is.
            requests.spent += 1.0
            ledger_of_tokens.spent += tokens
        else:
            requests.take(1.0, now)
            ledger_of_tokens.take(tokens, now)
            for ledger, kind in self._told:
                ledger.take(1.0 if kind == "rate" else tokens, now)
            blind = self.blind
            if blind.rate is None:
                blind.number = number
            else:
                blind.take(number, now)
            if self.held.since is not None:
                self.held.take(now, is_first=number == self._last_refused_number + 1)
        return SentAttempt(now, number, tokens, running, requests.spent, ledger_of_tokens.spent)

    def cancel(self, sent: SentAttempt) -> None:
        """Take back a start after which nothing was sent."""
        self._give_back(sent)
        for ledger, kind in self._told:
            ledger.give_back(1.0 if kind == "rate" else sent.tokens)

    def _give_back(self, sent: SentAttempt) -> None:
        """Take back what the upstream hasn't charged."""
        self.requests.give_back(1.0)
        self.tokens.give_back(sent.tokens)

    def may_refer(self, sent: SentAttempt) -> bool:
        """Tell whether what an answer says of the limits is worth to be read: not if another was sent with it."""
        return sent.at > max(self.requests.referred_at, self.tokens.referred_at) + _REFERENCE_EVERY_S

    @property
    def _has_heard_all(self) -> bool:
        """Tell whether nobody under way was sent after whoever told most."""
        return max(self.requests.referred_at, self.tokens.referred_at) >= self._started_at - _REFERENCE_EVERY_S

    def is_unmoved(self, limits: Mapping[str, RateLimit]) -> bool:
        """Tell whether an answer that is no refusal, with these limits, would change nothing that is known."""
        return not limits and self._passed_since >= PASSES_BETWEEN and self._probe_s == FIRST_PROBE_S

    def answer(self, sent: SentAttempt, limits: Mapping[str, RateLimit]) -> None:
        """Learn from an answer that is no refusal."""
        if not self.is_unmoved({}):
            self.has_news = True
        if sent.number > self._last_refused_number and self._passed_since < PASSES_BETWEEN:
            self._passed_since += 1
            self.held.is_put_off = False
        self._probe_s = FIRST_PROBE_S
        if self._learns and limits:
            self._refer(sent, limits, is_refused=False)

    def refuse(
        self, sent: SentAttempt, limits: Mapping[str, RateLimit], refusal: Refusal, tries: Tries, now: float
    ) -> float | None:
        """Learn from a 429; return how long this call must wait at least, None if it can't pass at all."""
        self.has_news = True
        tries.number = tries.number or sent.number
        # Refusals come at once: what was sent in between, and is not refused, has passed.
        is_again = self._last_refused == tries.number
        passed = max(self._passed_since, sent.number - 1 - self._last_refused_number) if is_again else 0
        tries.refusals += 1
        is_first = not self._passed_since and sent.number <= self._last_refused_number + 1
        self._last_refused, self._last_refused_number, self._passed_since = tries.number, self._number, 0
        self._is_bound, self.blind.number = True, self._number
        own_s = tries.own_wait_s if refusal.wait_s is None else refusal.wait_s
        if refusal.is_too_large:
            return None
        if not self._learns:
            return own_s
        if not limits:
            self._give_back(sent)
        else:
            self._refer(sent, limits, is_refused=True)
        if refusal.kind == "slow_down":
            self._slow_down(sent, now, is_first=is_first)
            return own_s
        if self._explain_by_ledger(sent, limits, refusal, tries, now):
            return 0.0
        if passed > 0:
            self._take_back_guess(tries.number, sent.running)
            return own_s if tries.may_pass(passed) else None
        tries.alone, tries.passed = 1, 0
        if not self._explain(sent, refusal, tries, now) or refusal.wait_s is not None:
            return own_s
        if not is_again and self._guessed_by != tries.number:
            return 0.0
        # One that goes before all others again and again would never let any pass.
        others_s = self.blind.wait_s(now) + _OTHERS_FIRST / self.blind.pace(now) if self.blind.is_known else 0.0
        return max(own_s, min(others_s, LONGEST_OWN_WAIT_S))

    def refuse_earlier(self, sent: SentAttempt, running: int, refusal: Refusal, tries: Tries, now: float) -> float:
        """Learn from a 429 of a call that was sent before this process joined others, with `running` in flight now.

        It was charged to nobody's account, and tells no more than that there is a limit, if that isn't known.
        """
        self.has_news = True
        if self.window.is_held:
            self.window.leave_out()
        elif self._learns and not (self.requests.is_known or self.tokens.is_known or self.blind.is_known):
            # Its number is one of this process only.
            tries.number = -int(sent.at * 1e6)
            self._is_bound, self.blind.number = True, self._number
            self._explain(SentAttempt(sent.at, self._number, 0.0, running, 0.0, 0.0), refusal, tries, now)
        return refusal.wait_s or 0.0

    def _slow_down(self, sent: SentAttempt, now: float, *, is_first: bool) -> None:
        """Learn that the rate grew too fast: from now on by half as much again in 15 minutes, at most.

        If it `is_first` that was sent since the refusal before, and nothing has passed, all are refused.
        """
        held = self.held
        if held.since is not None and sent.at <= held.since:
            return
        if held.since is not None and is_first:
            self._probe_s = min(2 * self._probe_s, _LONGEST_PROBE_S)
            held.put_off(self._probe_s, now)
            return
        self._probe_s = FIRST_PROBE_S
        seen_per_s = max(self.seen.per_s(self._number, now), _LEAST_PER_S)
        held.hold(seen_per_s / held.share, SLOW_DOWN_GROWTH, sent.at, now)

    def _explain_by_ledger(
        self, sent: SentAttempt, limits: Mapping[str, RateLimit], refusal: Refusal, tries: Tries, now: float
    ) -> bool:
        empty = self._find_empty(sent, limits, refusal, now)
        if empty is None:
            return False
        if refusal.kind == "tokens" and refusal.requested and sent.tokens:
            # Not by what it is now: others that were under way may have corrected it already.
            self.token_factor = tries.token_factor * max(0.5, min(2.0, refusal.requested / sent.tokens))
        empty.widen(now)
        self._probe_s = min(2 * self._probe_s, _LONGEST_PROBE_S)
        return True

    def _explain(self, sent: SentAttempt, refusal: Refusal, tries: Tries, now: float) -> bool:
        """Put a refusal that no ledger explains down to a window or a rate; False if to neither as yet."""
        if refusal.kind == "in_flight":
            self.window.refuse(sent.at, sent.running, now)
            return True
        other_at, self._unexplained = max(self._unexplained, self._unexplained_elsewhere), sent.at
        is_common = sent.at - other_at < SOON_S
        names_rate = refusal.kind == "requests" and not self.requests.is_known
        is_of_all = names_rate and self.seen.calls(self._number, now) >= _SURE_CALLS
        if not (is_common or is_of_all or self.blind.is_known or self.held.since is not None):
            return False
        if refusal.wait_s is not None and refusal.wait_s > _SHORT_WAIT_S and is_common:
            self.pause_until = max(self.pause_until, now + min(refusal.wait_s, _LONGEST_PAUSE_S))
        if self.requests.is_known:
            # There is room, but not now: limits may count in shorter windows than a minute.
            rate = min(self.requests.rate, max(self.held.rate(now), 0.9 * self.requests.inflow))
            self.held.hold(rate, EVEN_GROWTH, sent.at, now)
        elif refusal.kind is not None or self._is_rate or self.window.cannot_explain(sent.at, sent.running, now):
            # Whoever else is refused confirms it.
            is_single = not (is_common or self.blind.is_known)
            self._guessed_by = tries.number if is_single or self._guessed_by == tries.number else 0
            self._meet_rate(sent.number, sent.at, now)
            if not sent.running and refusal.wait_s is None:
                self._probe_s = min(2 * self._probe_s, _LONGEST_PROBE_S)
        else:
            self.window.refuse(sent.at, sent.running, now)
        return True

    def _meet_rate(self, number: int, sent_at: float, now: float) -> None:
        """Learn that nothing was left of a rate that nobody tells, when the call of this number was sent."""
        self._is_bound = self._is_rate = True
        self.blind.number = self._number
        self.window.open()
        self.blind.refuse(number, sent_at, GUESS_SHARE * self.seen.per_s(self._number, now), now)

    def _find_empty(
        self, sent: SentAttempt, limits: Mapping[str, RateLimit], refusal: Refusal, now: float
    ) -> Ledger | None:
        for name, ledger, charge in (("requests", self.requests, 1.0), ("tokens", self.tokens, sent.tokens)):
            if ledger.is_known:
                left = ledger.referred_level if name in limits else ledger.level(now)
                if left < 1.5 * charge or (refusal.kind == name and left < charge + _ROOM * ledger.most):
                    return ledger
        return None

    def _refer(self, sent: SentAttempt, limits: Mapping[str, RateLimit], *, is_refused: bool) -> None:
        told = limits.get("requests")
        if told is not None and self.requests.refer(told, 1.0, sent.at, sent.spent_requests, is_refused=is_refused):
            self.has_news = True
        told = limits.get("tokens")
        charge, spent = sent.tokens, sent.spent_tokens
        if told is not None and self.tokens.refer(told, charge, sent.at, spent, is_refused=is_refused):
            self.has_news = True
        if not self._is_bound or self.has_news:
            self._is_bound = self.has_news = True
            self._find_ledgers()
        if not (is_refused or self.window.is_held or self.window.is_open):
            self.has_news = True
            self.window.open()
