"""Makes an upstream's answer or one of our errors a response; the one place where errors get their form.

Answers go out as they came. See also: server.writer (how their bytes reach the socket).
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterable, Sequence
from http.client import responses as REASONS
from typing import Any, Protocol

import flask

from openai_gateway.errors import BodyTimeout, GatewayError, MethodNotAllowed
from openai_gateway.server.writer import adopt
from openai_gateway.upstream.pump import Sink
from openai_gateway.wire.head import Head, Header
from openai_gateway.wire.sse import is_event_stream

StartResponse = Callable[..., Any]


class Source(Protocol):
    """A body that can be iterated or write itself into a client's connection, and has to be closed."""

    def __next__(self) -> bytes:
        """Return its next bytes."""

    def pump_into(self, sink: Sink) -> None:
        """Write all of it."""

    def close(self) -> None:
        """Give back what it holds."""


class Relayed(Source, Protocol):
    """An answer that goes to the client as it is; `body` is all of it, or None if it comes in pieces."""

    @property
    def head(self) -> Head:
        """Status and headers."""

    @property
    def body(self) -> bytes | None:
        """The whole body, if it is in."""

    @property
    def added_headers(self) -> Sequence[Header]:
        """The gateway's own headers."""


class PumpedResponse(flask.Response):
    """A response that is its own body: when first asked for bytes, it writes all of them into the client's connection.

    Under a server whose writer isn't ours, it is iterated as any other body.
    """

    automatically_set_content_length = False
    _writer: Sink | None = None
    _source: Source

    def __iter__(self) -> PumpedResponse:
        return self

    def __next__(self) -> bytes:
        if self._writer is None:
            return next(self._source)
        self._source.pump_into(self._writer)
        raise StopIteration

    def close(self) -> None:
        """Give back what the body holds; also for a response that never reached the server."""
        self._source.close()


class RelayedResponse(PumpedResponse):
    """An Answer as Flask's response: goes to the server as it is, past werkzeug's own machinery."""

    def __init__(self, answer: Relayed) -> None:
        self._source = self._answer = answer
        self.direct_passthrough = True

    @property  # type: ignore[misc]
    def status_code(self) -> int:
        """The upstream's status."""
        return self._answer.head.status

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Start the response and return its body; the server closes it."""
        answer = self._answer
        try:
            head = answer.head
            status = f"{head.status} {head.reason or REASONS.get(head.status, 'Unknown')}"
            headers = [*head.passing, *answer.added_headers]
            length = _find_content_length(answer)
            if length is not None:
                headers.append(("content-length", length))
            self._writer = writer = adopt(start_response, environ)
            start_response(status, headers)
        except BaseException:
            answer.close()
            raise
        if writer is None or answer.body is None:
            return self
        try:
            answer.pump_into(writer)
        finally:
            answer.close()
        return ()


def with_headers(start_response: StartResponse, environ: dict[str, Any], added: list[Header]) -> StartResponse:
    """Return what starts a response with these headers, too, in the place of any that the response has of that name."""
    writer = adopt(start_response, environ)
    if writer is not None:
        writer.headers += added
        return start_response
    names = {name for name, _ in added}

    def start(status: str, headers: list[Header], exc_info: Any = None) -> Any:
        kept = [header for header in headers if header[0].lower() not in names]
        return start_response(status, kept + added, exc_info)

    return start


class LastResponse(flask.Response):
    """A response after which gunicorn closes the connection, and says so."""

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Start the response and return its body."""
        writer: Any = getattr(start_response, "__self__", None)
        if hasattr(writer, "force_close"):
            writer.force_close()
        return super().__call__(environ, start_response)


def to_error_response(error: GatewayError) -> flask.Response:
    """Return an error in OpenAI's form, with `Retry-After` or `Allow` where it has one."""
    kind = LastResponse if isinstance(error, BodyTimeout) else flask.Response
    response = kind(json.dumps(error.to_body()), error.status, content_type="application/json")
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.should_retry is not None:
        response.headers["x-should-retry"] = "true" if error.should_retry else "false"
    response.headers.extend(error.added_headers)
    if isinstance(error, MethodNotAllowed):
        response.headers["allow"] = error.allow
    return response


class DroppedResponse(flask.Response):
    """The response to a client that left: has gunicorn close its connection without a word in the log."""

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Raise what gunicorn takes for a client that left."""
        raise ConnectionResetError(errno.ECONNRESET, "the client left")


def _find_content_length(answer: Relayed) -> str | None:
    """Return the length to declare: a stream of events has none, for it may have to end with one event more."""
    if answer.body:
        return str(len(answer.body))
    known = answer.head.known
    if is_event_stream(known.get("content-type", "")):
        return None
    return known.get(
        "content-length", "0" if answer.body is not None and answer.head.status not in (204, 304) else None
    )
