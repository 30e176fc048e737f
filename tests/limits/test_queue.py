"""The queue by itself: who goes when, and that nothing is lost or leaked when callers give up."""

from __future__ import annotations

import gevent
import pytest

from openai_gateway.errors import Saturated, Unavailable
from openai_gateway.limits.attempts import Bounds, ConfiguredLimits
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.order import Order, Place, Rollout
from openai_gateway.limits.queue import Queue
from openai_gateway.limits.slots import Admitted


def _queue(cap: int | None = 1, max_queue: int | None = None, timeout_s: float | None = None) -> Queue:
    bounds = Bounds(cap, None, max_queue, timeout_s)
    return Queue(Limiter(ConfiguredLimits(learns=False), 0.0), Order(), bounds)


def _place(began: float = 0.0, **more: object) -> Place:
    return Place(Rollout(began), **more)  # type: ignore[arg-type]


def test_slot_may_be_released_any_number_of_times() -> None:
    queue = _queue(timeout_s=0.05)
    admitted = queue.take(_place())
    with pytest.raises(Saturated, match=r"waited 0\.05 s"):
        queue.take(_place())
    for _ in range(3):
        admitted.release()
    assert queue.slots.in_flight == 0
    queue.take(_place()).release()


def test_full_queue_takes_nobody_in() -> None:
    queue = _queue(max_queue=0)
    admitted = queue.take_at_once(Rollout(0.0), 0.0, is_limited=True)
    assert admitted is not None
    with pytest.raises(Saturated, match="full"):
        queue.take(_place())
    admitted.release()
    assert queue.take_at_once(Rollout(0.0), 0.0, is_limited=True) is not None


def test_closed_queue_lets_nobody_go_who_waits_or_would_have_to() -> None:
    queue = _queue()
    admitted = queue.take(_place())
    waiting = [gevent.spawn(queue.take, _place()) for _ in range(3)]
    refused = gevent.spawn(queue.take_again, _place(), None)
    gevent.sleep(0)
    queue.close()
    admitted.release()
    gevent.joinall([*waiting, refused], timeout=60)
    assert [type(each.exception) for each in (*waiting, refused)] == [Unavailable] * 4
    admitted = queue.take_at_once(Rollout(0.0), 0.0, is_limited=True)
    assert admitted is not None
    with pytest.raises(Unavailable):
        queue.take(_place())
    admitted.release()
    assert (queue.slots.in_flight, len(queue.waiting)) == (0, 0)


def test_greenlet_killed_while_queued_takes_no_slot() -> None:
    queue = _queue()
    admitted = queue.take(_place())
    waiting = [gevent.spawn(queue.take, _place()) for _ in range(3)]
    gevent.sleep(0.01)
    assert len(queue.waiting) == 3
    gevent.killall(waiting[:2])
    admitted.release()
    waiting[2].get(timeout=1).release()
    assert (len(queue.waiting), queue.slots.in_flight) == (0, 0)


def test_greenlet_killed_after_its_turn_came_gives_it_to_the_next() -> None:
    queue = _queue()
    admitted = queue.take(_place())

    def call() -> None:
        admitted = queue.take(_place())
        try:
            gevent.sleep(0.01)
        finally:
            admitted.release()

    first, second = (gevent.spawn(call) for _ in range(2))
    gevent.sleep(0.01)
    admitted.release()
    # `first` is admitted, but hasn't run yet.
    first.kill()
    second.get(timeout=1)
    assert queue.slots.in_flight == 0
    queue.take(_place()).release()


def test_order_learns_what_calls_take_from_those_that_end_while_others_wait() -> None:
    queue = _queue()
    turn = queue.take(_place())
    waiting = gevent.spawn(queue.take, _place())
    gevent.sleep(0.02)
    turn.release()
    waiting.get(timeout=1).release()
    assert queue._order._ended == 1, "nobody waited when the second ended"
    assert queue._order._running_s >= 0.01


def test_call_that_gives_up_at_the_front_does_not_hold_up_the_others() -> None:
    """What the first waits for may not be what the next would wait for."""
    queue = Queue(Limiter(ConfiguredLimits(None, 60.0, learns=False), 0.0), Order(), Bounds())
    queue.take(_place(tokens=1.0))
    large = gevent.spawn(queue.take, _place(0.0, tokens=1e9))
    gevent.sleep(0.01)
    other = gevent.spawn(queue.take, _place(1.0, is_limited=False))
    gevent.sleep(0.01)
    assert not other.ready()
    large.kill()
    other.get(timeout=1).release()


def test_rate_told_is_waited_for_by_the_clock() -> None:
    queue = Queue(Limiter(ConfiguredLimits(1200.0, learns=False), 0.0), Order(), Bounds())
    all_admitted: list[Admitted] = []
    calls = [gevent.spawn(lambda: all_admitted.append(queue.take(_place()))) for _ in range(40)]
    gevent.joinall(calls, timeout=60, raise_error=True)
    assert len(all_admitted) == 40
    assert all_admitted[-1].reason == "rate"
    assert queue.slots.in_flight == 40
