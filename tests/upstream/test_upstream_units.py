"""Connections, pool, slots, pacing and breaker by themselves, on real sockets where a socket is meant."""

from __future__ import annotations

import _socket
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
import urllib3

from openai_gateway.errors import Cancelled, ClientGone, InvalidRequest, Saturated, UpstreamProtocolError
from openai_gateway.limits.pacing import RETRY_FLOOR, Pause, RetryRatio
from openai_gateway.limits.slots import Slots
from openai_gateway.transport import connection as connection_module
from openai_gateway.transport import pool as pool_module
from openai_gateway.transport.connection import connect
from openai_gateway.transport.exchange import Exchange, Timeouts
from openai_gateway.transport.pool import ConnectionPool
from openai_gateway.transport.watch import CallWatch, cancel_all_in
from openai_gateway.upstream.answer import Answer
from openai_gateway.upstream.attempt import Beginning
from openai_gateway.upstream.breaker import Breaker
from openai_gateway.wire.head import Head
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.retries import Outcome
from tests.support.upstreams import (
    STREAM_HEAD,
    Conversation,
    ScriptedUpstream,
    to_answer,
    to_chunk,
    to_event,
)

TIMEOUTS = Timeouts(5.0, 5.0, 5.0)


@pytest.fixture
def watch() -> Iterator[CallWatch]:
    watch = CallWatch()
    yield watch
    watch.stop()


def _pool(upstream: ScriptedUpstream) -> ConnectionPool:
    host, _, port = upstream.url.removeprefix("http://").partition(":")
    return ConnectionPool(host, int(port), None)


def _get(pool: ConnectionPool, watch: CallWatch, body: bytes | None = b"{}") -> Any:
    return Exchange(pool, TIMEOUTS, watch).urlopen("POST", "/v1/x", body, RequestHeaders({"host": "x"}))


