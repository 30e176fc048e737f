"""What an upstream says of its rate limits: in the headers of any answer, and in the headers and text of a 429.

Upstreams speak dialects: OpenAI and those like it (`x-ratelimit-remaining-requests`; Azure's -1 and 0 mean unknown;
Groq's requests are a day's), Anthropic-like ones (`anthropic-ratelimit-requests-remaining`, a reset being a time of
RFC 3339), plain `ratelimit-remaining`, texts ("Limit 30000, Used 29500, Requested 1200. Please try again in 1.4s.",
"Please retry in 46s") and none at all. All of them become the same few values. See also: limits (what they mean
for the next call).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from openai_gateway.wire.retries import parse_duration_s, read_retry_after_s

KINDS: Final = ("requests", "tokens")
# The first dialect that says anything counts. {} is limit, remaining or reset.
_DIALECTS: Final[dict[str, dict[str, str]]] = {
    "openai": {kind: f"x-ratelimit-{{}}-{kind}" for kind in KINDS},
    "anthropic": {kind: f"anthropic-ratelimit-{kind}-{{}}" for kind in KINDS},
    "ietf": {"requests": "ratelimit-{}"},
    "plain": {"requests": "x-ratelimit-{}"},
}
# Above it, a number can't be seconds from now: it's a Unix time, above the next one in milliseconds.
_UNIX_TIME: Final = 1e9
_UNIX_TIME_MS: Final = 1e11
_MOST_TEXT_BYTES: Final = 4096

_NUMBER: Final = r":?\s*([\d,]+(?:\.\d+)?)"
_LIMIT = re.compile(r"\blimit" + _NUMBER, re.IGNORECASE)
_USED = re.compile(r"\b(?:used|current)" + _NUMBER, re.IGNORECASE)
_REQUESTED = re.compile(r"\brequested" + _NUMBER, re.IGNORECASE)
_AGAIN_IN = re.compile(r"\b(?:again|retry)\s+(?:in|after)\s+([\d.]+(?:ms|s|m|h)?(?:[\d.]+(?:ms|s|m))*)", re.IGNORECASE)
_IN_FLIGHT = re.compile(r"concurren|in[ _-]?flight|simultaneous|parallel", re.IGNORECASE)
_SLOW_DOWN = re.compile(r"\bslow_down\b")
_TOO_LARGE = re.compile(r"request too large", re.IGNORECASE)
_KIND_WORDS: Final = {
    "tokens": re.compile(r"tokens per|\bTPM\b|\bTPD\b|\"type\": ?\"tokens\"", re.IGNORECASE),
    "requests": re.compile(r"requests per|\bRPM\b|\bRPD\b|\"type\": ?\"requests\"", re.IGNORECASE),
}


class LearnedLimit(msgspec.Struct, frozen=True):
    """What the gateway has found out of one limit: its rate, what is free now, and what others take of it.

    `dialect` says how: that of the upstream's headers, or `refusals`. Of what is free, the `margin` stays unspent.
    `used` and `allowed` are sums over the last minute and the last hour: what this process sent, and what the limit let
    in meanwhile.
    """

    per_minute: float
    free: float
    taken_by_others_per_minute: float
    dialect: str = ""
    margin: float = 0.0
    used: tuple[float, float] = (0.0, 0.0)
    allowed: tuple[float, float] = (0.0, 0.0)

    def merge(self, other: LearnedLimit) -> LearnedLimit:
        """Return the limit as two processes know it that share it: who sends more knows it better; both used it."""
        return msgspec.structs.replace(
            other if other.used >= self.used else self,
            used=(self.used[0] + other.used[0], self.used[1] + other.used[1]),
            allowed=(max(self.allowed[0], other.allowed[0]), max(self.allowed[1], other.allowed[1])),
        )

    def used_shares(self) -> tuple[float | None, float | None]:
        """Return which share of what was allowed was used in the last minute and hour; None if nothing was."""
        minute, hour = (
            min(1.0, used / allowed) if allowed > 0 else None
            for used, allowed in zip(self.used, self.allowed, strict=True)
        )
        return minute, hour


class Attempts(msgspec.Struct, frozen=True):
    """How many attempts were made in the last minute and the last hour, and how many a limit refused."""

    made: tuple[int, int] = (0, 0)
    refused: tuple[int, int] = (0, 0)

    def merge(self, other: Attempts) -> Attempts:
        """Return the sums of two processes."""
        return Attempts(
            (self.made[0] + other.made[0], self.made[1] + other.made[1]),
            (self.refused[0] + other.refused[0], self.refused[1] + other.refused[1]),
        )

    def refused_shares(self) -> tuple[float | None, float | None]:
        """Return which share was refused in the last minute and hour; None if no attempts were made."""
        minute, hour = (refused / made if made else None for refused, made in zip(self.refused, self.made, strict=True))
        return minute, hour


class RateLimit(msgspec.Struct, frozen=True):
    """One limit: how much there is, how much is left, and seconds until all of it is; None is unknown."""

    limit: float | None
    remaining: float | None
    reset_s: float | None


class Refusal(msgspec.Struct, frozen=True):
    """What a 429 says: which limit (`requests`, `tokens`, `in_flight`), and its numbers; None where it doesn't say.

    `slow_down` is no limit: the rate grew too fast. `is_too_large`: this call can never pass, however long it waits.
    """

    kind: str | None = None
    wait_s: float | None = None
    limit: float | None = None
    used: float | None = None
    requested: float | None = None
    is_too_large: bool = False


def read_rate_limits(headers: Mapping[str, str], now: float = 0.0) -> dict[str, RateLimit]:
    """Return the limits by kind (`requests`, `tokens`), from headers with lower-case names; only those given.

    `now` is the Unix time that a reset at a time of day counts from.
    """
    return read_dialect(headers, now)[1]


def read_dialect(headers: Mapping[str, str], now: float) -> tuple[str | None, dict[str, RateLimit]]:
    """Return the dialect's name (None: no limits are told) and the limits by kind."""
    for dialect, names in _DIALECTS.items():
        limits = {}
        for kind, name in names.items():
            found = _read_limit(headers, name, now)
            if found is not None:
                limits[kind] = found
        if limits:
            return dialect, limits
    return None, {}


