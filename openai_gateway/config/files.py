"""Reads config files, env.yaml and command-line overrides, and merges them as NeMo Gym does, keeping each key's origin.

Interpolations stay as they are for `interpolate`; what the keys mean is `keys`'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from openai_gateway.config.complaints import Problem
from openai_gateway.config.parse import NotYaml, parse

DEFAULT_CONFIG_PATH: Final = "conf/openai_model.yaml"
CONFIG_PATHS_VARIABLE: Final = "OPENAI_GATEWAY_CONFIG_PATHS"
ENV_YAML_VARIABLE: Final = "OPENAI_GATEWAY_ENV_YAML"
OVERRIDES_VARIABLE: Final = "OPENAI_GATEWAY_OVERRIDES"
COMMAND_LINE: Final = "command line"


@dataclass
class Merged:
    """The merged tree, interpolations still in it, and where each dotted key came from."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def place_of(self, *dotted: str) -> str:
        """Return where the first of these keys that is set, or anything below it, came from; "" for none."""
        for wanted in dotted:
            for key, place in self.origins.items():
                if key == wanted or key.startswith(f"{wanted}."):
                    return place
        return ""


def read(environ: Mapping[str, str], overrides: Sequence[str], cwd: Path, problems: list[Problem]) -> Merged:
    """Return everything merged: files < env.yaml < overrides; what is wrong is appended to `problems`.

    Overrides that a command line handed down in OPENAI_GATEWAY_OVERRIDES, a JSON list, come before `overrides`.
    """
    merged = Merged()
    changes = list(_parse_overrides([*_handed_down(environ, problems), *overrides], problems))
    paths = _split(environ.get(CONFIG_PATHS_VARIABLE) or DEFAULT_CONFIG_PATH)
    for given in (value for key, value, _ in changes if key == "config_paths"):
        paths = _to_paths(given, COMMAND_LINE, problems)
    for path in paths:
        _merge_file(merged, path, cwd, [], problems)
    _merge_env_yaml(merged, environ.get(ENV_YAML_VARIABLE), cwd, problems)
    for key, value, is_addition in changes:
        if key != "config_paths":
            _override(merged, key, value, is_addition, problems)
    return merged


def _handed_down(environ: Mapping[str, str], problems: list[Problem]) -> list[str]:
    try:
        given = json.loads(environ.get(OVERRIDES_VARIABLE) or "[]")
    except ValueError:
        given = None
    if isinstance(given, list) and all(isinstance(override, str) for override in given):
        return given
    problems.append(Problem("environment", OVERRIDES_VARIABLE, 'a JSON list such as ["++key=value"] is wanted'))
    return []


def _split(paths: str) -> list[str]:
    return [path.strip() for path in paths.split(",") if path.strip()]


def _merge_file(merged: Merged, path: str, cwd: Path, inside: list[str], problems: list[Problem]) -> None:
    if path in inside:
        problems.append(Problem(path, "config_paths", f"names itself by way of {' > '.join([*inside, path])}"))
        return
    tree = _load(path, cwd, CONFIG_PATHS_VARIABLE, problems)
    # NeMo Gym: the file that names others wins over them.
    for name in _to_paths(tree.pop("config_paths", None), path, problems):
        _merge_file(merged, name, cwd, [*inside, path], problems)
    _merge_tree(merged, tree, path)


def _to_paths(value: Any, place: str, problems: list[Problem]) -> list[str]:
    if isinstance(value, str):
        return _split(value)
    if value is None or (isinstance(value, list) and all(isinstance(path, str) for path in value)):
        return list(value or [])
    problems.append(Problem(place, "config_paths", "a list of paths is wanted"))
    return []


def _merge_env_yaml(merged: Merged, place: str | None, cwd: Path, problems: list[Problem]) -> None:
    if place or (cwd / "env.yaml").exists():
        path = place or "env.yaml"
        _merge_tree(merged, _load(path, cwd, ENV_YAML_VARIABLE, problems), path)


def _load(path: str, cwd: Path, variable: str, problems: list[Problem]) -> dict[str, Any]:
    """Return a file's mapping; `variable` is the one that says where such files are."""
    option = " or --config" if variable == CONFIG_PATHS_VARIABLE else ""
    try:
        tree = parse((cwd / path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(Problem(path, "", f"there is no such file in {cwd}; {variable}{option} says where it is"))
    except NotYaml as error:
        # Only the place: the offending line may hold a key.
        line = f"line {error.line}" if error.line else ""
        problems.append(Problem(path, line, f"is not valid YAML ({error})"))
    except (OSError, ValueError) as error:
        problems.append(Problem(path, "", f"the file can't be read ({type(error).__name__})"))
    else:
        if tree is None or isinstance(tree, dict):
            return tree or {}
        problems.append(Problem(path, "", "a mapping of server names is wanted at the top level"))
    return {}


def _merge_tree(merged: Merged, tree: dict[str, Any], place: str) -> None:
    _merge_into(merged.tree, tree)
    merged.origins.update((key, place) for key in _leaves(tree))


def _merge_into(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        mine = target.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            _merge_into(mine, value)
        else:
            target[key] = deepcopy(value)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{dotted}.")
        else:
            yield dotted


def _parse_overrides(overrides: Sequence[str], problems: list[Problem]) -> Iterator[tuple[str, Any, bool]]:
    for override in overrides:
        name, equals, text = override.partition("=")
        key = name.lstrip("+")
        if not equals or not all(key.split(".")) or len(name) - len(key) > 2:
            shown = name[:60] if equals else "an argument without '='"
            problems.append(Problem(COMMAND_LINE, "", f"'+key=value' or '++key=value' is wanted, not {shown!r}"))
            continue
        try:
            value = parse(text)
        except NotYaml as error:
            problems.append(Problem(COMMAND_LINE, key, f"the value is not valid YAML ({error})"))
            continue
        yield key, value, name.startswith("+")


def _override(merged: Merged, key: str, value: Any, is_addition: bool, problems: list[Problem]) -> None:
    at: Any = merged.tree
    *parents, last = key.split(".")
    for parent in parents:
        if is_addition and not isinstance(at.get(parent), dict):
            at[parent] = {}
        at = at.get(parent)
        if not isinstance(at, dict):
            break
    else:
        if is_addition or last in at:
            _merge_into(at, {last: value})
            merged.origins.update((leaf, COMMAND_LINE) for leaf in _leaves({key: value}))
            return
    problems.append(Problem(COMMAND_LINE, key, f"there is no such key to override; add one with '++{key}=...'"))
