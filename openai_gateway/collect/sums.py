"""What answers add up to: tokens, cost, latency, finish reasons. Plain sums, the same size for any number of answers.

See also: cli.collection_summary (how they are shown).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, Final

import msgspec

from openai_gateway.accounting.tally import TokenSums, find_percentile, to_milliseconds, to_step
from openai_gateway.wire.usage import Report

_PERCENTILES: Final = (50, 90, 99)
# An upstream that makes up reasons must not fill the memory.
_MOST_REASONS: Final = 50
_OTHER: Final = "other"
_NO_REASON: Final = "unknown"
# The API's names for an answer that its bound ended.
CUT_OFF: Final = ("length", "max_output_tokens", "max_tokens")


class Latencies(msgspec.Struct):
    """Durations counted by step, which tells them apart to within 9 %."""

    steps: dict[int, int] = {}
    count: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        step = to_step(duration_s)
        self.steps[step] = self.steps.get(step, 0) + 1
        self.count += 1
        self.total_s += duration_s
        self.longest_s = max(self.longest_s, duration_s)

    def to_json(self) -> dict[str, float] | None:
        """Return percentiles, mean and maximum in seconds; None if nothing was counted."""
        if not self.count:
            return None
        found = {f"p{percent}": round(self._percentile_s(percent), 3) for percent in _PERCENTILES}
        return {**found, "mean": round(self.total_s / self.count, 3), "max": round(self.longest_s, 3)}

    def _percentile_s(self, percent: int) -> float:
        step = find_percentile(self.steps.items(), percent)
        return self.longest_s if step is None else min(to_milliseconds(step) / 1000, self.longest_s)


class Sums(TokenSums):
    """What some answers add up to.

    Tokens are of those that reported them (the others: `without_usage`), cost of those that also have a price (the
    others: `without_price`). `estimated_usd` is what answers of unknown cost are thought to have cost,
    `perhaps_billed_usd` what calls are that failed though the upstream worked on them, `replaced_usd` what answers cost
    that were asked for again. `latencies` are of the last attempts alone, `durations` with all waiting.
    """

    answers: int = 0
    without_usage: int = 0
    cost_usd: float = 0.0
    without_price: int = 0
    estimated_usd: float = 0.0
    perhaps_billed_usd: float = 0.0
    replaced_usd: float = 0.0
    attempts: int = 0
    retries: Counter[str] = msgspec.field(default_factory=Counter)
    finish_reasons: Counter[str] = msgspec.field(default_factory=Counter)
    latencies: Latencies = msgspec.field(default_factory=Latencies)
    durations: Latencies = msgspec.field(default_factory=Latencies)

    def add(
        self, report: Report, cost_usd: float | None, duration_s: float | None, latency_s: float | None = None
    ) -> None:
        """Add an answer."""
        self.answers += 1
        reason = report.finish_reason or _NO_REASON
        is_known = reason in self.finish_reasons or len(self.finish_reasons) < _MOST_REASONS
        self.finish_reasons[reason if is_known else _OTHER] += 1
        if duration_s is not None:
            self.durations.add(duration_s)
            self.latencies.add(duration_s if latency_s is None else latency_s)
        usage = report.usage
        if usage is None:
            self.without_usage += 1
            return
        self.add_usage(usage)
        self.cost_usd += cost_usd or 0.0
        self.without_price += cost_usd is None

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def add_attempts(self, attempts: int, retries: Collection[str]) -> None:
        """Count a call's attempts, and why all but the last failed."""
        self.attempts += attempts
        for reason in retries:
            is_known = reason in self.retries or len(self.retries) < _MOST_REASONS
            self.retries[reason if is_known else _OTHER] += 1

    @property
    def cut_off(self) -> int:
        """How many answers were cut off by a bound on their length."""
        return sum(self.finish_reasons[reason] for reason in CUT_OFF)

    @property
    def spent_usd(self) -> float:
        """What all of it cost, or is thought to have cost."""
        return self.cost_usd + self.estimated_usd + self.perhaps_billed_usd + self.replaced_usd

    @property
    def known_cost_usd(self) -> float | None:
        """The cost, None if there are answers and it is known of none."""
        is_known = not self.answers or self.answers > self.without_usage + self.without_price
        return self.cost_usd if is_known else None

    def to_json(self) -> dict[str, Any]:
        """Return the sums in JSON's terms."""
        cost_usd = self.known_cost_usd
        return {
            "answers": self.answers,
            "tokens": {
                "input": self.input_tokens,
                "cached": self.cached_tokens,
                "output": self.output_tokens,
                "reasoning": self.reasoning_tokens,
                "answers_without_usage": self.without_usage,
            },
            "cost_usd": None if cost_usd is None else round(cost_usd, 6),
            "answers_without_price": self.without_price,
            "estimated_usd": round(self.estimated_usd, 6),
            "perhaps_billed_usd": round(self.perhaps_billed_usd, 6),
            "replaced_usd": round(self.replaced_usd, 6),
            "latency_s": self.latencies.to_json(),
            "duration_s": self.durations.to_json(),
            "finish_reasons": dict(self.finish_reasons),
            "cut_off": self.cut_off,
        }
