"""Captured exchanges: NeMo Gym's fields, whole answers made of streams, and what is said of those that broke."""

from __future__ import annotations

import bisect
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.accounting.capture import Captures, to_exchange
from openai_gateway.accounting.streams import to_whole_answer
from tests.support.records import to_record

REQUEST = b'{"input": "x"}'


def _stream(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def _chunk(delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": delta, **choice}]}


def test_chat_stream_becomes_a_completion() -> None:
    def call(**piece: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, **piece}]}

    whole = to_whole_answer(
        _stream(
            _chunk({"role": "assistant", "content": ""}),
            _chunk({"content": "Hel"}),
            _chunk({"content": "lo", "reasoning_content": "hm"}),
            _chunk(call(id="t1", type="function", function={"name": "f", "arguments": ""})),
            _chunk(call(function={"arguments": '{"a"'})),
            _chunk(call(function={"arguments": ": 1}"})),
            _chunk({}, finish_reason="tool_calls"),
            {"id": "c1", "model": "m", "choices": [], "usage": {"prompt_tokens": 1}},
        ),
        "chat",
    )
    tool_call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}, "id": "t1"}
    message = {"role": "assistant", "content": "Hello", "reasoning_content": "hm", "tool_calls": [tool_call]}
    assert whole == {
        "object": "chat.completion",
        "id": "c1",
        "model": "m",
        "usage": {"prompt_tokens": 1},
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
    }


def test_responses_stream_becomes_its_last_response() -> None:
    events = [{"type": "response.created", "response": {"id": "r", "status": "in_progress"}}, {"type": "x"}]
    done = {"type": "response.completed", "response": {"id": "r", "status": "completed"}}
    assert to_whole_answer(_stream(*events, done), "responses") == {"id": "r", "status": "completed"}


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_stream_without_anything_is_no_answer(api: str) -> None:
    assert to_whole_answer(b": comment\n\ndata: {broken\n\ndata: [1]\n\n", api) is None


@pytest.mark.parametrize(
    ("changes", "answer", "category"),
    [
        pytest.param({}, b'{"status": "completed"}', None, id="well"),
        pytest.param({"status": 429}, b"{}", "rate_limit", id="429"),
        pytest.param({"status": 401}, b"{}", "auth", id="401"),
        pytest.param({"status": 404}, b"{}", "not_found", id="404"),
        pytest.param({"status": 422}, b"{}", "client_error", id="another 4xx"),
        pytest.param({"status": 504, "outcome": "failed"}, b"", "timeout", id="504"),
        pytest.param({"status": 503}, b"", "upstream_error", id="another 5xx"),
        pytest.param({"outcome": "client_gone", "status": None}, b"", "cancelled", id="client gone"),
        pytest.param({"outcome": "failed"}, b"{}", "stream_truncated", id="broken stream"),
        pytest.param({}, b"<html>", "capture_parse_error", id="no JSON"),
        pytest.param({}, b'{"status": "incomplete"}', "incomplete", id="incomplete"),
        pytest.param({}, b'{"status": "failed"}', "upstream_error", id="failed response"),
    ],
)
def test_error_category(changes: dict[str, Any], answer: bytes, category: str | None) -> None:
    assert to_exchange(to_record(**changes), REQUEST, answer, is_stream=False)["error_category"] == category


def test_exchange_has_nemo_gyms_fields() -> None:
    exchange = to_exchange(to_record(), REQUEST, b'{"id": "r"}', is_stream=False)
    assert list(exchange) == [
        "model_call_id", "dialect", "model_ref", "started_at", "completed_at", "latency_ms", "latency_ttft_ms",
        "status_code", "error_category", "request", "response",
    ]  # fmt: skip
    assert (exchange["latency_ms"], exchange["latency_ttft_ms"]) == (1000.0, 500.0)
    assert exchange["completed_at"] - exchange["started_at"] == 1.0


def test_too_long_answer_and_odd_request_are_told(tmp_path: Any) -> None:
    Captures(str(tmp_path / "new")).record(to_record(rollout_id="a"), b"[1]", None, is_stream=True)
    (line,) = (tmp_path / "new" / "a.capture.jsonl").read_text().splitlines()
    exchange = json.loads(line)
    assert (exchange["request"], exchange["request_raw"]) == (None, "[1]")
    assert (exchange["response"], exchange["error_category"]) == (None, "capture_parse_error")


def test_folder_that_cant_be_written_costs_a_warning(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    Captures(str(tmp_path / "file")).record(to_record(rollout_id="a"), REQUEST, b"{}", is_stream=False)
    assert f"not captured in {tmp_path / 'file' / 'a.capture.jsonl'}" in caplog.text


def test_full_disk_costs_the_line_and_no_other(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    captures, path = Captures(str(tmp_path)), tmp_path / "a.capture.jsonl"
    captures.record(to_record(rollout_id="a"), REQUEST, b"{}", is_stream=False)
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
    try:
        captures.record(to_record(rollout_id="a"), REQUEST, b"{}", is_stream=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    assert "not captured" in caplog.text
    captures.record(to_record(rollout_id="a"), REQUEST, b"{}", is_stream=False)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2


def _is_read(depth: int) -> bool:
    return to_exchange(to_record(), _nest(depth), None, is_stream=False)["request"] is not None


def _nest(depth: int) -> bytes:
    return b'{"input": ' + b"[" * depth + b"]" * depth + b"}"


def test_exchange_nested_as_deeply_as_can_be_read_is_kept(tmp_path: Path) -> None:
    # Reading and writing reach their ends a few levels apart, and each version of Python elsewhere.
    last = bisect.bisect_left(range(1_000_000), True, key=lambda depth: not _is_read(depth)) - 1
    for depth in range(last - 5, last + 25):
        Captures(str(tmp_path)).record(to_record(rollout_id="r"), _nest(depth), _nest(depth), is_stream=False)
        line = json.loads((tmp_path / "r.capture.jsonl").read_bytes().splitlines()[-1])
        assert line["request_raw" if line["request"] is None else "request"]
        assert line["response_raw" if line["response"] is None else "response"]
