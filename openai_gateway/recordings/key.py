"""The key that an answer is kept under, and who asks for it.

A key is made of the whole call as it goes upstream; no field is picked by hand. See also: recordings (who asks).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

NOBODY: Final = bytes(16)
# The first byte of an asker tells whether it can be told from others.
_NAMED: Final = b"\1"
_UNNAMED: Final = b"\0"
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def compute_key(
    base_url: str, target: str, body: bytes, headers: Mapping[str, str], named: Sequence[str] = ()
) -> bytes:
    """Return 32 bytes: SHA-256 over base URL, path with query, the body, and the named headers (lower case).

    Top-level keys of the body count in any order; their values count byte for byte.
    """
    digest = hashlib.sha256()
    for part in (base_url, target, *(f"{name}: {headers.get(name, '')}" for name in sorted(named))):
        digest.update(part.encode("latin-1", "replace"))
        digest.update(b"\0")
    digest.update(_sort(body))
    return digest.digest()


def _sort(body: bytes) -> bytes:
    try:
        values = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # A lone surrogate, which msgspec refuses: as it is.
        return body
    return msgspec.json.encode(dict(sorted(values.items())))


def compute_asker(repeat: str | None, rollout_id: str | None) -> bytes | None:
    """Return 16 bytes that tell an asker from others: by its repeat, else by its rollout; None if it names neither."""
    if repeat:
        name = f"repeat {repeat}"
    elif rollout_id:
        name = f"rollout {rollout_id}"
    else:
        return None
    return _NAMED + hashlib.blake2b(name.encode("latin-1", "replace"), digest_size=15).digest()


def make_unnamed_asker() -> bytes:
    """Return an asker unlike any other, for a call that can't be told from others."""
    return _UNNAMED + secrets.token_bytes(15)


def is_named(asker: bytes) -> bool:
    """Tell whether an asker can be told from others, so that what was recorded for it is its own."""
    return asker[:1] == _NAMED
