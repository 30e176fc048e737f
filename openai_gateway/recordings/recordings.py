"""What becomes of a create call where answers are kept: one that is there, one that is under way, or a call to make.

A call that is made is a Flight, one for each key and asker; who asks for the same meanwhile waits for it. A flight ends
once: landed (its answer is kept and handed to all who wait), or failed (an error of the upstream is handed to them; if
its client left and nobody waits, there is nobody to hand anything to).

See also: runs (who has had which answer), store (what lies on disk).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from time import time
from typing import Any, Final

import gevent
from gevent.event import Event

from openai_gateway.errors import NoRecording
from openai_gateway.recordings.kept import KeptAnswer
from openai_gateway.recordings.key import NOBODY, compute_asker, compute_key, is_named
from openai_gateway.recordings.runs import Candidate, Fly, Join, RunNotes, Serve
from openai_gateway.recordings.segments import make_answer_id
from openai_gateway.recordings.store import Store
from openai_gateway.wire.cache_control import Directives, parse_directives

_log = logging.getLogger("openai_gateway")
RECORD: Final = "record"
REPLAY: Final = "replay"
REUSE: Final = "reuse"
# An answer is kept only for those who wait for it in other processes.
JOIN: Final = "join"
_LOOK_EVERY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Hit:
    """An answer that needs no call; `age_s` since its call began, `is_joined`: another's call has just given it."""

    answer: KeptAnswer
    age_s: float
    is_joined: bool


@dataclass(frozen=True, slots=True)
class Shared:
    """What a call under way came to for those who waited for it, if that wasn't an answer to keep."""

    outcome: Any


@dataclass(frozen=True, slots=True)
class Bypass:
    """The call is made, and its answer not kept; `why` is RFC 9211's word."""

    why: str


class Flight:
    """A call that is made for all who wait for it. Must end in `land` or `fail`; more than once does nothing."""

    def __init__(self, recordings: Recordings, run: RunNotes, key: bytes, asker: bytes, why: str) -> None:
        self._recordings = recordings
        self._run = run
        self.key = key
        self.asker = asker
        self.why = why
        self.is_kept = recordings.mode != JOIN
        self.waiting = 0
        self._began_at = time()
        self.result: Hit | Shared | None = None
        self.ended = Event()

    def is_awaited(self) -> bool:
        """Tell whether somebody else waits for the answer, so that the call goes on without its client."""
        return self.waiting > 0 or self._run.is_awaited(self.key, self.asker)

    def land(self, answer: KeptAnswer, *, is_had: bool) -> None:
        """Keep the answer and hand it to whoever waits; `is_had`: the client that asked first has got it."""
        if self.ended.is_set():
            return
        self.result = Hit(answer, 0.0, is_joined=True)
        try:
            self._keep(answer, is_had=is_had)
        except OSError as error:
            _log.error("a kept answer could not be noted in its run: %s", error.strerror or error)
        finally:
            self._end()

    def _keep(self, answer: KeptAnswer, *, is_had: bool) -> None:
        if self._recordings.mode == JOIN and self._run.fail(self.key, self.asker, unless_awaited=True):
            return
        whose = self.asker if is_named(self.asker) else NOBODY
        answer_id = make_answer_id()
        if is_had or self.is_awaited():
            # An answer that nobody took is not claimed: whoever asks next gets it.
            self._run.claim(self.key, self.asker, answer_id)
        if self._recordings.store.keep(self.key, whose, answer, answer_id, self._began_at):
            self._run.land(self.key, self.asker, answer_id)
        else:
            self._run.fail(self.key, self.asker)

    def fail(self, outcome: Any = None) -> None:
        """End without an answer to keep; `outcome` None has those who wait make the call anew."""
        if self.ended.is_set():
            return
        self.result = Shared(outcome) if outcome is not None else None
        try:
            self._run.fail(self.key, self.asker)
        except OSError as error:
            _log.error("a call's end could not be noted in its run: %s", error.strerror or error)
        finally:
            self._end()

    def _end(self) -> None:
        self._recordings.flights.pop((self._run, self.key, self.asker), None)
        self.ended.set()


class Recordings:
    """The kept answers of one server's calls. `run_name` is the run of requests that name none."""

    def __init__(
        self, store: Store, mode: str, base_url: str, run_name: str, *, is_stateful_kept: bool = False
    ) -> None:
        self.store = store
        self.mode = mode
        self.flights: dict[tuple[RunNotes, bytes, bytes], Flight] = {}
        self.may_call = mode != REPLAY
        self._base_url = base_url
        self._run_name = run_name
        self._is_stateful_kept = is_stateful_kept

    def begin(
        self, target: str, body: bytes, headers: Mapping[str, str], rollout_id: str | None, *, is_stateful: bool
    ) -> Hit | Shared | Flight | Bypass:
        """Return what becomes of a call, having waited for one under way if there is one.

        `headers` are the client's, by lower-case name. `is_stateful`: the call refers to, or leaves, something at the
        upstream. Raises NoRecording if the call may not be made, and OSError.
        """
        directives = parse_directives(headers.get("cache-control", ""))
        may_call = self.may_call and not directives.only_if_cached
        if directives.no_store or (is_stateful and not self._is_stateful_kept):
            if not may_call:
                raise _make_miss(self.mode, "it is one that is not kept")
            return Bypass("request" if directives.no_store else "bypass")
        run = self.store.run(headers.get("x-gateway-run") or self._run_name)
        key = compute_key(self._base_url, target, body, headers)
        asker = compute_asker(headers.get("x-gateway-repeat"), rollout_id)
        is_resent = headers.get("x-stainless-retry-count", "0") not in ("", "0")
        damaged: set[bytes] = set()
        while True:
            candidates = [each for each in self._find(key, directives) if each.id not in damaged]
            decision = run.decide(key, asker, candidates, is_resent=is_resent, may_call=may_call)
            if decision is None:
                raise _make_miss(self.mode, "no answer to it is kept, or this run has had all there are")
            if isinstance(decision, Serve):
                found = self.store.read(key, decision.id)
                if found is not None:
                    return Hit(found[0], max(0.0, time() - found[1]), is_joined=False)
                damaged.add(decision.id)
            elif isinstance(decision, Fly):
                flight = Flight(self, run, key, decision.asker, "request" if directives.no_cache else "miss")
                self.flights[run, key, decision.asker] = flight
                return flight
            else:
                result = self._wait(run, key, decision)
                if result is not None:
                    return result

    def _find(self, key: bytes, directives: Directives) -> list[Candidate]:
        if self.mode in (RECORD, JOIN) or directives.no_cache:
            return []
        return self.store.find(key, directives.max_age_s, refresh=True)

    def _wait(self, run: RunNotes, key: bytes, join: Join) -> Hit | Shared | None:
        """Wait for a call under way and return what came of it; None if the call has to be made anew."""
        flight = self.flights.get((run, key, join.asker))
        if flight is not None:
            flight.waiting += 1
            try:
                flight.ended.wait()
            finally:
                flight.waiting -= 1
            return flight.result
        while (state := run.look(key, join.asker)) is True:
            gevent.sleep(_LOOK_EVERY_S)
        if not isinstance(state, bytes):
            return None
        self.store.index.refresh()
        found = self.store.read(key, state)
        return None if found is None else Hit(found[0], 0.0, is_joined=True)


def _make_miss(mode: str, why: str) -> NoRecording:
    asked = "recordings: replay" if mode == REPLAY else "Cache-Control: only-if-cached"
    return NoRecording(f"The call was not made ({asked}): {why}.")
