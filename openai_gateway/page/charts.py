"""Makes the lines of the status page's charts out of a snapshot's series.

Lines are lists of figures, one for each point in time; status.js draws them. See also: layout (which charts there
are), accounting.spans (the series).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from openai_gateway.accounting.spans import STEP_S
from openai_gateway.page.figures import to_clock

_MINUTE_STEPS: Final = 60 // STEP_S
_RATES: Final = ("calls", "errors")
_SUMS: Final = ("input_tokens", "output_tokens", "cost_usd")


def make_charts(snapshot: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the lines over the last four minutes; None before the start, and for the latency of no call.

    Calls and errors are per second; tokens and cost are those of the minute up to then, so the first one is left out.
    """
    series: Mapping[str, list[Any]] = snapshot["series"]
    sums = {name: _sum_up_minutes(series[name]) for name in _SUMS}
    shown = _make_lines(snapshot, {**series, **sums}, STEP_S)
    return {name: values[_MINUTE_STEPS:] for name, values in shown.items()}


def make_hour_charts(snapshot: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the same lines over the last hour, by the minute; the present minute is left out, as it isn't over."""
    series: Mapping[str, list[Any]] = snapshot["hour"]
    return _make_lines(snapshot, {name: values[:-1] for name, values in series.items()}, 60)


def _make_lines(snapshot: Mapping[str, Any], series: Mapping[str, list[Any]], step_s: int) -> dict[str, list[Any]]:
    times = series["t"]
    caps = [server["cap"] for server in snapshot["servers"]]
    lines: dict[str, list[Any]] = {
        **series,
        **{name: [value / step_s for value in series[name]] for name in _RATES},
        "cap": [None if None in caps else sum(caps)] * len(times),
    }
    if all(server["cost_usd"] is None for server in snapshot["servers"]):
        lines["cost_usd"] = [None] * len(times)
    begun = [t + step_s > snapshot["started"] for t in times]
    shown = {
        name: [_round(value) if is_begun else None for value, is_begun in zip(values, begun, strict=True)]
        for name, values in lines.items()
    }
    return {**shown, "t": [to_clock(t) for t in times]}


def _sum_up_minutes(values: Sequence[float]) -> list[float]:
    return [sum(values[max(0, at + 1 - _MINUTE_STEPS) : at + 1]) for at in range(len(values))]


def _round(value: float | None) -> float | None:
    return round(value, 6) if isinstance(value, float) else value
