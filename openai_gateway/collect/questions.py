"""What a row asks: in which of its fields it stands, of which API, and a checksum that tells it from others.

The same for a row of the input and for its copy in the output, whatever white space, escapes and order of keys each
was written with. See also: rows, matching (who compares checksums).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

RESPONSES: Final = "responses"
CHAT: Final = "chat"
PATHS: Final = {RESPONSES: "/responses", CHAT: "/chat/completions"}
MESSAGES: Final = "messages"
# A line of a file for OpenAI's Batch API: custom_id, method, url, body.
BATCH_BODY: Final = "body"
_BATCH_ID: Final = "custom_id"
QUESTIONS: Final = ("responses_create_params", "chat_create_params", MESSAGES, BATCH_BODY)
SEED: Final = "seed"
# Where NeMo Gym puts the seed of a Responses call, which has no such parameter of its own.
METADATA: Final = "metadata"

Fields = Mapping[str, Any]


class BadRow(Exception):
    """A line of the input can't be sent; the message says why and what is wanted."""


def find_question(fields: Fields) -> str:
    """Return the name of the field that holds what is asked. Raises BadRow if there is none."""
    for name in QUESTIONS:
        if name in fields and (name != BATCH_BODY or _BATCH_ID in fields):
            return name
    raise BadRow(f"has none of {', '.join(QUESTIONS[:-1])}, or custom_id and body of OpenAI's Batch API")


def find_api(name: str, fields: Fields, params: Fields) -> str:
    """Return the API that a question is for. Raises BadRow."""
    if name != BATCH_BODY:
        return RESPONSES if name == QUESTIONS[0] else CHAT
    url = fields.get("url")
    path = msgspec.json.decode(url) if url is not None else None
    for api, known in PATHS.items():
        if isinstance(path, str) and path.endswith(known):
            return api
    if path is not None:
        raise BadRow(f"is a batch line for {str(path)[:80]!r}; only {' and '.join(PATHS.values())} can be collected")
    return CHAT if MESSAGES in params else RESPONSES


def compute_checksum(asked: msgspec.Raw, unheeded: Collection[str] = ()) -> int:
    """Return 64 bits, never 0, that tell one question from another; `unheeded` names parameters that don't count."""
    try:
        value = msgspec.json.decode(asked)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _to_64_bits(bytes(asked))
    if isinstance(value, dict):
        value = {name: each for name, each in value.items() if name not in unheeded}
    try:
        return _to_64_bits(msgspec.json.encode(value, order="deterministic"))
    except (msgspec.MsgspecError, RecursionError, OverflowError):
        return _to_64_bits(json.dumps(value, sort_keys=True).encode())


def _to_64_bits(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") or 1
