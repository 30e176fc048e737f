"""Resolves `${...}` in the merged tree with OmegaConf; each value that can't be is one complaint.

Only what is asked for is resolved: the other entries of a Gym run's files may need variables that we don't have. See
also: merged_tree, plain_values (trees without any interpolation), origins, build (who asks).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from openai_gateway.config.complaints import Problem
from openai_gateway.config.merged_tree import UNRESOLVED, UNSET, UNSET_CURE, MergedTree, walk_leaves

_MISSING_KEY: Final = re.compile(r"Interpolation key '([\w.-]+)' not found")


class Interpolation:
    """A merged tree whose values can be asked for, resolved."""

    def __init__(self, merged: MergedTree, environ: Mapping[str, str], problems: list[Problem]) -> None:
        OmegaConf.register_resolver("oc.env", lambda *name: _from_environ(environ, *name), replace=True)
        self._merged = merged
        self._problems = problems
        self._unparsable: set[str] = set()
        self._root = OmegaConf.create(self._parsable(merged.tree, ""))

    def resolve(self, path: Sequence[str]) -> dict[str, Any]:
        """Return the mapping at `path`: an unset value is UNSET, one that can't be had, or holds such, UNRESOLVED."""
        node: Any = self._root
        for name in path:
            node = node._get_node(name)
        return {str(key): self._resolve_whole(node, str(key), ".".join([*path, str(key)])) for key in node}

    def resolve_shared(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return those of `keys` that stand at the top level; values as in `resolve`."""
        return {key: self._resolve_whole(self._root, key, key) for key in keys if key in self._merged.tree}

    def _resolve_whole(self, node: DictConfig, key: str, dotted: str) -> Any:
        if OmegaConf.is_missing(node, key) and dotted not in self._unparsable:
            return UNSET
        value = self._resolve_value(node, key, dotted)
        return UNRESOLVED if any(leaf is UNRESOLVED for _, leaf in walk_leaves(value, dotted)) else value

    def _resolve_value(self, node: DictConfig | ListConfig, key: Any, dotted: str) -> Any:
        if dotted in self._unparsable:
            self._complain(dotted, "the interpolation can't be parsed; a literal ${ is written \\${")
            return UNRESOLVED
        try:
            if OmegaConf.is_missing(node, key):
                self._complain(dotted, UNSET_CURE)
                return UNRESOLVED
            value = node[key]
        except OmegaConfBaseException as error:
            # If a file could not be read, what is missing here may stand in it: that file's complaint is enough.
            if not self._merged.is_partial:
                self._complain(dotted, _find_cure(node, key, error))
            return UNRESOLVED
        if isinstance(value, DictConfig):
            return {name: self._resolve_value(value, name, f"{dotted}.{name}") for name in map(str, value)}
        if isinstance(value, ListConfig):
            return [self._resolve_value(value, index, f"{dotted}[{index}]") for index in range(len(value))]
        return value

    def _parsable(self, value: Any, dotted: str) -> Any:
        """Return the value with UNSET for each string whose interpolation OmegaConf can't parse, noting where."""
        if isinstance(value, dict):
            return {key: self._parsable(inner, f"{dotted}.{key}".lstrip(".")) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._parsable(inner, f"{dotted}[{index}]") for index, inner in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            try:
                OmegaConf.create([value])
            except OmegaConfBaseException:
                self._unparsable.add(dotted)
                return UNSET
        return value

    def _complain(self, dotted: str, message: str) -> None:
        self._problems.append(self._merged.to_problem(dotted, message))


def _find_cure(node: DictConfig | ListConfig, key: Any, error: OmegaConfBaseException) -> str:
    raw: Any = OmegaConf.to_container(node, resolve=False)
    expression = raw[key]
    # Only a plain reference is shown: what stands around one may be a secret.
    shown = ""
    if isinstance(expression, str) and expression.startswith("${") and len(expression) < 80:
        shown = expression
    variable = _find_unset_variable(error)
    if variable is not None:
        what = shown or "the interpolation"
        return f"{what} can't be resolved: the environment variable {variable} is not set"
    missing = _MISSING_KEY.search(str(error))
    if missing is not None and shown and f"${{{missing[1]}}}" != shown:
        shown = f"{shown} leads to ${{{missing[1]}}}, which"
    if shown:
        return f"{shown} can't be resolved; set it in env.yaml, in a config file or on the command line"
    return f"the interpolation can't be resolved ({type(error).__name__})"


def _find_unset_variable(error: BaseException) -> str | None:
    """Return the variable that an interpolation failed for, at whatever depth."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, _UnsetVariable):
            return found.name
        found = found.__cause__ or found.__context__
    return None


class _UnsetVariable(Exception):
    """An environment variable that is asked for without a default is not set."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _from_environ(environ: Mapping[str, str], name: str, *default: Any) -> Any:
    if name in environ:
        return environ[name]
    if default:
        return default[0]
    raise _UnsetVariable(name)


def resolve_entry(tree: Mapping[str, Any], key: str) -> Any:
    """Return an entry of a tree resolved; as it is if it can't be."""
    try:
        resolved = OmegaConf.create(dict(tree))[key]
        return OmegaConf.to_container(resolved, resolve=True) if OmegaConf.is_config(resolved) else resolved
    except OmegaConfBaseException:
        return tree[key]
