"""The allowed cost: what is spent of it, and what the calls in flight may still cost.

What is set aside for unbounded calls, and for pictures, follows the answers: it is reckoned anew from what the last
answers say, not from what was thought when the calls began. See also: estimate (what a call may cost).
"""

from __future__ import annotations

from openai_gateway.collect.estimate import Claim, Estimator


class Budget:
    """The allowed cost in US dollars (None: any), with what earlier runs spent of it."""

    def __init__(self, limit_usd: float | None, estimator: Estimator, spent_usd: float = 0.0) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self._estimator = estimator
        self._fixed_usd = 0.0
        # By size of the input: how many unbounded calls are in flight, and what a token of all their answers costs.
        self._unbounded: dict[int, tuple[int, float]] = {}
        # How many calls with pictures are in flight, and what their inputs were first thought to cost.
        self._with_pictures, self._pictures_usd = 0, 0.0

    def may_take(self, claim: Claim) -> bool:
        """Tell whether one more call fits."""
        if self.limit_usd is None:
            return True
        return self.spent_usd + self.sum_up_reserved_usd() + self._estimate_usd(claim) <= self.limit_usd

    def knows_enough(self, claim: Claim) -> bool:
        """Tell whether enough is known for one more call whose cost is a guess: few begin before any has ended."""
        if self.limit_usd is None:
            return True
        if claim.pictures_usd and self._with_pictures > self._estimator.picture_answers:
            return False
        if claim.size is None:
            return True
        return sum(count for count, _ in self._unbounded.values()) < 1 + self._estimator.answers

    def sum_up_reserved_usd(self) -> float:
        """Return what the calls in flight may cost."""
        open_usd = (usd * self._estimator.expect_tokens(size) for size, (_, usd) in self._unbounded.items())
        return self._fixed_usd + self._estimator.picture_factor * self._pictures_usd + sum(open_usd)

    def reserve(self, claim: Claim) -> None:
        """Set aside what a call may cost."""
        self._put(claim, 1)

    def settle(self, claim: Claim, cost_usd: float) -> None:
        """Put what a call did cost in the place of what was set aside for it."""
        self._put(claim, -1)
        self.spent_usd += cost_usd

    def _put(self, claim: Claim, sign: int) -> None:
        self._fixed_usd += sign * claim.fixed_usd
        self._with_pictures += sign * (claim.pictures_usd > 0)
        self._pictures_usd += sign * claim.pictures_usd
        if claim.size is not None:
            count, usd = self._unbounded.get(claim.size, (0, 0.0))
            self._unbounded[claim.size] = count + sign, usd + sign * claim.usd_per_token

    def _estimate_usd(self, claim: Claim) -> float:
        tokens = 0 if claim.size is None else self._estimator.expect_tokens(claim.size)
        pictures_usd = self._estimator.picture_factor * claim.pictures_usd
        return claim.fixed_usd + pictures_usd + claim.usd_per_token * tokens
