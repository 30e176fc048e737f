"""What is kept of an answer that is recorded: its pieces, and when each came.

Pure: the clock is that of what it wraps. See also: tail, recordings.
"""

from __future__ import annotations

from openai_gateway.wire.tail import RecordingTail, Tail


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
