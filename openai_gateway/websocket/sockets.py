"""The calls of one server that go over WebSockets: a handshake, and then each response, as a POST's order of things.

A response can't be tried again, and its answer's head is its first event; all else is as for a POST: breaker, slot,
what is learnt of limits, record. See also: upstream.relay, turns (what comes over the connection).
"""

from __future__ import annotations

from time import monotonic

from openai_gateway.errors import ClientGone, GatewayError
from openai_gateway.limits.slots import Admitted
from openai_gateway.transport.raw_answer import RawAnswer
from openai_gateway.transport.session import PeerRequest
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.attempt import read_outcome
from openai_gateway.upstream.progress import Progress
from openai_gateway.upstream.relay import Relay
from openai_gateway.wire.call import Call
from openai_gateway.wire.retries import Outcome, is_final

_AGREED = 101


def open_socket(relay: Relay, call: Call, watch: CallWatch) -> Socket:
    """Ask the upstream for a WebSocket. Raises GatewayError, Cancelled."""
    sender = relay.sender
    sender.ask_breaker()
    request = sender.make_request(call, watch)
    refused, is_answered = None, False
    try:
        raw = sender.send(call, request, is_upgrade=True)
        outcome = read_outcome(raw)
        if is_final(outcome):
            refused = outcome if sender.blames_key(call, request) else None
        else:
            # An agreed handshake doesn't show that there is quota left, so it is no answer that closes the breaker.
            is_answered = raw.head.status != _AGREED
    finally:
        sender.breaker.settle(refused, is_answered=is_answered)
    return Socket(relay, raw, call, request)


class Socket:
    """The upstream's answer to one handshake, and, if it agreed, what the responses over the connection need."""

    def __init__(self, relay: Relay, raw: RawAnswer, call: Call, request: PeerRequest) -> None:
        self.raw = raw
        self._relay = relay
        self._call = call
        self._request = request

    def begin_turn(self, call: Call) -> Progress:
        """Return the state of a call that may be sent now, having waited for its slot.

        It must end in `end_turn`. Raises GatewayError, ClientGone.
        """
        progress = Progress(call, len(call.body or b""))
        try:
            try:
                self._relay.admission.admit(progress)
            finally:
                progress.queue_wait_s = monotonic() - progress.started
            self._relay.sender.ask_breaker()
            progress.attempts = 1
        except BaseException as error:
            raise self._relay.fail(progress, error) from None
        return progress

    def join_turn(self, call: Call, kept: Admitted | None) -> Progress:
        """Return the state of a call that the upstream has begun by itself.

        `kept` is the slot that it has from the one before it, None: it has one only if one is free.
        """
        progress = Progress(call)
        progress.attempts = 1
        self._relay.admission.admit_at_once(progress, kept)
        return progress

    def drop_turn(self, call: Call, error: GatewayError | ClientGone) -> None:
        """Have a call recorded that was never sent."""
        self._relay.refuse(call, error, monotonic())

    def answer_turn(self, progress: Progress, outcome: Outcome, text: bytes) -> None:
        """Learn from the first event of a call's answer; an error's status and headers are `outcome`."""
        sender = self._relay.sender
        breaker = sender.breaker
        if is_final(outcome):
            breaker.settle(outcome if sender.blames_key(self._call, self._request) else None, is_answered=False)
        else:
            breaker.settle(None, is_answered=True)
        self._relay.admission.learn_event(progress, outcome, text)

    def end_turn(self, progress: Progress) -> None:
        """Give back what a call holds, and have it recorded."""
        if progress.tail is None or progress.tail.began is None:
            self._relay.sender.breaker.settle(None, is_answered=False)
        if not progress.attempts:
            # Its turn came when there was nobody any more to send it for.
            self._relay.correct_charge(progress)
        self._relay.end(progress)
