"""A head that is read at one go says exactly what gunicorn's own parser reads in it; any other is left to that."""

from __future__ import annotations

import io
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from gunicorn.http.wsgi import create
from hypothesis import given
from hypothesis import strategies as st

from openai_gateway.server.plain import PlainRequest, read_plain
from openai_gateway.wire.headers import CLIENT_HEAD

START = b"POST /v1/responses HTTP/1.1\r\n"
LENGTH = b"Content-Length: 2\r\n"
PLAIN = {
    "the shortest": START + LENGTH + b"\r\n{}",
    "a query": b"POST /v1/responses?a=b&c=%20 HTTP/1.1\r\n" + LENGTH + b"\r\n{}",
    "an official client's headers": START
    + b"Host: a:1\r\nAccept-Encoding: gzip, br\r\nConnection: keep-alive\r\nX-Stainless-OS: Linux\r\n"
    + b"content-type: application/json\r\n"
    + LENGTH
    + b"\r\n{}",
    "no white space before a value, and much around one": START + b"a:b\r\nc:   d  \r\n" + LENGTH + b"\r\n{}",
    "an empty value": START + b"a:\r\n" + LENGTH + b"\r\n{}",
    "headers of a proxy": START + b"X-Forwarded-Proto: https\r\nX-Forwarded-For: 1.2.3.4\r\n" + LENGTH + b"\r\n{}",
    "a body that is still to come": START + LENGTH + b"\r\n{",
    "one request after another": START + LENGTH + b"\r\n{}" + START,
}
OTHER = {
    "nothing": b"",
    "half a head": START + b"Content-Le",
    "another method": b"GET /v1/models HTTP/1.1\r\n" + LENGTH + b"\r\n{}",
    "another version": b"POST /v1/responses HTTP/1.0\r\n" + LENGTH + b"\r\n{}",
    "a version of its own": b"POST /v1/responses HTTP/9.9\r\n" + LENGTH + b"\r\n{}",
    "no version": b"POST /v1/responses\r\n" + LENGTH + b"\r\n{}",
    "a path with a space": b"POST /v1/a b HTTP/1.1\r\n" + LENGTH + b"\r\n{}",
    "an escaped path": b"POST /v1/%72esponses HTTP/1.1\r\n" + LENGTH + b"\r\n{}",
    "a fragment": b"POST /v1/responses#a HTTP/1.1\r\n" + LENGTH + b"\r\n{}",
    "an authority": b"POST //host/v1 HTTP/1.1\r\n" + LENGTH + b"\r\n{}",
    "an empty line first": b"\r\n" + START + LENGTH + b"\r\n{}",
    "no length": START + b"\r\n{}",
    "two lengths": START + LENGTH + b"Content-Length: 3\r\n\r\n{}",
    "two lengths in one": START + b"Content-Length: 2, 2\r\n\r\n{}",
    "a signed length": START + b"Content-Length: +2\r\n\r\n{}",
    "a negative length": START + b"Content-Length: -2\r\n\r\n{}",
    "an endless length": START + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n{}",
    "an empty length": START + b"Content-Length:\r\n\r\n{}",
    "chunks": START + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks and a length": START + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    "white space before a colon": START + b"Content-Length : 2\r\n\r\n{}",
    "white space before a name": START + b" a: b\r\n" + LENGTH + b"\r\n{}",
    "a folded line": START + b"a: b\r\n c\r\n" + LENGTH + b"\r\n{}",
    "a line without a colon": START + b"a\r\n" + LENGTH + b"\r\n{}",
    "the length without a colon": START + b"Content-Length\r\n\r\n{}",
    "a name of nothing": START + b": b\r\n" + LENGTH + b"\r\n{}",
    "a name with an underscore": START + b"Content_Length: 9\r\n" + LENGTH + b"\r\n{}",
    "a header twice": START + b"a: b\r\nA: c\r\n" + LENGTH + b"\r\n{}",
    "a bare line feed": START + b"a: b\nc: d\r\n" + LENGTH + b"\r\n{}",
    "a bare carriage return": START + b"a: b\rc: d\r\n" + LENGTH + b"\r\n{}",
    "a tab": START + b"a:\tb\r\n" + LENGTH + b"\r\n{}",
    "a null byte": START + b"a: \x00\r\n" + LENGTH + b"\r\n{}",
    "a byte beyond ASCII": START + b"a: \xe9\r\n" + LENGTH + b"\r\n{}",
    "an expectation": START + b"Expect: 100-continue\r\n" + LENGTH + b"\r\n{}",
    "an upgrade": START + b"Connection: upgrade\r\nUpgrade: h2c\r\n" + LENGTH + b"\r\n{}",
    "the wish to close": START + b"Connection: close\r\n" + LENGTH + b"\r\n{}",
    "many headers": START + b"".join(b"a%d: b\r\n" % number for number in range(100)) + LENGTH + b"\r\n{}",
    "a long head": START + b"a: " + b"b" * 4000 + b"\r\n" + LENGTH + b"\r\n{}",
}
PIECES = st.lists(
    st.one_of(
        st.sampled_from([b"\r\n", b":", b" ", b"\t", b"\n", b"Content-Length: 2", b"host: a", b"a: b", b"\r\n\r\n"]),
        st.binary(max_size=4),
    ),
    max_size=8,
).map(b"".join)


