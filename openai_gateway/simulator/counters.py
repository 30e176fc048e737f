"""What the simulator saw: counts that prove what a gateway did, and the last requests byte for byte.

Shown under `/sim/`. See also: observer (when a call begins and ends).
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, Final

_KEPT_REQUESTS: Final = 50
_KEPT_PATHS: Final = 1000
_KEPT_KEYS: Final = 100_000


@dataclass(frozen=True)
class Received:
    """A request as it came; `headers` in the form that WSGI leaves of them, repeated ones joined by commas."""

    method: str
    path: str
    query: str
    raw_uri: str
    headers: list[tuple[str, str]]
    body: bytes

    def to_json(self) -> dict[str, Any]:
        """Return it in JSON's terms."""
        return {
            "method": self.method,
            "path": self.path,
            "query": self.query,
            "raw_uri": self.raw_uri,
            "headers": self.headers,
            "body_base64": base64.b64encode(self.body).decode(),
            "body_sha256": hashlib.sha256(self.body).hexdigest(),
        }


class Counters:
    """Counts of one simulator process."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Start from zero; calls in flight stay counted."""
        self.requests = 0
        self.peak_in_flight = self.in_flight
        self.finished = 0
        self.streams_finished = 0
        self.aborted = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.by_path: Counter[str] = Counter()
        self.by_status: Counter[int] = Counter()
        self.kept: OrderedDict[str, Received] = OrderedDict()
        self.last: Received | None = None
        self._scripted: OrderedDict[str, int] = OrderedDict()

    def begin(self, method: str, path: str) -> None:
        """Count a request whose headers have come in."""
        self.requests += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        name = f"{method} {path}"
        self.by_path[name if name in self.by_path or len(self.by_path) < _KEPT_PATHS else "others"] += 1

    def end(self, *, is_whole: bool, is_stream: bool) -> None:
        """Count the end of a request: `is_whole` if its last byte was handed over."""
        self.in_flight -= 1
        self.finished += is_whole
        self.streams_finished += is_whole and is_stream
        self.aborted += not is_whole

    def keep(self, received: Received, request_id: str | None) -> None:
        """Keep a request whose body has come in; `request_id` is its `x-client-request-id`."""
        self.last = received
        if request_id:
            self.kept[request_id] = received
            self.kept.move_to_end(request_id)
            while len(self.kept) > _KEPT_REQUESTS:
                self.kept.popitem(last=False)

    def count_scripted(self, key: str) -> int:
        """Return how often a scripted failure has met `key`, this time included."""
        count = self._scripted[key] = self._scripted.pop(key, 0) + 1
        while len(self._scripted) > _KEPT_KEYS:
            self._scripted.popitem(last=False)
        return count

    def to_json(self) -> dict[str, Any]:
        """Return the counts."""
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "finished": self.finished,
            "streams_finished": self.streams_finished,
            "aborted": self.aborted,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "by_path": dict(self.by_path),
            "by_status": {str(status): count for status, count in self.by_status.items()},
        }
