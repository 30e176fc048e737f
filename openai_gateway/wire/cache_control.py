"""HTTP's own words for kept answers: what a request asks of a cache, and what an answer says of one.

Sources: RFC 9111 5.2.1 (Cache-Control of requests), RFC 9211 (Cache-Status). See also: blueprints.recorded (who
asks).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

NAME: Final = "openai_gateway"


@dataclass(frozen=True, slots=True)
class Directives:
    """What a request's Cache-Control asks for; `max_age_s` None is any age."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None


@lru_cache(maxsize=64)
def parse_directives(header: str) -> Directives:
    """Return the directives that a cache of answers to POSTs can follow; unknown ones are passed over."""
    words: dict[str, str] = {}
    for word in header.split(","):
        name, _, value = word.strip().partition("=")
        words.setdefault(name.strip().lower(), value.strip().strip('"'))
    age = words.get("max-age", "")
    return Directives(
        no_cache="no-cache" in words,
        no_store="no-store" in words,
        only_if_cached="only-if-cached" in words,
        max_age_s=float(age) if age.isascii() and age.isdigit() else None,
    )


def make_hit_status(*, is_joined: bool) -> str:
    """Return the Cache-Status of an answer that was there, or that another's call under way has given."""
    return f"{NAME}; fwd=miss; collapsed" if is_joined else f"{NAME}; hit"


def make_call_status(why: str, *, is_stored: bool) -> str:
    """Return the Cache-Status of an answer that a call was made for; `why` is RFC 9211's fwd."""
    return f"{NAME}; fwd={why}; stored" if is_stored else f"{NAME}; fwd={why}"
