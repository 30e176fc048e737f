"""How a collection is shown: a status line, redrawn in a terminal and plain elsewhere, and the sums at the end.

What is shown is `collect.run`'s and `collect.sums`'.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from openai_gateway.collect.estimate import ASSUMED_OUTPUT_TOKENS, Estimator
from openai_gateway.collect.plan import MOST_RETRIES, Survey
from openai_gateway.collect.progress import ALL_FAIL, BROKEN, COST, GENERAL_FAILURE, INTERRUPTED, Progress
from openai_gateway.collect.rows import BYTES_PER_TOKEN, Row
from openai_gateway.collect.run import Run

TERMINAL_TICK_S: Final = 0.25
PLAIN_TICK_S: Final = 10.0
_BAR_WIDTH: Final = 24
_LEAST_FOR_ETA: Final = 5
_MOST_DIGITS: Final = 12


class ProgressView:
    """Shows a run's progress on stderr."""

    def __init__(self, progress: Progress, survey: Survey) -> None:
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
        line = to_status(self._progress, self._survey)
        if not self.is_terminal:
            click.echo(line, err=True)
            return
        share = self._done() / max(self._survey.calls, 1)
        filled = int(share * _BAR_WIDTH)
        bar = f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] "
        width = shutil.get_terminal_size().columns - 1
        click.echo(f"\r{(bar + line)[:width]}\x1b[K", err=True, nl=False)

    def end(self) -> None:
        """Show the last state and leave its line."""
        self.show()
        if self.is_terminal:
            with contextlib.suppress(OSError):
                click.echo("", err=True)

    def _done(self) -> int:
        return self._survey.done + self._progress.answered

    def _tell_of_stop(self) -> None:
        if self._progress.stopping == INTERRUPTED and not self._told_of_stop:
            self._told_of_stop = True
            told = (
                f"Stopping: no new calls; {self._progress.in_flight:,} in flight get their time. Ctrl-C again cancels."
            )
            click.echo(f"\r\x1b[K{told}" if self.is_terminal else told, err=True)


def to_status(progress: Progress, survey: Survey) -> str:
    """Return the line that tells how a run stands; the cost is that of the whole output."""
    done = survey.done + progress.answered
    calls_per_s, tokens_per_s = progress.rates()
    parts = [
        f"{done:,}/{survey.calls:,} {100 * done / max(survey.calls, 1):.0f} %",
        f"{calls_per_s:,.1f} calls/s",
        f"{to_short(tokens_per_s)} tokens/s",
        to_cost(progress.sums.known_cost_usd, "cost unknown"),
    ]
    left = survey.to_do - progress.over
    if progress.over >= _LEAST_FOR_ETA and calls_per_s and left and not progress.stopping:
        expected = ""
        if progress.cost_usd:
            expected = f" ~{to_cost(progress.sums.cost_usd + left * progress.cost_usd / progress.answered)}"
        parts.append(f"ETA {to_duration(left / calls_per_s)}{expected}")
    parts.append(f"{progress.in_flight:,} in flight")
    if progress.errors:
        parts.append("failed: " + ", ".join(f"{name} {count:,}" for name, count in progress.errors.most_common()))
    return "  ".join(parts)


def to_estimate(survey: Survey, model: str | None, limit_usd: float | None) -> str:
    """Return what a survey comes to, for a person who has to pay for it."""
    lines = [f"{survey.rows:,} rows, {survey.calls:,} calls: {survey.to_do:,} to do, {survey.done:,} done"]
    if survey.failed:
        lines[0] += f", {survey.failed:,} of those to do failed before"
    if survey.given_up:
        lines[0] += f", {survey.given_up:,} given up after {1 + MOST_RETRIES} failures"
    if not survey.to_do:
        return lines[0]
    lines.append(
        f"about {survey.input_tokens:,} input tokens ({BYTES_PER_TOKEN} bytes each), "
        f"{'' if survey.unbounded else 'at most '}{survey.output_tokens:,} output tokens"
    )
    if survey.unbounded:
        lines.append(
            f"{survey.unbounded:,} calls set no max_output_tokens: {ASSUMED_OUTPUT_TOKENS:,} assumed for each, "
            "but it may be more"
        )
    most = "about" if survey.unbounded else "at most about"
    cost = "unknown, for want of a price" if survey.cost_usd is None else f"{most} {to_cost(survey.cost_usd)}"
    lines.append(f"cost {cost}{f', model {model}' if model else ''}")
    if limit_usd is not None:
        lines[-1] += f"; stops before {to_cost(limit_usd)}"
    return "\n".join(lines)


