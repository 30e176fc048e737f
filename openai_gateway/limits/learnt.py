"""What is known of one upstream's limits, and how one process hands it to another.

The strategy. Little of it changes with each call, most of it only when an answer or a refusal tells something. So what
each call changes is handed on as a few numbers (`Values`), and all of it (`State`) only if there is more: `has_news`.

See also: limiter (what becomes of the calls), limits_file (where it is handed on), state.
"""

from __future__ import annotations

import math
from typing import Final

from openai_gateway.limits.attempts import ConfiguredLimits, Tries
from openai_gateway.limits.blind import BlindRate
from openai_gateway.limits.doubts import Doubts
from openai_gateway.limits.held import HeldPace
from openai_gateway.limits.ledger import Ledger
from openai_gateway.limits.seen import SeenRate
from openai_gateway.limits.state import LEARNT, Known, State, Values
from openai_gateway.limits.window import Window

FIRST_PROBE_S: Final = 1.0
GUESS_SHARE: Final = 1 / 3
# Bounds from the configuration that one upstream may have.
_MOST_TOLD: Final = 16


class Learnt:
    """All that is known of the limits of one upstream, key and model."""

    def __init__(self, told: ConfiguredLimits, now: float) -> None:
        self.requests = Ledger(1.0)
        self.tokens = Ledger(1.0)
        self.blind = BlindRate()
        self.window = Window()
        self.held = HeldPace()
        self.seen = SeenRate()
        self.pause_until = 0.0
        self.token_factor = 1.0
        # Whether more has changed than each call changes, since it was last handed on.
        self.has_news = False
        self._learns = told.learns
        self._told: list[tuple[Ledger, str]] = []
        # Servers of one upstream may have bounds of their own, and after a reload others than before: a name for each.
        self._told_names: list[str] = []
        self._told_elsewhere: dict[str, Ledger] = {}
        for per_minute, kind in ((told.requests_per_minute, "rate"), (told.tokens_per_minute, "tokens")):
            if per_minute is not None:
                ledger = Ledger(1.0)
                ledger.tell(per_minute, now)
                self._told.append((ledger, kind))
                self._told_names.append(f"{kind} {per_minute:g}")
        if not told.learns:
            self.window.open()
        # Whether there is anything but the window and slots that calls may have to wait for.
        self._is_bound = bool(self._told)
        # All ledgers that calls may have to wait for.
        self._ledgers = list(self._told)
        self._number = 0
        # Of the last refusal: what had been sent by then, how many of those sent since have passed.
        self._last_refused_number = 0
        self._passed_since = 0
        self._started_at = 0.0
        self._probe_s = FIRST_PROBE_S
        # When the last refused call was sent that no ledger explains, here and on other hosts, and whose refusal alone
        # made us guess a rate.
        self._unexplained = self._unexplained_elsewhere = -math.inf
        self._guessed_by = 0
        self._is_rate = False
        self.doubts = Doubts()
        # Of this process: when it last looked whether calls still wait.
        self._looked_at = -math.inf
        # Of this process: calls that may yet vouch for a limit.
        self._in_doubt: list[Tries] = []

    def join(self, known: Known, running: int, now: float) -> None:
        """Join others, who know so much, with what this process did by itself: `running` calls are in flight."""
        rate, most = self.seen.per_s(self._number, now), self.window.most
        self.take(known)
        self.window.join(running, most, now)
        self.blind.number = self._number
        self.blind.join(GUESS_SHARE * rate, now)
        self.seen.join(rate, now)
        self.has_news = True

    def to_known(self, *, is_whole: bool) -> Known:
        """Return what another process's `take` takes: all that was learnt, or only what each call changes."""
        requests, tokens = self.requests, self.tokens
        is_whole = (
            is_whole
            or self.has_news
            or requests.window_ends_at is not None
            or tokens.window_ends_at is not None
            or (self._is_bound and (requests.others_per_s > 0.0 or tokens.others_per_s > 0.0))
            or bool(self._told)
        )
        self.has_news = False
        return self._to_values(), self._to_state() if is_whole else None

    def _to_state(self) -> State:
        told = self._told_elsewhere
        if self._told:
            told = {**told, **{name: ledger for name, (ledger, _) in zip(self._told_names, self._told, strict=True)}}
        others = [getattr(self, name) for name in LEARNT]
        parts = (self.requests, self.tokens, self.blind, self.window, self.held, self.seen, self.doubts)
        return State(*parts, told, others)

    def _to_values(self) -> Values:
        requests, tokens, blind = self.requests, self.tokens, self.blind
        return (
            self._number,
            blind._grown,
            self._started_at,
            blind.free_at,
            blind._idle_s,
            self.held.free_at,
            requests.spent,
            requests.free_at,
            requests._at,
            requests._level_at,
            requests._spent_at,
            requests.referred_at,
            requests.referred_level,
            requests.referred_spent,
            requests.drain,
            requests.charged_per_s,
            requests.wrong,
            tokens.spent,
            tokens.free_at,
            tokens._at,
            tokens._level_at,
            tokens._spent_at,
            tokens.referred_at,
            tokens.referred_level,
            tokens.referred_spent,
            tokens.drain,
            tokens.charged_per_s,
            tokens.wrong,
        )

    def take(self, known: Known) -> None:
        """Take what another process has learnt in place of what was known here."""
        values, state = known
        if state is not None:
            self._take_state(state)
        requests, tokens, blind = self.requests, self.tokens, self.blind
        (
            self._number,
            blind._grown,
            self._started_at,
            blind.free_at,
            blind._idle_s,
            self.held.free_at,
            requests.spent,
            requests.free_at,
            requests._at,
            requests._level_at,
            requests._spent_at,
            requests.referred_at,
            requests.referred_level,
            requests.referred_spent,
            requests.drain,
            requests.charged_per_s,
            requests.wrong,
            tokens.spent,
            tokens.free_at,
            tokens._at,
            tokens._level_at,
            tokens._spent_at,
            tokens.referred_at,
            tokens.referred_level,
            tokens.referred_spent,
            tokens.drain,
            tokens.charged_per_s,
            tokens.wrong,
        ) = values
        blind.number = self._number

    def _take_state(self, state: State) -> None:
        self.requests, self.tokens, self.blind = state.requests, state.tokens, state.blind
        self.window, self.held, self.seen, self.doubts = state.window, state.held, state.seen, state.doubts
        if self._told or state.told:
            told = state.told
            self._told = [
                (told.pop(name, ledger), kind)
                for name, (ledger, kind) in zip(self._told_names, self._told, strict=True)
            ]
            # Bounds of before a reload are nobody's any more: after some of these, all go, and the others come back.
            self._told_elsewhere = told if len(told) <= _MOST_TOLD else {}
        vars(self).update(zip(LEARNT, state.others, strict=True))
        self._find_ledgers()

    def _find_ledgers(self) -> None:
        requests, tokens = self.requests, self.tokens
        self._ledgers = [
            *self._told,
            *([(requests, "rate")] if requests.is_known else ()),
            *([(tokens, "tokens")] if tokens.is_known else ()),
        ]
