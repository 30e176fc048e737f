"""What flows in of one limit, who takes it, and how well that is foreseen: learnt from what upstreams say is left.

The strategy. Two references, each what was left when a call was sent, tell what really flowed in between them. It
differs from the told rate: somebody else uses the key (less), unused charge of finished calls is given back (more),
token charges are estimated wrongly (either), limits may count in another period. All of that is one number, the
*drain*, which may be negative, learnt with a time constant of two seconds.

Who charges as much as the drain takes has half of what is used: its *part*. Others who learn as we do answer what we
do. Four gateways that don't know of each other, each of which made up for all that is lacking or left, would do so
four times over (and swing, a second or two behind, up to 20 % of 429s); so each does its part of it only.

What the level is *wrong* by when the next reference comes, on average, says how much must be kept for that: half a call
where nobody else uses the key, some calls where others do, as much as a call or two where charges are given back.

Pure. See also: ledger (what is made of it).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

_TAU_S: Final = 2.0
_TAU_UNITS: Final = 8.0
# Slower than this share of the rate nobody is: what is known may be wrong.
SLOWEST: Final = 0.02
# Whoever is left with less than this part must not need for ever to get more.
_LEAST_PART: Final = 0.25
_WRONG_SHARE: Final = 0.07
# Of the limit, until more is known.
_WRONG_AT_FIRST: Final = 0.001
# As often as not the level is wrong by more than the mean, and hardly ever by so many times as much.
_RESERVE_TIMES: Final = 5.0
_RESERVE_OF_MOST: Final = 0.4
_NEARLY_FULL: Final = 0.9
# Hosts are not all heard again at the same moment.
_MOVE_TOGETHER_S: Final = 1.0


class Inflow(msgspec.Struct, array_like=True, eq=False):
    """What is learnt of one limit from references; `most` is what its bucket holds, as far as is known."""

    # The smallest charge that calls have.
    _unit: float
    limit: float = 0.0
    rate: float = 0.0
    drain: float = 0.0
    most: float = 0.0
    # What we charge a second, with hosts in touch; by the same time constant as the drain.
    charged_per_s: float = 0.0
    # Below 0: nothing is known.
    wrong: float = -1.0
    # When the call was sent by whose answer the upstream itself last said what was left, and how much that was.
    referred_at: float = -math.inf
    referred_level: float = 0.0
    # The sum of charges then; infinite if the next reference is not to be compared with this one.
    referred_spent: float = math.inf
    # Our part when other hosts could be heard, which can't any more.
    last_part: float = 1.0
    # When what they charge became drain, or below 0 was drain no more, and how much a second.
    moved_at: float = -math.inf
    moved_per_s: float = 0.0

    @property
    def part(self) -> float:
        """Return which part of what is used is ours: all of it as long as nobody else is seen, or was heard."""
        drain, part = self.drain, self.last_part
        if drain > 0.0:
            # What is given back hides what others take.
            part = min(part, self.charged_per_s / (self.charged_per_s + drain))
        return part if part > _LEAST_PART else _LEAST_PART

    @property
    def kept_for_wrong(self) -> float:
        """Return how much is kept because the level may be wrong."""
        wrong = self.wrong if self.wrong >= 0.0 else _WRONG_AT_FIRST * self.limit
        return min(_RESERVE_TIMES * wrong, _RESERVE_OF_MOST * self.most)

    def fair_s(self, charge: float) -> float:
        """Return in which time as much as our part should have flowed in for a call."""
        return charge / (self.part * self.rate) if self.rate else 0.0

    def learn_drain(self, remaining: float, charge: float, sent_at: float, spent: float) -> None:
        """Learn from a reference that comes after another: of a call of this charge, `spent` being the sum with it."""
        passed_s, charged = sent_at - self.referred_at, spent - self.referred_spent
        level = self.referred_level
        drain = self.rate - (remaining - level + charged) / passed_s
        if drain > self.drain and max(level, remaining + charge) > _NEARLY_FULL * self.most:
            # A full bucket takes in nothing.
            overflow = max(0.0, level + (self.rate - self.drain) * passed_s - self.most)
            drain = max(self.drain, drain - overflow / passed_s)
        if self.wrong < 0.0:
            self.wrong = _WRONG_AT_FIRST * self.limit
        self.wrong += _WRONG_SHARE * (abs(drain - self.drain) * passed_s - self.wrong)
        share = 1 - math.exp(-passed_s / self._tau_s)
        # More may have been taken back than was charged.
        self.charged_per_s = max(0.0, self.charged_per_s + share * (charged / passed_s - self.charged_per_s))
        self._set_drain(self.drain + share * (drain - self.drain))

    def learn_late_refusal(self, charge: float) -> None:
        """Learn that a call was refused which was taken for charged when a later one's reference came."""
        self._set_drain(self.drain + charge / self._tau_s)
        self.charged_per_s = max(0.0, self.charged_per_s - charge / self._tau_s)

    def move_to_drain(self, per_s: float, now: float) -> None:
        """Take what hosts charge a second for drain, or below 0 for our own charge again."""
        self.moved_per_s = per_s + (self.moved_per_s if now - self.moved_at < _MOVE_TOGETHER_S else 0.0)
        self.moved_at = now
        self.charged_per_s = max(0.0, self.charged_per_s - per_s)
        self._set_drain(self.drain + per_s)

    def to_now(self, remaining: float, sent_at: float) -> float:
        """Return what was left of what is charged and drained as it is now, when a call was sent."""
        # Until then, what was moved is in the sum of charges, or not, and not to be drained, too.
        return remaining + self.moved_per_s * (self.moved_at - sent_at) if sent_at < self.moved_at else remaining

    def _set_drain(self, drain: float) -> None:
        self.drain = min(drain, (1 - SLOWEST) * self.rate)

    @property
    def _tau_s(self) -> float:
        # What remains is told in whole units: where few flow in, what flowed between two answers is mostly rounding.
        return max(_TAU_S, _TAU_UNITS * self._unit / self.rate) if self.rate else _TAU_S
