"""The bodies of HTTP/1.1 answers as bytes: what is in them without their framing (RFC 9112).

Strict on purpose: what is not certainly well-formed raises MalformedAnswer. See also: transport.raw_answer (sockets).
"""

from __future__ import annotations

import re
import zlib
from typing import Final

from openai_gateway.wire.head import Head, MalformedAnswer

MAX_CHUNK_LINE_BYTES: Final = 4 * 1024
_MAX_TRAILER_BYTES: Final = 64 * 1024
_ANY_WINDOW: Final = zlib.MAX_WBITS | 32
_MAX_DECODED_BYTES: Final = 8 * 1024 * 1024

_HEX = re.compile(rb"[0-9a-fA-F]{1,15}")
_KNOWN_SIZES: dict[bytes, int] = {}
_MAX_KNOWN_SIZES: Final = 4096
_MAX_KNOWN_SIZE_BYTES: Final = 8
# A step goes from one chunk's bytes to the next chunk's. The key is what was seen between them: the line end, the line
# with the size, and perhaps a first byte of the chunk. The value: how far it is to the next step, and the chunk's size.
_KNOWN_STEPS: dict[bytes, tuple[int, int]] = {}
_STEP_DIGITS: Final = 3
LAST_BYTES: Final = 2 * 1024
# In a smaller piece there are too few chunks for steps to pay off.
_FEW_BYTES: Final = 1024


class ChunkedDecoder:
    """Takes a chunked body apart, piece by piece as it arrives; `done` once the last chunk and its trailers are in.

    `surplus` holds what came after the end: bytes that no request asked for.
    """

    __slots__ = ("_left", "_pending", "_state", "_trailer_bytes", "done", "mark", "surplus")

    _SIZE, _BODY, _BODY_END, _TRAILER = range(4)
    ends_with_connection: Final = False

    def __init__(self) -> None:
        self._state = self._SIZE
        self._left = 0
        self._pending = b""
        self._trailer_bytes = 0
        self.done = False
        self.surplus = b""
        self.mark = 0

    def whole_length(self, piece: bytes) -> int:
        """Return how many body bytes `piece` holds if it is whole chunks of sizes seen before, nothing else; 0 if not.

        Such a piece needs no `feed`: it leaves the decoder as it is. `mark` is then where the chunks begin that hold
        its last few KB.
        """
        if self._state or self._pending:
            return 0
        at, end, length = 0, len(piece), 0
        if end > _FEW_BYTES:
            at, length, mark = _pass_over(piece, 0)
            self.mark = mark if at - mark >= LAST_BYTES else 0
            return length if at == end else 0
        self.mark = 0
        while at < end:
            line_end = piece.find(b"\r\n", at, at + _MAX_KNOWN_SIZE_BYTES)
            size = _KNOWN_SIZES.get(piece[at:line_end])
            if size is None or line_end < 0:
                return 0
            at = line_end + size + 4
            if piece[at - 2 : at] != b"\r\n":
                return 0
            length += size
        return length

    def pass_on(self, piece: bytes) -> tuple[bytes, int, bytes]:
        """Return chunks, the body bytes that they hold, and more body bytes; no chunks if `feed` must read it all.

        The chunks are the whole ones in `piece` as they came, after what completes a torn one as a chunk of its own;
        the other body bytes are of a chunk that is torn again. `mark` as for `whole_length`. Raises MalformedAnswer.
        """
        start = self._left + 2 if self._state == self._BODY and not self._pending else 0
        if self._pending or start >= len(piece) or (self._state and not start):
            return b"", 0, b""
        stop, length, mark = _pass_over(piece, start)
        if stop == start:
            return b"", 0, b""
        chunks = piece[start:stop]
        mark = mark - start if stop - mark >= LAST_BYTES else -1
        if start:
            completed = self.feed(piece[:start])
            framed = b"%x\r\n%b\r\n" % (len(completed), completed)
            chunks, length = framed + chunks, length + len(completed)
            mark = mark + len(framed) if mark >= 0 else -1
        self.mark = max(mark, 0)
        return chunks, length, self.feed(piece[stop:]) if stop < len(piece) else b""

    def feed(self, piece: bytes) -> bytes:
        """Return the body bytes that `piece` completes, without their framing. Raises MalformedAnswer."""
        if self._pending:
            piece = self._pending + piece
            self._pending = b""
        at, end = 0, len(piece)
        out: list[bytes] = []
        if self._state == self._SIZE:
            # Most pieces are whole chunks of sizes that were seen before.
            while (start := piece.find(b"\r\n", at, at + _MAX_KNOWN_SIZE_BYTES) + 2) > 1:
                stop = start + _KNOWN_SIZES.get(piece[at : start - 2], end)
                if piece[stop : stop + 2] != b"\r\n":
                    break
                out.append(piece[start:stop])
                at = stop + 2
        while at < end and not self.done:
            if self._state == self._BODY:
                taken = piece[at : at + self._left]
                out.append(taken)
                at += len(taken)
                self._left -= len(taken)
                if self._left:
                    break
                self._state = self._BODY_END
            elif self._state == self._BODY_END:
                if end - at < 2 and piece[at] == 13:
                    break
                if piece[at : at + 2] != b"\r\n":
                    raise MalformedAnswer("a chunk is longer than its size")
                at += 2
                self._state = self._SIZE
            else:
                line_end = piece.find(b"\r\n", at, at + MAX_CHUNK_LINE_BYTES)
                if line_end < 0:
                    if end - at >= MAX_CHUNK_LINE_BYTES:
                        raise MalformedAnswer("a chunk size or trailer line is too long")
                    break
                self._take_line(piece[at:line_end])
                at = line_end + 2
        if self.done:
            self.surplus = piece[at:]
        elif at < end:
            self._pending = piece[at:]
        return out[0] if len(out) == 1 else b"".join(out)

    def _take_line(self, line: bytes) -> None:
        if self._state == self._TRAILER:
            self.done = not line
            self._trailer_bytes += len(line) + 2
            if self._trailer_bytes > _MAX_TRAILER_BYTES:
                raise MalformedAnswer("the trailers are too large")
            return
        size = _KNOWN_SIZES.get(line)
        self._left = size if size is not None else _read_size(line)
        self._state = self._BODY if self._left else self._TRAILER


