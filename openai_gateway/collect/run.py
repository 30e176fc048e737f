"""Makes the calls of a plan, so many at a time, and writes each answer as it comes; knows when to stop.

What is to be done is `plan`'s; one call is `client`'s; what a person sees of it, `cli`'s.
"""

from __future__ import annotations

import signal
from collections import Counter, deque
from collections.abc import Callable
from time import monotonic, time
from types import FrameType
from typing import Any, Final

import gevent
import msgspec
from gevent.event import Event
from gevent.pool import Group

from openai_gateway.collect.client import Answer, Gateway
from openai_gateway.collect.estimate import Budget, Estimator
from openai_gateway.collect.failures import Failure, to_broken, to_failed_response, to_failure
from openai_gateway.collect.journal import Journal
from openai_gateway.collect.plan import BadInput, Plan, PlannedCall
from openai_gateway.collect.rows import (
    DURATION,
    FAILURE,
    FAILURE_CLASS,
    RESPONSE,
    RESPONSES,
    ROLLOUT_INDEX,
    TASK_INDEX,
    to_line,
)
from openai_gateway.collect.sums import Sums
from openai_gateway.wire.usage import read_answer

COST: Final = "cost"
INTERRUPTED: Final = "interrupted"
GENERAL_FAILURE: Final = "general failure"
ALL_FAIL: Final = "all fail"
BROKEN: Final = "broken"
_LEAST_IN_A_ROW: Final = 100
_SYNC_EVERY_S: Final = 10.0
_WINDOW_S: Final = 60.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Progress(msgspec.Struct):
    """How a run stands. `sums` are of the whole output, earlier runs included; the other counts are of this run."""

    sums: Sums
    to_do: int
    answered: int = 0
    failed: int = 0
    in_flight: int = 0
    errors: Counter[str] = msgspec.field(default_factory=Counter)
    examples: dict[str, Failure] = {}
    tokens: int = 0
    cost_usd: float = 0.0
    started: float = msgspec.field(default_factory=monotonic)
    stopping: str | None = None
    is_cancelled: bool = False
    samples: deque[tuple[float, int, int]] = msgspec.field(default_factory=deque)

    @property
    def over(self) -> int:
        """Calls that ended, well or not."""
        return self.answered + self.failed

    def rates(self) -> tuple[float, float]:
        """Return calls and tokens a second over the last minute."""
        now = monotonic()
        since, over, tokens = self.samples[0] if self.samples else (self.started, 0, 0)
        passed_s = max(now - since, 0.001)
        return (self.over - over) / passed_s, (self.tokens - tokens) / passed_s

    def sample(self) -> None:
        """Take a sample for `rates`."""
        now = monotonic()
        self.samples.append((now, self.over, self.tokens))
        while now - self.samples[0][0] > _WINDOW_S:
            self.samples.popleft()


class _Report(msgspec.Struct):
    """What of an answer tells whether it is one."""

    status: str | None = None
    error: Any = None


