"""The rate of an upstream that doesn't tell its limits, learnt from its refusals alone.

The strategy. Whatever the limit is, at a refusal nothing is left of it. So what was admitted between two refusals,
divided by the time between them, is the rate: exact to a call, whether refusals are charged or not, and never too high.
Until the second refusal, a third of the rate seen before the first is a guess (one that is too high costs more
refusals), grown by 10 % in the first two seconds, 20 % in the next, and so on. Then calls are sent evenly at the mean
over the last three intervals (the last one alone if it is a tenth lower: the limit fell), a little below at first, as
much as the mean may be wrong, and a little faster with each call until the next refusal; much faster if that doesn't
come, for then the limit rose.

Several calls are often refused at once, for they were under way together; refusals with nothing admitted between them
are one event. After an event a few calls' worth of time is left out: it fills the bucket a little, and costs nothing.
Refused again and again with nothing admitted, we wait longer each time: there is a window that must end first.

An interval that is slower only because nobody called for a while says nothing; it counts only if it is faster.

Pure: the clock (monotonic seconds) is an argument. See also: ledger (upstreams that tell).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

_GUESS_GROWTH: Final = 1.05
_GUESS_GROWTH_S: Final = 2.0
_MOST_STEPS: Final = 200.0
_SLOWEST: Final = 0.02
# Whoever calls now and then is not to wait because of a guess.
_LEAST_GUESS: Final = 1.0
_BELOW: Final = 0.005
_MOST_BELOW: Final = 0.1
_GROW_CALLS: Final = 300
# Where the rate is right, the next refusal comes within so many steps of growth; if not, the limit may have risen.
_STEADY_STEPS: Final = 4.0
_INTERVALS: Final = 3
_FELL: Final = 0.9
_ROSE: Final = 1.1
# A shorter interval is only the beginning of one.
_SHORTEST_S: Final = 1.0
_FEWEST_CALLS: Final = 20
# A guess is better than what so few calls tell.
_FEWEST_AT_ALL: Final = 4
_LEFT_OUT_S: Final = 0.1
_LEFT_OUT_CALLS: Final = 2
_LONGEST_WAIT_S: Final = 15.0
_IDLE_S: Final = 0.5
_CATCH_UP_S: Final = 0.05


class BlindRate(msgspec.Struct, array_like=True, eq=False):
    """Learns a rate of calls; unknown, it holds nobody up."""

    rate: float | None = None
    free_at: float = 0.0
    # Calls admitted in an interval, and its length.
    _intervals: list[tuple[float, float]] = []
    _began_at: float = 0.0
    _guessed_at: float = 0.0
    # The number of calls sent until the interval began, of those refused since, and of those sent.
    _began_with: int = 0
    _refused: int = 0
    number: int = 0
    _admitted_before: int = 0
    _grown: int = 0
    _below: float = _MOST_BELOW
    _idle_s: float = 0.0
    _empty: int = 0
    refused_at: float = -math.inf

    @property
    def is_known(self) -> bool:
        """Tell whether calls have to wait."""
        return self.rate is not None

    @property
    def is_guess(self) -> bool:
        """Tell whether no interval between two refusals has told the rate yet."""
        return self.rate is not None and not self._intervals

    def pace(self, now: float) -> float:
        """Return how many calls a second may go."""
        rate = self.rate or 0.0
        if not self._intervals:
            # Ever faster: a guess that is far too low must not hold calls up for long.
            steps = (now - self._guessed_at) / _GUESS_GROWTH_S
            if self._guessed_at == self._began_at:
                steps *= 1 + steps
            else:
                steps += max(0.0, steps - _STEADY_STEPS) ** 2
            return rate * float(_GUESS_GROWTH ** min(steps, _MOST_STEPS))
        steps = self._grown / _GROW_CALLS
        steps += max(0.0, steps - _STEADY_STEPS) ** 3
        return rate * (1 - self._below + max(_BELOW, self._below / 2) * steps)

    def wait_s(self, now: float) -> float:
        """Return how long the next call has to wait."""
        return max(0.0, self.free_at - now) if self.rate is not None else 0.0

    def take(self, number: int, now: float) -> None:
        """Count the call of this number that is sent now."""
        self.number = number
        if self.rate is not None:
            self._grown += 1
            if now - self.free_at > _IDLE_S:
                self._idle_s += now - self.free_at
            self.free_at = max(self.free_at, now - _CATCH_UP_S) + 1 / self.pace(now)

    def refuse(self, number: int, sent_at: float, guess: float, now: float) -> None:
        """Learn from the refusal of a call; `guess` is what the rate may be, for the first one."""
        self._refused += 1
        admitted = number - self._began_with - self._refused
        if self.rate is None:
            self.rate, self._guessed_at = max(guess, _LEAST_GUESS), now
            self.begin(now)
        elif sent_at < self._began_at:
            self._refused -= 1
            return  # It was under way when the last event came.
        else:
            self._empty = self._empty + 1 if admitted <= self._admitted_before else 0
            self._admitted_before = max(admitted, 0)
            self._learn(float(self._admitted_before), sent_at, now)
        self.refused_at = now
        self._leave_out(2.0 ** min(self._empty, 10), now)

    def hear(self, refused_at: float, now: float) -> None:
        """Learn that nothing was left then, for a call of another host was refused."""
        if self.rate is None or refused_at <= max(self._began_at, self.refused_at):
            return
        since = self.pace(now) * (now - refused_at)
        self._learn(max(0.0, self.number - self._began_with - self._refused - since), refused_at, now)
        self._leave_out(1.0, now)

    def join(self, guess: float, now: float) -> None:
        """Take in what somebody else sends, too, who is counted from now on: a guess holds for both together."""
        if self.rate is not None and self._guessed_at == self._began_at:
            self.rate += guess

    def begin(self, now: float) -> None:
        """Begin an interval anew."""
        self._began_at, self._began_with, self._refused = now, self.number, 0
        self._admitted_before, self._grown, self._idle_s = 0, 0, 0.0

    def _leave_out(self, times: float, now: float) -> None:
        left_out_s = times * max(_LEFT_OUT_S, _LEFT_OUT_CALLS / self.pace(now))
        self.free_at = max(self.free_at, now + min(left_out_s, _LONGEST_WAIT_S))

    def _learn(self, calls: float, sent_at: float, now: float) -> None:
        passed_s = max(sent_at - self._began_at, 1e-3)
        is_whole = passed_s >= _SHORTEST_S and calls >= _FEWEST_CALLS
        rate = self.rate or 0.0
        if self._idle_s > 0.1 * passed_s and calls / passed_s < rate:
            self.begin(now)
            return
        if is_whole and self._intervals and calls / passed_s > _ROSE * rate:
            # The limit rose meanwhile; what it is now shows the next refusal.
            self.rate, self._intervals, self._guessed_at = _FELL * self.pace(now), [], now
            self.begin(now)
            return
        has_fallen = is_whole and calls / passed_s < _FELL * rate
        kept = [] if has_fallen else self._intervals[-(_INTERVALS - 1) :]
        intervals = [*kept, (calls, passed_s)]
        all_calls = sum(count for count, _ in intervals)
        all_s = sum(length_s for _, length_s in intervals)
        if all_calls < _FEWEST_AT_ALL:
            self.rate = max(_SLOWEST, min(rate, (all_calls + _FEWEST_AT_ALL) / all_s))
            return
        self.rate = all_calls / all_s
        self._below = min(max(_BELOW, 1 / all_calls), _MOST_BELOW)
        if is_whole:
            self._intervals = intervals
            self.begin(now)
        else:
            # Nothing was left at its beginning either: it goes on, and is exacter when it is longer.
            self._guessed_at, self._grown = now, 0
