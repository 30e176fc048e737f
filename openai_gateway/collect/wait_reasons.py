"""What calls wait for at the gateway, as its `/readyz` tells.

See also: client (which asks for it), cli.progress_line (which shows it).
"""

from __future__ import annotations

from typing import Final

import msgspec

QUEUED: Final = "queued"


class FoundLimit(msgspec.Struct, frozen=True):
    """A limit of the upstream's: how much a minute, and which share of it was used in the last one (None: unknown)."""

    per_minute: float
    used_share: float | None = None


class WaitReasons(msgspec.Struct, frozen=True):
    """What calls wait for at the gateway: how many, by why their last attempt failed, or QUEUED.

    `reason` is what the queue waits for: slot, rate, tokens, window, pause; "" if nobody queues. `limits` are what was
    found out of the upstream's limits, by kind; `most_in_flight` is how many calls it takes at a time.
    """

    counts: dict[str, int] = {}
    reason: str = ""
    limits: dict[str, FoundLimit] = {}
    most_in_flight: float | None = None


class _ServerState(msgspec.Struct):
    queued: int = 0
    retrying: dict[str, int] = {}
    queue_reason: str = ""
    limits: dict[str, FoundLimit] = {}
    most_in_flight: float | None = None


class _Readiness(msgspec.Struct):
    servers: dict[str, _ServerState] = {}


def read_wait_reasons(body: bytes) -> WaitReasons:
    """Return what a `/readyz` says; nothing if it can't be read."""
    try:
        servers = msgspec.json.decode(body, type=_Readiness).servers
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return WaitReasons()
    counts: dict[str, int] = {}
    for server in servers.values():
        for reason, count in {**server.retrying, QUEUED: server.queued}.items():
            if count:
                counts[reason] = counts.get(reason, 0) + count
    busiest = max(servers.values(), key=lambda server: server.queued, default=_ServerState())
    return WaitReasons(counts, busiest.queue_reason, busiest.limits, busiest.most_in_flight)
