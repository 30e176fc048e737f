"""Several limits at once: what is charged, given back, hidden, and changed at a time."""

from __future__ import annotations

from typing import Any

from openai_gateway.simulator.account_limits import Charge, LimitExceeded, Limits
from openai_gateway.simulator.settings import SimulatorSettings, load_settings
from tests.simulator.calling import Clock


def make(**settings: Any) -> tuple[Limits, Clock]:
    clock = Clock()
    clock.now_s = 1000.0
    return Limits(load_settings(None, settings), clock), clock


def count(limits: Limits, most: int = 1000, tokens: int = 0) -> int:
    """Count the calls that are admitted now."""
    for number in range(most):
        if isinstance(limits.admit(tokens, 0), LimitExceeded):
            return number
    return most


def admit(limits: Limits, tokens: int = 0, unused: int = 0) -> Charge:
    found = limits.admit(tokens, unused)
    assert isinstance(found, Charge)
    return found


def test_burst_bounds_what_goes_at_once_and_the_limit_is_told_as_a_minutes() -> None:
    limits, clock = make(rpm=3000, burst_s=5)
    assert count(limits) == 250
    told = limits.tell()["requests"]
    assert (told.limit, told.remaining, told.reset_s) == (3000, 0, 5)
    clock.now_s += 1
    assert count(limits) == 50


def test_hidden_window_refuses_though_the_told_limit_has_room() -> None:
    limits, clock = make(rpm=60, window_s=2)
    assert count(limits) == 2
    refused = limits.admit(0, 0)
    assert isinstance(refused, LimitExceeded)
    assert (refused.kind, refused.wait_s, refused.used) == ("requests", 2, 2)
    assert limits.tell()["requests"].remaining == 58
    clock.now_s += 2
    assert count(limits) == 2


def test_window_shorter_than_one_call_still_lets_calls_through() -> None:
    limits, clock = make(tpm=600, window_s=1)
    assert count(limits, tokens=100) == 1
    clock.now_s += 1
    assert count(limits, tokens=100) == 1


def test_calls_in_flight_are_bounded_until_they_end() -> None:
    limits, _ = make(in_flight=2)
    first, _ = admit(limits), admit(limits)
    refused = limits.admit(0, 0)
    assert isinstance(refused, LimitExceeded)
    assert (refused.kind, refused.limit, refused.used) == ("in_flight", 2, 2)
    first.end()
    first.end()
    assert count(limits) == 1


def test_refusals_use_the_request_limit_up_only_where_they_are_charged() -> None:
    for is_charged, allowed in ((False, 1), (True, 0)):
        limits, clock = make(rpm=60, burst_s=1, refusals_charged=is_charged)
        admit(limits)
        clock.now_s += 0.5
        assert isinstance(limits.admit(0, 0), LimitExceeded)
        clock.now_s += 0.5
        assert count(limits) == allowed


def test_unused_tokens_come_back_at_the_end_where_they_do() -> None:
    for is_given_back, left in ((False, 0), (True, 600)):
        limits, _ = make(tpm=1000, unused_given_back=is_given_back)
        charge = admit(limits, 1000, 600)
        assert limits.tell()["tokens"].remaining == 0
        charge.end()
        assert limits.tell()["tokens"].remaining == left


def test_others_take_slots_too() -> None:
    limits, _ = make(in_flight=10, others_share=0.4)
    assert count(limits) == 6


def test_limits_change_so_long_after_the_first_call() -> None:
    changes = [{"at_s": 60, "rpm": 30}, {"at_s": 30, "others_share": 0.5}]
    limits, clock = make(rpm=60, limit_changes=changes)
    clock.now_s += 500
    assert count(limits) == 60
    clock.now_s += 60
    # 30 s at one a second, then 30 s at half of that, of which no more than the new 30 stay.
    assert limits.tell()["requests"].limit == 30
    assert count(limits) == 30
    clock.now_s += 8
    assert count(limits) == 2


def test_day_has_a_limit_of_its_own() -> None:
    limits, clock = make(rpd=100, rpm=600)
    assert count(limits) == 100
    refused = limits.admit(0, 0)
    assert isinstance(refused, LimitExceeded)
    assert (refused.kind, refused.limit, refused.wait_s) == ("requests_per_day", 100, 864)
    clock.now_s += 864
    assert count(limits) == 1


def test_refused_call_says_what_was_used_and_asked_for() -> None:
    limits, _ = make(tpm=1000)
    admit(limits, 900)
    refused = limits.admit(200, 0)
    assert isinstance(refused, LimitExceeded)
    assert (refused.kind, refused.limit, refused.used, refused.requested) == ("tokens", 1000, 900, 200)
    assert refused.wait_s == 6


def test_no_limits_are_the_default() -> None:
    limits = Limits(SimulatorSettings(), Clock())
    assert count(limits, tokens=10**9) == 1000
