"""The window of calls in flight: a limit is met with a few refusals, however loops stand still, and tried by one."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from openai_gateway.limits.window import Window
from tests.limits.simulation import Upstream
from tests.limits.workers import simulate_workers


def test_start_grows_while_it_is_full_and_nothing_is_refused() -> None:
    window, now = Window(), 100.0
    passed = {}
    while window.most < math.inf:
        window.look(math.ceil(window.most))
        now += 0.01
        for most in (100, 1000):
            if window.most >= most:
                passed.setdefault(most, now - 100.0)
    assert passed[100] < 1.0
    assert passed[1000] < 2.5


def test_look_that_comes_late_counts_for_two_at_most_and_only_as_long_as_the_window_is_small() -> None:
    windows = [Window(most=50.0) for _ in range(3)]
    for window, looks in zip(windows, (1.0, 1.6, 50.0), strict=True):
        window.look(50, looks)
    assert [window.most for window in windows] == [51.25, 52.0, 52.5]
    wide = Window(most=300.0)
    wide.look(300, 2.0)
    assert wide.most == 305.0


def test_limit_that_was_met_is_tried_by_one_call_ever_more_rarely() -> None:
    window, tried_at = Window(), []
    window.refuse(100.0, 50, 100.0)
    now = 100.0
    while now < 160.0:
        if window.begin_try(50, now := now + 0.01):
            assert window.most == 51
            tried_at.append(round(now - 100.0))
            window.refuse(now, 50, now + 0.02)
    assert tried_at == [5, 15, 35]
    assert window.most == 50


def test_limit_that_rose_is_found_call_by_call() -> None:
    window, now = Window(), 100.0
    window.refuse(100.0, 50, 100.0)
    grown_at = [now for _ in range(3000) if window.begin_try(int(window.most), now := now + 0.01)]
    assert min(later - earlier for earlier, later in itertools.pairwise(grown_at)) >= 0.029
    assert window.most >= 150


def test_limit_that_fell_is_met_sooner_the_longer_it_takes() -> None:
    """At first each refusal costs one call: it may only be that answers are not read yet."""
    window, now = Window(), 100.0
    window.refuse(now, 100, now)
    events = 0
    while window.most > 50:
        now += 0.05
        window.refuse(now, 100, now + 0.01)
        events += 1
    assert events <= 30


def test_one_refusal_out_of_time_costs_one_call() -> None:
    window = Window()
    window.refuse(100.0, 100, 100.0)
    window.refuse(104.0, 100, 104.1)
    assert window.most == 99
    assert window.wait_s(104.12) == pytest.approx(0.03), "what was read late is to be known before others go"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("most", "latency"), [(40, 0.3), (40, 1.0), (100, 0.3), (100, 1.0), (400, 1.0)])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_few_are_refused_though_answers_come_in_clumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, most: int, latency: float, seed: int
) -> None:
    """Each worker stands still for 50 to 300 ms, every second."""
    report, _ = simulate_workers(
        monkeypatch,
        tmp_path / "limits",
        Upstream(in_flight=most, headers=""),
        workers,
        callers=2 * most,
        seed=seed,
        step_s=0.0005,
        stalls_s=(0.05, 0.3),
        latency=latency,
    )
    assert report.failed == 0
    # From 0.944 to 0.989 over 26 seeds, in whatever order calls go: it depends on which calls run as the limit is met.
    assert report.used >= (0.94 if latency == 1.0 else 0.85), report.used
    # A few as the limit is met, and two tries of one call each.
    assert report.refused <= 8 + 0.1 * most / latency, report.refused


def test_turns_that_change_again_and_again_put_no_try_off_for_ever() -> None:
    """A Redis that comes and goes: each time, the try was put off by as much again, for hours at last."""
    window = Window()
    for now in (1.0, 2.0):
        window.refuse(now - 0.1, 10, now)
    for _ in range(100):
        window.take_turn(window.try_every_s)
        window.take_turn(0.75)
    running = int(window.most)
    assert not window.begin_try(running, 2.0 + window.try_every_s), "it is another host's turn first"
    assert window.begin_try(running, 2.1 + 2 * window.try_every_s)
