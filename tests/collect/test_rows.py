"""A row of the input becomes the body of its call, and a line of the output with the row in it as it was."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from openai_gateway.collect.lines import read_lines
from openai_gateway.collect.params import Additions
from openai_gateway.collect.questions import BadRow
from openai_gateway.collect.rows import parse_row, to_line
from openai_gateway.wire.input_tokens import count_input_tokens


def _row(row: dict[str, Any] | bytes, position: int = 0) -> Any:
    return parse_row(row if isinstance(row, bytes) else json.dumps(row).encode(), 1, position)


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
        (b'{"messages": ["a\\ud83d b"]}', r"half of a surrogate pair \(\\ud83d\)"),
        (b'{"messages": [NaN]}', "messages holds NaN"),
        (b'{"messages": [], "temperature": -Infinity}', "temperature holds NaN or Infinity"),
        ({"custom_id": "1", "url": "/v1/embeddings", "body": {"input": "x"}}, "batch line for '/v1/embeddings'"),
        ({"custom_id": "1", "body": "x"}, "body is no JSON object"),
        ({"body": {"messages": []}}, "has none of"),
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
        b'{"id": 12345678901234567890123, "messages": [1.0], "response": 1, "_ng_failure_class": "x", "z": "\\n",'
        b' "_ng_rollout_index": 0}'
    )
    line = to_line(row.to_fields(0), {"response": {"a": 1}, "_ng_task_index": 0})
    assert line == (
        b'{"id":12345678901234567890123,"messages":[1.0],"z":"\\n","response":{"a":1},"_ng_task_index":0}\n'
    )


def test_response_of_the_rows_own_is_kept_under_another_name() -> None:
    row = _row({"messages": [], "response": "gold"})
    assert json.loads(to_line(row.to_fields(0), {"response": {}}))["input_response"] == "gold"
    assert "kept as input_response" in row.notes[0]


def test_nan_in_a_column_that_is_not_sent_becomes_null_and_all_else_stays() -> None:
    row = _row(
        b'{"a": NaN, "b": [-Infinity, "NaN"], "messages": ["NaN \\" Infinity"], "c": 1e400, '
        b'"d": 12345678901234567890123}'
    )
    assert to_line(row.to_fields(0), {}) == (
        b'{"a":null,"b":[null, "NaN"],"messages":["NaN \\" Infinity"],"c":1e400,"d":12345678901234567890123}\n'
    )
    assert row.body == b'{"messages":["NaN \\" Infinity"]}'


@pytest.mark.parametrize(
    ("line", "api"),
    [
        ({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [1]}}, "chat"),
        ({"custom_id": "1", "url": "/v1/responses", "body": {"input": "x"}}, "responses"),
        ({"custom_id": "1", "body": {"messages": [1]}}, "chat"),
        ({"custom_id": "1", "body": {"input": "x"}}, "responses"),
    ],
)
def test_line_for_openais_batch_api_is_sent_as_its_body(line: dict[str, Any], api: str) -> None:
    row = _row(line)
    assert (row.api, json.loads(row.body)) == (api, line["body"])


def test_sampling_parameters_beside_messages_are_sent_and_what_may_be_the_tasks_is_told() -> None:
    params = {"frequency_penalty": 1.0, "logit_bias": {"1": 1}, "verbosity": "low", "service_tier": "flex", "top_k": 3}
    row = _row({"messages": [1], **params, "metadata": {"a": 1}, "user": "u", "label": 7})
    assert json.loads(row.body) == {"messages": [1], **params}
    assert "not sent, as it may be the task's: metadata, user" in row.notes[0]
    assert "the model gpt-4o is named" in _row({"messages": [1], "model": "gpt-4o"}).notes[0]


def test_parameters_of_all_rows_win_and_stand_in_the_line() -> None:
    additions = Additions({"temperature": msgspec.Raw(b"0.0"), "max_output_tokens": msgspec.Raw(b"512")})
    for fields in (
        {"responses_create_params": {"input": "a", "temperature": 1}},
        {"chat_create_params": {"messages": ["a"], "temperature": 1}},
        {"messages": ["a"], "temperature": 1},
    ):
        row = parse_row(json.dumps(fields).encode(), 1, 0, additions)
        assert json.loads(row.body)["temperature"] == 0.0
        assert row.max_output_tokens == 512
        kept = json.loads(to_line(row.to_fields(0), {}))
        assert (kept if row.question == "messages" else kept[row.question])["temperature"] == 0.0
        # The row asks the same whatever is given for all.
        other = parse_row(
            json.dumps(fields).encode(), 1, 0, Additions({**additions.params, "temperature": msgspec.Raw(b"2")})
        )
        assert other.checksum == row.checksum


def test_each_repeat_has_a_seed_where_its_api_takes_one() -> None:
    chat = parse_row(b'{"messages": [1], "seed": 99}', 1, 0, Additions(has_seeds=True))
    assert [json.loads(chat.to_body(repeat))["seed"] for repeat in range(3)] == [0, 1, 2]
    assert json.loads(to_line(chat.to_fields(2), {}))["seed"] == 2
    params = {"input": "a", "metadata": {"k": "v", "extra_body": '{"top_k": 3}'}}
    gym = parse_row(json.dumps({"responses_create_params": params}).encode(), 1, 0, Additions(has_seeds=True))
    metadata = json.loads(gym.to_body(1))["metadata"]
    assert metadata["k"] == "v"
    assert json.loads(metadata["extra_body"]) == {"top_k": 3, "seed": 1}


def test_agent_is_put_into_rows_without_one() -> None:
    additions = Additions(agent="simple_agent")
    assert b'"agent_ref":{"name":"simple_agent"}' in to_line(_row_of({"messages": []}, additions).to_fields(0), {})
    own = {"messages": [], "agent_ref": {"name": "mine"}}
    assert json.loads(to_line(_row_of(own, additions).to_fields(0), {})) == own


def _row_of(fields: dict[str, Any], additions: Additions) -> Any:
    return parse_row(json.dumps(fields).encode(), 1, 0, additions)


@pytest.mark.parametrize(
    ("content", "least", "most"),
    [
        pytest.param([{"type": "input_text", "text": "x" * 4000}], 1000, 1100, id="text"),
        pytest.param(
            [{"type": "input_image", "image_url": "data:image/png;base64," + "A" * 2_000_000}], 1000, 2000, id="image"
        ),
        pytest.param(
            [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}] * 3, 3000, 5000, id="linked images"
        ),
        pytest.param(
            [{"type": "input_file", "file_data": "data:application/pdf;base64," + "A" * 400_000}],
            5000,
            20_000,
            id="file",
        ),
        pytest.param(
            [{"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "wav"}}], 5000, 20_000, id="sound"
        ),
    ],
)
def test_pictures_and_files_are_not_counted_as_text(content: list[Any], least: int, most: int) -> None:
    tokens, at_most = count_input_tokens(json.dumps({"input": [{"role": "user", "content": content}]}).encode())
    assert least < tokens < most
    assert at_most >= tokens


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "gzip"])
def test_byte_order_mark_is_no_part_of_any_line(tmp_path: Path, is_packed: bool) -> None:
    path = tmp_path / ("p.jsonl.gz" if is_packed else "p.jsonl")
    text = b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf\xef\xbb\xbf{"b": 2}\n'
    path.write_bytes(gzip.compress(text) if is_packed else text)
    assert list(read_lines(path)) == [(1, b'{"a": 1}'), (2, b'{"b": 2}')]


def test_gzip_input_that_is_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(OSError, match="broken gzip file"):
        list(read_lines(path))


def test_lines_are_numbered_as_an_editor_does_and_blank_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"b": 2}')
    assert list(read_lines(path)) == [(1, b'{"a": 1}'), (4, b'{"b": 2}')]
