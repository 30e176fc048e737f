"""Stops calling an upstream that has given a final answer: the key is refused, the quota is used up.

While open, calls get that same answer without a call; after a cooldown one probe at a time is let through.
"""

from __future__ import annotations

from time import monotonic
from typing import Generic, TypeVar

Kept = TypeVar("Kept")


class Breaker(Generic[Kept]):
    """Keeps the final answer while open; `cooldown_s` None never opens."""

    def __init__(self, cooldown_s: float | None) -> None:
        self._cooldown_s = cooldown_s
        self._answer: Kept | None = None
        self._probe_at = 0.0
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        """Tell whether calls are answered without a call."""
        return self._answer is not None

    def refusal(self) -> Kept | None:
        """Return the answer a call gets without being made, None if it may be made (closed, or it is the probe).

        A call that may be made while the breaker is open must end in `settle`.
        """
        if self._answer is None:
            return None
        if self._is_probing or monotonic() < self._probe_at:
            return self._answer
        self._is_probing = True
        return None

    def blocks(self) -> bool:
        """Tell whether a call would be refused now."""
        return self._answer is not None and (self._is_probing or monotonic() < self._probe_at)

    def settle(self, final: Kept | None, *, is_answered: bool) -> None:
        """Learn how a call ended: `final` is a final answer and opens, another answer closes, none changes nothing."""
        self._is_probing = False
        if final is not None and self._cooldown_s is not None:
            self._answer = final
            self._probe_at = monotonic() + self._cooldown_s
        elif is_answered:
            self._answer = None

    def reset(self) -> None:
        """Close: there is a new key."""
        self._answer = None
