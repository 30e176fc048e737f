"""gunicorn's gevent worker with less around each plain POST: its head is read at one go, its environ made from it.

Whatever isn't plain goes gunicorn's own way, byte for byte as if this weren't here; nothing is judged here.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import sys
from collections.abc import Mapping
from functools import lru_cache
from time import monotonic
from typing import Any, Final

import gevent
from gunicorn.config import Config, PostRequest, PreRequest
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.message import TOKEN_RE, Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import GeventWorker

from openai_gateway.blueprints.intake import CLIENT_HEAD
from openai_gateway.blueprints.writer import RelayWriter
from openai_gateway.upstream.watch import Ticker

# Within gunicorn's own default limits.
_MAX_HEAD_BYTES: Final = 4000
_MAX_HEADERS: Final = 100
_MAX_NAMES: Final = 1024
_VERSION: Final = (1, 1)
# What a plain head is made of: printable ASCII, and the line ends.
_PRINTABLE: Final = bytes(range(0x20, 0x7F))
_START: Final = b"POST /"
_END: Final = " HTTP/1.1"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d{1,18})(?=\r\n)", re.IGNORECASE)
# What gunicorn treats in a way of its own.
_SPECIAL: Final = frozenset(
    {"EXPECT", "TRANSFER-ENCODING", "UPGRADE", "TRAILER", "X-FORWARDED-PROTOCOL", "X-FORWARDED-SSL"}
)
_keys = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}


class PlainRequest(Request):  # type: ignore[misc]
    """A request; `plain` is the part of its environ that its head gives, None if gunicorn's own parser read it."""

    # As gunicorn's parser sets them for a request of this kind.
    method = "POST"
    version = _VERSION
    scheme = "http"
    fragment = ""
    trailers: tuple[()] = ()
    must_close = False
    proxy_protocol_info: Any = None
    _expected_100_continue = False
    plain: dict[str, Any] | None = None
    # Tells whether the body came with the head, so that none of it is left on the connection.
    is_whole = False

    def __init__(self, cfg: Config, unreader: Any, peer_addr: Any, req_number: int = 1) -> None:
        received = unreader.take_buffered() or unreader.chunk()
        read = read_plain(received)
        if read is None:
            unreader.unread(received)
            super().__init__(cfg, unreader, peer_addr, req_number)
            return
        self.cfg = cfg
        self.unreader = unreader
        self.peer_addr = self.remote_addr = peer_addr
        self.req_number = req_number
        self.plain, length, start = read
        self.uri = self.plain["RAW_URI"]
        self.path = self.plain["PATH_INFO"]
        self.query = self.plain["QUERY_STRING"]
        end = start + length
        if len(received) >= end:
            self.body: Any = io.BytesIO(received[start:end])
            self.is_whole = True
            if len(received) > end:
                unreader.unread(received[end:])
        else:
            unreader.unread(received[start:])
            self.body = Body(LengthReader(unreader, length))

    def should_close(self) -> bool:
        """Tell whether the connection must be closed after this request."""
        if self.plain is None:
            return bool(super().should_close())
        return self.must_close


def read_plain(received: bytes) -> tuple[dict[str, Any], int, int] | None:
    """Return the environ of a plain request, its body's length, and where that starts; None if it isn't plain.

    Plain is a complete head of printable ASCII, of a POST in HTTP/1.1 with a Content-Length, no header given twice
    and none that means anything to a server. All parsers agree on such a head.
    """
    end = received.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES)
    if end < 0 or not received.startswith(_START):
        return None
    length = _LENGTH.search(received, 0, end + 2)
    if length is None:
        return None
    environ = _read_head(received[: length.start()] + received[length.end() : end])
    if environ is None:
        return None
    digits = length[1].decode()
    return {**environ, "CONTENT_LENGTH": digits}, int(digits), end + 4


@lru_cache(maxsize=256)
def _read_head(head: bytes) -> Mapping[str, Any] | None:
    """Return the environ of a plain head without its Content-Length, which is all that a client's heads differ in."""
    lines = head.decode("latin-1").split("\r\n")
    if len(lines) >= _MAX_HEADERS or head.translate(None, _PRINTABLE) != b"\r\n" * (len(lines) - 1):
        return None
    target, version = lines[0][5:-9], lines[0][-9:]
    path, _, query = target.partition("?")
    if version != _END or " " in target or "#" in target or "%" in path or path.startswith("//"):
        return None
    environ: dict[str, Any] = {CLIENT_HEAD: head, "RAW_URI": target, "PATH_INFO": path, "QUERY_STRING": query}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        key = _keys.get(name) or _learn(name)
        if key is None or key in environ or not colon:
            return None
        environ[key] = value.strip(" ")
    if "CONTENT_LENGTH" in environ or environ.get("HTTP_CONNECTION", "keep-alive").lower() != "keep-alive":
        return None
    return environ


def _learn(name: str) -> str | None:
    """Return the environ's key of a header; None if it isn't one of a plain head."""
    lower = name.lower()
    key = _keys.get(lower)
    if key is None:
        if not TOKEN_RE.fullmatch(name) or "_" in name or name.upper() in _SPECIAL:
            return None
        key = f"HTTP_{name.upper().replace('-', '_')}"
    # Bounded: a client chooses its header names.
    if len(_keys) < _MAX_NAMES:
        _keys[name] = key
    return key


@lru_cache(maxsize=256)
def _to_addresses(listener_name: Any, client: str) -> Mapping[str, str]:
    is_tcp = isinstance(listener_name, tuple)
    return {
        "REMOTE_ADDR": client,
        "SERVER_NAME": listener_name[0] if is_tcp else listener_name,
        "SERVER_PORT": str(listener_name[1]) if is_tcp else "",
    }


_next_of_gunicorn = RequestParser.__next__


def _next_request(parser: RequestParser) -> Request:
    """Return a connection's next request, as gunicorn's parser does, which first reads what is left of the last one."""
    if parser.mesg is None or not parser.mesg.is_whole:
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
        or 0 < cfg.limit_request_line < _MAX_HEAD_BYTES
        or cfg.limit_request_field_size < _MAX_HEAD_BYTES
        or cfg.limit_request_fields < _MAX_HEADERS
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
