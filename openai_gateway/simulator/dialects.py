"""How upstreams tell of their limits: a dialect each, for the headers of an answer and for a 429 with its words.

`openai`, and those below, which differ from it as the real ones do. See also: account_limits (what the limits are).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

from openai_gateway.simulator.account_limits import LimitExceeded, LimitStatus
from openai_gateway.simulator.errors import ApiError

Header = tuple[str, str]

# What Azure says of its Responses API.
_UNTOLD: Final = (("limit", "-1"), ("remaining", "-1"), ("reset", "0"))
_UNLIMITED: Final = LimitStatus(1_000_000, 1_000_000, 0.0)
_NAMES: Final = {
    "requests": ("requests", "requests per min (RPM)"),
    "requests_per_day": ("requests", "requests per day (RPD)"),
    "tokens": ("tokens", "tokens per min (TPM)"),
}
# Those that tell of nothing in headers.
_SILENT: Final = ("gemini", "none")


def make_headers(dialect: str, api: str, told: Mapping[str, LimitStatus], now: float) -> list[Header]:
    """Return the headers that tell of the limits; `now` is the Unix time, `api` responses or chat."""
    if dialect in _SILENT:
        return []
    if dialect == "azure" and api == "responses":
        return [(f"x-ratelimit-{what}-{kind}", value) for kind in ("requests", "tokens") for what, value in _UNTOLD]
    headers = []
    for kind in ("requests", "tokens"):
        # Groq's count of requests is a day's.
        found = told["requests_per_day" if dialect == "groq" and kind == "requests" else kind]
        if found.limit is None:
            if dialect != "openai":
                continue
            found = _UNLIMITED
        name = f"anthropic-ratelimit-{kind}-{{}}" if dialect == "anthropic" else f"x-ratelimit-{{}}-{kind}"
        headers.append((name.format("limit"), str(found.limit)))
        headers.append((name.format("remaining"), str(found.remaining)))
        if dialect == "anthropic":
            headers.append((name.format("reset"), _to_time(now + found.reset_s)))
        elif dialect != "azure":
            headers.append((name.format("reset"), to_duration(found.reset_s)))
    return headers


def make_error(dialect: str, refusal: LimitExceeded, model: Any) -> ApiError:
    """Return the 429 that refuses a call."""
    wait_s = None if math.isinf(refusal.wait_s) else refusal.wait_s
    headers: list[Header] = []
    if wait_s is not None and dialect not in _SILENT:
        if dialect in ("openai", "azure"):
            headers.append(("retry-after-ms", str(math.ceil(wait_s * 1000))))
        headers.append(("retry-after", str(math.ceil(wait_s))))
    error = ApiError(429, "", headers=tuple(headers))
    error.form = _to_form(dialect, refusal, model, wait_s)
    return error


def to_duration(seconds: float) -> str:
    """Return seconds as OpenAI writes them, rounded up to a millisecond: `120ms`, `1.5s`, `6m0s`, `23h59m57.5s`."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes_left = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes_left}m" if minutes else "") + f"{rest / 1000:g}s"


def _to_form(dialect: str, refusal: LimitExceeded, model: Any, wait_s: float | None) -> dict[str, Any]:
    seconds = f"{math.ceil((wait_s or 0.0) * 1000) / 1000:g}"
    if dialect == "none":
        return {"status": 429, "title": "Too Many Requests"}
    if dialect == "gemini":
        again = f" Please retry in {seconds}s." if wait_s is not None else ""
        message = f"You exceeded your current quota, please check your plan and billing details.{again}"
        return {"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED"}}
    kind, unit = _NAMES.get(refusal.kind, ("requests", ""))
    if dialect == "anthropic":
        limited = f"{refusal.limit:,} {unit.partition(' (')[0]}" if unit else f"{refusal.limit:,} concurrent requests"
        message = f"This request would exceed your organization's rate limit of {limited}."
        return {"error": {"type": "rate_limit_error", "message": message}}
    if dialect == "azure":
        again = f" Please retry after {math.ceil(wait_s)} seconds." if wait_s is not None else ""
        what = "call rate limit" if kind == "requests" else "token rate limit"
        message = f"Requests for {model} have exceeded the {what} of your current OpenAI S0 pricing tier.{again}"
        return {"error": {"code": "429", "message": message}}
    message = _to_message(refusal, model, unit, seconds)
    return {"error": {"message": message, "type": kind, "param": None, "code": "rate_limit_exceeded"}}


def _to_message(refusal: LimitExceeded, model: Any, unit: str, seconds: str) -> str:
    if not unit:
        return f"Too many concurrent requests for {model}: Limit {refusal.limit}, Used {refusal.used}."
    where = f"for {model} in organization simulator on {unit}: Limit {refusal.limit}"
    if math.isinf(refusal.wait_s):
        must = "The input or output tokens must be reduced in order to run successfully."
        return f"Request too large {where}, Requested {refusal.requested}. {must}"
    used = f"Used {refusal.used}, Requested {refusal.requested}"
    return f"Rate limit reached {where}, {used}. Please try again in {seconds}s."


def _to_time(unix_s: float) -> str:
    return datetime.fromtimestamp(math.ceil(unix_s), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