def _read(kind: type[Request], received: bytes) -> tuple[Any, dict[str, Any], bytes, bool]:
    """Return request, environ, body and whether the connection closes, by a parser."""
    config = Config()
    request = kind(config, IterUnreader([received]), ("127.0.0.1", 1))
    if isinstance(request, PlainRequest) and request.plain is not None:
        environ = request.plain
    else:
        _, environ = create(request, None, ("127.0.0.1", 1), ("127.0.0.1", 2), config)
    kept = {key: value for key, value in environ.items() if key.isupper() and not key.startswith(("REMOTE", "SERVER"))}
    return request, kept, request.body.read(), request.should_close()


@pytest.mark.parametrize("received", PLAIN.values(), ids=PLAIN)
def test_plain_head_is_read_as_gunicorn_reads_it(received: bytes) -> None:
    request, environ, body, closes = _read(PlainRequest, received)
    theirs, their_environ, their_body, they_close = _read(Request, received)
    assert request.plain is not None
    same = {**environ, "REQUEST_METHOD": "POST", "SCRIPT_NAME": ""}
    assert (same, body, closes) == (their_environ, their_body, they_close)
    assert request.unreader.read() == theirs.unreader.read()
    for name in ("method", "uri", "path", "query", "fragment", "version"):
        assert getattr(request, name) == getattr(theirs, name)


@pytest.mark.parametrize("received", OTHER.values(), ids=OTHER)
def test_any_other_head_is_left_to_gunicorn(received: bytes) -> None:
    assert read_plain(received) is None
    assert _outcome(PlainRequest, received) == _outcome(Request, received)


def test_heads_that_differ_in_their_length_share_nothing_that_can_be_changed() -> None:
    heads = [START + b"Content-Length: %d\r\n\r\n" % length + b"x" * length for length in (2, 300)]
    first, second = read_plain(heads[0]), read_plain(heads[1])
    assert first is not None
    assert second is not None
    assert (first[0]["CONTENT_LENGTH"], second[0]["CONTENT_LENGTH"]) == ("2", "300")
    assert first[0][CLIENT_HEAD] == second[0][CLIENT_HEAD]
    first[0]["PATH_INFO"] = "/changed"
    again = read_plain(heads[0])
    assert again is not None
    assert again[0]["PATH_INFO"] == second[0]["PATH_INFO"] != "/changed"


@given(PIECES)
def test_whatever_comes_is_read_as_gunicorn_reads_it(piece: bytes) -> None:
    received = START + piece + b"\r\n" + LENGTH + b"\r\n{}"
    assert _outcome(PlainRequest, received) == _outcome(Request, received)


def _outcome(kind: type[Request], received: bytes) -> Any:
    try:
        request, environ, body, closes = _read(kind, received)
    except (Exception, StopIteration) as error:
        return type(error)
    return {**environ, "REQUEST_METHOD": request.method, "SCRIPT_NAME": ""}, body, closes


def test_body_that_comes_later_is_read_to_its_end() -> None:
    request = PlainRequest(Config(), IterUnreader([PLAIN["a body that is still to come"], b"}", b"POST"]), ("::1", 1))
    assert not isinstance(request.body, io.BytesIO)
    assert request.body.read() == b"{}"
    assert request.unreader.read() == b"POST"
