"""Whose refusals are a limit's, and whose their call's own affair: a call that an upstream dislikes gets a 429, too.

The strategy. Refusals come at once, answers may take minutes: what was sent and isn't refused has passed. A call that
is refused three times, three others passing each time, can't pass at all. But where a limit is met by many, that may be
bad luck. So if others were refused, too, it is tried for four seconds at least; and each of them that isn't refused
again within half a second vouches for a limit: for each, a call is tried two times more, up to eight. If several are
refused twice, others passing, and after two seconds none vouches for a limit, there is none.

Once that was found, or a call that can't pass, we are on guard for ten minutes: a refusal counts for a limit's only
when its call has passed after all, or if most of those are refused that are sent one after the other.

Pure: the clock (monotonic seconds) is an argument. See also: limiter (what comes of a refusal), causes (which limit).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from openai_gateway.limits.attempts import PASSES_BETWEEN, Tries

# Who isn't refused within so long has passed.
REFUSED_WITHIN_S: Final = 0.5
_MOST_ALONE: Final = 3
_MORE_PER_VOUCHED: Final = 2
_MOST_ALONE_AT_ALL: Final = 8
# Not to be judged sooner, where others were refused, too; on guard it takes less.
_JUDGED_AFTER_S: Final = 4.0
_JUDGED_ON_GUARD_AFTER_S: Final = 1.2
# Several that are refused twice, others passing, none of which is vouched for by then: that is no limit.
_SEVERAL: Final = 3
_VOUCHED_WITHIN_S: Final = 2.0
_ON_GUARD_FOR_S: Final = 600.0
# So many refused in a row, each that passes between counting half a one less, are a limit's: those that can't pass are
# fewer. Of a limit that is vouched for, so many.
_IN_ROW: Final = 4.0
_IN_ROW_VOUCHED: Final = 2.0


class Doubts(msgspec.Struct, array_like=True, eq=False):
    """How many calls were refused so far, how many were `vouched` for, and when one was found that can't pass."""

    refusals: int = 0
    vouched: int = 0
    found_at: float = -math.inf
    _last_number: int = 0
    _in_row: float = 0.0
    # When the first was refused, how many had passed by then; how many calls were refused twice since.
    _first_at: float = math.inf
    _let_in_first: int = 0
    _twice: int = 0
    # How many had been sent a while ago, so that whoever of them is refused is known; and later, and when that was.
    _sent: int = 0
    _sent_later: int = 0
    _noted_at: float = -math.inf

    def count(self, number: int, sent: int, tries: Tries, now: float) -> int:
        """Count a refusal of the call sent as this number, of so many; return how many passed since its last one."""
        if now - self._noted_at >= REFUSED_WITHIN_S:
            self._sent, self._sent_later, self._noted_at = self._sent_later, sent, now
        passed = max(0, number - 1 - self.refusals - tries.let_in_then) if tries.refusals else 0
        tries.is_again = tries.refusals > 0 and self.refusals == tries.refusals_then
        self._in_row = max(0.0, self._in_row - max(0, number - self._last_number - 1) / 2)
        self._last_number = max(self._last_number, number)
        if not tries.refusals:
            self._in_row += 1
            tries.refusals_before = self.refusals
        self.refusals += 1
        tries.refusals += 1
        tries.refusals_then, tries.let_in_then = self.refusals, sent - self.refusals
        return passed

    def may_pass(self, tries: Tries, passed: int, now: float) -> bool:
        """Learn that a call was refused again, others having passed meanwhile; False if it can't pass at all."""
        tries.passed += passed
        if tries.passed < PASSES_BETWEEN:
            return True
        is_only = self.refusals - tries.refusals_before == tries.refusals
        least_s = 0.0 if is_only else _JUDGED_ON_GUARD_AFTER_S if self.is_on_guard(now) else _JUDGED_AFTER_S
        if tries.alone == _MOST_ALONE - 1 and now < tries.since + least_s:
            return True
        tries.alone, tries.passed = tries.alone + 1, 0
        more = _MORE_PER_VOUCHED * max(0, self.vouched - tries.vouched)
        if tries.alone < min(_MOST_ALONE + more, _MOST_ALONE_AT_ALL):
            return True
        self.found_at = now
        return False

    def are_own(self, tries: Tries, now: float) -> bool:
        """Learn that no ledger explains a refusal; tell whether all those so far must be their calls' own affair."""
        if self._first_at == math.inf:
            self._first_at, self._let_in_first = now, tries.let_in_then
        self._twice += tries.refusals == 2
        # Of many that are sent together, the first refusals say nothing of the others yet.
        let_in = self._sent - self.refusals - self._let_in_first
        if (
            self.vouched
            or self._twice < _SEVERAL
            or let_in < PASSES_BETWEEN
            or now < self._first_at + _VOUCHED_WITHIN_S
        ):
            return False
        self.found_at, self._first_at, self._twice = now, math.inf, 0
        return True

    def is_on_guard(self, now: float) -> bool:
        """Tell whether a call was found of late that can't pass."""
        return now - self.found_at < _ON_GUARD_FOR_S

    def is_doubtful(self, tries: Tries, now: float) -> bool:
        """Tell whether the last refusal of a call may well be its own affair."""
        if not self.is_on_guard(now):
            return False
        return tries.refusals > 1 or self._in_row < (_IN_ROW_VOUCHED if self.vouched else _IN_ROW)
