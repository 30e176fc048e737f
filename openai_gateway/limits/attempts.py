"""What the limiter knows of a call and of each of its attempts, and what the configuration tells it.

Values, and how often and how long a call is to be tried again. See also: limiter (what is made of them).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from openai_gateway.wire.rate_limits import Refusal

PASSES_BETWEEN: Final = 3
# A refused call waits for so long if nothing says how long, and twice as long each time.
_OWN_WAIT_S: Final = 0.5
_MOST_FIRST: Final = 3
_LONGEST_OWN_WAIT_S: Final = 8.0


class SentAttempt(msgspec.Struct):
    """One attempt as it was sent: beside how many others, and the sums of all charges up to its own."""

    at: float
    number: int
    tokens: float
    running: int
    spent_requests: float
    spent_tokens: float


class Tries(msgspec.Struct, eq=False):
    """How often a call was refused: in all, and `alone` while others `passed` that were sent later.

    `number` is that of its first refused attempt, and tells it from other calls. `token_factor` is by what the estimate
    of its tokens was multiplied. `again_at` is when it was last sent again, `is_again` whether nobody else was refused
    between its last two refusals.
    """

    refusals: int = 0
    alone: int = 0
    passed: int = 0
    number: int = 0
    token_factor: float = 1.0
    again_at: float = math.inf
    is_again: bool = False
    # When it was first refused and no ledger told why, and how many calls had been vouched for by then.
    since: float = 0.0
    vouched: int = 0
    # Of all calls: the refusals before its first one; up to its last one, and how many were sent but not refused.
    refusals_before: int = 0
    refusals_then: int = 0
    let_in_then: int = 0
    # Whether it vouches for a limit itself, and the refusal that counts only then.
    has_vouched: bool = False
    doubted: tuple[SentAttempt, Refusal] | None = None

    @property
    def goes_first(self) -> bool:
        """Tell whether it goes before all others: not when that has told nothing of a limit, for none would pass."""
        return not self.alone or self.refusals < _MOST_FIRST

    @property
    def own_wait_s(self) -> float:
        """Return how long the call waits after its last refusal, if nothing says how long."""
        return min(_OWN_WAIT_S * 2.0 ** min(self.refusals - 1, 10), _LONGEST_OWN_WAIT_S)


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
