"""How long a call waits for its first turn at an upstream that refuses everything: as long as it would try itself.

The strategy. A long queue that moves is to be waited in, for hours if need be. But behind a call that is refused again
and again nobody moves, and each after it would take its own time to find that out. So whoever has waited for
`retry_budget_s`, while nothing passed, gives up if all is still refused.

See also: queue.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import Final

import msgspec
from gevent.event import Event

from openai_gateway.limits.slots import Admitted

# Whoever tries but once has to get that far.
_LEAST_S: Final = 1.0
# It may just not be so at the moment that somebody looks.
_LOOKS: Final = 10


class Waiting(msgspec.Struct, eq=False):
    """A call that waits: its turn, once it has one."""

    event: Event = msgspec.field(default_factory=Event)
    admitted: Admitted | None = None


class Patience:
    """That of the calls of one queue; `budget_s` None has no end."""

    def __init__(self, budget_s: float | None) -> None:
        self._budget_s = math.inf if budget_s is None else max(budget_s, _LEAST_S)
        # When a call was answered while others waited.
        self.passed_at = -math.inf

    def wait(self, event: Event, timeout_s: float | None, is_refused: Callable[[], bool]) -> bool:
        """Wait for the event, no longer than so; tell whether it came to nothing because all is refused."""
        now = monotonic()
        end = math.inf if timeout_s is None else now + timeout_s
        look_at = now + self._budget_s
        while now < end:
            until = min(end, look_at)
            if event.wait(None if until == math.inf else until - now):
                return False
            now = monotonic()
            if now >= look_at:
                look_at = max(now + self._budget_s / _LOOKS, self.passed_at + self._budget_s)
                if now >= self.passed_at + self._budget_s and is_refused():
                    return True
        return False
