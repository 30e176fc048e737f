"""Says in a person's words where a value of the config came from, through the interpolations in it.

Nothing here says what a value is. See also: files (what is merged from where), interpolate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from openai_gateway.config.merged_tree import MergedTree
from openai_gateway.config.overrides import COMMAND_LINE

DEFAULT: Final = "default"
_REFERENCE = re.compile(r"\$\{\s*(?:oc\.env:\s*(?P<variable>\w+)|(?P<key>[A-Za-z_][\w.-]*)\s*(?=\}))")


class Origins:
    """Where the values of a merged tree came from."""

    def __init__(self, merged: MergedTree, environ: Mapping[str, str]) -> None:
        self._merged = merged
        self._environ = environ

    def of(self, *names: str) -> str:
        """Return where the first of these dotted names that is set came from, `default` if none is.

        Such as `a.yaml, ${policy_base_url} in env.yaml`; of an interpolation only the name is told, never the text.
        """
        for name in names:
            place = self._place_of(name)
            if place:
                return ", ".join([place, *self._follow(name, [])])
        return DEFAULT

    def _place_of(self, name: str) -> str:
        return self._merged.origins.get(name) or self._merged.place_of(name)

    def _follow(self, name: str, seen: list[str]) -> Iterator[str]:
        raw = _find(self._merged.tree, name)
        for match in _REFERENCE.finditer(raw) if isinstance(raw, str) else ():
            variable, key = match["variable"], match["key"]
            if variable is not None:
                is_set = variable in self._environ
                yield f"${variable} in the environment" if is_set else f"${variable} is not set: its default"
            elif key not in seen:
                place = self._place_of(key)
                if place:
                    yield f"${{{key}}} {'on the' if place == COMMAND_LINE else 'in'} {place}"
                    yield from self._follow(key, [*seen, key])


def _find(tree: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(tree, dict):
            return None
        tree = tree.get(part)
    return tree
