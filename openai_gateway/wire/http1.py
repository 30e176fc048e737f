"""HTTP/1.1 answers as bytes: the head, and the decoding of chunked bodies (RFC 9112).

Strict on purpose: what is not certainly well-formed raises MalformedAnswer; sockets are left to `upstream`.
"""

from __future__ import annotations

import re
from typing import Final

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_CHUNK_LINE_BYTES: Final = 4 * 1024

_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9]\d\d)(?: ([\t\x20-\x7e\x80-\xff]*))?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HEX = re.compile(rb"[0-9a-fA-F]{1,15}")
_KNOWN_NAMES: set[str] = set()
_MAX_KNOWN_NAMES: Final = 1024
_KNOWN_SIZES: dict[bytes, int] = {}
_MAX_KNOWN_SIZES: Final = 4096
_MAX_KNOWN_SIZE_BYTES: Final = 8

Header = tuple[str, str]


class MalformedAnswer(Exception):
    """The bytes are not an HTTP/1.1 answer."""


class Head:
    """Status line and headers of one answer; `headers` keep order, spelling and repetitions."""

    __slots__ = ("chunked", "content_length", "headers", "keep_alive", "reason", "status")

    def __init__(self, status: int, reason: str, headers: list[Header], *, is_http_1_0: bool) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.chunked = False
        self.content_length: int | None = None
        self.keep_alive = not is_http_1_0
        for name, value in headers:
            # The lengths filter out nearly every header before the lower-case copy is made.
            if len(name) in (10, 14, 17):
                self._apply(name.lower(), value)
        if status in (204, 304):
            self.chunked, self.content_length = False, 0
        elif self.chunked and (self.content_length is not None or is_http_1_0):
            raise MalformedAnswer("both Content-Length and Transfer-Encoding, or chunks in HTTP/1.0")

    def _apply(self, name: str, value: str) -> None:
        if name == "content-length":
            if not (value.isascii() and value.isdigit()) or len(value) > 18:
                raise MalformedAnswer("Content-Length is not a number")
            if self.content_length not in (None, int(value)):
                raise MalformedAnswer("several Content-Length headers differ")
            self.content_length = int(value)
        elif name == "transfer-encoding":
            if value.lower() != "chunked" or self.chunked:
                raise MalformedAnswer("a Transfer-Encoding other than chunked")
            self.chunked = True
        elif name == "connection":
            options = value.lower()
            if "close" in options:
                self.keep_alive = False
            elif "keep-alive" in options:
                self.keep_alive = True


def parse_head(raw: bytes) -> Head:
    """Parse the bytes up to, but without, the empty line that ends the head.

    Raises MalformedAnswer. Obsolete line folding, bare CR or LF, control characters and white space before the
    colon are malformed (RFC 9112 2.2, 5).
    """
    lines = raw.decode("latin-1").split("\r\n")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise MalformedAnswer("the status line is not HTTP/1.x")
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not _is_token(name):
            raise MalformedAnswer("a header line is not 'name: value'")
        if not value.isprintable() and _CONTROL.search(value):
            raise MalformedAnswer("a header value holds control characters")
        headers.append((name, value.strip(" \t")))
    minor, status, reason = match.groups()
    return Head(int(status), reason or "", headers, is_http_1_0=minor == "0")


def _is_token(name: str) -> bool:
    if name in _KNOWN_NAMES:
        return True
    if not _TOKEN.fullmatch(name):
        return False
    if len(_KNOWN_NAMES) < _MAX_KNOWN_NAMES:
        _KNOWN_NAMES.add(name)
    return True


