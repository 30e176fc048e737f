"""The status line: what matters most at every width, an ETA only where one is known, and why calls wait."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from openai_gateway.cli.collection_summary import describe_stop, describe_sums, sum_up_run
from openai_gateway.cli.progress_line import describe_run, describe_wait, list_status
from openai_gateway.collect.plan import Survey
from openai_gateway.collect.run_progress import ALL_FAIL, RunProgress
from openai_gateway.collect.sums import Sums
from openai_gateway.collect.wait_reasons import FoundLimit, WaitReasons
from openai_gateway.wire.usage import Report, Usage


def _progress(over: int = 600, to_do: int = 10_000, in_flight: int = 64, **more: Any) -> RunProgress:
    """Return how a run of some minutes stands that made ten calls a second over the last one."""
    now = monotonic()
    progress = RunProgress(Sums(), to_do, **more)
    for sums in (progress.sums, progress.run_sums):
        for _ in range(over):
            sums.add(Report(Usage(100, 500), "stop"), 0.002, 3.0)
    progress.answered = over
    progress.started = now - 300
    progress.samples.append((now - 60, 0, 0))
    progress.begun = dict.fromkeys(range(in_flight), now - 2)
    return progress


def _survey(progress: RunProgress) -> Survey:
    return Survey(rows=progress.to_do, calls=progress.to_do, to_do=progress.to_do)


@pytest.mark.parametrize("width", [20, 39, 60, 79, 100, 119, 200])
def test_line_is_no_wider_than_the_terminal_and_keeps_what_matters_most(width: int) -> None:
    progress = _progress(waits=WaitReasons({"429": 60}), errors=Counter({"invalid_request": 3, "timeout": 12}))
    progress.failed = 15
    line = describe_run(progress, _survey(progress), width)
    assert len(line) <= width
    assert "600/10,000 6 %" in line
    if width >= 60:
        assert "60 waiting: rate limit" in line
        assert "ETA" in line
    if width >= 200:
        for said in (
            "calls/s",
            "of ~$",
            "64 in flight",
            "tokens/s",
            "15 failed",
            "timeout 12, invalid_request 3",
            "[#",
        ):
            assert said in line


@pytest.mark.parametrize(
    ("width", "begin"),
    [(160, "[#.......................]  600/10,000 6 %"), (79, "[..........]  600/10,000 6 %"), (30, "600/10,000 6 %")],
)
def test_bar_is_of_one_length_or_left_out(width: int, begin: str) -> None:
    progress = _progress()
    assert describe_run(progress, _survey(progress), width).startswith(begin)


def test_eta_is_of_the_last_minute_and_there_is_none_once_all_calls_have_begun() -> None:
    progress = _progress()
    assert progress.estimate_rest_s() == pytest.approx(940, rel=0.02)
    assert _progress(away_s=30.0).estimate_rest_s() is None
    last = _progress(over=29, to_do=30, in_flight=1)
    last.begun = {1: monotonic() - 95}
    assert last.estimate_rest_s() is None
    assert "longest 1:35" in describe_run(last, _survey(last), 79)
    slow = _progress(over=0)
    slow.samples.append((monotonic() - 30, 0, 0))
    assert slow.estimate_rest_s() is None


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (79, r"600/10,000 6 %  ETA 1\d:\d\d  \$1.20 of ~\$20.00  rate limit \(3,000/min, 99 % used\)"),
        (119, r".* 10.0 calls/s  ETA 1\d:\d\d  \$1.20 of .* waiting for the rate limit \(3,000/min, 99 % used\)"),
        (200, r".* 64 in flight  waiting for the rate limit \(3,000 requests a minute, 99 % used\)"),
    ],
    ids=["80 columns", "120 columns", "200 columns"],
)
def test_rate_limit_is_told_at_usual_widths(width: int, expected: str) -> None:
    progress = _progress(waits=WaitReasons({"queued": 60}, "rate", {"requests": FoundLimit(3000.0, 0.991)}))
    assert re.fullmatch(expected, describe_run(progress, _survey(progress), width))


def test_rate_in_the_first_minute_is_of_all_that_went_before() -> None:
    progress = RunProgress(Sums(), 240)
    progress.started = monotonic() - 2
    progress.sample()
    progress.answered = 24
    assert progress.rates()[0] == pytest.approx(12, rel=0.2)


def test_slow_rates_are_told_a_minute() -> None:
    progress = _progress(over=6)
    assert "6.0 calls/min" in [text for _, text in list_status(progress, _survey(progress))]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, None),
        ({"waits": WaitReasons({"429": 3})}, "3 waiting: rate limit"),
        ({"waits": WaitReasons({"paused": 2, "429": 1, "queued": 3})}, "6 waiting: queue, rate limit"),
        ({"waits": WaitReasons({"429": 1})}, "1 waiting: rate limit"),
        ({"waits": WaitReasons({"500": 1, "upstream_timeout": 2, "504": 1})}, "4 waiting: status 500, time-outs"),
        ({"waits": WaitReasons({"429": 60, "queued": 60})}, "64 waiting: queue, rate limit"),
        ({"waits": WaitReasons({"429": 3}), "in_flight": 0}, None),
        (
            {"waits": WaitReasons({"queued": 60}, "rate", {"requests": FoundLimit(3000.0, 0.991)})},
            "waiting for the rate limit (3,000 requests a minute, 99 % used)",
        ),
        (
            {"waits": WaitReasons({"queued": 60}, "tokens", {"tokens": FoundLimit(400_000.0)})},
            "waiting for the rate limit (400,000 tokens a minute)",
        ),
        ({"waits": WaitReasons({"queued": 6}, "rate")}, "waiting for the rate limit"),
        (
            {"waits": WaitReasons({"queued": 6}, "window", most_in_flight=40.0)},
            "waiting for others to end (limit: 40 at a time)",
        ),
        ({"waits": WaitReasons({"queued": 6}, "slot", {"requests": FoundLimit(3000.0)})}, "6 waiting: queue"),
        ({"waits": WaitReasons({"queued": 6}, "rate"), "away_s": 185.0}, "upstream away for 3:05"),
        ({"away_s": 5.0, "in_flight": 0}, None),
        ({"away_s": 5.0, "away_reason": "upstream_unreachable"}, "upstream away for 5 s: no connection"),
        ({"away_s": 5.0, "away_reason": "upstream_unavailable"}, "upstream away for 5 s: overloaded or down"),
        ({"away_s": 5.0, "away_reason": "rate_limited"}, "upstream away for 5 s: rate limit"),
        ({"holds_back": True}, "few at a time until a call's cost is known"),
    ],
)
def test_why_calls_wait_is_told(more: dict[str, Any], expected: str | None) -> None:
    assert describe_wait(_progress(**more)) == expected


def test_summary_keeps_this_run_and_the_whole_apart() -> None:
    progress = _progress(over=10, to_do=10)
    progress.sums.add(Report(Usage(7, 3), "length"), 1.0, 9.0)
    progress.run_sums.add_attempts(13, ["429", "429", "500"])
    progress.run_sums.perhaps_billed_usd = 0.25
    found = sum_up_run(Survey(rows=11, calls=11, done=1, to_do=10), progress)
    lines = describe_sums(found, Path("o_failures.jsonl")).splitlines()
    assert lines[0].split(maxsplit=1)[1] == "11 of 11 done"
    assert "10 answers, 0 failures in" in lines[1]
    assert "13 attempts, of which failed: 429 2, 500 1" in lines[1]
    whole = next(number for number, line in enumerate(lines) if line.startswith("in all"))
    assert any("about $0.2500 perhaps billed" in line for line in lines[:whole])
    assert any("1 answer (9 %) reached the bound" in line for line in lines[whole:])
    assert not any("reached the bound" in line for line in lines[:whole])


def test_stop_tells_how_many_calls_had_failed_then() -> None:
    class Stopped:
        progress = _progress(stopping=ALL_FAIL)
        failed_in_a_row = 100
        failure = None
        error = None

    assert describe_stop(Stopped(), None).startswith("Stopped: the last 100 calls all failed")  # type: ignore[arg-type]