class Run:
    """One run; `on_tick` is called every `tick_s`. Stops in order at the first signal, at once at the second."""

    def __init__(self, journal: Journal, estimator: Estimator, budget: Budget, progress: Progress) -> None:
        self.progress = progress
        self._journal = journal
        self._estimator = estimator
        self._budget = budget
        self._calls = Group()
        self._wake = Event()
        self.failed_in_a_row = 0
        self.failure: Failure | None = None
        self.error: Exception | None = None

    def _may_wait(self) -> bool:
        """Tell whether calls that the gateway did not take are still wanted."""
        return self.progress.stopping is None

    def go(self, gateway: Gateway, plan: Plan, concurrency: int, on_tick: Callable[[], None], tick_s: float) -> None:
        """Make the calls, `concurrency` at a time; `progress.stopping` is why not all were made, if so.

        `error` is what went wrong with the input or in writing, if something did.
        """
        self.progress.started = monotonic()
        before = {number: signal.signal(number, self._on_signal) for number in _STOP_SIGNALS if _is_heeded(number)}
        clocks = [gevent.spawn(_every, tick_s, on_tick), gevent.spawn(_every, _SYNC_EVERY_S, self._sync)]
        clocks.append(gevent.spawn(_every, 1.0, self.progress.sample))
        try:
            for call in plan.calls():
                estimate_usd = self._estimator.cost_usd(call.row) or 0.0
                if not self._admit(estimate_usd, concurrency):
                    break
                self.progress.in_flight += 1
                self._budget.reserve(estimate_usd)
                self._calls.spawn(self._make, gateway, call, estimate_usd, 2 * concurrency)
        except (BadInput, OSError) as error:
            self._break(error)
        try:
            while self.progress.in_flight and not self.progress.is_cancelled:
                self._await_change()
        finally:
            self._calls.kill()
            gevent.killall(clocks)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._journal.sync()

    def _admit(self, estimate_usd: float, concurrency: int) -> bool:
        """Wait until one more call may be made; False if none may be any more."""
        while self.progress.stopping is None:
            if not self._budget.may_take(estimate_usd):
                if self.progress.in_flight == 0:
                    self._stop(COST)
                    return False
            elif self.progress.in_flight < concurrency:
                return True
            self._await_change()
        return False

    def _await_change(self) -> None:
        self._wake.wait()
        self._wake.clear()

    def _make(self, gateway: Gateway, call: PlannedCall, estimate_usd: float, most_in_a_row: int) -> None:
        cost_usd = 0.0
        started = monotonic()
        try:
            found = gateway.post(call.row.api, call.row.body, call.rollout_id, self._may_wait)
            if found is not None:
                cost_usd = self._take(call, found, monotonic() - started, estimate_usd)
            if self.failed_in_a_row >= max(_LEAST_IN_A_ROW, most_in_a_row):
                self._stop(ALL_FAIL)
        except Exception as error:
            self._break(error)
        finally:
            self.progress.in_flight -= 1
            self._budget.settle(estimate_usd, cost_usd)
            self._wake.set()

    def _take(self, call: PlannedCall, found: Answer | Failure, duration_s: float, estimate_usd: float) -> float:
        """Write what came of a call and return what it cost, or may have."""
        response, failure = _to_result(call, found)
        if failure is not None:
            self._write_failure(call, failure)
            return self._to_lost_usd(found, failure, estimate_usd)
        line = to_line(
            call.row,
            {
                RESPONSE: msgspec.Raw(response),
                TASK_INDEX: call.row.task_index,
                ROLLOUT_INDEX: call.rollout_index,
                DURATION: round(duration_s, 3),
            },
        )
        report = read_answer(response)
        cost_usd = self._estimator.to_cost_usd(report)
        self._journal.answers.append(line)
        self.failed_in_a_row = 0
        progress = self.progress
        progress.answered += 1
        progress.sums.add(report, cost_usd, duration_s)
        progress.tokens += report.usage.input_tokens + report.usage.output_tokens if report.usage is not None else 0
        progress.cost_usd += cost_usd or 0.0
        return estimate_usd if cost_usd is None else cost_usd

    def _to_lost_usd(self, found: Answer | Failure, failure: Failure, estimate_usd: float) -> float:
        """Return what a failed call may have cost: refusals cost nothing, what broke off may be billed."""
        if failure.is_general or (failure.status or 0) >= 300:
            return 0.0
        cost_usd = self._estimator.to_cost_usd(read_answer(found.body)) if isinstance(found, Answer) else None
        return estimate_usd if cost_usd is None else cost_usd

    def _write_failure(self, call: PlannedCall, failure: Failure) -> None:
        told = {
            "status": failure.status,
            "code": failure.code,
            "message": failure.message,
            "attempts": failure.attempts,
            "request_id": failure.request_id,
            "what_to_do": failure.what_to_do,
            "time": round(time(), 3),
        }
        where = {TASK_INDEX: call.row.task_index, ROLLOUT_INDEX: call.rollout_index}
        line = to_line(call.row, {**where, FAILURE_CLASS: failure.failure_class, FAILURE: told})
        self._journal.failures.append(line)
        self.failed_in_a_row += 1
        self.progress.failed += 1
        self.progress.errors[failure.failure_class] += 1
        self.progress.examples.setdefault(failure.failure_class, failure)
        if failure.is_general:
            self.failure = self.failure or failure
            self._stop(GENERAL_FAILURE)

    def _break(self, error: Exception) -> None:
        self.error = self.error or error
        self._stop(BROKEN)

    def _stop(self, why: str) -> None:
        self.progress.stopping = self.progress.stopping or why
        self._wake.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.progress.stopping == INTERRUPTED:
            self.progress.is_cancelled = True
        self.progress.stopping = INTERRUPTED
        self._wake.set()

    def _sync(self) -> None:
        try:
            gevent.get_hub().threadpool.apply(self._journal.sync)
        except OSError as error:
            self._break(error)


def _is_heeded(number: int) -> bool:
    # What nohup ignores stays ignored.
    return signal.getsignal(number) is not signal.SIG_IGN


def _every(seconds: float, act: Callable[[], None]) -> None:
    while True:
        gevent.sleep(seconds)
        act()


def _to_result(call: PlannedCall, found: Answer | Failure) -> tuple[bytes, Failure | None]:
    """Return the response as one line of JSON, or why there is none to keep."""
    if isinstance(found, Failure):
        return b"", found
    attempts = found.headers.get("x-gateway-attempts", "")
    request_id = found.headers.get("x-gateway-request-id") or found.headers.get("x-request-id")
    if found.status >= 300:
        return b"", to_failure(found.status, found.body, int(attempts) if attempts.isdigit() else None, request_id)
    try:
        found.body.decode()
        response = msgspec.json.format(found.body, indent=-1)
        report = msgspec.json.decode(response, type=_Report)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return b"", to_broken(found.status, "the answer is no JSON object")
    if call.row.api == RESPONSES and report.status in ("failed", "cancelled", "queued", "in_progress"):
        error = report.error if isinstance(report.error, dict) else {}
        message = f"the response's status is {report.status}: {error.get('message', '')}"
        return b"", to_failed_response(found.status, str(error.get("code") or "") or None, message)
    return response, None
