"""Workers of one host in a simulation: real queues on a real shared file, by the simulation's clock; no sockets."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.limits import queue as queue_module
from openai_gateway.limits import sharing
from openai_gateway.limits.attempts import Bounds, ConfiguredLimits
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.order import Order, Place, Rollout
from openai_gateway.limits.patience import Waiting
from openai_gateway.limits.queue import Queue
from openai_gateway.limits.sharing import SharedLimits
from openai_gateway.limits.slots import Admitted
from openai_gateway.wire.rate_limits import read_dialect
from tests.limits.simulation import CLOCK_AT_S, WARM_UP_S, Call, Report, Simulation, Upstream, finish, to_refusal


class Loop:
    """A worker's loop: one thing after the other, each in so much time; now and then the whole worker stands still."""

    def __init__(self, simulation: Simulation, step_s: float, stalls_s: tuple[float, float] | None) -> None:
        self.simulation, self.step_s, self.stalls_s = simulation, step_s, stalls_s
        self.is_busy_until = -math.inf
        self.waiting: deque[Callable[[], None]] = deque()
        if stalls_s is not None:
            simulation.later(simulation.random.expovariate(1), self.stall)

    def stall(self) -> None:
        assert self.stalls_s is not None
        simulation = self.simulation
        self.is_busy_until = max(self.is_busy_until, simulation.now) + simulation.random.uniform(*self.stalls_s)
        simulation.later(simulation.random.expovariate(1), self.stall)

    def do(self, what: Callable[[], None]) -> None:
        if not self.step_s and self.stalls_s is None:
            what()
            return
        self.waiting.append(what)
        if len(self.waiting) == 1:
            self.simulation.later(max(0.0, self.is_busy_until - self.simulation.now), self.next)

    def next(self) -> None:
        now = self.simulation.now
        if now >= self.is_busy_until - 1e-9:
            self.is_busy_until = now + self.step_s
            self.waiting[0]()
            self.waiting.popleft()
        if self.waiting:
            self.simulation.later(max(0.0, self.is_busy_until - now), self.next)


class _SimulatedQueue(Queue):
    """A queue whose timer is the simulation's; late by up to 2 ms, as a busy worker is."""

    simulation: Simulation
    loop: Loop
    _wakes_at = math.inf

    def _set_timer(self, now: float, wait_s: float) -> None:
        due = self.simulation.now + wait_s
        if due < self._wakes_at:
            self._wakes_at = due
            self.simulation.later(
                wait_s + self.simulation.random.random() * 0.002, lambda: self.loop.do(lambda: self._wake(due))
            )

    def _wake(self, due: float) -> None:
        if due == self._wakes_at:
            self._wakes_at = math.inf
            self._on_time()


class _Callback:
    """What a call waits for: it goes on in here when its turn has come."""

    def __init__(self, worker: Worker, call: Call, place: Place) -> None:
        self.worker, self.call, self.place = worker, call, place

    def set(self) -> None:
        turn = self.waiting.admitted
        assert turn is not None
        self.worker.send(self.call, self.place, turn)

    waiting: Waiting


