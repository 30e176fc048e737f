"""Requests over pooled connections: reuse, answers of every framing, and what is no answer at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import gevent
import pytest

from openai_gateway.errors import InvalidRequest
from openai_gateway.transport import pool as pool_module
from openai_gateway.transport.errors import BadAnswer, NotHttp, Unreachable
from openai_gateway.transport.exchange import Exchange
from openai_gateway.transport.watch import CallWatch, Timeouts
from openai_gateway.wire.headers import RequestHeaders
from tests.support.exchanges import make_pool, make_request, post
from tests.support.upstreams import Conversation, ScriptedUpstream, to_answer, to_chunk

TIMEOUTS = Timeouts(connect_s=5, first_byte_s=5, idle_s=5)


@pytest.fixture
def watch() -> Iterator[CallWatch]:
    watch = CallWatch(TIMEOUTS)
    yield watch
    watch.stop()


def test_idle_connection_is_reused_dropped_when_old_and_when_closed(
    upstream: ScriptedUpstream, watch: CallWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(upstream)
    for _ in range(3):
        assert post(pool, watch).read() == b'{"ok": true}'
    assert upstream.connections == 1
    monkeypatch.setattr(pool_module, "MAX_IDLE_S", 0.0)
    time.sleep(0.01)
    assert pool.take() is None
    monkeypatch.setattr(pool_module, "MAX_IDLE_S", 60.0)
    post(pool, watch).read()
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
    raw = post(make_pool(upstream), watch)
    assert b"".join(iter(raw.read, b"")) == b"onetwo"


def test_connection_with_unasked_bytes_is_not_kept(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def answer_twice(talk: Conversation) -> None:
        talk.read_request()
        talk.send(to_answer(b"{}") + to_answer(b"{}"))
        talk.wait_until_closed(1)

    upstream.script = answer_twice
    pool = make_pool(upstream)
    assert post(pool, watch).read() == b"{}"
    assert pool.take() is None


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 45_000, id="informational answers without end"),
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
        post(make_pool(upstream), watch)


def test_header_that_would_break_out_of_its_line_is_refused(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    for name, value in (("x", "a\r\nevil: b"), ("x", "a\nb"), ("x\r\ny", "z")):
        with pytest.raises(InvalidRequest):
            Exchange(make_pool(upstream), make_request(watch)).urlopen("GET", "/", None, RequestHeaders({name: value}))
    assert upstream.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}", id="bare line feeds"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 2\n", id="a bare line feed later"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another protocol"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x16", id="a TLS alert"),
        pytest.param(b"HTTP/2.0 200\r\n", id="another version"),
    ],
)
def test_what_is_not_http_is_found_out_at_once(answer: bytes, upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def script(talk: Conversation) -> None:
        talk.read_request()
        talk.send(answer)
        talk.wait_until_closed()

    upstream.script = script
    with gevent.Timeout(4, AssertionError("waited for more")), pytest.raises(NotHttp):
        post(make_pool(upstream), watch)


def test_head_in_single_bytes_and_after_signs_of_life_is_read(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def script(talk: Conversation) -> None:
        talk.read_request()
        talk.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)
        for byte in to_answer(b"{}", headers="x: 1\r\n"):
            talk.send(bytes([byte]))
            time.sleep(0.0005)

    upstream.script = script
    assert b"".join(iter(post(make_pool(upstream), watch).read, b"")) == b"{}"


def test_request_is_sent_no_more_often_than_it_may_be(upstream: ScriptedUpstream, watch: CallWatch) -> None:
    def answer_once(talk: Conversation) -> None:
        talk.read_request()
        talk.send(to_answer(b"{}"))
        talk.read_request()

    upstream.script = answer_once
    pool, request = make_pool(upstream), make_request(watch)
    headers = RequestHeaders({"host": "x"})
    for most_sends, expected in ((2, 2), (1, 1)):
        post(pool, watch).read()
        request.most_sends, request.sends = most_sends, 0
        try:
            Exchange(pool, request).urlopen("POST", "/v1/x", b"{}", headers).close()
        except Unreachable:
            assert most_sends == 1
        assert request.sends == expected


@pytest.mark.parametrize("is_apart", [False, True], ids=["with the head", "after it"])
def test_blanks_before_an_answer_are_not_kept_back(
    is_apart: bool, upstream: ScriptedUpstream, watch: CallWatch
) -> None:
    may_end = threading.Event()

    def script(talk: Conversation) -> None:
        talk.read_request()
        talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        if is_apart:
            time.sleep(0.05)
        talk.send(to_chunk(b"\n"))
        may_end.wait(120)
        talk.send(to_chunk(b"{}") + b"0\r\n\r\n")

    upstream.script = script
    raw = post(make_pool(upstream), watch)
    raw.read_ahead(1024, watch)
    assert (raw.body, raw.is_whole) == (b"\n", False)
    may_end.set()
    assert b"".join(iter(raw.read, b"")) == b"{}"
