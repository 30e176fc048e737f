"""Sums up usage logs by model, server, API, rollout, hour or status, one line at a time.

A log may be far larger than the memory, so nothing but the sums is kept. See also: usage_log (which writes the
lines), cli.usage (which shows the sums).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from openai_gateway.config.prices import PriceTable
from openai_gateway.wire.call import CallRecord

NO_ROLLOUT: Final = "-"
UNKNOWN: Final = "unknown"
KEYS: Final[dict[str, Callable[[CallRecord], str]]] = {
    "model": lambda record: record.model or UNKNOWN,
    "server": lambda record: record.server,
    "api": lambda record: record.api,
    "client": lambda record: record.client or NO_ROLLOUT,
    "rollout": lambda record: record.rollout_id or NO_ROLLOUT,
    "hour": lambda record: time.strftime("%Y-%m-%dT%H:00Z", time.gmtime(record.time)),
    "status": lambda record: str(record.status) if record.status is not None else record.outcome,
}
_decoder = msgspec.json.Decoder(CallRecord)
# The last two are gmtime's, of a time beyond all years.
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, OSError)
_Number = TypeVar("_Number", int, float)


@dataclass(slots=True)
class Sum:
    """What some calls add up to.

    `input_tokens` to `reasoning_tokens` sum the calls that reported them; None means that no call did. `cost_usd` sums
    the calls whose cost is known. `unknown_usage` counts the calls that did not report their tokens, `unknown_cost`
    the calls whose cost is unknown: those, and the ones that have no price. `replayed` counts the calls that a kept
    answer was there for, which cost nothing and whose tokens aren't in these sums; `saved_usd` is what they would have.
    """

    calls: int = 0
    completed: int = 0
    failed: int = 0
    client_gone: int = 0
    retries: int = 0
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    unknown_usage: int = 0
    cost_usd: float | None = None
    unknown_cost: int = 0
    duration_s: float = 0.0
    replayed: int = 0
    saved_usd: float | None = None

    def add(self, record: CallRecord) -> None:
        """Add a call."""
        self.calls += 1
        self.completed += record.outcome == "completed" and (record.status or 0) < 400
        self.client_gone += record.outcome == "client_gone"
        self.failed = self.calls - self.completed - self.client_gone
        self.retries += len(record.retries)
        self.duration_s += record.duration_s
        if record.is_replayed:
            self.replayed += 1
            self.saved_usd = _plus(self.saved_usd, record.saved_usd)
            return
        usage = record.usage
        if usage is None:
            is_unknown = record.is_metered or _was_left(record)
            self.unknown_usage += is_unknown
            self.unknown_cost += is_unknown
            return
        self.input_tokens = _plus(self.input_tokens, usage.input_tokens)
        self.cached_tokens = _plus(self.cached_tokens, usage.cached_tokens)
        self.output_tokens = _plus(self.output_tokens, usage.output_tokens)
        self.reasoning_tokens = _plus(self.reasoning_tokens, usage.reasoning_tokens)
        self.cost_usd = _plus(self.cost_usd, record.cost_usd)
        self.unknown_cost += record.cost_usd is None


@dataclass
class Summary:
    """Sums by key, and over everything; `torn_lines` counts lines that are no records."""

    by_key: dict[str, Sum] = field(default_factory=dict)
    total: Sum = field(default_factory=Sum)
    torn_lines: int = 0


def sum_up(lines: Iterable[bytes], by: str, prices: PriceTable | None = None) -> Summary:
    """Return the sums of a usage log's lines by one of KEYS; with `prices`, by these instead of the log's costs."""
    summary = Summary()
    find_key = KEYS[by]
    for line in lines:
        if not line.strip():
            continue
        try:
            record = _decoder.decode(line)
            if prices is not None:
                cost_usd = prices.cost_usd(record.model, record.usage, record.service_tier)
                name = "saved_usd" if record.is_replayed else "cost_usd"
                record = msgspec.structs.replace(record, **{name: cost_usd})
            key = find_key(record)
        except _BROKEN:
            summary.torn_lines += 1
            continue
        summary.by_key.setdefault(key, Sum()).add(record)
        summary.total.add(record)
    return summary


def _was_left(record: CallRecord) -> bool:
    """Tell whether the client left while the upstream was at work, which may be charged for all the same."""
    is_at_work = record.method == "POST" and record.attempts > 0 and (record.status or 0) < 400
    return record.outcome == "client_gone" and is_at_work


def _plus(total: _Number | None, value: _Number | None) -> _Number | None:
    return total if value is None else value if total is None else total + value
