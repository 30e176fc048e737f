"""Leavers, refusals, errors, resets: whatever becomes of calls, permits and charges are exact afterwards."""

from __future__ import annotations

from tests.benchmarks import mixed_calls


def test_after_any_mixture_of_calls_nothing_is_held_and_the_charges_are_the_upstreams() -> None:
    left = mixed_calls.run(2000, 1)
    assert {"answered", "reset"} <= left.outcomes.keys()
    assert left.outcomes["left while waiting"] + left.outcomes["left while running"] > 0
    assert left.refused > 0
    assert not any(left.held.values()), left.held
    assert left.charged == left.counted
