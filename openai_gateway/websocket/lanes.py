"""The state of one connection's responses: turns, and the lanes (`stream_id`) in which they follow one another.

See also: turns (what moves them on).
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Protocol

import gevent

from openai_gateway.errors import CallTimeout, GatewayError, UpstreamTimeout
from openai_gateway.transport.watch import Timeouts
from openai_gateway.upstream.progress import Progress
from openai_gateway.wire.call import Call
from openai_gateway.wire.retries import Outcome
from openai_gateway.wire.tail import Tail


class Keeper(Protocol):
    """What a turn needs of the upstream: see upstream.sockets."""

    def begin_turn(self, call: Call) -> Progress:
        """Return the state of a call that may be sent now, having waited for its slot. Raises GatewayError."""

    def join_turn(self, call: Call) -> Progress:
        """Return the state of a call that the upstream has begun already."""

    def answer_turn(self, progress: Progress, outcome: Outcome, text: bytes) -> None:
        """Learn from the first event of a call's answer; an error's status and headers are `outcome`."""

    def end_turn(self, progress: Progress) -> None:
        """Give everything back, and have the call recorded."""


class Turn:
    """A response under way; `tail` is set once it has begun if its events need only be counted, for nobody keeps them.

    `has_moved` says that something has come since `moved_at`.
    """

    __slots__ = ("has_begun", "has_moved", "moved_at", "progress", "tail")

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.moved_at = monotonic()
        self.has_moved = False
        self.has_begun = False
        self.tail: Tail | None = None


class Lane:
    """What waits to be sent (a create's text, or another message's frames), and what runs, in order."""

    __slots__ = ("running", "sender", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[bytes | None, bytes]] = deque()
        self.running: deque[Turn] = deque()
        self.sender: gevent.Greenlet[..., None] | None = None

    def find_overdue(self, timeouts: Timeouts, now: float) -> GatewayError | None:
        """Return the error for a response that has taken too long, if there is one."""
        total_s = timeouts.total_s
        if total_s is not None and any(now - turn.progress.started > total_s for turn in self.running):
            return CallTimeout(f"The call was not over within {total_s:g} s.")
        if not self.running:
            return None
        # The others wait for it.
        turn = self.running[0]
        if turn.has_moved:
            turn.has_moved, turn.moved_at = False, now
        bound_s = timeouts.idle_s if turn.has_begun else timeouts.first_byte_s
        if bound_s is not None and now - turn.moved_at > bound_s:
            return UpstreamTimeout(f"The upstream sent nothing for {bound_s:g} s.")
        return None
