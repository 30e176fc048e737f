"""Kept answers as JSON lines, for people and other programs, and back.

A line has `key` and `asker` (hex), `time` (Unix), the answer's head and what it cost, and its body: as `body` if that
is UTF-8, else as `body_base64`. See also: kept, cli.recordings.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

import msgspec

from openai_gateway.recordings.index import Index
from openai_gateway.recordings.kept import KeptAnswer, from_payload, to_payload
from openai_gateway.recordings.segments import RecordHeader, SegmentWriter
from openai_gateway.wire.head import Header
from openai_gateway.wire.usage import Usage


class Line(msgspec.Struct, omit_defaults=True):
    """One kept answer."""

    key: str
    asker: str
    time: float
    path: str
    status: int
    reason: str
    headers: list[Header]
    model: str | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    finish_reason: str | None = None
    pieces: list[int] = []
    times_ms: list[int] = []
    body: str | None = None
    body_base64: str | None = None


_decoder = msgspec.json.Decoder(Line)
_SAME = [field for field in KeptAnswer.__struct_fields__ if field != "body"]


class BadLine(Exception):
    """A line that isn't one of ours; the message says why."""


def read_all(index: Index, start: str = "") -> Iterator[tuple[RecordHeader, KeptAnswer]]:
    """Give every answer whose key starts with some hex digits, those of a key in their order; none that is damaged."""
    for key in index.list_keys():
        if key.hex().startswith(start):
            for place, header in index.find(key):
                payload = index.read(place, header)
                answer = from_payload(payload) if payload is not None else None
                if answer is not None:
                    yield header, answer


def to_line(header: RecordHeader, answer: KeptAnswer) -> bytes:
    """Return a line of JSON, without its end."""
    same = {name: getattr(answer, name) for name in _SAME}
    line = Line(key=header.key.hex(), asker=header.asker.hex(), time=header.time, **same)
    try:
        line.body = answer.body.decode()
    except UnicodeDecodeError:
        line.body_base64 = base64.b64encode(answer.body).decode()
    return msgspec.json.encode(line)


def take_in(text: bytes, writer: SegmentWriter, index: Index) -> bool:
    """Keep the answer in a line; False if it is there already. Raises BadLine, OSError."""
    try:
        line = _decoder.decode(text)
        key, asker = bytes.fromhex(line.key), bytes.fromhex(line.asker)
        encoded = base64.b64decode(line.body_base64 or "", validate=True)
        body = encoded if line.body is None else line.body.encode()
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadLine(str(error)) from None
    if len(key) != 32 or len(asker) != 16:
        raise BadLine("key or asker has a wrong length")
    answer = KeptAnswer(body=body, **{name: getattr(line, name) for name in _SAME})
    if any(header.time == line.time and header.asker == asker for _, header in index.find(key)):
        return False
    writer.append(key, asker, to_payload(answer), line.time)
    return True
