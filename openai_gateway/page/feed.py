"""Keeps the viewers of the status page up to date: one snapshot a second, made once however many look.

A viewer is a stream that may last for minutes; its place is given back when it leaves or stops reading. See also:
view (which makes of a snapshot what is sent), access (which decides who is let in).
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from openai_gateway.errors import Cancelled, Unavailable
from openai_gateway.page.view import make_view
from openai_gateway.transport.watch import CLIENT, CallWatch, Timeouts
from openai_gateway.upstream.pump import Sink

MOST_VIEWERS: Final = 20
_INTERVAL_S: Final = 1.0
# A viewer that stops reading is put out, so that another can watch.
_TIMEOUTS: Final = Timeouts(client_s=10.0)
# After that the stream ends, and the browser opens another one by itself; then its key is checked again.
_LONGEST_S: Final = 900.0
_GREETING: Final = b"retry: 1000\n\n"


class Feed:
    """The views of one worker, and how many look at them."""

    def __init__(self, take: Callable[[], dict[str, Any]], clock: Callable[[], float] = monotonic) -> None:
        self._take = take
        self._clock = clock
        self._made_at = float("-inf")
        self._view: dict[str, Any] = {}
        self._event: bytes | None = None
        self.viewers = 0

    def view(self) -> dict[str, Any]:
        """Return what the page shows now; it is less than a second old."""
        now = self._clock()
        if now - self._made_at >= _INTERVAL_S:
            self._view, self._event = make_view(self._take()), None
            self._made_at = now
        return self._view

    def event(self) -> bytes:
        """Return the view as an event."""
        view = self.view()
        if self._event is None:
            self._event = b"data: " + json.dumps(view, separators=(",", ":")).encode() + b"\n\n"
        return self._event

    def enter(self, is_over: Callable[[], bool], client_fd: int | None) -> Viewer:
        """Return the stream of a new viewer, to be closed. Raises Unavailable if there are too many."""
        if self.viewers >= MOST_VIEWERS:
            message = f"{MOST_VIEWERS} viewers look at the status page already; close one, or use /metrics."
            raise Unavailable(message, code="too_many_viewers", retry_after_s=5)
        return Viewer(self, is_over, client_fd)


class Viewer:
    """One viewer's events, as a body that is iterated or pumps itself into a sink; `close()` gives its place back."""

    def __init__(self, feed: Feed, is_over: Callable[[], bool], client_fd: int | None) -> None:
        self._feed = feed
        self._is_over = is_over
        self._client_fd = client_fd
        self._is_open = True
        self._first: bytes | None = _GREETING
        self._ends_at = monotonic() + _LONGEST_S
        feed.viewers += 1

    def __iter__(self) -> Viewer:
        return self

    def __next__(self) -> bytes:
        """Return the next event, the first one at once."""
        first, self._first = self._first, None
        if first is None:
            time.sleep(_INTERVAL_S)
            if self._is_over() or monotonic() >= self._ends_at:
                raise StopIteration
        return (first or b"") + self._feed.event()

    def pump_into(self, sink: Sink) -> None:
        """Write the events into `sink`; a viewer that left or stopped reading is noticed meanwhile."""
        watch = CallWatch(_TIMEOUTS)
        try:
            watch.begin(self._client_fd)
            for event in self:
                watch.arm(CLIENT)
                sink.send_all(sink.to_frame(event, is_last=False))
                watch.disarm()
        except Cancelled:
            raise ConnectionResetError(errno.ECONNRESET, "the viewer left or stopped reading") from None
        finally:
            watch.stop()

    def close(self) -> None:
        """Give the place back; safe to call again."""
        if self._is_open:
            self._is_open = False
            self._feed.viewers -= 1