def test_next_address_is_tried_if_one_refuses(upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    address, port = closed.getsockname(), int(upstream.url.rpartition(":")[2])
    closed.close()
    both = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", found) for found in (address, ("127.0.0.1", port))]
    monkeypatch.setattr(connection_module, "getaddrinfo", lambda *_: both)
    connect("several.example", port, 1.0).close()
    monkeypatch.setattr(connection_module, "getaddrinfo", lambda *_: [])
    with pytest.raises(OSError, match="no address"):
        connect("none.example", port, 1.0)


def test_address_that_never_answers_gives_way_to_the_next(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    hole = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(hole.getsockname())
    port = int(upstream.url.rpartition(":")[2])
    both = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", found) for found in (hole.getsockname(), ("127.0.0.1", port))]
    monkeypatch.setattr(connection_module, "getaddrinfo", lambda *_: both)
    connect("several.example", port, 0.2).close()
    for sock in (hole, *fillers):
        sock.close()


def test_ipv6_address_needs_no_lookup() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with listener:
        connect("::1", listener.getsockname()[1], 1.0).close()


def test_idle_connection_is_reused_dropped_when_old_and_when_closed(
    upstream: ScriptedUpstream, watch: CallWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = _pool(upstream)
    for _ in range(3):
        assert _get(pool, watch).read1() == b'{"ok": true}'
    assert upstream.connections == 1
    monkeypatch.setattr(pool_module, "MAX_IDLE_S", 0.0)
    time.sleep(0.01)
    assert pool.take() is None
    monkeypatch.setattr(pool_module, "MAX_IDLE_S", 60.0)
    _get(pool, watch).read1()
    assert upstream.connections == 2
    pool.close()
    assert pool.take() is None


def test_body_of_unknown_length_ends_with_the_connection(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def answer_and_close(talk: Conversation) -> None:
        talk.read_request()
        talk.send(b"HTTP/1.0 200 OK\r\n\r\none")
        time.sleep(0.05)
        talk.send(b"two")

    upstream.script = answer_and_close
    raw = _get(_pool(upstream), watch)
    assert b"".join(iter(raw.read1, b"")) == b"onetwo"


def test_connection_with_unasked_bytes_is_not_kept(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def answer_twice(talk: Conversation) -> None:
        talk.read_request()
        talk.send(to_answer(b"{}") + to_answer(b"{}"))
        talk.wait_until_closed(1)

    upstream.script = answer_twice
    pool = _pool(upstream)
    assert _get(pool, watch).read1() == b"{}"
    assert pool.take() is None


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 50, id="informational answers without end"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", id="a switch of protocols"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: ", id="headers cut off"),
    ],
)
def test_answer_that_never_is_one_is_a_protocol_error(
    answer: bytes, upstream: ScriptedUpstream, watch: CallWatch
) -> None:
    def script(talk: Conversation) -> None:
        talk.read_request()
        talk.send(answer)

    upstream.script = script
    with pytest.raises(UpstreamProtocolError):
        _get(_pool(upstream), watch)


def test_header_that_would_break_out_of_its_line_is_refused(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    for name, value in (("x", "a\r\nevil: b"), ("x", "a\nb"), ("x\r\ny", "z")):
        with pytest.raises(InvalidRequest):
            Exchange(_pool(upstream), TIMEOUTS, watch).urlopen("GET", "/", None, RequestHeaders({name: value}))
    assert upstream.connections == 0


def test_deadline_is_thrown_and_the_watch_goes_on(watch: CallWatch) -> None:
    for _ in range(2):
        watch.arm(0.05, ClientGone)
        with pytest.raises(Cancelled):
            gevent.sleep(2)


def test_all_calls_are_ended_together(watch: CallWatch) -> None:
    cancel_all_in(0.05, lambda: Saturated("over"))
    with pytest.raises(Cancelled) as raised:
        gevent.sleep(2)
    assert isinstance(raised.value.reason, Saturated)


def test_slot_may_be_released_any_number_of_times() -> None:
    slots = Slots(1, None, 0.05)
    slot = slots.take()
    with pytest.raises(Saturated):
        slots.take()
    for _ in range(3):
        slot.release()
    assert slots.in_flight == 0
    slots.take().release()


def test_greenlet_killed_while_queued_takes_no_slot() -> None:
    slots = Slots(1, None, None)
    slot = slots.take()
    waiting = [gevent.spawn(slots.take) for _ in range(3)]
    gevent.sleep(0.01)
    assert slots.queued == 3
    gevent.killall(waiting[:2])
    slot.release()
    waiting[2].get(timeout=1).release()
    assert (slots.queued, slots.in_flight) == (0, 0)
    slots.take().release()


def test_pause_ends_early_at_its_deadline_and_when_given_up() -> None:
    pause = Pause(lambda: 0.0)
    pause.learn(Outcome(429, {"retry-after": "60"}), time.time())
    assert 59 < pause.left_s() <= 60
    started = time.monotonic()
    pause.wait(time.monotonic() + 0.1, lambda: False)
    pause.wait(None, lambda: True)
    assert time.monotonic() - started < 5
    too_long = Pause(lambda: 0.0)
    too_long.learn(Outcome(429, {"retry-after": "500"}), time.time())
    assert too_long.left_s() == 0


def test_retry_ratio_allows_a_floor_and_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = RetryRatio(0.2)
    assert sum(ratio.take() for _ in range(100)) == RETRY_FLOOR
    for _ in range(100):
        ratio.count_call()
    assert sum(ratio.take() for _ in range(100)) == 20
    now = time.monotonic()
    monkeypatch.setattr("openai_gateway.limits.pacing.monotonic", lambda: now + 31)
    assert sum(ratio.take() for _ in range(100)) == 5
    assert all(RetryRatio(None).take() for _ in range(100))


def test_breaker_lets_one_probe_through_at_a_time() -> None:
    breaker: Breaker[str] = Breaker(0.05)
    assert breaker.refusal() is None
    breaker.settle("final", is_answered=True)
    assert (breaker.is_open, breaker.blocks(), breaker.refusal()) == (True, True, "final")
    time.sleep(0.06)
    assert breaker.refusal() is None, "the probe"
    assert breaker.refusal() == "final", "one at a time"
    breaker.settle(None, is_answered=False)
    assert breaker.is_open, "a probe that got no answer changes nothing"
    assert breaker.refusal() is None
    breaker.settle(None, is_answered=True)
    assert not breaker.is_open
    never: Breaker[str] = Breaker(None)
    never.settle("final", is_answered=True)
    assert not never.is_open


class _BrokenRaw:
    """A mock transport's raw answer that breaks after its first piece."""

    def __init__(self, content_type: str) -> None:
        self.headers = {"content-type": content_type}
        self.pieces = [b"data: 1\n\n"]
        self.is_closed = False

    def read1(self) -> bytes:
        if self.pieces:
            return self.pieces.pop()
        raise urllib3.exceptions.ProtocolError("broken")

    def close(self) -> None:
        self.is_closed = True


def _answer(raw: _BrokenRaw, ended: list[str]) -> Answer:
    beginning = Beginning(Head(200, "OK", list(raw.headers.items())), b"", raw)
    return Answer(
        beginning,
        api="chat",
        watch=CallWatch(),
        idle_s=1,
        client_s=1,
        on_close=lambda answer: ended.append(answer.outcome),
    )


def test_broken_stream_of_another_transport_ends_with_an_error_event() -> None:
    raw, ended = _BrokenRaw("text/event-stream"), list[str]()
    answer = _answer(raw, ended)
    assert b"".join(answer).endswith(b'"code": "upstream_protocol_error"}}\n\n')
    for _ in range(2):
        answer.close()
    assert (ended, raw.is_closed) == (["failed"], True)


def test_broken_body_that_is_no_stream_cuts_the_client_off() -> None:
    ended = list[str]()
    answer = _answer(_BrokenRaw("application/octet-stream"), ended)
    with pytest.raises(ConnectionResetError) as raised:
        b"".join(answer)
    assert raised.value.errno == errno.ECONNRESET
    answer.close()
    assert ended == ["failed"]


class _Sink:
    """A client that takes a few bytes at a time."""

    def __init__(self) -> None:
        self.got = b""

    def to_frame(self, payload: bytes, *, is_last: bool) -> bytes:
        return payload + (b"|" if is_last else b"")

    def offer(self, payload: bytes, *, is_last: bool) -> bytes | memoryview:
        frame = self.to_frame(payload, is_last=is_last)
        self.got += frame[:7]
        return memoryview(frame)[7:]

    def to_chunk_sender(self) -> Callable[[bytes], int] | None:
        return None

    def count_sent(self, length: int) -> None:
        assert length == 0

    def send_all(self, frame: bytes | memoryview) -> None:
        gevent.sleep(0.001)
        self.got += bytes(frame)


class _WholeRaw(_BrokenRaw):
    """A mock transport's raw answer that ends properly, or with what `end` raises."""

    def __init__(self, end: BaseException | None = None) -> None:
        super().__init__("text/event-stream")
        self._end = end

    def read1(self) -> bytes:
        if self.pieces or self._end is None:
            return self.pieces.pop() if self.pieces else b""
        raise self._end


def test_another_transports_stream_goes_into_a_sink_whole() -> None:
    ended, sink = list[str](), _Sink()
    answer = _answer(_WholeRaw(), ended)
    answer.pump_into(sink)
    answer.close()
    assert (sink.got, ended) == (b"data: 1\n\n|", ["completed"])


@pytest.mark.parametrize("end", [Cancelled(ClientGone()), ClientGone()], ids=["cancelled", "gone"])
def test_stream_whose_client_left_is_cut(end: BaseException) -> None:
    ended = list[str]()
    answer = _answer(_WholeRaw(end), ended)
    with pytest.raises(ConnectionResetError):
        b"".join(answer)
    answer.close()
    assert ended == ["client_gone"]


def test_stream_that_the_server_ends_says_that_it_is_shutting_down() -> None:
    answer = _answer(_WholeRaw(gevent.GreenletExit()), [])
    assert b"shutting down" in b"".join(answer)
    answer.close()


class _GoneSink(_Sink):
    """A client that has left: by its socket's word, or by the watch's."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def offer(self, payload: bytes, *, is_last: bool) -> bytes | memoryview:
        raise self._error

    def send_all(self, frame: bytes | memoryview) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "gone"), Cancelled(ClientGone())], ids=["pipe", "watch"]
)
def test_client_that_left_cuts_the_pump(error: BaseException, upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def stream(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD + to_chunk(to_event("chat", "x")))
        talk.wait_until_closed(2)

    upstream.script = stream
    raw = _get(_pool(upstream), watch)
    ended = list[str]()
    answer = Answer(
        Beginning(raw.headers, b"", raw),
        api="chat", watch=watch, idle_s=5, client_s=5, on_close=lambda answer: ended.append(answer.outcome),
    )  # fmt: skip
    with pytest.raises(ConnectionResetError):
        answer.pump_into(_GoneSink(error))
    answer.close()
    assert ended == ["client_gone"]


def test_whole_answer_to_a_client_that_stopped_reading_is_cut() -> None:
    ended = list[str]()
    answer = Answer(
        Beginning(Head(200, "OK", []), b"{}", None),
        api="chat", watch=CallWatch(), idle_s=1, client_s=1, on_close=lambda answer: ended.append(answer.outcome),
    )  # fmt: skip
    with pytest.raises(ConnectionResetError):
        answer.pump_into(_GoneSink(Cancelled(ClientGone())))
    answer.close()
    assert ended == ["client_gone"]


def test_chunk_that_arrives_in_pieces_is_pumped_whole(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def stream(talk: Conversation) -> None:
        talk.read_request()
        for piece in (STREAM_HEAD, b"5\r", b"\nhel", b"lo\r\n0", b"\r\n\r\n"):
            talk.send(piece)
            time.sleep(0.02)

    upstream.script = stream
    raw = _get(_pool(upstream), watch)
    sink = _Sink()
    answer = Answer(
        Beginning(raw.headers, b"", raw),
        api="chat", watch=watch, idle_s=5, client_s=5, on_close=lambda answer: None,
    )  # fmt: skip
    answer.pump_into(sink)
    answer.close()
    assert sink.got == b"hello|"


def test_full_socket_is_waited_for() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    link = connection_module.Connection(_socket.socket(near.family, near.type, 0, near.detach()))
    filling = 0
    try:
        while True:
            filling += link._sock.send(b"x" * 65536)
    except BlockingIOError:
        pass
    received: list[int] = []

    def drain() -> None:
        while sum(received) < filling + 1_000_000:
            received.append(len(far.recv(65536)))

    thread = threading.Thread(target=drain)
    thread.start()
    assert link.send(b"y" * 1_000_000)
    thread.join(5)
    assert sum(received) == filling + 1_000_000
    for _ in range(2):
        link.close()
    far.close()


def test_client_that_leaves_after_pipelining_is_noticed_at_a_tick(watch: CallWatch) -> None:
    near, far = socket.socketpair()
    watch.watch_client(near.fileno())
    far.send(b"GET / HTTP/1.1")
    gevent.sleep(0.05)
    far.close()
    with pytest.raises(Cancelled) as raised:
        gevent.sleep(2)
    assert isinstance(raised.value.reason, ClientGone)
    near.close()


def test_pump_loses_nothing_to_a_slow_client(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    event = to_event("chat", "x" * 50)
    sent = threading.Event()

    def stream(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD + to_chunk(event))
        for _ in range(30):
            talk.send(to_chunk(event))
            time.sleep(0.002)
        talk.send(to_chunk(event) + b"0\r\n\r\n")
        sent.set()

    upstream.script = stream
    raw = _get(_pool(upstream), watch)
    ended = list[str]()
    answer = Answer(
        Beginning(raw.headers, b"", raw),
        api="chat", watch=watch, idle_s=None, client_s=5, on_close=lambda answer: ended.append(answer.outcome),
    )  # fmt: skip
    sink = _Sink()
    answer.pump_into(sink)
    answer.close()
    assert sent.wait(5)
    assert sink.got == event * 32 + b"|"
    assert ended == ["completed"]
