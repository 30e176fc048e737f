"""A tree without interpolations has the values and complaints that OmegaConf would give it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from openai_gateway.config.complaints import Problem
from openai_gateway.config.interpolate import Interpolation
from openai_gateway.config.merged_tree import UNRESOLVED, MergedTree
from openai_gateway.config.plain_values import PlainValues

_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="$"), max_size=8)
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS | st.just("???")
_VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3))


def _look_at(values: Any, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, Any], list[Problem]]:
    return values.resolve(["policy", "inner"]), values.resolve_shared(["shared", "absent"]), problems


@given(st.dictionaries(_TEXTS, _VALUES, max_size=4), _VALUES)
def test_values_and_complaints_are_those_of_omegaconf(server: dict[str, Any], shared: Any) -> None:
    merged = MergedTree({"policy": {"inner": server}, "shared": shared}, {"policy.inner": "a.yaml"})
    theirs, ours = list[Problem](), list[Problem]()
    expected = _look_at(Interpolation(merged, {}, theirs), theirs)
    assert _look_at(PlainValues(merged, ours), ours) == expected


def test_value_that_holds_an_unset_one_is_none() -> None:
    problems: list[Problem] = []
    values = PlainValues(MergedTree({"policy": {"a": {"b": ["x", "???"]}, "c": "???"}}), problems)
    assert values.resolve(["policy"]) == {"a": UNRESOLVED, "c": "???"}
    assert [problem.key for problem in problems] == ["policy.a.b[1]"]
