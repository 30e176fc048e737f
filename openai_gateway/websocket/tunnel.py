"""One client's WebSocket and the upstream's, tied together: frames pass as they are, `response.create` is a call.

Two greenlets, one for each direction, each reading one side and writing the other; what the gateway itself has to say
to the client (an error, a close) goes in only between two messages of the upstream. States: open -> closing (a close
frame has passed, or one side is gone) -> closed. Whatever ends it, `run` closes both sides and ends every turn.

A side that doesn't read holds up the greenlet that writes to it, which then doesn't see the other side leave. So `tick`
looks at how long each write has taken. A side that sends without end must not keep the hub from others: after bytes
that needn't be waited for, a greenlet lets the others run.

See also: turns (what a create costs), wire.frames, blueprints.websocket (the handshake).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from openai_gateway.errors import GatewayError, UpstreamProtocolError, UpstreamTimeout
from openai_gateway.transport.connection import Connection
from openai_gateway.transport.watch import Ticker, Timeouts, has_left
from openai_gateway.websocket.turns import Turns
from openai_gateway.wire import frames
from openai_gateway.wire.frames import BadFrame, FrameReader, to_close, to_frame

MOST_MESSAGE_BYTES: Final = 16 * 1024 * 1024
# Of the smallest frames, what is read at once takes some 20 ms.
_RECEIVE_BYTES: Final = 16384
_MOST_AT_A_TIME_S: Final = 0.005
_OTHERS_S: Final = 0.0001
# What we have to say while the upstream is within a message; a client that is owed more is given up.
_MOST_TO_TELL: Final = 256
# What a peer gets to answer a close, before its socket is closed all the same.
_CLOSE_S: Final = 1.0


class Tunnel:
    """Carries one WebSocket connection; `client` is a socket of gevent's, which `run` closes."""

    def __init__(
        self,
        upstream: Connection,
        received: bytes,
        client: Any,
        timeouts: Timeouts,
        to_turns: Callable[[Tunnel], Turns],
    ) -> None:
        self._upstream = upstream
        self._received = received
        self._client = client
        self._timeouts = timeouts
        # Since when a write is under way.
        self._client_takes_since: float | None = None
        self._upstream_takes_since: float | None = None
        self._from_client = FrameReader(is_masked=True, most_bytes=MOST_MESSAGE_BYTES)
        self._from_upstream = FrameReader(is_masked=False, most_bytes=MOST_MESSAGE_BYTES)
        self._to_client = BoundedSemaphore(1)
        self._to_upstream = BoundedSemaphore(1)
        self._to_tell: list[bytes] = []
        # The client's message that is under way: its frames, and what they say.
        self._frames = bytearray()
        self._payload = bytearray()
        self._why = "broke off the connection"
        self._over = Event()
        self._others_ran_at = monotonic()
        self._error: GatewayError | None = None
        self._close_code: int | None = None
        self._is_closed_by_us = False
        self.turns = to_turns(self)

    def run(self, is_draining: Callable[[], bool]) -> None:
        """Carry the connection until it ends; then everything is given back."""
        self._is_draining = is_draining
        pumps = [gevent.spawn(self._pump_client), gevent.spawn(self._pump_upstream)]
        _open.add(self)
        try:
            self._over.wait()
            # The other side is told before its socket is closed, and may answer.
            gevent.joinall(pumps, timeout=_CLOSE_S if self._close_code is not None else 0)
        finally:
            _open.discard(self)
            gevent.killall(pumps, block=False)
            self.turns.end(self._error)
            self._upstream.close()
            with contextlib.suppress(OSError):
                self._client.close()

    def tick(self, now: float) -> None:
        """Look at the clock: time-outs of writes and of running responses, and a stop; called from the hub."""
        if self._over.is_set():
            return
        if _is_over(self._client_takes_since, self._timeouts.client_s, now) or (
            self._upstream_takes_since is not None and has_left(self._client.fileno())
        ):
            self._over.set()
            return
        overdue = self._find_overdue(now)
        if overdue is not None:
            gevent.spawn(self._fail, overdue)
        elif self._is_draining():
            self.turns.is_draining = True
            if self.turns.is_idle:
                gevent.spawn(self._close, frames.SERVICE_RESTART, "the gateway is shutting down")

    def _find_overdue(self, now: float) -> UpstreamTimeout | None:
        bound_s = self._timeouts.first_byte_s
        if _is_over(self._upstream_takes_since, bound_s, now):
            return UpstreamTimeout(f"The upstream did not take a message within {bound_s:g} s.")
        # What the upstream sends is not read while the client doesn't take it.
        return self.turns.find_overdue(now) if self._client_takes_since is None else None

    def send(self, text: bytes | None, raw: bytes) -> None:
        """Send a text message upstream, or frames as they are. Raises OSError."""
        data = raw if text is None else to_frame(frames.TEXT, text, is_masked=True)
        with self._to_upstream:
            self._upstream_takes_since = monotonic()
            try:
                self._upstream.send_through(data)
            finally:
                self._upstream_takes_since = None

    def tell(self, text: bytes) -> None:
        """Give the client an event of our own, now or after the message that it is just getting."""
        if len(self._to_tell) >= _MOST_TO_TELL:
            self._over.set()
            return
        self._to_tell.append(to_frame(frames.TEXT, text, is_masked=False))
        if self._from_upstream.is_between_messages:
            self._write_client(b"")

    def _write_client(self, data: bytes) -> None:
        with self._to_client:
            if self._to_tell and self._from_upstream.is_between_messages:
                data += b"".join(self._to_tell)
                self._to_tell.clear()
            if data:
                self._client_takes_since = monotonic()
                try:
                    self._client.sendall(data)
                finally:
                    self._client_takes_since = None

    def _pump_client(self) -> None:
        try:
            while data := self._client.recv(_RECEIVE_BYTES):
                control = bytearray()
                for frame in self._from_client.feed(data):
                    if frame.is_control:
                        control += frame.raw
                        if frame.opcode == frames.CLOSE:
                            self._close_code = frames.to_close_code(frame.payload)
                            break
                    else:
                        self._take(frame)
                if control:
                    self.send(None, bytes(control))
                if self._close_code is not None:
                    break
                self._let_others_run()
        except BadFrame as bad:
            self._close(bad.code, str(bad))
        except OSError:
            pass
        finally:
            self._over.set()

    def _take(self, frame: frames.Frame) -> None:
        """Take a data frame: once a message is whole, what it asks for counts; some upstreams read binary ones, too."""
        self._frames += frame.raw
        self._payload += frame.payload
        if frame.is_final:
            raw, text = bytes(self._frames), bytes(self._payload)
            self._frames.clear()
            self._payload.clear()
            self.turns.take(text, raw)

    def _pump_upstream(self) -> None:
        text = bytearray()
        try:
            data = self._received or self._read()
            while data:
                for frame in self._from_upstream.feed(data):
                    if frame.opcode == frames.CLOSE:
                        self._close_code = frames.to_close_code(frame.payload)
                    elif not frame.is_control:
                        text += frame.payload
                        if frame.is_final:
                            self.turns.see(bytes(text))
                            text.clear()
                self._write_client(data)
                if self._close_code is not None:
                    return
                data = self._read()
            self._lose(self._why)
        except BadFrame as bad:
            self._lose(f"broke the WebSocket protocol: {bad}")
        except OSError:
            # The client is gone: only it is written to here.
            pass
        finally:
            self._over.set()

    def _lose(self, why: str) -> None:
        """Note that the upstream is gone without a close: the client's SDK reconnects on 1011."""
        if self._over.is_set() or self._close_code is not None:
            return
        self._error = UpstreamProtocolError(f"The upstream {why}.")
        self._close(frames.INTERNAL_ERROR, "the upstream is gone")

    def _read(self) -> bytes:
        """Return what the upstream has sent, `b""` if it is gone."""
        try:
            self._let_others_run()
            while (data := self._upstream.receive()) is None:
                self._upstream.wait_readable()
                self._others_ran_at = monotonic()
        except OSError as error:
            self._why = f"broke the connection ({error.strerror})"
            return b""
        return data

    def _let_others_run(self) -> None:
        """Leave the hub to others if they haven't had it for long; only a timer does: sleep(0) looks at no socket."""
        if monotonic() - self._others_ran_at > _MOST_AT_A_TIME_S:
            gevent.sleep(_OTHERS_S)
            self._others_ran_at = monotonic()

    def _fail(self, error: GatewayError) -> None:
        if self._error is None:
            self._error = error
            with contextlib.suppress(OSError), gevent.Timeout(_CLOSE_S, False):  # type: ignore[arg-type]
                self.turns.refuse(error)
            self._close(frames.INTERNAL_ERROR, "a response took too long")

    def _close(self, code: int, reason: str) -> None:
        """Close both sides with a code of our own."""
        if self._is_closed_by_us:
            return
        self._is_closed_by_us = True
        self._close_code = code
        payload = to_close(code, reason)
        with contextlib.suppress(OSError), gevent.Timeout(_CLOSE_S, False):  # type: ignore[arg-type]
            self._write_client(to_frame(frames.CLOSE, payload, is_masked=False))
        with contextlib.suppress(OSError), gevent.Timeout(_CLOSE_S, False):  # type: ignore[arg-type]
            self.send(None, to_frame(frames.CLOSE, to_close(frames.GOING_AWAY), is_masked=True))
        self._over.set()


def _is_over(since: float | None, bound_s: float | None, now: float) -> bool:
    return since is not None and bound_s is not None and now - since > bound_s


_open: Ticker[Tunnel] = Ticker()


def count_open() -> int:
    """Return how many tunnels this process has."""
    return sum(1 for _ in _open)
