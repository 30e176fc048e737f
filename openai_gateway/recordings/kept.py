"""A kept answer, and the payload that holds it: zlib of one line of JSON and the body.

A stream's body is kept with the borders of the pieces it came in, and when each came. See also: segments (where a
payload lies), transfer.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from openai_gateway.wire.head import Header
from openai_gateway.wire.usage import Usage

_LEVEL: Final = 1
_MOST_PLAIN_BYTES: Final = 64 * 1024 * 1024


class KeptHead(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer's head, and what its call was and cost: the first line of a payload.

    `pieces` are the lengths of the parts that a stream came in, `times_ms` when each came, counted from the call's
    beginning; both are empty for an answer that was read at once. `headers` are those that go to a client.
    """

    path: str
    status: int
    reason: str
    headers: list[Header]
    pieces: list[int] = []
    times_ms: list[int] = []
    model: str | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    finish_reason: str | None = None


class KeptAnswer(KeptHead, frozen=True, kw_only=True):
    """A whole answer."""

    body: bytes

    def to_pieces(self) -> list[bytes]:
        """Return the body in the pieces that it came in."""
        at, pieces = 0, []
        for length in self.pieces or [len(self.body)]:
            pieces.append(self.body[at : at + length])
            at += length
        return pieces


_decoder = msgspec.json.Decoder(KeptHead)


def to_payload(answer: KeptAnswer) -> bytes:
    """Return the bytes to keep."""
    fields = {name: getattr(answer, name) for name in KeptHead.__struct_fields__}
    return zlib.compress(msgspec.json.encode(KeptHead(**fields)) + b"\n" + answer.body, _LEVEL)


def from_payload(payload: bytes) -> KeptAnswer | None:
    """Return the answer in a payload; None if it is of another version."""
    try:
        line, _, body = zlib.decompress(payload).partition(b"\n")
        found = _decoder.decode(line)
    except (zlib.error, msgspec.MsgspecError):
        return None
    return KeptAnswer(body=body, **{name: getattr(found, name) for name in KeptHead.__struct_fields__})


def decode_pieces(pieces: Sequence[bytes], encoding: str) -> list[bytes] | None:
    """Return a body's pieces without their content encoding; None if it is unknown, or they are broken or too long."""
    if encoding.strip().lower() in ("", "identity"):
        return list(pieces)
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return None
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    plain, left = [], _MOST_PLAIN_BYTES
    try:
        for piece in pieces:
            plain.append(inflate.decompress(piece, left))
            left -= len(plain[-1])
            if inflate.unconsumed_tail or left <= 0:
                return None
    except zlib.error:
        return None
    return plain if inflate.eof else None
