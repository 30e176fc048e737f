"""The whole tunnel between two real sockets, fuzzed: nothing is changed but creates, nothing is lost or held."""

from __future__ import annotations

import _socket
import gc
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import msgspec
import pytest
from greenlet import greenlet
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openai_gateway.transport.connection import Connection
from openai_gateway.transport.watch import Timeouts
from openai_gateway.upstream.progress import Progress
from openai_gateway.websocket.tunnel import Tunnel
from openai_gateway.websocket.turns import Turns
from openai_gateway.wire import frames
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call
from openai_gateway.wire.frames import FrameReader, make_close, to_frame
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.retries import Outcome

MOST = 1 << 20
LANES = ["", "a", "b"]
KINDS = [
    *("response.create", "response.steer", "response.created", "response.output_text.delta", "response.completed"),
    *("response.failed", "error", "codex.rate_limits", ""),
]


class TurnRelay:
    """Counts what begins and ends."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def begin_turn(self, call: Call) -> Progress:
        self.begun += 1
        return Progress(call)

    def join_turn(self, call: Call, kept: object) -> Progress:
        return self.begin_turn(call)

    def drop_turn(self, call: Call, error: object) -> None: ...

    def answer_turn(self, progress: Progress, outcome: Outcome, text: bytes) -> None:
        pass

    def end_turn(self, progress: Progress) -> None:
        self.ended += 1


def _to_call(text: bytes | None) -> Call:
    return Call(Api.RESPONSES, "WEBSOCKET", "/responses", RequestHeaders(), _to_changed(text or b""))


def _to_changed(text: bytes) -> bytes:
    return b'{"changed":' + text + b"}"


class Peers:
    """A tunnel that runs, and the ends of both its sides."""

    def __init__(self) -> None:
        ours, self.upstream = gevent.socket.socketpair()
        theirs, self.client = gevent.socket.socketpair()
        raw = _socket.socket(fileno=ours.detach())
        raw.setblocking(False)
        self.relay = TurnRelay()
        self.tunnel = Tunnel(
            Connection(raw),
            b"",
            theirs,
            Timeouts(),
            lambda tunnel: Turns(self.relay, Timeouts(), _to_call, tunnel.send, tunnel.tell),
        )
        self.running = gevent.spawn(self.tunnel.run, lambda: False)

    def end(self) -> None:
        self.client.close()
        self.upstream.close()
        self.running.join(60)
        assert self.running.successful()


def _read(sock: Any) -> bytes:
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except OSError:
        pass
    return data


def _send(sock: Any, data: bytes, sizes: list[int]) -> None:
    """Send in pieces of these sizes, letting the tunnel look at each."""
    at = 0
    for size in sizes:
        sock.sendall(data[at : at + size])
        at += size
        gevent.sleep(0)
    sock.sendall(data[at:])


def _to_frames(opcode: int, payload: bytes, cuts: list[int], control: bytes, *, is_masked: bool) -> bytes:
    """Return a message in fragments with a pong or ping between each two."""
    ends = sorted({cut % (len(payload) + 1) for cut in cuts})
    pieces = [payload[start:end] for start, end in zip([0, *ends], [*ends, len(payload)], strict=True)]
    data = b""
    for number, piece in enumerate(pieces):
        frame = bytearray(to_frame(opcode if number == 0 else frames.CONTINUATION, piece, is_masked=is_masked))
        if number < len(pieces) - 1:
            frame[0] &= 0x7F
            frame += to_frame(frames.PING if number % 2 else frames.PONG, control, is_masked=is_masked)
        data += frame
    return data


_lane = st.sampled_from(LANES)
_text = st.text(max_size=30)
_event = st.builds(
    lambda kind, lane, text: json.dumps({"type": kind, "text": text, **({"stream_id": lane} if lane else {})}).encode(),
    st.sampled_from(KINDS),
    _lane,
    _text,
)
_message = st.tuples(
    st.sampled_from([frames.TEXT, frames.TEXT, frames.TEXT, frames.BINARY]),
    st.one_of(
        _event, _event, _event, st.binary(max_size=40), st.integers(60_000, 70_000).map(lambda size: b"x" * size)
    ),
    st.lists(st.integers(0, 70_000), max_size=3),
    st.binary(max_size=20) | st.just(b"p" * 125),
)
_sizes = st.lists(st.integers(0, 500), max_size=10)


@pytest.fixture(autouse=True, scope="module")
def _only_new_things_are_looked_through() -> Iterator[None]:
    # A worker that has run other tests holds a million objects, which each example would look through.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _count_held() -> tuple[int, int]:
    gc.collect()
    alive = sum(isinstance(thing, greenlet) and not thing.dead for thing in gc.get_objects())
    return alive, len(os.listdir("/proc/self/fd"))


def _sort(
    data: bytes, *, is_masked: bool, change: Callable[[bytes], bytes | None]
) -> tuple[list[bytes], dict[str, list[bytes]]]:
    """Return the control frames as they came, and each lane's messages: what `change` makes of one, else as it came."""
    control: list[bytes] = []
    lanes: dict[str, list[bytes]] = defaultdict(list)
    raw, text = b"", b""
    for frame in FrameReader(is_masked=is_masked, most_bytes=MOST).feed(data):
        if frame.is_control:
            control.append(frame.raw)
            continue
        raw, text = raw + frame.raw, text + frame.payload
        if frame.is_final:
            lanes[_find_lane(text)].append(change(text) or raw)
            raw = text = b""
    return control, lanes


