"""Moves a stream from the upstream's connection to the client from within the hub, with no greenlet switch an event.

A stream's events are small and many, and waking a greenlet for each costs more than moving its bytes. So the greenlet
that serves the call parks itself, and the hub calls `_on_readable` whenever the upstream's connection has bytes: they
are received, stripped of their framing, framed anew, and sent, all without waiting. Most often even that is too much:
whole chunks of sizes that were seen before go to the client as they are.

A stream that is silent may be cut by a balancer on the way: if asked for, the hub puts a comment line between two of
its events meanwhile (`Heartbeat`).

States: parked (the hub moves bytes) <-> sending (the client's socket is full: the greenlet itself sends `_rest` and
waits for the client, and nothing is received meanwhile, so that a slow client slows its upstream down) -> ended, or
`_error` is set. The greenlet is woken for each change of state and by the watch, never for an event.

See also: answer (what a break means to the client), transport.watch (the idle and the client's time-out).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import gevent
from gevent.hub import Waiter

from openai_gateway.errors import Cancelled
from openai_gateway.transport.connection import RECEIVE_BYTES
from openai_gateway.transport.raw_answer import RawAnswer, make_broken_off_error
from openai_gateway.transport.watch import CLIENT, IDLE, CallWatch
from openai_gateway.upstream.heartbeat import Heartbeat
from openai_gateway.wire.body import ChunkedDecoder
from openai_gateway.wire.sse import is_at_boundary, takes_events
from openai_gateway.wire.tail import Tail

# A line that is no part of an event, so that it can stand between any two.
_COMMENT: Final = b": waiting for the upstream\n"
# A piece that doesn't end with a chunk's end: if it is smaller than this, decoding it takes less than passing it on.
_LARGE_BYTES: Final = 1024
# So it is with the first piece, which has to be put behind the head.
_LARGE_FIRST_BYTES: Final = 16 * 1024


class Sink(Protocol):
    """The client's side of a pump."""

    def to_frame(self, payload: bytes, *, is_last: bool) -> bytes:
        """Return body bytes as they go over the wire, with whatever has to go before or after them."""

    def offer(self, payload: bytes, *, is_last: bool) -> bytes | memoryview:
        """Send of the payload's frame what the socket takes at once and return the rest. Raises OSError."""

    def find_chunk_sender(self) -> Callable[[bytes], int] | None:
        """Return what sends whole chunks as they are, as a socket's `send`; None if the body doesn't go in chunks.

        The head has to go before them.
        """

    def count_sent(self, length: int) -> None:
        """Count bytes of body that went out past this."""

    def send_all(self, frame: bytes | memoryview) -> None:
        """Send all of it, waiting for the client as needed. Raises OSError."""


class Nowhere:
    """The sink of a stream whose client has left."""

    def to_frame(self, payload: bytes, *, is_last: bool) -> bytes:
        """Return nothing."""
        return b""

    def offer(self, payload: bytes, *, is_last: bool) -> bytes:
        """Take everything."""
        return b""

    def find_chunk_sender(self) -> None:
        """Return nothing: what is read must be noted piece by piece."""

    def count_sent(self, length: int) -> None:
        """Count nothing."""

    def send_all(self, frame: bytes | memoryview) -> None:
        """Send nothing."""


