"""What is ticked is ticked ten times a second, unless it says that it may rest."""

from __future__ import annotations

import gevent

from openai_gateway.transport.ticker import TICK_S, Ticker


class Counted:
    """Counts its ticks; rests for `rest_s` after each."""

    def __init__(self, rest_s: float | None = None) -> None:
        self.rest_s = rest_s
        self.ticks = 0

    def tick(self, now: float) -> float | None:
        self.ticks += 1
        return self.rest_s


def wait_for(ticks: int, counted: Counted) -> None:
    with gevent.Timeout(20):
        while counted.ticks < ticks:
            gevent.sleep(TICK_S / 4)


def test_what_rests_is_passed_over_until_its_rest_is_over() -> None:
    ticker: Ticker[Counted] = Ticker()
    often, seldom = Counted(), Counted(5 * TICK_S)
    ticker.add(often)
    ticker.add(seldom)
    wait_for(11, often)
    assert seldom.ticks == 3
    assert set(ticker) == {often, seldom}


def test_what_rests_for_less_than_a_tick_is_ticked_at_the_next() -> None:
    ticker: Ticker[Counted] = Ticker()
    often, shortly = Counted(), Counted(TICK_S / 2)
    ticker.add(shortly)
    ticker.add(often)
    wait_for(3, often)
    assert shortly.ticks == often.ticks


def test_what_is_added_again_rests_no_longer_and_what_is_discarded_is_not_ticked() -> None:
    ticker: Ticker[Counted] = Ticker()
    often, seldom = Counted(), Counted(1000.0)
    ticker.add(often)
    ticker.add(seldom)
    wait_for(2, often)
    assert seldom.ticks == 1
    seldom.rest_s = None
    ticker.add(seldom)
    wait_for(2, seldom)
    ticker.add(seldom)
    ticker.discard(seldom)
    before = seldom.ticks
    wait_for(often.ticks + 2, often)
    assert (seldom.ticks, set(ticker)) == (before, {often})


def test_nothing_left_stops_the_timer_and_more_starts_it_again() -> None:
    ticker: Ticker[Counted] = Ticker()
    for _ in range(2):
        counted = Counted()
        ticker.add(counted)
        wait_for(1, counted)
        ticker.discard(counted)
        with gevent.Timeout(20):
            while ticker._timer is not None:
                gevent.sleep(TICK_S / 4)
