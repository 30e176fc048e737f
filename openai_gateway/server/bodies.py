"""A request's body as it is read from its connection: in bounded steps, so that no sender holds up the worker.

gevent's recv never yields while there are bytes to be had, so whoever reads on and on has to. See also: request_heads
(where a body begins), blueprints.intake (what it says, and how much is taken).
"""

from __future__ import annotations

from typing import Any, Final

import gevent
from gunicorn.http.body import Body, ChunkedReader
from gunicorn.http.errors import ParseException
from gunicorn.http.unreader import SocketUnreader

from openai_gateway.errors import MalformedBody

# After so many bytes another greenlet runs.
YIELD_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 256 * 1024
# gunicorn bounds these as it does a head, and searches all of it again with every byte that comes: too much.
_MAX_TRAILER_BYTES: Final = 16 * 1024
_MAX_SIZE_LINE_BYTES: Final = 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class LengthBody:
    """A body of known length, of which `received` came with its head.

    `failed` is set by who gives up reading it. `expects_continue`: its client sends it once it was told to (RFC 9110
    10.1.1), which is when it is first read.
    """

    __slots__ = ("_expects_continue", "_left", "_received", "_sock", "failed")

    def __init__(self, sock: Any, received: bytes, length: int, *, expects_continue: bool = False) -> None:
        self._sock = sock
        self._received = received
        self._left = length
        self._expects_continue = expects_continue
        self.failed = False

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, or all; fewer if the client leaves. Raises OSError."""
        if self._expects_continue and self._left:
            self._sock.sendall(_CONTINUE)
        self._expects_continue = False
        wanted = self._left if size < 0 else min(size, self._left)
        first, self._received = self._received[:wanted], self._received[wanted:]
        pieces = [first]
        count, since_yield = len(first), 0
        while count < wanted:
            if since_yield >= YIELD_BYTES:
                since_yield = 0
                gevent.sleep(0)
            piece = self._sock.recv(min(wanted - count, _READ_BYTES))
            if not piece:
                self.failed = True
                break
            pieces.append(piece)
            count += len(piece)
            since_yield += len(piece)
        self._left -= count
        return b"".join(pieces) if len(pieces) > 1 else first

    def count_left(self) -> int | None:
        """Return how many bytes of it nobody has read; None if that can't be told."""
        return None if self.failed or (self._expects_continue and self._left) else self._left


class Unreader(SocketUnreader):  # type: ignore[misc]
    """gunicorn's reader of a connection, which yields to other greenlets now and then."""

    _since_yield = 0

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return what has come, waiting for it if need be; `b""` at the end."""
        if self._since_yield >= YIELD_BYTES:
            self._since_yield = 0
            gevent.sleep(0)
        received: bytes = super().chunk(size_hint)
        self._since_yield += len(received)
        return received


class ChunkedBody(Body):  # type: ignore[misc]
    """A body in chunks, as gunicorn reads them. `expects_continue` as in LengthBody."""

    def __init__(self, reader: ChunkedReader, sock: Any, *, expects_continue: bool) -> None:
        super().__init__(reader)
        self._sock = sock
        self._expects_continue = expects_continue
        reader.limit_trailer_section = min(reader.limit_trailer_section, _MAX_TRAILER_BYTES)
        reader.limit_chunk_size_line = min(reader.limit_chunk_size_line, _MAX_SIZE_LINE_BYTES)

    def _read_reader(self, size: int) -> bytes:
        if self._expects_continue:
            self._expects_continue = False
            self._sock.sendall(_CONTINUE)
        try:
            return super()._read_reader(size)  # type: ignore[no-any-return]
        except ParseException:
            raise MalformedBody from None

    def count_left(self) -> int | None:
        """Return 0 once it is read to its end, None before."""
        return None if self.failed or self.reader.parser else 0
