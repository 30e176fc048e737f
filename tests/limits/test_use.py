"""How far limits were used in the last minute and hour, by sums that calls add to."""

from __future__ import annotations

import pytest

from openai_gateway.limits.use import LimitUse

RATE = {"requests": 10.0}


def test_used_is_what_was_sent_and_not_refused_of_what_flowed_in() -> None:
    use = LimitUse(0.0)
    use.look(RATE, 0.0)
    for second in range(1, 31):
        use.requests += 10
        use.refuse(second, 0.0)
        use.look(RATE, float(second))
    assert use.used("requests") == ((270.0, 270.0), (300.0, 300.0))
    assert use.attempts().refused_shares() == (0.1, 0.1)


def test_minute_forgets_what_the_hour_still_knows() -> None:
    use = LimitUse(0.0)
    use.look(RATE, 0.0)
    use.requests += 300
    for second in range(1, 301):
        use.look(RATE, float(second))
    (minute, hour), (allowed_minute, allowed_hour) = use.used("requests")
    assert (minute, hour) == (0.0, 300.0)
    assert allowed_minute == pytest.approx(600.0, rel=0.02)
    assert allowed_hour == pytest.approx(3000.0)


def test_what_was_sent_before_a_limit_was_known_counts_for_nothing() -> None:
    use = LimitUse(0.0)
    use.requests += 1000
    use.tokens += 1000.0
    use.look({}, 10.0)
    use.look(RATE, 20.0)
    # It was not counted, and is not taken off.
    use.refuse(9.0, 1.0)
    use.requests += 20
    use.look(RATE, 22.0)
    assert use.used("requests") == ((20.0, 20.0), (20.0, 20.0))
    assert use.used("tokens") == ((0.0, 0.0), (0.0, 0.0))


def test_samples_are_bounded_however_often_somebody_looks() -> None:
    use = LimitUse(0.0)
    for tick in range(20_000):
        use.look(RATE, tick / 2)
    assert all(len(samples) <= 62 for samples in use._samples)


def test_nothing_is_known_before_the_first_look() -> None:
    assert LimitUse(0.0).attempts().refused_shares() == (None, None)
