"""Makes one answer of a stream's events, as JSON, for captures.

A Responses stream ends with the whole response, which is taken as it is written; of a chat stream the pieces are put
together, with whatever an upstream adds to them (vLLM: `prompt_token_ids`, `token_ids`). Works on a copy: what is
relayed to the client is never touched. See also: capture (who asks), wire.sse.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from openai_gateway.wire.api import Api

# Of these, a later piece takes the place of an earlier one; other texts go on.
_NOT_IN_PIECES: Final = frozenset({"role", "id", "type"})
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Event(msgspec.Struct):
    response: msgspec.Raw = msgspec.Raw(b"")


_event_decoder = msgspec.json.Decoder(_Event)


def assemble_answer(stream: bytes, api: str) -> bytes | None:
    """Return the response or chat completion that a stream came to, None if it did not get so far."""
    return _find_response(stream) if api == Api.RESPONSES else _join_chunks(stream)


def _find_response(stream: bytes) -> bytes | None:
    end = len(stream)
    while end > 0:
        start = stream.rfind(b"\n", 0, end) + 1
        line, end = stream[start:end], start - 1
        if line.startswith(b"data:"):
            try:
                response = bytes(_event_decoder.decode(line[5:]).response)
            except _BROKEN:
                continue
            if response.startswith(b"{"):
                return response
    return None


def _join_chunks(stream: bytes) -> bytes | None:
    whole: dict[str, Any] = {"object": "chat.completion"}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in _read_chunks(stream):
        for piece in chunk.pop("choices", None) or []:
            if isinstance(piece, dict):
                index = piece.pop("index", 0)
                _add_choice(choices.setdefault(index if isinstance(index, int) else 0, _new_choice()), piece)
        whole.update((key, value) for key, value in chunk.items() if value is not None and key != "object")
    if not choices:
        return None
    whole["choices"] = [{"index": index, **_finish_choice(choice)} for index, choice in sorted(choices.items())]
    return msgspec.json.encode(whole)


def _read_chunks(stream: bytes) -> Iterator[dict[str, Any]]:
    # Line by line: a long stream's chunks take 20 times the memory of its bytes.
    start = 0
    while start < len(stream):
        end = stream.find(b"\n", start)
        end = len(stream) if end < 0 else end
        if stream.startswith(b"data:", start):
            try:
                chunk = msgspec.json.decode(stream[start + 5 : end])
            except _BROKEN:
                chunk = None
            if isinstance(chunk, dict):
                yield chunk
        start = end + 1


def _new_choice() -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": None}, "finish_reason": None}


def _add_choice(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    delta = piece.pop("delta", None)
    if isinstance(delta, dict):
        _add(choice["message"], delta)
    for key in ("finish_reason", "stop_reason"):
        value = piece.pop(key, None)
        if value is not None:
            choice[key] = value
    _add(choice, piece)


def _add(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add a piece to what there is: texts and lists go on, objects are added to, the rest is replaced."""
    for key, value in piece.items():
        before = whole.get(key)
        if key == "tool_calls" and isinstance(value, list):
            calls = whole.setdefault(key, {})
            for call in value:
                if isinstance(call, dict):
                    _add(calls.setdefault(call.pop("index", 0), {"type": "function", "function": {}}), call)
        elif isinstance(value, dict):
            if not isinstance(before, dict):
                before = whole[key] = {}
            _add(before, value)
        elif isinstance(value, list) and isinstance(before, list):
            before.extend(value)
        elif isinstance(value, str) and isinstance(before, str) and key not in _NOT_IN_PIECES:
            whole[key] = before + value
        elif (value is not None and value != "") or key not in whole:
            whole[key] = value


def _finish_choice(choice: dict[str, Any]) -> dict[str, Any]:
    calls = choice["message"].get("tool_calls")
    if isinstance(calls, dict):
        choice["message"]["tool_calls"] = [calls[index] for index in sorted(calls, key=str)]
    return choice
