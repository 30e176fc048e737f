"""How a config key is declared: one line of a dataclass gives its field, check, default, documentation and scope.

    max_queue: int | None = key(Integer(0), None, "calls that may wait for a slot", LIMITS)

A group of keys is only a part of ServerConfig, and has dataclass make no methods: that takes time at each start.

See also: keys (all the declarations), checks (what a value may be), reference (the tables for people).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.config.checks import Check

REQUIRED: Final = dataclasses.MISSING
_METADATA: Final = "key"


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key: `is_shared` if it may stand at the top level, for all servers."""

    check: Check
    default: Any
    meaning: str
    group: str
    is_shared: bool
    shown_default: str

    @property
    def is_required(self) -> bool:
        """Tell whether the key must be given."""
        return self.default is REQUIRED


def key(
    check: Check, default: Any, meaning: str, group: str, *, shared: bool = False, shown_default: str | None = None
) -> Any:
    """Return the dataclass field of a key: null may be given where the default is None or the check takes it.

    `shown_default` is for documentation, where the default itself would mislead.
    """
    if default is None:
        check.allow_none = True
    declared = Key(check, default, meaning, group, shared, shown_default or _to_text(default))
    metadata = {_METADATA: declared}
    if default in ({}, []):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def keys_of(declaring: type) -> Mapping[str, Key]:
    """Return the keys that a dataclass declares, by name, in their order."""
    fields = dataclasses.fields(declaring)
    return {field.name: field.metadata[_METADATA] for field in fields if _METADATA in field.metadata}


def _to_text(default: Any) -> str:
    if default is REQUIRED:
        return "required"
    is_whole = isinstance(default, float) and default.is_integer()
    return json.dumps(int(default) if is_whole else default).strip('"')
