"""Server-sent events as far as a relay must know them: where an event ends, and how to end a broken stream.

Bytes are never re-framed; event names are never looked at (their set grows). See also: tail (what is kept of events),
upstream.answer (who ends a stream).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from openai_gateway.errors import GatewayError
from openai_gateway.wire.api import Api

_LAST_BYTES: Final = 4 * 1024
_LAST_EVENTS: Final = 4


@lru_cache(maxsize=64)
def is_event_stream(content_type: str) -> bool:
    """Tell whether an answer is a stream of events, by its content type."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def takes_events(known: Mapping[str, str]) -> bool:
    """Tell whether an answer is a stream that an event of ours can be put into: one that isn't compressed."""
    encoding = known.get("content-encoding", "identity")
    return encoding.strip().lower() == "identity" and is_event_stream(known.get("content-type", ""))


def is_at_boundary(tail: bytes) -> bool:
    """Tell whether bytes that end in `tail` end between two events."""
    return not tail or tail.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))


def make_closing_event(error: GatewayError, *, api: Api, tail: bytes) -> bytes:
    """Return the event that ends a broken stream so that the official SDKs raise an APIError.

    Responses get a flat `error` event, chat a `data:` with the error form; an event that broke off half-way (`tail`
    holds the last bytes sent) is ended first.
    """
    form = error.to_body()
    if api is Api.RESPONSES:
        flat = {**form["error"], "type": "error", "sequence_number": None}
        event = b"event: error\ndata: " + json.dumps({**flat, **form}).encode() + b"\n\n"
    else:
        event = b"data: " + json.dumps(form).encode() + b"\n\n"
    return event if is_at_boundary(tail) else b"\n\n" + event


def find_last_events(piece: bytes) -> bytes:
    """Return the last 4 KB of a piece, from an event's beginning on; `b""` if fewer than four events begin there.

    Comments are no events. The last one may be torn.
    """
    start = piece.find(b"\n\n", max(0, len(piece) - _LAST_BYTES)) + 2
    return piece[start:] if start > 1 and piece.count(b"\ndata:", start - 1) >= _LAST_EVENTS else b""
