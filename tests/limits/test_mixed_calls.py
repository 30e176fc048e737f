"""Leavers, refusals, errors, resets: whatever becomes of calls, permits and charges are exact afterwards."""

from __future__ import annotations

from tests.benchmarks import mixed_calls, mixed_sockets


def test_after_any_mixture_of_calls_nothing_is_held_and_the_charges_are_the_upstreams() -> None:
    left = mixed_calls.run(2000, 1)
    assert {"answered", "reset"} <= left.outcomes.keys()
    assert left.outcomes["left while waiting"] + left.outcomes["left while running"] > 0
    assert left.refused > 0
    assert not any(left.held.values()), left.held
    assert left.charged == left.counted


def test_after_any_mixture_of_calls_over_sockets_the_charges_are_what_the_upstream_read() -> None:
    found = mixed_sockets.run(400, 1)
    assert found.outcomes["200"] > 0
    assert found.outcomes["left while waiting"] > 0
    assert not any(found.held.values()), found.held
    assert found.charged == found.counted
