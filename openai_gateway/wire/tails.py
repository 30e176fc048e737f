"""Tails that keep the whole answer that goes by, or when its pieces came, or decompress it first.

Pure: the clock (monotonic seconds) is an argument. See also: tail (what is kept of any answer).
"""

from __future__ import annotations

import zlib
from typing import Final

from openai_gateway.wire.head import Head
from openai_gateway.wire.sse import is_event_stream
from openai_gateway.wire.tail import BodyTail, Clock, Tail

MAX_CAPTURED_BYTES: Final = 16 * 1024 * 1024
_GZIP: Final = ("gzip", "x-gzip", "deflate")
_ANY_WINDOW: Final = zlib.MAX_WBITS | 32
_DECODED_AT_ONCE_BYTES: Final = 64 * 1024
# A small compressed answer may hold gigabytes: decompressing more than this would hold up the worker.
_MAX_DECODED_BYTES: Final = 16 * 1024 * 1024


class RecordingTail(Tail):
    """Keeps the whole body beside what `tail` keeps, up to `most_bytes`: of a longer one nothing."""

    __slots__ = ("_left", "_tail", "_whole")
    takes_chunks = False

    def __init__(self, most_bytes: int, tail: Tail) -> None:
        super().__init__(tail.clock)
        self._tail = tail
        self._left = most_bytes
        self._whole: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Note and keep a piece."""
        self._tail.add(piece)
        self.length, self.began = self._tail.length, self._tail.began
        self._left -= len(piece)
        if self._left >= 0:
            self._whole.append(piece)
        else:
            self._whole.clear()

    def end(self) -> bytes:
        """Return the last bytes."""
        return self._tail.end()

    def beginning(self) -> bytes:
        """Return what `tail` does."""
        return self._tail.beginning()

    def kept(self) -> bytes | None:
        """Return the whole body, None if it was too long."""
        return b"".join(self._whole) if self._left >= 0 else None

    def pieces(self) -> list[bytes] | None:
        """Return the body in the pieces it came in, None if it was too long."""
        return self._whole if self._left >= 0 else None


class TimedTail(RecordingTail):
    """Keeps the pieces as they came, and when: `times`, by the clock; what is captured is in `tail`."""

    __slots__ = ("times",)

    def __init__(self, most_bytes: int, tail: Tail) -> None:
        super().__init__(most_bytes, tail)
        self.times: list[float] = []

    def add(self, piece: bytes) -> None:
        """Note and keep a piece, and when it came."""
        super().add(piece)
        self.times.append(self.clock())

    def kept(self) -> bytes | None:
        """Return what `tail` does."""
        return self._tail.kept()


class DecodingTail(Tail):
    """Hands a compressed body to `tail` decompressed; of one in another encoding only the length is kept."""

    __slots__ = ("_decoder", "_left", "_tail")
    takes_chunks = False

    def __init__(self, encoding: str, tail: Tail) -> None:
        super().__init__(tail.clock)
        self._tail = tail
        self._decoder = zlib.decompressobj(_ANY_WINDOW) if encoding in _GZIP else None
        self._left = _MAX_DECODED_BYTES

    def add(self, piece: bytes) -> None:
        """Note a piece."""
        self.length += len(piece)
        if self.began is None:
            self.began = self.clock()
        while piece and self._decoder is not None:
            try:
                decoded = self._decoder.decompress(piece, _DECODED_AT_ONCE_BYTES)
            except zlib.error:
                decoded, self._decoder = b"", None
                break
            if decoded:
                self._tail.add(decoded)
            self._left -= len(decoded)
            piece = self._decoder.unconsumed_tail
            if self._decoder.eof:
                piece = self._decoder.unused_data
                self._decoder = zlib.decompressobj(_ANY_WINDOW)
            elif self._left < 0:
                self._decoder = None

    def end(self) -> bytes:
        """Return the last bytes as they were before."""
        return self._tail.end() if self._decoder is not None else b""

    def beginning(self) -> bytes:
        """Return what `tail` does."""
        return self._tail.beginning()

    def kept(self) -> bytes | None:
        """Return the whole body as it was before, None if it was too long or can't be decoded."""
        return self._tail.kept() if self._decoder is not None else None


def make_tail(head: Head, clock: Clock, *, is_captured: bool) -> Tail:
    """Return the Tail for an answer with this head. If captured, it keeps the whole body, up to MAX_CAPTURED_BYTES."""
    known = head.known
    tail = Tail(clock) if is_event_stream(known.get("content-type", "")) else BodyTail(clock)
    if is_captured:
        tail = RecordingTail(MAX_CAPTURED_BYTES, tail)
    encoding = known.get("content-encoding", "identity")
    return tail if encoding == "identity" else DecodingTail(encoding.strip().lower(), tail)