def to_too_dear(row: Row, estimator: Estimator) -> str:
    """Return why not even a row's call can be made, and what to do."""
    tokens = f"{estimator.output_tokens(row):,} output tokens"
    bound = "lower" if estimator.is_bounded(row) else "set"
    return (
        f"one call may cost up to {to_cost(estimator.cost_usd(row))} "
        f"({tokens}{'' if estimator.is_bounded(row) else ' assumed'}); "
        f"raise --max-cost above that, or {bound} max_output_tokens"
    )


def to_summary(found: Mapping[str, Any], failures: Path) -> str:
    """Return the sums over an output as lines of text; `found` is what goes into its metrics file."""
    calls, tokens, run = found["calls"], found["tokens"], found["this_run"]
    rows = [
        ("calls", f"{calls['done']:,} of {calls['wanted']:,} done"),
        ("this run", f"{run['answers']:,} answers, {run['failures']:,} failures in {to_duration(run['duration_s'])}"),
        ("tokens", f"{tokens['input']:,} in ({tokens['cached']:,} cached), "
                   f"{tokens['output']:,} out ({tokens['reasoning']:,} reasoning)"),
        ("cost", to_cost(found["cost_usd"])),
    ]  # fmt: skip
    if calls["given_up"]:
        rows[0] = ("calls", f"{rows[0][1]}; {calls['given_up']:,} given up after {1 + MOST_RETRIES} failures")
        cure = f"mend their rows, or take their lines out of {failures}; --resume tries them again"
        rows.insert(1, ("given up", cure))
    latency = found["latency_s"]
    if latency is not None:
        rows.append(("latency", ", ".join(f"{name} {value:,.2f} s" for name, value in latency.items())))
    if found["finish_reasons"]:
        rows.append(("finish", ", ".join(f"{name} {count:,}" for name, count in found["finish_reasons"].items())))
    if tokens["answers_without_usage"]:
        rows.append(("unknown", f"{tokens['answers_without_usage']:,} answers did not report their tokens"))
    if found["answers_without_price"]:
        rows.append(("unknown", f"{found['answers_without_price']:,} answers have no known price"))
    for name, each in run["failed"].items():
        message = f" (the first: {each['first_message']})" if each["first_message"] else ""
        rows.append(("failed", f"{name} {each['calls']:,}{message}: {each['what_to_do']}"))
    return "\n".join(f"{name:9} {text}" for name, text in rows)


def to_reason(run: Run, limit_usd: float | None) -> str:
    """Return why not all calls were made and how to go on; "" if they were."""
    stopping = run.progress.stopping
    if stopping == GENERAL_FAILURE and run.failure is not None:
        failure = run.failure
        said = " ".join(str(part) for part in (failure.status, failure.code, failure.message) if part)
        return (
            f"Stopped, as other calls would fail like this one: {failure.failure_class} ({said}); {failure.what_to_do}."
        )
    return {
        None: "",
        COST: f"Stopped by --max-cost: another call might go beyond {to_cost(limit_usd)}; raise it, then --resume.",
        ALL_FAIL: f"Stopped: the last {run.failed_in_a_row} calls all failed; see above why, then --resume.",
        INTERRUPTED: "Stopped; --resume goes on from here.",
        BROKEN: f"Stopped: {run.error}; mend that, then --resume.",
    }.get(stopping, "")


def to_cost(cost_usd: float | None, unknown: str = "unknown") -> str:
    """Return dollars; more digits for small sums."""
    if cost_usd is None:
        return unknown
    if cost_usd >= 1:
        return f"${cost_usd:,.2f}"
    digits = 4 if not cost_usd else min(max(4, 1 - math.floor(math.log10(cost_usd))), _MOST_DIGITS)
    return f"${cost_usd:.{digits}f}"


def to_duration(seconds: float) -> str:
    """Return `1:02:03`, `2:03` or `3 s`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def to_short(number: float) -> str:
    """Return `950`, `12.3k` or `4.5M`."""
    for bound, unit in ((1e6, "M"), (1e3, "k")):
        if number >= bound:
            return f"{number / bound:.1f}{unit}"
    return f"{number:.0f}"
