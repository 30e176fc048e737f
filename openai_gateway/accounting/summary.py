"""Sums up usage logs by model, rollout, hour or status, one line at a time.

How a sum is shown is the command `openai-gateway usage`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from openai_gateway.wire.call import CallRecord

NO_ROLLOUT: Final = "-"
UNKNOWN: Final = "unknown"
KEYS: Final[dict[str, Callable[[CallRecord], str]]] = {
    "model": lambda record: record.model or UNKNOWN,
    "server": lambda record: record.server,
    "api": lambda record: record.api,
    "rollout": lambda record: record.rollout_id or NO_ROLLOUT,
    "hour": lambda record: time.strftime("%Y-%m-%dT%H:00Z", time.gmtime(record.time)),
    "status": lambda record: str(record.status) if record.status is not None else record.outcome,
}
_decoder = msgspec.json.Decoder(CallRecord)


@dataclass(slots=True)
class Sum:
    """What some calls add up to. `unknown_usage` calls were answered but did not report their tokens, `unknown_cost`
    ones did but have no price: tokens and cost are those of the others.
    """

    calls: int = 0
    completed: int = 0
    failed: int = 0
    client_gone: int = 0
    retries: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    unknown_usage: int = 0
    cost_usd: float = 0.0
    unknown_cost: int = 0
    duration_s: float = 0.0

    def add(self, record: CallRecord) -> None:
        """Add a call."""
        self.calls += 1
        self.completed += record.outcome == "completed" and (record.status or 0) < 400
        self.client_gone += record.outcome == "client_gone"
        self.failed = self.calls - self.completed - self.client_gone
        self.retries += len(record.retries)
        self.duration_s += record.duration_s
        usage = record.usage
        if usage is None:
            self.unknown_usage += record.is_metered
            return
        self.input_tokens += usage.input_tokens
        self.cached_tokens += usage.cached_tokens or 0
        self.output_tokens += usage.output_tokens
        self.reasoning_tokens += usage.reasoning_tokens or 0
        self.cost_usd += record.cost_usd or 0.0
        self.unknown_cost += record.cost_usd is None


@dataclass
class Summary:
    """Sums by key, and over everything; `torn_lines` counts lines that are no records."""

    by_key: dict[str, Sum] = field(default_factory=dict)
    total: Sum = field(default_factory=Sum)
    torn_lines: int = 0


def sum_up(lines: Iterable[bytes], by: str) -> Summary:
    """Return the sums of a usage log's lines by one of KEYS."""
    summary = Summary()
    to_key = KEYS[by]
    for line in lines:
        if not line.strip():
            continue
        try:
            record = _decoder.decode(line)
        except msgspec.MsgspecError:
            summary.torn_lines += 1
            continue
        summary.by_key.setdefault(to_key(record), Sum()).add(record)
        summary.total.add(record)
    return summary
