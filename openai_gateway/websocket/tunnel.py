"""One client's WebSocket and the upstream's, tied together: frames pass as they are, `response.create` is a call.

Two greenlets, one for each direction: `downstream` carries what the upstream sends, the client's messages are taken
here. A third, the connection's own, waits for the end and sees to it: whoever finds a reason to end says so by `_end`,
the first reason counts, and what each side still has to be told is said in one place. States: open -> over (a close
frame has passed, one side is gone, or there is a reason of our own) -> closed. Whatever ends it, `run` closes both
sides and ends every turn.

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

from openai_gateway.errors import Cancelled, GatewayError, UpstreamProtocolError, UpstreamTimeout
from openai_gateway.transport.connection import Connection
from openai_gateway.transport.ticker import Ticker
from openai_gateway.transport.watch import CallWatch, Timeouts, has_left
from openai_gateway.websocket.downstream import Downstream
from openai_gateway.websocket.turns import Turns
from openai_gateway.wire import frames
from openai_gateway.wire.frames import FrameReader, make_close, to_frame

MOST_MESSAGE_BYTES: Final = 16 * 1024 * 1024
# So many bytes of the smallest frames take some 20 ms.
_RECEIVE_BYTES: Final = 16384
_MOST_AT_A_TIME_S: Final = 0.005
_OTHERS_S: Final = 0.0001
# What a peer gets to answer a close, before its socket is closed all the same.
_CLOSE_S: Final = 1.0


class Tunnel:
    """Carries one WebSocket connection; `client` is a socket of gevent's, which `run` closes.

    A client's message may have `most_bytes`, and the 16 MiB that the API takes.
    """

    def __init__(
        self,
        upstream: Connection,
        received: bytes,
        client: Any,
        timeouts: Timeouts,
        to_turns: Callable[[Tunnel], Turns],
        most_bytes: int = MOST_MESSAGE_BYTES,
    ) -> None:
        self._upstream = upstream
        self._client = client
        self._timeouts = timeouts
        self._downstream = Downstream(upstream, received, client, MOST_MESSAGE_BYTES)
        # Since when a write is under way; it stays set if that was cut: nothing may follow half a frame.
        self._upstream_takes_since: float | None = None
        self._from_client = FrameReader(is_masked=True, most_bytes=min(most_bytes, MOST_MESSAGE_BYTES))
        self._to_upstream = BoundedSemaphore(1)
        # The client's message that has come in part: since when, its frames as they came, and their payload.
        self._begun_at: float | None = None
        self._frames = bytearray()
        self._payload = bytearray()
        self._others_ran_at = monotonic()
        self._has_closed = False
        self._over = Event()
        # The error that running responses end with; None if the client has left.
        self._error: GatewayError | None = None
        # The code we close with; None if a close frame has passed already, or the client is gone.
        self._farewell: bytes | None = None
        self.turns = to_turns(self)

    def run(self, is_draining: Callable[[], bool]) -> None:
        """Carry the connection until it ends; then everything is given back."""
        self._is_draining = is_draining
        # Without bounds of its own: only a stop that waits no longer ends this greenlet by it.
        watch = CallWatch(Timeouts())
        pumps = [gevent.spawn(self._pump_client), gevent.spawn(self._pump_upstream)]
        _open.add(self)
        try:
            self._over.wait()
            watch.stop()
            self._part(*pumps)
        except Cancelled as cancelled:
            self._fail(cancelled.reason, frames.SERVICE_RESTART)
            self._part(*pumps)
        finally:
            watch.stop()
            _open.discard(self)
            gevent.killall(pumps)
            self.turns.end(self._error)
            self._upstream.close()
            with contextlib.suppress(OSError):
                self._client.close()

    def tick(self, now: float) -> None:
        """Look at the clock: time-outs of writes and of running responses, and a stop; called from the hub."""
        if self._over.is_set():
            return
        if _is_over(self._downstream.takes_since, self._timeouts.client_s, now) or (
            self._upstream_takes_since is not None and has_left(self._client.fileno())
        ):
            self._over.set()
            return
        overdue = self._find_overdue(now)
        if overdue is not None:
            self._fail(overdue)
        elif self._upstream_takes_since is None and _is_over(self._begun_at, self._timeouts.client_s, now):
            self._end(None, frames.POLICY_VIOLATION, "a message took too long")
        elif self._is_draining():
            self.turns.is_draining = True
            if self.turns.is_idle:
                self._end(None, frames.SERVICE_RESTART, "the gateway is shutting down")

    def _find_overdue(self, now: float) -> GatewayError | None:
        bound_s = self._timeouts.first_byte_s
        if _is_over(self._upstream_takes_since, bound_s, now):
            return UpstreamTimeout(f"The upstream did not take a message within {bound_s:g} s.")
        # What the upstream sends is not read while the client doesn't take it.
        return self.turns.find_overdue(now) if self._downstream.takes_since is None else None

    def send(self, text: bytes | None, raw: bytes) -> None:
        """Send a text message upstream, or frames as they are. Raises OSError."""
        data = raw if text is None else to_frame(frames.TEXT, text, is_masked=True)
        with self._to_upstream:
            self._upstream_takes_since = monotonic()
            self._upstream.send_through(data)
            self._upstream_takes_since = None

    def tell(self, text: bytes) -> None:
        """Give the client an event of our own."""
        if not self._downstream.tell(text):
            self._over.set()

    def _pump_client(self) -> None:
        try:
            while data := self._client.recv(_RECEIVE_BYTES):
                if self._take_frames(data):
                    break
                self._let_others_run()
        except OSError:
            pass
        finally:
            self._over.set()

    def _take_frames(self, data: bytes) -> bool:
        """Take what the client has sent; tell whether that is the last of it."""
        control = bytearray()
        is_last = False
        for frame in self._from_client.feed(data):
            if not frame.is_control:
                self._take(frame)
                continue
            control += frame.raw
            if frame.opcode == frames.CLOSE:
                is_last = self._has_closed = True
                break
        self._begun_at = None if self._from_client.is_empty else self._begun_at or monotonic()
        if control:
            self.send(None, bytes(control))
        bad = self._from_client.bad
        if bad is not None and not is_last:
            self._end(None, bad.code, str(bad))
        return is_last or bad is not None

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
        try:
            self._downstream.run(self.turns)
            if self._error is None and not self._over.is_set():
                self._error = UpstreamProtocolError(
                    f"The upstream closed the connection ({self._downstream.close_code})."
                )
        except UpstreamProtocolError as error:
            self._end(error, frames.INTERNAL_ERROR, "the upstream is gone")
        except GatewayError as error:
            self._fail(error, frames.POLICY_VIOLATION)
        except OSError:
            # The client is gone: only it is written to there.
            pass
        finally:
            self._over.set()

    def _let_others_run(self) -> None:
        """Leave the hub to others if they haven't had it for long; only a timer does: sleep(0) looks at no socket."""
        if monotonic() - self._others_ran_at > _MOST_AT_A_TIME_S:
            gevent.sleep(_OTHERS_S)
            self._others_ran_at = monotonic()

    def _fail(self, error: Exception, code: int = frames.INTERNAL_ERROR) -> None:
        """End with an error of which the client is told in each lane in which something runs."""
        if isinstance(error, GatewayError) and not self._over.is_set():
            self.turns.refuse(error)
            self._end(error, code, "a response could not go on")

    def _end(self, error: GatewayError | None, code: int, reason: str) -> None:
        """End both sides with a code of our own."""
        if not self._over.is_set():
            self._error, self._farewell = error, make_close(code, reason)
            self._over.set()

    def _part(self, from_client: gevent.Greenlet[[], None], from_upstream: gevent.Greenlet[[], None]) -> None:
        """Tell each side what it has to be told, and give it a moment to answer."""
        if self._farewell is None:
            # If both sides are there and one was sent a close, its answer still passes before both end.
            is_closing = self._has_closed or self._downstream.close_code is not None
            gevent.joinall([from_client, from_upstream], timeout=_CLOSE_S if is_closing else 0)
            return
        from_client.kill()
        self._downstream.stop()
        from_upstream.join(_CLOSE_S)
        from_upstream.kill()
        with contextlib.suppress(OSError), gevent.Timeout(_CLOSE_S, False):  # type: ignore[arg-type]
            self._downstream.say_goodbye(self._farewell)
        if self._upstream_takes_since is None:
            with contextlib.suppress(OSError), gevent.Timeout(_CLOSE_S, False):  # type: ignore[arg-type]
                self.send(None, to_frame(frames.CLOSE, make_close(frames.GOING_AWAY), is_masked=True))


def _is_over(since: float | None, bound_s: float | None, now: float) -> bool:
    return since is not None and bound_s is not None and now - since > bound_s


_open: Ticker[Tunnel] = Ticker()


def count_open() -> int:
    """Return how many tunnels this process has."""
    return sum(1 for _ in _open)
