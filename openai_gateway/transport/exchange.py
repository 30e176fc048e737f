"""One HTTP exchange with the upstream: a request sent, an answer's head awaited, its body read.

Which errors are tried again is `relay`'s; only a reused connection that breaks before the first byte is, here, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.errors import (
    InvalidRequest,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from openai_gateway.transport.connection import Connection
from openai_gateway.transport.pool import ConnectionPool
from openai_gateway.transport.watch import CallWatch
from openai_gateway.wire.body import Decoder, to_decoder
from openai_gateway.wire.head import MAX_HEAD_BYTES, Head, MalformedAnswer, parse_head
from openai_gateway.wire.headers import RequestHeaders

_MAX_INFORMATIONAL: Final = 16
_SEND_TOGETHER_BYTES: Final = 32 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The bounds of an exchange's phases in seconds; None is no bound."""

    connect_s: float | None
    first_byte_s: float | None
    idle_s: float | None


class _Broke(Exception):
    """The connection broke before the answer's first byte."""


class RawAnswer:
    """An answer whose head is in; the body is read with `read1`, in the part of urllib3's interface that we need."""

    __slots__ = ("_is_ours", "_keep_alive", "_pool", "connection", "decoder", "first", "headers", "reason", "status")

    def __init__(
        self, head: Head, first: bytes, connection: Connection, pool: ConnectionPool, decoder: Decoder
    ) -> None:
        self.status = head.status
        self.reason = head.reason
        self.headers = head
        self.connection = connection
        self.decoder = decoder
        self._pool = pool
        # The body bytes that came together with the head.
        self.first = first
        self._keep_alive = head.keep_alive
        self._is_ours = True

    def read1(self, amount: int = -1) -> bytes:
        """Return body bytes as soon as there are some, `b""` at the end, whatever `amount` says.

        Raises UpstreamProtocolError if the body ends too early or is malformed.
        """
        payload: bytes | None = b""
        while not payload and not self.decoder.done:
            payload = self.receive()
            if payload is None:
                self.connection.wait_readable()
        return payload or b""

    def whole(self) -> bytes | None:
        """Return the body if all of it came together with the head, None otherwise. Raises UpstreamProtocolError."""
        if self.decoder.done or not self.first or len(self.first) != self.headers.content_length:
            return None
        return self.receive()

    def receive(self) -> bytes | None:
        """Return the body bytes that are there, which may be none of a chunk's; None if nothing has come.

        Raises UpstreamProtocolError.
        """
        first = self.first
        if first:
            self.first = b""
            return self.decode(first)
        try:
            piece = self.connection.receive()
        except OSError as error:
            raise to_broken_off(error) from None
        return None if piece is None else self.decode(piece)

    def decode(self, piece: bytes) -> bytes:
        """Return the body bytes in what the connection has received, or its end. Raises UpstreamProtocolError."""
        if not piece:
            return self._end()
        decoder = self.decoder
        try:
            payload = decoder.feed(piece)
        except MalformedAnswer as problem:
            raise UpstreamProtocolError(f"The upstream's answer is malformed: {problem}.") from None
        if decoder.done:
            self.finish()
        return payload

    def _end(self) -> bytes:
        if not self.decoder.ends_with_connection:
            raise UpstreamProtocolError("The upstream broke off its answer.")
        self.decoder.done = True
        self.close()
        return b""

    read = read1

    def finish(self) -> None:
        """Give the connection back if it can serve another call, now that the answer is read to its end."""
        if self._keep_alive and not self.decoder.surplus and self._is_ours:
            self._is_ours = False
            self._pool.give_back(self.connection)
        else:
            self.close()

    def close(self) -> None:
        """Drop the connection unless it was given back; safe to call again."""
        if self._is_ours:
            self._is_ours = False
            self.connection.close()

    release_conn = close


