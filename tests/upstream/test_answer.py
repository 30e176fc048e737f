"""An answer on its way to the client: iterated or pumped, whole, broken, or with nobody there to read it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from openai_gateway.errors import Cancelled, ClientGone
from openai_gateway.transport.errors import BadAnswer
from openai_gateway.transport.raw_answer import RawAnswer, make_mocked_answer
from openai_gateway.transport.watch import CallWatch, Timeouts
from openai_gateway.upstream.answer import Answer
from openai_gateway.upstream.progress import Progress
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Head
from openai_gateway.wire.headers import RequestHeaders
from tests.support.exchanges import make_pool, post
from tests.support.upstreams import (
    LAST_CHUNK,
    STREAM_HEAD,
    Conversation,
    ScriptedUpstream,
    to_chunk,
    to_event,
)

TIMEOUTS = Timeouts(connect_s=5, first_byte_s=5, idle_s=5, client_s=5)


@pytest.fixture
def watch() -> Iterator[CallWatch]:
    watch = CallWatch(TIMEOUTS)
    yield watch
    watch.stop()


class _BrokenRaw(RawAnswer):
    """An answer over no connection that breaks, or ends, with `end` after its first piece."""

    def __init__(self, content_type: str, end: BaseException | None) -> None:
        nothing: Any = None
        super().__init__(Head(200, "OK", [("content-type", content_type)]), b"", nothing, nothing, nothing)
        self.pieces = [b"data: 1\n\n"]
        self.end = end
        self.is_closed = False

    def read(self) -> bytes:
        if self.pieces:
            return self.pieces.pop()
        if self.end is not None:
            raise self.end
        return b""

    def close(self) -> None:
        self.is_closed = True


def _answer(raw: RawAnswer, ended: list[str], watch: CallWatch | None = None) -> Answer:
    progress = Progress(Call(Api.CHAT, "POST", "/chat/completions", RequestHeaders(), None))
    return Answer(raw, progress, watch or CallWatch(TIMEOUTS), lambda over: ended.append(over.outcome))


def test_broken_stream_ends_with_an_error_event() -> None:
    raw, ended = _BrokenRaw("text/event-stream", BadAnswer("broke off its answer")), list[str]()
    answer = _answer(raw, ended)
    whole = b"".join(answer)
    assert b"The upstream broke off its answer." in whole
    assert whole.endswith(b'"code": "upstream_protocol_error"}}\n\n')
    assert list(answer) == [], "what is over goes on"
    for _ in range(2):
        answer.close()
    assert (ended, raw.is_closed) == (["failed"], True)


def test_broken_body_that_is_no_stream_cuts_the_client_off() -> None:
    ended = list[str]()
    answer = _answer(_BrokenRaw("application/octet-stream", BadAnswer("broke off its answer")), ended)
    with pytest.raises(ConnectionResetError) as raised:
        b"".join(answer)
    assert raised.value.errno == errno.ECONNRESET
    answer.close()
    assert ended == ["failed"]


def test_error_of_our_own_in_a_stream_is_not_hidden() -> None:
    ended = list[str]()
    answer = _answer(_BrokenRaw("text/event-stream", ZeroDivisionError()), ended)
    with pytest.raises(ZeroDivisionError):
        b"".join(answer)
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

    def find_chunk_sender(self) -> Callable[[bytes], int] | None:
        return None

    def count_sent(self, length: int) -> None:
        assert length == 0

    def send_all(self, frame: bytes | memoryview) -> None:
        gevent.sleep(0.001)
        self.got += bytes(frame)


def test_whole_answer_goes_out_in_one_piece() -> None:
    for way in ("iterated", "pumped"):
        ended, sink = list[str](), _Sink()
        answer = _answer(make_mocked_answer(Head(200, "OK", []), b"data: 1\n\n"), ended)
        if way == "pumped":
            answer.pump_into(sink)
        else:
            assert list(answer) == [b"data: 1\n\n"]
        answer.close()
        assert (sink.got, ended) == (b"data: 1\n\n|" if way == "pumped" else b"", ["completed"])


@pytest.mark.parametrize("end", [Cancelled(ClientGone()), ClientGone()], ids=["cancelled", "gone"])
def test_stream_whose_client_left_is_cut(end: BaseException) -> None:
    ended = list[str]()
    answer = _answer(_BrokenRaw("text/event-stream", end), ended)
    with pytest.raises(ConnectionResetError):
        b"".join(answer)
    answer.close()
    assert ended == ["client_gone"]


def test_stream_that_the_server_ends_says_that_it_is_shutting_down() -> None:
    answer = _answer(_BrokenRaw("text/event-stream", gevent.GreenletExit()), [])
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
    raw = post(make_pool(upstream), watch)
    ended = list[str]()
    answer = _answer(raw, ended, watch)
    with pytest.raises(ConnectionResetError):
        answer.pump_into(_GoneSink(error))
    answer.close()
    assert ended == ["client_gone"]


def test_whole_answer_to_a_client_that_stopped_reading_is_cut() -> None:
    ended = list[str]()
    answer = _answer(make_mocked_answer(Head(200, "OK", []), b"{}"), ended)
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
    raw = post(make_pool(upstream), watch)
    sink = _Sink()
    answer = _answer(raw, [], watch)
    answer.pump_into(sink)
    answer.close()
    assert sink.got == b"hello|"


def test_stream_under_way_holds_of_its_head_only_what_the_gateway_reads(
    upstream: ScriptedUpstream, watch: CallWatch
) -> None:
    def stream(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD + to_chunk(to_event("chat", "x")) + LAST_CHUNK)

    upstream.script = stream
    raw = post(make_pool(upstream), watch)
    content_type = raw.head.known["content-type"]
    answer = _answer(raw, [], watch)
    answer.added_headers = [("x-gateway-attempts", "1")]
    assert answer.head.passing, "the client gets none"
    answer.pump_into(_Sink())
    answer.close()
    assert [*answer.head.headers, *answer.head.passing, *raw.head.headers, *answer.added_headers] == []
    assert (answer.head.status, answer.head.known["content-type"]) == (200, content_type)


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
    raw = post(make_pool(upstream), watch)
    ended = list[str]()
    answer = _answer(raw, ended, watch)
    sink = _Sink()
    answer.pump_into(sink)
    answer.close()
    assert sent.wait(60)
    assert sink.got == event * 32 + b"|"
    assert ended == ["completed"]
