"""The order of things for one call, written out once: slot, pause, attempts, retries; the answer owns the rest.

What each step does is in its own module; whether to try again is `wire.retries`'.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from time import monotonic, time
from typing import Final

import gevent

from openai_gateway.config import ServerConfig
from openai_gateway.errors import Cancelled, ClientGone, GatewayError, Unavailable, UpstreamError
from openai_gateway.limits.pacing import Pause, RetryRatio
from openai_gateway.limits.slots import Slots
from openai_gateway.transport.watch import CallWatch
from openai_gateway.upstream.answer import Answer
from openai_gateway.upstream.attempt import Beginning, Sender
from openai_gateway.upstream.breaker import Breaker
from openai_gateway.upstream.progress import Progress
from openai_gateway.upstream.recorder import Capture, Observer, Recorder
from openai_gateway.upstream.tail import Tail, to_tail
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Head
from openai_gateway.wire.retries import UNANSWERED, Outcome, is_final, is_retryable, to_wait_s

# The upstream may go on working on what timed out, and charge for it: each more attempt may be paid, too.
_MOST_TIMED_OUT: Final = 2
_TIMED_OUT: Final = ("upstream_timeout", "504")


class Relay:
    """Sends the calls of one server; one for the life of the process."""

    def __init__(
        self, server: ServerConfig, observers: Sequence[Observer] = (), capture: Capture | None = None
    ) -> None:
        self.server = server
        self.slots = Slots(server.max_concurrent_requests, server.max_queue, server.queue_timeout_s)
        self.breaker: Breaker[Beginning] = Breaker(server.breaker_cooldown_s)
        self.sender = Sender(server, on_new_key=self.breaker.reset)
        self._pause = Pause(random.random)
        self._ratio = RetryRatio(server.retry_ratio)
        self.recorder = Recorder(server, observers, capture, self.sender.hide)
        self.last_head: Head | None = None
        self.answered_at = 0.0
        # How many calls wait for another attempt now, by why the last one failed.
        self.retrying: Counter[str] = Counter()

    def send(self, call: Call, watch: CallWatch) -> Answer:
        """Return the upstream's answer once its headers are in.

        Raises GatewayError if there is none, ClientGone if nobody waits for it. Then everything is given back, as
        it is by the answer's `close()` otherwise.
        """
        progress = Progress(call, len(call.body or b""))
        try:
            progress.slot = self.slots.take()
            progress.queue_wait_s = monotonic() - progress.started
            beginning = self._attempt_until_done(call, watch, progress)
            progress.status = beginning.head.status
            if beginning.raw is not None:
                progress.drop_body()
            self.answered_at = time()
            progress.head = self.last_head = beginning.head
            return Answer(
                beginning,
                api=call.api,
                watch=watch,
                idle_s=self.server.idle_timeout_s,
                client_s=self.server.client_timeout_s,
                on_close=lambda answer: self._end(progress, answer.outcome, answer.error, answer.tail),
                tail=to_tail(beginning.head, is_captured=call.received is not None),
                added_headers=progress.to_headers() if self.server.gateway_headers else (),
            )
        except BaseException as error:
            watch.stop()
            if progress.slot is None:
                progress.queue_wait_s = monotonic() - progress.started
            reason = _to_reason(error)
            self._end_early(progress, reason)
            if reason is error:
                raise
            raise reason from None

    def refuse(self, call: Call, error: GatewayError | ClientGone, started: float) -> None:
        """Record a request that was never sent: it was malformed, or its client left while sending it.

        `started` is when it came, on the monotonic clock.
        """
        self._end_early(Progress(call, started=started), error)

    def _attempt_until_done(self, call: Call, watch: CallWatch, progress: Progress) -> Beginning:
        self._ratio.count_call()
        budget_s = self.server.retry_budget_s
        deadline = None if budget_s is None else progress.started + progress.queue_wait_s + budget_s
        while True:
            self._pause.wait(deadline, self.breaker.blocks)
            refusal = self.breaker.refusal()
            if refusal is not None:
                return refusal
            progress.attempts += 1
            progress.last_attempt = monotonic()
            beginning, failure, outcome = self._attempt(call, watch)
            if beginning is not None and beginning.head.status < 400:
                return beginning
            reason = failure.code if failure is not None else str(outcome.status)
            wait_s = self._may_wait_s(outcome, reason, progress, deadline)
            if wait_s is None:
                return self._give_up(beginning, failure, outcome)
            progress.retries += (reason,)
            if beginning is not None and beginning.raw is not None:
                beginning.raw.close()
            self.retrying[reason] += 1
            try:
                gevent.sleep(wait_s)
            finally:
                self.retrying[reason] -= 1

    def _attempt(self, call: Call, watch: CallWatch) -> tuple[Beginning | None, UpstreamError | None, Outcome]:
        """Make one attempt and tell the breaker: the answer, or the failure, and what decides about another one."""
        beginning: Beginning | None = None
        outcome = UNANSWERED
        try:
            beginning = self.sender.send(call, watch)
            if beginning.head.status >= 400:
                outcome = beginning.to_outcome()
            return beginning, None, outcome
        except UpstreamError as failure:
            return None, failure, outcome
        finally:
            self.breaker.settle(beginning if is_final(outcome) else None, is_answered=beginning is not None)

    def _may_wait_s(self, outcome: Outcome, reason: str, progress: Progress, deadline: float | None) -> float | None:
        """Return the wait before another attempt, None if there is to be none: used up, too late, or no use.

        `reason` is why the last attempt failed, as it will stand in `progress.retries`.
        """
        now = time()
        self._pause.learn(outcome, now)
        if progress.attempts > self.server.max_retries or not is_retryable(outcome, now):
            return None
        if reason in _TIMED_OUT and sum(each in _TIMED_OUT for each in progress.retries) + 1 >= _MOST_TIMED_OUT:
            return None
        wait_s = max(to_wait_s(outcome, progress.attempts - 1, now, random.random), self._pause.left_s())
        if deadline is not None and monotonic() + wait_s > deadline:
            return None
        if outcome.status != 429 and not self._ratio.take():
            return None
        return wait_s

    def _give_up(self, beginning: Beginning | None, failure: UpstreamError | None, outcome: Outcome) -> Beginning:
        """Return or raise what the last attempt came to; the SDKs are told if trying again is used up."""
        is_used_up = self.server.hint_clients and self.server.max_retries > 0 and is_retryable(outcome, time())
        if beginning is None:
            error = failure or UpstreamError("No attempt was made.")
            error.should_retry = False if is_used_up else None
            raise error
        if not is_used_up:
            return beginning
        head = beginning.head
        headers = [header for header in head.headers if header[0].lower() != "x-should-retry"]
        headers.append(("x-should-retry", "false"))
        return Beginning(Head(head.status, head.reason, headers), beginning.body, beginning.raw)

    def _end_early(self, progress: Progress, reason: BaseException) -> None:
        """End a call that has no answer of the upstream."""
        if isinstance(reason, GatewayError):
            progress.status = reason.status
            reason.added_headers = progress.to_headers() if self.server.gateway_headers else ()
            self._end(progress, "failed", reason, None)
        else:
            self._end(progress, "client_gone" if isinstance(reason, ClientGone) else "failed", None, None)

    def _end(self, progress: Progress, outcome: str, error: GatewayError | None, tail: Tail | None) -> None:
        if progress.slot is not None:
            progress.slot.release()
        progress.outcome = outcome
        progress.error = error
        progress.tail = tail
        progress.ended = monotonic()
        self.recorder.add(progress)


def _to_reason(error: BaseException) -> BaseException:
    """Return what a call ends with: the reason it was cancelled for; draining, if the server ends its greenlet."""
    if isinstance(error, Cancelled):
        return error.reason
    if isinstance(error, gevent.GreenletExit):
        return Unavailable("The gateway is shutting down.", code="gateway_draining", retry_after_s=1)
    return error
