"""Carries out NeMo Gym's directives in a merged tree: `_inherit_from`, `_copy`, `_delete_key`, and dummy models.

`judge: {_copy: policy_model, ...}` is policy_model's entry with what stands beside it on top, `${copy:policy_model}`
the same without anything; `_inherit_from` and `${inherit_from:...}` take the entry away from where it stood. What they
name is looked up in the tree as it was before any of them. `_delete_key: a, b` takes keys out of its mapping, inherited
ones too. All is done in the order of the keys, depth first, as Gym does, even where the result depends on it.
Source: NeMo Gym global_config. See also: interpolate (all other interpolations).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

from openai_gateway.config.complaints import Problem
from openai_gateway.config.merged_tree import UNSET, MergedTree, merge_into

_DIRECTIVES: Final = {"_inherit_from": "inherit_from", "_copy": "copy"}
_DELETE: Final = "_delete_key"
_MODELS: Final = "responses_api_models"
_DUMMY: Final = "dummy_model"


class _NotThere(Exception):
    """A path that a directive names isn't in the config."""


class _IsUnset(Exception):
    """A path that a directive names is `???`, or below it."""


def carry_out_directives(merged: MergedTree, problems: list[Problem]) -> None:
    """Change the tree as its directives say; complain of those that can't be carried out, and take them out."""
    directives = _Directives(merged, problems)
    directives.carry_out(merged.tree, "")
    directives.find_left_over(merged.tree, "")
    _merge_dummies(merged.tree)


class _Directives:
    def __init__(self, merged: MergedTree, problems: list[Problem]) -> None:
        self._merged = merged
        self._problems = problems
        self._before = deepcopy(merged.tree)
        self._origins_before = dict(merged.origins)
        self._refused: set[str] = set()

    def carry_out(self, tree: dict[str, Any], prefix: str) -> None:
        for key, value in list(tree.items()):
            dotted = f"{prefix}{key}"
            to_delete = self._take_deletions(value, dotted)
            if isinstance(value, dict):
                self.carry_out(value, f"{dotted}.")
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, dict):
                        self.carry_out(item, f"{dotted}[{index}].")
            directive, path = _find_directive(value)
            if directive is None:
                continue
            try:
                tree[key] = self._follow(directive, path, value, dotted)
            except _IsUnset:
                tree[key] = UNSET
            except _NotThere as error:
                # What couldn't be read may hold it.
                if not self._merged.is_partial:
                    self._complain(dotted, directive, str(error))
                continue
            except TypeError as error:
                self._complain(dotted, directive, str(error))
                continue
            for name in to_delete:
                if not isinstance(tree[key], dict) or tree[key].pop(name, self) is self:
                    self._complain(dotted, _DELETE, f"there is no key {name!r} to delete")

    def find_left_over(self, tree: dict[str, Any], prefix: str) -> None:
        """Complain of directives that came with what another one named: Gym doesn't carry those out."""
        for key, value in tree.items():
            dotted = f"{prefix}{key}"
            directive, path = _find_directive(value)
            if directive is not None and dotted not in self._refused and not self._merged.is_partial:
                self._complain(dotted, directive, f"was inherited or copied itself; name {path} there instead")
            elif isinstance(value, dict):
                self.find_left_over(value, f"{dotted}.")

    def _take_deletions(self, value: Any, dotted: str) -> set[str]:
        """Carry out a mapping's `_delete_key` on its own keys; return those left for what it inherits."""
        if not isinstance(value, dict) or _DELETE not in value:
            return set()
        names = value.pop(_DELETE)
        if not isinstance(names, str):
            self._complain(dotted, _DELETE, "names of keys are wanted, with commas between them")
            return set()
        wanted = {name.strip() for name in names.split(",")}
        found = {name for name in wanted if name in value}
        for name in found:
            del value[name]
        return wanted - found

    def _follow(self, directive: str, path: Any, value: Any, dotted: str) -> Any:
        """Return what stands in a directive's place from now on."""
        if isinstance(value, dict):
            if all(name in value for name in _DIRECTIVES):
                raise TypeError("_copy and _inherit_from exclude each other")
            del value[directive]
        if not isinstance(path, str):
            raise TypeError("the name of an entry is wanted, such as policy_model")
        *above, last = path.split(".")
        holder = _find(self._merged.tree, above)
        if "inherit_from" in directive and isinstance(holder, dict):
            holder.pop(last, None)
        found = deepcopy(_find(self._before, [*above, last]))
        self._note_origins(path, dotted)
        if not isinstance(value, dict):
            return found
        if not isinstance(found, dict):
            raise TypeError(f"{path} is no mapping, so nothing can be added to it")
        merge_into(found, value)
        return found

    def _note_origins(self, source: str, target: str) -> None:
        for name, place in self._origins_before.items():
            if name == source or name.startswith(f"{source}."):
                self._merged.origins.setdefault(f"{target}{name[len(source) :]}", f"{place}, by way of {source}")

    def _complain(self, dotted: str, directive: str, message: str) -> None:
        self._refused.add(dotted)
        key = dotted if directive.startswith("$") else f"{dotted}.{directive}"
        self._problems.append(Problem(self._merged.place_of(key, dotted), key, message))


def _find_directive(value: Any) -> tuple[str | None, Any]:
    """Return the directive that a value holds, or is, and what it names."""
    if isinstance(value, dict):
        return next(((name, value[name]) for name in _DIRECTIVES if name in value), (None, None))
    for word in _DIRECTIVES.values():
        if isinstance(value, str) and value.startswith(f"${{{word}:"):
            return f"${{{word}:...}}", value.removeprefix(f"${{{word}:").removesuffix("}").strip()
    return None, None


def _find(tree: Any, path: list[str]) -> Any:
    found = tree
    for name in path:
        if not isinstance(found, dict) or name not in found:
            raise _NotThere(f"there is no {'.'.join(path)} in the config")
        found = found[name]
        if found == UNSET:
            raise _IsUnset
    return found


def _merge_dummies(tree: dict[str, Any]) -> None:
    """Lay the settings of a `dummy_model` under those of the model that stands beside it."""
    for entry in tree.values():
        models = entry.get(_MODELS) if isinstance(entry, dict) else None
        if isinstance(models, dict) and _DUMMY in models and len(models) > 1:
            dummy = models.pop(_DUMMY)
            actual = next(iter(models))
            if isinstance(dummy, dict) and isinstance(models[actual], dict):
                merge_into(dummy, models[actual])
                models[actual] = dummy
