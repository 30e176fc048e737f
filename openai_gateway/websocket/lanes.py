"""The state of one connection's responses: turns, and the lanes (`stream_id`) in which they follow one another.

See also: turns (what moves them on).
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Final, Protocol

import gevent

from openai_gateway.errors import CallTimeout, ClientGone, GatewayError, UpstreamTimeout
from openai_gateway.limits import slots
from openai_gateway.transport.watch import Timeouts
from openai_gateway.upstream.progress import Progress
from openai_gateway.websocket import events
from openai_gateway.websocket.events import ServerEvent, read_error_event
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Head
from openai_gateway.wire.retries import Outcome
from openai_gateway.wire.tail import Tail, make_tail

# How long a slot is kept for a response that the upstream is to begin by itself. It begins it at once, or never.
_FOLLOWS_WITHIN_S: Final = 10.0
_MOST_STEERS: Final = 64
# The heads that records need: they read a turn's events as those of a stream, an error as a JSON answer.
_EVENTS: Final = Head(200, "OK", [("content-type", "text/event-stream")])
_ERROR: Final = Head(200, "OK", [("content-type", "application/json")])
_ANSWERED: Final = Outcome(200, {})


class TurnRelay(Protocol):
    """What a turn needs of the upstream: see sockets."""

    def begin_turn(self, call: Call) -> Progress:
        """Return the state of a call that may be sent now, having waited for its slot. Raises GatewayError."""

    def join_turn(self, call: Call, kept: slots.Admitted | None) -> Progress:
        """Return the state of a call that the upstream has begun already, with the slot that was kept for it."""

    def drop_turn(self, call: Call, error: GatewayError | ClientGone) -> None:
        """Have a call recorded that was never sent."""

    def answer_turn(self, progress: Progress, outcome: Outcome, text: bytes) -> None:
        """Learn from the first event of a call's answer; an error's status and headers are `outcome`."""

    def end_turn(self, progress: Progress) -> None:
        """Give everything back, and have the call recorded."""


class Turn:
    """A response under way. `tail` is set once it has begun, if its events are only counted and nobody keeps them.

    `has_moved` says that something has come since `moved_at`.
    """

    __slots__ = ("has_begun", "has_moved", "moved_at", "progress", "tail")

    def __init__(self, progress: Progress) -> None:
        progress.status, progress.head = 200, _EVENTS
        progress.tail = make_tail(_EVENTS, monotonic, is_captured=progress.call.received is not None)
        progress.drop_body()
        self.progress = progress
        self.moved_at = monotonic()
        self.has_moved = False
        self.has_begun = False
        self.tail: Tail | None = None

    def begin(self, event: ServerEvent, text: bytes) -> Outcome:
        """Note the first event: an error is an answer of that status; of a later one, what came before may be paid."""
        self.has_begun = True
        progress = self.progress
        is_captured = progress.call.received is not None
        if event.type == events.ERROR:
            error = read_error_event(text)
            progress.status, progress.head = error.status, _ERROR
            progress.tail = make_tail(_ERROR, monotonic, is_captured=is_captured)
            progress.tail.add(text)
            headers = {name.lower(): str(value) for name, value in (error.error.headers or {}).items()}
            return Outcome(error.status, headers, error.error.code)
        assert progress.tail is not None
        progress.tail.add(events.to_stream_event(text))
        if not is_captured:
            self.tail = progress.tail
        return _ANSWERED


class Lane:
    """What waits to be sent (a create's text, or another message's frames), and what runs, in order.

    `error` is set once a response of it has taken too long: then all that it has fails. The upstream may still be at
    it, so that slots and reservations stay taken until the last event does come, or the connection ends.

    `steers` has what the upstream has accepted for a response that it will begin by itself. As that follows the one
    that runs, it has its slot, which is `kept` in between.
    """

    __slots__ = ("error", "kept", "kept_until", "running", "sender", "steers", "waiting")

    def __init__(self) -> None:
        self.error: GatewayError | None = None
        self.kept: slots.Admitted | None = None
        self.kept_until = 0.0
        self.steers: set[str] = set()
        self.waiting: deque[tuple[bytes | None, bytes]] = deque()
        self.running: deque[Turn] = deque()
        self.sender: gevent.Greenlet[..., None] | None = None

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing runs here, waits or is to come."""
        return not (self.running or self.waiting or self.sender or self.kept)

    def end_first(self) -> Progress:
        """Return the state of the response whose last event has come; its slot stays if another one follows it."""
        progress = self.running.popleft().progress
        progress.outcome, progress.error = ("completed", None) if self.error is None else ("failed", self.error)
        if self.running:
            # The next one's time begins now.
            self.running[0].moved_at = monotonic()
        elif self.steers and self.sender is None and self.error is None:
            self.kept, progress.admitted = progress.admitted, None
            self.kept_until = monotonic() + _FOLLOWS_WITHIN_S
        return progress

    def take_kept(self) -> slots.Admitted | None:
        """Return the slot that was kept, if one was."""
        kept, self.kept = self.kept, None
        return kept

    def drop_kept(self) -> None:
        """Give back the slot that was kept, if one was."""
        kept = self.take_kept()
        if kept is not None:
            kept.release()

    def steer(self, steer_id: str, *, is_accepted: bool) -> None:
        """Note what has become of a steer."""
        if not is_accepted:
            self.steers.discard(steer_id)
            if not self.steers:
                self.drop_kept()
        elif len(self.steers) < _MOST_STEERS:
            self.steers.add(steer_id)

    def find_overdue(self, timeouts: Timeouts, now: float) -> GatewayError | None:
        """Return the error for a response that has taken too long, if there is one."""
        total_s = timeouts.total_s
        if total_s is not None and any(now - turn.progress.started > total_s for turn in self.running):
            return CallTimeout(f"The call was not over within {total_s:g} s.")
        if not self.running:
            return None
        # Only the first one can be late: those behind it wait for it.
        turn = self.running[0]
        if turn.has_moved:
            turn.has_moved, turn.moved_at = False, now
        bound_s = timeouts.idle_s if turn.has_begun else timeouts.first_byte_s
        if bound_s is not None and now - turn.moved_at > bound_s:
            return UpstreamTimeout(f"The upstream sent nothing for {bound_s:g} s.")
        return None
