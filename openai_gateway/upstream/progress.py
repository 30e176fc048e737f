"""What is known of a call while it is under way, and the record made of it when it is over.

Who wants records is `relay`'s to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic, time
from typing import Final

import msgspec

from openai_gateway.config import ServerConfig
from openai_gateway.errors import GatewayError
from openai_gateway.limits.admission import QueuedCall
from openai_gateway.wire.call import CallRecord
from openai_gateway.wire.head import Head, Header
from openai_gateway.wire.retries import to_error_code
from openai_gateway.wire.sse import is_event_stream
from openai_gateway.wire.tail import Tail
from openai_gateway.wire.usage import NOTHING, Report, read_answer, read_stream

_WORTH_TELLING_S: Final = 0.01


class Progress(QueuedCall):
    """The state of one call; `head` is None until the answer's is in.

    `outcome` and `error` say how it went, as in CallRecord: its client is taken to have left until something else is
    known. `ended` is set when it is over; `tail` stays None if no answer of the upstream was relayed. `is_replayed`:
    the answer is a kept one, or another call's, so that nothing was paid for it. `is_read`: the upstream's
    answer was read to its end, whether or not its client got it.
    """

    last_attempt: float = 0.0
    status: int | None = None
    head: Head | None = None
    outcome: str = "client_gone"
    error: GatewayError | None = None
    tail: Tail | None = None
    ended: float = 0.0
    is_replayed: bool = False
    is_read: bool = False
    is_captured: bool = False

    def drop_body(self) -> None:
        """Let go of the request's body, which a stream that may last for hours doesn't need."""
        self.call = msgspec.structs.replace(self.call, body=None)

    def to_headers(self) -> list[Header]:
        """Return the gateway's own answer headers."""
        headers = [
            ("x-gateway-request-id", self.call.request_id),
            ("x-gateway-attempts", str(self.attempts)),
            ("x-gateway-queue-ms", f"{self.queue_wait_s * 1000:.0f}"),
        ]
        if self.queue_reason:
            headers.append(("x-gateway-queue-reason", self.queue_reason))
        if self.retries:
            headers.append(("x-gateway-retries", ",".join(self.retries)))
        waited_s = self.last_attempt - self.started
        if self.retries or waited_s > self.queue_wait_s + _WORTH_TELLING_S:
            # Earlier attempts and pauses, too.
            headers.append(("x-gateway-wait-ms", f"{(self.last_attempt - self.started) * 1000:.0f}"))
        return headers

    def held_bytes(self) -> int:
        """Return how much of bodies this keeps in memory, at most."""
        return self.request_bytes + (self.tail.length if self.tail is not None else 0)


def to_record(server: ServerConfig, progress: Progress) -> CallRecord:
    """Return the record of a call that is over."""
    call, tail = progress.call, progress.tail
    duration_s = progress.ended - progress.started
    headers = progress.head.known if progress.head is not None else {}
    is_metered = call.is_metered and (progress.status or 0) < 400
    report = _to_report(headers, tail) if is_metered and tail is not None else NOTHING
    cost_usd = server.prices.cost_usd(report.model or server.openai_model, report.usage, report.service_tier)
    return CallRecord(
        time=time() - (monotonic() - progress.started),
        server=server.name,
        api=call.api,
        method=call.method,
        path=call.target.partition("?")[0],
        rollout_id=call.rollout_id,
        request_id=call.request_id,
        client_request_id=call.headers.get("x-client-request-id"),
        upstream_request_id=headers.get("x-request-id"),
        outcome=progress.outcome,
        status=progress.status,
        error_code=progress.error.code if progress.error is not None else _to_error_code(progress),
        attempts=progress.attempts,
        retries=progress.retries,
        queue_wait_s=progress.queue_wait_s,
        queue_reason=progress.queue_reason or None,
        first_byte_s=tail.began - progress.started if tail is not None and tail.began is not None else None,
        duration_s=duration_s,
        request_bytes=progress.request_bytes,
        answer_bytes=tail.length if tail is not None else 0,
        is_metered=is_metered and tail is not None,
        model=report.model,
        finish_reason=report.finish_reason,
        service_tier=report.service_tier,
        system_fingerprint=report.system_fingerprint,
        usage=report.usage,
        cost_usd=0.0 if progress.is_replayed else cost_usd,
        traceparent=call.headers.get("traceparent"),
        is_replayed=progress.is_replayed,
        saved_usd=cost_usd if progress.is_replayed else None,
        client=call.client,
    )


def _to_error_code(progress: Progress) -> str | None:
    """Return the code in an error answer of the upstream."""
    if progress.tail is None or (progress.status or 0) < 400:
        return None
    return to_error_code(progress.tail.end())


def _to_report(headers: Mapping[str, str], tail: Tail) -> Report:
    read = read_stream if is_event_stream(headers.get("content-type", "")) else read_answer
    return read(tail.end(), tail.beginning())
