"""What the simulator saw: counts that prove what a gateway did, and the last requests byte for byte.

Shown under `/sim/`.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, OrderedDict
from typing import Any, Final

_KEPT_REQUESTS: Final = 50


class Counters:
    """Counts of one simulator process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start from zero; calls in flight stay counted."""
        self.requests = 0
        self.in_flight = getattr(self, "in_flight", 0)
        self.peak_in_flight = self.in_flight
        self.finished = 0
        self.aborted = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.by_path: Counter[str] = Counter()
        self.by_status: Counter[int] = Counter()
        self.scripted: Counter[str] = Counter()
        self.kept: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.last: dict[str, Any] | None = None

    def begin(self, environ: dict[str, Any], headers: list[tuple[str, str]], body: bytes) -> None:
        """Count a request that has come in, and keep it."""
        self.requests += 1
        self.by_path[f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"] += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        self.last = {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ.get("QUERY_STRING", ""),
            "headers": headers,
            "body_base64": base64.b64encode(body).decode(),
            "body_sha256": hashlib.sha256(body).hexdigest(),
        }
        request_id = environ.get("HTTP_X_CLIENT_REQUEST_ID")
        if request_id:
            self.kept[request_id] = self.last
            while len(self.kept) > _KEPT_REQUESTS:
                self.kept.popitem(last=False)

    def end(self, *, is_whole: bool) -> None:
        """Count the end of a request: `is_whole` if its last byte was handed over."""
        self.in_flight -= 1
        if is_whole:
            self.finished += 1
        else:
            self.aborted += 1

    def to_json(self) -> dict[str, Any]:
        """Return the counts."""
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "finished": self.finished,
            "aborted": self.aborted,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "by_path": dict(self.by_path),
            "by_status": {str(status): count for status, count in self.by_status.items()},
        }
