"""Calls of an upstream that is away: held, one of them asks now and then, and all go on when it is back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from openai_gateway.collect.away import Away, is_away
from openai_gateway.collect.client import GatewayAnswer
from openai_gateway.collect.failures import make_unreachable_failure

LONG_S = 20.0


def _answer(status: int, code: str | None = None) -> GatewayAnswer:
    return GatewayAnswer(status, {}, json.dumps({"error": {"message": "m", "code": code}}).encode())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (_answer(502, "upstream_unreachable"), True),
        (_answer(503), True),
        (_answer(429, "rate_limit_exceeded"), True),
        (_answer(429, "insufficient_quota"), False),
        (_answer(502, "upstream_protocol_error"), False),
        (_answer(504, "upstream_timeout"), False),
        (_answer(500), False),
        (_answer(400), False),
        (_answer(200), False),
        (make_unreachable_failure("the gateway"), False),
        (None, False),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
def test_away_is_only_what_nobody_can_have_charged_for(answer: Any, expected: bool) -> None:
    assert is_away(answer) is expected


def _spawn(away: Away, count: int, give_up: Event) -> list[gevent.Greenlet[Any, bool]]:
    return [gevent.spawn(away.wait, away.begin(), give_up) for _ in range(count)]


def _until(check: Callable[[], bool]) -> None:
    with gevent.Timeout(LONG_S):
        while not check():
            gevent.sleep(0.005)


def test_one_call_asks_while_the_others_wait() -> None:
    away, give_up = Away(first_ask_s=1.0), Event()
    away.answer()
    waiting = _spawn(away, 50, give_up)
    _until(lambda: any(each.ready() for each in waiting))
    assert sum(each.ready() for each in waiting) == 1
    give_up.set()
    gevent.joinall(waiting, LONG_S)
    assert sum(each.value for each in waiting) == 1


def test_all_go_on_at_once_when_any_call_is_answered() -> None:
    away, give_up = Away(first_ask_s=1000.0), Event()
    waiting = _spawn(away, 50, give_up)
    gevent.sleep(0)
    assert away.away_s() is not None
    away.learn(_answer(200))
    gevent.joinall(waiting, LONG_S)
    assert [each.value for each in waiting] == [True] * 50
    assert away.away_s() is None


def test_call_that_alone_fails_while_others_are_answered_gives_up() -> None:
    away, give_up, tries = Away(first_ask_s=0.0), Event(), 0
    trial = away.begin()
    while away.wait(trial, give_up):
        away.learn(_answer(200))
        tries += 1
    assert tries == 3


@pytest.mark.parametrize(("has_answered", "patience_s"), [(True, 3600.0), (False, 600.0)])
def test_patience_ends_and_is_shorter_with_an_upstream_that_never_answered(
    monkeypatch: pytest.MonkeyPatch, has_answered: bool, patience_s: float
) -> None:
    now = 0.0
    monkeypatch.setattr("openai_gateway.collect.away.monotonic", lambda: now)
    away, give_up = Away(), Event()
    if has_answered:
        away.answer()
    trial, asked = away.begin(), 0
    while now < 2 * patience_s:
        waiting = gevent.spawn(away.wait, trial, give_up)
        gevent.sleep(0)
        # As long as it takes until it may ask again, at most.
        now += 60.0
        if not waiting.get(timeout=LONG_S):
            break
        asked += 1
    assert now == pytest.approx(patience_s, abs=120.0)
    assert 5 < asked < 70


def test_nobody_asks_again_after_a_stop() -> None:
    away, give_up = Away(first_ask_s=1000.0), Event()
    waiting = _spawn(away, 5, give_up)
    gevent.sleep(0)
    give_up.set()
    away.learn(_answer(200))
    gevent.joinall(waiting, LONG_S)
    assert [each.value for each in waiting] == [False] * 5
