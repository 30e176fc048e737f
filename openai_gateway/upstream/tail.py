"""What is kept of an answer that goes by: how much it was, when it began, and its last pieces, which report the usage.

A stream is never buffered: its last four pieces are kept, or the end of a large one.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

_SMALL_BYTES: Final = 4 * 1024
_KEPT_BYTES: Final = 16 * 1024


class Tail:
    """The end of a body; `length` in bytes, `began` on the monotonic clock, None before the first byte."""

    __slots__ = ("_fourth", "_last", "_second", "_third", "began", "length")

    def __init__(self) -> None:
        self.length = 0
        self.began: float | None = None
        self._last = self._second = self._third = self._fourth = b""

    def add(self, piece: bytes) -> None:
        """Note a piece that went by."""
        if self.began is None:
            self.began = monotonic()
        self.length += len(piece)
        if len(piece) > _SMALL_BYTES:
            # Its end holds the report; pieces that are kept whole make the next ones go through fresh, cold memory.
            self._second = self._third = self._fourth = b""
            self._last = piece[-_KEPT_BYTES:]
        else:
            self._last, self._second, self._third, self._fourth = piece, self._last, self._second, self._third

    def end(self) -> bytes:
        """Return the last bytes."""
        return b"".join((self._fourth, self._third, self._second, self._last))

    def kept(self) -> bytes | None:
        """Return the whole body if it was kept, which only a RecordingTail does."""
        return None


class RecordingTail(Tail):
    """Keeps the whole body, up to `most_bytes`: of a longer one nothing."""

    __slots__ = ("_left", "_pieces")

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._left = most_bytes
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Note and keep a piece."""
        super().add(piece)
        self._left -= len(piece)
        if self._left >= 0:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def kept(self) -> bytes | None:
        """Return the whole body, None if it was too long."""
        return b"".join(self._pieces) if self._left >= 0 else None
