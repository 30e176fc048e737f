"""What the limiter knows of a call and of each of its attempts, and what the configuration tells it.

Values, and how often and how long a call is to be tried again. See also: limiter (what is made of them).
"""

from __future__ import annotations

from typing import Final

import msgspec

_MOST_REFUSALS: Final = 3
PASSES_BETWEEN: Final = 3
# A refused call waits for so long if nothing says how long, and twice as long each time.
_OWN_WAIT_S: Final = 0.5
LONGEST_OWN_WAIT_S: Final = 8.0


class SentAttempt(msgspec.Struct):
    """One attempt as it was sent: beside how many others, and the sums of all charges up to its own."""

    at: float
    number: int
    tokens: float
    running: int
    spent_requests: float
    spent_tokens: float


class Tries(msgspec.Struct):
    """How often a call was refused: in all, and `alone` while others `passed` that were sent later.

    `number` is that of its first refused attempt, and tells it from other calls. `token_factor` is by what the estimate
    of its tokens was multiplied.
    """

    refusals: int = 0
    alone: int = 0
    passed: int = 0
    number: int = 0
    token_factor: float = 1.0

    @property
    def own_wait_s(self) -> float:
        """Return how long the call waits after its last refusal, if nothing says how long."""
        return min(_OWN_WAIT_S * 2.0 ** min(self.refusals - 1, 10), LONGEST_OWN_WAIT_S)

    def may_pass(self, passed: int) -> bool:
        """Learn that it was refused again, others having passed meanwhile; False if that can't be put down to them."""
        self.passed += passed
        if self.passed >= PASSES_BETWEEN:
            self.alone, self.passed = self.alone + 1, 0
        return self.alone < _MOST_REFUSALS


class ConfiguredLimits(msgspec.Struct, frozen=True):
    """What the configuration tells: upper bounds, None being none, and whether limits are learned beside them."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    learns: bool = True


class Bounds(msgspec.Struct, frozen=True):
    """How many calls may run in this process (`cap`) and on this host, how many may wait, and how long.

    `patience_s` is how long they wait while the upstream refuses everything.
    """

    cap: int | None = None
    most_of_host: int | None = None
    max_queue: int | None = None
    timeout_s: float | None = None
    patience_s: float | None = None
