"""Makes the records of calls that are over and hands them to the observers, many at a time.

One by one, each finds the processor's caches cold and costs three times as much. A call that is to be captured is
captured by itself, before its answer's last bytes go out or, if it has no answer, before the error does. See also:
progress (what a record is made of), accounting (the observers).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Final, Protocol

import gevent
import msgspec

from openai_gateway.config import ServerConfig
from openai_gateway.upstream.progress import Progress
from openai_gateway.wire.call import CallRecord
from openai_gateway.wire.retries import read_error_code
from openai_gateway.wire.sse import is_event_stream
from openai_gateway.wire.usage import NOTHING, read_answer, read_stream

Observer = Callable[[CallRecord], None]
_log = logging.getLogger("openai_gateway")
_DELAY_S: Final = 0.05
# With more at a time each would cost less, but the call that comes next would wait for longer.
_MOST_CALLS: Final = 24
_LARGE_BYTES: Final = 128 * 1024
_MAX_CODE_LENGTH: Final = 100


class Capturer(Protocol):
    """What captures the calls of rollouts."""

    def capture(self, record: CallRecord, request: bytes, answer: bytes | None, *, is_stream: bool) -> None:
        """Capture a call, or count it as lost; `answer` None was too long to be kept. May wait; raises nothing."""


class Recorder:
    """Takes the calls of one server that are over; each is observed at most 50 ms later.

    `hide` takes keys out of what the upstream said; `capturer` None captures nothing.
    """

    def __init__(
        self,
        server: ServerConfig,
        observers: Sequence[Observer],
        capturer: Capturer | None = None,
        hide: Callable[[str], str] = str,
    ) -> None:
        self._server = server
        self._observers = tuple(observers)
        self._capturer = capturer
        self._hide = hide
        self._over: list[Progress] = []
        self._is_timed = False

    def add(self, progress: Progress) -> None:
        """Take a call that is over; a large one is not kept waiting, for its bytes would be kept with it."""
        try:
            if self._capturer is not None:
                self._capture(progress)
        finally:
            if self._observers:
                self._over.append(progress)
                held_bytes = progress.request_bytes + (progress.tail.length if progress.tail is not None else 0)
                # Money is settled at once: what the next call may spend depends on it, and a worker may be killed.
                is_urgent = progress.call.reservation is not None or held_bytes > _LARGE_BYTES
                if is_urgent or len(self._over) >= _MOST_CALLS:
                    self.settle()
                elif not self._is_timed:
                    self._is_timed = True
                    gevent.spawn_later(_DELAY_S, self._settle_in_time)

    def capture_whole(self, progress: Progress) -> None:
        """Capture a call whose answer is here to its last byte, which hasn't gone out yet; waits until it is done."""
        if self._capturer is not None and progress.call.received is not None:
            over = msgspec.structs.replace(progress, outcome="completed", ended=monotonic())
            progress.is_captured = True
            self._capture(over)

    def _capture(self, progress: Progress) -> None:
        received, tail = progress.call.received, progress.tail
        if self._capturer is None or received is None or progress.is_captured:
            return
        progress.is_captured = True
        content_type = progress.head.known.get("content-type", "") if progress.head is not None else ""
        try:
            record, answer = self.to_record(progress), tail.kept() if tail is not None else b""
            self._capturer.capture(record, received, answer, is_stream=is_event_stream(content_type))
        except Exception:
            _log.exception("a call could not be captured")

    def settle(self) -> None:
        """Have every call that is over observed now."""
        over, self._over = self._over, []
        for progress in over:
            reservation = progress.call.reservation
            try:
                record = self.to_record(progress)
                if reservation is not None:
                    record = msgspec.structs.replace(record, charged_usd=reservation.settle(record))
                for observe in self._observers:
                    observe(record)
            except Exception:
                _log.exception("a call could not be recorded")
                if reservation is not None:
                    reservation.settle(None)

    def _settle_in_time(self) -> None:
        self._is_timed = False
        self.settle()

    def to_record(self, progress: Progress) -> CallRecord:
        """Return the record of a call that is over."""
        call, tail, server = progress.call, progress.tail, self._server
        headers = progress.head.known if progress.head is not None else {}
        is_failed = (progress.status or 0) >= 400
        report = NOTHING
        if tail is not None and call.is_metered and not is_failed:
            read = read_stream if is_event_stream(headers.get("content-type", "")) else read_answer
            report = read(tail.end(), tail.beginning())
        cost_usd = server.prices.cost_usd(report.model or server.openai_model, report.usage, report.service_tier)
        error_code = None
        if progress.error is not None:
            error_code = progress.error.code
        elif is_failed and tail is not None:
            error_code = read_error_code(tail.end())
        if error_code is not None:
            # The bytes were searched for keys before. JSON may have hidden one by escapes, so the decoded code is, too.
            error_code = self._hide(error_code)[:_MAX_CODE_LENGTH]
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
            error_code=error_code,
            attempts=progress.attempts,
            retries=progress.retries,
            queue_wait_s=progress.queue_wait_s,
            queue_reason=progress.queue_reason or None,
            first_byte_s=tail.began - progress.started if tail is not None and tail.began is not None else None,
            duration_s=progress.ended - progress.started,
            request_bytes=progress.request_bytes,
            answer_bytes=tail.length if tail is not None else 0,
            is_metered=call.is_metered and not is_failed and tail is not None,
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
