"""Turns YAML text into plain values, by the rules OmegaConf reads files with; no message repeats what the text says.

See also: files (where text comes from).
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import yaml

_PREFIX: Final = "tag:yaml.org,2002:"
_NOT_JSON: Final = frozenset(_PREFIX + name for name in ("timestamp", "binary", "set", "omap", "pairs"))
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


class NotYaml(Exception):
    """The text can't be used; `line` counts from 1 and is None where that isn't known."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice; reads 1e-3 as a number, a date as text, and nothing that JSON has no form for."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in resolvers if tag not in (_PREFIX + "float", _PREFIX + "timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar[Any] = {
        tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag not in _NOT_JSON
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _PREFIX + "merge":
                continue
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} stands here twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(_PREFIX + "float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str) -> Any:
    """Return null, booleans, numbers, strings, lists or mappings with string keys, as the text says. Raises NotYaml."""
    try:
        return _to_plain(yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        # A key that begins with * or ! or & is read as an alias, a tag, an anchor: its name is left out.
        reason = re.sub(r"\b(alias|anchor|tag handle|tag) .*", r"\1; put the value in quotes", str(error.problem))
        raise NotYaml(reason, error.problem_mark.line + 1 if error.problem_mark else None) from None
    except RecursionError:
        raise NotYaml("it is nested too deeply, or holds itself") from None
    except (yaml.YAMLError, ValueError, KeyError):
        raise NotYaml("a character or value in it can't be read") from None


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _to_plain(inner) for key, inner in value.items()}
    return [_to_plain(inner) for inner in value] if isinstance(value, list) else value
