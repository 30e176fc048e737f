"""Gives the values of a merged tree that holds no interpolation: as they stand.

OmegaConf would give the same; to import it, and to make its tree, would take a tenth of a start.
See also: interpolate (the same for a tree with interpolations).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any

from openai_gateway.config.complaints import Problem
from openai_gateway.config.merged_tree import UNRESOLVED, UNSET, UNSET_CURE, MergedTree, walk_leaves


class PlainValues:
    """A merged tree whose values can be asked for, as of an `Interpolation`."""

    def __init__(self, merged: MergedTree, problems: list[Problem]) -> None:
        self._merged = merged
        self._problems = problems

    def resolve(self, path: Sequence[str]) -> dict[str, Any]:
        """Return the mapping at `path`: an unset value is UNSET, one that holds such UNRESOLVED."""
        node: dict[str, Any] = reduce(getitem, path, self._merged.tree)
        return {key: self._look_at(value, ".".join([*path, key])) for key, value in node.items()}

    def resolve_shared(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return those of `keys` that stand at the top level; values as in `resolve`."""
        tree = self._merged.tree
        return {key: self._look_at(tree[key], key) for key in keys if key in tree}

    def _look_at(self, value: Any, dotted: str) -> Any:
        unset = [name for name, leaf in walk_leaves(value, dotted) if leaf == UNSET]
        if not unset or value == UNSET:
            return value
        self._problems += [self._merged.to_problem(name, UNSET_CURE) for name in unset]
        return UNRESOLVED