class ChunkedDecoder:
    """Takes a chunked body apart, piece by piece as it arrives; `done` once the last chunk and its trailers are in.

    `surplus` holds what came after the end: bytes that no request asked for.
    """

    __slots__ = ("_left", "_pending", "_state", "done", "surplus")

    _SIZE, _BODY, _BODY_END, _TRAILER = range(4)
    ends_with_connection: Final = False

    def __init__(self) -> None:
        self._state = self._SIZE
        self._left = 0
        self._pending = b""
        self.done = False
        self.surplus = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the body bytes that `piece` completes, without their framing. Raises MalformedAnswer."""
        if self._pending:
            piece = self._pending + piece
            self._pending = b""
        at, end = 0, len(piece)
        out: list[bytes] = []
        if self._state == self._SIZE:
            # Most pieces are whole chunks of sizes that were seen before.
            while (start := piece.find(b"\r\n", at, at + _MAX_KNOWN_SIZE_BYTES) + 2) > 1:
                stop = start + _KNOWN_SIZES.get(piece[at : start - 2], end)
                if piece[stop : stop + 2] != b"\r\n":
                    break
                out.append(piece[start:stop])
                at = stop + 2
        while at < end and not self.done:
            if self._state == self._BODY:
                taken = piece[at : at + self._left]
                out.append(taken)
                at += len(taken)
                self._left -= len(taken)
                if self._left:
                    break
                self._state = self._BODY_END
            elif self._state == self._BODY_END:
                if end - at < 2 and piece[at] == 13:
                    break
                if piece[at : at + 2] != b"\r\n":
                    raise MalformedAnswer("a chunk is longer than its size")
                at += 2
                self._state = self._SIZE
            else:
                line_end = piece.find(b"\r\n", at, at + MAX_CHUNK_LINE_BYTES)
                if line_end < 0:
                    if end - at >= MAX_CHUNK_LINE_BYTES:
                        raise MalformedAnswer("a chunk size or trailer line is too long")
                    break
                self._take_line(piece[at:line_end])
                at = line_end + 2
        if self.done:
            self.surplus = piece[at:]
        elif at < end:
            self._pending = piece[at:]
        return out[0] if len(out) == 1 else b"".join(out)

    def _take_line(self, line: bytes) -> None:
        if self._state == self._TRAILER:
            self.done = not line
            return
        size = _KNOWN_SIZES.get(line)
        self._left = size if size is not None else _to_size(line)
        self._state = self._BODY if self._left else self._TRAILER


def _to_size(line: bytes) -> int:
    """Return the size that a chunk's first line gives, remembering those of chunks with something in them."""
    digits = line.partition(b";")[0].rstrip(b" \t")
    if not _HEX.fullmatch(digits):
        raise MalformedAnswer("a chunk size is not a hexadecimal number")
    size = int(digits, 16)
    # Bounded: an upstream chooses its sizes.
    if size and digits == line and len(line) <= _MAX_KNOWN_SIZE_BYTES - 2 and len(_KNOWN_SIZES) < _MAX_KNOWN_SIZES:
        _KNOWN_SIZES[line] = size
    return size


class LengthDecoder:
    """Counts down a body of known length; same shape as ChunkedDecoder."""

    __slots__ = ("_left", "done", "surplus")
    ends_with_connection: Final = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.surplus = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the part of `piece` that belongs to the body."""
        taken = piece if len(piece) <= self._left else piece[: self._left]
        self._left -= len(taken)
        self.surplus = piece[len(taken) :]
        self.done = not self._left
        return taken


class UntilCloseDecoder:
    """A body that ends when the upstream closes; same shape as ChunkedDecoder, never `done` by itself."""

    __slots__ = ("done", "surplus")
    ends_with_connection: Final = True

    def __init__(self) -> None:
        self.done = False
        self.surplus = b""

    def feed(self, piece: bytes) -> bytes:
        """Return `piece`."""
        return piece


Decoder = ChunkedDecoder | LengthDecoder | UntilCloseDecoder


def to_decoder(head: Head, *, is_head_request: bool) -> Decoder:
    """Return the decoder for the body that follows `head` (RFC 9112 6.3)."""
    if is_head_request:
        return LengthDecoder(0)
    if head.chunked:
        return ChunkedDecoder()
    if head.content_length is not None:
        return LengthDecoder(head.content_length)
    return UntilCloseDecoder()
