"""Answers as bytes: good heads are read, bad ones refused, chunked bodies come out whole however they are cut."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_gateway.wire import body as body_module
from openai_gateway.wire import head as head_module
from openai_gateway.wire.body import (
    LAST_BYTES,
    ChunkedDecoder,
    LengthDecoder,
    UntilCloseDecoder,
    decode_content,
    make_decoder,
)
from openai_gateway.wire.head import Head, MalformedAnswer, parse_head


def _head(*lines: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([status, *lines]).encode("latin-1")


def test_headers_keep_order_spelling_and_repetitions() -> None:
    head = parse_head(_head("B: 2", "a:1", "B:\t 3 ", "empty:", "x: caf\u00e9"))
    assert head.headers == [("B", "2"), ("a", "1"), ("B", "3"), ("empty", ""), ("x", "caf\u00e9")]
    assert (head.status, head.reason, head.keep_alive) == (200, "OK", True)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/2 200 OK", id="another version"),
        pytest.param(b"HTTP/1.1 20 OK", id="a short status"),
        pytest.param(b"HTTP/1.1 099 No", id="a status below 100"),
        pytest.param(b"HTTP/1.1  200 OK", id="two spaces"),
        pytest.param(b"HTTP/1.1 200 OK\rTransfer-Encoding: chunked", id="a bare carriage return in the status line"),
        pytest.param(b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked", id="a bare line feed in the status line"),
        pytest.param(_head("no colon"), id="no colon"),
        pytest.param(_head(": value"), id="no name"),
        pytest.param(_head("name : value"), id="space before the colon"),
        pytest.param(_head("a: b", " folded"), id="a folded line"),
        pytest.param(_head("a: b\nc: d"), id="a bare line feed"),
        pytest.param(_head("a: b\rc: d"), id="a bare carriage return"),
        pytest.param(_head("a: \x00"), id="a NUL"),
        pytest.param(_head("content-length: 1", "Transfer-Encoding: gzip"), id="a coding that isn't known"),
        pytest.param(_head("content-length: 1", "content-length: 2"), id="two lengths"),
        pytest.param(_head("content-length: -1"), id="a negative length"),
        pytest.param(_head("content-length: 1_0"), id="a length with an underscore"),
        pytest.param(_head("content-length: \u00b2"), id="a length that is no ASCII digit"),
        pytest.param(_head("content-length: " + "9" * 30), id="a length without bound"),
        pytest.param(_head("transfer-encoding: gzip, chunked"), id="another transfer encoding"),
        pytest.param(_head("transfer-encoding: chunked", "transfer-encoding: chunked"), id="chunked twice"),
        pytest.param(_head("transfer-encoding: chunked", status="HTTP/1.0 200 OK"), id="chunks in HTTP/1.0"),
    ],
)
def test_malformed_head_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        parse_head(raw)


@pytest.mark.parametrize(
    ("raw", "keep_alive"),
    [
        (_head(), True),
        (_head("Connection: close"), False),
        (_head("connection: Keep-Alive"), True),
        (_head("connection: x-other"), True),
        (_head(status="HTTP/1.0 200 OK"), False),
        (_head("connection: keep-alive", status="HTTP/1.0 200 OK"), True),
    ],
)
def test_connection_is_kept_as_the_version_and_header_say(raw: bytes, keep_alive: bool) -> None:
    assert parse_head(raw).keep_alive is keep_alive


def test_body_framing_follows_the_head() -> None:
    assert isinstance(
        make_decoder(parse_head(_head("transfer-encoding: chunked")), is_head_request=False), ChunkedDecoder
    )
    assert isinstance(make_decoder(parse_head(_head("content-length: 5")), is_head_request=False), LengthDecoder)
    assert isinstance(make_decoder(parse_head(_head()), is_head_request=False), UntilCloseDecoder)
    same = make_decoder(parse_head(_head("content-length: 5", "content-length: 5")), is_head_request=False)
    assert not same.done
    for raw in (_head(status="HTTP/1.1 204 No"), _head("content-length: 5", status="HTTP/1.1 304 Same")):
        assert make_decoder(parse_head(raw), is_head_request=False).done
    assert make_decoder(parse_head(_head("content-length: 5")), is_head_request=True).done


CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(CHUNKS, st.lists(st.integers(1, 30), max_size=40), st.booleans(), st.binary(max_size=5))
def test_chunked_body_comes_out_whole_however_it_is_cut(
    chunks: list[bytes], cuts: list[int], has_extras: bool, surplus: bytes
) -> None:
    extension, trailers = (b' ;a="b"', b"x-t: 1\r\ny: 2\r\n") if has_extras else (b"", b"")
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    framed += b"0" + extension + b"\r\n" + trailers + b"\r\n"
    decoder, out, at = ChunkedDecoder(), b"", 0
    for size in [*cuts, len(framed) + len(surplus)]:
        out += decoder.feed((framed + surplus)[at : at + size])
        at += size
        if decoder.done:
            break
    assert decoder.done
    assert out == b"".join(chunks)
    assert (framed + surplus)[:at].endswith(decoder.surplus)


@given(st.binary(), st.integers(1, 7))
def test_any_bytes_are_decoded_or_malformed(raw: bytes, size: int) -> None:
    decoder = ChunkedDecoder()
    try:
        for at in range(0, len(raw), size):
            decoder.feed(raw[at : at + size])
    except MalformedAnswer:
        pass


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"z\r\n", id="no number"),
        pytest.param(b"\r\n", id="an empty size"),
        pytest.param(b"-1\r\n", id="a negative size"),
        pytest.param(b"0x5\r\n", id="a prefix"),
        pytest.param(b"f" * 16 + b"\r\n", id="a size without bound"),
        pytest.param(b"1" * 5000, id="a size line without end"),
        pytest.param(b"3\r\nabcdef", id="a chunk longer than its size"),
        pytest.param(b"0\r\n" + b"x" * 5000, id="a trailer without end"),
    ],
)
def test_malformed_chunks_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        ChunkedDecoder().feed(raw)


@pytest.mark.parametrize(
    ("piece", "payload", "rest"),
    [
        pytest.param(b"2\r\ncd\r\n", b"cd", b"2\r\nef\r\n0\r\n\r\n", id="whole"),
        pytest.param(b"2\r\ncd\r", b"cd", b"\n2\r\nef\r\n0\r\n\r\n", id="torn after its bytes"),
        pytest.param(b"2\r\nc", b"c", b"d\r\n2\r\nef\r\n0\r\n\r\n", id="torn within them"),
        pytest.param(b"2\r\n\r\n\r\n", b"\r\n", b"2\r\nef\r\n0\r\n\r\n", id="of line ends"),
        pytest.param(b"2\r\ncd\r\n2\r\nef\r\n", b"cdef", b"0\r\n\r\n", id="two"),
    ],
)
def test_chunk_of_a_size_seen_before(piece: bytes, payload: bytes, rest: bytes) -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"2\r\nab\r\n") == b"ab"
    assert decoder.feed(piece) == payload
    decoder.feed(rest)
    assert (decoder.done, decoder.surplus) == (True, b"")


@pytest.mark.parametrize("piece", [b"2\r\ncdX\n", b"2\r\ncde\r\n", b"2 x\r\ncd\r\n"])
def test_malformed_chunk_of_a_size_seen_before_is_refused(piece: bytes) -> None:
    decoder = ChunkedDecoder()
    decoder.feed(b"2\r\nab\r\n")
    with pytest.raises(MalformedAnswer):
        decoder.feed(piece)


@given(st.lists(st.one_of(st.binary(max_size=6), st.sampled_from([b"2", b"\r\n", b"ab", b"2\r\nab\r\n"])), max_size=8))
def test_whole_chunks_are_those_that_the_decoder_takes_apart_without_a_rest(parts: list[bytes]) -> None:
    decoder, piece = ChunkedDecoder(), b"".join(parts)
    decoder.feed(b"2\r\nab\r\n")
    length = decoder.whole_length(piece)
    if length:
        assert len(decoder.feed(piece)) == length
        assert (decoder.done, decoder.feed(b"0\r\n\r\n"), decoder.done, decoder.surplus) == (False, b"", True, b"")


@pytest.mark.parametrize(
    ("before", "piece", "length"),
    [
        (b"", b"2\r\ncd\r\n", 2),
        (b"", b"2\r\ncd\r\n2\r\n\r\n\r\n", 4),
        (b"", b"2\r\ncd\r\n2\r\nef\r", 0),
        (b"", b"2\r\ncd\r\n0\r\n\r\n", 0),
        (b"", b"2;x=1\r\ncd\r\n", 0),
        (b"", b"2\r\ncde\r\n", 0),
        (b"", b"2", 0),
        (b"", b"", 0),
        (b"2", b"2\r\ncd\r\n", 0),
        (b"2\r\n", b"2\r\ncd\r\n", 0),
        (b"2\r\ncd", b"2\r\ncd\r\n", 0),
        (b"0\r\n", b"2\r\ncd\r\n", 0),
    ],
)
def test_only_whole_chunks_between_two_others_are_whole(before: bytes, piece: bytes, length: int) -> None:
    decoder = ChunkedDecoder()
    decoder.feed(b"2\r\nab\r\n" + before)
    assert decoder.whole_length(piece) == length


CHUNKS = st.lists(
    st.one_of(
        st.sampled_from([b"ab", b"event\n\n", b"x" * 30, b"0", b"\r\n0\r\n\r\n", b"y" * 300, b"z" * 5000]),
        st.binary(min_size=1, max_size=40),
    ),
    max_size=60,
)


@given(
    CHUNKS,
    st.lists(st.integers(1, 9000), max_size=12),
    st.sampled_from([b"", b"0\r\n\r\n", b"0\r\nt: x\r\n\r\nsurplus"]),
)
def test_chunks_passed_on_hold_what_the_decoder_reads_however_they_are_cut(
    bodies: list[bytes], cuts: list[int], end: bytes
) -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + end
    passing, reading, client = ChunkedDecoder(), ChunkedDecoder(), ChunkedDecoder()
    got = b""
    for cut in [*cuts, len(wire)]:
        piece, wire = wire[:cut], wire[cut:]
        if not piece:
            break
        expected = reading.feed(piece)
        chunks, length, after = piece, passing.whole_length(piece), b""
        if not length:
            chunks, length, after = passing.pass_on(piece)
        if not length:
            after = passing.feed(piece)
        passed = client.feed(chunks) if length else b""
        assert len(passed) == length
        assert passed + after == expected
        if length:
            # The chunks after the mark can be read by themselves, and are enough, or all of them.
            assert passed.endswith(ChunkedDecoder().feed(chunks[passing.mark :]))
            assert passing.mark == 0 or len(chunks) - passing.mark >= LAST_BYTES
            assert (client.done, client.feed(b"")) == (False, b"")
        got += passed + after
        assert (passing.done, passing.surplus) == (reading.done, reading.surplus)
    assert got == b"".join(bodies)


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param(b"x" * 1000 + b"Y\n", id="torn, with a wrong line end"),
        pytest.param(b"x" * 1001 + b"\r\n", id="torn, longer than its size"),
        pytest.param(b"x" * 1000 + b"\r\n" + b"5\r\nevent\r\n" * 30 + b"5\r\neventY\n", id="behind whole ones"),
        pytest.param(b"x" * 1000 + b"\r\n" + b"5\r\nevent\r\n" * 30 + b"5 \r\n5\n\n5\r\n", id="a size that is none"),
    ],
)
def test_malformed_chunk_among_those_that_pass_is_refused(piece: bytes) -> None:
    chunk = b"5\r\nevent\r\n"
    decoder = ChunkedDecoder()
    decoder.feed(chunk)
    assert decoder.pass_on(chunk * 20 + b"7d0\r\n" + b"x" * 1000) == (chunk * 20, 100, b"x" * 1000)
    with pytest.raises(MalformedAnswer):
        # Whoever gets nothing of it has to feed it.
        assert decoder.pass_on(piece + chunk * 20)[1] or decoder.feed(piece + chunk * 20)


def test_steps_that_are_remembered_prove_both_line_ends_and_are_bounded() -> None:
    decoder = ChunkedDecoder()
    for size in (5, 18, 300, 5000):
        decoder.feed(b"%x\r\n%b\r\n" % (size, b"s" * size))
        decoder.whole_length(b"%x\r\n%b\r\n" % (size, b"s" * size) * (2000 // size + 2))
    steps = body_module._KNOWN_STEPS
    assert steps
    assert all(step.startswith(b"\r\n") and step.count(b"\r\n", 3) >= 1 for step in steps)
    assert len(steps) <= body_module._MAX_KNOWN_SIZES


def test_repeated_headers_that_frame_an_answer_are_taken_together() -> None:
    head = parse_head(_head("Connection: x-a", "X-A: 1", "connection: close", "Content-Length: 5", "content-length: 5"))
    assert (head.keep_alive, head.content_length, head.known["content-length"]) == (False, 5, "5")
    assert head.passing == []
    assert len(head.headers) == 5
    assert Head(500, "No", head.headers).known["content-length"] == "5"


def test_names_that_are_no_tokens_or_very_long_are_not_remembered() -> None:
    Head(200, "OK", [("a b", "1"), ("x" * 101, "2")])
    with pytest.raises(MalformedAnswer):
        parse_head(_head("a b: 1"))
    assert parse_head(_head("x" * 101 + ": 2")).passing == [("x" * 101, "2")]
    assert max(map(len, head_module._roles)) <= 100


def test_length_decoder_keeps_what_is_too_much() -> None:
    decoder = LengthDecoder(4)
    assert (decoder.feed(b"ab"), decoder.done) == (b"ab", False)
    assert (decoder.feed(b"cdef"), decoder.done, decoder.surplus) == (b"cd", True, b"ef")


def test_body_until_close_is_never_done_by_itself() -> None:
    decoder = UntilCloseDecoder()
    assert (decoder.feed(b"ab"), decoder.done, decoder.ends_with_connection) == (b"ab", False, True)


@given(st.binary(max_size=200), st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=4))
def test_any_head_is_read_or_malformed(start: bytes, pairs: list[tuple[bytes, bytes]]) -> None:
    for raw in (start, b"\r\n".join([b"HTTP/1.1 200 OK", *(name + b": " + value for name, value in pairs)])):
        try:
            head = parse_head(raw)
        except MalformedAnswer:
            continue
        for name, value in head.headers:
            assert name
            assert not set(name + value) & set("\r\n\0")


@pytest.mark.parametrize("length", ["3", "-1", "x"])
def test_chunks_count_beside_a_length_and_the_connection_is_not_used_again(length: str) -> None:
    head = parse_head(_head(f"content-length: {length}", "Transfer-Encoding: chunked"))
    assert (head.chunked, head.content_length, head.keep_alive) == (True, None, False)
    assert "content-length" not in head.known
    assert "content-length" not in head.rewrite(head.headers).known


def test_trailers_are_bounded_in_number_and_bytes() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 1000) == b"x"
    assert not decoder.done
    with pytest.raises(MalformedAnswer, match="trailers"):
        decoder.feed(b"a: b\r\n" * 10_000)


@pytest.mark.parametrize(
    ("packed", "encoding", "expected"),
    [
        (gzip.compress(b"text"), "gzip", b"text"),
        (zlib.compress(b"text"), "deflate", b"text"),
        (gzip.compress(b"text")[:-9], "gzip", None),
        (b"text", "gzip", None),
        (b"text", "br", None),
        (gzip.compress(b"x" * 9_000_000), "gzip", None),
    ],
    ids=["gzip", "deflate", "broken", "not compressed", "another encoding", "too large"],
)
def test_content_is_decoded_whole_or_not_at_all(packed: bytes, encoding: str, expected: bytes | None) -> None:
    assert decode_content(packed, encoding) == expected