def read_refusal(headers: Mapping[str, str], body: bytes, now: float) -> Refusal:
    """Return what a 429 says."""
    text = body[:_MOST_TEXT_BYTES].decode("utf-8", "replace")
    kind = "slow_down" if _SLOW_DOWN.search(text) else "in_flight" if _IN_FLIGHT.search(text) else None
    for name, words in _KIND_WORDS.items():
        kind = kind or (name if words.search(text) else None)
    limit, used, requested = (_find_number(words, text) for words in (_LIMIT, _USED, _REQUESTED))
    wait_s = read_retry_after_s(headers, now)
    again = _AGAIN_IN.search(text)
    if wait_s is None and again is not None:
        wait_s = parse_duration_s(again[1].rstrip("."))
    is_too_large = _TOO_LARGE.search(text) is not None or (
        limit is not None and requested is not None and requested > limit
    )
    return Refusal(kind, wait_s, limit, used, requested, is_too_large)


def _read_limit(headers: Mapping[str, str], name: str, now: float) -> RateLimit | None:
    limit, remaining = (_read_number(headers.get(name.format(what))) for what in ("limit", "remaining"))
    # Azure sends -1 or 0 for a limit that it doesn't tell; nothing that it then says of it means anything.
    if name.format("limit") in headers and not limit:
        return None
    if limit is None and remaining is None:
        return None
    return RateLimit(limit, remaining, _read_reset_s(headers.get(name.format("reset"), ""), now))


def _read_reset_s(text: str, now: float) -> float | None:
    seconds = parse_duration_s(text)
    if seconds is not None and seconds > _UNIX_TIME:
        seconds = (seconds / 1000 if seconds > _UNIX_TIME_MS else seconds) - now
    if seconds is None and "T" in text:
        try:
            seconds = datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return None if seconds is None else max(0.0, seconds)


def _read_number(text: str | None) -> float | None:
    # "100, 100;w=60" (an early draft of the IETF's headers) says the limit first.
    try:
        number = float((text or "nan").partition(",")[0])
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _find_number(words: re.Pattern[str], text: str) -> float | None:
    found = words.search(text)
    return float(found[1].replace(",", "") or "nan") if found is not None else None
