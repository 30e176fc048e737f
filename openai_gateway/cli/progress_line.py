"""How a collection is shown while it runs: a status line, redrawn in a terminal and plain elsewhere.

See also: collect.run_progress (what is shown), collection_summary (what it all came to).
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from typing import Final

import click

from openai_gateway.cli.collection_summary import to_cost, to_duration
from openai_gateway.collect.plan import Survey
from openai_gateway.collect.report import to_count
from openai_gateway.collect.run_progress import INTERRUPTED, RunProgress
from openai_gateway.collect.wait_reasons import QUEUED, WaitReasons
from openai_gateway.remedies import RATE_LIMITED, UPSTREAM_UNAVAILABLE, UPSTREAM_UNREACHABLE

TERMINAL_TICK_S: Final = 0.25
PLAIN_TICK_S: Final = 10.0
# The bar is of one width in a terminal, so that the line stands still.
_BAR_WIDTH: Final = 24
_NARROW_BAR_WIDTH: Final = 10
_WIDE: Final = 110
# From then on it is worth telling how long the oldest call has been under way.
_LONG_S: Final = 10.0
_BAR_RANK: Final = 6
# Left out, or said briefly, where there is little room.
_WAITING_FOR_THE: Final = "waiting for the "
_BRIEFLY: Final = {" requests a minute": "/min", " tokens a minute": " tokens/min"}
_SPACE: Final = "  "
# What the gateway's queue waits for, as it says it.
_QUEUES: Final = {"rate": "requests", "tokens": "tokens"}
_REASONS: Final = {
    "429": "rate limit",
    "paused": "rate limit",
    QUEUED: "queue",
    "upstream_timeout": "time-outs",
    "504": "time-outs",
    "upstream_unreachable": "no connection",
    "upstream_protocol_error": "broken answers",
}

_AWAY: Final = {
    UPSTREAM_UNREACHABLE: ": no connection",
    UPSTREAM_UNAVAILABLE: ": overloaded or down",
    RATE_LIMITED: ": rate limit",
}


class ProgressView:
    """Shows a run's progress on stderr."""

    def __init__(self, progress: RunProgress, survey: Survey) -> None:
        self._progress = progress
        self._survey = survey
        self._told_of_stop = False
        self.is_terminal = sys.stderr.isatty()
        self.tick_s = TERMINAL_TICK_S if self.is_terminal else PLAIN_TICK_S

    def show(self) -> None:
        """Show how the run stands now; a terminal that is gone ends no run."""
        with contextlib.suppress(OSError):
            self._show()

    def _show(self) -> None:
        self._tell_of_stop()
        if not self.is_terminal:
            click.echo("  ".join(text for _, text in list_status(self._progress, self._survey)), err=True)
            return
        line = describe_run(self._progress, self._survey, shutil.get_terminal_size().columns - 1)
        click.echo(f"\r{line}\x1b[K", err=True, nl=False)

    def end(self) -> None:
        """Show the last state and leave its line."""
        self.show()
        if self.is_terminal:
            with contextlib.suppress(OSError):
                click.echo("", err=True)

    def _tell_of_stop(self) -> None:
        if self._progress.stopping == INTERRUPTED and not self._told_of_stop:
            self._told_of_stop = True
            told = (
                f"Stopping: no new calls; {self._progress.in_flight:,} in flight get their time. Ctrl-C again cancels."
            )
            click.echo(f"\r\x1b[K{told}" if self.is_terminal else told, err=True)


def describe_run(progress: RunProgress, survey: Survey, width: int) -> str:
    """Return the line for a terminal: a bar, and of the status as much as fits, what matters least left out."""
    bar_width = _BAR_WIDTH if width >= _WIDE else _NARROW_BAR_WIDTH
    filled = bar_width * (survey.done + progress.answered) // max(survey.calls, 1)
    bar = f"[{'#' * filled}{'.' * (bar_width - filled)}]"
    (rank, count), *others = list_status(progress, survey)
    parts = [(_BAR_RANK, bar), (rank, count), *others]
    if _measure_parts(parts) > width:
        for long, brief in _BRIEFLY.items():
            parts = [(rank, text.replace(long, brief)) for rank, text in parts]
    if width < _WIDE:
        parts = [(rank, text.removeprefix(_WAITING_FOR_THE)) for rank, text in parts]
    shown: list[tuple[int, str]] = []
    for part in sorted(parts):
        if not shown or _measure_parts([*shown, part]) <= width:
            shown.append(part)
    return _SPACE.join(part[1] for part in parts if part in shown)[:width]


