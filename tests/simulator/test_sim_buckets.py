"""One limit of the simulated account as time goes on."""

from __future__ import annotations

import math

import pytest

from openai_gateway.simulator.buckets import Bucket


def make(amount: float | None = 60, period_s: float = 60, holds_s: float = 60, *, is_fixed: bool = False) -> Bucket:
    return Bucket(amount, period_s, holds_s, is_fixed=is_fixed)


def test_it_refills_steadily_and_holds_no_more_than_its_burst() -> None:
    bucket = make(holds_s=5)
    assert (bucket.capacity, bucket.level) == (5, 5)
    bucket.take(5)
    bucket.advance(2.5)
    assert (bucket.level, bucket.left(), bucket.wait_s(3), bucket.reset_s()) == (2.5, 2, 0.5, 2.5)
    bucket.advance(100)
    assert bucket.level == 5


def test_rate_follows_from_limit_remaining_and_reset_as_openai_tells_them() -> None:
    bucket = make(5000)
    bucket.take(1)
    assert bucket.reset_s() == pytest.approx(0.012)


def test_fixed_one_takes_in_nothing_until_the_end_of_its_period() -> None:
    bucket = make(is_fixed=True)
    bucket.take(60)
    bucket.advance(59)
    assert (bucket.level, bucket.reset_s(), bucket.wait_s(1)) == (0, 1, 1)
    bucket.advance(60)
    assert (bucket.level, bucket.reset_s()) == (60, 60)


@pytest.mark.parametrize("is_fixed", [False, True], ids=["steady", "fixed"])
def test_others_take_their_share_of_what_flows_in(is_fixed: bool) -> None:
    bucket = make(is_fixed=is_fixed)
    bucket.others_share = 0.25
    bucket.advance(30)
    assert bucket.level == (60 - 7.5 if is_fixed else 60)
    bucket.take(bucket.level)
    bucket.advance(50)
    assert bucket.level == pytest.approx(0 if is_fixed else 15)


def test_wait_counts_what_others_take_and_reset_does_not() -> None:
    bucket = make()
    bucket.others_share = 0.5
    bucket.take(60)
    assert (bucket.wait_s(1), bucket.reset_s()) == (2, 60)


def test_charge_above_the_whole_limit_never_passes() -> None:
    assert make(10, holds_s=60).wait_s(11) == math.inf


def test_lower_limit_takes_what_is_above_it_and_a_new_one_begins_full() -> None:
    bucket = make()
    bucket.change(30)
    assert bucket.level == 30
    unlimited = make(None)
    assert (unlimited.wait_s(10**9), unlimited.reset_s()) == (0, 0)
    unlimited.change(30)
    assert unlimited.level == 30


def test_what_is_given_back_beyond_the_capacity_is_lost() -> None:
    bucket = make()
    bucket.take(10)
    bucket.give_back(25)
    assert bucket.level == 60
