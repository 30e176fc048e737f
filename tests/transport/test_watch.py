"""The watch ends a call wherever it waits: at a deadline, when its client leaves, when all are ended."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import gevent
import pytest

from openai_gateway.errors import BodyTimeout, CallTimeout, Cancelled, ClientGone, Saturated
from openai_gateway.transport.errors import TimedOut
from openai_gateway.transport.watch import (
    CLIENT,
    CONNECT,
    FIRST_BYTE,
    IDLE,
    REQUEST_BODY,
    CallWatch,
    Phase,
    Timeouts,
    cancel_all_in,
)

TIMEOUTS = Timeouts(connect_s=0.01, first_byte_s=0.02, idle_s=0.03, client_s=0.05)


@pytest.fixture
def watch() -> Iterator[CallWatch]:
    watch = CallWatch(TIMEOUTS)
    yield watch
    watch.stop()


@pytest.mark.parametrize(
    ("phase", "kind", "text"),
    [
        (CONNECT, TimedOut, "did not accept a connection within 0.01 s"),
        (FIRST_BYTE, TimedOut, "did not answer within 0.02 s"),
        (IDLE, TimedOut, "sent nothing for 0.03 s"),
        (REQUEST_BODY, BodyTimeout, "The request body did not arrive within 0.05 s."),
        (CLIENT, ClientGone, ""),
    ],
)
def test_each_phase_has_its_bound_and_its_error(phase: Phase, kind: type[Exception], text: str) -> None:
    watch = CallWatch(TIMEOUTS)
    watch.arm(phase)
    with pytest.raises(Cancelled) as raised:
        gevent.sleep(2)
    assert (type(raised.value.reason), str(raised.value.reason)) == (kind, text)
    watch.stop()


def test_phase_without_a_bound_and_one_that_is_over_end_nothing() -> None:
    watch = CallWatch(Timeouts(connect_s=0.01))
    watch.arm(IDLE)
    gevent.sleep(0.15)
    watch.arm(CONNECT)
    watch.disarm()
    gevent.sleep(0.15)
    watch.stop()


def test_whole_call_is_bounded_from_its_beginning() -> None:
    watch = CallWatch(Timeouts(total_s=0.05))
    gevent.sleep(0.2)
    watch.begin(None)
    with pytest.raises(Cancelled) as raised:
        gevent.sleep(2)
    assert isinstance(raised.value.reason, CallTimeout)
    watch.stop()


def test_deadline_is_thrown_and_the_watch_goes_on(watch: CallWatch) -> None:
    for _ in range(2):
        watch.arm(CLIENT)
        with pytest.raises(Cancelled) as raised:
            gevent.sleep(2)
        assert isinstance(raised.value.reason, ClientGone)


def test_all_calls_are_ended_together(watch: CallWatch) -> None:
    cancel_all_in(0.05, lambda: Saturated("over"))
    with pytest.raises(Cancelled) as raised:
        gevent.sleep(2)
    assert isinstance(raised.value.reason, Saturated)


def test_client_that_leaves_after_pipelining_is_noticed_at_a_tick(watch: CallWatch) -> None:
    near, far = socket.socketpair()
    watch.begin(near.fileno())
    far.send(b"GET / HTTP/1.1")
    gevent.sleep(0.05)
    far.close()
    with pytest.raises(Cancelled) as raised:
        gevent.sleep(2)
    assert isinstance(raised.value.reason, ClientGone)
    near.close()


def test_watch_that_rests_keeps_an_earlier_deadline_a_client_and_the_end_of_all() -> None:
    watch = CallWatch(Timeouts(idle_s=600, client_s=0.05))
    watch.arm(IDLE)
    gevent.sleep(0.25)
    watch.arm(CLIENT)
    with pytest.raises(Cancelled) as raised:
        gevent.sleep(2)
    assert isinstance(raised.value.reason, ClientGone)
    watch.arm(IDLE)
    gevent.sleep(0.25)
    near, far = socket.socketpair()
    watch.begin(near.fileno())
    far.close()
    with pytest.raises(Cancelled) as raised:
        gevent.sleep(2)
    assert isinstance(raised.value.reason, ClientGone)
    near.close()
    watch = CallWatch(Timeouts(idle_s=600))
    watch.arm(IDLE)
    gevent.sleep(0.25)
    cancel_all_in(0.01, lambda: Saturated("over"))
    with pytest.raises(Cancelled) as raised:
        gevent.sleep(2)
    assert isinstance(raised.value.reason, Saturated)
