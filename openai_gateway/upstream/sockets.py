"""The calls of one server that go over WebSockets: a handshake, and then each response, as a POST's order of things.

A response can't be tried again, and its answer's head is its first event; all else is as for a POST: breaker, turn,
what is learnt of limits, record. See also: relay, websocket.turns (what comes over the connection).
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from openai_gateway.limits.admission import Admission
from openai_gateway.transport.answer import RawAnswer
from openai_gateway.transport.session import PeerRequest
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.attempt import Sender, to_outcome
from openai_gateway.upstream.progress import Progress
from openai_gateway.wire.call import Call
from openai_gateway.wire.retries import Outcome, is_final

_AGREED = 101


class Sockets:
    """Opens WebSockets; `fail` ends a call that is never sent and returns the error that it ends with."""

    def __init__(
        self,
        admission: Admission,
        sender: Sender,
        fail: Callable[[Progress, BaseException], BaseException],
        end: Callable[[Progress], None],
    ) -> None:
        self.admission = admission
        self.sender = sender
        self.fail = fail
        self.end = end

    def open(self, call: Call, watch: CallWatch) -> Socket:
        """Ask the upstream for a WebSocket. Raises GatewayError, Cancelled."""
        self.sender.ask_breaker()
        request = self.sender.to_request(call, watch)
        refused, is_answered = None, False
        try:
            raw = self.sender.send(call, request, is_upgrade=True)
            outcome = to_outcome(raw)
            if is_final(outcome):
                refused = outcome if self.sender.blames_key(call, request) else None
            else:
                # That it agrees says nothing of the quota.
                is_answered = raw.head.status != _AGREED
        finally:
            self.sender.breaker.settle(refused, is_answered=is_answered)
        return Socket(self, raw, call, request)


class Socket:
    """The upstream's answer to one handshake, and, if it agreed, what the responses over the connection need."""

    def __init__(self, sockets: Sockets, raw: RawAnswer, call: Call, request: PeerRequest) -> None:
        self.raw = raw
        self._sockets = sockets
        self._call = call
        self._request = request

    def begin_turn(self, call: Call) -> Progress:
        """Return the state of a call that may be sent now, having waited for its turn.

        It must end in `end_turn`. Raises GatewayError, ClientGone.
        """
        progress = Progress(call, len(call.body or b""))
        try:
            try:
                self._sockets.admission.admit(progress)
            finally:
                progress.queue_wait_s = monotonic() - progress.started
            self._sockets.sender.ask_breaker()
            progress.attempts = 1
        except BaseException as error:
            raise self._sockets.fail(progress, error) from None
        return progress

    def join_turn(self, call: Call) -> Progress:
        """Return the state of a call that the upstream has begun by itself: it has a slot only if one is free."""
        progress = Progress(call)
        progress.attempts = 1
        self._sockets.admission.admit_at_once(progress)
        return progress

    def answer_turn(self, progress: Progress, outcome: Outcome, text: bytes) -> None:
        """Learn from the first event of a call's answer; an error's status and headers are `outcome`."""
        sender = self._sockets.sender
        breaker = sender.breaker
        if is_final(outcome):
            breaker.settle(outcome if sender.blames_key(self._call, self._request) else None, is_answered=False)
        else:
            breaker.settle(None, is_answered=True)
        self._sockets.admission.learn_event(progress, outcome, text)

    def end_turn(self, progress: Progress) -> None:
        """Give back what a call holds, and have it recorded."""
        if progress.tail is None or progress.tail.began is None:
            self._sockets.sender.breaker.settle(None, is_answered=False)
        self._sockets.end(progress)
