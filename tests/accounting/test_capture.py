"""Captured exchanges: NeMo Gym's fields, whole answers made of streams, and what is said of those that broke."""

from __future__ import annotations

import bisect
import fcntl
import json
import os
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest

from openai_gateway.accounting.capture import Captures, make_exchange
from openai_gateway.accounting.streams import assemble_answer
from openai_gateway.wire.call import CallRecord
from tests.support.records import to_record

REQUEST = b'{"input": "x"}'


def _capture(folder: Path, record: CallRecord, request: bytes, answer: bytes | None, *, is_stream: bool) -> None:
    captures = Captures(str(folder))
    captures.append(record.rollout_id or "", captures.to_line(record, request, answer, is_stream=is_stream))


def _whole(stream: bytes, api: str) -> Any:
    found = assemble_answer(stream, api)
    return None if found is None else json.loads(found)


def _stream(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def _chunk(delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": delta, **choice}]}


def test_chat_stream_becomes_a_completion() -> None:
    def call(**piece: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, **piece}]}

    whole = _whole(
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
    assert _whole(_stream(*events, done), "responses") == {"id": "r", "status": "completed"}


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_stream_without_anything_is_no_answer(api: str) -> None:
    assert _whole(b": comment\n\ndata: {broken\n\ndata: [1]\n\n", api) is None


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
    assert make_exchange(to_record(**changes), REQUEST, answer, is_stream=False)["error_category"] == category


def test_exchange_has_nemo_gyms_fields() -> None:
    exchange = make_exchange(to_record(), REQUEST, b'{"id": "r"}', is_stream=False)
    assert list(exchange) == [
        "model_call_id", "dialect", "model_ref", "started_at", "completed_at", "latency_ms", "latency_ttft_ms",
        "status_code", "error_category", "request", "response",
    ]  # fmt: skip
    assert (exchange["latency_ms"], exchange["latency_ttft_ms"]) == (1000.0, 500.0)
    assert exchange["completed_at"] - exchange["started_at"] == 1.0


def test_too_long_answer_and_odd_request_are_told(tmp_path: Any) -> None:
    _capture(tmp_path / "new", to_record(rollout_id="a"), b"[1]", None, is_stream=True)
    (line,) = (tmp_path / "new" / "a.capture.jsonl").read_text().splitlines()
    exchange = json.loads(line)
    assert (exchange["request"], exchange["request_raw"]) == (None, "[1]")
    assert (exchange["response"], exchange["error_category"]) == (None, "capture_parse_error")


def test_body_goes_in_as_it_is_written_but_for_its_line_ends(tmp_path: Path) -> None:
    body = b'\n{"input": "x\\n",\r\n  "n": 1.50, "half": "\\ud83d"}\n'
    _capture(tmp_path, to_record(rollout_id="a"), body, body, is_stream=False)
    (line,) = (tmp_path / "a.capture.jsonl").read_bytes().splitlines()
    assert json.loads(line)["request"] == json.loads(line)["response"] == json.loads(body)
    plain = body.replace(b"\\ud83d", b"")
    _capture(tmp_path, to_record(rollout_id="b"), plain, plain, is_stream=False)
    (line,) = (tmp_path / "b.capture.jsonl").read_bytes().splitlines()
    assert b'"n": 1.50' in line


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"a": "\xff"}', b'{"a"', b'"\\ud83d"', b"[" * 100_000])
def test_body_that_is_no_object_is_kept_as_text(tmp_path: Path, body: bytes) -> None:
    _capture(tmp_path, to_record(rollout_id="a"), body, body, is_stream=False)
    exchange = json.loads((tmp_path / "a.capture.jsonl").read_bytes())
    assert (exchange["request"], exchange["response"]) == (None, None)
    assert exchange["request_raw"] == body.decode(errors="replace")


def test_large_body_is_captured_without_making_objects_of_it(tmp_path: Path) -> None:
    body = b'{"x": [' + b",".join([b"{}"] * 500_000) + b"]}"
    tracemalloc.start()
    try:
        _capture(tmp_path, to_record(rollout_id="a"), body, b"{}", is_stream=False)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 6 * len(body)
    assert len(json.loads((tmp_path / "a.capture.jsonl").read_bytes())["request"]["x"]) == 500_000


def test_what_vllm_adds_to_a_chat_stream_is_in_the_completion() -> None:
    def logprobs(token: str) -> dict[str, Any]:
        return {"content": [{"token": token, "logprob": -0.5, "top_logprobs": []}], "refusal": None}

    whole = _whole(
        _stream(
            {**_chunk({"role": "assistant"}, logprobs=None, token_ids=None), "prompt_token_ids": [1, 2]},
            _chunk({"content": "a"}, logprobs=logprobs("a"), token_ids=[5]),
            _chunk({"content": "b"}, logprobs=logprobs("b"), token_ids=[6, 7], finish_reason="stop", stop_reason=9),
        ),
        "chat",
    )
    (choice,) = whole["choices"]
    assert whole["prompt_token_ids"] == [1, 2]
    assert (choice["token_ids"], choice["stop_reason"], choice["message"]["content"]) == ([5, 6, 7], 9, "ab")
    assert [piece["token"] for piece in choice["logprobs"]["content"]] == ["a", "b"]


def test_folder_that_cant_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="File exists"):
        Captures(str(tmp_path / "file")).append("a", b"{}\n")


