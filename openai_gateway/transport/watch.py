"""Watches one call: whether its client is still there and whether its time is up; if so, ends it with Cancelled.

A greenlet that serves a call may be parked anywhere: in the queue, in a connect, in a read, in a backoff. None of those
waits knows of clients or deadlines. The watch stands beside them: it is made by the greenlet that it may have to end,
and throws Cancelled into that greenlet, from the hub, wherever it is parked.

States: made -> armed for a phase (each phase has its time-out) <-> disarmed -> stopped. From `begin` on, the whole
call is bounded and its client watched. A call that ran into a phase's time-out may be tried again with the same watch;
one whose client has left is over.

One ticking timer serves all watches, ten times a second: a deadline is a number that is compared at the next tick, so
that it costs a call no timer of its own. With thousands of streams even the comparing would show: a watch whose
deadline is far rests for a hundredth of it, 5 s at most, so that a deadline may be kept that much late.

See also: ticker, server.waits (ticks idle clients), wsgi (ends all calls when draining is over).
"""

from __future__ import annotations

import select
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import gevent
from gevent.monkey import get_original

from openai_gateway.errors import BodyTimeout, CallTimeout, Cancelled, ClientGone
from openai_gateway.transport.errors import TimedOut
from openai_gateway.transport.ticker import Ticker

_MOST_REST_S: Final = 5.0
_LEAST_REST_S: Final = 0.5
_REST_OF_PATIENCE: Final = 0.01
_READ: Final = 1
_LEFT: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
_poll = get_original("select", "poll")


