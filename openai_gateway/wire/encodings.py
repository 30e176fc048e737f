"""Request bodies in a content encoding (RFC 9110 8.4.1): decoded piece by piece, so that a bomb is stopped in time.

Codex signed in to ChatGPT sends zstd. Bodies go on plain, for they are rewritten. Answers are never decoded here. See
also: blueprints.intake (whose bodies), recordings.kept (kept answers are decoded there).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, Final

_PIECE_BYTES: Final = 256 * 1024
# More codings in one another than any client uses are an attack.
_MOST_CODINGS: Final = 2


class BadEncoding(ValueError):
    """The body isn't what its encoding says, or ends too early."""


def split_encodings(header: str) -> list[str] | None:
    """Return the codings of a Content-Encoding, first applied first, without `identity`; None if one is unknown."""
    names = [name.strip().lower() for name in header.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    return names if len(names) <= _MOST_CODINGS and all(name in _DECODERS for name in names) else None


def decode(body: bytes, encoding: str) -> Generator[bytes, None, None]:
    """Give a body decoded, in pieces of at most 256 KiB. Raises BadEncoding."""
    if not body:
        raise BadEncoding
    try:
        make = _DECODERS[encoding]
        if encoding == "deflate" and (body[0] & 0x0F != zlib.DEFLATED or int.from_bytes(body[:2], "big") % 31):
            # Some clients leave zlib's wrapper out.
            make = _make_raw_deflate
        rest = body
        # Members may follow one another.
        while rest:
            rest = yield from _decode_member(make(), rest)
    except _ERRORS:
        raise BadEncoding from None


def _decode_member(decoder: Any, data: bytes) -> Generator[bytes, None, bytes]:
    while True:
        piece = decoder.decompress(data, _PIECE_BYTES)
        if piece:
            yield piece
        if decoder.eof:
            unused: bytes = decoder.unused_data
            return unused
        data = getattr(decoder, "unconsumed_tail", b"")
        if not data and not piece:
            raise BadEncoding


def _make_gzip() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _make_deflate() -> Any:
    return zlib.decompressobj()


def _make_raw_deflate() -> Any:
    return zlib.decompressobj(-zlib.MAX_WBITS)


_DECODERS: Final[dict[str, Callable[[], Any]]] = {
    "gzip": _make_gzip,
    "x-gzip": _make_gzip,
    "deflate": _make_deflate,
}
_ERRORS: tuple[type[Exception], ...] = (zlib.error, EOFError)


def _add_zstd() -> None:
    """Take zstd, too: from Python 3.14's own library, else its backport; without either all else works."""
    global _ERRORS
    for name in ("backports.zstd", "compression.zstd"):
        with suppress(ImportError):
            zstd = import_module(name)
            # A sender chooses how much its decoder has to remember: 8 MiB is what every decoder should do (RFC 8878).
            options = {zstd.DecompressionParameter.window_log_max: 23}
            _DECODERS["zstd"] = partial(zstd.ZstdDecompressor, options=options)
            _ERRORS = (zlib.error, EOFError, zstd.ZstdError)


_add_zstd()