class Exchange:
    """Makes one call of `urlopen`, the way requests' adapter makes it."""

    __slots__ = ("_pool", "_timeouts", "_watch")

    def __init__(self, pool: ConnectionPool, timeouts: Timeouts, watch: CallWatch) -> None:
        self._pool = pool
        self._timeouts = timeouts
        self._watch = watch

    def urlopen(self, method: str, url: str, body: bytes | None, headers: RequestHeaders, **_: Any) -> RawAnswer:
        """Send the request and return the answer once its head is in. Raises UpstreamError, Cancelled."""
        head = _to_head(method, url, headers, body)
        connection = self._pool.take()
        if connection is not None:
            try:
                return self._exchange(connection, head, body, is_head_request=method == "HEAD")
            except _Broke:
                pass
        self._watch.arm(self._timeouts.connect_s, self._to_connect_timeout)
        connection = self._pool.connect()
        try:
            return self._exchange(connection, head, body, is_head_request=method == "HEAD")
        except _Broke as broke:
            raise UpstreamUnreachable(f"The upstream closed the connection before it answered ({broke}).") from None

    def _exchange(self, connection: Connection, head: bytes, body: bytes | None, *, is_head_request: bool) -> RawAnswer:
        self._watch.arm(self._timeouts.first_byte_s, self._to_first_byte_timeout)
        try:
            sent = self._send(connection, head, body)
            answer_head, first = self._await_head(connection)
        except BaseException:
            connection.close()
            raise
        if not sent:
            answer_head.keep_alive = False
        decoder = to_decoder(answer_head, is_head_request=is_head_request)
        answer = RawAnswer(answer_head, first, connection, self._pool, decoder)
        if decoder.done:
            decoder.surplus = first
            answer.finish()
        return answer

    @staticmethod
    def _send(connection: Connection, head: bytes, body: bytes | None) -> bool:
        try:
            if body is None or len(body) <= _SEND_TOGETHER_BYTES:
                return connection.send(head + body if body else head)
            return connection.send(head) and connection.send(body)
        except OSError:
            # The upstream closed while we sent; its answer, such as a 413, may be there all the same.
            return False

    def _await_head(self, connection: Connection) -> tuple[Head, bytes]:
        buffer = b""
        informational = 0
        while True:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(buffer) > MAX_HEAD_BYTES:
                    raise UpstreamProtocolError("The upstream's headers are too large.")
                buffer = self._receive_more(connection, buffer)
                continue
            try:
                head = parse_head(buffer[:end])
            except MalformedAnswer as problem:
                raise UpstreamProtocolError(f"The upstream's answer is malformed: {problem}.") from None
            buffer = buffer[end + 4 :]
            if head.status >= 200:
                return head, buffer
            informational += 1
            if head.status == 101 or informational > _MAX_INFORMATIONAL:
                raise UpstreamProtocolError("The upstream sent informational answers without end.")

    @staticmethod
    def _receive_more(connection: Connection, buffer: bytes) -> bytes:
        while True:
            connection.wait_readable()
            try:
                received = connection.receive()
            except OSError as error:
                received = b""
                why = error.strerror or "reset"
            else:
                why = "end of file"
            if received is None:
                continue
            if received:
                return buffer + received
            if buffer:
                raise UpstreamProtocolError("The upstream broke off its answer within the headers.")
            raise _Broke(why)

    def _to_connect_timeout(self) -> UpstreamError:
        return UpstreamTimeout(f"The upstream did not accept a connection within {self._timeouts.connect_s:g} s.")

    def _to_first_byte_timeout(self) -> UpstreamError:
        return UpstreamTimeout(f"The upstream did not answer within {self._timeouts.first_byte_s:g} s.")


def to_broken_off(error: OSError) -> UpstreamProtocolError:
    """Return our error for a connection that broke within an answer."""
    return UpstreamProtocolError(f"The upstream broke off its answer ({error.strerror}).")


def _to_head(method: str, url: str, headers: RequestHeaders, body: bytes | None) -> bytes:
    """Return the request head. Raises InvalidRequest if a value would break out of its line."""
    if "\n" in url or "\r" in url:
        raise InvalidRequest("The query string holds a line break.")
    length = f"content-length: {len(body)}\r\n" if body is not None else ""
    return f"{method} {url} HTTP/1.1\r\n{headers.to_lines()}{length}\r\n".encode("latin-1")