def has_left(fd: int) -> bool:
    """Tell whether the peer of a socket has closed or reset it, without reading from it."""
    poll = _poll()
    poll.register(fd, _LEFT)
    return bool(poll.poll(0))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The bounds of a call's phases in seconds; None is no bound.

    `client_s` bounds each wait for the client, to send its body or to read; `total_s` everything after its body. A
    stream that is silent for `heartbeat_s` gets a sign of life put in; None: it does not.
    """

    connect_s: float | None = None
    first_byte_s: float | None = None
    idle_s: float | None = None
    client_s: float | None = None
    total_s: float | None = None
    heartbeat_s: float | None = None


class Phase:
    """What a call waits for: which field of Timeouts bounds it, and the error that ends the call when time is up."""

    __slots__ = ("bound", "make_error")

    def __init__(self, bound: str, make_error: Callable[[float], Exception]) -> None:
        self.bound = bound
        self.make_error = make_error


CONNECT: Final = Phase("connect_s", lambda s: TimedOut(f"did not accept a connection within {s:g} s"))
FIRST_BYTE: Final = Phase("first_byte_s", lambda s: TimedOut(f"did not answer within {s:g} s"))
IDLE: Final = Phase("idle_s", lambda s: TimedOut(f"sent nothing for {s:g} s"))
REQUEST_BODY: Final = Phase("client_s", lambda s: BodyTimeout(f"The request body did not arrive within {s:g} s."))
CLIENT: Final = Phase("client_s", lambda _: ClientGone())


class CallWatch:
    """Watches the call that the current greenlet serves, from its making to `stop()`."""

    __slots__ = (
        "_client_fd",
        "_deadline",
        "_greenlet",
        "_io",
        "_is_probing",
        "_looks_at",
        "_patience_s",
        "_phase",
        "_total_deadline",
        "has_moved",
        "is_awaited",
        "timeouts",
    )

    def __init__(self, timeouts: Timeouts) -> None:
        self._greenlet = gevent.getcurrent()
        self.timeouts = timeouts
        self._phase = CONNECT
        self._deadline: float | None = None
        self._patience_s = 0.0
        # Whoever moves bytes sets this, and the next tick puts the deadline off. Reading the clock for each event of a
        # stream would cost more than the event.
        self.has_moved = False
        self._total_deadline: float | None = None
        self._client_fd: int | None = None
        self._is_probing = False
        self._io: Any = None
        # The time of the next tick while the watch rests, else 0.0.
        self._looks_at = 0.0
        # Asked when the client has left: the call goes on if somebody else wants its answer.
        self.is_awaited: Callable[[], bool] | None = None
        if _watches.is_running:
            _watches.awake.add(self)
        else:
            _watches.add(self)

    def begin(self, client_fd: int | None) -> None:
        """Bound the whole call from now on, and watch the client's socket unless `client_fd` is None.

        To be called once the client's body is read: if the socket is readable after that, the client has left or has
        sent its next request. The socket is looked at from the next tick on, for most calls are over before, and
        watching it takes four system calls.
        """
        self._client_fd = client_fd
        if self._looks_at:
            self._look_again()
        if self.timeouts.total_s is not None:
            self._total_deadline = monotonic() + self.timeouts.total_s

    def arm(self, phase: Phase) -> None:
        """End the call with the phase's error unless armed anew or disarmed within the phase's bound."""
        self._phase = phase
        seconds = getattr(self.timeouts, phase.bound)
        if seconds is None:
            self._deadline = None
        else:
            self._patience_s = seconds
            self._deadline = monotonic() + seconds
            if self._deadline < self._looks_at:
                self._look_again()

    def disarm(self) -> None:
        """Take the phase's deadline away."""
        self._deadline = None

    def stop(self) -> None:
        """End the watch; nothing is thrown from here on."""
        self._deadline = None
        self._total_deadline = None
        self._is_probing = False
        self._client_fd = None
        if self._io is not None:
            self._io.stop()
            self._io.close()
            self._io = None
        if self._looks_at:
            self._look_again()
        _watches.discard(self)

    def _look_again(self) -> None:
        self._looks_at = 0.0
        _watches.add(self)

    def tick(self, now: float) -> float:
        """Look at the clock, and at the client; return for how long there is no need to look again."""
        self._looks_at = 0.0
        if self.has_moved:
            self.has_moved = False
            if self._deadline is not None:
                self._deadline = now + self._patience_s
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            self._greenlet.throw(Cancelled(self._phase.make_error(self._patience_s)))
            return 0.0
        if self._total_deadline is not None and now >= self._total_deadline:
            self._total_deadline = None
            total_s = self.timeouts.total_s
            self._greenlet.throw(Cancelled(CallTimeout(f"The call was not over within {total_s:g} s.")))
            return 0.0
        if self._client_fd is not None:
            if self._io is None:
                self._io = gevent.get_hub().loop.io(self._client_fd, _READ)
                self._io.start(self._on_readable)
            elif self._is_probing:
                if has_left(self._client_fd):
                    self._leave()
                return 0.0
        return self._rest(now)

    def _rest(self, now: float) -> float:
        rest_s = _MOST_REST_S
        if self._deadline is not None:
            rest_s = min(rest_s, self._patience_s * _REST_OF_PATIENCE, self._deadline - now)
        if self._total_deadline is not None:
            rest_s = min(rest_s, self._total_deadline - now)
        if rest_s < _LEAST_REST_S:
            return 0.0
        self._looks_at = now + rest_s
        return rest_s

    def cancel(self, reason: Exception) -> None:
        """End the call with `reason` now; to be called from the hub."""
        self.stop()
        self._greenlet.throw(Cancelled(reason))

    def _on_readable(self) -> None:
        if self._client_fd is None or self._io is None:
            return
        if has_left(self._client_fd):
            self._leave()
        else:
            # The client has sent its next request already. Its socket stays readable, so that the hub would call this
            # without end: from now on the socket is asked at each tick instead.
            self._io.stop()
            self._is_probing = True
            if self._looks_at:
                self._look_again()

    def _leave(self) -> None:
        if self.is_awaited is not None and self.is_awaited():
            self._client_fd = None
            if self._io is not None:
                self._io.stop()
            return
        self.stop()
        self._greenlet.throw(Cancelled(ClientGone()))


_watches: Ticker[CallWatch] = Ticker()


def _cancel_all(make_reason: Callable[[], Exception]) -> None:
    for watch in _watches:
        watch.cancel(make_reason())


def cancel_all_in(seconds: float, make_reason: Callable[[], Exception]) -> None:
    """End every call that is still under way so many seconds from now with `make_reason()`."""
    call_in_hub(seconds, _cancel_all, make_reason)


def call_in_hub(seconds: float, act: Callable[..., None], *arguments: Any) -> None:
    """Have the hub call `act` so many seconds from now: only there it can throw into one greenlet after another."""
    timer = gevent.get_hub().loop.timer(seconds, ref=False)
    _pending_timers.append(timer)
    timer.start(act, *arguments)


_pending_timers: list[Any] = []
