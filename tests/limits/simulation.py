"""Callers, a limiter and an upstream with limits, by a clock of events: seconds of simulated time, no sockets.

The upstream's limits are modelled here anew, and say what they say in one of the dialects that upstreams speak.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from openai_gateway.limits.attempts import ConfiguredLimits, Tries
from openai_gateway.limits.limiter import Limiter
from openai_gateway.wire.rate_limits import Refusal, read_dialect, read_refusal

WARM_UP_S = 5.0
# Monotonic clocks are far from 0.
CLOCK_AT_S = 1000.0


@dataclass(frozen=True)
class Upstream:
    """What an upstream limits (a minute), and how it tells; None is no limit."""

    rpm: float | None = None
    tpm: float | None = None
    in_flight: int | None = None
    burst_s: float = 5.0
    window_s: float | None = None  # fixed windows of this length in place of buckets
    hidden_s: float | None = None  # besides, no more than the limit's share in each window of this length
    foreign: float = 0.0
    settled: bool = False
    refusals_charged: bool = False
    headers: str = "openai"
    hint: str = ""  # retry-after, retry-after-ms, wrong
    names_kind: bool = True
    code: str = "rate_limit_exceeded"
    refused_after_s: float = 0.002  # how long a refusal is under way
    changes: tuple[tuple[float, float], ...] = ()  # (time, share of the limits from then on)


class Level:
    """A bucket, or a fixed window's count."""

    def __init__(self, per_minute: float, spec: Upstream) -> None:
        self.base = self.per_minute = per_minute
        self.spec = spec
        self.at = 0.0
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        return self.per_minute / 60 * (self.spec.window_s or self.spec.burst_s)

    def flow(self, now: float) -> None:
        if self.spec.window_s is not None:
            if now // self.spec.window_s > self.at // self.spec.window_s:
                self.level = self.capacity
            self.at = now
            return
        self.level += (now - self.at) * self.per_minute / 60 * (1 - self.spec.foreign)
        self.level = min(self.level, self.capacity)
        self.at = now

    def reset_s(self) -> float:
        if self.spec.window_s is not None:
            return self.spec.window_s - self.at % self.spec.window_s
        return (self.capacity - self.level) / (self.per_minute / 60 * (1 - self.spec.foreign))


@dataclass
class Report:
    """What came of a run, from WARM_UP_S on."""

    admitted: int = 0
    refused: int = 0
    failed: int = 0
    stored: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    per_caller: dict[int, int] = field(default_factory=dict)
    admitted_tokens: float = 0.0
    allowed: float = 0.0

    @property
    def used(self) -> float:
        return min(1.0, (self.admitted + self.stored) / self.allowed)

    @property
    def refused_share(self) -> float:
        return self.refused / max(1, self.refused + self.admitted)


