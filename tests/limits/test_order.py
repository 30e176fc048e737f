"""The order by itself: who goes next, that nobody starves, and how soon rollouts are done."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from openai_gateway.limits.order import Order, Place, Rollout, Rollouts


def _place(began: float = 0.0, calls: int = 1, **more: object) -> Place:
    return Place(Rollout(began, calls), **more)  # type: ignore[arg-type]


def _go(order: Order, now: float) -> Iterator[Place]:
    while (place := order.first(now)) is not None:
        order.admit(place, now)
        yield place


def test_rollout_that_began_first_goes_first_and_a_refused_call_before_it() -> None:
    order = Order()
    for began, at in ((0.0, 0.0), (10.0, 12.0), (20.0, 20.0), (1.0, 21.0)):
        order.add(_place(began), at)
    order.add(_place(19.0, calls=0), 19.0)
    order.add(_place(30.0, is_refused=True), 30.0)
    assert [place.rollout.began for place in _go(order, 31.0)] == [30.0, 0.0, 1.0, 10.0, 19.0, 20.0]
    assert len(order) == 0


def test_old_rollout_does_not_pass_all_that_waited_longer() -> None:
    order = Order()
    old, young = _place(0.0), _place(90.0)
    order.add(young, 90.0)
    order.add(old, 100.0)
    assert order.first(101.0) is old
    older = _place(0.0)
    order.add(older, 400.0)
    order.remove(old)
    assert order.first(101.0) is young


def _find_leads(order: Order, now: float, *rollouts: Rollout) -> list[float]:
    return [now - order.rank(rollout, now) for rollout in rollouts]


@pytest.mark.parametrize(("calls_before", "leads"), [(0, [0.0, 2.25, 7.2, 16.96]), (1, [0.0, 2.25, 4.7, 11.46])])
def test_call_is_ahead_by_what_calls_take_less_what_those_wait_that_are_ahead_at_most_by_its_age_or_by_waits(
    calls_before: int, leads: list[float]
) -> None:
    order = Order()
    for second in range(200):
        order.add(_place(0.0, calls_before), float(second))
        order.admit(_place_of(order, second + 5.0), second + 5.0)
    order.add(_place(0.0), 205.0)
    for second in range(205, 505):
        order.learn_end(4, float(second))
    rollouts = (Rollout(began, calls) for began, calls in ((0, 0), (502, 9), (0, 1), (0, 3)))
    assert _find_leads(order, 505.0, *rollouts) == pytest.approx(leads, abs=0.1), "calls took 4 s, and waited 5"
    among_four = _find_leads(order, 505.0, Rollout(0.0, 9, waiting=4))
    assert among_four == pytest.approx([5.575 if calls_before else 8.325], abs=0.05)


def test_rollout_of_many_calls_gets_ahead_by_as_many_waits() -> None:
    order = Order()
    for _ in range(2000):
        order.add(_place(0.0), 0.0)
        order.admit(_place_of(order, 10.0), 10.0)
    order.learn_end(0, 10.0)
    leads = _find_leads(order, 1000.0, *(Rollout(0.0, calls) for calls in (1, 3, 6, 12, 60)))
    assert leads == pytest.approx([0.0, 0.6, 10.0, 160.0, 750.0], abs=0.5), "no more than three quarters of the age"


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


class _Load:
    """Callers, each with one rollout after the other, behind a limit of calls a second, by a clock of events."""

    def __init__(
        self,
        order: Order,
        calls_a_s: float,
        lengths: Iterator[int],
        make_rollout: Callable[[int, float], Rollout] = lambda _caller, now: Rollout(now),
    ) -> None:
        self.order, self.gap_s, self.lengths, self.make_rollout = order, 1 / calls_a_s, lengths, make_rollout
        self.random = random.Random(1)
        self.running: list[tuple[float, int, Place, float, int]] = []
        self.callers: dict[int, tuple[int, int]] = {}
        self.latencies: list[float] = []
        self.done: list[float] = []
        self.calls = Counter[int]()

    def begin(self, caller: int, now: float) -> None:
        length = next(self.lengths, 0)
        if length:
            self._ask(Place(self.make_rollout(caller, now)), caller, length, now)

    def _ask(self, place: Place, caller: int, left: int, now: float) -> None:
        self.callers[id(place)] = caller, left
        self.order.add(place, now)

    def run(self, until: float = math.inf) -> None:
        for tick in itertools.count(1):
            now = tick * self.gap_s
            if now > until or not (len(self.order) or self.running):
                return
            while self.running and self.running[0][0] <= now:
                self._end(*heapq.heappop(self.running))
            place = self.order.first(now)
            if place is not None:
                self.order.admit(place, now)
                place.rollout.calls += 1
                ends_at = now + self.random.lognormvariate(0.4, 0.7)
                heapq.heappush(self.running, (ends_at, tick, place, *self.callers.pop(id(place))))

    def _end(self, now: float, _tick: int, place: Place, caller: int, left: int) -> None:
        self.order.learn_end(len(self.running) + 1, now)
        self.latencies.append(now - place.since)
        self.calls[caller] += 1
        if left > 1:
            self._ask(Place(place.rollout), caller, left - 1, now)
        else:
            self.done.append(now)
            self.begin(caller, now)

    @property
    def p99_s(self) -> float:
        return sorted(self.latencies)[int(0.99 * len(self.latencies))]

    @property
    def evenness(self) -> float:
        counts = self.calls.values()
        return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


class _OldestFirst(Order):
    def rank(self, rollout: Rollout, now: float) -> float:
        return rollout.began


def _load(order: Order, callers: int, calls: int) -> _Load:
    load = _Load(order, 50.0, itertools.repeat(calls))
    for number in range(callers):
        load.begin(number, 0.0001 * number)
    load.run(60.0)
    return load


@pytest.mark.parametrize(("calls", "callers", "p99"), [(2, 200, 1.1), (4, 200, 1.2), (4, 350, 1.2), (8, 200, 1.25)])
def test_rollouts_are_done_nearly_as_early_as_can_be_and_calls_wait_little_longer(
    calls: int, callers: int, p99: float
) -> None:
    ours, fifo, oldest = (_load(order, callers, calls) for order in (Order(), Order(is_fifo=True), _OldestFirst()))
    half = len(oldest.done) // 2
    assert ours.done[half] < 1.1 * oldest.done[half]
    assert ours.p99_s < p99 * fifo.p99_s < oldest.p99_s
    assert ours.evenness > fifo.evenness - 0.03


def test_rollouts_begun_at_once_are_done_one_after_the_other_and_none_starves() -> None:
    """First come, first served: all are done at the end. Strictly the first rollout first: one waits for most of it."""
    draw = random.Random(1)
    lengths = [draw.randint(10, 30) for _ in range(200)]
    ours, fifo = (_Load(order, 5.0, iter(lengths)) for order in (Order(), Order(is_fifo=True)))
    for load in (ours, fifo):
        for number in range(len(lengths)):
            load.begin(number, 0.0)
        load.run()
    assert sum(ours.done) < 0.87 * sum(fifo.done)
    at_half, at_half_of_fifo = (sum(end < load.done[-1] / 2 for end in load.done) for load in (ours, fifo))
    assert at_half > 2 * at_half_of_fifo
    assert max(ours.latencies) < 150


def test_calls_at_once_that_name_one_rollout_go_as_they_came_and_starve_no_others() -> None:
    """As those of a batch do whose `prompt_cache_key` is one for all: a call is no older for the others' age."""
    order, batch = Order(), Rollout(-36_000.0, 50_000)
    load = _Load(order, 10.0, itertools.repeat(1), lambda caller, now: batch if caller % 4 else Rollout(now))
    fifo = _Load(Order(is_fifo=True), 10.0, itertools.repeat(1))
    for one in (load, fifo):
        for caller in range(200):
            one.begin(caller, 0.001 * caller)
        one.run(200.0)
    assert load.p99_s < 1.1 * fifo.p99_s
    assert sum(load.calls[caller] for caller in range(0, 200, 4)) > 0.22 * load.calls.total()
    while (place := order.first(200.0)) is not None:
        order.remove(place)
    assert not batch.waiting


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
