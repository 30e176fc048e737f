"""An output's settings are kept beside it, and other ones noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from openai_gateway.collect.collection_settings import (
    CollectionSettings,
    add_run,
    find_differences,
    read_settings,
    write_settings,
)
from openai_gateway.collect.entries import JournalError

BEFORE = CollectionSettings(model="a", params={"temperature": 1}, extra_body={"responses": {"top_p": 1}, "chat": {}})


@pytest.mark.parametrize(
    ("now", "differences"),
    [
        (BEFORE, []),
        (CollectionSettings(model="a", params={"temperature": 1}, rows=7, repeats=3), []),
        (CollectionSettings(model="b", params={"temperature": 1}), ["model b instead of a"]),
        (CollectionSettings(model="a", params={"temperature": 1.5}), ["another temperature"]),
        (CollectionSettings(model="a", params={"n": 1}), ["n set", "temperature not set"]),
        (CollectionSettings(model="a", params={"temperature": 1}, has_seeds=True), ["with a seed for each repeat"]),
        (
            CollectionSettings(
                model="a", params={"temperature": 1}, extra_body={"responses": {"top_p": 0.5}, "chat": {"n": 2}}
            ),
            ["extra_body's n set", "another extra_body's top_p"],
        ),
    ],
    ids=["none", "a running gateway's are not known", "model", "parameter", "parameters", "seeds", "config"],
)
def test_differences_are_named(now: CollectionSettings, differences: list[str]) -> None:
    assert find_differences(BEFORE, now) == differences


def test_settings_of_runs_are_kept_once_each(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl.gz"
    assert read_settings(output) == []
    more = CollectionSettings(model="a", params={"temperature": 1}, extra_body=BEFORE.extra_body, rows=9)
    other = CollectionSettings(model="b")
    runs = add_run(add_run(add_run([], BEFORE), other), more)
    assert runs == [other, more]
    write_settings(output, runs)
    assert read_settings(output) == runs
    assert (tmp_path / "o_settings.json").exists()


def test_file_of_somebody_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "o_settings.json").write_text("[]")
    with pytest.raises(JournalError, match="not written by collect"):
        read_settings(tmp_path / "o.jsonl")
