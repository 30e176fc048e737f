"""The heads of plain POSTs, read at one go: gunicorn's Request and parser, with less to do for the usual request.

Whatever isn't plain goes gunicorn's own way, byte for byte as if this weren't here; nothing is judged here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from gunicorn.config import Config
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.message import TOKEN_RE, Request

from openai_gateway.wire.headers import CLIENT_HEAD

# Within gunicorn's own default limits.
MAX_HEAD_BYTES: Final = 4000
MAX_HEADERS: Final = 100
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
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
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
    if len(lines) >= MAX_HEADERS or head.translate(None, _PRINTABLE) != b"\r\n" * (len(lines) - 1):
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
