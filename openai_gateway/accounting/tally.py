"""What many values come to: percentiles, and sums of tokens. One way for the page, for `collect` and for `bench`.

Latencies that are counted as they come are kept as steps of a logarithmic scale, so that any number of them takes the
same memory and counts of several workers can be added: eight steps to each doubling tell latencies apart to within
9 %. See also: totals, spans, collect.sums, probe.bench_load (who counts).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from openai_gateway.wire.usage import Usage

_STEPS_PER_E: Final = 8 / math.log(2)
_Value = TypeVar("_Value", int, float)


class TokenSums(msgspec.Struct):
    """Tokens of the calls that reported them; what a report leaves out counts as none."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def add_usage(self, usage: Usage) -> None:
        """Add what one call reported."""
        self.input_tokens += usage.input_tokens
        self.cached_tokens += usage.cached_tokens or 0
        self.output_tokens += usage.output_tokens
        self.reasoning_tokens += usage.reasoning_tokens or 0


def to_step(seconds: float) -> int:
    """Return the step of a latency on the scale."""
    return int(math.log(seconds * 1000.0 + 1.0) * _STEPS_PER_E)


def to_milliseconds(step: int) -> float:
    """Return the middle of a step."""
    return math.exp((step + 0.5) / _STEPS_PER_E) - 1.0


def find_percentile(counts: Iterable[tuple[_Value, int]], percent: float) -> _Value | None:
    """Return the smallest value that at least `percent` of all lie at or below (nearest rank); None of no values.

    `counts` are pairs of a value and how often it was seen.
    """
    ranked = sorted(counts)
    left = sum(count for _, count in ranked) * percent / 100
    for value, count in ranked:
        left -= count
        if left <= 0:
            return value
    return None
