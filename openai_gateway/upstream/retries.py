"""Whether and when a failed attempt of a call is made again: as the official SDKs would, and within bounds.

The bounds are `max_retries`, `retry_budget_s`, and `retry_ratio` for all calls together. A refusal that passes by
itself is no failure, but `admission`'s affair. Which outcomes may be tried again at all is `wire.retries`'.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from time import monotonic, time
from typing import Final

import gevent

from openai_gateway.config import ServerConfig
from openai_gateway.limits.pacing import Pause, RetryRatio
from openai_gateway.upstream.admission import may_readmit
from openai_gateway.upstream.progress import Progress
from openai_gateway.wire.retries import Outcome, is_retryable, to_wait_s

# The upstream may go on working on what timed out, and charge for it: each more attempt may be paid, too.
_MOST_TIMED_OUT: Final = 2
_TIMED_OUT: Final = ("upstream_timeout", "504")
# In `waiting`: calls that wait as another one was told to.
PAUSED: Final = "paused"


class Retries:
    """The retries of one server's calls; `waiting` counts the calls that wait for one, by why they failed."""

    def __init__(self, server: ServerConfig) -> None:
        self._server = server
        self._pause = Pause(random.random)
        self._ratio = RetryRatio(server.retry_ratio)
        self.count_call = self._ratio.count_call
        self.waiting: Counter[str] = Counter()

    def wait_for_pause(self, deadline: float | None, give_up: Callable[[], bool]) -> None:
        """Wait while the upstream has asked everybody to."""
        if monotonic() >= self._pause.until:
            return
        self.waiting[PAUSED] += 1
        try:
            self._pause.wait(deadline, give_up)
        finally:
            self.waiting[PAUSED] -= 1

    def may_wait_s(self, outcome: Outcome, reason: str, progress: Progress, deadline: float | None) -> float | None:
        """Return the wait before another attempt, None if there is to be none: used up, too late, or no use.

        `reason` is why the last attempt failed, as it will stand in `progress.retries`.
        """
        now = time()
        if may_readmit(outcome, is_learning=self._server.learn_limits) and progress.call.is_metered:
            return None
        self._pause.learn(outcome, now)
        failures = progress.attempts - sum(each == "429" for each in progress.retries)
        if failures > self._server.max_retries or not is_retryable(outcome, now):
            return None
        if reason in _TIMED_OUT and sum(each in _TIMED_OUT for each in progress.retries) + 1 >= _MOST_TIMED_OUT:
            return None
        wait_s = max(to_wait_s(outcome, failures - 1, now, random.random), self._pause.left_s())
        if deadline is not None and monotonic() + wait_s > deadline:
            return None
        if outcome.status != 429 and not self._ratio.take():
            return None
        return wait_s

    def wait(self, wait_s: float, reason: str, progress: Progress) -> None:
        """Wait before another attempt, and note why there is one."""
        progress.retries += (reason,)
        self.waiting[reason] += 1
        try:
            gevent.sleep(wait_s)
        finally:
            self.waiting[reason] -= 1
