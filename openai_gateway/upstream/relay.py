"""The order of things for one call, written out once: admission, pause, attempts, retries; the answer owns the rest.

States of a call: refused (it was never sent) | (queued -> (paused -> sent)*)* -> answered -> over. Until it is
answered, `send` holds what the call holds, and gives it back on any way out but success; from then on the Answer does.
A failed attempt is tried again as the official SDKs would, within the bounds of `max_retries`, `retry_budget_s` and
`retry_ratio`; a call keeps its slot meanwhile, for it is one call to the upstream, whatever becomes of its attempts.
One that met a limit goes back into the queue.

What each step does is in its own module. See also: limits.admission, limits.pacing (retries), attempt, answer,
wire.retries (whether an outcome may be tried again).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from time import monotonic, time

import gevent

from openai_gateway.config import ServerConfig
from openai_gateway.errors import Cancelled, ClientGone, GatewayError, Unavailable, UpstreamError
from openai_gateway.limits.admission import Admission
from openai_gateway.limits.host_exchange import UpstreamPart
from openai_gateway.limits.pacing import Retries
from openai_gateway.transport.raw_answer import RawAnswer
from openai_gateway.transport.watch import CallWatch, Timeouts
from openai_gateway.upstream.answer import Answer, make_own_headers
from openai_gateway.upstream.attempt import Sender
from openai_gateway.upstream.follower import Follower, follow_end
from openai_gateway.upstream.progress import Progress
from openai_gateway.upstream.recorder import Capturer, Observer, Recorder
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call
from openai_gateway.wire.head import Header
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.retries import Outcome, is_retryable
from openai_gateway.wire.tail import make_tail


class Relay:
    """Sends the calls of one server; one for the life of the process."""

    def __init__(
        self, server: ServerConfig, observers: Sequence[Observer] = (), capturer: Capturer | None = None
    ) -> None:
        self.timeouts = Timeouts(
            server.connect_timeout_s,
            server.first_byte_timeout_s,
            server.idle_timeout_s,
            server.client_timeout_s,
            server.total_timeout_s,
            server.stream_heartbeat_s,
        )
        self._server = server
        self.admission = Admission(server)
        self.sender = Sender(server)
        self._retries = Retries(server, self.admission.retrying)
        self._recorder = Recorder(server, observers, capturer, self.sender.hide)
        self.make_own_headers = make_own_headers if server.gateway_headers else _make_no_headers
        # Questions that others ask of a server, each answered by the part that knows.
        self.under_way, self.rate_limits = self.admission.under_way, self.admission.rate_limits
        self.close_queue = self.admission.queue.close
        self.is_refusing, self.key_files = self.sender.breaker.blocks, self.sender.key_files
        self.to_record, self.settle_records = self._recorder.to_record, self._recorder.settle
        self.capture_whole = self._recorder.capture_whole

    def send(self, call: Call, watch: CallWatch, follower: Follower | None = None) -> Answer:
        """Return the upstream's answer once its headers are in; `follower` gets it, too, and what becomes of the call.

        Raises GatewayError if there is none, ClientGone if nobody waits for it. Then everything is given back, as
        it is by the answer's `close()` otherwise.
        """
        progress = Progress(call, len(call.body or b""))
        on_over: Callable[[Progress], None] = self.end
        if follower is not None:
            on_over = follow_end(follower, self.end)
            watch.is_awaited = follower.is_awaited
        try:
            self.admission.admit(progress)
            progress.queue_wait_s = monotonic() - progress.started
            raw = self._attempt_until_done(progress, watch)
            progress.status = raw.head.status
            if not raw.is_whole:
                progress.drop_body()
                # Only a call that is sent again is queued again.
                progress.place = progress.rollout = None
            progress.head = raw.head
            is_captured = call.received is not None
            if follower is None:
                progress.tail = make_tail(raw.head, monotonic, is_captured=is_captured)
            else:
                progress.tail = follower.make_tail(raw.head)
            added = [*self.make_own_headers(progress), *(follower.added_headers if follower is not None else ())]
            capture = self._recorder.capture_whole if is_captured else None
            return Answer(raw, progress, watch, on_over, added, capture)
        except BaseException as error:
            watch.stop()
            if progress.admitted is None and not progress.attempts:
                progress.queue_wait_s = monotonic() - progress.started
            reason = _find_reason(error)
            self._end_early(progress, reason, on_over)
            if reason is error:
                raise
            raise reason from None

    def share_limits(self, workers: int) -> UpstreamPart | None:
        """Share limits with the other workers of this host; once, after the fork. Return what other hosts share."""
        return self.admission.share(self.sender.reveal_key(), workers)

    def hand_limits_on(self) -> None:
        """Share limits with a worker that is about to take this one's place, if none shares them yet."""
        self.admission.hand_on(self.sender.reveal_key())

    @property
    def is_breaker_open(self) -> bool:
        """Tell whether calls are refused, but for probes: the upstream has refused the key or has no quota left."""
        return self.sender.breaker.is_open

    def probe(self, seconds: float) -> int | str:
        """Ask the upstream for its models, past cap and retries; return the status, or the code of what went wrong."""
        watch = CallWatch(dataclasses.replace(self.timeouts, total_s=seconds))
        watch.begin(None)
        raw: RawAnswer | None = None
        try:
            call = Call(Api.CHAT, "GET", "/models", RequestHeaders(), None)
            raw = self.sender.send(call, self.sender.make_request(call, watch))
            return raw.head.status
        except Cancelled:
            return "upstream_timeout"
        except GatewayError as error:
            return error.code
        finally:
            watch.stop()
            if raw is not None:
                raw.close()

    def refuse(self, call: Call, error: GatewayError | ClientGone, started: float) -> None:
        """Record a request that was never sent: it was malformed, or its client left while sending it.

        `started` is when it came, on the monotonic clock.
        """
        self._end_early(Progress(call, started=started), error, self.end)

    def _attempt_until_done(self, progress: Progress, watch: CallWatch) -> RawAnswer:
        budget_s = self._server.retry_budget_s
        deadline = None if budget_s is None else progress.started + progress.queue_wait_s + budget_s
        while True:
            progress.sends = 0
            try:
                self._retries.wait_for_pause(progress, deadline, self.is_refusing)
                raw, failure, outcome = self.sender.attempt(progress, watch)
            finally:
                if progress.sends != 1:
                    self.correct_charge(progress)
            if raw is not None:
                self.admission.learn(progress, raw.head, raw.body if raw.is_whole else b"")
                if raw.head.status < 400:
                    return raw
                # A 429 too large to be read ahead would keep its connection while the call waits, so it goes out.
                until = deadline if raw.is_whole else 0.0
                if outcome.status == 429 and self.admission.readmit(progress, outcome, raw.body, until):
                    raw.close()
                    continue
            reason = failure.code if failure is not None else str(outcome.status)
            wait_s = self._retries.may_wait_s(outcome, reason, progress, deadline)
            if wait_s is None:
                return self._give_up(raw, failure, outcome)
            if raw is not None:
                raw.close()
            self._retries.wait(wait_s, reason, progress)
            self.admission.charge_again(progress)

    def correct_charge(self, progress: Progress) -> None:
        """Charge an attempt that did not go out, or went out twice, as often as it did."""
        admitted, queue = progress.admitted, self.admission.queue
        if admitted is not None and admitted.sent is not None:
            if progress.sends:
                # What is learnt from the answer is of the first: the other followed at once.
                queue.charge_again(admitted.sent)
            else:
                queue.cancel(admitted.sent)

    def _give_up(self, raw: RawAnswer | None, failure: UpstreamError | None, outcome: Outcome) -> RawAnswer:
        """Return or raise what the last attempt came to; the SDKs are told if trying again is used up."""
        is_used_up = self._server.hint_clients and self._server.max_retries > 0 and is_retryable(outcome, time())
        if raw is None:
            error = failure or UpstreamError("No attempt was made.")
            error.should_retry = False if is_used_up or error.is_final else None
            raise error
        if is_used_up:
            headers = [header for header in raw.head.headers if header[0].lower() != "x-should-retry"]
            headers.append(("x-should-retry", "false"))
            raw.head = raw.head.rewrite(headers)
        return raw

    def _end_early(self, progress: Progress, reason: BaseException, on_over: Callable[[Progress], None]) -> None:
        """End a call that has no answer of the upstream."""
        if isinstance(reason, GatewayError):
            progress.status = reason.status
            progress.error = reason
            reason.added_headers = self.make_own_headers(progress)
        progress.outcome = "client_gone" if isinstance(reason, ClientGone) else "failed"
        on_over(progress)

    def fail(self, progress: Progress, error: BaseException) -> BaseException:
        """End a call that was never sent; return the error that it ends with."""
        self.correct_charge(progress)
        reason = _find_reason(error)
        self._end_early(progress, reason, self.end)
        return reason

    def end(self, progress: Progress) -> None:
        """Give back what a call holds, and have it recorded."""
        if progress.admitted is not None:
            progress.admitted.release()
        progress.ended = monotonic()
        self._recorder.add(progress)


def _find_reason(error: BaseException) -> BaseException:
    """Return what a call ends with: the reason it was cancelled for; draining, if the server ends its greenlet."""
    if isinstance(error, Cancelled):
        return error.reason
    if isinstance(error, gevent.GreenletExit):
        return Unavailable("The gateway is shutting down.", code="gateway_draining", retry_after_s=1)
    return error


def _make_no_headers(progress: Progress) -> list[Header]:
    return []
