"""Encoded request bodies: what each client sends is decoded whole, and what is torn or no such thing is refused."""

from __future__ import annotations

import gzip
import zlib
from importlib import import_module
from typing import Any

import pytest

from openai_gateway.wire.encodings import BadEncoding, decode, split_encodings

PLAIN = b'{"input": "' + b"word " * 200_000 + b'"}'


def _find_zstd() -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return pytest.skip("no zstd here", allow_module_level=True)


zstd = _find_zstd()
ENCODED = {
    "gzip": ("gzip", gzip.compress(PLAIN)),
    "gzip in two members": ("gzip", gzip.compress(PLAIN[:1000]) + gzip.compress(PLAIN[1000:])),
    "deflate": ("deflate", zlib.compress(PLAIN)),
    "deflate without its wrapper": ("deflate", zlib.compress(PLAIN)[2:-4]),
    "zstd": ("zstd", zstd.compress(PLAIN)),
    "zstd in two frames": ("zstd", zstd.compress(PLAIN[:1000]) + zstd.compress(PLAIN[1000:])),
}


@pytest.mark.parametrize(("encoding", "encoded"), ENCODED.values(), ids=ENCODED)
def test_body_is_decoded_whole(encoding: str, encoded: bytes) -> None:
    assert b"".join(decode(encoded, encoding)) == PLAIN


@pytest.mark.parametrize(("encoding", "encoded"), ENCODED.values(), ids=ENCODED)
@pytest.mark.parametrize("spoil", [lambda it: it[:-3], lambda it: it[:20], lambda it: it + b"junk", lambda it: b""])
def test_body_that_is_torn_or_followed_by_something_else_is_refused(encoding: str, encoded: bytes, spoil: Any) -> None:
    with pytest.raises(BadEncoding):
        list(decode(spoil(encoded), encoding))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_body_that_is_not_encoded_is_refused(encoding: str) -> None:
    with pytest.raises(BadEncoding):
        list(decode(b'{"input": "x"}', encoding))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_bomb_comes_in_small_pieces(encoding: str) -> None:
    zeros = b"0" * 50_000_000
    encoded = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}[encoding](zeros)
    assert max(map(len, decode(encoded, encoding))) <= 256 * 1024


def test_body_that_asks_for_a_large_window_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 27}
    compressor = zstd.ZstdCompressor(options=options)
    encoded = compressor.compress(b"x" * 100) + compressor.flush()
    with pytest.raises(BadEncoding):
        list(decode(encoded, "zstd"))


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("gzip", ["gzip"]),
        ("identity", []),
        ("", []),
        ("Deflate, GZIP", ["deflate", "gzip"]),
        ("gzip, gzip, gzip", None),
        ("br", None),
    ],
)
def test_codings_are_taken_apart(header: str, names: list[str] | None) -> None:
    assert split_encodings(header) == names
