"""What the limiter knows of a call and of each of its attempts, and what the configuration tells it.

Values only. See also: limiter (what is made of them).
"""

from __future__ import annotations

import msgspec


class SentAttempt(msgspec.Struct):
    """One attempt as it was sent: beside how many others, and the sums of all charges up to its own."""

    at: float
    number: int
    tokens: float
    running: int
    spent_requests: float
    spent_tokens: float


class Tries(msgspec.Struct):
    """How often a call was refused: in all, and alone while others passed that were sent later.

    `number` is that of its first refused attempt, and tells it from other calls. `token_factor` is by what the estimate
    of its tokens was multiplied.
    """

    refusals: int = 0
    alone: int = 0
    number: int = 0
    token_factor: float = 1.0


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
