"""What is kept of an answer that goes by: how much it was, when it began, and its last pieces, which report the usage.

A stream is never buffered: its last four pieces are kept, or the end of a large one.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from openai_gateway.wire.body import ChunkedDecoder

SMALL_BYTES: Final = 4 * 1024
_KEPT_BYTES: Final = 16 * 1024
_KEPT_PIECES: Final = 4


class Tail:
    """The end of a body; `length` in bytes, `began` on the monotonic clock, None before the first byte."""

    __slots__ = ("_at", "_pieces", "began", "length")
    takes_chunks = True

    def __init__(self) -> None:
        self.length = 0
        self.began: float | None = None
        # Replaced in turn, so that a new piece touches no memory but that of the one it replaces. What isn't chunks is
        # in a tuple.
        self._pieces: list[bytes | tuple[bytes]] = []
        self._at = -1

    def add(self, piece: bytes) -> None:
        """Note a piece that went by."""
        self.length += len(piece)
        if len(piece) > SMALL_BYTES:
            # Its end holds the report; pieces that are kept whole make the next ones go through fresh, cold memory.
            self._pieces, self._at = [], -1
            piece = piece[-_KEPT_BYTES:]
        self._keep((piece,))

    def add_chunks(self, chunks: bytes) -> None:
        """Note a few whole chunks that went by; whoever calls this counts `length` itself, and `takes_chunks`."""
        # A copy, but for the last line end: what is kept of memory that was received into makes holes of 64 KB.
        self._keep(chunks[:-2])

    def _keep(self, piece: bytes | tuple[bytes]) -> None:
        if len(self._pieces) < _KEPT_PIECES:
            if self.began is None:
                self.began = monotonic()
            self._pieces.append(piece)
        else:
            self._at = at = (self._at + 1) % _KEPT_PIECES
            self._pieces[at] = piece

    def end(self) -> bytes:
        """Return the last bytes."""
        latest = self._pieces[self._at + 1 :] + self._pieces[: self._at + 1]
        return b"".join([piece[0] if isinstance(piece, tuple) else _to_body(piece) for piece in latest])

    def kept(self) -> bytes | None:
        """Return the whole body if it was kept, which only a RecordingTail does."""
        return None


class RecordingTail(Tail):
    """Keeps the whole body, up to `most_bytes`: of a longer one nothing."""

    __slots__ = ("_left", "_whole")
    takes_chunks = False

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._left = most_bytes
        self._whole: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Note and keep a piece."""
        super().add(piece)
        self._left -= len(piece)
        if self._left >= 0:
            self._whole.append(piece)
        else:
            self._whole.clear()

    def kept(self) -> bytes | None:
        """Return the whole body, None if it was too long."""
        return b"".join(self._whole) if self._left >= 0 else None


def _to_body(chunks: bytes) -> bytes:
    return ChunkedDecoder().feed(chunks + b"\r\n")
