"""The simulated answers in the form of the Responses API, whole and as events.

See also: answers (what is said), chat.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from openai_gateway.simulator.answers import Said

CREATED_AT: Final = 1_700_000_000
_DEFAULTS: Final[dict[str, Any]] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def make_response(body: Mapping[str, Any], said: Said, number: int, status: str | None = None) -> dict[str, Any]:
    """Return a response object; `status` None is the one that follows from what was said."""
    final = "incomplete" if said.is_cut else "completed"
    is_over = status in (None, "completed", "incomplete")
    return {
        "id": f"resp_sim{number:012d}",
        "object": "response",
        "created_at": CREATED_AT + number,
        "status": status or final,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if said.is_cut and is_over else None,
        "model": body.get("model"),
        "output": [_make_item(said, number)] if is_over else [],
        "completed_at": CREATED_AT + number if is_over and not said.is_cut else None,
        "service_tier": "default",
        **{name: default if body.get(name) is None else body[name] for name, default in _DEFAULTS.items()},
        **_make_conversation(body),
        "usage": make_usage(said.input_tokens, said.cached_tokens, said.output_tokens, said.reasoning_tokens)
        if is_over
        else None,
    }


def make_events(body: Mapping[str, Any], said: Said, number: int) -> Iterator[tuple[bytes, bool]]:
    """Yield each event's bytes and whether it is one of the text deltas."""
    item = _make_item(said, number)
    unsaid: dict[str, Any] = {"content": []} if said.name is None else {"arguments": ""}
    opened = {**item, "status": "in_progress", **unsaid}
    started = make_response(body, said, number, "in_progress")
    yield from _numbered(
        [
            ("response.created", {"response": started}),
            ("response.in_progress", {"response": started}),
            ("response.output_item.added", {"output_index": 0, "item": opened}),
            *(_text_events(said, item) if said.name is None else _function_events(said, item)),
            ("response.output_item.done", {"output_index": 0, "item": item}),
            (
                "response.incomplete" if said.is_cut else "response.completed",
                {"response": make_response(body, said, number)},
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


def _make_item(said: Said, number: int) -> dict[str, Any]:
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


def make_usage(input_tokens: int, cached_tokens: int, output_tokens: int, reasoning_tokens: int) -> dict[str, Any]:
    """Return the API's usage object."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": input_tokens + output_tokens,
    }


def _make_conversation(body: Mapping[str, Any]) -> dict[str, Any]:
    given = body.get("conversation")
    return {"conversation": {"id": given} if isinstance(given, str) else given} if given else {}
