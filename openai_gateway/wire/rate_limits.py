"""What an answer's headers say of the upstream's rate limits.

Sources: OpenAI's `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; a reset is a duration such as `6m0s`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from openai_gateway.wire.retries import to_duration_s

KINDS: Final = ("requests", "tokens")


class RateLimit(msgspec.Struct, frozen=True):
    """One limit a minute: how much there is, how much is left, and seconds until all of it is; None is unknown."""

    limit: float | None
    remaining: float | None
    reset_s: float | None


def read_rate_limits(headers: Mapping[str, str]) -> dict[str, RateLimit]:
    """Return the limits by kind (`requests`, `tokens`), from headers with lower-case names; only those given."""
    limits = {}
    for kind in KINDS:
        limit, remaining = (_to_number(headers.get(f"x-ratelimit-{what}-{kind}")) for what in ("limit", "remaining"))
        reset_s = to_duration_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
        # Azure sends -1 or 0 for a limit it doesn't tell.
        if limit is not None and limit <= 0:
            limit = None
        if limit is not None or remaining is not None:
            limits[kind] = RateLimit(limit, remaining, reset_s)
    return limits


def _to_number(text: str | None) -> float | None:
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
