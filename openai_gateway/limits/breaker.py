"""Stops calling an upstream that has refused the key itself, or has no quota left, until a probe gets through.

One refusal may be a mishap, and calls that are sent on cost time and a client's patience: so it takes two in a row,
with no call answered in another way between, to open. What a client may have caused by headers of its own counts for
nothing (whoever calls `settle` sees to that), and a refusal is answered in the gateway's own words: another call's
answer may tell of its client.

States: closed (with no or one refusal) -> open (calls are refused until a probe is due) -> probing (one call is let
through; the others are refused) -> open or closed. A new key closes. See also: upstream.attempt (who asks and
settles).
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Final

from openai_gateway.errors import KeyRefused, QuotaUsedUp, UpstreamError
from openai_gateway.wire.retries import Outcome

_REFUSALS_TO_OPEN: Final = 2


class Breaker:
    """Refuses calls while open; `cooldown_s` None never opens."""

    def __init__(self, cooldown_s: float | None) -> None:
        self._cooldown_s = cooldown_s
        # How many there were with no other answer since. While there are none, nothing else needs to be told.
        self.refusals = 0
        # Why calls are refused, but for probes; None while closed.
        self.outcome: Outcome | None = None
        self._probe_at = 0.0
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        """Tell whether calls are refused, but for probes."""
        return self.outcome is not None

    def refusal(self) -> UpstreamError | None:
        """Return the error that a call gets without being made, None if it may be made (closed, or it is the probe).

        A call that may be made while the breaker is open must end in `settle`.
        """
        if self.outcome is None:
            return None
        if self._is_probing or monotonic() < self._probe_at:
            return self._make_error(self.outcome)
        self._is_probing = True
        return None

    def blocks(self) -> bool:
        """Tell whether a call would be refused now."""
        return self.outcome is not None and (self._is_probing or monotonic() < self._probe_at)

    def settle(self, refused: Outcome | None, *, is_answered: bool) -> None:
        """Learn how a call ended: `refused` is a final refusal; another answer closes, no answer changes nothing."""
        self._is_probing = False
        if refused is not None:
            self.refusals += 1
            if self._cooldown_s is not None and self.refusals >= _REFUSALS_TO_OPEN:
                self.outcome = refused
                self._probe_at = monotonic() + self._cooldown_s
        elif is_answered:
            self.reset()

    def reset(self) -> None:
        """Close: there is a new key, or the old one does again."""
        self.outcome = None
        self.refusals = 0

    def _make_error(self, outcome: Outcome) -> UpstreamError:
        left_s = max(1, math.ceil(self._probe_at - monotonic()))
        error: UpstreamError
        if outcome.status == 401:
            error = KeyRefused(
                f"The upstream has refused the gateway's key; it is asked again in {left_s} s.", retry_after_s=left_s
            )
        else:
            error = QuotaUsedUp(
                f"The upstream says that the quota of the gateway's key is used up; it is asked again in {left_s} s.",
                code=outcome.error_code,
                retry_after_s=left_s,
            )
        error.should_retry = False
        return error
