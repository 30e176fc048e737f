"""An upstream's answer on its way to the client: status, headers, a body, and `close()`.

From the moment that the upstream's head is in, this object owns all that the call holds: the connection (by its
RawAnswer), the slot (by its Progress), and the watch. `close()` gives them back, whatever happened before, and has the
call recorded; whoever got the answer has to call it, once or more often. It is an object and no generator because a
generator that was never started runs none of its `finally`.

The body goes out in one of two ways: pumped into a `Sink` (under gunicorn), or iterated (under any other server).
States: made -> going out -> delivered (the last byte is out) | failed (the upstream broke) | its client left -> closed.
Which of the three it was is noted in the Progress, and stands there as `client_gone` until another is known.

See also: pump (how a stream's bytes are moved), recorder (what becomes of a call that is over).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Final

import gevent

from openai_gateway.errors import Cancelled, ClientGone, GatewayError, Unavailable
from openai_gateway.transport.errors import PeerError
from openai_gateway.transport.raw_answer import RawAnswer
from openai_gateway.transport.watch import CLIENT, IDLE, CallWatch
from openai_gateway.upstream.attempt import to_upstream_error
from openai_gateway.upstream.progress import Progress
from openai_gateway.upstream.pump import Nowhere, Pump, Sink
from openai_gateway.wire.head import Header
from openai_gateway.wire.sse import make_closing_event, takes_events
from openai_gateway.wire.tail import Tail

# A shorter wait before the last attempt is not told of in a header.
_WORTH_TELLING_S: Final = 0.01


class Answer:
    """What `Relay.send` returns once the upstream's headers are in: iterate it, or `pump_into` a sink.

    `added_headers` are the gateway's own. `before_end` is called when the body is here to its last byte, before that
    goes out, and `on_over` once it is over, both with the call's Progress, whose `tail` has to be set.
    """

    def __init__(
        self,
        raw: RawAnswer,
        progress: Progress,
        watch: CallWatch,
        on_over: Callable[[Progress], None],
        added_headers: Sequence[Header] = (),
        before_end: Callable[[Progress], None] | None = None,
    ) -> None:
        self.head = raw.head
        # The whole body if all of it is in.
        self.body = raw.body if raw.is_whole else None
        self.added_headers = added_headers
        self._raw = raw
        self._tail = progress.tail or Tail(monotonic)
        self._progress = progress
        self._watch = watch
        self._before_end = before_end
        self._on_over: Callable[[Progress], None] | None = on_over
        # What was read ahead, until it has gone out.
        self._ahead = raw.body

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next bytes of the body as they come.

        A broken event stream ends with an error event. Any other broken body raises ConnectionResetError, on which
        the server cuts the client's connection: the client must not take it for complete.
        """
        piece, self._ahead = self._ahead, b""
        if not piece and not self._raw.is_whole:
            try:
                piece = self._read()
            except (Cancelled, gevent.GreenletExit, Exception) as error:
                return self._end_early(error)
        if not piece:
            self.mark_delivered()
            raise StopIteration
        self._tail.add(piece)
        if self._before_end is not None and (self._raw.is_whole or self._raw.decoder.done):
            self._before_end(self._progress)
        return piece

    def pump_into(self, sink: Sink) -> None:
        """Write the body into `sink`, as it comes; ends and breaks as iterating does."""
        try:
            if self.body is not None:
                self._progress.is_read = True
                self._tail.add(self.body)
                if self._before_end is not None:
                    self._before_end(self._progress)
                write(sink, self._watch, self.body, is_last=True)
                self.mark_delivered()
            else:
                self._pump(sink)
        except Cancelled:
            raise ConnectionResetError(errno.ECONNRESET, "the client left or stopped reading") from None

    def _pump(self, sink: Sink) -> None:
        # A stream may last for hours, and what goes to the client of its head has been handed over.
        self.head = self._raw.head = self._progress.head = self.head.shorten()
        self.added_headers = ()
        ahead, self._ahead = self._ahead, b""
        pump = self._make_pump(sink)
        try:
            if ahead:
                self._tail.add(ahead)
                write(sink, self._watch, ahead, is_last=False)
            pump.run()
        except OSError:
            self._read_on()
            raise ConnectionResetError(errno.ECONNRESET, "the client left") from None
        except (Cancelled, GatewayError, PeerError, gevent.GreenletExit) as error:
            event = self._end_early(error)
            if pump.is_torn:
                raise ConnectionResetError(errno.ECONNRESET, "an event was torn") from None
            write(sink, self._watch, event, is_last=True)
        else:
            self.mark_delivered()

    def _make_pump(self, sink: Sink) -> Pump:
        pump = Pump(self._raw, sink, self._tail, self._watch)
        before_end = self._before_end
        if before_end is not None:
            pump.before_end = lambda: before_end(self._progress)
        return pump

    def _read_on(self) -> None:
        """Read to the end what its client doesn't get any more, if the call outlives it or others wait for it."""
        is_awaited = self._watch.is_awaited
        if not self._progress.call.outlives_client and (is_awaited is None or not is_awaited()):
            return
        try:
            self._make_pump(Nowhere()).run()
            self._progress.is_read = True
        except (Cancelled, PeerError, gevent.GreenletExit) as error:
            with contextlib.suppress(ConnectionResetError):
                self._end_early(error)

    def mark_delivered(self) -> None:
        """Note that the last byte is out."""
        self._progress.is_read = True
        if self._progress.error is None:
            self._progress.outcome = "completed"

    def close(self) -> None:
        """Give connection, slot and watch back; safe to call again."""
        on_over, self._on_over = self._on_over, None
        if on_over is not None:
            self._watch.stop()
            if self.body is None:
                # An answer whose body was read whole has given its connection back.
                self._raw.close()
            on_over(self._progress)

    def _read(self) -> bytes:
        self._watch.arm(IDLE)
        try:
            return self._raw.read()
        finally:
            self._watch.disarm()

    def _end_early(self, error: BaseException) -> bytes:
        """Return the event that ends a broken stream; of anything else, have the connection cut."""
        reason: BaseException = error.reason if isinstance(error, Cancelled) else error
        if isinstance(reason, ClientGone):
            self._read_on()
            raise ConnectionResetError(errno.ECONNRESET, "the client left") from None
        self._raw.close()
        # Nothing more is read: whoever goes on iterating is at the end.
        self._raw.is_whole = True
        if isinstance(reason, PeerError):
            reason = to_upstream_error(reason)
        elif isinstance(reason, gevent.GreenletExit):
            reason = Unavailable("The gateway is shutting down.")
        self._progress.outcome = "failed"
        if not isinstance(reason, GatewayError):
            raise reason
        self._progress.error = reason
        if not takes_events(self.head.known):
            raise ConnectionResetError(errno.ECONNRESET, "the upstream's answer broke off") from None
        return make_closing_event(reason, api=self._progress.call.api, tail=self._tail.end()[-4:])


def write(sink: Sink, watch: CallWatch, piece: bytes, *, is_last: bool) -> None:
    """Write a piece into the sink, waiting for the client as long as it may take. Raises OSError, Cancelled."""
    rest = sink.offer(piece, is_last=is_last)
    if rest:
        watch.arm(CLIENT)
        sink.send_all(rest)
        watch.disarm()


def make_own_headers(progress: Progress) -> list[Header]:
    """Return the headers in which the gateway tells of a call."""
    headers = [
        ("x-gateway-request-id", progress.call.request_id),
        ("x-gateway-attempts", str(progress.attempts)),
        ("x-gateway-queue-ms", f"{progress.queue_wait_s * 1000:.0f}"),
    ]
    if progress.queue_reason:
        headers.append(("x-gateway-queue-reason", progress.queue_reason))
    if progress.retries:
        headers.append(("x-gateway-retries", ",".join(progress.retries)))
    waited_s = progress.last_attempt - progress.started
    if progress.retries or waited_s > progress.queue_wait_s + _WORTH_TELLING_S:
        # All the time before the last attempt: the queue, earlier attempts, pauses.
        headers.append(("x-gateway-wait-ms", f"{waited_s * 1000:.0f}"))
    return headers
