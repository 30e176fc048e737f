"""The rows of the status page on rate limits: what the upstream told, what was found out, how far it is used.

See also: view (everything else on the page).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from openai_gateway.page.figures import UNKNOWN, Cell, Row, clip, to_count, to_duration

_UNTOLD: Final = {"limit": None, "remaining": None, "reset_s": None}
_LEARNED: Final = ("per_minute", "free", "margin", "taken_by_others_per_minute")
_IN_FLIGHT: Final = "calls at a time"
# What calls wait for, as `Limiter.wait_s` says it.
REASONS: Final = {
    "slot": "a slot",
    "rate": "the rate limit",
    "tokens": "the limit on tokens",
    "window": "the limit on calls in flight",
    "pause": "the upstream",
}
# In the table, which is wide.
_SHORT: Final = {
    "slot": "a slot",
    "rate": "requests",
    "tokens": "tokens",
    "window": "others to end",
    "pause": "the upstream",
}


def list_limits(server: Mapping[str, Any]) -> list[Row]:
    """Return a row for each limit of a server that is told or was found out."""
    rows: list[Row] = []
    learned, most = server["learned_limits"], server["most_in_flight"]
    seen = [*(_to_share(share) for share in server["refused_shares"]), _describe_waiting(server)]
    for kind in dict.fromkeys([*server["rate_limits"], *learned]):
        found = server["rate_limits"].get(kind, _UNTOLD)
        limit, left, reset_s = found["limit"], found["remaining"], found["reset_s"]
        reset = to_duration(None if reset_s is None else reset_s * 1000)
        told = [_to_meter(left, limit), to_count(left), to_count(limit), reset]
        rows.append([clip(server["name"]), kind, *told, *_to_learned(learned.get(kind)), *seen])
    if most is not None:
        left = max(0.0, most - server["in_flight"])
        told = [_to_meter(left, most), to_count(left), to_count(most), UNKNOWN]
        rows.append([clip(server["name"]), _IN_FLIGHT, *told, "refusals", *[UNKNOWN] * 6, *seen])
    return rows


def _to_learned(found: Mapping[str, Any] | None) -> Row:
    if found is None:
        return [UNKNOWN] * 7
    counts = [to_count(found[name]) for name in _LEARNED]
    return [found["dialect"] or UNKNOWN, *counts, *(_to_share(share) for share in found["used_shares"])]


def _to_meter(left: float | None, limit: float | None) -> Cell:
    if not limit or left is None:
        return ""
    share = min(1.0, left / limit)
    return [f"{share:.0%}", "meter", round(share, 4)]


def _to_share(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.1%}" if 0 < share < 0.9995 else f"{share:.0%}"


def _describe_waiting(server: Mapping[str, Any]) -> str:
    """Return how many calls wait for their turn, and what for."""
    return ", ".join(f"{count:,} for {_SHORT.get(why, why)}" for why, count in server["waiting"].items()) or "0"
