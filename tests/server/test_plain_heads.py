"""A head that is read at one go says exactly what gunicorn's own parser reads in it; any other is left to that."""

from __future__ import annotations

from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.message import Request
from gunicorn.http.unreader import SocketUnreader
from gunicorn.http.wsgi import create
from hypothesis import given
from hypothesis import strategies as st

from openai_gateway.server.bodies import Unreader
from openai_gateway.server.plain import read_plain
from openai_gateway.server.request_heads import CheckedRequest
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


class _Socket:
    """A connection on which these bytes have come, and no more will."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def recv(self, size: int) -> bytes:
        got, self._received = self._received[:size], self._received[size:]
        return got


def _read(kind: type[Request], received: bytes) -> tuple[dict[str, Any], bytes, bool, bytes]:
    """Return environ, body, whether the connection closes, and what comes after, read by gunicorn's class or ours."""
    config = Config()
    unreader = (Unreader if kind is CheckedRequest else SocketUnreader)(_Socket(received))
    request = kind(config, unreader, ("127.0.0.1", 1), 1)
    _, environ = create(request, None, ("127.0.0.1", 1), ("127.0.0.1", 2), config)
    # Whether it closes, as at the end of a call: once the body is read. After a torn one we say so, gunicorn doesn't.
    body = request.body.read()
    is_torn = len(body) < int(environ.get("CONTENT_LENGTH", "0"))
    return _to_kept(environ), body, is_torn or request.should_close(), unreader.read()


def _to_kept(environ: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in environ.items() if key.isupper() and not key.startswith(("REMOTE", "SERVER"))}


def _outcome(kind: type[Request], received: bytes) -> Any:
    try:
        return _read(kind, received)
    except (Exception, StopIteration) as error:
        return type(error)


@pytest.mark.parametrize("received", PLAIN.values(), ids=PLAIN)
def test_plain_head_is_read_as_gunicorn_reads_it(received: bytes) -> None:
    read = read_plain(received)
    assert read is not None
    environ, length, start = read
    theirs, body, closes, rest = _read(Request, received)
    assert {**_to_kept(environ), "REQUEST_METHOD": "POST", "SCRIPT_NAME": ""} == theirs
    assert (received[start : start + length], received[start + length :]) == (body, rest)
    assert closes is (len(body) < length)


@pytest.mark.parametrize("received", [*PLAIN.values(), *OTHER.values()], ids=[*PLAIN, *OTHER])
def test_any_head_is_checked_as_gunicorn_checks_it(received: bytes) -> None:
    assert _outcome(CheckedRequest, received) == _outcome(Request, received)


@pytest.mark.parametrize("received", OTHER.values(), ids=OTHER)
def test_any_other_head_is_not_plain(received: bytes) -> None:
    assert read_plain(received) is None


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
    theirs = _outcome(Request, received)
    assert _outcome(CheckedRequest, received) == theirs
    read = read_plain(received)
    if read is not None:
        environ, length, start = read
        same = {**_to_kept(environ), "REQUEST_METHOD": "POST", "SCRIPT_NAME": ""}
        assert (same, received[start : start + length], False, received[start + length :]) == theirs