class Simulation:
    """One run: `callers` call one after the other through one limiter each for `gateways`."""

    def __init__(
        self,
        spec: Upstream,
        *,
        seconds: float = 30.0,
        callers: int = 200,
        seed: int = 1,
        gateways: int = 1,
        told: ConfiguredLimits | None = None,
    ) -> None:
        self.spec, self.seconds, self.callers = spec, seconds, callers
        self.random = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.levels = {
            kind: Level(limit, spec)
            for kind, limit in (("requests", spec.rpm), ("tokens", spec.tpm))
            if limit is not None
        }
        self.upstream_running = 0
        self.busy_s = 0.0
        self.busy_at = WARM_UP_S
        self.hidden: tuple[int, int] = (0, 0)
        self.gateways = [Gateway(self, told or ConfiguredLimits()) for _ in range(gateways)]
        self.report = Report(per_caller=dict.fromkeys(range(callers), 0))
        self.at_start: dict[str, float] = {}

    @property
    def clock(self) -> float:
        """The monotonic clock of whoever is simulated."""
        return CLOCK_AT_S + self.now

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + delay_s, next(self.order), what))

    def run(self) -> Report:
        for number in range(self.callers):
            self.later(0.0, lambda number=number: self.call(number, 0))
        for at, share in self.spec.changes:
            self.later(at, lambda share=share: self.change(share))
        self.later(WARM_UP_S, self.begin)
        while self.events and self.events[0][0] <= self.seconds:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = self.seconds
        self.flow()
        return self.report

    def begin(self) -> None:
        self.flow()
        self.at_start = {kind: level.level for kind, level in self.levels.items()}
        self.report.admitted = 0

    def change(self, share: float) -> None:
        self.flow()
        for level in self.levels.values():
            level.per_minute = level.base * share
            level.level = min(level.level, level.capacity)

    def flow(self) -> None:
        if self.now > self.busy_at:
            self.busy_s += self.upstream_running * (self.now - self.busy_at)
            self.busy_at = self.now
        for level in self.levels.values():
            level.flow(self.now)

    def call(self, caller: int, number: int) -> None:
        call = Call(self, caller, number)
        self.gateways[caller % len(self.gateways)].add(call)

    def finish_call(self, call: Call) -> None:
        self.report.per_caller[call.caller] += 1
        self.report.waits_s.append(self.now - call.begun)
        self.call(call.caller, call.number + 1)

    def fail_call(self, call: Call) -> None:
        self.report.failed += 1
        self.call(call.caller, call.number + 1)

    def arrive(self, call: Call) -> tuple[str | None, dict[str, str]]:
        """Judge a call; return the limit that it meets (None: admitted), and the headers."""
        self.flow()
        charges = {"requests": 1.0, "tokens": float(call.charge)}
        meets = None
        second = int(self.now // self.spec.hidden_s) if self.spec.hidden_s else 0
        if second != self.hidden[0]:
            self.hidden = (second, 0)
        if self.spec.in_flight is not None and self.upstream_running >= self.spec.in_flight:
            meets = "in_flight"
        for kind, level in self.levels.items():
            if meets is None and level.level < charges[kind] - 1e-7:
                meets = kind
            if (
                self.spec.hidden_s
                and kind == "requests"
                and self.hidden[1] >= level.per_minute / 60 * self.spec.hidden_s
            ):
                meets = meets or kind
        if meets is None:
            self.hidden = (second, self.hidden[1] + 1)
            self.upstream_running += 1
            for kind, level in self.levels.items():
                level.level -= charges[kind]
            self.report.admitted += 1
            self.report.admitted_tokens += call.charge
        else:
            if self.now >= 0:
                self.report.refused += 1
            if self.spec.refusals_charged and "requests" in self.levels:
                self.levels["requests"].level = max(0.0, self.levels["requests"].level - 1)
        return meets, self.headers(meets, charges)

    def headers(self, meets: str | None, charges: dict[str, float]) -> dict[str, str]:
        told = {}
        for kind, level in self.levels.items():
            remaining, reset_s = max(0, math.floor(level.level)), level.reset_s()
            if self.spec.headers == "openai":
                told[f"x-ratelimit-limit-{kind}"] = f"{level.per_minute:.0f}"
                told[f"x-ratelimit-remaining-{kind}"] = str(remaining)
                told[f"x-ratelimit-reset-{kind}"] = (
                    f"{math.ceil(reset_s * 1000)}ms" if reset_s < 1 else f"{reset_s:.3f}s"
                )
            elif self.spec.headers == "anthropic":
                told[f"anthropic-ratelimit-{kind}-limit"] = f"{level.per_minute:.0f}"
                told[f"anthropic-ratelimit-{kind}-remaining"] = str(remaining)
        if meets is not None and self.spec.hint:
            wait_s = 1.0
            if meets in self.levels:
                level = self.levels[meets]
                wait_s = (
                    level.reset_s()
                    if self.spec.window_s
                    else (charges[meets] - level.level) / (level.per_minute / 60 * (1 - self.spec.foreign))
                )
            wait_s = max(wait_s, 0.001)
            if self.spec.hint == "retry-after":
                told["retry-after"] = str(math.ceil(wait_s))
            else:
                told["retry-after-ms"] = str(math.ceil(wait_s * (100 if self.spec.hint == "wrong" else 1000)))
        return told

    def leave(self, call: Call) -> None:
        self.flow()
        self.upstream_running -= 1
        if self.spec.settled and "tokens" in self.levels:
            level = self.levels["tokens"]
            level.level = min(level.capacity, level.level + call.refund)


class Call:
    """One call: how long it takes and what it is charged is drawn from its name."""

    def __init__(self, simulation: Simulation, caller: int, number: int) -> None:
        self.caller, self.number = caller, number
        draw = random.Random(f"{caller}-{number}")
        z = draw.gauss(0, 1)
        self.latency_s = min(20.0, 1.5 * math.exp(z * math.log(8 / 1.5) / 2.326))
        output = min(1024, int(150 * math.exp((0.8 * z + 0.6 * draw.gauss(0, 1)) * math.log(1000 / 150) / 2.326)))
        self.charge = min(int(1000 * math.exp(0.9 * draw.gauss(0, 1))), 20_000) // 4 + 1024
        self.refund = 1024 - output
        self.begun = simulation.now
        self.tries = Tries()
        self.sent: Any = None


class Gateway:
    """What `queue` does, without greenlets: the oldest rollout first (four calls each), refused calls before all."""

    def __init__(self, simulation: Simulation, told: ConfiguredLimits) -> None:
        self.simulation = simulation
        self.limiter = Limiter(told, CLOCK_AT_S)
        self.waiting: list[tuple[float, int, Call]] = []
        self.running = 0
        self.timer = math.inf
        self.on_refused: Callable[[], None] = lambda: None

    def add(self, call: Call) -> None:
        heapq.heappush(self.waiting, (call.number // 4 * 1000 + call.caller, next(self.simulation.order), call))
        self.pump()

    def pump(self) -> None:
        simulation = self.simulation
        while self.waiting:
            call = self.waiting[0][2]
            wait_s, _ = self.limiter.wait_s(call.charge, self.running, simulation.clock)
            if wait_s > 0:
                due = simulation.now + max(wait_s, 0.001)
                if due < self.timer - 1e-6 or self.timer <= simulation.now:
                    self.timer = due
                    simulation.later(due - simulation.now + simulation.random.random() * 0.002, self.tick)
                return
            heapq.heappop(self.waiting)
            call.sent = self.limiter.start(call.charge, self.running, simulation.clock)
            call.tries.again_at = simulation.clock
            self.running += 1
            simulation.later(0.001 + simulation.random.expovariate(500), lambda call=call: self.admit(call))

    def tick(self) -> None:
        self.timer = math.inf
        self.limiter.look(self.running, self.simulation.clock)
        self.pump()

    def admit(self, call: Call) -> None:
        meets, headers = self.simulation.arrive(call)
        simulation = self.simulation
        if meets is None:
            simulation.later(call.latency_s, lambda: simulation.leave(call))
            simulation.later(call.latency_s + 0.002, lambda: self.answer(call, headers))
        else:
            simulation.later(simulation.spec.refused_after_s, lambda: self.refuse(call, meets, headers))

    def answer(self, call: Call, headers: dict[str, str]) -> None:
        limits = read_dialect(headers, 0.0)[1] if self.limiter.may_refer(call.sent) else {}
        if call.tries.refusals:
            self.limiter.vouch(call.tries, self.simulation.clock)
        self.limiter.answer(call.sent, limits)
        self.running -= 1
        self.simulation.finish_call(call)
        self.pump()

    def refuse(self, call: Call, meets: str, headers: dict[str, str]) -> None:
        refusal = to_refusal(self.simulation.spec, meets, headers)
        self.running -= 1
        limits, clock = read_dialect(headers, 0.0)[1], self.simulation.clock
        wait_s = self.limiter.refuse(call.sent, limits, refusal, call.tries, clock)
        if wait_s is None:
            self.simulation.fail_call(call)
        elif wait_s > 0:
            self.simulation.later(wait_s, lambda: self.again(call))
        else:
            self.again(call)
        self.on_refused()
        self.pump()

    def again(self, call: Call) -> None:
        rank = -1.0 if call.tries.goes_first else max((each[0] for each in self.waiting), default=0.0)
        heapq.heappush(self.waiting, (rank, next(self.simulation.order), call))
        self.pump()


def to_refusal(spec: Upstream, meets: str, headers: dict[str, str]) -> Refusal:
    """Read a 429 as the gateway would."""
    kind = meets if spec.names_kind else None
    body = json.dumps({"error": {"message": "Rate limit reached.", "type": kind, "code": spec.code}})
    return read_refusal(headers, body.encode(), 0.0)


def simulate(spec: Upstream, **given: Any) -> Report:
    """Run a simulation; return its report, with what the limits allowed and what their buckets still hold."""
    return finish(Simulation(spec, **given))


def finish(simulation: Simulation) -> Report:
    """Run a simulation to its end; return its report."""
    spec, report = simulation.spec, simulation.run()
    if spec.rpm is not None:
        shares = {WARM_UP_S: 1.0} | dict(spec.changes) | {simulation.seconds: 0.0}
        report.allowed = simulation.at_start["requests"]
        for begin, end in itertools.pairwise(sorted(shares)):
            report.allowed += shares[begin] * (end - begin) * spec.rpm / 60 * (1 - spec.foreign)
        if spec.window_s:
            report.allowed = simulation.at_start["requests"]
            report.allowed += spec.rpm / 60 * spec.window_s * (simulation.seconds // spec.window_s)
        report.stored = simulation.levels["requests"].level
        if spec.hidden_s:
            report.allowed, report.stored = spec.rpm / 60 * (simulation.seconds - WARM_UP_S), 0.0
    elif spec.in_flight is not None:
        # Here it is slots' time that is used or lost.
        report.allowed = spec.in_flight * (simulation.seconds - WARM_UP_S)
        report.stored = simulation.busy_s - report.admitted
    return report
