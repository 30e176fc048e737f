"""The breaker by itself: what opens it, and how it closes."""

from __future__ import annotations

import time

from openai_gateway.upstream.breaker import Breaker


def test_breaker_lets_one_probe_through_at_a_time() -> None:
    breaker: Breaker[str] = Breaker(0.05)
    assert breaker.refusal() is None
    breaker.settle("final", is_answered=True)
    assert (breaker.is_open, breaker.blocks(), breaker.refusal()) == (True, True, "final")
    time.sleep(0.06)
    assert breaker.refusal() is None, "the probe"
    assert breaker.refusal() == "final", "one at a time"
    breaker.settle(None, is_answered=False)
    assert breaker.is_open, "a probe that got no answer changes nothing"
    assert breaker.refusal() is None
    breaker.settle(None, is_answered=True)
    assert not breaker.is_open
    never: Breaker[str] = Breaker(None)
    never.settle("final", is_answered=True)
    assert not never.is_open