class Pump:
    """Relays the body of one streamed answer, noting each piece in `tail`."""

    __slots__ = (
        "_chunks",
        "_decoder",
        "_error",
        "_heartbeat",
        "_last",
        "_passed",
        "_raw",
        "_receive",
        "_rest",
        "_send",
        "_sink",
        "_tail",
        "_waiter",
        "_watch",
        "before_end",
    )

    def __init__(self, raw: RawAnswer, sink: Sink, tail: Tail, watch: CallWatch) -> None:
        self._raw = raw
        self._receive = raw.connection.find_receiver()
        self._decoder = raw.decoder
        # Both are set while an upstream's chunks can go to the client as they are.
        self._chunks: ChunkedDecoder | None = None
        self._send: Callable[[bytes], int] | None = None
        self._passed = 0
        self._sink = sink
        self._tail = tail
        self._watch = watch
        self._waiter: Waiter[None] = Waiter(gevent.get_hub())
        self._rest: bytes | memoryview = b""
        self._error: BaseException | None = None
        # If set, the last bytes are held back until this was called, by the greenlet, as it may wait.
        self.before_end: Callable[[], None] | None = None
        self._last = b""
        self._heartbeat: Heartbeat | None = None

    @property
    def is_torn(self) -> bool:
        """Tell whether only a part of a frame has gone out: anything sent now would be taken for its rest."""
        return bool(self._rest)

    def run(self) -> None:
        """Relay until the body's end. Raises PeerError, Cancelled, and OSError for the client's side."""
        if self._tail.takes_chunks and isinstance(self._decoder, ChunkedDecoder):
            self._chunks, self._send = self._decoder, self._sink.find_chunk_sender()
        try:
            self._start()
            heartbeat_s = self._watch.timeouts.heartbeat_s
            if heartbeat_s is not None and takes_events(self._raw.head.known):
                self._heartbeat = Heartbeat(heartbeat_s, self._count_passed, self._beat)
            while not self._decoder.done or self._rest:
                if self._error is not None:
                    raise self._error
                if self._rest:
                    self._send_rest()
                else:
                    self._park()
            if self._error is not None:
                raise self._error
            if self.before_end is not None:
                self.before_end()
                self._rest = self._sink.offer(self._last, is_last=True)
                self._send_rest()
        finally:
            if self._heartbeat is not None:
                self._heartbeat.stop()
            self._tail.length += self._passed
            self._sink.count_sent(self._passed)

    def _start(self) -> None:
        """Send the status now, with the first bytes of the body only if they are here already."""
        received = self._raw.received
        if self._chunks and self._send and len(received) > _LARGE_FIRST_BYTES:
            frame, length = self._note_torn(received, self._chunks)
            if length:
                self._raw.received = b""
                self._passed += length
                try:
                    self._rest = memoryview(frame)[self._send(frame) :]
                except BlockingIOError:
                    self._rest = frame
                return
        self._offer((self._raw.receive() if received else None) or b"")

    def _send_rest(self) -> None:
        if self._rest:
            self._watch.arm(CLIENT)
            self._sink.send_all(self._rest)
            self._watch.disarm()
            self._rest = b""

    def _count_passed(self) -> int:
        return self._tail.length + self._passed

    def _beat(self) -> None:
        """Put in a comment line, unless the stream is within an event, or not waiting for its upstream."""
        if self._rest or self._decoder.done or self._error or not is_at_boundary(self._tail.end()[-4:]):
            return
        try:
            self._rest = self._sink.offer(_COMMENT, is_last=False)
        except OSError as error:
            self._error = error
        if self._rest or self._error:
            self._wake()

    def _wake(self) -> None:
        self._raw.connection.off_readable()
        self._waiter.switch(None)

    def _park(self) -> None:
        connection = self._raw.connection
        self._watch.arm(IDLE)
        self._waiter.clear()
        connection.on_readable(self._on_readable)
        try:
            self._waiter.get()
        finally:
            connection.off_readable()
            self._watch.disarm()

    def _on_readable(self) -> None:
        try:
            try:
                piece = self._receive(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                raise make_broken_off_error(error) from None
            if piece is None:
                return
            self._watch.has_moved = True
            chunks, send, length = self._chunks, self._send, 0
            if chunks and send:
                length = chunks.whole_length(piece)
                if not length and len(piece) > _LARGE_BYTES:
                    piece, length = self._note_torn(piece, chunks)
                elif length:
                    # Noted before it is sent: if the client is gone, others may still be waiting for this answer.
                    self._tail.add_chunks(piece, chunks.mark)
            if send and length:
                # Whole chunks go on as they are: taking them apart and framing them anew gives the same bytes.
                self._passed += length
                try:
                    sent = send(piece)
                except BlockingIOError:
                    sent = 0
                if sent < len(piece):
                    self._rest = memoryview(piece)[sent:]
                elif not chunks or not chunks.done:
                    return
            else:
                payload = self._raw.decode(piece)
                is_last = self._decoder.done
                if payload or is_last:
                    self._offer(payload)
                if not (self._rest or is_last):
                    return
        except (Exception, Cancelled) as error:
            self._error = error
        self._wake()

    def _note_torn(self, piece: bytes, decoder: ChunkedDecoder) -> tuple[bytes, int]:
        """Note a large piece that begins or ends within a chunk, or has the last one; return it framed for the client.

        After the head, if that isn't out. The number returned is that of the body bytes in its whole chunks. If it is
        0, the piece is returned as it came, and has to be decoded.
        """
        chunks, length, after = self._raw.pass_on(piece)
        if not length:
            return piece, 0
        self._tail.add_chunks(chunks, decoder.mark)
        if after:
            self._tail.add(after)
        head = self._sink.to_frame(b"", is_last=False)
        end = self._sink.to_frame(after, is_last=decoder.done) if after or decoder.done else b""
        return b"".join((head, chunks, end)), length

    def _offer(self, payload: bytes) -> None:
        if self.before_end is not None and self._decoder.done:
            self._last = payload
            if payload:
                self._tail.add(payload)
            return
        if payload:
            self._tail.add(payload)
        self._rest = self._sink.offer(payload, is_last=self._decoder.done)
