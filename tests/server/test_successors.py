"""For how long a worker that was told to stop accepts on, by what its master's other workers say and become."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openai_gateway.server import balance, successors
from openai_gateway.server.balance import Balance
from openai_gateway.server.successors import Successors

_MASTER = 1


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The workers that live, youngest last."""
    living = [os.getpid()]
    monkeypatch.setattr(successors, "_children_of", lambda pid: list(living) if pid == _MASTER else [])
    monkeypatch.setattr(successors, "start_of", lambda pid: living.index(pid) + 1 if pid in living else 0)
    monkeypatch.setattr(Successors, "_is_master_listening", lambda self: True)
    return living


def _publish(path: Path, age: int, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(balance.os, "getpid", lambda: pid)
        place = Balance(path, age)
    place.publish(0)


def test_new_worker_that_dies_before_it_accepts_is_waited_for_as_its_own_successor(
    tmp_path: Path, workers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, own = tmp_path / "connections", os.getpid()
    workers.append(own + 1)
    told = Successors(_MASTER, [], Balance(path, 1), 60)
    assert told.are_awaited()
    workers.remove(own + 1)
    assert told.are_awaited()
    workers.append(own + 2)
    assert told.are_awaited()
    _publish(path, 3, own + 2, monkeypatch)
    assert not told.are_awaited()


def test_worker_that_is_stopped_by_hand_waits_for_nobody(tmp_path: Path, workers: list[int]) -> None:
    assert not Successors(_MASTER, [], Balance(tmp_path / "connections", 1), 60).are_awaited()


def test_one_that_was_asked_for_is_awaited_though_there_are_younger_ones_already(
    tmp_path: Path, workers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, own = tmp_path / "connections", os.getpid()
    workers.append(own + 1)
    _publish(path, 2, own + 1, monkeypatch)
    recycled = Successors(_MASTER, [], Balance(path, 1), 60)
    recycled.are_to_be_more = True
    assert recycled.are_awaited()
    workers.append(own + 2)
    assert recycled.are_awaited()
    _publish(path, 3, own + 2, monkeypatch)
    assert not recycled.are_awaited()
