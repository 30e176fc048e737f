"""What a collection comes to, in words: before it as an estimate, after it as sums, and why it stopped.

See also: collect.sums and collect.plan (what is summed up).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from openai_gateway.collect.estimate import ASSUMED_OUTPUT_TOKENS, Estimator
from openai_gateway.collect.merging import MergeResult
from openai_gateway.collect.past import Past
from openai_gateway.collect.plan import MOST_RETRIES, Survey
from openai_gateway.collect.rows import Row
from openai_gateway.collect.run import Run
from openai_gateway.collect.run_progress import ALL_FAIL, BROKEN, COST, GENERAL_FAILURE, INTERRUPTED, RunProgress
from openai_gateway.wire.input_tokens import BYTES_PER_TOKEN, TOKENS_PER_IMAGE

_MOST_DIGITS: Final = 12


def describe_estimate(survey: Survey, estimator: Estimator, limit_usd: float | None, concurrency: int) -> str:
    """Return what a survey comes to, for a person who has to pay for it."""
    lines = [
        f"{to_plural(survey.rows, 'row')}, {to_plural(survey.calls, 'call')}: {survey.to_do:,} to do, "
        f"{survey.done:,} done"
    ]
    if survey.failed:
        lines[0] += f", {survey.failed:,} of those to do failed before"
    if survey.given_up:
        lines[0] += f", {survey.given_up:,} given up after {1 + MOST_RETRIES} failures"
    matches = survey.matches
    if matches.moved or matches.new:
        lines.append(
            f"the input was edited since: {to_plural(matches.moved, 'row')} moved and found again, {matches.new:,} new "
            f"or changed, {to_plural(matches.orphans, 'answered row')} no longer there (their answers stay)"
        )
    lines += [f"{to_plural(count, 'row')}: {note}" for note, count in survey.notes.items()]
    if not survey.to_do:
        return "\n".join(lines)
    lines.append(
        f"about {survey.input_tokens:,} input tokens ({BYTES_PER_TOKEN} bytes each{_describe_picture(survey, ', ')}), "
        f"{'' if survey.unbounded else 'at most '}{survey.output_tokens:,} output tokens"
    )
    if survey.unbounded:
        each = f"{ASSUMED_OUTPUT_TOKENS:,} assumed for each" if not estimator.answers else "as the answers so far"
        calls = "1 call sets" if survey.unbounded == 1 else f"{survey.unbounded:,} calls set"
        lines.append(f"{calls} no max_output_tokens: {each}, but it may be more")
    most = "about" if survey.unbounded else "at most about"
    cost = "unknown, for want of a price" if survey.cost_usd is None else f"{most} {to_cost(survey.cost_usd)}"
    lines.append(f"cost {cost}{f', model {estimator.model}' if estimator.model else ''}")
    if limit_usd is not None:
        lines[-1] += f"; {_describe_bound(survey, limit_usd, concurrency)}"
    return "\n".join(lines)


def describe_too_dear(row: Row, estimator: Estimator) -> str:
    """Return why not even a row's call can be made, and what to do."""
    is_bounded = estimator.find_bound(row) is not None
    return (
        f"one call may cost up to {to_cost(estimator.cost_usd(row))} "
        f"({estimator.output_tokens(row):,} output tokens{'' if is_bounded else ' assumed'}); "
        f"raise --max-cost above that, or {'lower' if is_bounded else 'set'} max_output_tokens"
    )


def sum_up_run(survey: Survey, progress: RunProgress) -> dict[str, Any]:
    """Return the sums over the whole output and those of this run, as they go into the metrics file."""
    return {
        "calls": {
            "wanted": survey.calls,
            "done": survey.done + progress.answered,
            "given_up": survey.given_up,
            "rows": survey.rows,
        },
        **progress.sums.to_json(),
        "this_run": {
            **progress.run_sums.to_json(),
            "failures": progress.failed,
            "took_s": round(progress.took_s, 3),
            "attempts": progress.run_sums.attempts,
            "retries": dict(progress.run_sums.retries),
            "failed": {
                name: {
                    "calls": count,
                    "first_message": progress.examples[name].message,
                    "what_to_do": progress.examples[name].what_to_do,
                }
                for name, count in progress.errors.most_common()
            },
            "stopped_by": progress.stopping,
        },
    }


def sum_up_merged(merged: MergeResult, past: Past) -> dict[str, Any]:
    """Return the sums over an output that was put together, as they go into its metrics file."""
    calls = {"wanted": merged.wanted, "done": merged.answers, "missing": merged.missing, "doubled": merged.doubled}
    return {"calls": calls, **past.sums.to_json(), "failures": dict(past.failures)}