def _pass_over(piece: bytes, start: int) -> tuple[int, int, int]:
    """Return where the whole chunks of known sizes that begin at `start` end, and how many body bytes they hold.

    And where those begin that hold the last few KB.
    """
    at, end, length = start, len(piece), 0
    # The second is taken if the last chunk is so large that the first is too near to the end.
    before = mark = early = start
    # The first round goes up to the limit, to find the mark; the second to the end.
    limit = max(end - 2 * LAST_BYTES, start)
    while at < end:
        if at >= limit and limit < end:
            mark, early, limit = at, before, end
        before, size = at, 0
        if at > start:
            # A step that is found has shown that the chunk before it ends with a line end, as it must.
            while at < limit and (step := _KNOWN_STEPS.get(piece[at - 2 : at + 5])) is not None:
                before, size = at, step[1]
                at += step[0]
                length += size
        if at > before:
            if at <= end and piece[at - 2 : at] == b"\r\n":
                continue
            at, length = before, length - size
            break
        line_end = piece.find(b"\r\n", at, at + _MAX_KNOWN_SIZE_BYTES)
        known = _KNOWN_SIZES.get(piece[at:line_end])
        if known is None or line_end < 0:
            break
        stop = line_end + known + 4
        if piece[stop - 2 : stop] != b"\r\n":
            break
        if at > start and line_end - at <= _STEP_DIGITS and len(_KNOWN_STEPS) < _MAX_KNOWN_SIZES and at + 5 <= end:
            _KNOWN_STEPS[piece[at - 2 : at + 5]] = stop - at, known
        at = stop
        length += known
    return at, length, mark if at - mark >= LAST_BYTES else early


def _read_size(line: bytes) -> int:
    """Return the size that a chunk's first line gives, remembering those of chunks with something in them."""
    digits = line.partition(b";")[0].rstrip(b" \t")
    if not _HEX.fullmatch(digits):
        raise MalformedAnswer("a chunk size is not a hexadecimal number")
    size = int(digits, 16)
    # Bounded: an upstream chooses its sizes.
    if size and digits == line and len(line) <= _MAX_KNOWN_SIZE_BYTES - 2 and len(_KNOWN_SIZES) < _MAX_KNOWN_SIZES:
        _KNOWN_SIZES[line] = size
    return size


class LengthDecoder:
    """Counts down a body of known length; same shape as ChunkedDecoder."""

    __slots__ = ("_left", "done", "surplus")
    ends_with_connection: Final = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.surplus = b""

    def feed(self, piece: bytes) -> bytes:
        """Return the part of `piece` that belongs to the body."""
        taken = piece if len(piece) <= self._left else piece[: self._left]
        self._left -= len(taken)
        self.surplus = piece[len(taken) :]
        self.done = not self._left
        return taken


class UntilCloseDecoder:
    """A body that ends when the upstream closes; same shape as ChunkedDecoder, never `done` by itself."""

    __slots__ = ("done", "surplus")
    ends_with_connection: Final = True

    def __init__(self) -> None:
        self.done = False
        self.surplus = b""

    def feed(self, piece: bytes) -> bytes:
        """Return `piece`."""
        return piece


def decode_content(body: bytes, encoding: str) -> bytes | None:
    """Return a whole gzip or deflate body as it was before; None for another encoding, a broken or too large one."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return None
    decoder = zlib.decompressobj(_ANY_WINDOW)
    try:
        decoded = decoder.decompress(body, _MAX_DECODED_BYTES)
    except zlib.error:
        return None
    return decoded if decoder.eof else None


Decoder = ChunkedDecoder | LengthDecoder | UntilCloseDecoder


def make_decoder(head: Head, *, is_head_request: bool) -> Decoder:
    """Return the decoder for the body that follows `head` (RFC 9112 6.3)."""
    if is_head_request:
        return LengthDecoder(0)
    if head.chunked:
        return ChunkedDecoder()
    if head.content_length is not None:
        return LengthDecoder(head.content_length)
    return UntilCloseDecoder()
