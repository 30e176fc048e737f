"""Workers of one host in a simulation: real queues on a real shared file, by the simulation's clock; no sockets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.limits import queue as queue_module
from openai_gateway.limits import sharing
from openai_gateway.limits.attempts import Bounds, ConfiguredLimits
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.order import Order, Place, Rollout
from openai_gateway.limits.queue import Queue, Waiting
from openai_gateway.limits.sharing import SharedLimits
from openai_gateway.limits.slots import Admitted
from openai_gateway.wire.rate_limits import read_dialect
from tests.limits.simulation import WARM_UP_S, Call, Report, Simulation, Upstream, finish, to_refusal

# Monotonic clocks are far from 0.
CLOCK_AT_S = 1000.0


class _SimulatedQueue(Queue):
    """A queue whose timer is the simulation's; late by up to 2 ms, as a busy worker is."""

    simulation: Simulation
    _wakes_at = math.inf

    def _set_timer(self, now: float, wait_s: float) -> None:
        due = self.simulation.now + wait_s
        if due < self._wakes_at:
            self._wakes_at = due
            self.simulation.later(wait_s + self.simulation.random.random() * 0.002, lambda: self._wake(due))

    def _wake(self, due: float) -> None:
        if due == self._wakes_at:
            self._wakes_at = math.inf
            self.learn()


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

    def __init__(self, simulation: Simulation, path: Path, workers: int) -> None:
        self.simulation = simulation
        self.queue = _SimulatedQueue(Limiter(ConfiguredLimits(), CLOCK_AT_S), Order(), Bounds())
        self.queue.simulation = simulation
        self.queue.limiter.window.begin_beside(workers - 1)
        self.queue.share(SharedLimits(path))
        self.rollouts: dict[tuple[int, int], Rollout] = {}

    @property
    def clock(self) -> float:
        return CLOCK_AT_S + self.simulation.now

    def add(self, call: Call) -> None:
        rollout = self.rollouts.setdefault((call.caller, call.number // 4), Rollout(self.clock))
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
        self.queue._order.add(place, self.clock)
        self.queue.learn()

    def send(self, call: Call, place: Place, turn: Admitted) -> None:
        simulation = self.simulation
        simulation.later(0.001 + simulation.random.expovariate(500), lambda: self.arrive(call, place, turn))

    def arrive(self, call: Call, place: Place, turn: Admitted) -> None:
        simulation = self.simulation
        meets, headers = simulation.arrive(call)
        if meets is None:
            simulation.later(call.latency_s, lambda: simulation.leave(call))
            simulation.later(call.latency_s + 0.002, lambda: self.answer(call, turn, headers))
        else:
            simulation.later(0.002, lambda: self.refuse(call, place, turn, meets, headers))

    def answer(self, call: Call, turn: Admitted, headers: dict[str, str]) -> None:
        assert turn.sent is not None
        limits = read_dialect(headers, 0.0)[1] if self.queue.limiter.may_refer(turn.sent) else {}
        self.queue.answer(turn.sent, limits)
        turn.release()
        self.simulation.finish_call(call)

    def refuse(self, call: Call, place: Place, turn: Admitted, meets: str, headers: dict[str, str]) -> None:
        assert turn.sent is not None
        refusal = to_refusal(self.simulation.spec, meets, headers)
        wait_s = self.queue.refuse(turn.sent, read_dialect(headers, 0.0)[1], refusal, call.tries, self.clock)
        turn.release()
        if wait_s is None:
            self.simulation.fail_call(call)
            return
        place.is_refused = True
        if wait_s > 0:
            self.simulation.later(wait_s, lambda: self.wait(call, place))
        else:
            self.wait(call, place)


class WorkersSimulation(Simulation):
    """Callers keep their connections, so each has one worker; chance gives some workers more of them than others."""

    def __init__(
        self, spec: Upstream, path: Path, workers: int, told: ConfiguredLimits | None = None, **given: Any
    ) -> None:
        super().__init__(spec, gateways=0, **given)
        self.workers = [Worker(self, path, workers) for _ in range(workers)]
        self.worker_of = [self.random.choice(self.workers) for _ in range(self.callers)]

    def run(self) -> Report:
        # A few calls long before the others, as somebody's first try would be.
        self.now = -WARM_UP_S
        for worker in 5 * self.workers:
            turn = worker.queue.take_at_once(Rollout(worker.clock), 2.0, is_limited=True)
            assert turn is not None
            assert turn.sent is not None
            worker.queue.answer(turn.sent, {})
            turn.release()
        self.now = 0.0
        return super().run()

    def call(self, caller: int, number: int) -> None:
        self.worker_of[caller].add(Call(self, caller, number))


def simulate_workers(
    patch: pytest.MonkeyPatch, path: Path, spec: Upstream, workers: int, **given: Any
) -> tuple[Report, WorkersSimulation]:
    """Run a simulation of workers that share the file at `path`; return its report, and it."""
    simulation = WorkersSimulation(spec, path, workers, **given)
    with patch.context() as clock:
        for module in (queue_module, sharing):
            clock.setattr(module, "monotonic", lambda: CLOCK_AT_S + simulation.now)
        return finish(simulation), simulation
