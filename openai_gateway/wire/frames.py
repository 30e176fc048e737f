"""WebSocket frames (RFC 6455 5): bytes in, frames out, each with the bytes that it came in.

Frames pass as they are, so what is needed of each is where it ends, and of a message its text. wsproto, which the
tests hold this against, gives events without their bytes, in pieces of its own. See also: websocket.tunnel,
websocket.downstream (who reads and writes them).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import struct
from typing import Final

import msgspec

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
POLICY_VIOLATION: Final = 1008
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012
# What servers without WebSockets answer to a handshake; some don't see that it is one.
HAVE_NO_WEBSOCKETS: Final = (200, 400, 404, 405, 426, 501)
# Codes that stand for "there was none" and never go over the wire (RFC 6455 7.4.1).
_NOT_SENT: Final = frozenset({1004, 1005, 1006, 1015})
_KNOWN: Final = frozenset({*range(1000, 1015)}) - _NOT_SENT
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OPCODES: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_MOST_CONTROL_BYTES: Final = 125
_WHOLE_TEXT: Final = 0x80 | TEXT


class BadFrame(Exception):
    """The bytes break RFC 6455; `code` is what to close with."""

    def __init__(self, reason: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(reason)
        self.code = code


class Frame(msgspec.Struct, frozen=True):
    """One frame: `raw` as it came, masked or not; `payload` unmasked."""

    opcode: int
    is_final: bool
    payload: bytes
    raw: bytes

    @property
    def is_control(self) -> bool:
        """Tell whether it may come between the frames of a message."""
        return self.opcode >= CLOSE


class FrameReader:
    """Cuts what one side sends into frames; `is_masked` for a client's. A message above `most_bytes` is refused.

    `bad` says what is wrong once something is: the frames before it are good, and nothing is read after it.
    """

    def __init__(self, *, is_masked: bool, most_bytes: int) -> None:
        self.bad: BadFrame | None = None
        self._is_masked = is_masked
        self._most_bytes = most_bytes
        self._buffer = bytearray()
        # How many bytes have come of a message that isn't whole yet, with its frames' heads; None between messages.
        self._begun: int | None = None

    @property
    def is_between_messages(self) -> bool:
        """Tell whether another message may be put in: of the frames that are whole, the last ends a message."""
        return self._begun is None

    @property
    def is_empty(self) -> bool:
        """Tell whether what comes next begins with a frame, and a message."""
        return self._begun is None and not self._buffer and self.bad is None

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are whole now."""
        frames: list[Frame] = []
        if self.bad is not None:
            return frames
        self._buffer += data
        at = 0
        try:
            while (found := self._read(at)) is not None:
                frame, at = found
                frames.append(frame)
        except BadFrame as bad:
            self.bad = bad
        del self._buffer[:at]
        return frames

    def _read(self, start: int) -> tuple[Frame, int] | None:
        buffer = self._buffer
        if len(buffer) - start < 2:
            return None
        first, second = buffer[start], buffer[start + 1]
        opcode, is_final, length = first & 0x0F, first >= 0x80, second & 0x7F
        self._check(first, second, opcode, is_final, length)
        at = start + 2
        if length >= 126:
            wide = 2 if length == 126 else 8
            if len(buffer) - at < wide:
                return None
            length = int.from_bytes(buffer[at : at + wide], "big")
            if length < (126 if wide == 2 else 65536):
                raise BadFrame("a length is longer than it need be")
            at += wide
        self._count(opcode, length)
        end = at + length + (4 if self._is_masked else 0)
        if len(buffer) < end:
            return None
        payload = bytes(buffer[end - length : end])
        if self._is_masked:
            payload = _mask(payload, bytes(buffer[at : at + 4]))
        if opcode == CLOSE:
            _check_close(payload)
        elif opcode < CLOSE:
            self._begun = None if is_final else (self._begun or 0) + end - start
        return Frame(opcode, is_final, payload, bytes(buffer[start:end])), end

    def _check(self, first: int, second: int, opcode: int, is_final: bool, length: int) -> None:
        if first & 0x70:
            raise BadFrame("a reserved bit is set, and no extension was agreed on")
        if opcode not in _OPCODES:
            raise BadFrame(f"opcode {opcode} is unknown")
        if (second >= 0x80) is not self._is_masked:
            raise BadFrame("a client's frame isn't masked" if self._is_masked else "a server's frame is masked")
        if opcode >= CLOSE:
            if not is_final or length > _MOST_CONTROL_BYTES:
                raise BadFrame("a control frame is fragmented or too long")
        elif (opcode == CONTINUATION) is (self._begun is None):
            raise BadFrame("a message begins within another, or goes on before it began")

    def _count(self, opcode: int, length: int) -> None:
        if opcode < CLOSE and (self._begun or 0) + length > self._most_bytes:
            raise BadFrame(f"a message is larger than {self._most_bytes} bytes", TOO_BIG)


def read_texts(data: bytes) -> list[memoryview] | None:
    """Return the texts of what a server has sent if that is whole messages of one frame each; None if it isn't.

    In fewer steps than a FrameReader, for nearly all that comes is of that kind.
    """
    texts = []
    at, end, view = 0, len(data), memoryview(data)
    while at < end:
        if data[at] != _WHOLE_TEXT or at + 4 > end:
            return None
        length, start = data[at + 1], at + 2
        if length == 126:
            length, start = data[at + 2] << 8 | data[at + 3], at + 4
            if length < 126:
                return None
        elif length > 126:
            return None
        at = start + length
        if at > end:
            return None
        texts.append(view[start:at])
    return texts


def to_frame(opcode: int, payload: bytes, *, is_masked: bool) -> bytes:
    """Return a whole message, or a control frame, as one frame."""
    length, bit = len(payload), 0x80 if is_masked else 0
    if length < 126:
        head = bytes((0x80 | opcode, bit | length))
    elif length < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, bit | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, bit | 127, length)
    if not is_masked:
        return head + payload
    mask = secrets.token_bytes(4)
    return head + mask + _mask(payload, mask)


def make_close(code: int, reason: str = "") -> bytes:
    """Return a close frame's payload; a code that is never sent gives an empty one."""
    return b"" if code in _NOT_SENT else struct.pack("!H", code) + reason.encode()[:120]


def read_close_code(payload: bytes) -> int:
    """Return the code of a close frame's payload, 1005 if it has none."""
    return int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005


def compute_accept(key: str) -> str:
    """Return what answers a handshake's Sec-WebSocket-Key (RFC 6455 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()).decode()


def _mask(payload: bytes, mask: bytes) -> bytes:
    """Return a payload masked, or unmasked, which is the same; as one large number, for a byte at a time is slow."""
    length = len(payload)
    if not length:
        return payload
    whole = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(whole, "little")).to_bytes(length, "little")


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    code = read_close_code(payload)
    if len(payload) == 1 or (code not in _KNOWN and not 3000 <= code <= 4999):
        raise BadFrame(f"{code} is no close code")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise BadFrame("a close reason is not UTF-8", 1007) from None
