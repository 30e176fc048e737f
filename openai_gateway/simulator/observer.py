"""Counts each call from its headers to its last byte, around the Flask app.

Here and not inside Flask: only the body's `close()` is called on every path, also for bodies that nobody began to
read. See also: counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from openai_gateway.simulator.counters import Counters
from openai_gateway.simulator.simulation import ON_OVER

WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


class Observer:
    """A WSGI app that counts the calls of another one."""

    def __init__(self, app: WsgiApp, counters: Counters) -> None:
        self._app = app
        self._counters = counters

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        if not environ["PATH_INFO"].startswith("/v1/"):
            return self._app(environ, start_response)
        self._counters.begin(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        call = _Call(self._counters, environ)

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            self._counters.by_status[int(status.partition(" ")[0])] += 1
            call.is_stream = any(
                name.lower() == "content-type" and value.startswith("text/event-stream") for name, value in headers
            )
            return start_response(status, headers, *more)

        try:
            call.body = self._app(environ, start)
            call.pieces = iter(call.body)
        except BaseException:
            call.close()
            raise
        return call


class _Call:
    """The body of a call's answer; the call is over when it is closed."""

    body: Iterable[bytes] = ()
    pieces: Iterator[bytes] = iter(())
    is_stream = False

    def __init__(self, counters: Counters, environ: dict[str, Any]) -> None:
        self._counters = counters
        self._environ = environ
        self._is_whole = False
        self._is_over = False

    def __iter__(self) -> _Call:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self.pieces)
        except StopIteration:
            self._is_whole = True
            raise

    def close(self) -> None:
        """Count the call as over, once."""
        if self._is_over:
            return
        self._is_over = True
        self._counters.end(is_whole=self._is_whole, is_stream=self.is_stream)
        if ON_OVER in self._environ:
            self._environ[ON_OVER]()
        close = getattr(self.body, "close", None)
        if close is not None:
            close()
