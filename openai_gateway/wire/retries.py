"""May a failed attempt be tried again, and after how long: the official SDKs' rules.

Source: openai-python `_should_retry`, `_calculate_retry_timeout`; the final quota codes are OpenAI's. See also:
limits.pacing (within which bounds, and when).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Final

import msgspec

MAX_RETRY_AFTER_S: Final = 120.0
FINAL_QUOTA_CODES: Final = frozenset(
    {
        "insufficient_quota",
        "billing_not_active",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    }
)
# Of a 401: what is said of the key and nothing else, by OpenAI, by servers that speak its form, or by none at all.
_REFUSED_KEY_CODES: Final = frozenset(
    {
        None,
        "401",
        "account_deactivated",
        "authentication_error",
        "expired_api_key",
        "incorrect_api_key",
        "invalid_api_key",
        "invalid_authentication",
        "invalid_token",
        "token_expired",
        "unauthorized",
    }
)
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)(?:s|$))?(?:(\d+(?:\.\d+)?)ms)?")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt that can't be relayed as a success ended.

    `status` None means that no answer came (refused, reset, timed out); `headers` have lower-case names.
    """

    status: int | None
    headers: Mapping[str, str]
    error_code: str | None = None


UNANSWERED: Final = Outcome(None, {})
# No answer came, and none would come to another attempt.
HOPELESS: Final = Outcome(None, {"x-should-retry": "false"})


class _ErrorFields(msgspec.Struct):
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorFields | None = None


def read_error_code(body: bytes) -> str | None:
    """Return `error.code` of an answer in OpenAI's error form, None for anything else."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return str(error.code) if error is not None and error.code is not None else None


def is_retryable(outcome: Outcome, now: float) -> bool:
    """Tell whether the SDKs would try again; `now` is the Unix time that an HTTP date counts from."""
    if outcome.status is None:
        return outcome is not HOPELESS
    if outcome.status < 400 or outcome.error_code in FINAL_QUOTA_CODES:
        return False
    asked = read_retry_after_s(outcome.headers, now)
    if asked is not None and asked > MAX_RETRY_AFTER_S:
        return False
    hint = outcome.headers.get("x-should-retry")
    if hint in ("true", "false"):
        return hint == "true"
    return outcome.status in (408, 409, 429) or outcome.status >= 500


def choose_wait_s(outcome: Outcome, retries_done: int, now: float, draw: Callable[[], float]) -> float:
    """Return the wait before the next attempt; `draw` gives a random number in [0, 1).

    The upstream's own word, when it is above 0 and at most 120 s; else min(0.5 * 2^n, 8) s, less up to a quarter.
    """
    asked = read_retry_after_s(outcome.headers, now)
    if asked is not None and 0 < asked <= MAX_RETRY_AFTER_S:
        return asked
    backoff = min(0.5 * 2.0 ** min(retries_done, 10), 8.0)
    return float(backoff * (1 - 0.25 * draw()))


def read_pause_s(outcome: Outcome, now: float) -> float | None:
    """Return how long a 429 or 503 asks everybody to wait, None if it doesn't say.

    `retry-after-ms`, `retry-after`, or else the longest reset of a rate limit of which nothing remains.
    """
    if outcome.status not in (429, 503) or outcome.error_code in FINAL_QUOTA_CODES:
        return None
    asked = read_retry_after_s(outcome.headers, now)
    if asked is not None:
        return asked
    resets = [
        parse_duration_s(outcome.headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if outcome.headers.get(f"x-ratelimit-remaining-{kind}") == "0"
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def parse_duration_s(value: str) -> float | None:
    """Return the seconds of `1s`, `6m0s`, `120ms`, `1h2m3.5s`, or a bare number of seconds; None for anything else."""
    parts = _DURATION.fullmatch(value)
    if parts is None or not value:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in parts.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def is_final(outcome: Outcome) -> bool:
    """Tell whether an answer says that no call can succeed: the key itself is refused, or the quota is used up."""
    if outcome.status == 401:
        return outcome.error_code in _REFUSED_KEY_CODES
    return outcome.status == 429 and outcome.error_code in FINAL_QUOTA_CODES


def read_retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return `retry-after-ms`, else `retry-after` (seconds or HTTP date, RFC 9110 10.2.3), in seconds."""
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        try:
            delay = float(value) if value is not None else math.nan
        except ValueError:
            continue
        if math.isfinite(delay):
            return delay / per_second
        if math.isinf(delay) and value is not None and any(digit in value for digit in "123456789"):
            # Digits that overflow a float mean very long, not "no such header".
            return MAX_RETRY_AFTER_S + 1
    try:
        date = parsedate_tz(headers.get("retry-after", ""))
        return None if date is None else mktime_tz(date) - now
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
