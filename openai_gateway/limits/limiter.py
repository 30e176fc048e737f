"""Decides when the next call to an upstream may start, from what the upstream says and from what it refuses.

The strategy, the same for every upstream: a call starts when each of these agrees.

- the ledgers of requests and tokens, known once an answer tells what remains (`ledger`);
- the rate learnt from refusals, where an upstream tells nothing, or refuses though its ledgers have room (`blind`);
- the window of calls in flight, at the start and where that is what is limited (`window`);
- what the configuration tells as upper bounds (ledgers that nobody refers to).

A refusal tells which of them there is (`causes`), unless it is its call's own affair (`doubts`). Whoever is refused
three times while others pass can't pass at all; that is told, and nobody waits for it. So a call that is refused again
lets others go first. It keeps its own Retry-After, unless a ledger tells its time.

Pure: the clock (monotonic seconds) is an argument, and so is the number of calls in flight. See also: queue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from openai_gateway.limits.attempts import PASSES_BETWEEN, SentAttempt, Tries
from openai_gateway.limits.causes import Causes
from openai_gateway.limits.learnt import FIRST_PROBE_S
from openai_gateway.limits.seen import SPAN_CALLS
from openai_gateway.limits.window import LOOK_S
from openai_gateway.wire.rate_limits import RateLimit, Refusal

# What is left is told often enough by one call in so long; each more costs what reading it and telling others does.
_REFERENCE_EVERY_S: Final = 0.02
# A call whose refusals may be its own affair lets so many others go first.
_OTHERS_FIRST: Final = 2.0
_LONGEST_FOR_OTHERS_S: Final = 60.0
# So many refusals of one call, others passing between, tell nothing of a limit any more.
_NOT_OF_ALL: Final = 3


class Limiter(Causes):
    """The limits of one upstream, key and model."""

    @property
    def is_bound(self) -> bool:
        """Tell whether a limit is known."""
        return self._is_bound or self.window.is_held

    @property
    def refuses_all(self) -> bool:
        """Tell whether no call has passed since the last refusal."""
        return self.doubts.refusals != 0 and not self._passed_since

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

    def look(self, running: int, now: float) -> None:
        """Learn that a call still waits, `running` being in flight: what came until the look before has been read."""
        if self.window.look(running, (now - self._looked_at) / LOOK_S):
            self.has_news = True
        self._looked_at = now

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
        tries.again_at = math.inf
        self._hear_vouched(now)
        tries.number = tries.number or sent.number
        is_first = not self._passed_since and sent.number <= self._last_refused_number + 1
        passed = self.doubts.count(sent.number, self._number, tries, now)
        self._last_refused_number, self._passed_since = self._number, 0
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
        self._doubt(tries, now)
        if self.doubts.are_own(tries, now):
            self._forget_unvouched(sent.running)
        if passed > 0:
            self._take_back_guess(tries.number, sent.running)
            if not self.doubts.may_pass(tries, passed, now):
                self._forget_unvouched(sent.running)
                return None
        if self.doubts.is_doubtful(tries, now):
            tries.doubted = sent, refusal
            return own_s
        if passed > 0 and (tries.is_again or (tries.refusals >= _NOT_OF_ALL and refusal.wait_s is None)):
            return own_s
        if not self._explain(sent, refusal, tries, now) or refusal.wait_s is not None:
            return own_s
        if tries.refusals == 1 and self._guessed_by != tries.number:
            return 0.0
        # One that goes before all others again and again would never let any pass.
        others_s = self.blind.wait_s(now) + _OTHERS_FIRST / self.blind.pace(now) if self.blind.is_known else 0.0
        return max(own_s, min(others_s, _LONGEST_FOR_OTHERS_S))

    def refuse_earlier(self, sent: SentAttempt, running: int, refusal: Refusal, tries: Tries, now: float) -> float:
        """Learn from a 429 of a call that was sent before this process joined others, with `running` in flight now.

        It was charged to nobody's account, and tells no more than that there is a limit, if that isn't known.
        """
        self.has_news = True
        tries.again_at = math.inf
        if self.window.is_held:
            self.window.leave_out()
        elif self._learns and not (self.requests.is_known or self.tokens.is_known or self.blind.is_known):
            # Its number is one of this process only.
            tries.number = -int(sent.at * 1e6)
            self._is_bound, self.blind.number = True, self._number
            self._explain(SentAttempt(sent.at, self._number, 0.0, running, 0.0, 0.0), refusal, tries, now)
        return refusal.wait_s or 0.0

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
