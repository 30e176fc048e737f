"""WebSocket frames, held against wsproto: the same verdict and the same messages, however the bytes are cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping, Pong, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from openai_gateway.wire import frames
from openai_gateway.wire.frames import Frame, FrameReader, read_texts, to_frame

MOST = 1 << 24


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


def _ours(pieces: list[bytes], *, is_masked: bool) -> tuple[list[Any], bool]:
    reader, found = FrameReader(is_masked=is_masked, most_bytes=MOST), []
    text = b""
    for piece in pieces:
        for frame in reader.feed(piece):
            if frame.is_control:
                found.append((frame.opcode, frame.payload))
                continue
            text += frame.payload
            if frame.is_final:
                found.append(("message", text))
                text = b""
    return found, reader.bad is None


def _theirs(pieces: list[bytes], *, is_masked: bool) -> tuple[list[Any], bool]:
    peer = Connection(ConnectionType.SERVER if is_masked else ConnectionType.CLIENT)
    found: list[Any] = []
    text = b""
    try:
        for piece in pieces:
            if piece:
                peer.receive_data(piece)
            for event in peer.events():
                if isinstance(event, Message):
                    text += event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
                    if event.message_finished:
                        found.append(("message", text))
                        text = b""
                elif isinstance(event, Ping):
                    found.append((frames.PING, bytes(event.payload)))
                elif isinstance(event, Pong):
                    found.append((frames.PONG, bytes(event.payload)))
                elif isinstance(event, CloseConnection):
                    found.append((frames.CLOSE, event.code))
                    return found, True
    except (RemoteProtocolError, LocalProtocolError):
        return found, False
    return found, True


_piece = st.one_of(
    st.tuples(st.just(frames.TEXT), st.text(max_size=200).map(str.encode)),
    st.tuples(st.just(frames.BINARY), st.binary(max_size=70_000)),
    st.tuples(st.sampled_from([frames.PING, frames.PONG]), st.binary(max_size=125)),
)


@settings(max_examples=100, deadline=None)
@given(sent=st.lists(_piece, max_size=6), sizes=st.lists(st.integers(0, 300), max_size=8), is_masked=st.booleans())
def test_messages_are_those_that_wsproto_reads(sent: list[Any], sizes: list[int], is_masked: bool) -> None:
    data = b"".join(to_frame(opcode, payload, is_masked=is_masked) for opcode, payload in sent)
    pieces = _cut(data, sizes)
    assert _ours(pieces, is_masked=is_masked) == _theirs(pieces, is_masked=is_masked)
    reader = FrameReader(is_masked=is_masked, most_bytes=MOST)
    raw = [frame.raw for piece in pieces for frame in reader.feed(piece)]
    assert b"".join(raw) == data
    assert reader.is_between_messages


@settings(max_examples=200, deadline=None)
@given(
    sent=st.lists(st.tuples(st.booleans(), st.integers(0, 700) | st.integers(65_530, 65_540)), max_size=4),
    cut=st.integers(0, 10),
    junk=st.binary(max_size=4),
)
def test_texts_are_read_at_once_if_they_are_all_that_has_come(
    sent: list[tuple[bool, int]], cut: int, junk: bytes
) -> None:
    whole = [to_frame(frames.TEXT if is_text else frames.PING, b"x" * length, is_masked=False)
             for is_text, length in sent]  # fmt: skip
    data = b"".join(whole) + junk
    data = data[: len(data) - cut]
    texts = read_texts(data)
    reader = FrameReader(is_masked=False, most_bytes=MOST)
    found = reader.feed(data)
    if texts is not None:
        assert [bytes(text) for text in texts] == [frame.payload for frame in found]
        assert {frame.opcode for frame in found} <= {frames.TEXT}
        assert reader.is_empty
    elif reader.is_empty and not junk and not cut:
        assert any(not is_text or not 2 <= length <= 65535 for is_text, length in sent)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(min_size=1, max_size=60), is_masked=st.booleans())
def test_what_wsproto_refuses_is_refused(data: bytes, is_masked: bool) -> None:
    found, is_right = _ours([data], is_masked=is_masked)
    theirs, theirs_is_right = _theirs([data], is_masked=is_masked)
    if not theirs_is_right and is_right:
        # It judges a frame by its head alone, or the text of one that is not whole yet.
        assert not found or found[-1][0] == "message"
    if theirs_is_right and theirs and theirs[-1][0] != frames.CLOSE:
        assert is_right


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xc1\x00", 1002),
        (b"\x83\x00", 1002),
        (b"\x81\x80", 1002),
        (b"\x09\x00", 1002),
        (b"\x89\x7e\x00\x80", 1002),
        (b"\x80\x00", 1002),
        (b"\x01\x00\x01\x00", 1002),
        (b"\x81\x7e\x00\x05hello", 1002),
        (b"\x88\x01x", 1002),
        (b"\x88\x02\x03\xed", 1002),
        (b"\x88\x03\x03\xe8\xff", 1007),
        (b"\x82\x7f\x00\x00\x00\x00\x10\x00\x00\x00", 1009),
    ],
    ids=["reserved bit", "opcode", "masked", "split ping", "long ping", "goes on", "within", "long length",
         "half a code", "1005", "reason", "too big"],
)  # fmt: skip
def test_broken_frame_is_refused_with_its_code(data: bytes, code: int) -> None:
    reader = FrameReader(is_masked=False, most_bytes=1 << 20)
    reader.feed(data)
    assert reader.bad is not None
    assert reader.bad.code == code
    assert not reader.is_empty


def test_frames_before_a_broken_one_are_good_and_none_after_it() -> None:
    reader = FrameReader(is_masked=False, most_bytes=100)
    assert [frame.payload for frame in reader.feed(b"\x81\x02{}\xc1\x00\x81\x02[]")] == [b"{}"]
    assert reader.bad is not None
    assert reader.feed(b"\x81\x02[]") == []


def test_message_in_fragments_with_a_ping_between() -> None:
    reader = FrameReader(is_masked=False, most_bytes=100)
    got = reader.feed(b"\x01\x02he")
    assert got == [Frame(frames.TEXT, False, b"he", b"\x01\x02he")]
    assert not reader.is_between_messages
    assert [frame.opcode for frame in reader.feed(b"\x89\x00\x80\x01y")] == [frames.PING, frames.CONTINUATION]
    assert reader.is_between_messages


def test_message_of_empty_frames_is_too_large_at_some_time() -> None:
    reader = FrameReader(is_masked=False, most_bytes=1000)
    reader.feed(b"\x01\x00")
    reader.feed(b"\x00\x00" * 1000)
    assert reader.bad is not None
    assert reader.bad.code == frames.TOO_BIG


def test_handshake_is_answered_as_in_the_rfc() -> None:
    assert frames.compute_accept("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(("code", "payload"), [(1000, b"\x03\xe8"), (1006, b""), (1012, b"\x03\xf4")])
def test_close_code_goes_over_the_wire_unless_it_stands_for_none(code: int, payload: bytes) -> None:
    assert frames.make_close(code) == payload
    assert frames.read_close_code(payload) == (code if payload else 1005)
