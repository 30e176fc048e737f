"""The lines of the status page's charts, from a snapshot's series.

How they are drawn is the script's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from openai_gateway.blueprints.page.figures import to_clock

_MINUTE_S: Final = 60
_RATES: Final = ("calls", "errors")
_STATES: Final = ("in_flight", "queued")
_SUMS: Final = ("input_tokens", "output_tokens", "cost_usd")


def to_charts(snapshot: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the lines over the last four minutes; None before the start, and for the latency of no call.

    Calls and errors are per second; tokens and cost are those of the minute up to then, so the first one is left out.
    """
    series: Mapping[str, list[Any]] = snapshot["series"]
    times = series["t"]
    step_s = times[1] - times[0]
    # The last span has just begun.
    last_s = min(step_s, max(1.0, snapshot["time"] - times[-1]))
    begun = [t + step_s > snapshot["started"] for t in times]
    caps = [server["cap"] for server in snapshot["servers"]]
    is_priced = any(server["cost_usd"] is not None for server in snapshot["servers"])
    lines: dict[str, list[Any]] = {
        **series,
        **{name: [*(value / step_s for value in series[name][:-1]), series[name][-1] / last_s] for name in _RATES},
        **{name: [*series[name][:-1], max(series[name][-1], _sum(snapshot, name))] for name in _STATES},
        **{name: _to_minute_sums(series[name], step_s, last_s / step_s) for name in _SUMS},
        "cap": [None if None in caps else sum(caps)] * len(times),
    }
    skipped = _MINUTE_S // step_s
    if not is_priced:
        lines["cost_usd"] = [None] * len(times)
    shown = {
        name: [_round(value) if is_begun else None for value, is_begun in zip(values, begun, strict=True)][skipped:]
        for name, values in lines.items()
    }
    return {**shown, "t": [to_clock(t) for t in times[skipped:]]}


def _round(value: float | None) -> float | None:
    return round(value, 6) if isinstance(value, float) else value


def _sum(snapshot: Mapping[str, Any], name: str) -> int:
    """Return how it is now; the seconds of the other workers come half a second late."""
    return sum(server[name] for server in snapshot["servers"])


def _to_minute_sums(values: Sequence[float], step_s: int, last_share: float) -> list[float]:
    """Return the sums over a minute up to each span; the last span is there only to a share."""
    steps = _MINUTE_S // step_s
    sums = [sum(values[max(0, at + 1 - steps) : at + 1]) for at in range(len(values))]
    sums[-1] += values[-steps - 1] * (1 - last_share)
    return sums
