"""What a pump passes on as it is, and what the tail keeps of it; real sockets are in the tests of whole gateways."""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest

from openai_gateway.errors import CallTimeout
from openai_gateway.transport.errors import BadAnswer
from openai_gateway.transport.pool import ConnectionPool
from openai_gateway.transport.raw_answer import RawAnswer
from openai_gateway.transport.watch import CallWatch, Timeouts
from openai_gateway.upstream.answer import Answer
from openai_gateway.upstream.progress import Progress
from openai_gateway.upstream.pump import Pump
from openai_gateway.wire import body
from openai_gateway.wire.api import Api
from openai_gateway.wire.body import ChunkedDecoder
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import parse_head
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.tail import SMALL_BYTES, RecordingTail, Tail

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
END = b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def no_known_sizes() -> None:
    """Let no other test's chunks be known."""
    body._KNOWN_SIZES.clear()


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class _Connection:
    """Gives its pieces one at a time, an OSError as one."""

    def __init__(self, pieces: list[bytes | OSError]) -> None:
        self.used = False
        self._pieces = pieces
        self._callback: Callable[[], None] | None = None

    def receive(self) -> bytes:
        piece = self._pieces.pop(0)
        if isinstance(piece, OSError):
            raise piece
        return piece

    def find_receiver(self) -> Callable[[int], bytes]:
        return lambda most_bytes: self.receive()

    def on_readable(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        gevent.get_hub().loop.run_callback(self._run)

    def _run(self) -> None:
        while self._callback is not None and self._pieces:
            self._callback()

    def off_readable(self) -> None:
        self._callback = None

    def close(self) -> None:
        pass


class _Client:
    """A client whose body goes in chunks; takes at most `at_once` bytes a send, none at every third if `is_slow`."""

    def __init__(self, at_once: int, *, is_slow: bool) -> None:
        self.got = b""
        self.passed = 0
        self._at_once = at_once
        self._is_slow = is_slow
        self._sends = 0

    def to_frame(self, payload: bytes, *, is_last: bool) -> bytes:
        return (_chunk(payload) if payload else b"") + (END if is_last else b"")

    def offer(self, payload: bytes, *, is_last: bool) -> bytes | memoryview:
        self.got += self.to_frame(payload, is_last=is_last)
        return b""

    def find_chunk_sender(self) -> Callable[[bytes], int] | None:
        return self._send

    def _send(self, chunks: bytes) -> int:
        self._sends += 1
        if self._is_slow and self._sends % 3 == 0:
            raise BlockingIOError
        self.got += chunks[: self._at_once]
        return min(len(chunks), self._at_once)

    def count_sent(self, length: int) -> None:
        self.passed += length

    def send_all(self, frame: bytes | memoryview) -> None:
        self.got += bytes(frame)


def _pump(pieces: list[bytes | OSError], client: _Client, tail: Tail, received: bytes = b"") -> None:
    connection: Any = _Connection(pieces)
    raw = RawAnswer(parse_head(HEAD), received, connection, ConnectionPool("upstream", 80, None), ChunkedDecoder())
    watch = CallWatch(Timeouts(idle_s=5, client_s=5))
    try:
        Pump(raw, client, tail, watch).run()
    finally:
        watch.stop()


@pytest.mark.parametrize(("at_once", "is_slow"), [(1 << 20, False), (7, False), (1 << 20, True), (1, True)])
def test_whole_chunks_pass_as_they_are(at_once: int, is_slow: bool) -> None:
    events = [b"event %02d\n\n" % number for number in range(12)]
    pieces: list[bytes | OSError] = [_chunk(event) for event in events]
    # A new size, two chunks at once, one torn, one with an extension, large ones.
    pieces += [_chunk(b"new"), _chunk(b"new") * 2, b"3\r\nne", b"w\r\n", b"3;x=y\r\nnew\r\n"]
    pieces += [*[_chunk(b"l" * (SMALL_BYTES + 1))] * 2, _chunk(b"new") + END]
    whole = b"".join(events) + b"new" * 5 + b"l" * 2 * (SMALL_BYTES + 1) + b"new"
    client, tail = _Client(at_once, is_slow=is_slow), Tail(monotonic)
    _pump(pieces, client, tail)
    decoder = ChunkedDecoder()
    assert decoder.feed(client.got) == whole
    assert (decoder.done, decoder.surplus) == (True, b"")
    # All but the first of a size, what was torn or odd, and the last.
    assert client.passed == len(b"".join(events[1:])) + len(b"new" * 2) + SMALL_BYTES + 1
    assert tail.length == len(whole)
    assert tail.end() == whole[len(b"".join(events[:8])) :]


def _check_passed(events: list[bytes], client: _Client, tail: Tail, most_kept: int) -> None:
    """Check that all passed whole, most of it as it came, and that the last events were kept."""
    decoder, whole = ChunkedDecoder(), b"".join(events)
    assert decoder.feed(client.got) == whole
    assert (decoder.done, decoder.surplus) == (True, b"")
    assert client.passed > len(whole) / 2
    assert tail.length == len(whole)
    assert whole.endswith(tail.end())
    assert b"".join(events[-4:]) in tail.end()
    assert len(tail.end()) < most_kept


@pytest.mark.parametrize("at_once", [1 << 20, 999])
@pytest.mark.parametrize("most", [1300, 4096, 16_384, 65_536])
def test_stream_that_comes_flat_out_passes_whole_though_its_pieces_are_torn(most: int, at_once: int) -> None:
    events = [b'data: {"n": %d, "text": "%b"}\n\n' % (number, b"w" * (number % 40)) for number in range(1500)]
    wire = b"".join(map(_chunk, events)) + END
    pieces: list[bytes | OSError] = [wire[at : at + most] for at in range(0, len(wire), most)]
    client, tail = _Client(at_once, is_slow=False), Tail(monotonic)
    # Sizes are known once they were seen.
    ChunkedDecoder().feed(wire)
    _pump(pieces, client, tail)
    _check_passed(events, client, tail, most_kept=64 * 1024)


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("chunk_bytes", [3991, 40])
@pytest.mark.parametrize("first", [1 << 20, 40_000, 20_000, 900])
def test_what_comes_with_the_head_passes_whole_and_the_last_events_are_kept(
    first: int, chunk_bytes: int, *, is_slow: bool
) -> None:
    """Whatever the borders of chunks are: those of events, or not, as behind nginx."""
    events = [b'data: {"n": %04d, "text": "%b"}\n\n' % (number, b"w" * (number % 40)) for number in range(1500)]
    whole = b"".join(events)
    wire = b"".join(_chunk(whole[at : at + chunk_bytes]) for at in range(0, len(whole), chunk_bytes)) + END
    client, tail = _Client(7_000, is_slow=is_slow), Tail(monotonic)
    ChunkedDecoder().feed(wire)
    _pump([wire[at : at + 30_000] for at in range(first, len(wire), 30_000)], client, tail, wire[:first])
    _check_passed(events, client, tail, most_kept=16 * 1024)


def test_bytes_of_a_chunk_keep_its_borders() -> None:
    client = _Client(1 << 20, is_slow=False)
    twice = b"00002\r\ncd\r\n"
    _pump([twice, twice + twice, END], client, Tail(monotonic))
    assert client.got == _chunk(b"cd") + twice + twice + END


def test_capture_keeps_a_stream_that_comes_in_chunks() -> None:
    client, tail = _Client(1 << 20, is_slow=False), RecordingTail(1000, Tail(monotonic))
    _pump([_chunk(b"ab"), _chunk(b"cd"), _chunk(b"ef") + END], client, tail)
    assert (tail.kept(), tail.length, tail.end(), client.passed) == (b"abcdef", 6, b"abcdef", 0)


def test_connection_that_breaks_is_the_upstreams_fault_and_what_went_out_is_counted() -> None:
    client, tail = _Client(1 << 20, is_slow=False), Tail(monotonic)
    with pytest.raises(BadAnswer):
        _pump([_chunk(b"ab"), _chunk(b"cd"), ConnectionResetError(104, "reset")], client, tail)
    assert (client.passed, tail.length, tail.end()) == (2, 4, b"abcd")


class _SlowConnection(_Connection):
    """Gives a piece only once `client` has got so many comment lines."""

    def __init__(self, pieces: list[bytes | OSError], client: _Client, comments: int) -> None:
        super().__init__(pieces)
        self._client = client
        self._comments = comments

    def _run(self) -> None:
        if self._callback is not None and self._client.got.count(b": waiting") >= self._comments:
            self._comments += 2
            self._callback()
        if self._callback is not None:
            gevent.get_hub().loop.timer(0.01).start(self._run)


@pytest.mark.parametrize("encoding", ["", "\r\nContent-Encoding: gzip"])
def test_silent_stream_gets_comments_between_its_events(encoding: str) -> None:
    pieces: list[bytes | OSError] = [_chunk(b"data: 1\n\n"), _chunk(b"data: 2\n\n"), END]
    client, tail = _Client(1 << 20, is_slow=False), Tail(monotonic)
    connection: Any = _SlowConnection(pieces, client, 0 if encoding else 2)
    if encoding:
        connection = _Connection(pieces)
    head = parse_head(HEAD + b"\r\nContent-Type: text/event-stream" + encoding.encode())
    raw = RawAnswer(head, b"", connection, ConnectionPool("upstream", 80, None), ChunkedDecoder())
    watch = CallWatch(Timeouts(idle_s=5, client_s=5, heartbeat_s=0.04))
    Pump(raw, client, tail, watch).run()
    watch.stop()
    whole = ChunkedDecoder().feed(client.got)
    assert re.sub(rb"(: waiting for the upstream\n)", b"", whole) == b"data: 1\n\ndata: 2\n\n"
    assert whole.startswith(b"data: 1" if encoding else b": waiting for the upstream\n" * 2)
    assert (whole.count(b": waiting") >= 4) is (encoding == "")
    assert b"data: 1\n\n: waiting" in whole or encoding
    assert tail.end() == b"data: 1\n\ndata: 2\n\n"


def test_no_comment_is_put_within_an_event() -> None:
    client = _Client(1 << 20, is_slow=False)
    connection: Any = _Connection([_chunk(b"data: half"), _chunk(b" of it\n\n"), END])
    head = parse_head(HEAD + b"\r\nContent-Type: text/event-stream")
    raw = RawAnswer(head, b"", connection, ConnectionPool("upstream", 80, None), ChunkedDecoder())
    tail = Tail(monotonic)
    tail.add(b"data: half")
    watch = CallWatch(Timeouts(heartbeat_s=1))
    pump = Pump(raw, client, tail, watch)
    pump._beat()
    watch.stop()
    assert client.got == b""


def test_stream_that_outlives_its_client_is_read_to_its_end() -> None:
    for outlives, seen in ((True, b"data: 1\n\ndata: 2\n\n"), (False, b"")):
        pieces: list[bytes | OSError] = [_chunk(b"data: 1\n\n"), _chunk(b"data: 2\n\n"), END]
        connection: Any = _Connection(pieces)
        head = parse_head(HEAD + b"\r\nContent-Type: text/event-stream")
        raw = RawAnswer(head, b"", connection, ConnectionPool("upstream", 80, None), ChunkedDecoder())
        call = Call(Api.CHAT, "POST", "/chat/completions", RequestHeaders(), None, outlives_client=outlives)
        ended, tail, watch = list[str](), Tail(monotonic), CallWatch(Timeouts(idle_s=5))
        progress = Progress(call, tail=tail)
        answer = Answer(raw, progress, watch, lambda over, ended=ended: ended.append(over.outcome))
        with pytest.raises(ConnectionResetError):
            answer.pump_into(_GoneClient(1 << 20, is_slow=False))
        answer.close()
        assert (ended, tail.end()) == (["client_gone"], seen)


class _GoneClient(_Client):
    """Has left."""

    def offer(self, payload: bytes, *, is_last: bool) -> bytes | memoryview:
        raise BrokenPipeError(32, "gone")


class _LeavingClient(_Client):
    """Leaves as the first chunks are sent."""

    def _send(self, chunks: bytes) -> int:
        raise BrokenPipeError(32, "gone")


def test_what_comes_with_the_head_is_counted_though_its_client_has_left() -> None:
    wire = b"".join(_chunk(b"data: %04d\n\n" % number) for number in range(2000))
    whole = ChunkedDecoder().feed(wire)
    client, tail = _LeavingClient(1, is_slow=False), Tail(monotonic)
    with pytest.raises(BrokenPipeError):
        _pump([], client, tail, wire)
    assert (tail.length, client.passed) == (len(whole), len(whole))


class _StuckClient(_Client):
    """Takes the beginning of a chunk and then nothing more."""

    def send_all(self, frame: bytes | memoryview) -> None:
        gevent.sleep(5)


def test_torn_chunk_is_followed_by_nothing() -> None:
    pieces: list[bytes | OSError] = [_chunk(b"ab"), _chunk(b"cd"), _chunk(b"ef")]
    connection: Any = _Connection(pieces)
    head = parse_head(HEAD + b"\r\nContent-Type: text/event-stream")
    raw = RawAnswer(head, b"", connection, ConnectionPool("upstream", 80, None), ChunkedDecoder())
    ended, client = list[Any](), _StuckClient(3, is_slow=False)
    watch = CallWatch(Timeouts(idle_s=5, client_s=5, total_s=0.2))
    watch.begin(None)
    progress = Progress(Call(Api.CHAT, "POST", "/chat/completions", RequestHeaders(), None))
    answer = Answer(raw, progress, watch, lambda over: ended.append(over.error))
    with pytest.raises(ConnectionResetError):
        answer.pump_into(client)
    answer.close()
    assert client.got == _chunk(b"ab") + b"2\r\n"
    assert [type(error) for error in ended] == [CallTimeout]


def test_tail_keeps_the_last_four_events_of_either_kind() -> None:
    tail = Tail(monotonic)
    for number in range(9):
        if number % 2:
            tail.add(b"p%d\n" % number)
        else:
            tail.add_chunks(_chunk(b"c%d\n" % number))
    assert tail.end() == b"p5\nc6\np7\nc8\n"
    tail.add(b"x" * (SMALL_BYTES + 1))
    assert tail.end() == b"p5\nc6\np7\nc8\n" + b"x" * (SMALL_BYTES + 1)
