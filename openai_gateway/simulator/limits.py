"""Requests and tokens per minute, as OpenAI limits them: buckets that refill steadily, told in headers.

The clock is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_UNLIMITED = 1_000_000


class Bucket:
    """A bucket that holds `per_minute` and refills at that rate; None is without limit."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self.limit = per_minute if per_minute is not None else _UNLIMITED
        self._is_limited = per_minute is not None
        self._clock = clock
        self._level = float(self.limit)
        self._filled_at = clock()

    def level(self) -> float:
        """Return what is left."""
        if self._is_limited:
            now = self._clock()
            self._level = min(self.limit, self._level + (now - self._filled_at) * self.limit / 60)
            self._filled_at = now
        return self._level

    def wait_s(self, amount: int) -> float:
        """Return how long until `amount` can be taken; 0 if it can be now. More than the limit waits for a full one."""
        missing = min(amount, self.limit) - self.level()
        return max(0.0, missing * 60 / self.limit) if self._is_limited else 0.0

    def take(self, amount: int) -> None:
        """Take `amount`."""
        if self._is_limited:
            self._level -= min(amount, self.limit)

    def reset_s(self) -> float:
        """Return how long until the bucket is full."""
        return (self.limit - self.level()) * 60 / self.limit


@dataclass(frozen=True)
class Refusal:
    """A call that has to wait: `kind` is `requests` or `tokens`."""

    kind: str
    wait_s: float
    limit: int


@dataclass(frozen=True)
class Limits:
    """The two limits of an account."""

    requests: Bucket
    tokens: Bucket

    def admit(self, tokens: int) -> Refusal | None:
        """Take one request of so many tokens and return None, or take nothing and return what has to be waited for."""
        waits_s = {"requests": self.requests.wait_s(1), "tokens": self.tokens.wait_s(tokens)}
        kind = max(waits_s, key=lambda name: waits_s[name])
        if waits_s[kind] > 0:
            return Refusal(kind, waits_s[kind], (self.requests if kind == "requests" else self.tokens).limit)
        self.requests.take(1)
        self.tokens.take(tokens)
        return None

    def to_headers(self, refusal: Refusal | None = None) -> list[tuple[str, str]]:
        """Return OpenAI's rate-limit headers; nothing remains of what a call was refused for."""
        headers = []
        for kind, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            is_used_up = refusal is not None and refusal.kind == kind
            headers.append((f"x-ratelimit-limit-{kind}", str(bucket.limit)))
            headers.append((f"x-ratelimit-remaining-{kind}", "0" if is_used_up else str(max(0, int(bucket.level())))))
            headers.append((f"x-ratelimit-reset-{kind}", to_duration(bucket.reset_s())))
        return headers


def to_duration(seconds: float) -> str:
    """Return `120ms`, `1.5s` or `6m0s`."""
    if seconds < 1:
        return f"{int(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{int(rest)}s" if minutes else f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
