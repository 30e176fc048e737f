"""Watches one call: is its client still there, is its time up; if not, throws Cancelled into its greenlet.

One ticking timer serves all deadlines of a kind, so that a deadline costs a call no timer of its own.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

import gevent
from gevent.monkey import get_original

from openai_gateway.errors import CallTimeout, Cancelled, ClientGone, GatewayError

TICK_S: Final = 0.1
_READ: Final = 1
_LEFT: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
_poll = get_original("select", "poll")


def has_left(fd: int) -> bool:
    """Tell whether the peer of a socket has closed or reset it, without reading from it."""
    poll = _poll()
    poll.register(fd, _LEFT)
    return bool(poll.poll(0))


class CallWatch:
    """Watches the call that the current greenlet serves, from its making to `stop()`.

    A client that left ends the watch; after a deadline it goes on, for a further attempt.
    """

    __slots__ = (
        "_client_fd",
        "_deadline",
        "_greenlet",
        "_io",
        "_patience_s",
        "_probing",
        "_to_error",
        "_total_deadline",
        "_total_s",
        "has_moved",
    )

    def __init__(self) -> None:
        self._greenlet = gevent.getcurrent()
        self._client_fd: int | None = None
        self._deadline: float | None = None
        self._patience_s = 0.0
        # Set by whoever moves bytes: the deadline then starts anew at the next tick, without a look at the clock.
        self.has_moved = False
        self._to_error: Callable[[], GatewayError | ClientGone] | None = None
        self._total_s: float | None = None
        self._total_deadline: float | None = None
        self._probing = False
        self._io: Any = None
        _watches.add(self)

    def bound(self, total_s: float | None) -> None:
        """End the whole call `total_s` from now; None is no limit."""
        if total_s is not None:
            self._total_s = total_s
            self._total_deadline = monotonic() + total_s

    def watch_client(self, fd: int) -> None:
        """Watch the client's socket too; to be called once its body is read, for what comes after is a sign.

        From the next tick on: most calls that are over before it need no watch, which costs four system calls.
        """
        self._client_fd = fd

    def arm(self, seconds: float | None, to_error: Callable[[], GatewayError | ClientGone]) -> None:
        """End the call with `to_error()` unless it is armed anew or disarmed within `seconds`; None is no limit."""
        self._to_error = to_error
        if seconds is None:
            self._deadline = None
        else:
            self._patience_s = seconds
            self._deadline = monotonic() + seconds

    def disarm(self) -> None:
        """Take the deadline away."""
        self._deadline = None

    def stop(self) -> None:
        """End the watch; nothing is thrown from here on."""
        self._deadline = None
        self._total_deadline = None
        # Whoever made it may hold this watch: no cycle is left to the garbage collector.
        self._to_error = None
        self._probing = False
        self._client_fd = None
        if self._io is not None:
            self._io.stop()
            self._io.close()
            self._io = None
        _watches.discard(self)

    def tick(self, now: float) -> None:
        """Look at the clock, and at a client whose pipelined bytes keep its socket readable."""
        if self.has_moved:
            self.has_moved = False
            if self._deadline is not None:
                self._deadline = now + self._patience_s
        if self._deadline is not None and now >= self._deadline and self._to_error is not None:
            self._deadline = None
            self._greenlet.throw(Cancelled(self._to_error()))
        elif self._total_deadline is not None and now >= self._total_deadline:
            self._total_deadline = None
            self._greenlet.throw(Cancelled(CallTimeout(f"The call was not over within {self._total_s:g} s.")))
        elif self._client_fd is not None:
            if self._io is None:
                self._io = gevent.get_hub().loop.io(self._client_fd, _READ)
                self._io.start(self._on_readable)
            elif self._probing and has_left(self._client_fd):
                self._leave()

    def cancel(self, reason: GatewayError) -> None:
        """End the call with `reason` now; to be called from the hub."""
        self.stop()
        self._greenlet.throw(Cancelled(reason))

    def _on_readable(self) -> None:
        if self._client_fd is None or self._io is None:
            return
        if has_left(self._client_fd):
            self._leave()
        else:
            # Pipelined bytes: the socket stays readable, so look at each tick instead of spinning.
            self._io.stop()
            self._probing = True

    def _leave(self) -> None:
        self.stop()
        self._greenlet.throw(Cancelled(ClientGone()))


class Ticked(Protocol):
    """What has to look at the clock now and then."""

    def tick(self, now: float) -> None:
        """Do what is due at `now`, on the monotonic clock; called from the hub."""


TickedT = TypeVar("TickedT", bound=Ticked)


class Ticker(Generic[TickedT]):
    """Ticks everything that was added and not discarded, ten times a second; without any it costs nothing."""

    def __init__(self) -> None:
        self._ticked: set[TickedT] = set()
        self._timer: Any = None
        self.discard = self._ticked.discard

    def add(self, ticked: TickedT) -> None:
        """Tick this from now on."""
        self._ticked.add(ticked)
        if self._timer is None:
            self._timer = gevent.get_hub().loop.timer(TICK_S, TICK_S, ref=False)
            self._timer.start(self._tick)

    def __iter__(self) -> Iterator[TickedT]:
        """Give each that is still there when its turn comes: what one causes may discard others."""
        for ticked in list(self._ticked):
            if ticked in self._ticked:
                yield ticked

    def _tick(self) -> None:
        now = monotonic()
        for ticked in self:
            ticked.tick(now)
        if not self._ticked:
            self._timer.stop()
            self._timer.close()
            self._timer = None


_watches: Ticker[CallWatch] = Ticker()


def _cancel_all(to_reason: Callable[[], GatewayError]) -> None:
    for watch in _watches:
        watch.cancel(to_reason())


def cancel_all_in(seconds: float, to_reason: Callable[[], GatewayError]) -> None:
    """End every call that is still under way so many seconds from now with `to_reason()`."""
    call_in_hub(seconds, _cancel_all, to_reason)


def call_in_hub(seconds: float, act: Callable[..., None], *arguments: Any) -> None:
    """Have the hub call `act` so many seconds from now: only there it can throw into one greenlet after another."""
    timer = gevent.get_hub().loop.timer(seconds, ref=False)
    _pending_timers.append(timer)
    timer.start(act, *arguments)


_pending_timers: list[Any] = []
