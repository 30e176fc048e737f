"""The simulated answers in the form of the Responses API, whole and as events.

What is said is `answers`'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from openai_gateway.simulator.answers import Said

_ECHOED: Final = (
    "instructions", "metadata", "temperature", "top_p", "max_output_tokens", "previous_response_id", "conversation",
    "tools", "tool_choice", "parallel_tool_calls", "reasoning", "text", "truncation", "user", "background", "store",
)  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {
    "instructions": None,
    "metadata": {},
    "temperature": 1.0,
    "top_p": 1.0,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}


def to_response(body: Mapping[str, Any], said: Said, number: int, status: str | None = None) -> dict[str, Any]:
    """Return a response object; `status` None is the one that follows from what was said."""
    final = "incomplete" if said.is_cut else "completed"
    is_over = status in (None, "completed", "incomplete")
    return {
        "id": f"resp_sim{number:012d}",
        "object": "response",
        "created_at": 1_700_000_000 + number,
        "status": status or final,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if said.is_cut and is_over else None,
        "model": body.get("model"),
        "output": [_to_item(said, number)] if is_over else [],
        "service_tier": "default",
        **_DEFAULTS,
        **{name: body[name] for name in _ECHOED if body.get(name) is not None},
        "usage": _to_usage(said) if is_over else None,
    }


def to_events(body: Mapping[str, Any], said: Said, number: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each event's bytes and whether it is one of the text deltas."""
    item = _to_item(said, number)
    unsaid: dict[str, Any] = {"content": []} if said.name is None else {"arguments": ""}
    opened = {**item, "status": "in_progress", **unsaid}
    started = to_response(body, said, number, "in_progress")
    yield from _numbered(
        [
            ("response.created", {"response": started}),
            ("response.in_progress", {"response": started}),
            ("response.output_item.added", {"output_index": 0, "item": opened}),
            *(_text_events(said, item) if said.name is None else _function_events(said, item)),
            ("response.output_item.done", {"output_index": 0, "item": item}),
            (
                "response.incomplete" if said.is_cut else "response.completed",
                {"response": to_response(body, said, number)},
            ),
        ]
    )


def _text_events(said: Said, item: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    at = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = item["content"][0]
    return [
        ("response.content_part.added", {**at, "part": {**part, "text": ""}}),
        *(("response.output_text.delta", {**at, "delta": piece, "logprobs": []}) for piece in said.pieces),
        ("response.output_text.done", {**at, "text": said.text, "logprobs": []}),
        ("response.content_part.done", {**at, "part": part}),
    ]


def _function_events(said: Said, item: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    at = {"item_id": item["id"], "output_index": 0}
    halves = said.arguments[: len(said.arguments) // 2], said.arguments[len(said.arguments) // 2 :]
    done = {**at, "name": said.name, "arguments": said.arguments}
    return [
        *(("response.function_call_arguments.delta", {**at, "delta": half}) for half in halves),
        ("response.function_call_arguments.done", done),
    ]


def _numbered(events: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[bytes, bool]]:
    for number, (name, fields) in enumerate(events):
        data = json.dumps({"type": name, "sequence_number": number, **fields})
        yield f"event: {name}\ndata: {data}\n\n".encode(), name.endswith(".delta")


def _to_item(said: Said, number: int) -> dict[str, Any]:
    if said.name is not None:
        return {
            "id": f"fc_sim{number:012d}",
            "type": "function_call",
            "status": "completed",
            "call_id": f"call_sim{number:012d}",
            "name": said.name,
            "arguments": said.arguments,
        }
    return {
        "id": f"msg_sim{number:012d}",
        "type": "message",
        "status": "incomplete" if said.is_cut else "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}],
    }


def _to_usage(said: Said) -> dict[str, Any]:
    return {
        "input_tokens": said.input_tokens,
        "input_tokens_details": {"cached_tokens": said.cached_tokens},
        "output_tokens": said.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": said.input_tokens + said.output_tokens,
    }
