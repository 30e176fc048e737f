"""The breaker by itself: what opens it, what it says, and how it closes."""

from __future__ import annotations

import time

import pytest

from openai_gateway.errors import KeyRefused, QuotaUsedUp
from openai_gateway.limits.breaker import Breaker
from openai_gateway.wire.retries import Outcome

KEY = Outcome(401, {}, "invalid_api_key")
QUOTA = Outcome(429, {}, "billing_hard_limit_reached")


def test_two_refusals_in_a_row_open() -> None:
    breaker = Breaker(60)
    assert breaker.refusal() is None
    breaker.settle(KEY, is_answered=False)
    breaker.settle(None, is_answered=False)
    assert (breaker.is_open, breaker.blocks(), breaker.refusal()) == (False, False, None)
    breaker.settle(KEY, is_answered=False)
    assert (breaker.is_open, breaker.blocks()) == (True, True)


def test_another_answer_between_two_refusals_keeps_closed() -> None:
    breaker = Breaker(60)
    for _ in range(3):
        breaker.settle(KEY, is_answered=False)
        breaker.settle(None, is_answered=True)
    assert not breaker.is_open


@pytest.mark.parametrize(
    ("outcome", "kind", "status", "code"),
    [(KEY, KeyRefused, 401, "upstream_key_refused"), (QUOTA, QuotaUsedUp, 429, "billing_hard_limit_reached")],
)
def test_refusal_is_in_words_of_our_own(outcome: Outcome, kind: type, status: int, code: str) -> None:
    breaker = Breaker(60)
    for _ in range(2):
        breaker.settle(outcome, is_answered=False)
    error = breaker.refusal()
    assert isinstance(error, kind)
    assert (error.status, error.code, error.should_retry) == (status, code, False)
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= 60


def test_one_probe_at_a_time_is_let_through() -> None:
    breaker = Breaker(0.05)
    for _ in range(2):
        breaker.settle(KEY, is_answered=False)
    time.sleep(0.06)
    assert breaker.refusal() is None, "the probe"
    assert breaker.refusal() is not None, "one at a time"
    breaker.settle(None, is_answered=False)
    assert breaker.is_open, "a probe that got no answer changes nothing"
    assert breaker.refusal() is None
    breaker.settle(None, is_answered=True)
    assert not breaker.is_open


def test_new_key_closes_and_no_cooldown_never_opens() -> None:
    breaker, never = Breaker(60), Breaker(None)
    for _ in range(2):
        breaker.settle(KEY, is_answered=False)
        never.settle(KEY, is_answered=False)
    breaker.reset()
    assert not breaker.is_open
    assert not never.is_open