@pytest.mark.parametrize("is_read", [False, True])
def test_fifo_in_a_files_place_is_an_error_at_once(tmp_path: Path, *, is_read: bool) -> None:
    path = tmp_path / "a.capture.jsonl"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if is_read else None
    with pytest.raises(OSError, match=r"no regular file|No such device"):
        Captures(str(tmp_path)).append("a", b"{}\n")
    if reader is not None:
        os.close(reader)


def test_locked_file_is_to_be_tried_again(tmp_path: Path) -> None:
    captures = Captures(str(tmp_path))
    captures.append("a", b"1\n")
    with (tmp_path / "a.capture.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            captures.append("a", b"2\n")
    captures.append("a", b"2\n")
    assert (tmp_path / "a.capture.jsonl").read_bytes() == b"1\n2\n"


def test_call_that_is_missing_is_marked_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    captures = Captures(str(tmp_path))
    captures.count_lost("a", "the disk is full")
    captures.mark_incomplete("a")
    captures.mark_incomplete("a")
    assert (tmp_path / "a.capture.incomplete").read_bytes() == b""
    assert captures.lost == 1
    assert f"a call was not captured in {tmp_path / 'a.capture.jsonl'}: the disk is full" in caplog.text


def test_full_disk_costs_the_line_and_no_other(tmp_path: Path) -> None:
    captures, path = Captures(str(tmp_path)), tmp_path / "a.capture.jsonl"
    line = b'{"x": "%b"}\n' % (b"x" * 100)
    captures.append("a", line)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="space"):
            captures.append("a", line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == line
    captures.append("a", line)
    assert path.read_bytes() == line * 2


def _is_read(depth: int) -> bool:
    return make_exchange(to_record(), _nest(depth), None, is_stream=False)["request"] is not None


def _nest(depth: int) -> bytes:
    return b'{"input": ' + b"[" * depth + b"]" * depth + b"}"


def test_exchange_nested_as_deeply_as_can_be_read_is_kept(tmp_path: Path) -> None:
    # Reading and writing reach their ends a few levels apart, and each version of Python elsewhere.
    last = bisect.bisect_left(range(1_000_000), True, key=lambda depth: not _is_read(depth)) - 1
    for depth in range(last - 5, last + 25):
        _capture(tmp_path, to_record(rollout_id="r"), _nest(depth), _nest(depth), is_stream=False)
        text = (tmp_path / "r.capture.jsonl").read_bytes().splitlines()[-1]
        line = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        for name in ("request", "response"):
            assert bytes(line[f"{name}_raw" if bytes(line[name]) == b"null" else name]) != b"null"
