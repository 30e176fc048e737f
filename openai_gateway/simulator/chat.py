"""The simulated answers in the form of the Chat Completions API, whole and as chunks.

See also: answers (what is said), responses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from openai_gateway.simulator.answers import Said


def make_completion(body: Mapping[str, Any], said: Said, number: int) -> dict[str, Any]:
    """Return a chat completion object."""
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None, "annotations": []}
    if said.name is not None:
        message.update(content=None, tool_calls=[_make_tool_call(said, number)])
    return {
        **_frame(body, number, "chat.completion"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _find_finish_reason(said)}],
        "usage": _make_usage(said),
    }


def make_events(body: Mapping[str, Any], said: Said, number: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each event's bytes and whether it is one of the deltas that carry text or arguments."""
    frame = _frame(body, number, "chat.completion.chunk")
    options = body.get("stream_options")
    has_usage = isinstance(options, dict) and options.get("include_usage") is True
    if has_usage:
        frame["usage"] = None

    def chunk(delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _to_event({**frame, "choices": [choice]})

    yield chunk({"role": "assistant", "content": "" if said.name is None else None, "refusal": None}), False
    if said.name is None:
        for piece in said.pieces:
            yield chunk({"content": piece}), True
    else:
        call = _make_tool_call(said, number)
        opening = {**call, "index": 0, "function": {"name": said.name, "arguments": ""}}
        yield chunk({"tool_calls": [opening]}), True
        yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": said.arguments}}]}), True
    yield chunk({}, _find_finish_reason(said)), False
    if has_usage:
        yield _to_event({**frame, "choices": [], "usage": _make_usage(said)}), False
    yield b"data: [DONE]\n\n", False


def _frame(body: Mapping[str, Any], number: int, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-sim{number:012d}",
        "object": kind,
        "created": 1_700_000_000 + number,
        "model": body.get("model"),
        "service_tier": "default",
        "system_fingerprint": "fp_simulator",
    }


def _to_event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _find_finish_reason(said: Said) -> str:
    if said.name is not None:
        return "tool_calls"
    return "length" if said.is_cut else "stop"


def _make_tool_call(said: Said, number: int) -> dict[str, Any]:
    function = {"name": said.name, "arguments": said.arguments}
    return {"id": f"call_sim{number:012d}", "type": "function", "function": function}


def _make_usage(said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": said.input_tokens,
        "completion_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
        "prompt_tokens_details": {"cached_tokens": said.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": said.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
