"""Keeps secrets out of what is shown: which strings are secret, and what of a value may be shown.

Everything that ends in a ConfigError, and every value that is shown, goes through here. See also: secret, complaints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from openai_gateway.config.complaints import Problem
from openai_gateway.config.secret import Secret

_MASK: Final = "***"
_SHOWN_CHARS: Final = 60
# A shorter string, such as a header's "true", would mask words of ours.
_LEAST_CHARS: Final = 8
_SECRET_NAME = re.compile(r"(key|keys|token|secret|password|headers)$", re.IGNORECASE)
_SECRET_LIKE = re.compile(r"sk-[^\s'\"]{3,}|Bearer\s+[^\s'\"]+", re.IGNORECASE)


def find_secrets(*trees: Mapping[str, Any]) -> frozenset[str]:
    """Return the strings in the trees that stand under a name such as `policy_api_key` or `openai_default_headers`."""
    return frozenset(text for tree in trees for text in _strings_under(tree, is_secret=False))


def _strings_under(node: Any, *, is_secret: bool) -> Iterator[str]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _strings_under(value, is_secret=is_secret or bool(_SECRET_NAME.search(name)))
    elif isinstance(node, list):
        for value in node:
            yield from _strings_under(value, is_secret=is_secret)
    elif is_secret and isinstance(node, str) and "${" not in node and node not in ("", "???"):
        yield node


def show_value(value: Any, secrets: Iterable[str]) -> str:
    """Return a short form of a value; one that is, or holds, a secret is masked whole."""
    text = repr(value)
    if isinstance(value, str) and value in secrets:
        return _MASK
    return text[:_SHOWN_CHARS] if _scrub(text, secrets) == text else _MASK


def without_secrets(problem: Problem, secrets: Iterable[str]) -> Problem:
    """Return the problem with each secret in it masked, as where a key stands in the place of a name."""
    return Problem(*(_scrub(part, secrets) for part in (problem.place, problem.key, problem.message)))


def _scrub(text: str, secrets: Iterable[str]) -> str:
    # Longest first: one secret may begin another.
    for secret in sorted((secret for secret in secrets if len(secret) >= _LEAST_CHARS), key=len, reverse=True):
        for form in (secret, repr(secret)[1:-1]):
            text = text.replace(form, _MASK)
    return _SECRET_LIKE.sub(_MASK, text)


def mask_url(url: str) -> str:
    """Return a URL whose query values are masked, `api-version` aside: one may be a key."""
    base, mark, query = url.partition("?")
    pairs = (part.partition("=") for part in query.split("&"))
    return (
        base
        + mark
        + "&".join(
            f"{name}{equals}{value if name == 'api-version' or not value else _MASK}" for name, equals, value in pairs
        )
    )


def mask(value: Any, secrets: Iterable[str], *, is_secret: bool = False) -> Any:
    """Return a value as it may be shown, in plain types: secrets masked, whatever is under a secret's name too."""
    if isinstance(value, Mapping):
        return {
            name: mask(inner, secrets, is_secret=is_secret or bool(_SECRET_NAME.search(name)))
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask(inner, secrets, is_secret=is_secret) for inner in value]
    if isinstance(value, Secret) or (is_secret and isinstance(value, str)):
        return _MASK
    return _scrub(value, secrets) if isinstance(value, str) else value


def reveal_all(value: Any) -> Iterator[str]:
    """Give the strings of all Secrets in a value, to `mask` them wherever else they stand."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from reveal_all(inner)
