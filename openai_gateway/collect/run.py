"""Makes the calls of a plan, so many at a time, and writes each answer as it comes; knows when to stop.

What is to be done is `plan`'s; one call is `client`'s; what a person sees of it, `cli`'s.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Final

import gevent
from gevent.event import Event
from gevent.pool import Group

from openai_gateway.collect.client import Answer, Gateway
from openai_gateway.collect.estimate import Budget, Estimator
from openai_gateway.collect.failures import Failure
from openai_gateway.collect.journal import Journal
from openai_gateway.collect.plan import BadInput, Plan, PlannedCall
from openai_gateway.collect.progress import ALL_FAIL, BROKEN, COST, GENERAL_FAILURE, INTERRUPTED, Progress
from openai_gateway.collect.results import to_answer_line, to_failure_line, to_result
from openai_gateway.wire.usage import read_answer

_LEAST_IN_A_ROW: Final = 100
_SAMPLE_EVERY_S: Final = 1.0
_SYNC_EVERY_S: Final = 10.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Run:
    """One run; `on_tick` is called every `tick_s`. Stops in order at the first signal, at once at the second."""

    def __init__(self, journal: Journal, estimator: Estimator, budget: Budget, progress: Progress) -> None:
        self.progress = progress
        self._journal = journal
        self._estimator = estimator
        self._budget = budget
        self._calls = Group()
        self._wake = Event()
        self._stopped = Event()
        self.failed_in_a_row = 0
        self.failure: Failure | None = None
        self.error: Exception | None = None

    def go(self, gateway: Gateway, plan: Plan, concurrency: int, on_tick: Callable[[], None], tick_s: float) -> None:
        """Make the calls, `concurrency` at a time; `progress.stopping` is why not all were made, if so.

        `error` is what went wrong with the input or in writing, if something did.
        """
        self.progress.started = monotonic()
        before = {number: signal.signal(number, self._on_signal) for number in _STOP_SIGNALS if _is_heeded(number)}
        clocks: list[gevent.Greenlet[..., None]] = [
            gevent.spawn(_every, tick_s, on_tick),
            gevent.spawn(_every, _SAMPLE_EVERY_S, self.progress.sample),
            gevent.spawn(_every, _SYNC_EVERY_S, self._sync),
            gevent.spawn(_at_once, self._stopped, on_tick),
        ]
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
            self.progress.took_s = monotonic() - self.progress.started
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
            found = gateway.post(call.row.api, call.row.body, call.rollout_id, self._stopped)
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
        response, failure = to_result(call.row.api, found)
        if failure is not None:
            self._write_failure(call, failure)
            return self._to_lost_usd(found, failure, estimate_usd)
        report = read_answer(response)
        cost_usd = self._estimator.to_cost_usd(report)
        self._journal.answers.append(to_answer_line(call, response, duration_s))
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
        self._journal.failures.append(to_failure_line(call, failure))
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
        self._stopped.set()
        self._wake.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.progress.stopping == INTERRUPTED:
            self.progress.is_cancelled = True
        self.progress.stopping = None
        self._stop(INTERRUPTED)

    def _sync(self) -> None:
        try:
            gevent.get_hub().threadpool.apply(self._journal.sync)
        except OSError as error:
            self._break(error)


def _is_heeded(number: int) -> bool:
    # What nohup ignores stays ignored.
    return signal.getsignal(number) is not signal.SIG_IGN


def _at_once(event: Event, act: Callable[[], None]) -> None:
    event.wait()
    act()


def _every(seconds: float, act: Callable[[], None]) -> None:
    while True:
        gevent.sleep(seconds)
        act()
