"""What is kept of an answer that goes by: how much it was, when it began, and the parts that report on it.

Strategy: an answer is never buffered. Token counts and service tier stand at an answer's end, the model at its
beginning, and there may be megabytes between them. So a *window* of the last bytes is kept, and the beginning of what
the window begins within: of the line, if the answer is a stream of events, of the whole answer otherwise. Most events
are small and come whole; of those, the last four are kept as they came, which costs next to nothing. A piece that is
large, or ends within an event, goes into the window, behind what was kept until then if its own events are too few.
Where each line comes by itself, a blank one is put behind the one before, so that most events are one piece there, too.

Pure: the clock (monotonic seconds) is an argument. See also: usage (which reads the report), timed_tail.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from openai_gateway.wire.body import ChunkedDecoder
from openai_gateway.wire.head import Head
from openai_gateway.wire.sse import find_last_events, is_event_stream

Clock = Callable[[], float]
SMALL_BYTES: Final = 4 * 1024
MAX_CAPTURED_BYTES: Final = 16 * 1024 * 1024
_WINDOW_BYTES: Final = 32 * 1024
_BEGINNING_BYTES: Final = 16 * 1024
_KEPT_EVENTS: Final = 4
_MOST_KEPT_BYTES: Final = 12 * 1024
# After the event with the token counts, comments may come, one every few seconds. They must not push it out, so a piece
# that begins as a comment is kept only if it is longer than this, for then it holds an event, too.
_COMMENT_BYTES: Final = 64
# A chunk that is smaller holds a blank line at most.
_SMALLEST_CHUNK: Final = 8
_EVENT_ENDS: Final = (b"\n\n", b"\n\r\n")
_BLANK_LINES: Final = (b"\n", b"\r\n")
_GZIP: Final = ("gzip", "x-gzip", "deflate")
_ANY_WINDOW: Final = zlib.MAX_WBITS | 32
_DECODED_AT_ONCE_BYTES: Final = 64 * 1024
# A small compressed answer may hold gigabytes: decompressing more than this would hold up the worker.
_MAX_DECODED_BYTES: Final = 16 * 1024 * 1024


class Tail:
    """The end of a stream of events; `length` in bytes, `began` by the clock, None before the first byte."""

    __slots__ = ("_at", "_beginning", "_is_within", "_pieces", "_window", "began", "clock", "length")
    takes_chunks = True

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.length = 0
        self.began: float | None = None
        # The last events. A new one takes the oldest one's place, the others stay where they are. Bytes are whole
        # chunks, still framed; a tuple holds a piece without framing.
        self._pieces: list[bytes | tuple[bytes]] = []
        self._at = -1
        # `_window` is what came before `_pieces`. It may begin within a line: `_beginning` is that line's start.
        self._window = b""
        self._beginning = b""
        self._is_within = False

    def add(self, piece: bytes) -> None:
        """Note a piece that went by."""
        self.length += len(piece)
        if self._is_within or len(piece) > SMALL_BYTES:
            self._slide(piece)
        elif not piece.endswith(b"\n"):
            if self._at < 0 < len(self._pieces) < _KEPT_EVENTS:
                # The rest of this event follows. Most often enough whole events come after it, so that neither is
                # needed and no window has to be made.
                self._pieces.append((piece,))
                self._is_within = True
            else:
                self._slide(piece)
        elif len(piece) > _COMMENT_BYTES or not (piece.startswith(b":") or self._ends_event(piece)):
            self._keep((piece,))

    def add_chunks(self, chunks: bytes, mark: int = 0) -> None:
        """Note whole chunks that went by; whoever calls this counts `length` itself, and `takes_chunks`.

        From `mark` on they hold their last few KB.
        """
        if mark and chunks[mark - 3 : mark] == b"\n\r\n" and len(chunks) - mark <= _MOST_KEPT_BYTES:
            # Events enough: what came before doesn't matter any more.
            chunks = chunks[mark:]
            self._pieces, self._at, self._window, self._beginning, self._is_within = [], -1, b"", b"", False
        elif mark and find_last_events(last := _to_body(chunks[mark:])):
            # So it is where chunks end within events, as behind another proxy.
            self._slide(last)
            return
        if self._is_within or len(chunks) > _MOST_KEPT_BYTES or not chunks.endswith(b"\n\r\n"):
            self._slide(_to_body(chunks))
        elif len(chunks) > _COMMENT_BYTES or not (
            b"\n:" in chunks or (len(chunks) < _SMALLEST_CHUNK and self._ends_event(_to_body(chunks)))
        ):
            # `[:-2]` makes a copy. Without one the buffer it was received into would be kept, 120 KB for each event.
            pieces = self._pieces
            if len(pieces) < _KEPT_EVENTS:
                self._keep(chunks[:-2])
            else:
                # As `_keep` would: nearly all events of all streams go this way.
                self._at = at = (self._at + 1) % _KEPT_EVENTS
                pieces[at] = chunks[:-2]

    def end(self) -> bytes:
        """Return the last bytes."""
        end, start = self._window, self._beginning
        if self._pieces:
            end += self._join_events()
        # A beginning of full length was cut: bytes are missing between it and the window, so they are not joined.
        return start + end if start and len(start) < _BEGINNING_BYTES else end

    def beginning(self) -> bytes:
        """Return the beginning of the line that `end()` begins within; `b""` if it begins with a line."""
        # One that was not cut is part of `end()` already.
        return self._beginning if len(self._beginning) == _BEGINNING_BYTES else b""

    def kept(self) -> bytes | None:
        """Return the whole body if it was kept, which only a RecordingTail does."""
        return None

    def _join_events(self) -> bytes:
        latest = self._pieces[self._at + 1 :] + self._pieces[: self._at + 1]
        return b"".join([piece[0] if isinstance(piece, tuple) else _to_body(piece) for piece in latest])

    def _keep(self, piece: bytes | tuple[bytes]) -> None:
        if len(self._pieces) < _KEPT_EVENTS:
            if self.began is None:
                self.began = self.clock()
            self._pieces.append(piece)
            if len(self._pieces) == _KEPT_EVENTS:
                self._window = self._beginning = b""
        else:
            self._at = at = (self._at + 1) % _KEPT_EVENTS
            self._pieces[at] = piece

    def _ends_event(self, piece: bytes) -> bool:
        """Tell whether a small piece is a blank line, which is put behind the event that it ends."""
        if not self._pieces or piece not in _BLANK_LINES:
            return False
        last = self._pieces[self._at]
        event = last[0] if isinstance(last, tuple) else _to_body(last)
        if not event.endswith(_EVENT_ENDS):
            self._pieces[self._at] = (event + piece,)
        return True

    def _slide(self, piece: bytes) -> None:
        """Move the window on to the end of a piece."""
        if self.began is None:
            self.began = self.clock()
        self._is_within = not piece.endswith(b"\n")
        if events := find_last_events(piece):
            self._pieces, self._at, self._window, self._beginning = [], -1, events, b""
            return
        window = self._window
        if self._pieces:
            window += self._join_events()
            self._pieces, self._at = [], -1
        if len(piece) > _WINDOW_BYTES:
            # Not put together first: that would be a copy of a large piece.
            self._leave_behind(window, len(window))
            window = b""
        window += piece
        left = len(window) - _WINDOW_BYTES
        if left > 0:
            self._leave_behind(window, left)
            window = window[left:]
        self._window = window

    def _leave_behind(self, text: bytes, length: int) -> None:
        """Drop the first `length` bytes of a text, but for the start of the line that the cut is in."""
        start = text.rfind(b"\n", 0, length) + 1
        if start:
            self._beginning = b""
        self._begin(text, start, length)

    def _begin(self, text: bytes, start: int, end: int) -> None:
        room = _BEGINNING_BYTES - len(self._beginning)
        if room > 0:
            self._beginning += text[start : min(end, start + room)]


class BodyTail(Tail):
    """The end of an answer that is no stream of events, and its beginning."""

    __slots__ = ()

    def add(self, piece: bytes) -> None:
        """Note a piece that went by."""
        self.length += len(piece)
        self._slide(piece)

    def add_chunks(self, chunks: bytes, mark: int = 0) -> None:
        """Note whole chunks that went by; whoever calls this counts `length` itself, and `takes_chunks`."""
        self._slide(_to_body(chunks))

    def _leave_behind(self, text: bytes, length: int) -> None:
        self._begin(text, 0, length)


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


def _to_body(chunks: bytes) -> bytes:
    return ChunkedDecoder().feed(chunks if chunks.endswith(b"\r\n") else chunks + b"\r\n")
