"""A row of the input becomes the body of its call, and a line of the output with the row in it as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.collect.rows import BadRow, read_lines, to_line, to_row


def _row(row: dict[str, Any] | bytes, position: int = 0) -> Any:
    return to_row(row if isinstance(row, bytes) else json.dumps(row).encode(), 1, position)


@pytest.mark.parametrize(
    ("row", "api", "body"),
    [
        ({"responses_create_params": {"input": "a", "temperature": 1}}, "responses", {"input": "a", "temperature": 1}),
        ({"responses_create_params": {"input": "a"}, "messages": []}, "responses", {"input": "a"}),
        ({"responses_create_params": {}}, "responses", {}),
        ({"chat_create_params": {"messages": [1], "x": 2}}, "chat", {"messages": [1], "x": 2}),
        ({"messages": [1], "tools": [2], "n": 3}, "chat", {"messages": [1], "tools": [2], "n": 3}),
        ({"messages": [1], "user": {"x": 1}, "metadata": {"id": 2}}, "chat", {"messages": [1]}),
        ({"responses_create_params": {"input": "a", "stream": True}}, "responses", {"input": "a"}),
        ({"chat_create_params": {"messages": [], "stream_options": {}}}, "chat", {"messages": []}),
        (
            {"responses_create_params": {"input": "a", "background": False}},
            "responses",
            {"input": "a", "background": 0},
        ),
    ],
)
def test_body_is_what_the_row_asks(row: dict[str, Any], api: str, body: dict[str, Any]) -> None:
    found = _row(row)
    assert (found.api, json.loads(found.body)) == (api, body)


def test_parameters_go_out_byte_for_byte() -> None:
    params = b'{ "input":"\\u00e9 \xc3\xa9", "seed": 12345678901234567890123, "x": 1.0, "y": 1e400 }'
    assert _row(b'{"responses_create_params": ' + params + b"}").body == params


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"[1]", "no JSON object"),
        (b'{"a": 1', "no JSON object"),
        (b'{"messages": ["\xff"]}', "UTF-8"),
        (b'{"messages": ["\\ud83d b"]}', "half of a surrogate pair"),
        (b'{"messages": ["\\ud83d", }', "no JSON object"),
        (b'{"messages": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", "nested too deeply"),
        ({"prompt": "x"}, "has none of"),
        ({"responses_create_params": "x"}, "responses_create_params is no JSON object"),
        ({"chat_create_params": None}, "chat_create_params is no JSON object"),
        ({"responses_create_params": {"background": True}}, "background"),
        ({"messages": [], "_ng_task_index": -1}, "_ng_task_index"),
        ({"messages": [], "_ng_task_index": 2**60}, "_ng_task_index"),
        ({"messages": [], "_ng_rollout_index": "a"}, "_ng_rollout_index"),
    ],
)
def test_row_that_cant_be_sent_says_why(row: dict[str, Any] | bytes, said: str) -> None:
    with pytest.raises(BadRow, match=said):
        _row(row)


def test_task_index_is_the_position_unless_the_row_brings_its_own() -> None:
    assert _row({"messages": []}, position=7).task_index == 7
    given = _row({"messages": [], "_ng_task_index": 3, "_ng_rollout_index": 2}, position=7)
    assert (given.task_index, given.first_rollout) == (3, 2)


@pytest.mark.parametrize(
    ("params", "bound"),
    [
        ({"max_output_tokens": 5}, 5),
        ({"max_completion_tokens": 6, "n": 2}, 12),
        ({"max_tokens": 7}, 7),
        ({"max_output_tokens": None}, None),
        ({}, None),
    ],
)
def test_bound_of_the_answer_is_found(params: dict[str, Any], bound: int | None) -> None:
    assert _row({"chat_create_params": params}).max_output_tokens == bound


def test_line_keeps_the_row_and_drops_what_an_earlier_run_added() -> None:
    row = _row(
        b'{"id": 12345678901234567890123, "messages": [1.0], "response": 1, "_ng_failure_class": "x", "z": "\\n"}'
    )
    line = to_line(row, {"response": {"a": 1}, "_ng_task_index": 0})
    assert line == (
        b'{"id":12345678901234567890123,"messages":[1.0],"z":"\\n","response":{"a":1},"_ng_task_index":0}\n'
    )


def test_lines_are_numbered_as_an_editor_does_and_blank_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"b": 2}')
    assert list(read_lines(path)) == [(1, b'{"a": 1}'), (4, b'{"b": 2}')]
