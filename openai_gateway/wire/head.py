"""The head of an HTTP/1.1 answer (RFC 9112), and which of its headers pass to the client.

WIRE: hop-by-hop ones never pass, nor do cookies; `Date` and `Server` are the gateway's own. See also: body (what
follows), headers (the other way).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from openai_gateway.wire.headers import HOP_BY_HOP, read_nominated

MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_NAMES: Final = 1024
_MAX_KNOWN_LENGTH: Final = 100
_MAX_LENGTH_DIGITS: Final = 18

_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9]\d\d)(?: ([\t\x20-\x7e\x80-\xff]*))?", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

# What is done with a header, by its name as it was spelled: _PASSES (it goes to the client) or _DROPPED. A header that
# the gateway itself reads has its name in lower case here. One look into this table takes the place of several tests.
_PASSES: Final = ""
_DROPPED: Final = "-"
_roles: dict[str, str] = {}
_ASKED_FOR: Final = frozenset({"content-type", "content-encoding", "x-request-id"})
_FRAMING: Final = frozenset({"connection", "content-length", "transfer-encoding"})
_NOT_TO_CLIENT: Final = HOP_BY_HOP | {"set-cookie", "set-cookie2", "date", "server"}

Header = tuple[str, str]


class MalformedAnswer(Exception):
    """The bytes are not an HTTP/1.1 answer."""


class Head:
    """Status and headers of one answer.

    `headers` are all of them, in their order and spelling, repetitions kept. `passing` are those that go to the client
    (never Content-Length: the gateway sends its own). `known` has the few that the gateway reads, by lower-case name.
    `text` is the reason and all values, for whoever looks for a key in them. `chunked`, `content_length` and
    `keep_alive` say how the answer was framed, if `parse_head` read it.
    """

    __slots__ = ("chunked", "content_length", "headers", "keep_alive", "known", "passing", "reason", "status", "text")

    def __init__(self, status: int, reason: str, headers: Sequence[Header], text: str | None = None) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.text = text if text is not None else "\n".join([reason, *[value for _, value in headers]])
        self.passing: list[Header] = []
        self.known: dict[str, str] = {}
        self.chunked = False
        self.content_length: int | None = None
        self.keep_alive = True
        for header in headers:
            role = _roles.get(header[0])
            if role is None:
                role = _learn(header[0])
            if role == _PASSES:
                self.passing.append(header)
            elif role in _FRAMING:
                before = self.known.get(role)
                if before is None:
                    self.known[role] = header[1]
                elif role != "content-length" or before != header[1]:
                    self.known[role] = f"{before}\n{header[1]}"
            elif role != _DROPPED:
                self.known[role] = header[1]
                self.passing.append(header)
        if "connection" in self.known:
            nominated = read_nominated(self.known["connection"].replace("\n", ","))
            if nominated:
                self.passing = [header for header in self.passing if header[0].lower() not in nominated]

    def items(self) -> Sequence[Header]:
        """Return all headers; urllib3's have this, too."""
        return self.headers

    def rewrite(self, headers: Sequence[Header], *, reason: str | None = None, has_length: bool = True) -> Head:
        """Return a head with other headers, framed as this one; without `has_length`, its body's isn't known."""
        head = Head(self.status, self.reason if reason is None else reason, headers)
        head.chunked, head.content_length, head.keep_alive = self.chunked, self.content_length, self.keep_alive
        if not has_length or "content-length" not in self.known:
            head.known.pop("content-length", None)
        return head

    def shorten(self) -> Head:
        """Return a head without the headers, but with what the gateway itself reads of them: `known` and framing."""
        head = Head(self.status, self.reason, ())
        head.known = self.known
        head.chunked, head.content_length, head.keep_alive = self.chunked, self.content_length, self.keep_alive
        return head

    def frame(self, *, is_http_1_0: bool) -> None:
        """Work out how the body is framed. Raises MalformedAnswer."""
        known = self.known
        is_ambiguous = False
        length, coding, options = map(known.get, ("content-length", "transfer-encoding", "connection"))
        if coding is not None:
            if coding.lower() != "chunked" or is_http_1_0:
                raise MalformedAnswer("a Transfer-Encoding other than chunked, or chunks in HTTP/1.0")
            self.chunked = True
            # Chunks count (RFC 9112 6.3), and the client gets no length. Whoever sends both may mean two answers.
            is_ambiguous = known.pop("content-length", None) is not None
        elif length is not None:
            if not (length.isascii() and length.isdigit()) or len(length) > _MAX_LENGTH_DIGITS:
                raise MalformedAnswer("Content-Length is not a number, or several differ")
            self.content_length = int(length)
        if options is not None or is_http_1_0:
            options = (options or "").lower()
            self.keep_alive = "close" not in options and (not is_http_1_0 or "keep-alive" in options)
        if is_ambiguous:
            self.keep_alive = False
        if self.status in (204, 304):
            self.chunked, self.content_length = False, 0


def parse_head(raw: bytes) -> Head:
    """Parse the bytes up to, but without, the empty line that ends the head.

    Raises MalformedAnswer. Obsolete line folding, bare CR or LF, control characters and white space before the
    colon are malformed (RFC 9112 2.2, 5).
    """
    text = raw.decode("latin-1")
    start, *lines = text.split("\r\n")
    status, reason, is_http_1_0 = _read_status_line(start)
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or (name not in _roles and not _TOKEN.fullmatch(name)):
            raise MalformedAnswer("a header line is not 'name: value'")
        if not value.isprintable() and _CONTROL.search(value):
            raise MalformedAnswer("a header value holds control characters")
        headers.append((name, value.strip(" \t")))
    head = Head(status, reason, headers, text)
    head.frame(is_http_1_0=is_http_1_0)
    return head


def _read_status_line(line: str) -> tuple[int, str, bool]:
    """Return status, reason, and whether it is HTTP/1.0. Raises MalformedAnswer."""
    return _read_short_status_line(line) if len(line) <= _MAX_KNOWN_LENGTH else _match_status_line(line)


def _match_status_line(line: str) -> tuple[int, str, bool]:
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise MalformedAnswer("the status line is not HTTP/1.x")
    minor, status, reason = match.groups()
    return int(status), reason or "", minor == "0"


_read_short_status_line = lru_cache(maxsize=256)(_match_status_line)


def _learn(name: str) -> str:
    role = name.lower()
    if role not in _ASKED_FOR and role not in _FRAMING:
        role = _DROPPED if role in _NOT_TO_CLIENT else _PASSES
    # Bounded: an upstream chooses its header names.
    if len(_roles) < _MAX_NAMES and len(name) <= _MAX_KNOWN_LENGTH and _TOKEN.fullmatch(name):
        _roles[name] = role
    return role
