"""What of a WebSocket's messages has to be known: whose they are, and whether a response begins or ends with them.

Nothing else of a message is read, and nothing of it is changed. See also: turns (what comes of it).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

CREATE: Final = "response.create"
ERROR: Final = "error"
LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed", ERROR})
# A steer adds input to a response that runs. If the upstream accepts it, it begins another response by itself once that
# one is over; `pending` says that it has yet to decide, `failed` that it won't.
_STEER: Final = "response.steer"
ACCEPTED: Final = "response.steer.accepted"
STEERS: Final = frozenset({ACCEPTED, "response.steer.pending", "response.steer.failed"})
TELLING: Final = LAST | STEERS
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class ClientEvent(msgspec.Struct):
    """A client's message; `type` and `stream_id` of any type: whether a wrong one is refused is for others to say."""

    type: Any = None
    stream_id: Any = None


class ServerEvent(msgspec.Struct):
    """An upstream's message; `stream_id` None names no lane."""

    type: str = ""
    stream_id: str | None = None

    @property
    def is_of_response(self) -> bool:
        """Tell whether a response is under way of which this is a part."""
        return self.type.startswith("response.") and not self.type.startswith(_STEER)


class _Steer(msgspec.Struct):
    id: str = ""


class _SteerEvent(msgspec.Struct):
    steer: _Steer = msgspec.field(default_factory=_Steer)


class _ErrorFields(msgspec.Struct):
    code: str | None = None
    headers: dict[str, Any] | None = None


class ErrorEvent(msgspec.Struct):
    """An upstream's `error`."""

    status: int = 500
    error: _ErrorFields = msgspec.field(default_factory=_ErrorFields)


_client_events = msgspec.json.Decoder(ClientEvent)
_server_events = msgspec.json.Decoder(ServerEvent)
_steer_events = msgspec.json.Decoder(_SteerEvent)
_error_events = msgspec.json.Decoder(ErrorEvent)
# As `read_server_event`, but raises what msgspec does: for texts that are nearly always right.
decode_server_event = _server_events.decode


def read_client_event(text: bytes) -> ClientEvent:
    """Return what a client's message is; one that isn't JSON, but may be a create for who reads more, is a create.

    As such it is refused, where it would pass the slots, the budgets and the model by.
    """
    try:
        return _client_events.decode(text)
    except UNREADABLE:
        # Some upstreams read UTF-16, too: without its zero bytes, a create is told in that as well.
        bare = text.replace(b"\0", b"")
        return ClientEvent(CREATE if b"response.create" in bare or b"\\u" in bare else None)


def read_server_event(text: bytes) -> ServerEvent | None:
    """Return what an upstream's message is; None if it is no event."""
    try:
        return _server_events.decode(text)
    except UNREADABLE:
        return None


def read_steer_id(text: bytes) -> str:
    """Return which of a client's steers an upstream's message is about; "" if that can't be read."""
    try:
        return _steer_events.decode(text).steer.id
    except UNREADABLE:
        return ""


def read_error_event(text: bytes) -> ErrorEvent:
    """Return what an upstream's `error` says; what can't be read is a 500."""
    try:
        return _error_events.decode(text)
    except UNREADABLE:
        return ErrorEvent()


def to_stream_event(text: bytes) -> bytes:
    """Return a message as an event of a stream, as which records read it."""
    # Between JSON's tokens a line break is a blank, and within its strings there is none.
    return b"data: " + text.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n\n"
