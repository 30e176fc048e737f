"""How a run stands: counts, rates, and why it stops.

Who counts is `run`; who shows it, `cli.progress`.
"""

from __future__ import annotations

from collections import Counter, deque
from time import monotonic
from typing import Final

import msgspec

from openai_gateway.collect.failures import Failure
from openai_gateway.collect.sums import Sums

COST: Final = "cost"
INTERRUPTED: Final = "interrupted"
GENERAL_FAILURE: Final = "general failure"
ALL_FAIL: Final = "all fail"
BROKEN: Final = "broken"
_WINDOW_S: Final = 60.0


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
    took_s: float = 0.0
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
