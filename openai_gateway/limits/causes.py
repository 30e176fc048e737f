"""What a refusal is put down to: a ledger that is empty, a window of calls in flight, a rate, or the call itself.

The strategy. A refusal is put down to the ledger that is empty. If none is, to what its text names: calls in flight, or
requests. If it names nothing, calls in flight are tried first: refused again with fewer of them, it must be a rate. A
first refusal that nothing explains changes nothing for others until a second call is refused, too: it may be that
call's own affair; unless it names requests, and many are sent: then a rate is guessed, and forgotten again if only that
call is refused further. Nor do others keep its Retry-After before. If calls are found that can't pass, whatever was
learnt from refusals alone is forgotten, unless a call vouches for it.

Pure: the clock (monotonic seconds) is an argument, and so is the number of calls in flight. See also: doubts (whose
affair a refusal is), limiter (what a refused call has to do).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from openai_gateway.limits.attempts import SentAttempt, Tries
from openai_gateway.limits.blind import BlindRate
from openai_gateway.limits.doubts import REFUSED_WITHIN_S
from openai_gateway.limits.held import EVEN_GROWTH, SLOW_DOWN_GROWTH
from openai_gateway.limits.learnt import FIRST_PROBE_S, GUESS_SHARE, Learnt
from openai_gateway.limits.ledger import Ledger
from openai_gateway.limits.window import Window
from openai_gateway.wire.rate_limits import RateLimit, Refusal

_LONGEST_PROBE_S: Final = 30.0
_SHORT_WAIT_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 120.0
_ROOM: Final = 0.05
# Slower nobody is held: whoever calls now and then has not grown too fast by that.
_LEAST_PER_S: Final = 1.0
# From fewer calls of late no rate is to be guessed, and few of them are refused together.
_SURE_CALLS: Final = 24
# Two refusals of different calls so soon after one another are no affair of one call.
SOON_S: Final = 2.0
_MOST_IN_DOUBT: Final = 1023


class Causes(Learnt):
    """Learns from refusals."""

    @property
    def is_doubted(self) -> bool:
        """Tell whether a rate was guessed from one refusal, here or elsewhere, which may be that call's own affair."""
        return self._guessed_by != 0 and self.blind.is_guess

    def _take_back_guess(self, number: int, running: int) -> None:
        """Forget a rate that was guessed from the first refusal of this call: it was the call's own affair."""
        if self._guessed_by == number and self.is_doubted:
            self._forget(running)

    def _forget_unvouched(self, running: int) -> None:
        """Forget what was learnt from refusals alone: of one that can't pass, too, and none vouches for a limit."""
        if not self.doubts.vouched and (self.window.is_held or self.blind.is_known):
            self._forget(running)

    def _forget(self, running: int) -> None:
        self.blind, self._guessed_by, self._is_rate = BlindRate(number=self._number), 0, False
        self.pause_until = 0.0
        self.window = Window(most=float(max(1, running)))

    def _doubt(self, tries: Tries, now: float) -> None:
        """Note a call that was refused and no ledger explains why: it may vouch for a limit yet, or no more."""
        if tries.has_vouched:
            self.doubts.vouched, tries.has_vouched = max(0, self.doubts.vouched - 1), False
        elif tries.alone:
            return
        if not tries.alone:
            tries.alone, tries.vouched, tries.since = 1, self.doubts.vouched, now
        self._in_doubt = [*self._in_doubt[-_MOST_IN_DOUBT:], tries]

    def vouch(self, tries: Tries, now: float) -> None:
        """Learn that a call has passed that was refused before: there is a limit, and that was no affair of its own."""
        if not tries.alone or tries.has_vouched:
            return
        # Of very many, the first are not kept.
        if tries in self._in_doubt:
            self._in_doubt.remove(tries)
        self.doubts.vouched += 1
        tries.has_vouched = self.has_news = True
        if tries.doubted is not None:
            (sent, refusal), tries.doubted = tries.doubted, None
            self._explain(sent, refusal, tries, now, is_sure=True)

    def _hear_vouched(self, now: float) -> None:
        """Learn of those that passed when they were sent again: refusals come at once, answers may take minutes."""
        for tries in [*self._in_doubt]:
            if tries.again_at < now - REFUSED_WITHIN_S:
                self.vouch(tries, now)

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

    def _explain(self, sent: SentAttempt, refusal: Refusal, tries: Tries, now: float, *, is_sure: bool = False) -> bool:
        """Put a refusal that no ledger explains down to a window or a rate; False if to neither as yet."""
        if refusal.kind == "in_flight":
            self.window.refuse(sent.at, sent.running, now)
            return True
        other_at = max(self._unexplained, self._unexplained_elsewhere)
        self._unexplained = max(sent.at, self._unexplained)
        is_common = is_sure or sent.at - other_at < SOON_S
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
