"""What one host tells the others of an upstream's limits: values only, as they go through Redis.

Times are given as how long ago something was, for each host has a monotonic clock of its own. See also: host_ledger
(what is made of them).
"""

from __future__ import annotations

import math

import msgspec


class LedgerNews(msgspec.Struct, array_like=True, frozen=True):
    """One limit as a host knows it; `level` is what is left, `sent_ago_s` how old the call is that told it."""

    limit: float
    rate: float
    drain: float
    most: float
    period_s: float
    window_ends_in_s: float | None
    level: float
    sent_ago_s: float


class RefusalNews(msgspec.Struct, array_like=True, frozen=True):
    """The last refusals at a host: at its window of calls in flight, which is tried every so often, and at its rate.

    One at the rate `is_doubted` as long as it may be that call's own affair. Of the last one that nothing explained as
    yet, the time is told, too.
    """

    window_s_ago: float
    try_every_s: float
    rate_s_ago: float
    unexplained_s_ago: float = math.inf
    is_doubted: bool = False


class Amounts(msgspec.Struct, array_like=True, frozen=True):
    """What was charged in all."""

    requests: float = 0.0
    tokens: float = 0.0


class HostNews(msgspec.Struct, array_like=True, frozen=True):
    """What one host says at `at` (Redis's clock): what it has charged since its `epoch`, and what it knows.

    `for_rate` calls wait for the limits. `counted` is what it had heard from others by then, in the same epochs.
    """

    at: float
    epoch: int
    charged: Amounts
    for_rate: int
    counted: dict[str, Amounts]
    requests: LedgerNews | None = None
    tokens: LedgerNews | None = None
    token_factor: float = 1.0
    pause_s: float = 0.0
    refused: RefusalNews | None = None
