"""Makes the records of calls that are over and hands them to the observers, many at a time.

One by one, each finds the processor's caches cold and costs three times as much. A call that is to be captured is
captured by itself, before its answer's last bytes go out or, if it has no answer, before the error does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, Protocol

import gevent
import msgspec

from openai_gateway.config import ServerConfig
from openai_gateway.upstream.progress import Progress, to_record
from openai_gateway.wire.call import CallRecord
from openai_gateway.wire.sse import is_event_stream

Observer = Callable[[CallRecord], None]
_log = logging.getLogger("openai_gateway")
_DELAY_S: Final = 0.05
# More would be cheaper still, but hold up the call that comes next.
_MOST_CALLS: Final = 8
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
            self._capture(progress)
        finally:
            self._take(progress)

    def _take(self, progress: Progress) -> None:
        if not self._observers:
            return
        self._over.append(progress)
        # Money is settled at once: what the next call may spend depends on it, and a worker may be killed.
        if (
            progress.call.reservation is not None
            or len(self._over) >= _MOST_CALLS
            or progress.held_bytes() > _LARGE_BYTES
        ):
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
            record, answer = self._to_record(progress), tail.kept() if tail is not None else b""
            self._capturer.capture(record, received, answer, is_stream=is_event_stream(content_type))
        except Exception:
            _log.exception("a call could not be captured")

    def settle(self) -> None:
        """Have every call that is over observed now."""
        over, self._over = self._over, []
        for progress in over:
            try:
                self._record(progress)
            except Exception:
                _log.exception("a call could not be recorded")
                if progress.call.reservation is not None:
                    progress.call.reservation.settle(None)

    def _settle_in_time(self) -> None:
        self._is_timed = False
        self.settle()

    def _record(self, progress: Progress) -> None:
        record = self._to_record(progress)
        if progress.call.reservation is not None:
            record = msgspec.structs.replace(record, charged_usd=progress.call.reservation.settle(record))
        for observe in self._observers:
            observe(record)

    def _to_record(self, progress: Progress) -> CallRecord:
        record = to_record(self._server, progress)
        if record.error_code is None:
            return record
        # The upstream's code was decoded after its bytes were looked through for keys.
        code = self._hide(record.error_code)[:_MAX_CODE_LENGTH]
        return msgspec.structs.replace(record, error_code=code)