def list_status(progress: RunProgress, survey: Survey) -> list[tuple[int, str]]:
    """Return what tells how a run stands, in order, each part with its rank: the higher, the sooner left out.

    The cost is that of the whole output.
    """
    done = survey.done + progress.answered
    calls_per_s, tokens_per_s = progress.rates()
    rate = f"{calls_per_s:,.1f} calls/s" if calls_per_s >= 1 or not calls_per_s else f"{60 * calls_per_s:.1f} calls/min"
    parts = [(0, f"{done:,}/{survey.calls:,} {100 * done // max(survey.calls, 1):.0f} %"), (5, rate)]
    eta_s = progress.estimate_rest_s()
    if eta_s is not None:
        parts.append((1, f"ETA {to_duration(eta_s)}"))
    parts.append((4, _describe_cost(progress)))
    parts.append((8, f"{to_count(tokens_per_s)} tokens/s"))
    parts.append((7, f"{progress.in_flight:,} in flight"))
    if (why := describe_wait(progress)) is not None:
        parts.append((2, why))
    if progress.errors:
        parts.append((3, f"{progress.failed:,} failed"))
        parts.append((9, ", ".join(f"{name} {count:,}" for name, count in progress.errors.most_common())))
    return parts


def describe_wait(progress: RunProgress) -> str | None:
    """Return why calls wait or take long; None if nothing is worth telling."""
    if progress.away_s is not None and progress.in_flight:
        return f"upstream away for {to_duration(progress.away_s)}{_AWAY.get(progress.away_reason or '', '')}"
    if progress.in_flight and (limit := _describe_limit(progress.waits)) is not None:
        return f"waiting for {limit}"
    reasons: dict[str, int] = {}
    for reason, count in progress.waits.counts.items():
        name = _REASONS.get(reason, f"status {reason}" if reason.isdigit() else reason)
        reasons[name] = reasons.get(name, 0) + count
    if reasons and progress.in_flight:
        # What was read a moment ago may hold calls that are over, and one that queues after a refusal twice.
        waiting = min(sum(reasons.values()), progress.in_flight)
        return f"{waiting:,} waiting: {', '.join(sorted(reasons))}"
    if progress.holds_back:
        return "few at a time until a call's cost is known"
    oldest_s = progress.oldest_s()
    return f"longest {to_duration(oldest_s)}" if oldest_s >= _LONG_S else None


def _describe_limit(waits: WaitReasons) -> str | None:
    """Return which limit of the upstream's the queue waits for, None if it waits for something else, or nothing."""
    if waits.reason == "window" and waits.most_in_flight is not None:
        return f"others to end (limit: {waits.most_in_flight:,.0f} at a time)"
    if waits.reason == "pause":
        return "the rate limit (the upstream asks for a pause)"
    kind = _QUEUES.get(waits.reason)
    found = waits.limits.get(kind or "")
    if kind is None or found is None:
        return None if kind is None else "the rate limit"
    used = "" if found.used_share is None else f", {100 * found.used_share:.0f} % used"
    return f"the rate limit ({found.per_minute:,.0f} {kind} a minute{used})"


def _describe_cost(progress: RunProgress) -> str:
    if progress.sums.known_cost_usd is None:
        return "cost unknown"
    spent_usd = progress.sums.spent_usd
    if not progress.answered or not progress.left:
        return to_cost(spent_usd)
    expected_usd = spent_usd + progress.left * progress.run_sums.spent_usd / progress.answered
    return f"{to_cost(spent_usd)} of ~{to_cost(expected_usd)}" if expected_usd else to_cost(spent_usd)


def _measure_parts(parts: list[tuple[int, str]]) -> int:
    return sum(len(text) for _, text in parts) + len(_SPACE) * (len(parts) - 1)
