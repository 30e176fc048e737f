"""What calls will cost before they are made, and how much of the allowed cost is left. Rough, and on the high side.

Prices are `config.prices`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from openai_gateway.collect.rows import Row
from openai_gateway.config.prices import PriceTable
from openai_gateway.wire.usage import Report, Usage

# What a call may answer with of which nothing is known yet.
ASSUMED_OUTPUT_TOKENS: Final = 2048


class Estimator:
    """Knows prices, the model that is asked, and each API's bound on an answer that the config sets, if it does."""

    def __init__(self, prices: PriceTable, model: str | None, bounds: Mapping[str, int | None]) -> None:
        self._prices = prices
        self._bounds = bounds
        self._longest = 0
        self.model = model

    @property
    def has_price(self) -> bool:
        """Tell whether the model has a price."""
        return self.model is not None and self._prices.find(self.model) is not None

    def is_bounded(self, row: Row) -> bool:
        """Tell whether row or config bound the answer's length."""
        return row.max_output_tokens is not None or self._bounds.get(row.api) is not None

    def output_tokens(self, row: Row) -> int:
        """Return the most tokens an answer may have; without a bound, those of the longest so far or an assumption."""
        bound = row.max_output_tokens if row.max_output_tokens is not None else self._bounds.get(row.api)
        return max(self._longest, ASSUMED_OUTPUT_TOKENS) if bound is None else bound

    def cost_usd(self, row: Row) -> float | None:
        """Return the most that a call of a row is thought to cost; None if the model's price is unknown."""
        return self._prices.cost_usd(self.model, Usage(row.input_tokens, self.output_tokens(row)))

    def to_cost_usd(self, report: Report) -> float | None:
        """Return what an answer cost, None if that is unknown; the longest answer is remembered."""
        if report.usage is not None:
            self._longest = max(self._longest, report.usage.output_tokens)
        return self._prices.cost_usd(report.model or self.model, report.usage, report.service_tier)


class Budget:
    """The allowed cost in US dollars (None: any), what is spent of it, and what the calls in flight may still cost."""

    def __init__(self, limit_usd: float | None, spent_usd: float = 0.0) -> None:
        self._limit_usd = limit_usd
        self._spent_usd = spent_usd
        self._reserved_usd = 0.0

    def may_take(self, estimate_usd: float) -> bool:
        """Tell whether one more call fits."""
        return self._limit_usd is None or self._spent_usd + self._reserved_usd + estimate_usd <= self._limit_usd

    def reserve(self, estimate_usd: float) -> None:
        """Set aside what a call may cost."""
        self._reserved_usd += estimate_usd

    def settle(self, estimate_usd: float, cost_usd: float) -> None:
        """Put what a call did cost in the place of what was set aside for it."""
        self._reserved_usd -= estimate_usd
        self._spent_usd += cost_usd
