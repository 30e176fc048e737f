"""Requests over pooled connections: reuse, answers of every framing, and what is no answer at all."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from openai_gateway.errors import InvalidRequest
from openai_gateway.transport import pool as pool_module
from openai_gateway.transport.answer import RawAnswer
from openai_gateway.transport.errors import BadAnswer
from openai_gateway.transport.exchange import Exchange
from openai_gateway.transport.pool import ConnectionPool
from openai_gateway.transport.watch import CallWatch, Timeouts
from openai_gateway.wire.headers import RequestHeaders
from tests.support.upstreams import Conversation, ScriptedUpstream, to_answer

TIMEOUTS = Timeouts(connect_s=5, first_byte_s=5, idle_s=5)


@pytest.fixture
def watch() -> Iterator[CallWatch]:
    watch = CallWatch(TIMEOUTS)
    yield watch
    watch.stop()


def _pool(upstream: ScriptedUpstream) -> ConnectionPool:
    host, _, port = upstream.url.removeprefix("http://").partition(":")
    return ConnectionPool(host, int(port), None)


def _get(pool: ConnectionPool, watch: CallWatch, body: bytes | None = b"{}") -> RawAnswer:
    return Exchange(pool, watch).urlopen("POST", "/v1/x", body, RequestHeaders({"host": "x"}))


def test_idle_connection_is_reused_dropped_when_old_and_when_closed(
    upstream: ScriptedUpstream, watch: CallWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = _pool(upstream)
    for _ in range(3):
        assert _get(pool, watch).read() == b'{"ok": true}'
    assert upstream.connections == 1
    monkeypatch.setattr(pool_module, "MAX_IDLE_S", 0.0)
    time.sleep(0.01)
    assert pool.take() is None
    monkeypatch.setattr(pool_module, "MAX_IDLE_S", 60.0)
    _get(pool, watch).read()
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
    assert b"".join(iter(raw.read, b"")) == b"onetwo"


def test_connection_with_unasked_bytes_is_not_kept(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def answer_twice(talk: Conversation) -> None:
        talk.read_request()
        talk.send(to_answer(b"{}") + to_answer(b"{}"))
        talk.wait_until_closed(1)

    upstream.script = answer_twice
    pool = _pool(upstream)
    assert _get(pool, watch).read() == b"{}"
    assert pool.take() is None


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 50, id="informational answers without end"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", id="a switch of protocols"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: ", id="headers cut off"),
    ],
)
def test_answer_that_never_is_one_is_a_bad_answer(answer: bytes, upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def script(talk: Conversation) -> None:
        talk.read_request()
        talk.send(answer)

    upstream.script = script
    with pytest.raises(BadAnswer):
        _get(_pool(upstream), watch)


def test_header_that_would_break_out_of_its_line_is_refused(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    for name, value in (("x", "a\r\nevil: b"), ("x", "a\nb"), ("x\r\ny", "z")):
        with pytest.raises(InvalidRequest):
            Exchange(_pool(upstream), watch).urlopen("GET", "/", None, RequestHeaders({name: value}))
    assert upstream.connections == 0
