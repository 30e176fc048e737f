"""Reads config files, env.yaml and command-line overrides, and merges them as NeMo Gym does, keeping each key's origin.

What the keys mean is `schema`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from openai_gateway.config.values import Problem

DEFAULT_CONFIG_PATH: Final = "conf/openai_model.yaml"
CONFIG_PATHS_VARIABLE: Final = "OPENAI_GATEWAY_CONFIG_PATHS"
ENV_YAML_VARIABLE: Final = "OPENAI_GATEWAY_ENV_YAML"
COMMAND_LINE: Final = "command line"
UNSET: Final = "???"
UNRESOLVED: Final = object()


@dataclass
class Merged:
    """The merged tree, interpolations still in it, and where each dotted key came from."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key_node.tag != "tag:yaml.org,2002:merge" and repr(key) in seen:
                raise yaml.constructor.ConstructorError(problem=f"the key '{key}' stands here twice",
                                                        problem_mark=key_node.start_mark)  # fmt: skip
            seen.add(repr(key))
        return super().construct_mapping(node, deep)


def read(environ: Mapping[str, str], overrides: Sequence[str], cwd: Path, problems: list[Problem]) -> Merged:
    """Return everything merged: files < env.yaml < overrides; what is wrong is appended to `problems`."""
    merged = Merged()
    changes = list(_parse_overrides(overrides, problems))
    given = next((value for key, value, _ in changes if key == "config_paths"), None)
    paths = given if isinstance(given, list) else _split(environ.get(CONFIG_PATHS_VARIABLE) or DEFAULT_CONFIG_PATH)
    for path in paths:
        _merge_file(merged, str(path), cwd, [], problems)
    _merge_env_yaml(merged, environ.get(ENV_YAML_VARIABLE), cwd, problems)
    for key, value, is_addition in changes:
        if key != "config_paths":
            _override(merged, key, value, is_addition, problems)
    return merged


def _split(paths: str) -> list[str]:
    return [path.strip() for path in paths.split(",") if path.strip()]


def _merge_file(merged: Merged, path: str, cwd: Path, inside: list[str], problems: list[Problem]) -> None:
    if path in inside:
        problems.append(Problem(path, "config_paths", f"names itself by way of {' > '.join([*inside, path])}"))
        return
    tree = _load(path, cwd, problems)
    nested = tree.pop("config_paths", [])
    if isinstance(nested, str):
        nested = [nested]
    if isinstance(nested, list) and all(isinstance(name, str) for name in nested):
        # NeMo Gym: the file that names others wins over them.
        for name in nested:
            _merge_file(merged, name, cwd, [*inside, path], problems)
    else:
        problems.append(Problem(path, "config_paths", "a list of paths is wanted"))
    _merge_tree(merged, tree, path)


def _merge_env_yaml(merged: Merged, place: str | None, cwd: Path, problems: list[Problem]) -> None:
    if place or (cwd / "env.yaml").exists():
        path = place or "env.yaml"
        _merge_tree(merged, _load(path, cwd, problems), path)


def _load(path: str, cwd: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        text = (cwd / path).read_text(encoding="utf-8")
        tree = yaml.load(text, Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        problems.append(
            Problem(path, "", f"there is no such file in {cwd}; name your files in {CONFIG_PATHS_VARIABLE}")
        )
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(path, "", f"the file can't be read ({type(error).__name__})"))
    except yaml.MarkedYAMLError as error:
        # Only the place: the offending line may hold a key.
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problems.append(Problem(path, line, f"is not valid YAML ({error.problem})"))
    except yaml.YAMLError:
        problems.append(Problem(path, "", "is not valid YAML"))
    else:
        if tree is None or isinstance(tree, dict):
            return {str(key): value for key, value in (tree or {}).items()}
        problems.append(Problem(path, "", "a mapping of server names is wanted at the top level"))
    return {}


def _merge_tree(merged: Merged, tree: dict[str, Any], place: str) -> None:
    _merge_into(merged.tree, tree)
    merged.origins.update((key, place) for key in _leaves(tree))


def _merge_into(target: dict[str, Any], source: Mapping[Any, Any]) -> None:
    for key, value in source.items():
        mine = target.get(str(key))
        if isinstance(mine, dict) and isinstance(value, dict):
            _merge_into(mine, value)
        else:
            target[str(key)] = _copy(value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
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
        if not equals or not key or len(name) - len(key) > 2:
            shown = name[:60] if equals else "an argument without '='"
            problems.append(Problem(COMMAND_LINE, "", f"'+key=value' or '++key=value' is wanted, not {shown!r}"))
            continue
        try:
            value = yaml.load(text, Loader=_UniqueKeyLoader)
        except yaml.YAMLError:
            problems.append(Problem(COMMAND_LINE, key, "the value is not valid YAML"))
            continue
        yield key, value, name.startswith("+")


def _override(merged: Merged, key: str, value: Any, is_addition: bool, problems: list[Problem]) -> None:
    at = merged.tree
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(at.get(parent), dict):
            at[parent] = {}
            if not is_addition:
                break
        at = at[parent]
    else:
        if is_addition or last in at:
            _merge_into(at, {last: value})
            merged.origins[key] = COMMAND_LINE
            return
    problems.append(Problem(COMMAND_LINE, key, f"there is no such key to override; add one with '++{key}=...'"))


def resolve(merged: Merged, path: Sequence[str], environ: Mapping[str, str], problems: list[Problem]) -> dict[str, Any]:
    """Return the mapping at `path` with interpolations resolved; UNRESOLVED where that can't be done.

    Only what is asked for is resolved: the other entries of a Gym run's files may need variables that we don't have.
    """
    OmegaConf.register_resolver("oc.env", lambda *name: _from_environ(environ, *name), replace=True)
    try:
        node: Any = OmegaConf.create(merged.tree)
        for name in path:
            node = node[name]
    except OmegaConfBaseException as error:
        problems.append(Problem("", str(getattr(error, "full_key", "") or ""), "the interpolation can't be parsed"))
        return {}
    resolved: dict[str, Any] = {}
    for key in node:
        try:
            value = UNSET if OmegaConf.is_missing(node, key) else node[key]
            resolved[str(key)] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            dotted = ".".join([*path, str(key)])
            problems.append(Problem(_place(merged, dotted), dotted, _to_cure(node, str(key), error)))
            resolved[str(key)] = UNRESOLVED
    return resolved


def _place(merged: Merged, dotted: str) -> str:
    return next((place for key, place in merged.origins.items() if key == dotted or key.startswith(f"{dotted}.")), "")


def _to_cure(node: DictConfig, key: str, error: OmegaConfBaseException) -> str:
    raw = OmegaConf.to_container(node, resolve=False)
    expression = raw.get(key) if isinstance(raw, dict) else None
    if isinstance(expression, str) and expression.startswith("${") and len(expression) < 80:
        return f"{expression} can't be resolved; set it in env.yaml, in a config file or on the command line"
    return f"the interpolation can't be resolved ({type(error).__name__})"


def _from_environ(environ: Mapping[str, str], name: str, *default: Any) -> Any:
    if name in environ:
        return environ[name]
    if default:
        return default[0]
    raise KeyError(f"the environment variable {name} is not set")
