"""The limiter's word on single calls: how long one that was refused waits itself."""

from __future__ import annotations

import pytest

from openai_gateway.limits.attempts import Told, Tries
from openai_gateway.limits.limiter import Limiter
from openai_gateway.wire.rate_limits import RateLimit, Refusal

ROOM = {"requests": RateLimit(3000.0, 2900.0, 2.0)}
LAST_ONE = {"requests": RateLimit(60.0, 1.0, 59.0)}
NO_ROOM = {"requests": RateLimit(60.0, 0.0, 60.0)}


@pytest.mark.parametrize("kind", ["requests", "in_flight", None])
@pytest.mark.parametrize("limits", [ROOM, {}], ids=["a ledger with room", "no ledger"])
@pytest.mark.parametrize("retry_after_s", [1.0, 2.0, 5.0])
def test_refused_call_keeps_its_own_retry_after_each_time(
    kind: str | None, limits: dict[str, RateLimit], retry_after_s: float
) -> None:
    limiter, now = Limiter(Told(), 0.0), 100.0
    limiter.answer(limiter.start(1.0, 0, now), limits, 1)
    refusal = Refusal(kind, retry_after_s)
    for tries in (Tries(), Tries(), Tries()):
        for _ in range(3):
            now += 0.1
            sent = limiter.start(1.0, 0, now)
            assert limiter.refuse(sent, limits, refusal, tries, now + 0.1) == retry_after_s
            now += 0.1 + retry_after_s


def test_refused_call_goes_as_soon_as_an_empty_ledger_fills_whatever_its_retry_after() -> None:
    limiter = Limiter(Told(), 0.0)
    limiter.answer(limiter.start(1.0, 0, 100.0), LAST_ONE, 1)
    sent = limiter.start(1.0, 0, 100.1)
    assert limiter.refuse(sent, NO_ROOM, Refusal("requests", 60.0), Tries(), 100.2) == 0.0
    assert 0.0 < limiter.wait_s(1.0, 1, 100.2)[0] < 5.0


@pytest.mark.parametrize("retry_after_s", [1e5, 1e308])
def test_no_upstream_can_have_all_calls_wait_for_ever(retry_after_s: float) -> None:
    limiter = Limiter(Told(), 0.0)
    for now in (10.0, 10.5):
        sent = limiter.start(1.0, 0, now)
        limiter.refuse(sent, {}, Refusal(kind="requests", wait_s=retry_after_s), Tries(), now)
    assert limiter.wait_s(1.0, 0, 11.0)[0] <= 120
