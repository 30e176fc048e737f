"""Finds the members of a JSON object of which only the beginning and the end are at hand.

An answer may be of any length, and what it reports of itself stands before and after its output: so much of both is
kept as `tail` says. The depth of a member is known in either part: in the beginning by counting brackets from
the first one, in the end by counting them back from the last one. Whether the end begins inside a string is known,
too: in JSON, every quote without a backslash before it begins or ends a string, and the last one ends one.

See also: usage (which reads a whole answer, and asks here only if its middle is missing).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

# A string that is cut off counts as a token as well, so that nothing within it is taken for a member.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[{}\[\]:,]|[^\s"{}\[\]:,]+', re.DOTALL)
_QUOTE: Final = re.compile(rb'(?<!\\)((?:\\\\)*)"')
_OPENING: Final = (b"{", b"[")
_CLOSING: Final = (b"}", b"]")
# A usage object is small.
_MOST_VALUE_BYTES: Final = 4096

Members = dict[tuple[int, bytes], bytes]


def read_beginning(text: bytes) -> Members:
    """Return the members in the beginning of an object by (depth, key), the object's own ones having depth 1.

    A value is a scalar or a whole object as it is written; of an object or array that goes on, `{` or `[`.
    """
    return {(depth, key): value for depth, key, value in _members(text, 0)}


def read_end(text: bytes) -> Members:
    """Return the members in the end of an object as `read_beginning` does; `text` may begin anywhere."""
    quotes = [match.start(1) + len(match[1]) for match in _QUOTE.finditer(text)]
    # With an odd number of quotes, `text` begins within a string, which the first of them ends.
    start = quotes[0] + 1 if len(quotes) % 2 else 0
    text = text[start:]
    depth = sum(_read_step(match[0]) for match in _TOKEN.finditer(text))
    return {(depth, key): value for depth, key, value in _members(text, -depth)}


def _read_step(token: bytes) -> int:
    return (token in _OPENING) - (token in _CLOSING)


def _members(text: bytes, depth: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield depth, key and value of each member, a whole object's also by itself; `depth` is that before `text`."""
    key: bytes | None = None
    before = b""
    open_objects: list[tuple[int, bytes, int]] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == b":":
            key = before[1:-1] if before.startswith(b'"') else None
        elif key is not None:
            if match.end() == len(text) and token not in _OPENING:
                # The value may be cut off here (`12` of `120`), and would be wrong.
                return
            if token == b"{":
                open_objects.append((depth, key, match.start()))
            yield depth, key, token
            key = None
        depth += _read_step(token)
        if token == b"}" and open_objects and open_objects[-1][0] == depth:
            _, name, start = open_objects.pop()
            if match.end() - start <= _MOST_VALUE_BYTES:
                yield depth, name, text[start : match.end()]
        before = token
