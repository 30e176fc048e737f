"""The responses of one WebSocket: each `response.create` is a call, with a slot, a record, time-outs, as a POST has.

A connection has lanes, named by `stream_id`; a lane's responses come one after the other, several lanes' at once.
States of a turn: queued (waits for its slot, and holds up what comes after it in its lane, nothing else) -> running
(sent; the next events of its lane are its own) -> over (its last event has come, or the connection is gone).

See also: tunnel (the bytes), upstream.relay (slots, breaker, records).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Final

import gevent

from openai_gateway.errors import Cancelled, ClientGone, GatewayError, InvalidRequest, Unavailable, UpstreamTimeout
from openai_gateway.transport.watch import Timeouts
from openai_gateway.websocket import events
from openai_gateway.websocket.events import ServerEvent, read_client_event, read_server_event
from openai_gateway.websocket.lanes import Lane, Turn, TurnRelay
from openai_gateway.wire.call import Call

_log = logging.getLogger("openai_gateway")
# What one connection may have waiting and under way: far more than the API runs at once (16).
_MOST_MESSAGES: Final = 256
_MOST_WAITING_BYTES: Final = 32 * 1024 * 1024
_MOST_NAME_LENGTH: Final = 256


class Turns:
    """The turns of one connection.

    `make_call` makes a create's text a call, and None a call of what the upstream has begun by itself; it raises
    GatewayError, and then has recorded it. `send` sends bytes upstream as a text message, or frames as they are; `tell`
    gives the client an event.
    """

    def __init__(
        self,
        relay: TurnRelay,
        timeouts: Timeouts,
        make_call: Callable[[bytes | None], Call],
        send: Callable[[bytes | None, bytes], None],
        tell: Callable[[bytes], None],
    ) -> None:
        self._relay = relay
        self._timeouts = timeouts
        self._make_call = make_call
        self._send = send
        self._tell = tell
        # Only those in which something runs, waits or is being sent.
        self._lanes: dict[str, Lane] = {}
        # Set once a response has taken too long: nothing new begins then.
        self._overdue: GatewayError | None = None
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
        return all(lane.is_empty for lane in self._lanes.values())

    def take(self, text: bytes, frames: bytes) -> None:
        """Take a client's message; `frames` are the bytes that it came in."""
        event = read_client_event(text)
        name = event.stream_id if isinstance(event.stream_id, str) else ""
        lane = self._lanes.get(name)
        is_create = event.type == events.CREATE
        if not is_create and (lane is None or lane.sender is None):
            self._send(None, frames)
            return
        if is_create and (self.is_draining or self._overdue is not None):
            if self._overdue is None:
                self._refuse(text, Unavailable("The gateway is shutting down.", retry_after_s=1), name)
            else:
                self._refuse(text, UpstreamTimeout("A response of this connection hangs: open another one."), name)
        elif len(name) > _MOST_NAME_LENGTH:
            self._tell_error(InvalidRequest("The stream_id is too long.", param="stream_id"), "")
        elif self._waiting + self.running >= _MOST_MESSAGES or self._waiting_bytes + len(frames) > _MOST_WAITING_BYTES:
            self._tell_error(
                InvalidRequest("Too many messages of this connection wait.", code="too_many_messages"), name
            )
        else:
            lane = self._lanes.setdefault(name, lane or Lane())
            # It needn't wait for a slot that its own lane has.
            lane.drop_kept()
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
            # The connection is gone. The tunnel has noticed, and ends what waits.
            pass
        finally:
            lane.sender = None
            self._forget(name, lane)

    def _forget(self, name: str, lane: Lane) -> None:
        """Have no lane in which nothing is going on: a client may name any number of them."""
        if lane.is_empty and self._lanes.get(name) is lane:
            del self._lanes[name]

    def _begin(self, text: bytes, name: str, lane: Lane) -> None:
        try:
            call = self._make_call(text)
            progress = self._relay.begin_turn(call)
        except GatewayError as error:
            self._tell_error(error, name)
            return
        except ClientGone:
            raise
        except Exception:
            _log.exception("a WebSocket's call ended in an unexpected error")
            self._tell_error(GatewayError("The gateway met an unexpected error."), name)
            return
        if self._is_over or lane.error is not None:
            # The slot came too late: the connection is over, or the lane has failed meanwhile.
            progress.attempts, progress.error = 0, lane.error
            progress.outcome = "client_gone" if lane.error is None else "failed"
            self._relay.end_turn(progress)
            if lane.error is None:
                raise ClientGone
            self._tell_error(lane.error, name)
            return
        lane.running.append(Turn(progress))
        self._send(call.body or b"", b"")

    def _drop(self, text: bytes, error: GatewayError | ClientGone) -> None:
        """Have a create recorded that is never sent."""
        try:
            self._relay.drop_turn(self._make_call(text), error)
        except (GatewayError, ClientGone):
            # The create was wrong in itself, too; as such it is recorded already.
            pass
        except Exception:
            _log.exception("a WebSocket's call could not be recorded")

    def _refuse(self, text: bytes, error: GatewayError, name: str) -> None:
        self._drop(text, error)
        self._tell_error(error, name)

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
                if turn.tail is None or event.type in events.TELLING:
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
        if event is None:
            return
        if event.type in events.STEERS:
            self._steer(event, text)
        found = self._find(event)
        if found is None:
            return
        name, lane = found
        turn = lane.running[0]
        turn.has_moved = True
        progress = turn.progress
        if not turn.has_begun:
            # This response takes in every steer that was accepted until now.
            lane.steers.clear()
            self._relay.answer_turn(progress, turn.begin(event, text), text)
        elif progress.tail is not None:
            if turn.tail is None or event.type in events.LAST:
                progress.tail.add(events.to_stream_event(text))
            else:
                progress.tail.length += len(text)
        if event.type in events.LAST:
            lane.end_first()
            self._forget(name, lane)
            self._relay.end_turn(progress)

    def _steer(self, event: ServerEvent, text: bytes) -> None:
        name = event.stream_id or ""
        lane = self._lanes.get(name)
        if lane is not None:
            lane.steer(events.read_steer_id(text), is_accepted=event.type == events.ACCEPTED)
            self._forget(name, lane)

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
        call = self._make_call(None)
        lane = self._lanes.setdefault(name, lane or Lane())
        lane.running.append(Turn(self._relay.join_turn(call, lane.take_kept())))
        return name, lane

    def find_overdue(self, now: float) -> GatewayError | None:
        """Fail each lane whose response takes too long; return the error, once no other has anything to do.

        The upstream can't be told to leave off but by the connection's end, for which the other lanes needn't pay.
        """
        is_over = True
        for name, lane in list(self._lanes.items()):
            if lane.kept is not None and now > lane.kept_until:
                lane.drop_kept()
                self._forget(name, lane)
            if lane.error is None:
                lane.error = lane.find_overdue(self._timeouts, now)
                if lane.error is not None:
                    self._overdue = lane.error
                    self._tell_error(lane.error, name)
            is_over = is_over and (lane.error is not None or lane.is_empty)
        return self._overdue if is_over else None

    def refuse(self, error: GatewayError) -> None:
        """Tell the client of each lane in which something runs what it ends with."""
        for name, lane in list(self._lanes.items()):
            if lane.running and lane.error is None:
                self._tell_error(error, name)

    def end(self, error: GatewayError | None) -> None:
        """End whatever runs or waits: with an error, or because the client has left."""
        self._is_over = True
        lanes = list(self._lanes.values())
        unsent = []
        for lane in lanes:
            unsent += [(text, lane.error or error) for text, _ in lane.waiting if text is not None]
            lane.waiting.clear()
            if lane.sender is not None:
                lane.sender.kill(Cancelled(lane.error or error or ClientGone()), block=False)
        for lane in lanes:
            reason = lane.error or error
            lane.drop_kept()
            while lane.running:
                progress = lane.running.popleft().progress
                progress.outcome, progress.error = ("failed", reason) if reason is not None else ("client_gone", None)
                self._relay.end_turn(progress)
        self._lanes.clear()
        for text, reason in unsent:
            self._drop(text, reason or ClientGone())
