"""Makes one answer object of a stream's events, for captures.

A Responses stream ends with the whole response; a chat stream's pieces are put together. Works on a copy: what is
relayed to the client is never touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def to_whole_answer(stream: bytes, api: str) -> dict[str, Any] | None:
    """Return the response or chat completion that a stream came to, None if it did not get so far."""
    events = list(_parse(stream))
    if api == "responses":
        whole = [event["response"] for event in events if isinstance(event.get("response"), dict)]
        return whole[-1] if whole else None
    return _to_completion(events)


def _parse(stream: bytes) -> Iterator[dict[str, Any]]:
    for line in stream.splitlines():
        if line.startswith(b"data:"):
            try:
                event = json.loads(line[5:])
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event


def _to_completion(chunks: list[dict[str, Any]]) -> dict[str, Any] | None:
    choices: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {"object": "chat.completion"}
    for chunk in chunks:
        for key in ("id", "created", "model", "service_tier", "system_fingerprint", "usage"):
            if chunk.get(key) is not None:
                whole[key] = chunk[key]
        for piece in chunk.get("choices") or []:
            _add_piece(choices.setdefault(piece.get("index", 0), _new_choice()), piece)
    if not choices:
        return None
    whole["choices"] = [
        {"index": index, **choice, "message": _to_message(choice["message"])}
        for index, choice in sorted(choices.items())
    ]
    return whole


def _new_choice() -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": None}, "finish_reason": None}


def _add_piece(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    message = choice["message"]
    for key, value in (piece.get("delta") or {}).items():
        if key == "tool_calls":
            calls = message.setdefault("tool_calls", {})
            for call in value or []:
                _add_call(calls.setdefault(call.get("index", 0), {"type": "function", "function": {}}), call)
        elif isinstance(value, str) and key != "role":
            message[key] = (message.get(key) or "") + value
        elif value is not None:
            message[key] = value
    choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]


def _add_call(call: dict[str, Any], piece: dict[str, Any]) -> None:
    call.update({key: value for key, value in piece.items() if key in ("id", "type") and value})
    for key, value in (piece.get("function") or {}).items():
        call["function"][key] = call["function"].get(key, "") + (value or "")


def _to_message(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return message if calls is None else {**message, "tool_calls": [calls[index] for index in sorted(calls)]}
