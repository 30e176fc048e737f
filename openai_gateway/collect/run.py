"""Makes the calls of a plan, so many at a time, and writes each answer as it comes; knows when to stop.

See also: plan (what is to be done), client (one call), cli.collection (what a person sees of it).
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

from openai_gateway.collect.away import Away, Trial, is_away
from openai_gateway.collect.budget import Budget
from openai_gateway.collect.client import Gateway, GatewayAnswer, is_under_way
from openai_gateway.collect.entries import JournalError
from openai_gateway.collect.estimate import Claim, Estimator
from openai_gateway.collect.failures import Failure, make_cancelled_failure
from openai_gateway.collect.journal import Journal
from openai_gateway.collect.plan import BadInput, Plan, PlannedCall
from openai_gateway.collect.results import AnswerTimes, make_answer_line, make_failure_line, read_result
from openai_gateway.collect.rows import Row
from openai_gateway.collect.run_progress import ALL_FAIL, BROKEN, COST, GENERAL_FAILURE, INTERRUPTED, RunProgress
from openai_gateway.collect.wait_reasons import WaitReasons
from openai_gateway.wire.usage import read_answer

_LEAST_IN_A_ROW: Final = 100
_SAMPLE_EVERY_S: Final = 1.0
_WAITS_EVERY_S: Final = 3.0
_SYNC_EVERY_S: Final = 10.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The upstream worked on these and may charge for them.
_WORKED_ON: Final = ("upstream_timeout", "504")


class CallTries:
    """A call's tries: what those before the last may have cost, how long it was held between them.

    `is_under_way` says that the upstream may be working on it, so that it may be billed whatever becomes of it here.
    """

    __slots__ = ("held_s", "is_under_way", "lost_usd", "started", "trial")

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.started = monotonic()
        self.held_s = self.lost_usd = 0.0
        self.is_under_way = False


class Run:
    """One run; `on_tick` is called every `tick_s`. Stops in order at the first signal, at once at the second."""

    def __init__(self, journal: Journal, estimator: Estimator, budget: Budget, progress: RunProgress) -> None:
        self.progress = progress
        self._away = Away()
        self._journal = journal
        self._estimator = estimator
        self._budget = budget
        self._calls = Group()
        self._wake = Event()
        self._stopped = Event()
        self._in_a_row = 0
        self._count = 0
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
            gevent.spawn(_every, _SAMPLE_EVERY_S, self._look),
            gevent.spawn(_every, _WAITS_EVERY_S, lambda: self._read_waits(gateway)),
            gevent.spawn(_every, _SYNC_EVERY_S, self._sync),
            gevent.spawn(_at_once, self._stopped, on_tick),
            gevent.spawn(_at_once, self._stopped, gateway.close_queue),
        ]
        try:
            for call in plan.calls():
                claim = self._await_room(call.row, concurrency)
                if claim is None:
                    break
                self._count += 1
                self.progress.begun[self._count] = monotonic()
                self._budget.reserve(claim)
                self._calls.spawn(self._make, gateway, call, claim, self._count, 2 * concurrency)
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
            try:
                self._journal.finish()
            except JournalError as error:
                # It says where answers are that are not in the output.
                self.error = error
                self._stop(BROKEN)

    def _await_room(self, row: Row, concurrency: int) -> Claim | None:
        """Wait until a call of this row may be made, and return what to set aside; None if none may be any more."""
        while self.progress.stopping is None:
            # Anew each time: the answers that are waited for may tell that it costs more.
            claim = self._estimator.make_claim(row)
            may_begin = self._budget.knows_enough(claim)
            self.progress.holds_back = not may_begin
            if not self._budget.may_take(claim):
                if self.progress.in_flight == 0:
                    self._stop(COST)
                    return None
            elif self.progress.in_flight < concurrency and may_begin:
                return claim
            self._await_change()
        return None

    def _await_change(self) -> None:
        self._wake.wait()
        self._wake.clear()

    def _make(self, gateway: Gateway, call: PlannedCall, claim: Claim, number: int, most_in_a_row: int) -> None:
        cost_usd = 0.0
        tries = CallTries(self._away.begin())
        try:
            found = self._ask(gateway, call, tries)
            cost_usd = self._lose(call, tries) if found is None else self._take(call, found, tries)
            if self._journal.error is not None:
                self._break(self._journal.error)
            if self._in_a_row >= max(_LEAST_IN_A_ROW, most_in_a_row):
                self._stop(ALL_FAIL)
        except gevent.GreenletExit:
            cost_usd = self._lose(call, tries)
            raise
        except Exception as error:
            self._break(error)
        finally:
            del self.progress.begun[number]
            self._budget.settle(claim, cost_usd)
            self._wake.set()

    def _ask(self, gateway: Gateway, call: PlannedCall, tries: CallTries) -> GatewayAnswer | Failure | None:
        """Return what came of a call, None if nothing is to."""
        body = call.row.to_body(call.rollout_index)
        while True:
            tries.is_under_way = True
            found, unanswered = gateway.post(call.row.api, body, call.rollout_id, self._stopped)
            tries.is_under_way = False
            tries.lost_usd += unanswered * self._estimate_most_usd(call)
            self._away.learn(found)
            if not is_away(found):
                break
            assert isinstance(found, GatewayAnswer)
            may_ask = self._away.wait(tries.trial, self._stopped)
            if not may_ask and not self._stopped.is_set():
                return found
            tries.lost_usd += self._count_attempts(call, found)
            if not may_ask:
                # The next run does it.
                return None
            tries.held_s = monotonic() - tries.started
        if call.row.is_background and found is not None and is_under_way(found):
            # Until it is seen to be over: what is lost sight of goes on, and is billed.
            tries.is_under_way = True
            found = gateway.wait_for_response(found, call.rollout_id)
            tries.is_under_way = not isinstance(found, GatewayAnswer) or found.status != 200
        return found

    def _count_attempts(self, call: PlannedCall, found: GatewayAnswer) -> float:
        """Count a call's attempts and return what those may have cost that the upstream worked on."""
        for sums in (self.progress.sums, self.progress.run_sums):
            sums.add_attempts(found.attempts or 1, found.retries)
        return sum(reason in _WORKED_ON for reason in found.retries) * self._estimate_most_usd(call)

    def _estimate_most_usd(self, call: PlannedCall) -> float:
        return self._estimator.cost_usd(call.row) or 0.0

    def _lose(self, call: PlannedCall, tries: CallTries) -> float:
        """Write that a call ended with the run, if it may be billed all the same, and return what it may cost."""
        lost_usd = tries.lost_usd + (self._estimate_most_usd(call) if tries.is_under_way else 0.0)
        if lost_usd or tries.is_under_way:
            self._write_failure(call, make_cancelled_failure(), lost_usd)
        return lost_usd

    def _take(self, call: PlannedCall, found: GatewayAnswer | Failure, tries: CallTries) -> float:
        """Write what came of a call and return what it cost, or may have."""
        progress, row, took_s = self.progress, call.row, monotonic() - tries.started
        response, failure = read_result(row.api, found)
        lost_usd = tries.lost_usd
        lost_usd += self._count_attempts(call, found) if isinstance(found, GatewayAnswer) else 0.0
        if failure is not None:
            lost_usd += self._estimate_lost_usd(call, found, failure, tries)
            self._write_failure(call, failure, lost_usd)
            return lost_usd
        assert isinstance(found, GatewayAnswer)
        report = read_answer(response)
        cost_usd = 0.0 if found.is_replayed else self._estimator.compute_cost_usd(report)
        self._estimator.learn_pictures(row.body, report.usage)
        bound = self._estimator.find_bound(row)
        guess_usd = 0.0 if cost_usd is not None else self._estimator.guess_usd(report, row.input_tokens, bound)
        times = AnswerTimes(took_s, max(took_s - tries.held_s - found.waited_s, 0.0))
        self._journal.answers.append(make_answer_line(call, found, response, times, lost_usd))
        self._in_a_row = 0
        progress.answered += 1
        for sums in (progress.sums, progress.run_sums):
            sums.add(report, cost_usd, times.duration_s, times.latency_s)
            sums.estimated_usd += guess_usd
            sums.perhaps_billed_usd += lost_usd
        return (cost_usd or 0.0) + guess_usd + lost_usd

    def _estimate_lost_usd(
        self, call: PlannedCall, found: GatewayAnswer | Failure, failure: Failure, tries: CallTries
    ) -> float:
        """Return what a failed call may have cost: refusals cost nothing; what timed out or broke off may be billed."""
        if isinstance(found, GatewayAnswer) and found.status < 300:
            cost_usd = self._estimator.compute_cost_usd(read_answer(found.body))
            if cost_usd is not None:
                return cost_usd
        is_refused = failure.is_general or ((failure.status or 0) >= 300 and failure.failure_class != "timeout")
        return 0.0 if is_refused and not tries.is_under_way else self._estimate_most_usd(call)

    def _write_failure(self, call: PlannedCall, failure: Failure, lost_usd: float) -> None:
        self._journal.failures.append(make_failure_line(call, failure, lost_usd))
        self._in_a_row += 1
        progress = self.progress
        progress.failed += 1
        progress.errors[failure.failure_class] += 1
        progress.examples.setdefault(failure.failure_class, failure)
        for sums in (progress.sums, progress.run_sums):
            sums.perhaps_billed_usd += lost_usd
        if failure.is_general:
            self.failure = self.failure or failure
            self._stop(GENERAL_FAILURE)

    def _break(self, error: Exception) -> None:
        self.error = self.error or error
        self._stop(BROKEN)

    def _stop(self, why: str) -> None:
        if self.progress.stopping is None:
            self.progress.stopping = why
            self.failed_in_a_row = self._in_a_row
        self._stopped.set()
        self._wake.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.progress.stopping == INTERRUPTED:
            self.progress.is_cancelled = True
        self.progress.stopping = None
        self._stop(INTERRUPTED)

    def _look(self) -> None:
        self.progress.sample()
        self.progress.away_s = self._away.away_s()
        self.progress.away_reason = self._away.reason
        try:
            self._journal.look()
        except JournalError as error:
            self._break(error)

    def _read_waits(self, gateway: Gateway) -> None:
        self.progress.waits = gateway.read_waits() if self.progress.in_flight else WaitReasons()

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