class Worker:
    """One worker: what `admission` does, without greenlets."""

    def __init__(self, simulation: Simulation, path: Path, workers: int, loop: Loop) -> None:
        self.simulation, self.loop = simulation, loop
        self.queue = _SimulatedQueue(Limiter(ConfiguredLimits(), CLOCK_AT_S), Order(), Bounds())
        self.queue.simulation, self.queue.loop = simulation, loop
        if workers > 1:
            self.queue.limiter.window.begin_beside(workers - 1)
            self.queue.share(SharedLimits(path))
        self.rollouts: dict[tuple[int, int], Rollout] = {}

    def add(self, call: Call) -> None:
        self.loop.do(lambda: self.begin(call))

    def begin(self, call: Call) -> None:
        rollout = self.rollouts.setdefault((call.caller, call.number // 4), Rollout(self.simulation.clock))
        place = Place(rollout, call.charge)
        turn = self.queue.take_at_once(rollout, call.charge, is_limited=True)
        if turn is None:
            self.wait(call, place)
        else:
            self.send(call, place, turn)
        rollout.calls += 1

    def wait(self, call: Call, place: Place) -> None:
        event: Any = _Callback(self, call, place)
        event.waiting = self.queue.waiting[place] = Waiting(event)
        self.queue._order.add(place, self.simulation.clock)
        self.queue.learn()

    def send(self, call: Call, place: Place, turn: Admitted) -> None:
        simulation = self.simulation
        call.tries.again_at = simulation.clock
        delay_s = 0.001 + simulation.random.expovariate(500)
        # Whoever is let go writes when the loop comes to it.
        self.loop.do(lambda: simulation.later(delay_s, lambda: self.arrive(call, place, turn)))

    def arrive(self, call: Call, place: Place, turn: Admitted) -> None:
        simulation = self.simulation
        meets, headers = simulation.arrive(call)
        if meets is None:
            simulation.later(call.latency_s, lambda: simulation.leave(call))
            simulation.later(call.latency_s + 0.002, lambda: self.loop.do(lambda: self.answer(call, turn, headers)))
        else:
            after_s = simulation.spec.refused_after_s
            simulation.later(after_s, lambda: self.loop.do(lambda: self.refuse(call, place, turn, meets, headers)))

    def answer(self, call: Call, turn: Admitted, headers: dict[str, str]) -> None:
        assert turn.sent is not None
        limits = read_dialect(headers, 0.0)[1] if self.queue.limiter.may_refer(turn.sent) else {}
        self.queue.answer(turn.sent, limits, call.tries if call.tries.refusals else None)
        turn.release()
        self.simulation.finish_call(call)

    def refuse(self, call: Call, place: Place, turn: Admitted, meets: str, headers: dict[str, str]) -> None:
        assert turn.sent is not None
        refusal = to_refusal(self.simulation.spec, meets, headers)
        wait_s = self.queue.refuse(turn.sent, read_dialect(headers, 0.0)[1], refusal, call.tries, self.simulation.clock)
        turn.release()
        if wait_s is None:
            self.simulation.fail_call(call)
            return
        place.is_refused = call.tries.goes_first
        if wait_s > 0:
            self.simulation.later(wait_s, lambda: self.wait(call, place))
        else:
            self.wait(call, place)


class WorkersSimulation(Simulation):
    """Callers keep their connections, so each has one worker; chance gives some workers more of them than others."""

    def __init__(
        self,
        spec: Upstream,
        path: Path,
        workers: int,
        *,
        step_s: float = 0.0,
        stalls_s: tuple[float, float] | None = None,
        latency: float = 1.0,
        **given: Any,
    ) -> None:
        super().__init__(spec, gateways=0, **given)
        self.latency = latency
        self.workers = [Worker(self, path, workers, Loop(self, step_s, stalls_s)) for _ in range(workers)]
        self.worker_of = [self.random.choice(self.workers) for _ in range(self.callers)]

    def run(self) -> Report:
        # A few calls long before the others, as somebody's first try would be.
        self.now = -WARM_UP_S
        for worker in 5 * self.workers:
            turn = worker.queue.take_at_once(Rollout(self.clock), 2.0, is_limited=True)
            assert turn is not None
            assert turn.sent is not None
            worker.queue.answer(turn.sent, {})
            turn.release()
        self.now = 0.0
        return super().run()

    def call(self, caller: int, number: int) -> None:
        call = Call(self, caller, number)
        call.latency_s *= self.latency
        self.worker_of[caller].add(call)


def simulate_workers(
    patch: pytest.MonkeyPatch, path: Path, spec: Upstream, workers: int, **given: Any
) -> tuple[Report, WorkersSimulation]:
    """Run a simulation of workers that share the file at `path`; return its report, and it."""
    simulation = WorkersSimulation(spec, path, workers, **given)
    with patch.context() as clock:
        for module in (queue_module, sharing):
            clock.setattr(module, "monotonic", lambda: simulation.clock)
        return finish(simulation), simulation
