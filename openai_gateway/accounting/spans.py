"""Sums, peaks and percentiles of the calls that ended within a span of time, for the page's tables and charts.

Works on the seconds that `totals.Second` counts. See also: aggregate (which counts them), page.charts (which draws
them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from openai_gateway.accounting.tally import find_percentile, to_milliseconds
from openai_gateway.accounting.totals import KEPT_SECONDS, Second, add_counts

STEP_S: Final = 5
_PERCENTS: Final = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}


def sum_up_span(seconds: Iterable[Second]) -> dict[str, Any]:
    """Return the sums over some seconds, the peaks of what was in flight and queued, and latencies; None: no calls."""
    calls = errors = input_tokens = output_tokens = in_flight = queued = 0
    cost_usd = 0.0
    durations: dict[int, int] = {}
    first_bytes: dict[int, int] = {}
    for second in seconds:
        calls += second.calls
        errors += second.errors
        input_tokens += second.input_tokens
        output_tokens += second.output_tokens
        cost_usd += second.cost_usd
        in_flight = max(in_flight, second.in_flight)
        queued = max(queued, second.queued)
        add_counts(durations, second.durations)
        add_counts(first_bytes, second.first_bytes)
    return {
        "calls": calls,
        "errors": errors,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cost_usd": cost_usd,
        "in_flight": in_flight,
        "queued": queued,
        **{name: compute_percentile_ms(durations, percent) for name, percent in _PERCENTS.items()},
        "first_byte_p50_ms": compute_percentile_ms(first_bytes, 50),
        "first_byte_p95_ms": compute_percentile_ms(first_bytes, 95),
    }


def sum_up_spans(seconds: Iterable[Second], now: int, *, length_s: int, step_s: int) -> list[dict[str, Any]]:
    """Return the spans of `step_s` that make up the `length_s` before `now` (both Unix seconds), the oldest first.

    `t` is where a span begins. They begin at multiples of `step_s`, so that the last one may just have begun.
    """
    begin = now - now % step_s - length_s + step_s
    spans: list[list[Second]] = [[] for _ in range(length_s // step_s)]
    for second in seconds:
        if begin <= second.t < begin + length_s:
            spans[(second.t - begin) // step_s].append(second)
    return [{"t": begin + index * step_s, **sum_up_span(span)} for index, span in enumerate(spans)]


def sum_up_hour(seconds: Sequence[Second], now: int) -> dict[str, list[Any]]:
    """Return the last hour in spans of a minute, the present one with them, as one list for each figure."""
    spans = sum_up_spans(seconds, now, length_s=3600, step_s=60)
    return {name: [span[name] for span in spans] for name in spans[0]}


def sum_up_series(seconds: Sequence[Second], now: int) -> dict[str, list[Any]]:
    """Return the last five minutes in spans of STEP_S that are over, as one list for each figure."""
    spans = sum_up_spans(seconds, now - STEP_S, length_s=KEPT_SECONDS, step_s=STEP_S)
    return {name: [span[name] for span in spans] for name in spans[0]}


def compute_percentile_ms(counts: Mapping[int, int], percent: float) -> float | None:
    """Return the latency that `percent` of the calls stay under, None without calls."""
    step = find_percentile(counts.items(), percent)
    return None if step is None else round(to_milliseconds(step), 1)
