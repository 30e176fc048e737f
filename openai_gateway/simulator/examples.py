"""A value that fits a JSON schema, always the same one: the arguments of a simulated function call.

Knows what function schemas are usually made of, references into `$defs` too; patterns and bounds are not met. See
also: answers (who asks).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_SIMPLE: Final[dict[Any, Any]] = {"string": "example", "integer": 1, "number": 1.5, "boolean": True, "null": None}
_DEEPEST: Final = 8


def make_example(schema: Any) -> Any:
    """Return the example of an object's schema; `{}` of anything else."""
    example = _make_value(schema, schema if isinstance(schema, dict) else {}, 0)
    return example if isinstance(example, dict) else {}


def _make_value(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    schema = _resolve(schema, root)
    if "const" in schema:
        return schema["const"]
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "array":
        return [_make_value(schema.get("items") or {"type": "string"}, root, depth + 1)]
    properties = schema.get("properties")
    if kind == "object" or isinstance(properties, dict):
        inner = properties if isinstance(properties, dict) else {}
        return {name: _make_value(value, root, depth + 1) for name, value in inner.items()}
    return _SIMPLE.get(kind, "example") if isinstance(kind, str) else "example"


def _resolve(schema: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """Follow `$ref`s within `root` and take the first of alternatives; a ring of them ends as it is."""
    for _ in range(_DEEPEST):
        alternatives = next((schema[name] for name in ("anyOf", "oneOf", "allOf") if schema.get(name)), None)
        found: Any = alternatives[0] if isinstance(alternatives, list) else None
        reference = schema.get("$ref")
        if isinstance(reference, str):
            found = root
            for name in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
                found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            return schema
        schema = found
    return schema
