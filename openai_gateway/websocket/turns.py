"""The responses of one WebSocket: each `response.create` is a call, with a slot, a record, time-outs, as a POST has.

A connection has lanes, named by `stream_id`; a lane's responses come one after the other, several lanes' at once.
States of a turn: queued (waits for its slot, and holds up what comes after it in its lane, nothing else) -> running
(sent; the next events of its lane are its own) -> over (its last event has come, or the connection is gone).

See also: tunnel (the bytes), relay (slots, breaker, records).
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

import gevent
import msgspec

from openai_gateway.errors import Cancelled, ClientGone, GatewayError, InvalidRequest, Unavailable, UpstreamTimeout
from openai_gateway.transport.watch import Timeouts
from openai_gateway.upstream.progress import Progress
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Head
from openai_gateway.wire.tail import to_tail

_log = logging.getLogger("openai_gateway")
_CREATE: Final = "response.create"
_LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})
# What one connection may have waiting and under way: far more than the API runs at once (16).
_MOST_MESSAGES: Final = 256
_MOST_WAITING_BYTES: Final = 32 * 1024 * 1024
_MOST_NAME_LENGTH: Final = 256
# Records read a turn's events as they read a stream's.
_EVENTS: Final = Head(200, "OK", [("content-type", "text/event-stream")])
_ERROR: Final = Head(200, "OK", [("content-type", "application/json")])


class Keeper(Protocol):
    """What a turn needs of the relay."""

    def begin_turn(self, call: Call) -> Progress:
        """Return the state of a call that may be sent now, having waited for its slot. Raises GatewayError."""

    def end(self, progress: Progress) -> None:
        """Give everything back, and have the call recorded."""


class _ClientEvent(msgspec.Struct):
    # Of any type: whether a create with a wrong one is refused is not for its reader here to decide.
    type: Any = None
    stream_id: Any = None


class _ErrorFields(msgspec.Struct):
    code: str | int | None = None


class _ServerEvent(msgspec.Struct):
    type: str | None = None
    stream_id: str | None = None
    status: int | None = None


class _Turn:
    __slots__ = ("has_begun", "moved_at", "progress")

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.moved_at = monotonic()
        self.has_begun = False


class _Lane:
    __slots__ = ("running", "sender", "waiting")

    def __init__(self) -> None:
        # Messages that are still to be sent: a create's text, or another's frames.
        self.waiting: deque[tuple[bytes | None, bytes]] = deque()
        self.running: deque[_Turn] = deque()
        self.sender: gevent.Greenlet[..., None] | None = None


_client_events = msgspec.json.Decoder(_ClientEvent)
_server_events = msgspec.json.Decoder(_ServerEvent)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _read(text: bytes) -> _ClientEvent:
    """Return what a client's message is; one that isn't JSON, but may be a create for who reads more, is a create.

    As such it is refused, where it would pass the slots, the budgets and the model by.
    """
    try:
        return _client_events.decode(text)
    except _UNREADABLE:
        # UTF-16, too, is read by some.
        bare = text.replace(b"\0", b"")
        return _ClientEvent(_CREATE if b"response.create" in bare or b"\\u" in bare else None)


class Turns:
    """The turns of one connection.

    `to_call` makes a create's text a call; it raises GatewayError, and then has recorded it. `send` sends bytes
    upstream as a text message, or frames as they are; `tell` gives the client an event.
    """

    def __init__(
        self,
        keeper: Keeper,
        timeouts: Timeouts,
        to_call: Callable[[bytes], Call],
        send: Callable[[bytes | None, bytes], None],
        tell: Callable[[bytes], None],
    ) -> None:
        self._keeper = keeper
        self._timeouts = timeouts
        self._to_call = to_call
        self._send = send
        self._tell = tell
        # Only those in which something runs, waits or is being sent.
        self._lanes: dict[str, _Lane] = {}
        self._waiting = 0
        self._waiting_bytes = 0
        self.is_draining = False
        self._is_over = False

    @property
    def running(self) -> int:
        """How many responses are under way."""
        return sum(len(lane.running) for lane in self._lanes.values())

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing is under way or waiting."""
        return not any(lane.running or lane.waiting or lane.sender for lane in self._lanes.values())

    def take(self, text: bytes, frames: bytes) -> None:
        """Take a client's message; `frames` are the bytes that it came in."""
        event = _read(text)
        name = event.stream_id if isinstance(event.stream_id, str) else ""
        lane = self._lanes.get(name)
        is_create = event.type == _CREATE
        if not is_create and (lane is None or lane.sender is None):
            self._send(None, frames)
            return
        if is_create and self.is_draining:
            self._tell_error(Unavailable("The gateway is shutting down.", retry_after_s=1), name)
        elif len(name) > _MOST_NAME_LENGTH:
            self._tell_error(InvalidRequest("The stream_id is too long.", param="stream_id"), "")
        elif self._waiting + self.running >= _MOST_MESSAGES or self._waiting_bytes + len(frames) > _MOST_WAITING_BYTES:
            self._tell_error(
                InvalidRequest("Too many messages of this connection wait.", code="too_many_messages"), name
            )
        else:
            lane = self._lanes.setdefault(name, lane or _Lane())
            lane.waiting.append((text if is_create else None, frames))
            self._waiting += 1
            self._waiting_bytes += len(frames)
            if lane.sender is None:
                lane.sender = gevent.spawn(self._send_waiting, name, lane)

    def _send_waiting(self, name: str, lane: _Lane) -> None:
        try:
            while lane.waiting:
                text, frames = lane.waiting.popleft()
                try:
                    if text is None:
                        self._send(None, frames)
                    else:
                        self._begin(text, name, lane)
                finally:
                    self._waiting -= 1
                    self._waiting_bytes -= len(frames)
        except (OSError, Cancelled, ClientGone):
            # The connection is gone, and its tunnel knows.
            lane.waiting.clear()
        finally:
            lane.sender = None
            self._forget(name, lane)

    def _forget(self, name: str, lane: _Lane) -> None:
        """Have no lane in which nothing is going on: a client may name any number of them."""
        if not (lane.running or lane.waiting or lane.sender) and self._lanes.get(name) is lane:
            del self._lanes[name]

    def _begin(self, text: bytes, name: str, lane: _Lane) -> None:
        try:
            call = self._to_call(text)
            progress = self._keeper.begin_turn(call)
        except GatewayError as error:
            self._tell_error(error, name)
            return
        except ClientGone:
            raise
        except Exception:
            _log.exception("a WebSocket's call ended in an unexpected error")
            self._tell_error(GatewayError("The gateway met an unexpected error."), name)
            return
        if self._is_over:
            # Its slot came free by the end of the others, at the same moment.
            self._keeper.end(progress)
            raise ClientGone
        progress.status, progress.head = 200, _EVENTS
        progress.tail = to_tail(_EVENTS, monotonic, is_captured=call.received is not None)
        turn = _Turn(progress)
        lane.running.append(turn)
        body = call.body or b""
        progress.drop_body()
        self._send(body, b"")

    def _tell_error(self, error: GatewayError, name: str) -> None:
        lane = {"stream_id": name} if name else {}
        self._tell(json.dumps({"type": "error", "status": error.status, **error.to_body(), **lane}).encode())

    def see(self, text: bytes) -> None:
        """Note an event that the upstream has sent."""
        try:
            event = _server_events.decode(text)
        except _UNREADABLE:
            return
        name = event.stream_id or ""
        lane = self._lanes.get(name)
        if lane is None or not lane.running:
            found = self._find_only_lane() if event.type == "error" and event.stream_id is None else None
            if found is None:
                return
            name, lane = found
        turn = lane.running[0]
        turn.moved_at, turn.has_begun = monotonic(), True
        tail = turn.progress.tail
        assert tail is not None
        if event.type == "error":
            turn.progress.status, turn.progress.head = event.status or 500, _ERROR
            began, length = tail.began, tail.length
            tail = turn.progress.tail = to_tail(_ERROR, monotonic, is_captured=False)
            tail.add(text)
            tail.began, tail.length = began or tail.began, length + tail.length
        else:
            tail.add(b"data: " + text + b"\n\n")
        if event.type in _LAST_EVENTS:
            lane.running.popleft()
            self._forget(name, lane)
            turn.progress.outcome = "completed"
            self._keeper.end(turn.progress)

    def _find_only_lane(self) -> tuple[str, _Lane] | None:
        """Return the one lane in which something runs, with its name: an error that names no lane is its own."""
        found = [(name, lane) for name, lane in self._lanes.items() if lane.running]
        return found[0] if len(found) == 1 and len(found[0][1].running) == 1 else None

    def find_overdue(self, now: float) -> UpstreamTimeout | None:
        """Return the error for a response for which nothing has come for too long, if there is one."""
        for lane in self._lanes.values():
            for turn in list(lane.running)[:1]:
                bound_s = self._timeouts.idle_s if turn.has_begun else self._timeouts.first_byte_s
                if bound_s is not None and now - turn.moved_at > bound_s:
                    return UpstreamTimeout(f"The upstream sent nothing for {bound_s:g} s.")
        return None

    def refuse(self, error: GatewayError) -> None:
        """Tell the client of each lane in which something runs what it ends with."""
        for name, lane in list(self._lanes.items()):
            if lane.running:
                self._tell_error(error, name)

    def end(self, error: GatewayError | None) -> None:
        """End whatever runs or waits: with an error, or because the client has left."""
        self._is_over = True
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.waiting.clear()
            if lane.sender is not None:
                lane.sender.kill(Cancelled(ClientGone()), block=False)
        for lane in lanes:
            while lane.running:
                progress = lane.running.popleft().progress
                progress.outcome, progress.error = ("failed", error) if error is not None else ("client_gone", None)
                self._keeper.end(progress)
        self._lanes.clear()
