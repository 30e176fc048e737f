"""The responses of one WebSocket: each `response.create` is a call, with a slot, a record, time-outs, as a POST has.

A connection has lanes, named by `stream_id`; a lane's responses come one after the other, several lanes' at once.
States of a turn: queued (waits for its slot, and holds up what comes after it in its lane, nothing else) -> running
(sent; the next events of its lane are its own) -> over (its last event has come, or the connection is gone).

See also: tunnel (the bytes), relay (slots, breaker, records).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

import gevent

from openai_gateway.errors import Cancelled, ClientGone, GatewayError, InvalidRequest, Unavailable
from openai_gateway.transport.watch import Timeouts
from openai_gateway.upstream.progress import Progress
from openai_gateway.websocket import events
from openai_gateway.websocket.events import ServerEvent, read_client_event, read_error_event, read_server_event
from openai_gateway.websocket.lanes import Keeper, Lane, Turn
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Head
from openai_gateway.wire.retries import Outcome
from openai_gateway.wire.tail import to_tail

_log = logging.getLogger("openai_gateway")
# What one connection may have waiting and under way: far more than the API runs at once (16).
_MOST_MESSAGES: Final = 256
_MOST_WAITING_BYTES: Final = 32 * 1024 * 1024
_MOST_NAME_LENGTH: Final = 256
# Records read a turn's events as they read a stream's.
_EVENTS: Final = Head(200, "OK", [("content-type", "text/event-stream")])
_ERROR: Final = Head(200, "OK", [("content-type", "application/json")])
_ANSWERED: Final = Outcome(200, {})


class Turns:
    """The turns of one connection.

    `to_call` makes a create's text a call, and None a call of what the upstream has begun by itself; it raises
    GatewayError, and then has recorded it. `send` sends bytes upstream as a text message, or frames as they are; `tell`
    gives the client an event.
    """

    def __init__(
        self,
        keeper: Keeper,
        timeouts: Timeouts,
        to_call: Callable[[bytes | None], Call],
        send: Callable[[bytes | None, bytes], None],
        tell: Callable[[bytes], None],
    ) -> None:
        self._keeper = keeper
        self._timeouts = timeouts
        self._to_call = to_call
        self._send = send
        self._tell = tell
        # Only those in which something runs, waits or is being sent.
        self._lanes: dict[str, Lane] = {}
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
        event = read_client_event(text)
        name = event.stream_id if isinstance(event.stream_id, str) else ""
        lane = self._lanes.get(name)
        is_create = event.type == events.CREATE
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
            lane = self._lanes.setdefault(name, lane or Lane())
            lane.waiting.append((text if is_create else None, frames))
            self._waiting += 1
            self._waiting_bytes += len(frames)
            if lane.sender is None:
                lane.sender = gevent.spawn(self._send_waiting, name, lane)

    def _send_waiting(self, name: str, lane: Lane) -> None:
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

    def _forget(self, name: str, lane: Lane) -> None:
        """Have no lane in which nothing is going on: a client may name any number of them."""
        if not (lane.running or lane.waiting or lane.sender) and self._lanes.get(name) is lane:
            del self._lanes[name]

    def _begin(self, text: bytes, name: str, lane: Lane) -> None:
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
            self._keeper.end_turn(progress)
            raise ClientGone
        self._start(progress, lane)
        self._send(call.body or b"", b"")

    def _start(self, progress: Progress, lane: Lane) -> None:
        progress.status, progress.head = 200, _EVENTS
        progress.tail = to_tail(_EVENTS, monotonic, is_captured=progress.call.received is not None)
        progress.drop_body()
        lane.running.append(Turn(progress))

    def _tell_error(self, error: GatewayError, name: str) -> None:
        lane = {"stream_id": name} if name else {}
        self._tell(json.dumps({"type": "error", "status": error.status, **error.to_body(), **lane}).encode())

    def pass_on(self, texts: list[memoryview]) -> bool:
        """Note events that have come and may pass at once; False, and nothing is noted, if one of them is for `see`.

        That is whatever begins or ends a response, or is to be captured.
        """
        turns = []
        try:
            for text in texts:
                event = events.decode_server_event(text)
                turn = self._lanes[event.stream_id or ""].running[0]
                if turn.tail is None or event.type in events.LAST:
                    return False
                turns.append(turn)
        except (*events.UNREADABLE, LookupError):
            return False
        for turn, text in zip(turns, texts, strict=True):
            turn.has_moved = True
            turn.tail.length += len(text)  # type: ignore[union-attr]
        return True

    def see(self, text: bytes) -> None:
        """Note an event that the upstream has sent. Raises GatewayError for a response that must not go on."""
        event = read_server_event(text)
        found = self._find(event) if event is not None else None
        if event is None or found is None:
            return
        name, lane = found
        turn = lane.running[0]
        turn.has_moved = True
        progress = turn.progress
        if not turn.has_begun:
            self._begin_answer(turn, event, text)
        elif progress.tail is not None:
            if turn.tail is None or event.type in events.LAST:
                progress.tail.add(events.to_stream_event(text))
            else:
                progress.tail.length += len(text)
        if event.type in events.LAST:
            lane.running.popleft()
            if lane.running:
                # The next one's time begins now.
                lane.running[0].moved_at = monotonic()
            self._forget(name, lane)
            progress.outcome = "completed"
            self._keeper.end_turn(progress)

    def _begin_answer(self, turn: Turn, event: ServerEvent, text: bytes) -> None:
        """Note the first event: an error is an answer of that status; of a later one, what came before may be paid."""
        turn.has_begun = True
        progress, outcome = turn.progress, _ANSWERED
        tail = progress.tail
        assert tail is not None
        if event.type == events.ERROR:
            error = read_error_event(text)
            progress.status, progress.head = error.status, _ERROR
            progress.tail = to_tail(_ERROR, monotonic, is_captured=progress.call.received is not None)
            progress.tail.add(text)
            headers = {name.lower(): str(value) for name, value in (error.error.headers or {}).items()}
            outcome = Outcome(error.status, headers, error.error.code)
        else:
            tail.add(events.to_stream_event(text))
            if progress.call.received is None:
                turn.tail = tail
        self._keeper.answer_turn(progress, outcome, text)

    def _find(self, event: ServerEvent) -> tuple[str, Lane] | None:
        """Return the lane that an event is of, in which something runs; None if it is of none."""
        name = event.stream_id or ""
        lane = self._lanes.get(name)
        if lane is not None and lane.running:
            return name, lane
        if event.stream_id is None and (event.type == events.ERROR or event.is_of_response):
            # An error may name no lane, and some upstreams know of none.
            found = [(name, lane) for name, lane in self._lanes.items() if lane.running]
            if len(found) == 1 and len(found[0][1].running) == 1:
                return found[0]
        if not event.is_of_response:
            return None
        # Nobody asked for it here: what was steered goes on in a response that the upstream begins.
        progress = self._keeper.join_turn(self._to_call(None))
        lane = self._lanes.setdefault(name, lane or Lane())
        self._start(progress, lane)
        return name, lane

    def find_overdue(self, now: float) -> GatewayError | None:
        """Return the error for a response for which nothing has come for too long, if there is one."""
        for lane in self._lanes.values():
            overdue = lane.find_overdue(self._timeouts, now)
            if overdue is not None:
                return overdue
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
                lane.sender.kill(Cancelled(error or ClientGone()), block=False)
        for lane in lanes:
            while lane.running:
                progress = lane.running.popleft().progress
                progress.outcome, progress.error = ("failed", error) if error is not None else ("client_gone", None)
                self._keeper.end_turn(progress)
        self._lanes.clear()
