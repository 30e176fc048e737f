"""The heads of plain POSTs, read at one go: nearly all requests, and less to do for each.

Strategy: a head in which every parser reads the same is taken apart with a few calls of C, and remembered, for a
client's heads differ in nothing but the length of their bodies. Whatever isn't plain is gunicorn's own parser's, byte
for byte as if this weren't here; nothing is judged here. See also: request_heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from gunicorn.http.message import TOKEN_RE

from openai_gateway.server.request_heads import may_be_drained
from openai_gateway.wire.headers import CLIENT_HEAD

# Within gunicorn's own default limits.
MAX_HEAD_BYTES: Final = 4000
MAX_HEADERS: Final = 100
_MAX_NAMES: Final = 1024
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


class PlainRequest:
    """A request with a plain head: what gunicorn's Response and log ask of one, and no more.

    It lives as long as its answer, which may take hours: so environ and body can be taken from it.
    """

    __slots__ = ("_environ", "body", "is_whole", "must_close", "uri")

    # As gunicorn's parser sets them for a request of this kind.
    method: Final = "POST"
    version: Final = (1, 1)

    def __init__(self, environ: dict[str, Any], body: Any, *, is_whole: bool) -> None:
        self._environ = environ
        # Of a body that came with the head none is left on the connection, and the environ alone has it.
        self.body: Any = None if is_whole else body
        self.is_whole = is_whole
        self.must_close = False
        # The target as it was sent.
        self.uri: str = environ["RAW_URI"]
        environ["wsgi.input"] = body

    def take_environ(self, common: Mapping[str, Any], client: Any, peer: Any) -> dict[str, Any]:
        """Return the environ, with what is common to a listener's requests; once."""
        environ = self._environ
        del self._environ
        environ.update(common)
        environ["gunicorn.socket"] = client
        environ["REMOTE_ADDR"] = peer
        return environ

    def force_close(self) -> None:
        """Have the connection end with this request."""
        self.must_close = True

    def should_close(self) -> bool:
        """Tell whether the connection must be closed after this request."""
        return self.must_close or not (self.is_whole or may_be_drained(self.body.count_left()))


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