def describe_sums(found: Mapping[str, Any], failures: Path) -> str:
    """Return the sums as lines of text, this run and the whole output apart; `found` is as `sum_up_run` gives it."""
    calls, run = found["calls"], found["this_run"]
    rows = [("calls", f"{calls['done']:,} of {calls['wanted']:,} done")]
    if calls["given_up"]:
        rows[0] = ("calls", f"{rows[0][1]}; {calls['given_up']:,} given up after {1 + MOST_RETRIES} failures")
        cure = f"mend their rows, or take their lines out of {failures}; --resume tries them again"
        rows.append(("given up", cure))
    ended = f"{to_plural(run['answers'], 'answer')}, {to_plural(run['failures'], 'failure')}"
    rows.append(("this run", f"{ended} in {to_duration(run['took_s'])}{_describe_attempts(run)}"))
    rows += _describe_totals(run)
    if found["answers"] > run["answers"]:
        rows.append(("in all", to_plural(found["answers"], "answer")))
        rows += _describe_totals(found)
    for name, each in run["failed"].items():
        message = f" (the first: {each['first_message']})" if each["first_message"] else ""
        rows.append(("failed", f"{name} {each['calls']:,}{message}: {each['what_to_do']}"))
    return "\n".join(f"{name:9} {text}" for name, text in rows)


def describe_stop(run: Run, limit_usd: float | None) -> str:
    """Return why not all calls were made and how to go on; "" if they were."""
    stopping = run.progress.stopping if run.error is None else BROKEN
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


def to_plural(count: int, one: str, many: str | None = None) -> str:
    """Return `1 call` or `2 calls`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _describe_bound(survey: Survey, limit_usd: float, concurrency: int) -> str:
    """Return how far the cost may go."""
    if survey.unbounded:
        return (
            f"stops before {to_cost(limit_usd)}; calls in flight may exceed it by answers longer than 95 % "
            "of those before: max_output_tokens bounds that"
        )
    most_usd = limit_usd + min(concurrency, survey.to_do) * survey.excess_usd
    provided = f"each byte is a token{_describe_picture(survey, ' and ')}"
    return f"stops before {to_cost(limit_usd)}, at most {to_cost(most_usd)} if {provided}"


def _describe_picture(survey: Survey, comma: str) -> str:
    """Return what a picture was counted as, which by model and size may be too little; "" if there is none."""
    return f"{comma}each picture {TOKENS_PER_IMAGE:,}" if survey.has_pictures else ""


def _describe_attempts(run: Mapping[str, Any]) -> str:
    if not run["retries"]:
        return ""
    refused = ", ".join(f"{name} {count:,}" for name, count in run["retries"].items())
    return f"; {to_plural(run['attempts'], 'attempt')}, of which failed: {refused}"


def _describe_totals(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not found["answers"] and not found["perhaps_billed_usd"]:
        return []
    tokens = found["tokens"]
    rows = [
        ("  tokens", f"{tokens['input']:,} in ({tokens['cached']:,} cached), "
                     f"{tokens['output']:,} out ({tokens['reasoning']:,} reasoning)"),
        ("  cost", _describe_cost(found)),
    ]  # fmt: skip
    for name, what in (("latency_s", "  latency"), ("duration_s", "  in all")):
        spread = found[name]
        if spread is not None and (name == "latency_s" or spread != found["latency_s"]):
            note = "" if name == "latency_s" else ", with all waiting"
            rows.append((what, ", ".join(f"{part} {value:,.2f} s" for part, value in spread.items()) + note))
    if found["finish_reasons"]:
        rows.append(("  finish", ", ".join(f"{name} {count:,}" for name, count in found["finish_reasons"].items())))
    if found["cut_off"]:
        share = 100 * found["cut_off"] / found["answers"]
        rows.append(
            ("  cut off", f"{to_plural(found['cut_off'], 'answer')} ({share:.0f} %) reached the bound on their length: "
                          "raise max_output_tokens, then --resume --redo incomplete")
        )  # fmt: skip
    if tokens["answers_without_usage"]:
        rows.append(("  unknown", f"{to_plural(tokens['answers_without_usage'], 'answer')} did not report tokens"))
    if found["answers_without_price"]:
        rows.append(("  unknown", f"{to_plural(found['answers_without_price'], 'answer')} of no known price"))
    return rows


def _describe_cost(found: Mapping[str, Any]) -> str:
    parts = [to_cost(found["cost_usd"])]
    if found["estimated_usd"]:
        parts.append(f"about {to_cost(found['estimated_usd'])} estimated, of answers of unknown cost")
    if found["perhaps_billed_usd"]:
        parts.append(
            f"about {to_cost(found['perhaps_billed_usd'])} perhaps billed, of calls that timed out, broke off or were "
            "cancelled"
        )
    if found["replaced_usd"]:
        parts.append(f"{to_cost(found['replaced_usd'])} of answers that --redo replaced")
    return "; ".join(parts)
