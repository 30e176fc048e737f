"""What calls will cost before they are made. Rough, and on the high side.

A call's input is counted by its bytes. Its answer is as long as the row or the config allow; where nothing bounds it,
as the 95th percentile of the answers so far to inputs of about its size, and before there are any, as an assumption
that may be far off: so `run` begins few such calls until real answers say more. So it does with pictures, whose tokens
depend on the model and their size in pixels. See also: config.prices, budget (what
is spent).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from openai_gateway.collect.rows import Row
from openai_gateway.config.prices import PriceTable
from openai_gateway.wire.input_tokens import count_input_tokens, has_pictures
from openai_gateway.wire.usage import Report, Usage

# What a call may answer with of which nothing is known yet.
ASSUMED_OUTPUT_TOKENS: Final = 2048
_SHARE: Final = 0.95
# With fewer answers to inputs of about a row's size, those to all sizes count, and with fewer of them, the longest.
_LEAST_OF_SIZE: Final = 20
_STEPS_PER_DOUBLING: Final = 8


class _Lengths:
    """Answers' lengths, counted by steps of 9 %."""

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}
        self.count = 0

    def add(self, tokens: int) -> None:
        step = math.ceil(math.log2(max(tokens, 1)) * _STEPS_PER_DOUBLING)
        self._steps[step] = self._steps.get(step, 0) + 1
        self.count += 1

    def find_high(self) -> int:
        """Return what 95 % of the lengths don't exceed; of few, what none does."""
        beyond = 0 if self.count < _LEAST_OF_SIZE else int(self.count * (1 - _SHARE))
        for step in sorted(self._steps, reverse=True):
            beyond -= self._steps[step]
            if beyond < 0:
                return math.ceil(2 ** (step / _STEPS_PER_DOUBLING))
        return 0


class Claim(msgspec.Struct, frozen=True):
    """What a call may cost: `fixed_usd`, and for each token of an unbounded answer, by its input's `size`, more.

    `pictures_usd` is its input, if that has pictures: a guess, to be multiplied by the estimator's `picture_factor`.
    """

    fixed_usd: float
    usd_per_token: float = 0.0
    size: int | None = None
    pictures_usd: float = 0.0


FREE: Final = Claim(0.0)


class Estimator:
    """Knows prices, the model that is asked, and what the config sets for each API: bound on an answer, and tier."""

    def __init__(
        self,
        prices: PriceTable,
        model: str | None,
        bounds: Mapping[str, int | None],
        tiers: Mapping[str, str | None] | None = None,
    ) -> None:
        self._prices = prices
        self._bounds = bounds
        self._tiers = tiers or {}
        self._lengths: dict[int, _Lengths] = {}
        self._all_lengths = _Lengths()
        # By how much inputs with pictures were longer than thought, the most, and how many answers told.
        self.picture_factor = 1.0
        self.picture_answers = 0
        self.model = model

    @property
    def answers(self) -> int:
        """How many answers the estimate rests on."""
        return self._all_lengths.count

    @property
    def has_price(self) -> bool:
        """Tell whether the model has a price."""
        return self.model is not None and self._prices.find(self.model) is not None

    def find_tier(self, row: Row) -> str | None:
        """Return the service tier that a row's call asks for; None is the standard one."""
        return row.service_tier or self._tiers.get(row.api)

    def find_bound(self, row: Row) -> int | None:
        """Return the most tokens that row or config allow an answer, None if they don't say."""
        return row.max_output_tokens if row.max_output_tokens is not None else self._bounds.get(row.api)

    def output_tokens(self, row: Row) -> int:
        """Return about the most tokens an answer may have."""
        bound = self.find_bound(row)
        return self.expect_tokens(_find_size_class(row.input_tokens)) if bound is None else bound

    def expect_tokens(self, size: int) -> int:
        """Return the tokens that few answers to inputs of a size exceed; an assumption if there are no answers."""
        of_size = self._lengths.get(size)
        lengths = of_size if of_size is not None and of_size.count >= _LEAST_OF_SIZE else self._all_lengths
        return lengths.find_high() if lengths.count else ASSUMED_OUTPUT_TOKENS

    def cost_usd(self, row: Row) -> float | None:
        """Return what a call of a row is thought to cost at most; None if model or tier have no known price."""
        return self._price(row, row.input_tokens, self.output_tokens(row))

    def excess_usd(self, row: Row) -> float:
        """Return what a call may cost beyond its estimate if each byte of its input is a token."""
        tokens = self.output_tokens(row)
        most, thought = (self._price(row, each, tokens) for each in (row.most_input_tokens, row.input_tokens))
        return (most or 0.0) - (thought or 0.0)

    def make_claim(self, row: Row) -> Claim:
        """Return what to set aside for a call of a row."""
        bound = self.find_bound(row)
        counted = (0, 1_000_000 if bound is None else bound)
        input_usd, most_usd = (self._price(row, row.input_tokens, tokens) or 0.0 for tokens in counted)
        fixed_usd, pictures_usd = (0.0, input_usd / self.picture_factor) if row.has_pictures else (input_usd, 0.0)
        if bound is not None:
            return Claim(fixed_usd + most_usd - input_usd, pictures_usd=pictures_usd)
        return Claim(fixed_usd, (most_usd - input_usd) / 1_000_000, _find_size_class(row.input_tokens), pictures_usd)

    def compute_cost_usd(self, report: Report) -> float | None:
        """Return what an answer cost, None if that is unknown; its length is remembered."""
        if report.usage is not None:
            size = _find_size_class(report.usage.input_tokens)
            self._lengths.setdefault(size, _Lengths()).add(report.usage.output_tokens)
            self._all_lengths.add(report.usage.output_tokens)
        return self._prices.cost_usd(report.model or self.model, report.usage, report.service_tier)

    def learn_pictures(self, asked: bytes, usage: Usage | None) -> None:
        """Learn from an answer what pictures count as, if it was asked with any."""
        if usage is not None and has_pictures(asked):
            self.picture_answers += 1
            thought, _ = count_input_tokens(asked)
            self.picture_factor = max(self.picture_factor, usage.input_tokens / thought)

    def guess_usd(self, report: Report, input_tokens: int, bound: int | None) -> float:
        """Return what an answer of unknown cost is thought to have cost: at the price of the model asked.

        Its length, if it doesn't tell it, is what few answers exceed, and no more than its `bound`.
        """
        output_tokens = self.expect_tokens(_find_size_class(input_tokens))
        usage = report.usage or Usage(input_tokens, output_tokens if bound is None else min(output_tokens, bound))
        return self._prices.cost_usd(self.model, usage) or 0.0

    def _price(self, row: Row, input_tokens: int, output_tokens: int) -> float | None:
        factor = self.picture_factor if row.has_pictures else 1.0
        usage = Usage(math.ceil(factor * input_tokens), output_tokens)
        return self._prices.cost_usd(self.model, usage, self.find_tier(row))


def _find_size_class(input_tokens: int) -> int:
    """Return the class of sizes that an input is of: doubling from one to the next."""
    return input_tokens.bit_length()
