"""An answer whose head is in: its body's bytes, and the connection that they come over.

It owns the connection from `exchange` on, and rids itself of it exactly once: an answer that was read to its end gives
the connection back to the pool (if the peer keeps it open and sent nothing more); one that broke, or that nobody reads
to its end, closes it. After that, `read` gives what is at hand already, then `b""`.

See also: wire.body (what is framing and what is body), upstream.pump (reads on events instead of waiting).
"""

from __future__ import annotations

from typing import Any

from openai_gateway.transport.connection import Connection
from openai_gateway.transport.errors import BadAnswer
from openai_gateway.transport.pool import ConnectionPool
from openai_gateway.transport.watch import IDLE, CallWatch
from openai_gateway.wire.body import ChunkedDecoder, Decoder, LengthDecoder
from openai_gateway.wire.head import Head, MalformedAnswer


class RawAnswer:
    """An answer as the peer sends it, without the framing.

    `received` are the bytes that came together with the head, still framed. `body` holds what `read_ahead` took in;
    if `is_whole`, that is all of the body.
    """

    __slots__ = ("_is_ours", "_keep_alive", "_pool", "body", "connection", "decoder", "head", "is_whole", "received")

    def __init__(
        self, head: Head, received: bytes, connection: Connection, pool: ConnectionPool, decoder: Decoder
    ) -> None:
        self.head = head
        self.received = received
        self.connection = connection
        self.decoder = decoder
        self.body = b""
        self.is_whole = False
        self._pool = pool
        # Of the head as it came: whoever masks something puts another one in its place.
        self._keep_alive = head.keep_alive
        self._is_ours = True

    def read_ahead(self, most_bytes: int, watch: CallWatch) -> None:
        """Read into `body`: to the end, or a little more than `most_bytes`. Raises BadAnswer; Cancelled by `watch`.

        A success that begins with blanks only is not read any further: they are sent so that nobody on the way takes
        a long call for dead, and have to go on at once.
        """
        length = len(self.received)
        if length and length == self.head.content_length and not self.decoder.done:
            # Most answers come in one piece with their head: nothing to wait for, nothing to put together.
            self.body, self.received = self.received, b""
            self.decoder.done = self.is_whole = True
            self.finish()
            return
        watch.arm(IDLE)
        pieces: list[bytes] = []
        length = 0
        while length <= most_bytes:
            piece = self.read()
            if not piece:
                self.is_whole = True
                break
            if not pieces and self.head.status < 400 and piece.isspace():
                self.body = piece
                return
            watch.has_moved = True
            pieces.append(piece)
            length += len(piece)
        self.body = b"".join(pieces)

    def read(self) -> bytes:
        """Return body bytes as soon as there are some, `b""` at the end.

        Raises BadAnswer if the body ends too early or is malformed.
        """
        payload: bytes | None = b""
        while not payload and not self.decoder.done:
            payload = self.receive()
            if payload is None:
                self.connection.wait_readable()
        return payload or b""

    def receive(self) -> bytes | None:
        """Return the body bytes that are there, which may be none of a chunk's; None if nothing has come.

        Raises BadAnswer.
        """
        received = self.received
        if received:
            self.received = b""
            return self.decode(received)
        try:
            piece = self.connection.receive()
        except OSError as error:
            raise make_broken_off_error(error) from None
        return None if piece is None else self.decode(piece)

    def decode(self, piece: bytes) -> bytes:
        """Return the body bytes in what the connection has received, or its end. Raises BadAnswer."""
        if not piece:
            return self._end()
        decoder = self.decoder
        try:
            payload = decoder.feed(piece)
        except MalformedAnswer as problem:
            raise make_malformed_error(problem) from None
        if decoder.done:
            self.finish()
        return payload

    def pass_on(self, piece: bytes) -> tuple[bytes, int, bytes]:
        """Return what ChunkedDecoder.pass_on does. Raises BadAnswer."""
        assert isinstance(self.decoder, ChunkedDecoder)
        try:
            passed = self.decoder.pass_on(piece)
        except MalformedAnswer as problem:
            raise make_malformed_error(problem) from None
        if self.decoder.done:
            self.finish()
        return passed

    def _end(self) -> bytes:
        if not self.decoder.ends_with_connection:
            raise BadAnswer("broke off its answer")
        self.decoder.done = True
        self.close()
        return b""

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


def make_mocked_answer(head: Head, body: bytes) -> RawAnswer:
    """Return an answer that is whole and came over no connection of ours."""
    nothing: Any = None
    answer = RawAnswer(head, b"", nothing, nothing, LengthDecoder(0))
    answer.body, answer.is_whole, answer._is_ours = body, True, False
    return answer


def make_broken_off_error(error: OSError) -> BadAnswer:
    """Return our error for a connection that broke within an answer."""
    return BadAnswer(f"broke off its answer ({error.strerror})")


def make_malformed_error(problem: MalformedAnswer) -> BadAnswer:
    """Return our error for what isn't HTTP."""
    return BadAnswer(f"gave a malformed answer: {problem}")
