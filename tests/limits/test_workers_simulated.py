"""Workers that share a file use a limit as one would: also what each did before it knew of the others counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from openai_gateway.limits.seen import SeenRate
from tests.limits.simulation import Upstream
from tests.limits.workers import simulate_workers

RPM = Upstream(rpm=3000)
BLIND = Upstream(rpm=3000, headers="")


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    ("spec", "workers", "used", "refused"),
    [
        pytest.param(RPM, 4, 0.99, 0.002, id="OpenAI's headers"),
        pytest.param(replace(RPM, foreign=0.4), 4, 0.99, 0.005, id="somebody else uses two fifths"),
        pytest.param(replace(BLIND, hint="wrong"), 4, 0.99, 0.006, id="only wrong hints"),
        pytest.param(replace(BLIND, hint="wrong"), 2, 0.99, 0.006, id="only wrong hints, two workers"),
        pytest.param(replace(BLIND, refusals_charged=True), 4, 0.99, 0.008, id="no hint, all charged"),
        pytest.param(replace(BLIND, names_kind=False), 4, 0.98, 0.02, id="not even a reason"),
        pytest.param(Upstream(in_flight=100, headers=""), 4, 0.97, 0.01, id="calls in flight"),
    ],
)
def test_workers_use_nearly_all_of_a_limit_that_they_learn_together(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: Upstream,
    workers: int,
    used: float,
    refused: float,
    seed: int,
) -> None:
    report, simulation = simulate_workers(monkeypatch, tmp_path / "limits", spec, workers, seed=seed)
    assert report.failed == 0
    assert report.used >= used, report.used
    assert report.refused_share <= refused, report.refused_share
    assert all(worker.queue.slots.on_host is not None for worker in simulation.workers), "a worker shares nothing"


def test_those_who_joined_still_count_when_a_span_ends() -> None:
    seen = SeenRate()
    for call in range(100):
        seen.look(call + 1, 100.0 + call / 25)
    for _ in range(3):
        seen.join(25.0, 104.0)
    assert seen.per_s(100, 104.0) == pytest.approx(100, rel=0.1)
    # A refusal that comes now must not make a guess from one worker's calls alone.
    seen.look(101, 104.02)
    assert seen.per_s(101, 104.02) == pytest.approx(100, rel=0.1)


def test_limit_that_has_doubled_without_a_word_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(BLIND, rpm=1500, changes=((20.0, 2.0),))
    report, simulation = simulate_workers(monkeypatch, tmp_path / "limits", spec, 2, seconds=150.0)
    limiter = max((worker.queue.limiter for worker in simulation.workers), key=lambda each: each.blind.number)
    assert limiter.blind.pace(1150.0) >= 0.95 * 50
    assert report.refused_share <= 0.01
