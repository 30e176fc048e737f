"""Slots, pauses and the bound of retries by themselves."""

from __future__ import annotations

import time

import pytest

from openai_gateway.limits.pacing import RETRY_FLOOR, Pause, RetryRatio
from openai_gateway.wire.retries import Outcome


def test_pause_ends_early_at_its_deadline_and_when_given_up() -> None:
    pause = Pause(lambda: 0.0)
    pause.learn(Outcome(429, {"retry-after": "60"}), time.time())
    assert 59 < pause.left_s() <= 60
    started = time.monotonic()
    pause.wait(time.monotonic() + 0.1, lambda: False)
    pause.wait(None, lambda: True)
    assert time.monotonic() - started < 5
    too_long = Pause(lambda: 0.0)
    too_long.learn(Outcome(429, {"retry-after": "500"}), time.time())
    assert too_long.left_s() == 0


def test_retry_ratio_allows_a_floor_and_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = RetryRatio(0.2)
    assert sum(ratio.take() for _ in range(100)) == RETRY_FLOOR
    ratio.calls += 100
    assert sum(ratio.take() for _ in range(100)) == 20
    now = time.monotonic()
    monkeypatch.setattr("openai_gateway.limits.pacing.monotonic", lambda: now + 31)
    assert sum(ratio.take() for _ in range(100)) == 5
    assert all(RetryRatio(None).take() for _ in range(100))
