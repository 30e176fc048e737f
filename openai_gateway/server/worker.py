"""gunicorn's gevent worker with less around each plain POST, and idle connections that a stop closes.

How a plain head is read is `plain`'s; how an answer is written, `writer`'s.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from functools import lru_cache
from time import monotonic
from typing import Any, Final

import gevent
from gunicorn.config import PostRequest, PreRequest
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import GeventWorker

from openai_gateway.server.plain import MAX_HEAD_BYTES, MAX_HEADERS, PlainRequest
from openai_gateway.server.writer import RelayWriter
from openai_gateway.transport.watch import Ticker


@lru_cache(maxsize=256)
def _to_addresses(listener_name: Any, client: str) -> Mapping[str, str]:
    is_tcp = isinstance(listener_name, tuple)
    return {
        "REMOTE_ADDR": client,
        "SERVER_NAME": listener_name[0] if is_tcp else listener_name,
        "SERVER_PORT": str(listener_name[1]) if is_tcp else "",
    }


_next_of_gunicorn = RequestParser.__next__
# What may be left of a request's body when its answer is out; of more, the connection is closed.
_DRAIN_BYTES: Final = 64 * 1024
_DRAIN_S: Final = 1.0


def _next_request(parser: RequestParser) -> Request:
    """Return a connection's next request, as gunicorn's parser does, which first reads what is left of the last one.

    What is left is bounded: a client that was refused and goes on sending would hold up the worker as long as it
    sends, for reading from a socket that always has bytes never lets another greenlet run.
    """
    if parser.mesg is None or not parser.mesg.is_whole:
        if parser.mesg is not None and not parser.finish_body(monotonic() + _DRAIN_S, _DRAIN_BYTES):
            raise StopIteration
        return _next_of_gunicorn(parser)
    parser.req_count += 1
    parser.mesg = PlainRequest(parser.cfg, parser.unreader, parser.source_addr, parser.req_count)
    return parser.mesg


class _Idle(BaseException):
    """The wait for a connection's next request: bounded, as gunicorn's `timeout_ctx`, and cut short by `close_idle`."""

    def __init__(self, seconds: float) -> None:
        self._ends_at = monotonic() + seconds

    def __enter__(self) -> None:
        self._greenlet = gevent.getcurrent()
        _idle.add(self)

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> bool:
        _idle.discard(self)
        return value is self

    def tick(self, now: float) -> None:
        """End the wait if its time is up."""
        if now >= self._ends_at:
            self.end()

    def end(self) -> None:
        """End the wait without a request, on which gunicorn closes the connection; to be called from the hub."""
        self._greenlet.throw(self)


_idle: Ticker[_Idle] = Ticker()


def close_idle() -> None:
    """Close the connections that wait for a request; to be called from the hub."""
    for idle in _idle:
        idle.end()


class PlainWorker(GeventWorker):  # type: ignore[misc]
    """The worker that `adopt_worker` makes of gunicorn's."""

    _environ: dict[str, Any]
    _keepalive_s: float

    def timeout_ctx(self) -> _Idle:
        """Return what bounds the wait for a request."""
        return _Idle(self._keepalive_s)

    def _try_h2c_upgrade(self, *_: Any) -> bool:
        return False

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve one request, as GeventWorker does; raises StopIteration if its connection is to be closed."""
        if type(req) is not PlainRequest or req.plain is None:
            super().handle_request(listener_name, req, sock, addr)
            return
        self.nr += 1
        response = RelayWriter(req, sock, self.cfg)
        environ = {
            **self._environ,
            **_to_addresses(listener_name, addr[0] if isinstance(addr, tuple) else addr),
            **req.plain,
            "wsgi.input": req.body,
            "gunicorn.socket": sock,
        }
        try:
            body = self.wsgi(environ, response.start_response)
            try:
                for piece in body:
                    response.write(piece)
                response.close()
            finally:
                if hasattr(body, "close"):
                    body.close()
        except OSError:
            raise
        except Exception:
            if not response.headers_sent:
                raise
            self.log.exception("Error handling request")
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            raise StopIteration from None
        except (gevent.GreenletExit, SystemExit):
            raise StopIteration from None
        if response.should_close():
            raise StopIteration


def adopt_worker(worker: Any) -> None:
    """Make gunicorn's gevent worker a PlainWorker, unless a setting asks for something around each request."""
    cfg = worker.cfg
    if (
        type(worker) is not GeventWorker
        or cfg.is_ssl
        or not cfg.keepalive
        or cfg.max_requests
        or cfg.proxy_protocol != "off"
        or cfg.http2_cleartext != "off"
        or cfg.protocol != "http"
        or cfg.pre_request is not PreRequest.default
        or cfg.post_request is not PostRequest.default
        or worker.log.access_log_enabled
        or "SCRIPT_NAME" in os.environ
        or 0 < cfg.limit_request_line < MAX_HEAD_BYTES
        or cfg.limit_request_field_size < MAX_HEAD_BYTES
        or cfg.limit_request_fields < MAX_HEADERS
    ):
        return
    worker.__class__ = PlainWorker
    worker._keepalive_s = cfg.keepalive
    worker._environ = {
        **base_environ(cfg),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.url_scheme": "http",
        "REQUEST_METHOD": "POST",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
    }
    RequestParser.mesg_class = PlainRequest
    RequestParser.__next__ = _next_request
