"""The load that `bench` makes: threads that call one or two endpoints, turn by turn, and keep what each call took.

See also: cli.bench (what the times come to, and how it is shown).
"""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any, Final

from openai_gateway.probe.probe_client import CALL_ERRORS, ErrorReply, ProbeClient, Reply, explain_error
from openai_gateway.wire.api import Api

_POLL_S: Final = 0.1
_LAST_CALLS_S: Final = 10.0


@dataclass
class CallTimes:
    """What came of the calls of one endpoint; times in seconds, of calls that went well."""

    took_s: list[float] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    # Lists, which threads may append to without a lock.
    errors: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How many calls are over."""
        return len(self.took_s) + len(self.errors)


class Load:
    """Calls of one kind, the same number to each endpoint; `times` are theirs, in the same order."""

    def __init__(self, endpoints: Sequence[ProbeClient], api: Api, body: Mapping[str, Any], calls: int) -> None:
        self.times = [CallTimes() for _ in endpoints]
        self.total = calls * len(endpoints)
        self.took_s = 0.0
        self.cpu_s = 0.0
        self._endpoints = endpoints
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
                on_progress(sum(times.calls for times in self.times))
        except KeyboardInterrupt:
            self._is_stopped = True
            deadline = perf_counter() + _LAST_CALLS_S
            for thread in threads:
                thread.join(max(0.0, deadline - perf_counter()))
        self.took_s, self.cpu_s = perf_counter() - started, process_time() - cpu_started
        return not self._is_stopped

    def _call_on(self) -> None:
        connections = [endpoint.make_connection() for endpoint in self._endpoints]
        for connection in connections:
            try:
                # Not part of any call's time.
                connection.connect()
            except CALL_ERRORS:
                connection.close()
        while not self._is_stopped and (number := next(self._numbers)) < self.total:
            which = number % len(self._endpoints)
            self._call(number, self._endpoints[which], connections[which], self.times[which])
        for connection in connections:
            connection.close()

    def _call(
        self, number: int, endpoint: ProbeClient, connection: http.client.HTTPConnection, times: CallTimes
    ) -> None:
        prompt = f"Say hi to number {number}."
        given: Any = prompt if self._api is Api.RESPONSES else [{"role": "user", "content": prompt}]
        try:
            reply = endpoint.call(self._api.path, {**self._body, self._api.asked: given}, over=connection)
        except CALL_ERRORS as error:
            times.errors.append(explain_error(error, endpoint.host, endpoint.port, is_connected=True)[0])
            return
        problem = self._find_problem(reply)
        if problem:
            times.errors.append(problem)
            return
        if reply.token_s is not None:
            times.token_s.append(reply.token_s)
        times.took_s.append(reply.took_s)

    def _find_problem(self, reply: Reply) -> str:
        if reply.status >= 300:
            return f"{reply.status} {ErrorReply(reply).code}".strip()
        if reply.is_stream != bool(self._body.get("stream")):
            return "no stream" if self._body.get("stream") else "an unasked stream"
        return "" if not reply.is_stream or reply.is_complete(self._api) else "a stream that broke off"
