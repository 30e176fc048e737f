"""The order by itself: who goes next, that nobody starves, and how soon rollouts are done."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator

import pytest

from openai_gateway.limits.order import Order, Place, Rollout, Rollouts


def _place(began: float = 0.0, calls: int = 0, **more: object) -> Place:
    return Place(Rollout(began, calls), **more)  # type: ignore[arg-type]


def _go(order: Order, now: float) -> Iterator[Place]:
    while (place := order.first(now)) is not None:
        order.admit(place, now)
        yield place


def test_rollout_that_began_first_goes_first_and_a_refused_call_before_it() -> None:
    order, rollouts = Order(), Rollouts()
    names = ["a", "b", "c", "b", "a"]
    for at, name in enumerate(names):
        order.add(Place(rollouts.find(name, float(at))), float(at))
    order.add(_place(9.0, is_refused=True), 9.0)
    assert [place.rollout.began for place in _go(order, 10.0)] == [9.0, 0.0, 1.0, 0.0, 1.0, 2.0]
    assert len(order) == 0


def test_old_rollout_does_not_pass_all_that_waited_longer() -> None:
    order = Order()
    old, young = _place(0.0), _place(90.0)
    order.add(young, 90.0)
    order.add(old, 100.0)
    assert order.first(101.0) is old
    older = _place(0.0)
    order.add(older, 300.0)
    order.remove(old)
    assert order.first(101.0) is young


def test_rollout_of_many_calls_gets_ahead_by_as_many_waits() -> None:
    order = Order()
    for _ in range(2000):
        order.add(_place(0.0), 0.0)
        order.admit(_place_of(order, 10.0), 10.0)
    places = [_place(100.0, calls) for calls in (0, 1, 4, 8)]
    ranks = [order.rank(place.rollout, 100.0) for place in places]
    assert ranks == pytest.approx([100.0, 100.0, 90.0, -60.0], abs=0.2)


def _place_of(order: Order, now: float) -> Place:
    place = order.first(now)
    assert place is not None
    return place


def test_calls_go_as_they_came_if_so_configured() -> None:
    order = Order(is_fifo=True)
    places = [_place(began, calls) for began, calls in ((3.0, 0), (1.0, 50), (2.0, 9))]
    for at, place in enumerate(places):
        order.add(place, float(at))
    assert list(_go(order, 5.0)) == places


def test_nobody_waits_longer_than_the_ageing_bound() -> None:
    order = Order()
    late = _place(100.0)
    order.add(late, 100.0)
    order.add(_place(1.0), 105.0)
    assert order.first(159.0) is not late
    assert order.first(161.0) is late
    assert late.is_overdue


def _simulate(order: Order, rollouts: int, calls_a_s: float) -> tuple[float, int, float]:
    """Have rollouts of 10 to 30 calls begin at once; return the mean end, how many by half time, the longest wait."""
    draw = random.Random(1)
    left = [draw.randint(10, 30) for _ in range(rollouts)]
    known = [Rollout(0.0) for _ in left]
    order_of: dict[int, int] = {}
    done = [0.0] * rollouts
    ends: list[tuple[float, int]] = []
    longest_s, now = 0.0, 0.0

    def ask(number: int, at: float) -> None:
        place = Place(known[number])
        order_of[id(place)] = number
        order.add(place, at)

    for number in range(rollouts):
        ask(number, 0.0)
    for tick in itertools.count(1):
        now = tick / calls_a_s
        while ends and ends[0][0] <= now:
            at, number = heapq.heappop(ends)
            if left[number]:
                ask(number, at)
            else:
                done[number] = at
        if not any(left):
            break
        place = order.first(now)
        if place is not None:
            order.admit(place, now)
            number = order_of.pop(id(place))
            longest_s = max(longest_s, now - place.since)
            left[number] -= 1
            known[number].calls += 1
            heapq.heappush(ends, (now + draw.lognormvariate(0.4, 0.7), number))
    return sum(done) / rollouts, sum(at and at <= now / 2 for at in done), longest_s


def test_rollouts_begun_at_once_are_done_one_after_the_other_and_none_starves() -> None:
    """First come, first served: all are done at the end. Strictly the first rollout first: one waits for most of it."""
    mean_s, done_at_half, longest_s = _simulate(Order(), 200, 5.0)
    fifo_s, fifo_done_at_half, _ = _simulate(Order(is_fifo=True), 200, 5.0)
    assert mean_s < 0.85 * fifo_s
    assert done_at_half > 2 * fifo_done_at_half
    assert longest_s < 150


def test_clients_share_by_weight_and_a_newcomer_has_no_credit() -> None:
    order = Order()
    for _ in range(40):
        order.add(_place(client="a", tokens=10.0, share=3.0), 0.0)
        order.add(_place(client="b", tokens=10.0), 0.0)
    gone = []
    for place in _go(order, 1.0):
        gone.append(place.client)
        if len(gone) == 40:
            break
    assert gone.count("a") == pytest.approx(30, abs=1)
    for _ in range(8):
        order.add(_place(client="c", tokens=10.0), 1.0)
    gone = [place.client for place, _ in zip(_go(order, 2.0), range(10), strict=False)]
    assert gone.count("c") <= 4, "it caught up on what it never asked for"


def test_rollouts_seen_of_late_are_known_and_memory_is_bounded() -> None:
    rollouts = Rollouts()
    first = rollouts.find("a", 1.0)
    assert rollouts.find("a", 2.0) is first
    for number in range(20_000):
        rollouts.find(str(number), 4.0)
        assert rollouts.find("a", 5.0) is first
    assert len(rollouts._known) + len(rollouts._earlier) <= 2 * 8193
