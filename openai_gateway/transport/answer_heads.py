"""Awaits the head of an answer on a connection: of a peer's, or of a proxy's to CONNECT.

A head comes whole with the first bytes, mostly. If it does not, it is put together byte for byte, and what can't become
one any more is told at once. See also: wire.head (what a head is).
"""

from __future__ import annotations

from typing import Final

from openai_gateway.transport.connection import Connection
from openai_gateway.transport.errors import BadAnswer, NotHttp
from openai_gateway.wire.head import MAX_HEAD_BYTES, Head, MalformedAnswer, parse_head

_MAX_INFORMATIONAL_BYTES: Final = 1024 * 1024
_HEAD_START: Final = b"HTTP/1."


class ConnectionBroke(Exception):
    """The connection is at its end; the text says how."""


def await_head(connection: Connection, *, may_upgrade: bool = False) -> tuple[Head, bytes]:
    """Return the answer's head, and what came after it. Raises ConnectionBroke, BadAnswer.

    Informational heads (1xx) are signs of life: they are passed over, as long as the call's time and a bound of bytes
    allow.
    """
    buffer = _receive(connection)
    passed_over = 0
    while True:
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            buffer, end = _complete_head(connection, buffer)
        try:
            head = parse_head(buffer[:end])
        except MalformedAnswer as problem:
            raise NotHttp(f"gave a malformed answer: {problem}") from None
        buffer = buffer[end + 4 :]
        if head.status >= 200 or (may_upgrade and head.status == 101):
            return head, buffer
        passed_over += end + 4
        if head.status == 101 or passed_over > _MAX_INFORMATIONAL_BYTES:
            raise NotHttp("sent informational answers without end")


def _complete_head(connection: Connection, begun: bytes) -> tuple[bytes, int]:
    """Return what has come once a head's end is in, and where that is. Raises BadAnswer.

    What can't become a head any more is found out at once, not when the time is up. Each byte is looked at once,
    however few come at a time.
    """
    buffer = bytearray(begun)
    seen = 0
    while True:
        if not _HEAD_START.startswith(buffer[: len(_HEAD_START)]):
            raise NotHttp("gave a malformed answer: the status line is not HTTP/1.x")
        # A line's end may have come in two pieces.
        end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
        if end >= 0:
            return bytes(buffer), end
        start = seen - 1 if buffer[seen - 1 : seen] == b"\r" else seen
        if buffer.count(b"\n", start) != buffer.count(b"\r\n", start):
            raise NotHttp("gave a malformed answer: a line ends with a bare line feed")
        if len(buffer) > MAX_HEAD_BYTES:
            raise NotHttp("sent headers that are too large")
        seen = len(buffer)
        try:
            buffer += _receive(connection)
        except ConnectionBroke:
            raise BadAnswer("broke off its answer within the headers") from None


def _receive(connection: Connection) -> bytes:
    """Return what comes next. Raises ConnectionBroke."""
    while True:
        connection.wait_readable()
        try:
            received = connection.receive()
        except OSError as error:
            raise ConnectionBroke(error.strerror or "reset") from None
        if received:
            return received
        if received is not None:
            raise ConnectionBroke("end of file")
