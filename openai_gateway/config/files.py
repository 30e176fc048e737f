"""Reads config files, env.yaml and overrides, and merges them as NeMo Gym does.

Which file wins: one named later over one named earlier, a file over those that it names itself, env.yaml over files,
overrides over all. Interpolations are left as they are. See also: merged_tree (the rules of merging), overrides,
inherit (Gym's directives), interpolate, keys (what the keys mean).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from openai_gateway.config.complaints import Problem
from openai_gateway.config.inherit import carry_out_directives
from openai_gateway.config.merged_tree import UNSET, MergedTree
from openai_gateway.config.overrides import COMMAND_LINE, Override, apply_override, parse_overrides
from openai_gateway.config.parse import NotYaml, parse_yaml

DEFAULT_CONFIG_PATH: Final = "conf/openai_model.yaml"
BUILT_IN: Final = "the built-in openai_model.yaml"
CONFIG_PATHS_VARIABLE: Final = "OPENAI_GATEWAY_CONFIG_PATHS"
ENV_YAML_VARIABLE: Final = "OPENAI_GATEWAY_ENV_YAML"
_PATHS: Final = "config_paths"
# What the built-in config refers to.
_NEEDED: Final = ("policy_base_url", "policy_api_key", "policy_model_name")
_NOTHING_YET: Final = (
    "nothing in {cwd} says which endpoint, key and model to use: 'openai-gateway init' asks for them and writes"
    f" env.yaml; or name config files in {CONFIG_PATHS_VARIABLE} or by --config"
)


def read_sources(
    environ: Mapping[str, str], arguments: Sequence[str], cwd: Path, problems: list[Problem]
) -> MergedTree:
    """Return everything merged, Gym's directives carried out; what is wrong is appended to `problems`.

    Without any file named, and none at the usual place, the built-in one is read.
    """
    overrides = list(parse_overrides(environ, arguments, problems))
    reader = _Reader(cwd, problems)
    env_place, env_tree = reader.read_env_yaml(environ.get(ENV_YAML_VARIABLE))
    merged = MergedTree()
    for place, tree in reader.read_all(_find_paths(environ, overrides, env_tree, env_place, problems)):
        _keep_servers(merged, tree, place, problems)
        merged.merge(tree, place)
    env_tree.pop(_PATHS, None)
    _keep_servers(merged, env_tree, env_place, problems)
    merged.merge(env_tree, env_place)
    for override in overrides:
        if override.key != _PATHS and _keep_servers(merged, {override.key: override.value}, COMMAND_LINE, problems):
            apply_override(merged, override, problems)
    if not problems and reader.is_built_in and not merged.tree.keys() & set(_NEEDED):
        problems.append(Problem("", "", _NOTHING_YET.format(cwd=cwd)))
    merged.is_partial = bool(problems)
    carry_out_directives(merged, problems)
    return merged


def _keep_servers(merged: MergedTree, tree: dict[str, Any], place: str, problems: list[Problem]) -> bool:
    """Take out of a source's tree what would put a text in a server's place, complain, and tell whether there was none.

    As `policy_model: gpt-5-mini` would, meant for policy_model_name.
    """
    wrong = [
        key
        for key, value in tree.items()
        if isinstance(value, str | int | float | list)
        and not str(value).startswith("${")
        and value != UNSET
        and isinstance(entry := merged.tree.get(key), dict)
        and "responses_api_models" in entry
    ]
    for key in wrong:
        del tree[key]
        cure = f"is a server's entry, which a single value can't replace; a model's name belongs to {key}_name"
        problems.append(Problem(place, key, cure))
    return not wrong


def _find_paths(
    environ: Mapping[str, str],
    overrides: Sequence[Override],
    env_tree: Mapping[str, Any],
    env_place: str,
    problems: list[Problem],
) -> list[str] | None:
    """Return the files that are named: by the command line, else the environment, else env.yaml; None if none is."""
    given = [override.value for override in overrides if override.key == _PATHS]
    known = {**env_tree, **{override.key: override.value for override in overrides if "." not in override.key}}
    if given:
        return _read_paths(_resolve(given[-1], known), COMMAND_LINE, problems)
    if environ.get(CONFIG_PATHS_VARIABLE):
        return _split(environ[CONFIG_PATHS_VARIABLE])
    if env_tree.get(_PATHS):
        return _read_paths(_resolve(env_tree[_PATHS], known), env_place, problems)
    return None


class _Reader:
    """Reads files into trees; complaints go to `problems`."""

    def __init__(self, cwd: Path, problems: list[Problem]) -> None:
        self._cwd = cwd
        self._problems = problems
        self.is_built_in = False

    def read_env_yaml(self, place: str | None) -> tuple[str, dict[str, Any]]:
        """Return where env.yaml is and what it holds, nothing if there is none."""
        if not place and not (self._cwd / "env.yaml").exists():
            return "env.yaml", {}
        return place or "env.yaml", self._load(place or "env.yaml", ENV_YAML_VARIABLE)

    def read_all(self, paths: list[str] | None) -> list[tuple[str, dict[str, Any]]]:
        """Return the files' places and trees in the order of merging.

        A file is read once, where it is named first; those that it names come before it.
        """
        if paths is None:
            if not (self._cwd / DEFAULT_CONFIG_PATH).is_file():
                self.is_built_in = True
                return [(BUILT_IN, parse_yaml(read_built_in()))]
            paths = [DEFAULT_CONFIG_PATH]
        trees: list[tuple[str, dict[str, Any]]] = []
        known, named_by, children = list(dict.fromkeys(paths)), dict[str, str](), dict[str, list[str]]()
        for path in known:  # grows as it is gone through
            tree = self._load(path, CONFIG_PATHS_VARIABLE)
            inner = _read_paths(_resolve(tree.pop(_PATHS, None), tree), path, self._problems)
            for name in inner:
                if name in (above := _list_ancestry(path, named_by)):
                    loop = " > ".join([*reversed(above[: above.index(name) + 1]), name])
                    self._problems.append(Problem(name, _PATHS, f"names itself by way of {loop}"))
            children[path] = [name for name in dict.fromkeys(inner) if name not in known]
            named_by.update(dict.fromkeys(children[path], path))
            known += children[path]
            trees.append((path, tree))
        by_path = dict(trees)
        return [(path, by_path[path]) for root in dict.fromkeys(paths) for path in _put_in_order(root, children)]

    def _load(self, path: str, variable: str) -> dict[str, Any]:
        """Return a file's mapping; `variable` is the one that says where such files are."""
        option = " or --config" if variable == CONFIG_PATHS_VARIABLE else ""
        try:
            tree = parse_yaml((self._cwd / path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._complain(path, f"there is no such file in {self._cwd}; {variable}{option} says where it is")
        except NotYaml as error:
            # Only the place: the offending line may hold a key.
            line = f"line {error.line}" if error.line else ""
            self._problems.append(Problem(path, line, f"is not valid YAML ({error})"))
        except (OSError, ValueError) as error:
            self._complain(path, f"the file can't be read ({type(error).__name__})")
        else:
            if tree is None or isinstance(tree, dict):
                return tree or {}
            self._complain(path, "a mapping of server names is wanted at the top level")
        return {}

    def _complain(self, path: str, message: str) -> None:
        self._problems.append(Problem(path, "", message))


def read_built_in() -> str:
    """Return the config that is used where none is named and conf/openai_model.yaml isn't there."""
    return (resources.files("openai_gateway.config") / "openai_model.yaml").read_text(encoding="utf-8")


def _list_ancestry(path: str, named_by: Mapping[str, str]) -> list[str]:
    """Return a file, the one that names it, the one that names that, and so on."""
    above = [path]
    while above[-1] in named_by:
        above.append(named_by[above[-1]])
    return above


def _put_in_order(path: str, children: Mapping[str, list[str]]) -> list[str]:
    return [*(inner for child in children[path] for inner in _put_in_order(child, children)), path]


def _split(paths: str) -> list[str]:
    return [path.strip() for path in paths.split(",") if path.strip()]


def _read_paths(value: Any, place: str, problems: list[Problem]) -> list[str]:
    if isinstance(value, str) and "${" not in value:
        return _split(value)
    if value is None or (isinstance(value, list) and all(isinstance(path, str) for path in value)):
        return list(value or [])
    wanted = f"{value} can't be resolved" if isinstance(value, str) else "a list of paths is wanted"
    problems.append(Problem(place, _PATHS, wanted))
    return []


def _resolve(value: Any, tree: Mapping[str, Any]) -> Any:
    """Return the value with the interpolations in it resolved in a tree; as it is if they can't be."""
    if "${" not in str(value):
        return value
    # Imported where it is needed: see plain_values.
    from openai_gateway.config.interpolate import resolve_entry

    return resolve_entry({**tree, _PATHS: value}, _PATHS)
