"""The load that `bench` makes: threads that call one or two endpoints, turn by turn, and keep what each call took.

How it is shown is `bench`'s.
"""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any, Final

from openai_gateway.probe.calling import PATHS, Answer, Target
from openai_gateway.probe.cures import Meaning, to_failure
from openai_gateway.probe.probes import FAILURES

_POLL_S: Final = 0.1
_LAST_CALLS_S: Final = 10.0


@dataclass
class Tally:
    """What came of the calls of one endpoint; times in seconds, of calls that went well."""

    took_s: list[float] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    # Lists, which threads may append to without a lock.
    errors: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Return how many calls are over."""
        return len(self.took_s) + len(self.errors)


class Load:
    """Calls of one kind, the same number to each target; `tallies` are theirs, in the same order."""

    def __init__(self, targets: Sequence[Target], api: str, body: Mapping[str, Any], calls: int) -> None:
        self.tallies = [Tally() for _ in targets]
        self.total = calls * len(targets)
        self.took_s = 0.0
        self.cpu_s = 0.0
        self._targets = targets
        self._api = api
        self._body = body
        self._numbers = itertools.count()
        self._is_stopped = False

    def run(self, concurrency: int, on_progress: Callable[[int], None]) -> bool:
        """Make the calls, so many at a time; return False if Ctrl-C ended them early."""
        threads = [threading.Thread(target=self._call_on, daemon=True) for _ in range(min(concurrency, self.total))]
        started, cpu_started = perf_counter(), process_time()
        try:
            for thread in threads:
                thread.start()
            while alive := [thread for thread in threads if thread.is_alive()]:
                alive[0].join(_POLL_S)
                on_progress(sum(tally.calls for tally in self.tallies))
        except KeyboardInterrupt:
            self._is_stopped = True
            deadline = perf_counter() + _LAST_CALLS_S
            for thread in threads:
                thread.join(max(0.0, deadline - perf_counter()))
        self.took_s, self.cpu_s = perf_counter() - started, process_time() - cpu_started
        return not self._is_stopped

    def _call_on(self) -> None:
        connections = [target.to_connection() for target in self._targets]
        for connection in connections:
            try:
                # Not part of any call's time.
                connection.connect()
            except FAILURES:
                connection.close()
        while not self._is_stopped and (number := next(self._numbers)) < self.total:
            which = number % len(self._targets)
            self._call(number, self._targets[which], connections[which], self.tallies[which])
        for connection in connections:
            connection.close()

    def _call(self, number: int, target: Target, connection: http.client.HTTPConnection, tally: Tally) -> None:
        name = "input" if self._api == "responses" else "messages"
        prompt = f"Say hi to number {number}."
        given: Any = prompt if name == "input" else [{"role": "user", "content": prompt}]
        try:
            answer = target.call(PATHS[self._api], {**self._body, name: given}, over=connection)
        except FAILURES as error:
            tally.errors.append(to_failure(error, target.host, target.port, is_connected=True)[0])
            return
        problem = self._find_problem(answer)
        if problem:
            tally.errors.append(problem)
            return
        if answer.token_s is not None:
            tally.token_s.append(answer.token_s)
        tally.took_s.append(answer.took_s)

    def _find_problem(self, answer: Answer) -> str:
        if answer.status >= 300:
            return f"{answer.status} {Meaning(answer).code}".strip()
        if answer.is_stream != bool(self._body.get("stream")):
            return "no stream" if self._body.get("stream") else "an unasked stream"
        return "" if not answer.is_stream or answer.is_complete(self._api) else "a stream that broke off"
