"""What a create call says of itself, as far as the queue and the limiter must know: its rollout, its size.

What else a body says is the upstream's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from openai_gateway.wire.api import Api

# Keys are kept, thousands of them; the end of a longer one tells rollouts apart as well.
_MOST_KEY_LENGTH: Final = 256


def to_rollout_key(environ: Mapping[str, Any], values: Mapping[str, msgspec.Raw]) -> str | None:
    """Return what tells which rollout a call belongs to, of one that its path doesn't tell; None if nothing does."""
    key = values.get("prompt_cache_key") or environ.get("HTTP_SESSION_ID") or values.get("previous_response_id")
    text = str(key, "utf-8", "replace") if isinstance(key, msgspec.Raw) else key
    return text if text is None else text[-_MOST_KEY_LENGTH:]


def to_output_tokens(values: Mapping[str, msgspec.Raw], api: Api) -> int | None:
    """Return the body's bound of output tokens, None if it has none that is a number."""
    given = values.get(api.token_limit) or values.get("max_tokens")
    digits = bytes(given) if given is not None else b""
    return int(digits) if digits.isdigit() and len(digits) < 10 else None
