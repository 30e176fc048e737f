"""One HTTP call to an endpoint over http.client, timed; a stream is read event by event.

No proxy, netrc or redirect comes in between, as in the gateway itself. What an answer means is the callers'.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlsplit

from certifi import where as default_ca_file

from openai_gateway.wire.sse import is_event_stream

PATHS: Final = {"responses": "/responses", "chat": "/chat/completions"}
_ENDS: Final = {"responses": (b'"response.completed"', b'"response.incomplete"'), "chat": (b"[DONE]",)}
_MOST_BYTES: Final = 4 * 1024 * 1024
_DELTAS: Final = (b'"content":', b'"reasoning_content":', b'"reasoning":', b'"tool_calls":')


class BrokenAnswer(Exception):
    """An answer that is too long, or not over in time."""


@dataclass(frozen=True)
class Answer:
    """An answer read to its end; times are seconds since the request was begun.

    `token_s` is when the first event with a delta was in, None if there was none; `events` are a stream's data.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_s: float
    token_s: float | None = None
    events: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def is_stream(self) -> bool:
        """Tell whether it is a stream of events."""
        return is_event_stream(self.headers.get("content-type", ""))

    def is_complete(self, api: str) -> bool:
        """Tell whether a stream was ended as the API ends one that went well."""
        return any(end in event for event in self.events[-2:] for end in _ENDS[api])

    def to_value(self) -> Any:
        """Return what the body's JSON says, None if it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def to_json(self) -> dict[str, Any]:
        """Return the body's JSON object, an empty one for anything else."""
        value = self.to_value()
        return value if isinstance(value, dict) else {}


class Target:
    """An endpoint by its base URL, which may have a query of its own."""

    def __init__(self, base_url: str, headers: Mapping[str, str], *, timeout_s: float, ca_file: str | None) -> None:
        url = urlsplit(base_url)
        self.is_tls = url.scheme == "https"
        self.host = url.hostname or ""
        self.port = url.port or (443 if self.is_tls else 80)
        self.timeout_s = timeout_s
        self.tls = ssl.create_default_context(cafile=ca_file or default_ca_file()) if self.is_tls else None
        self._path, self._query = url.path.rstrip("/"), url.query
        self._headers = {"accept-encoding": "identity", "content-type": "application/json", **headers}

    def to_connection(self) -> http.client.HTTPConnection:
        """Return a connection, not yet opened."""
        if self.tls is not None:
            return http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout_s, context=self.tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)

    def call(
        self, path: str, body: Mapping[str, Any] | None = None, *, over: http.client.HTTPConnection | None = None
    ) -> Answer:
        """Return the answer to a POST of `body`, to a GET without one; over a new connection unless one is given.

        Raises OSError, http.client.HTTPException, BrokenAnswer.
        """
        connection = over or self.to_connection()
        target = self._path + path + (f"?{self._query}" if self._query else "")
        data = None if body is None else json.dumps(body).encode()
        started = perf_counter()
        try:
            connection.request("GET" if data is None else "POST", target, data, self._headers)
            return self._read(connection.getresponse(), started)
        except BaseException:
            connection.close()
            raise
        finally:
            if over is None:
                connection.close()

    def _read(self, response: http.client.HTTPResponse, started: float) -> Answer:
        headers = {name.lower(): value for name, value in response.getheaders()}
        if not is_event_stream(headers.get("content-type", "")):
            body = response.read(_MOST_BYTES)
            if response.length or len(body) == _MOST_BYTES:
                raise BrokenAnswer("the answer is too long, or broke off")
            return Answer(response.status, headers, body, perf_counter() - started)
        events, length, token_s = [], 0, None
        while line := response.readline():
            length += len(line)
            if line.startswith(b"data:"):
                events.append(line[5:].strip())
                if token_s is None and _has_delta(line):
                    token_s = perf_counter() - started
            if length > _MOST_BYTES or perf_counter() - started > self.timeout_s:
                raise BrokenAnswer("the stream does not end")
        return Answer(response.status, headers, b"", perf_counter() - started, token_s, tuple(events))


def _has_delta(line: bytes) -> bool:
    """Tell whether an event brings some of the answer: Responses name it so, chat's first chunk has an empty one."""
    if b'.delta"' in line:
        return True
    for start in _DELTAS:
        at = line.find(start)
        if at >= 0 and line[at + len(start) :].lstrip()[:2] not in (b'""', b"nu", b"[]"):
            return True
    return False
