"""One HTTP exchange with a peer: a request sent, and its answer's head awaited.

A kept connection may be closed by the peer at the very moment that a request is sent over it. If such a connection
breaks before the answer's first byte, the request goes out once more, over a new one, unless it was sent as often as
it may be; any other failure is the caller's to try again. A peer may answer before it has read the whole request (a
413, say): then sending stops, the answer is read, and the connection is not used again.

See also: raw_answer (the body), pool (which connection), watch (each phase's time-out).
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from openai_gateway.errors import InvalidRequest
from openai_gateway.transport.answer_heads import ConnectionBroke, await_head
from openai_gateway.transport.connection import Connection
from openai_gateway.transport.errors import Unreachable
from openai_gateway.transport.pool import ConnectionPool
from openai_gateway.transport.raw_answer import RawAnswer
from openai_gateway.transport.watch import CONNECT, FIRST_BYTE, CallWatch
from openai_gateway.wire.body import make_decoder
from openai_gateway.wire.headers import RequestHeaders

_SEND_TOGETHER_BYTES: Final = 32 * 1024


class Watched(Protocol):
    """A request to be sent, its call's watch, and two counts: `most_sends` allowed, `sends` made.

    They are counted because a peer may have acted on each, and charge for it.
    """

    watch: CallWatch
    most_sends: int
    sends: int


class Exchange:
    """Stands where requests' adapter expects urllib3's connection pool; its `urlopen` sends one request."""

    __slots__ = ("_pool", "_request")

    def __init__(self, pool: ConnectionPool, request: Watched) -> None:
        self._pool = pool
        self._request = request

    def urlopen(self, method: str, url: str, body: bytes | None, headers: RequestHeaders, **_: Any) -> RawAnswer:
        """Send the request and return the answer once its head is in. Raises PeerError; Cancelled by the watch."""
        head = _make_head(method, url, headers, body)
        connection = self._pool.take()
        if connection is not None:
            try:
                return self._exchange(connection, head, body, is_head_request=method == "HEAD")
            except ConnectionBroke as broke:
                if self._request.sends >= self._request.most_sends:
                    raise _make_unanswered_error(broke) from None
        self._request.watch.arm(CONNECT)
        connection = self._pool.connect()
        try:
            return self._exchange(connection, head, body, is_head_request=method == "HEAD")
        except ConnectionBroke as broke:
            raise _make_unanswered_error(broke) from None

    def upgrade(self, url: str, headers: RequestHeaders) -> RawAnswer:
        """Ask for another protocol over a connection of its own; return the answer, 101 if the peer agrees.

        Then the connection is the caller's, and `received` what came over it after the head. Raises PeerError;
        Cancelled by the watch.
        """
        self._request.watch.arm(CONNECT)
        connection = self._pool.connect()
        self._request.watch.arm(FIRST_BYTE)
        try:
            _send(connection, _make_head("GET", url, headers, None), None)
            head, received = await_head(connection, may_upgrade=True)
        except BaseException as error:
            connection.close()
            if isinstance(error, ConnectionBroke):
                raise _make_unanswered_error(error) from None
            raise
        return RawAnswer(head, received, connection, self._pool, make_decoder(head, is_head_request=False))

    def _exchange(self, connection: Connection, head: bytes, body: bytes | None, *, is_head_request: bool) -> RawAnswer:
        self._request.watch.arm(FIRST_BYTE)
        self._request.sends += 1
        try:
            is_sent = _send(connection, head, body)
            answer_head, received = await_head(connection)
        except BaseException:
            connection.close()
            raise
        if not is_sent:
            answer_head.keep_alive = False
        decoder = make_decoder(answer_head, is_head_request=is_head_request)
        answer = RawAnswer(answer_head, received, connection, self._pool, decoder)
        if decoder.done:
            decoder.surplus = received
            answer.finish()
        return answer


def _make_unanswered_error(broke: ConnectionBroke) -> Unreachable:
    return Unreachable(f"closed the connection before it answered ({broke})")


def _send(connection: Connection, head: bytes, body: bytes | None) -> bool:
    """Send the request; False if the peer did not take all of it."""
    try:
        if body is None or len(body) <= _SEND_TOGETHER_BYTES:
            return connection.send(head + body if body else head)
        return connection.send(head) and connection.send(body)
    except OSError:
        # The peer closed while we sent; its answer, such as a 413, may be there all the same.
        return False


def _make_head(method: str, url: str, headers: RequestHeaders, body: bytes | None) -> bytes:
    """Return the request head. Raises InvalidRequest if a value would break out of its line."""
    if "\n" in url or "\r" in url:
        raise InvalidRequest("The query string holds a line break.")
    length = f"content-length: {len(body)}\r\n" if body is not None else ""
    return f"{method} {url} HTTP/1.1\r\n{headers.to_lines()}{length}\r\n".encode("latin-1")
