"""The command line's `+key=value` arguments: read, and laid over the merged files.

See also: override_value (how a value is read).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.config.complaints import Problem
from openai_gateway.config.merged_tree import MergedTree, list_leaves, merge_into
from openai_gateway.config.override_value import BadValue, parse_value

OVERRIDES_VARIABLE: Final = "OPENAI_GATEWAY_OVERRIDES"
COMMAND_LINE: Final = "command line"


@dataclass(frozen=True, slots=True)
class Override:
    """One argument; `may_add` if the key need not be there."""

    key: str
    value: Any
    may_add: bool


def parse_overrides(
    environ: Mapping[str, str], arguments: Sequence[str], problems: list[Problem]
) -> Iterator[Override]:
    """Give the overrides handed down in OPENAI_GATEWAY_OVERRIDES, a JSON list, then those of the arguments."""
    for argument in [*_handed_down(environ, problems), *arguments]:
        name, equals, text = argument.partition("=")
        key = name.lstrip("+")
        if not equals or not all(key.split(".")) or len(name) - len(key) > 2:
            shown = name[:60] if equals else "an argument without '='"
            problems.append(Problem(COMMAND_LINE, "", f"'+key=value' or '++key=value' is wanted, not {shown!r}"))
            continue
        try:
            value = parse_value(text)
        except BadValue as error:
            problems.append(Problem(COMMAND_LINE, key, f"the value can't be read ({error})"))
            continue
        yield Override(key, value, name.startswith("+"))


def apply_override(merged: MergedTree, override: Override, problems: list[Problem]) -> None:
    """Lay one override over the merged tree, or complain of it."""
    at: Any = merged.tree
    *parents, last = override.key.split(".")
    for parent in parents:
        if override.may_add and not isinstance(at.get(parent), dict):
            at[parent] = {}
        at = at.get(parent)
        if not isinstance(at, dict):
            break
    else:
        if override.may_add or last in at:
            merge_into(at, {last: override.value})
            merged.origins.update((leaf, COMMAND_LINE) for leaf in list_leaves({override.key: override.value}))
            return
    cure = f"there is no such key to override; add one with '++{override.key}=...'"
    problems.append(Problem(COMMAND_LINE, override.key, cure))


def _handed_down(environ: Mapping[str, str], problems: list[Problem]) -> list[str]:
    try:
        given = json.loads(environ.get(OVERRIDES_VARIABLE) or "[]")
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, list) and all(isinstance(override, str) for override in given):
        return given
    problems.append(Problem("environment", OVERRIDES_VARIABLE, 'a JSON list such as ["++key=value"] is wanted'))
    return []
