"""Hosts in a simulation, in touch through a Redis that is a dict: exact, fast, and away when it is told to be."""

from __future__ import annotations

import math
from typing import Any

from openai_gateway.limits.attempts import ConfiguredLimits
from openai_gateway.limits.host_ledger import HostLedger
from openai_gateway.limits.host_limiter import PERIOD_S, HostLimiter
from openai_gateway.limits.limits_file import Demand
from tests.limits.simulation import CLOCK_AT_S, Gateway, Report, Simulation, Upstream, finish

# Redis's clock isn't that of any host.
AHEAD_S = 1e9
# From a refusal until others have heard of it, where it is told at once; and how often it is.
_TOLD_S = 0.004
_TOLD_EVERY_S = 0.01


class Host:
    """One gateway's part in the exchange."""

    def __init__(self, name: str, gateway: Gateway, redis: Redis, told: ConfiguredLimits) -> None:
        self.name, self.gateway, self.redis = name, gateway, redis
        self.limiter = gateway.limiter = HostLimiter(told, CLOCK_AT_S)
        self.limiter.window.begin_beside(3)
        self.ledger = HostLedger(name, b"")
        self.told_at = -math.inf
        gateway.on_refused = self.tell
        redis.hosts.append(self)

    def tell(self) -> None:
        """Tell all at once that a call was refused."""
        simulation = self.gateway.simulation
        if self.limiter.is_untold and simulation.now - self.told_at >= _TOLD_EVERY_S:
            self.told_at = simulation.now
            simulation.later(_TOLD_S, self.say)

    def say(self) -> None:
        now = self.gateway.simulation.clock
        if not self.redis.is_away(self.gateway.simulation.now):
            demand, clock = self.demand, now + AHEAD_S - self.redis.behind_s(self.gateway.simulation.now)
            self.redis.said[self.name] = self.ledger.to_news(self.limiter, demand.for_rate, now, clock)
            for host in self.redis.hosts:
                if host is not self:
                    host.ledger.take(host.limiter, dict(self.redis.said), host.demand, now, clock)

    @property
    def demand(self) -> Demand:
        return Demand(self.gateway.running, 0, len(self.gateway.waiting))

    def exchange(self) -> None:
        simulation, limiter = self.gateway.simulation, self.limiter
        simulation.later(limiter.exchange_every_s, self.exchange)
        now, demand = simulation.clock, self.demand
        if self.redis.is_away(simulation.now):
            self.ledger.miss(limiter, now)
            return
        clock = now + AHEAD_S - self.redis.behind_s(simulation.now)
        self.redis.said[self.name] = self.ledger.to_news(limiter, demand.for_rate, now, clock)
        self.ledger.take(limiter, dict(self.redis.said), demand, now, clock)
        # Whoever takes over knows what was noted.
        self.ledger = HostLedger(self.name, self.ledger.to_notes()) if self.redis.is_forgetful else self.ledger


class Redis:
    """What hosts said; `away` are the times when it can't be asked, and its clock is `set_back` then, by so much."""

    def __init__(
        self,
        away: tuple[float, float] = (math.inf, math.inf),
        *,
        is_forgetful: bool = False,
        set_back: tuple[float, float] = (math.inf, 0.0),
    ) -> None:
        self.said: dict[str, bytes] = {}
        self.hosts: list[Host] = []
        self.away = away
        self.is_forgetful = is_forgetful
        self._set_back = set_back

    def behind_s(self, now: float) -> float:
        at, by_s = self._set_back
        return by_s if now >= at else 0.0

    def is_away(self, now: float) -> bool:
        if self.away[0] <= now < self.away[1]:
            self.said.clear()
            return True
        return False


def simulate_hosts(
    spec: Upstream, hosts: int, redis: Redis | None = None, told: ConfiguredLimits | None = None, **given: Any
) -> tuple[Report, list[Host]]:
    """Run a simulation of hosts in touch; return its report, and them."""
    simulation = Simulation(spec, gateways=hosts, told=told, **given)
    redis = redis or Redis()
    found = [Host(f"h{n}", gateway, redis, told or ConfiguredLimits()) for n, gateway in enumerate(simulation.gateways)]
    for number, host in enumerate(found):
        simulation.later(PERIOD_S * (number + 0.5) / hosts, host.exchange)
    return finish(simulation), found
