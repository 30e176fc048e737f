"""What a request tells the queue: whose rollout it belongs to, and how many tokens its answer may have.

What the queue makes of it is `limits`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from openai_gateway.wire.api import Api


def to_rollout_key(environ: Mapping[str, Any], values: Mapping[str, msgspec.Raw]) -> str | None:
    """Return what tells which rollout a call belongs to, of one that its path doesn't tell; None if nothing does."""
    key = values.get("prompt_cache_key") or environ.get("HTTP_SESSION_ID") or values.get("previous_response_id")
    return str(key, "utf-8", "replace") if isinstance(key, msgspec.Raw) else key


def to_output_tokens(values: Mapping[str, msgspec.Raw], api: Api) -> int | None:
    """Return the body's bound of output tokens, None if it has none that is a number."""
    given = values.get(api.token_limit) or values.get("max_tokens")
    digits = bytes(given) if given is not None else b""
    return int(digits) if digits.isdigit() and len(digits) < 10 else None
