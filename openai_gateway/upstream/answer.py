"""An upstream's answer on its way to the client: status, headers, a body to iterate, and `close()`.

Owns slot, connection and watch of its call; `close()` gives all of them back, whatever happened before.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence

import gevent

from openai_gateway.errors import Cancelled, ClientGone, GatewayError, Unavailable, UpstreamTimeout
from openai_gateway.transport.exchange import RawAnswer
from openai_gateway.transport.session import to_upstream_error
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.attempt import Beginning
from openai_gateway.upstream.pump import Pump, Sink
from openai_gateway.upstream.tail import Tail
from openai_gateway.wire.head import Header
from openai_gateway.wire.sse import is_event_stream, to_closing_event


class Answer:
    """What `Relay.send` returns once the upstream's headers are in: iterate it, or `pump_into` a sink.

    `body` is the whole body if it was read at once, else None. `added_headers` are the gateway's own. `on_close(self)`
    is called once; by then `outcome` (as in CallRecord), `error` and `tail` say how it went.
    """

    def __init__(
        self,
        beginning: Beginning,
        *,
        api: str,
        watch: CallWatch,
        idle_s: float | None,
        client_s: float | None,
        on_close: Callable[[Answer], None],
        tail: Tail | None = None,
        added_headers: Sequence[Header] = (),
    ) -> None:
        self.head = beginning.head
        self.body = beginning.body if beginning.raw is None else None
        self._raw = beginning.raw
        self._first = beginning.body
        self._api = api
        self._watch = watch
        self._idle_s = idle_s
        self._client_s = client_s
        self._on_close: Callable[[Answer], None] | None = on_close
        self.outcome = "client_gone"
        self.error: GatewayError | None = None
        self.tail = tail if tail is not None else Tail()
        self.added_headers = added_headers

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next bytes of the body as they come.

        A broken event stream ends with an error event. Any other broken body raises ConnectionResetError, on which
        the server cuts the client's connection: the client must not take it for complete.
        """
        piece, self._first = self._first, b""
        if not piece and self._raw is not None:
            try:
                piece = self._read()
            except (Cancelled, gevent.GreenletExit, Exception) as error:
                return self._end_early(error)
        if not piece:
            self.mark_delivered()
            raise StopIteration
        self.tail.add(piece)
        return piece

    def pump_into(self, sink: Sink) -> None:
        """Write the body into `sink`, as it comes; ends and breaks as iterating does."""
        try:
            if self._raw is None:
                self.tail.add(self._first)
                self._write(sink, self._first, is_last=True)
                self.mark_delivered()
            elif isinstance(self._raw, RawAnswer):
                self._pump(self._raw, sink)
            else:
                for piece in self:
                    self._write(sink, piece, is_last=False)
                self._write(sink, b"", is_last=True)
        except Cancelled:
            raise ConnectionResetError(errno.ECONNRESET, "the client left or stopped reading") from None

    def _pump(self, raw: RawAnswer, sink: Sink) -> None:
        if self._first:
            self.tail.add(self._first)
            self._write(sink, self._first, is_last=False)
        pump = Pump(raw, sink, self.tail, self._watch, self._idle_s, self._to_idle_timeout, self._client_s)
        try:
            pump.run()
        except OSError:
            raise ConnectionResetError(errno.ECONNRESET, "the client left") from None
        except (Cancelled, GatewayError, gevent.GreenletExit) as error:
            event = self._end_early(error)
            if pump.is_torn:
                raise ConnectionResetError(errno.ECONNRESET, "an event was torn") from None
            self._write(sink, event, is_last=True)
        else:
            self.mark_delivered()

    def _write(self, sink: Sink, piece: bytes, *, is_last: bool) -> None:
        rest = sink.offer(piece, is_last=is_last)
        if rest:
            self._watch.arm(self._client_s, ClientGone)
            sink.send_all(rest)
            self._watch.disarm()

    def mark_delivered(self) -> None:
        """Note that the last byte is out."""
        if self.error is None:
            self.outcome = "completed"

    def close(self) -> None:
        """Give connection, slot and watch back; safe to call again."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            self._watch.stop()
            if self._raw is not None:
                self._raw.close()
            on_close(self)

    def _read(self) -> bytes:
        self._watch.arm(self._idle_s, self._to_idle_timeout)
        try:
            piece: bytes = self._raw.read1()
        finally:
            self._watch.disarm()
        return piece

    def _end_early(self, error: BaseException) -> bytes:
        if self._raw is not None:
            self._raw.close()
            self._raw = None
        reason: BaseException = error.reason if isinstance(error, Cancelled) else error
        if isinstance(reason, ClientGone):
            raise ConnectionResetError(errno.ECONNRESET, "the client left") from None
        if isinstance(reason, gevent.GreenletExit):
            reason = Unavailable("The gateway is shutting down.")
        self.error = reason if isinstance(reason, GatewayError) else to_upstream_error(reason)
        self.outcome = "failed"
        if not is_event_stream(self.head.known.get("content-type", "")):
            raise ConnectionResetError(errno.ECONNRESET, "the upstream's answer broke off") from None
        return to_closing_event(self.error, api=self._api, tail=self.tail.end()[-4:])

    def _to_idle_timeout(self) -> GatewayError:
        return UpstreamTimeout(f"The upstream sent nothing for {self._idle_s:g} s.")
