"""The tree that all sources of a config are merged into, by OmegaConf's rules, with the origin of each of its keys.

See also: files (what is merged, and in which order).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

from openai_gateway.config.complaints import Problem

UNSET: Final = "???"
UNSET_CURE: Final = "is ??? and must be set, in env.yaml, in a config file or on the command line"
# In the place of a value that can't be had.
UNRESOLVED: Final = object()
_REFERENCE: Final = re.compile(r"\$\{\s*([A-Za-z_][\w.-]*)\s*\}")


@dataclass
class MergedTree:
    """The merged tree, interpolations still in it, and where each dotted key came from.

    `is_partial` if something couldn't be read, so that what refers to it is not to blame.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    is_partial: bool = False

    def merge(self, tree: Mapping[str, Any], place: str) -> None:
        """Merge a source's tree on top."""
        self._expand_references(tree)
        merge_into(self.tree, tree)
        self.origins.update((key, place) for key in list_leaves(tree))

    def place_of(self, *dotted: str) -> str:
        """Return where the first of these keys that is set, or anything below it, came from; "" for none."""
        for wanted in dotted:
            for key, place in self.origins.items():
                if key == wanted or key.startswith(f"{wanted}."):
                    return place
        return ""

    def to_problem(self, dotted: str, message: str) -> Problem:
        """Return the complaint of a value; an override is one origin for all that is below it."""
        parts = dotted.split(".")
        above = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        return Problem(self.place_of(*above), dotted, message)

    def _expand_references(self, tree: Mapping[str, Any]) -> None:
        """Put an entry in the place of a reference to it (`judge: ${policy_model}`) if a mapping is merged into it."""
        for key, value in tree.items():
            match = _REFERENCE.fullmatch(mine) if isinstance(mine := self.tree.get(key), str) else None
            if match is not None and isinstance(value, Mapping):
                found: Any = self.tree
                for name in match[1].split("."):
                    found = found.get(name) if isinstance(found, Mapping) else None
                if isinstance(found, Mapping):
                    self.tree[key] = deepcopy(found)


def merge_into(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    """Merge a tree into another: mappings key by key, anything else whole; `???` never takes a value's place."""
    for key, value in source.items():
        mine = target.get(key)
        if isinstance(mine, dict) and isinstance(value, Mapping):
            merge_into(mine, value)
        elif value != UNSET or key not in target:
            target[key] = deepcopy(value)


def list_leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Give the dotted names of a tree's values; an empty mapping is one."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from list_leaves(value, f"{dotted}.")
        else:
            yield dotted


def walk_leaves(value: Any, dotted: str) -> Iterator[tuple[str, Any]]:
    """Give each value in mappings and lists with its dotted name, `dotted` being the name of the whole."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk_leaves(inner, f"{dotted}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk_leaves(inner, f"{dotted}[{index}]")
    else:
        yield dotted, value
