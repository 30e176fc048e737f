"""How a run stands: counts, rates, why calls wait, and why it stops.

See also: run (who counts), cli.progress_line (who shows it).
"""

from __future__ import annotations

from collections import Counter, deque
from time import monotonic
from typing import Final

import msgspec

from openai_gateway.collect.failures import Failure
from openai_gateway.collect.sums import Sums
from openai_gateway.collect.wait_reasons import WaitReasons

COST: Final = "cost"
INTERRUPTED: Final = "interrupted"
GENERAL_FAILURE: Final = "general failure"
ALL_FAIL: Final = "all fail"
BROKEN: Final = "broken"
_WINDOW_S: Final = 60.0


class RunProgress(msgspec.Struct):
    """How a run stands. `sums` are of the whole output, earlier runs included; all else is of this run.

    `begun` holds when each call in flight began, the oldest first; `waits` is what calls wait for at the gateway;
    `holds_back` says that few calls begin as their cost is not known yet; `away_s` is for how long the upstream has
    been away, None if it isn't, and `away_reason` the failure that tells so.
    """

    sums: Sums
    to_do: int
    run_sums: Sums = msgspec.field(default_factory=Sums)
    answered: int = 0
    failed: int = 0
    begun: dict[int, float] = {}
    errors: Counter[str] = msgspec.field(default_factory=Counter)
    examples: dict[str, Failure] = {}
    waits: WaitReasons = WaitReasons()
    holds_back: bool = False
    away_s: float | None = None
    away_reason: str | None = None
    started: float = msgspec.field(default_factory=monotonic)
    took_s: float = 0.0
    stopping: str | None = None
    is_cancelled: bool = False
    samples: deque[tuple[float, int, int]] = msgspec.field(default_factory=deque)

    @property
    def in_flight(self) -> int:
        """Calls that are under way."""
        return len(self.begun)

    @property
    def over(self) -> int:
        """Calls that ended, well or not."""
        return self.answered + self.failed

    @property
    def left(self) -> int:
        """Calls of this run that have not ended."""
        return self.to_do - self.over

    def oldest_s(self) -> float:
        """Return how long the call has been under way that has been so longest."""
        return monotonic() - next(iter(self.begun.values())) if self.begun else 0.0

    def rates(self) -> tuple[float, float]:
        """Return calls and tokens a second over the last minute."""
        now = monotonic()
        since, over, tokens = self.samples[0] if self.samples else (self.started, 0, 0)
        passed_s = max(now - since, 0.001)
        return (self.over - over) / passed_s, (self.run_sums.tokens - tokens) / passed_s

    def estimate_rest_s(self) -> float | None:
        """Return how long the rest takes at the last minute's rate; None while nothing tells.

        Nothing does once all calls have begun: the last ones take as long as each of them takes.
        """
        if self.stopping or self.away_s is not None:
            return None
        calls_per_s, _ = self.rates()
        if not calls_per_s or self.left <= self.in_flight or self.over < self._least_for_eta():
            return None
        return self.left / calls_per_s

    def sample(self) -> None:
        """Take a sample for `rates`."""
        now = monotonic()
        if not self.samples:
            # In the first minute, rates are of all that went before.
            self.samples.append((self.started, 0, 0))
        self.samples.append((now, self.over, self.run_sums.tokens))
        while now - self.samples[0][0] > _WINDOW_S:
            self.samples.popleft()

    def _least_for_eta(self) -> int:
        # The first calls to end are the quick ones.
        return max(5, min(self.in_flight // 2, 100))
