"""Carries what the upstream sends to the client: whole frames as they are, and between them what we have to say.

An event is small and there are many, so most pass within the hub, with no greenlet switch: what has come is whole text
messages, none of them begins or ends a response, and the client takes it at once. Everything else the greenlet does,
which is parked meanwhile. Only it or the hub in its place writes to the client, and only whole frames: so between any
two writes something of our own may go out.

States: parked (the hub looks at what comes) <-> relaying (it may wait for the client; nothing is read meanwhile, so
that a slow client slows its upstream down) -> over: a close frame has passed, or one side is gone. What was cut within
a write stays cut: `takes_since` stays set then, and nothing more may be said.

See also: tunnel (how a connection ends), turns (what the events mean).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import gevent
from gevent.hub import Waiter

from openai_gateway.errors import UpstreamProtocolError
from openai_gateway.transport.connection import RECEIVE_BYTES, Connection
from openai_gateway.websocket.turns import Turns
from openai_gateway.wire import frames
from openai_gateway.wire.frames import FrameReader, read_texts, to_frame

# What we have to say while the upstream is within a message; a client that is owed more is given up.
_MOST_TO_TELL: Final = 256


class Downstream:
    """One connection's way to the client; `received` came with the upstream's handshake."""

    def __init__(self, upstream: Connection, received: bytes, client: Any, most_bytes: int) -> None:
        # Since when a write is under way.
        self.takes_since: float | None = None
        # What the upstream closed with, once it has.
        self.close_code: int | None = None
        self._upstream = upstream
        self._receive_at_once = upstream.find_receiver()
        self._received = received
        self._client = client
        # Past gevent's socket, which only adds the waiting; nothing goes past TLS.
        self._send: Callable[[bytes], int] | None = None if isinstance(client, ssl.SSLSocket) else client._sock.send
        self._reader = FrameReader(is_masked=False, most_bytes=most_bytes)
        self._text = bytearray()
        self._to_tell: list[bytes] = []
        # What the hub could not send.
        self._rest = b""
        self._error: OSError | None = None
        self._is_over = self._is_parked = False
        self._waiter: Waiter[bytes | None] = Waiter(gevent.get_hub())

    def run(self, turns: Turns) -> None:
        """Carry on until the upstream's close has passed, or `stop`.

        Raises OSError if the client is gone, GatewayError for a fault of the upstream.
        """
        self._turns = turns
        data = self._received or None
        while not self._is_over:
            if data is not None:
                self._relay(data)
            if self.close_code is not None:
                return
            self._write_told()
            data = self._park()

    def tell(self, text: bytes) -> bool:
        """Give the client an event of our own, as soon as no message is under way; False if it is owed too many."""
        self._to_tell.append(to_frame(frames.TEXT, text, is_masked=False))
        self._wake_soon()
        return len(self._to_tell) <= _MOST_TO_TELL

    def stop(self) -> None:
        """Have `run` return as soon as nothing is being written."""
        self._is_over = True
        self._wake_soon()

    def say_goodbye(self, close: bytes) -> None:
        """Give the client what it still has to be told, and a close; after `run`. Raises OSError."""
        if self.takes_since is None:
            self._write_told()
            self._write(to_frame(frames.CLOSE, close, is_masked=False))

    def _relay(self, data: bytes) -> None:
        if not data:
            raise UpstreamProtocolError(f"The upstream {self._describe_why()}.")
        raw = []
        for frame in self._reader.feed(data):
            raw.append(frame.raw)
            if frame.opcode == frames.CLOSE:
                self.close_code = frames.read_close_code(frame.payload)
                break
            if not frame.is_control:
                self._text += frame.payload
                if frame.is_final:
                    self._turns.see(bytes(self._text))
                    self._text.clear()
        if raw:
            self._write(b"".join(raw))
        if self._reader.bad is not None and self.close_code is None:
            raise UpstreamProtocolError(f"The upstream broke the WebSocket protocol: {self._reader.bad}.")

    def _describe_why(self) -> str:
        return "broke off the connection" if self._error is None else f"broke the connection ({self._error.strerror})"

    def _write(self, data: bytes) -> None:
        self.takes_since = monotonic()
        self._client.sendall(data)
        self.takes_since = None

    def _write_told(self) -> None:
        while self._to_tell and self._reader.is_between_messages:
            told, self._to_tell = b"".join(self._to_tell), []
            self._write(told)

    def _park(self) -> bytes | None:
        """Return what has come that the hub can't pass on, None if there is something else to do."""
        self._waiter.clear()
        self._is_parked = True
        self._upstream.on_readable(self._pass_on if self._reader.is_empty and self._send is not None else self._look)
        try:
            data = self._waiter.get()
        finally:
            self._is_parked = False
            self._upstream.off_readable()
        if self._rest:
            rest, self._rest = self._rest, b""
            self._write(rest)
        return data

    def _look(self) -> None:
        data = self._receive()
        if data is not None:
            self._wake(data)

    def _receive(self) -> bytes | None:
        try:
            return self._upstream.receive()
        except OSError as error:
            self._error = error
            return b""

    def _pass_on(self) -> None:
        """Pass on what has come, if it is as most that comes is."""
        try:
            data = self._receive_at_once(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._error, data = error, b""
        if data is None:
            return
        texts = read_texts(data)
        if not texts or self._to_tell or not self._turns.pass_on(texts):
            self._wake(data)
            return
        try:
            sent = self._send(data)  # type: ignore[misc]
        except OSError:
            # If the client is gone, the greenlet finds out when it sends.
            sent = 0
        if sent != len(data):
            self._rest = data[sent:]
            self._wake(None)

    def _wake_soon(self) -> None:
        if self._is_parked:
            # gevent lets only the hub wake a waiter.
            gevent.get_hub().loop.run_callback(self._wake, None)

    def _wake(self, data: bytes | None) -> None:
        if self._is_parked:
            self._is_parked = False
            self._upstream.off_readable()
            self._waiter.switch(data)
