"""What answers and streams report of themselves: token counts, finish reason, model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_gateway.wire.usage import NOTHING, Report, Usage, read_answer, read_stream

CHAT_USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
RESPONSES_USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 4},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}


def _chat(**changes: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    return {"object": "chat.completion", "model": "m-1", "choices": [choice], "usage": CHAT_USAGE, **changes}


def _response(**changes: Any) -> dict[str, Any]:
    return {"object": "response", "model": "m-1", "status": "completed", "usage": RESPONSES_USAGE, **changes}


def _stream(*events: Any, newline: str = "\n") -> bytes:
    lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]
    return "".join(f"{line}{newline}{newline}" for line in lines).encode()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(_chat(), Report(Usage(10, 5, 3, None, 2), "stop", "m-1"), id="chat"),
        pytest.param(
            _chat(service_tier="flex", system_fingerprint="fp"),
            Report(Usage(10, 5, 3, None, 2), "stop", "m-1", "flex", "fp"),
            id="chat with tier and fingerprint",
        ),
        pytest.param(_chat(usage=None), Report(None, "stop", "m-1"), id="chat without usage: unknown, not zero"),
        pytest.param(
            _chat(usage={"prompt_tokens": 1, "completion_tokens": 0, "prompt_tokens_details": None}),
            Report(Usage(1, 0), "stop", "m-1"),
            id="usage without details",
        ),
        pytest.param(_response(), Report(Usage(10, 5, 3, 4, 2), "completed", "m-1"), id="response"),
        pytest.param(
            _response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
            Report(Usage(10, 5, 3, 4, 2), "max_output_tokens", "m-1"),
            id="incomplete response",
        ),
        pytest.param({"object": "list", "data": []}, NOTHING, id="another object"),
        pytest.param([1], NOTHING, id="no object"),
        pytest.param({"usage": {"prompt_tokens": "1", "completion_tokens": 2}}, NOTHING, id="a broken count"),
        pytest.param(
            {"usage": {"prompt_tokens": 5.0, "completion_tokens": 14417.92}},
            Report(Usage(5, 14418)),
            id="counts as numbers with a point",
        ),
        pytest.param(
            {
                "usage": {
                    **CHAT_USAGE,
                    "prompt_tokens_details": {"audio_tokens": 8},
                    "completion_tokens_details": {"audio_tokens": 4},
                }
            },
            Report(Usage(10, 5, None, None, None, 8, 4)),
            id="audio",
        ),
        pytest.param({"model": 5, "usage": CHAT_USAGE}, Report(Usage(10, 5, 3, None, 2)), id="odd model, usage found"),
    ],
)
def test_answer_reports(answer: Any, expected: Report) -> None:
    assert read_answer(json.dumps(answer).encode()) == expected


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b"[" * 5000, b'{"model": "\xff"}'])
def test_what_is_no_json_reports_nothing(body: bytes) -> None:
    assert read_answer(body) == NOTHING


FINISH = {"model": "m-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
USAGE = {"model": "m-1", "choices": [], "usage": CHAT_USAGE}
DELTA = {"model": "m-1", "choices": [{"index": 0, "delta": {"content": '"usage": {"prompt_tokens": 1}'}}]}


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        pytest.param(
            _stream(DELTA, FINISH, USAGE, "data: [DONE]"), Report(Usage(10, 5, 3, None, 2), "length", "m-1"), id="chat"
        ),
        pytest.param(
            _stream(FINISH, USAGE, "data: [DONE]", newline="\r\n"),
            Report(Usage(10, 5, 3, None, 2), "length", "m-1"),
            id="chat with CRLF",
        ),
        pytest.param(
            _stream(DELTA, FINISH, "data: [DONE]"), Report(None, "length", "m-1"), id="chat without include_usage"
        ),
        pytest.param(_stream(DELTA), Report(None, None, "m-1"), id="chat broken off"),
        pytest.param(
            _stream("event: response.completed\ndata: " + json.dumps({"response": _response()})),
            Report(Usage(10, 5, 3, 4, 2), "completed", "m-1"),
            id="responses",
        ),
        pytest.param(
            json.dumps({"response": _response(metadata={"usage": "no"})}).encode()[30:] + b"\n\n",
            Report(Usage(10, 5, 3, 4, 2)),
            id="responses whose last event's beginning is not in the tail",
        ),
        pytest.param(b"event: error\ndata: {}\n\n", NOTHING, id="error event"),
        pytest.param(b"", NOTHING, id="nothing"),
        pytest.param(b'"usage": {"input_tokens": 1, ', NOTHING, id="usage cut off"),
    ],
)
def test_stream_reports_by_its_last_events(tail: bytes, expected: Report) -> None:
    assert read_stream(tail) == expected


@pytest.mark.parametrize("tokens", [-1, 2**53 + 1, 2**64, 10**30])
def test_absurd_token_numbers_are_unknown(tokens: int) -> None:
    usage = {**CHAT_USAGE, "prompt_tokens": tokens}
    assert read_answer(json.dumps(_chat(usage=usage)).encode()).usage is None
    usage = {**CHAT_USAGE, "prompt_tokens_details": {"cached_tokens": tokens}}
    found = read_answer(json.dumps(_chat(usage=usage)).encode()).usage
    assert found is None or (found.input_tokens, found.cached_tokens) == (10, None)
