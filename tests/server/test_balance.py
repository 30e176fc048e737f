"""New connections go to the worker that has fewest; one that is gone, or says nothing any more, counts for nothing."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest

from openai_gateway.server import balance
from openai_gateway.server.balance import PLACES, Balance


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [1000.0]
    monkeypatch.setattr(balance, "monotonic", lambda: moment[0])
    return moment


def test_worker_with_more_than_another_leaves_the_next_one_to_it(tmp_path: Path, now: list[float]) -> None:
    first, second = Balance(tmp_path / "connections", 1), Balance(tmp_path / "connections", 2)
    first.publish(3)
    second.publish(2)
    assert first.has_more_than_another(3)
    assert not second.has_more_than_another(2)
    second.publish(3)
    assert not first.has_more_than_another(3)


@pytest.mark.parametrize(("workers", "clients"), [(2, 64), (4, 64), (2, 512), (4, 512), (8, 512)])
def test_many_that_come_at_once_are_taken_in_few_turns_and_evenly(
    workers: int, clients: int, tmp_path: Path, now: list[float]
) -> None:
    places = [Balance(tmp_path / "connections", age) for age in range(workers)]
    counts = [0] * workers
    for place in places:
        place.publish(0)
    turns = 0
    while sum(counts) < clients:
        turns += 1
        for number, place in enumerate(places):
            while sum(counts) < clients and not place.has_more_than_another(counts[number]):
                counts[number] += 1
                place.publish(counts[number])
    assert max(counts) <= 1.3 * min(counts)
    assert turns <= 40


def test_nobody_waits_for_a_worker_that_left_or_died(tmp_path: Path, now: list[float]) -> None:
    first, left, dead = (Balance(tmp_path / "connections", age) for age in (1, 2, PLACES + 3))
    left.publish(0)
    dead.publish(0)
    assert first.has_more_than_another(1)
    left.leave()
    assert first.has_more_than_another(1)
    now[0] += 3.5
    assert not first.has_more_than_another(1)


def test_nobody_waits_for_a_worker_that_was_killed_just_now(tmp_path: Path, now: list[float]) -> None:
    """Its clients come back all at once, and each would wait for it for some milliseconds, one after the other."""
    first = Balance(tmp_path / "connections", 1)
    pid = os.fork()
    if not pid:
        Balance(tmp_path / "connections", 2).publish(0)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not first.has_more_than_another(1)


def test_count_of_an_old_worker_is_not_taken_for_that_of_a_new_one_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more than half as many workers as there are places, a reload has two share one."""
    monkeypatch.setattr(balance.os, "getpid", lambda: 7)
    old = Balance(tmp_path / "connections", 1)
    monkeypatch.setattr(balance.os, "getpid", lambda: 8)
    new = Balance(tmp_path / "connections", 1 + PLACES)
    old.publish(3)
    assert old.count_of(8) is None
    new.publish(0)
    assert old.count_of(8) == 0


def test_one_that_has_left_is_told_from_one_that_has_not_come_yet(tmp_path: Path) -> None:
    """Of two old workers, the one that leaves first must not be taken for a new one that the other has to wait for."""
    place = Balance(tmp_path / "connections", 1)
    assert place.count_of(os.getpid()) is None
    place.publish(3)
    assert place.count_of(os.getpid()) == 3
    place.leave()
    assert place.count_of(os.getpid()) == 3
    assert Balance(tmp_path / "connections", 1 + PLACES).count_of(os.getpid()) is None


def test_one_that_stays_out_is_left_no_connection_and_does_not_count(tmp_path: Path) -> None:
    one, other = Balance(tmp_path / "connections", 1), Balance(tmp_path / "connections", 2)
    assert not other.has_others()
    one.publish(3)
    assert other.has_others()
    one.stay_out()
    assert one.count_of(os.getpid()) == math.inf
    assert not other.has_more_than_another(9)
    assert not other.has_others()


def test_worker_alone_takes_all(tmp_path: Path, now: list[float]) -> None:
    alone = Balance(tmp_path / "connections", 1)
    alone.publish(7)
    assert not alone.has_more_than_another(7)
