"""Outlasts an upstream that is away: its calls are held, and one of them asks now and then until it is back.

What is told apart: a failure for which nothing can have been paid (no connection, an overload, a refusal for a limit)
says that the upstream is away if no other call is answered meanwhile; else it is that call's own affair, which fails
after a few tries. While it is away only one call at a time asks, first after 5 s, then ever more rarely: it costs next
to nothing, however many wait, and should an upstream charge for what looks like a refusal, an hour of it is some sixty
calls. An answer to any call has all others go on at once.

Retries within seconds are the gateway's; this is for minutes. See also: run (which asks).
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from gevent.event import Event

from openai_gateway.collect.client import GatewayAnswer
from openai_gateway.collect.failures import Failure, make_failure
from openai_gateway.remedies import RATE_LIMITED, UPSTREAM_UNAVAILABLE, UPSTREAM_UNREACHABLE

# Away for longer, its calls fail; one that never answered at all is most likely misconfigured.
PATIENCE_S: Final = 3600.0
_UNSEEN_PATIENCE_S: Final = 600.0
_FIRST_ASK_S: Final = 5.0
_LAST_ASK_S: Final = 60.0
_MOST_ALONE: Final = 3
_LOOK_EVERY_S: Final = 1.0
_AWAY: Final = frozenset({UPSTREAM_UNREACHABLE, UPSTREAM_UNAVAILABLE, RATE_LIMITED})


class Away:
    """Whether the upstream is away, as all calls of a run see it; `reason` is what the last one failed of."""

    def __init__(self, patience_s: float = PATIENCE_S, first_ask_s: float = _FIRST_ASK_S) -> None:
        self._patience_s = patience_s
        self._first_ask_s = first_ask_s
        self._since: float | None = None
        self._answers = 0
        self._ask_at = 0.0
        self._ask_every_s = first_ask_s
        self._is_back = Event()
        self.reason: str | None = None

    def away_s(self) -> float | None:
        """Return for how long the upstream has been away; None if it isn't."""
        return None if self._since is None else monotonic() - self._since

    def answer(self) -> None:
        """Learn that a call was answered, whatever with: the upstream is there."""
        self._answers += 1
        if self._since is not None:
            self._since, self._ask_every_s = None, self._first_ask_s
            self._is_back.set()

    def begin(self) -> Trial:
        """Return what is to be known of a call whose first try begins."""
        return Trial(self._answers)

    def learn(self, found: GatewayAnswer | Failure | None) -> None:
        """Learn from what came of a call: an answer that is no server's trouble shows that the upstream is there."""
        if isinstance(found, GatewayAnswer) and is_away(found):
            self.reason = make_failure(found.status, found.body).failure_class
        elif isinstance(found, GatewayAnswer) and found.status < 500:
            self.answer()

    def wait(self, trial: Trial, give_up: Event) -> bool:
        """Wait until a call that met an upstream away may ask again; False if it is not to.

        That is when `give_up` is set, when the upstream has been away for too long, and when others are answered.
        """
        now = monotonic()
        trial.alone = trial.alone + 1 if self._answers > trial.answers else 0
        trial.answers = self._answers
        if trial.alone >= _MOST_ALONE:
            return False
        if self._since is None:
            self._since, self._ask_at = now, now + self._ask_every_s
            self._is_back.clear()
        patience_s = self._patience_s if self._answers else min(self._patience_s, _UNSEEN_PATIENCE_S)
        while not give_up.is_set() and now - self._since < patience_s:
            if self._is_back.wait(max(0.0, min(_LOOK_EVERY_S, self._ask_at - now))) or self._since is None:
                return not give_up.is_set()
            now = monotonic()
            if now >= self._ask_at and not give_up.is_set():
                # This one asks; the next may after twice the time.
                self._ask_every_s = min(2 * self._ask_every_s, _LAST_ASK_S)
                self._ask_at = now + self._ask_every_s
                return True
        return False


class Trial:
    """A call's tries: how often it failed while others were answered, of `answers` when it last asked."""

    __slots__ = ("alone", "answers")

    def __init__(self, answers: int) -> None:
        self.answers = answers
        self.alone = 0


def is_away(found: GatewayAnswer | Failure | None) -> bool:
    """Tell whether what came of a call says that the upstream is away, so that nothing was paid for it."""
    if not isinstance(found, GatewayAnswer) or found.status < 400:
        return False
    failure = make_failure(found.status, found.body)
    # An answer that broke off was worked on.
    return failure.failure_class in _AWAY and failure.code != "upstream_protocol_error"
