"""How much of a server's calls is under way, as its relay tells: for /readyz, /metrics and the status page.

What the upstream says of its own limits is `wire.rate_limits`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

import msgspec

from openai_gateway.upstream.admission import Admission


class Load(msgspec.Struct, frozen=True):
    """How much is under way in this process; `cap` None is no cap.

    `retrying` counts the calls that wait for another attempt, by why the last one failed. `queue_reason` is why calls
    wait in the queue, `paused_s` how long the upstream's refusal still holds all of them up.
    """

    in_flight: int
    queued: int
    cap: int | None
    retrying: dict[str, int]
    is_breaker_open: bool
    queue_reason: str = ""
    paused_s: float = 0.0


def to_load(admission: Admission, retrying: Mapping[str, int], *, is_breaker_open: bool) -> Load:
    """Return how much is under way; `retrying` may have counts of zero."""
    queue = admission.queue
    return Load(
        queue.slots.in_flight,
        len(queue.waiting),
        queue.slots.cap,
        {reason: count for reason, count in retrying.items() if count},
        is_breaker_open,
        queue.reason if queue.waiting else "",
        max(0.0, admission.limiter.pause_until - monotonic()),
    )
