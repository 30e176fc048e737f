"""A declaration of a key says all there is to say of it, and says it to people, too."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import pytest

from openai_gateway.config import Secret, ServerConfig, checks
from openai_gateway.config.clients import CLIENT_KEYS
from openai_gateway.config.declaration import REQUIRED, Key, key, keys_of
from openai_gateway.config.keys import KEYS, SHARED_KEYS
from openai_gateway.config.reference import put_tables, render_tables

KINDS: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", Secret: "string"}
HINTS = typing.get_type_hints(ServerConfig)


@pytest.mark.parametrize(("name", "declared"), KEYS.items(), ids=KEYS)
def test_annotation_check_and_default_of_a_key_agree(name: str, declared: Key) -> None:
    hint = HINTS[name]
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    assert (type(None) in parts) == bool(declared.check.allow_none)
    assert declared.check.kind == KINDS.get(parts[0], declared.check.kind)
    if declared.default not in (REQUIRED, None, ()):
        given = list(declared.default) if isinstance(declared.default, tuple) else declared.default
        assert declared.check.convert(given) == declared.default


def test_every_field_is_a_key_but_those_that_are_made() -> None:
    assert {field.name for field in dataclasses.fields(ServerConfig)} - set(KEYS) == {"name", "prices"}


def test_scope_is_said_by_each_key_and_not_by_its_place() -> None:
    @dataclasses.dataclass(frozen=True)
    class Two:
        first: bool = key(checks.Boolean(), False, "may stand above", "Group", shared=True)
        second: bool = key(checks.Boolean(), False, "may not", "Group")

    assert [declared.is_shared for declared in keys_of(Two).values()] == [True, False]
    assert {"usage_log", "log_level", "observability_enabled"} <= set(SHARED_KEYS)
    assert not {"openai_base_url", "max_concurrent_requests"} & set(SHARED_KEYS)


def test_tables_hold_every_key_once_with_its_default() -> None:
    rows = [line for line in render_tables().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [*KEYS, *CLIENT_KEYS]
    assert "| `max_retries` | integer | 2 | further attempts of a call that failed; a 429 of a limit is none |" in rows
    assert any(row.startswith("| `usage_log` ¹ | path | null | ") for row in rows)


def test_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no"):
        put_tables("# A page\n")
