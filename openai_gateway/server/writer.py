"""gunicorn's response writer, with head and first body bytes in one send, and as the sink that a stream is pumped into.

Answers over TLS and those of any other server are written in WSGI's own way. See also: upstream.pump (which fills a
sink).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from time import monotonic, time
from typing import Any, Final

from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName
from gunicorn.http.message import TOKEN_RE
from gunicorn.http.wsgi import HEADER_VALUE_RE, SERVER, Response
from gunicorn.util import http_date

from openai_gateway.server import draining
from openai_gateway.server.plain import PlainRequest
from openai_gateway.server.waits import Wait, Waits

# How long a client may take for each piece of an answer. A relayed stream is bounded by its call's watch instead.
sends = Waits(60.0)
_MAX_TOKENS: Final = 1024
_TOKENS: set[str] = set()
_OK: Final = "200 OK"
# A method of C's: a header costs no call of Python's.
_to_line: Final = "%s: %s\r\n".__mod__


class RelayWriter(Response):  # type: ignore[misc]
    """Writes what gunicorn's Response would, in fewer sends. Its attributes, which gunicorn reads, mean the same."""

    headers_sent: bool
    response_length: int | None
    status: str | None
    headers: list[tuple[str, str]]
    _head = b""
    is_ended = False
    # The gateway's own answer, or one over TLS.
    is_own = False
    _is_streaming = False

    def should_close(self) -> bool:
        """Tell whether the connection ends after this answer; so does every one while the worker drains."""
        if draining.is_on or self.must_close or self.req.should_close():
            return True
        return self.response_length is None and not self.chunked and bool(super().should_close())

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """Take status and headers. Raises what gunicorn raises for bad ones."""
        if status != _OK or exc_info or self.status is not None or self.req.method == "HEAD":
            return super().start_response(status, headers, exc_info)
        # For this status, gunicorn's own method would set the same after several checks.
        self.status, self.status_code = status, 200
        self.process_headers(headers)
        self.chunked = self.response_length is None and self.is_chunked()
        return self.write

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """Take the answer's headers, hop-by-hop ones being out already. Raises what gunicorn raises for bad ones."""
        names, values = zip(*headers, strict=True) if headers else ((), ())
        if not _TOKENS.issuperset(names):
            for name in names:
                if not _is_token(name):
                    raise InvalidResponseHeaderName(repr(name))
        if not "".join(values).isprintable():
            for name, value in headers:
                if not HEADER_VALUE_RE.fullmatch(value):
                    raise InvalidResponseHeader(repr(name))
        for name, value in reversed(headers):
            if len(name) == 14 and name.lower() == "content-length":
                self.response_length = int(value)
                break
        if self.headers:
            # Set before the app was called: they win.
            taken = {name for name, _ in self.headers}
            headers = [header for header in headers if header[0].lower() not in taken]
        self.headers += headers

    def send_headers(self) -> None:
        """Hold the head back for the body's first bytes: status line, the server's own headers, the answer's."""
        if not self.headers_sent:
            # Decided once, as the head says it: a worker that begins to drain later doesn't change it.
            self.must_close = self.should_close()
            start = _make_head_start(self.req.version, self.status, self.must_close, self.chunked, int(time()))
            self._head = f"{start}{''.join(map(_to_line, self.headers))}\r\n".encode("latin-1")
            self.headers_sent = True
            if type(self.req) is PlainRequest:
                # Of these nobody writes an access log, and a stream may last for hours.
                self.headers = []

    def _emit_body(self, data: bytes) -> None:
        # gunicorn has counted it already.
        self.sent -= len(data)
        self._send_in_time(self.to_frame(data, is_last=False))

    def close(self) -> None:
        """Send what is still to be sent: the head of an empty answer, the last chunk."""
        if not self.is_ended:
            self._send_in_time(self.to_frame(b"", is_last=True))

    def _send_in_time(self, frame: bytes) -> None:
        self.is_own = True
        send_in_time(self.sock, frame)

    def to_frame(self, payload: bytes, *, is_last: bool) -> bytes:
        """Return `payload` as it goes over the wire: after the head, if that isn't out, and as a chunk, if chunked."""
        if not self.headers_sent:
            self.send_headers()
        head, self._head = self._head, b""
        self.sent += len(payload)
        if self._omits_body:
            payload = b""
        elif self.chunked:
            if payload:
                payload = b"%x\r\n%b\r\n" % (len(payload), payload)
            if is_last:
                payload += b"0\r\n\r\n"
        self.is_ended = self.is_ended or is_last
        return head + payload if head else payload

    def offer(self, payload: bytes, *, is_last: bool) -> bytes | memoryview:
        """Send of the payload's frame what the socket takes at once and return the rest. Raises OSError."""
        if payload and self._is_streaming and not is_last:
            self.sent += len(payload)
            frame = b"%x\r\n%b\r\n" % (len(payload), payload)
        else:
            frame = self.to_frame(payload, is_last=is_last)
            self._is_streaming = self.chunked and not self._omits_body
            if not frame:
                return frame
        try:
            # Of the socket within gevent's, which only adds the waiting.
            sent: int = self.sock._sock.send(frame)
        except BlockingIOError:
            return frame
        return b"" if sent == len(frame) else memoryview(frame)[sent:]

    def find_chunk_sender(self) -> Callable[[bytes], int] | None:
        """Return what sends whole chunks as they are, once the head is out; None if the body doesn't go in chunks."""
        return self.sock._sock.send if self.chunked and not self._omits_body else None

    def count_sent(self, length: int) -> None:
        """Count bytes of body that went out past this."""
        self.sent += length

    def send_all(self, frame: bytes | memoryview) -> None:
        """Send all of it, waiting for the client as needed. Raises OSError."""
        if frame:
            sent = self.sock.send(frame)
            if sent < len(frame):
                self.sock.sendall(memoryview(frame)[sent:])


class TlsWriter(RelayWriter):
    """The writer of a TLS connection: nothing may go past its layer, so it is no sink for pumped streams."""


def send_in_time(sock: Any, data: bytes) -> None:
    """Send all of it, as long as the client goes on taking it. Raises OSError, Wait."""
    rest = memoryview(data)
    wait = Wait()
    while rest:
        sends.start(wait, monotonic() + sends.seconds)
        try:
            rest = rest[sock.send(rest) :]
        finally:
            sends.stop(wait, None)


def _is_token(name: str) -> bool:
    if not TOKEN_RE.fullmatch(name):
        return False
    if len(_TOKENS) < _MAX_TOKENS:
        _TOKENS.add(name)
    return True


@lru_cache(maxsize=64)
def _make_head_start(version: tuple[int, int], status: str, is_last: bool, is_chunked: bool, now: int) -> str:
    """Return status line and the server's own headers; the same for all answers of a kind within a second."""
    connection = "close" if is_last else "keep-alive"
    start = f"HTTP/{version[0]}.{version[1]} {status}\r\nServer: {SERVER}\r\nDate: {http_date(now)}\r\n"
    return f"{start}Connection: {connection}\r\n" + ("Transfer-Encoding: chunked\r\n" if is_chunked else "")


def adopt(start_response: Any, environ: dict[str, Any]) -> RelayWriter | None:
    """Return the writer behind our worker's `start_response`; None over TLS and under any other server."""
    response = getattr(start_response, "__self__", None)
    return response if type(response) is RelayWriter else None