def _split(data: bytes, *, is_masked: bool) -> tuple[list[bytes], dict[str, list[bytes]]]:
    return _sort(data, is_masked=is_masked, change=lambda text: text if text.startswith(b'{"changed":') else None)


def _find_lane(text: bytes) -> str:
    try:
        event = json.loads(text)
        return str(event.get("changed", event).get("stream_id", ""))
    except (ValueError, AttributeError):
        return ""


def _to_expected(data: bytes) -> tuple[list[bytes], dict[str, list[bytes]]]:
    return _sort(data, is_masked=True, change=lambda text: _to_changed(text) if _is_create(text) else None)


def _is_create(text: bytes) -> bool:
    """Tell whether a client's message is one, or may be one for an upstream that reads more than JSON."""
    return text.startswith(b'{"type": "response.create", ') or (b"\\u" in text and not _is_json(text))


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except ValueError:
        return False
    return True


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(_message, max_size=6), said=st.lists(_message, max_size=6), sizes=_sizes, other_sizes=_sizes)
@example(asked=[(frames.TEXT, b"\\u", [], b"")], said=[], sizes=[], other_sizes=[])
def test_nothing_is_changed_but_creates_however_it_is_cut(
    asked: list[Any], said: list[Any], sizes: list[int], other_sizes: list[int]
) -> None:
    gevent.sleep(0)
    before = _count_held()
    peers = Peers()
    from_client = b"".join(_to_frames(*message, is_masked=True) for message in asked)
    from_upstream = b"".join(_to_frames(*message, is_masked=False) for message in said)
    readers = [gevent.spawn(_read, peers.upstream), gevent.spawn(_read, peers.client)]
    senders = [
        gevent.spawn(_send, peers.client, from_client, sizes),
        gevent.spawn(_send, peers.upstream, from_upstream, other_sizes),
    ]
    gevent.joinall(senders, raise_error=True)
    # Creates are sent by greenlets of their own.
    for _ in range(20):
        gevent.sleep(0.001)
    close = to_frame(frames.CLOSE, make_close(1000), is_masked=True)
    peers.client.sendall(close)
    peers.client.shutdown(gevent.socket.SHUT_WR)
    gevent.sleep(0.01)
    peers.upstream.sendall(to_frame(frames.CLOSE, make_close(1000), is_masked=False))
    peers.running.join(60)
    gevent.joinall(readers, timeout=60)
    got_upstream, got_client = readers[0].value, readers[1].value
    peers.end()
    assert got_client == from_upstream + to_frame(frames.CLOSE, make_close(1000), is_masked=False)
    assert _split(got_upstream, is_masked=True) == _to_expected(from_client + close)
    assert peers.relay.begun == peers.relay.ended
    del peers, readers, senders
    assert _count_held() <= before


def _without_close(got: bytes, from_client: bytes) -> bytes:
    """Return what a client got without the close that its junk was answered with, if that was before it left."""
    got_frames = list(FrameReader(is_masked=False, most_bytes=MOST).feed(got))
    if not got_frames or got_frames[-1].opcode != frames.CLOSE:
        return got
    reader = FrameReader(is_masked=True, most_bytes=MOST)
    list(reader.feed(from_client))
    assert reader.bad is not None
    assert frames.read_close_code(got_frames[-1].payload) == reader.bad.code
    return got.removesuffix(got_frames[-1].raw)


@settings(max_examples=100, deadline=None)
@example(
    asked=[],
    said=[(frames.TEXT, b"", [5811], b"p")],
    junk=b"\xac;",
    is_clients=True,
    sizes=[142, 200],
    who_leaves="client",
)
@given(
    asked=st.lists(_message, max_size=3),
    said=st.lists(_message, max_size=3),
    junk=st.binary(max_size=200),
    is_clients=st.booleans(),
    sizes=_sizes,
    who_leaves=st.sampled_from(["client", "upstream", "both"]),
)
def test_junk_and_leaving_at_any_moment_hold_nothing(
    asked: list[Any], said: list[Any], junk: bytes, is_clients: bool, sizes: list[int], who_leaves: str
) -> None:
    gevent.sleep(0)
    before = _count_held()
    peers = Peers()
    from_client = b"".join(_to_frames(*message, is_masked=True) for message in asked) + (junk if is_clients else b"")
    from_upstream = b"".join(_to_frames(*message, is_masked=False) for message in said) + (
        junk if not is_clients else b""
    )
    readers = [gevent.spawn(_read, peers.upstream), gevent.spawn(_read, peers.client)]
    senders = [
        gevent.spawn(_send, peers.client, from_client, sizes),
        gevent.spawn(_send, peers.upstream, from_upstream, sizes),
    ]
    gevent.sleep(0.001)
    for name in ("client", "upstream"):
        if who_leaves in (name, "both"):
            getattr(peers, name).close()
    peers.running.join(60)
    got_client = readers[1].value or b""
    peers.end()
    gevent.killall(readers + senders)
    assert peers.running.successful()
    assert peers.relay.begun == peers.relay.ended
    if is_clients and who_leaves == "client":
        # What has arrived is a part of what was said: whole frames of it, and nothing in between.
        assert from_upstream.startswith(_without_close(got_client, from_client))
    del peers, readers, senders
    assert _count_held() <= before
