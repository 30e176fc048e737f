"""What the simulated model says: deterministic text or a function call, and the tokens it cost.

The form of the two APIs is `responses`' and `chat`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.simulator.settings import Script

_WORDS: Final = (
    "I",
    "am",
    "the",
    "simulator",
    "and",
    "answer",
    "without",
    "a",
    "model",
    "so",
    "nothing",
    "is",
    "paid.",
)
_DEFAULT_WORDS: Final = 16
_CHARACTERS_A_TOKEN: Final = 4
_EXAMPLES: Final[dict[str, Any]] = {"string": "example", "integer": 1, "number": 1.5, "boolean": True, "null": None}


@dataclass(frozen=True)
class Said:
    """What was said: text in `pieces`, or a call of function `name`; `is_cut` if the token limit ended it."""

    pieces: tuple[str, ...]
    name: str | None
    arguments: str
    is_cut: bool
    input_tokens: int
    cached_tokens: int

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)

    @property
    def output_tokens(self) -> int:
        """One a word or piece of arguments."""
        return len(self.pieces) if self.name is None else max(1, len(self.arguments) // _CHARACTERS_A_TOKEN)


def say(body: Mapping[str, Any], script: Script) -> Said:
    """Return the answer to a request body of either API."""
    asked = body.get("input", body.get("messages", ""))
    items = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    prompt = json.dumps(asked, ensure_ascii=False)
    input_tokens = max(1, len(prompt) // _CHARACTERS_A_TOKEN)
    cached_tokens = input_tokens // 2 if input_tokens >= 1024 else 0
    tool = _chosen_tool(body, items)
    if tool is not None:
        arguments = json.dumps(_example(tool.get("parameters") or {}))
        return Said((), str(tool.get("name")), arguments, False, input_tokens, cached_tokens)
    words = [f"You said: {_last_text(items)[:200]}.", *(_WORDS[index % len(_WORDS)] for index in range(_DEFAULT_WORDS))]
    if script.events:
        words = [words[0], *(f"token{index}" for index in range(1, script.events))][: script.events]
    limit = body.get("max_output_tokens") or body.get("max_completion_tokens") or body.get("max_tokens")
    is_cut = isinstance(limit, int) and limit < len(words)
    words = words[:limit] if is_cut else words
    pieces = tuple(word if index == 0 else f" {word}" for index, word in enumerate(words))
    return Said(pieces, None, "", is_cut, input_tokens, cached_tokens)


def _last_text(items: list[Any]) -> str:
    for item in reversed(items):
        if isinstance(item, dict) and item.get("role") == "user":
            content = item.get("content")
            if isinstance(content, list):
                return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
            return str(content)
    return ""


def _chosen_tool(body: Mapping[str, Any], items: list[Any]) -> Mapping[str, Any] | None:
    """Return the function to call: the one named in `tool_choice`, else the first; none after a tool's result."""
    tools = body.get("tools")
    choice = body.get("tool_choice")
    last = items[-1] if items else None
    is_after_result = isinstance(last, dict) and (
        last.get("type") == "function_call_output" or last.get("role") == "tool"
    )
    if not isinstance(tools, list) or choice == "none" or is_after_result:
        return None
    functions = [
        tool.get("function", tool) for tool in tools if isinstance(tool, dict) and tool.get("type") == "function"
    ]
    wanted = choice.get("name") or (choice.get("function") or {}).get("name") if isinstance(choice, dict) else None
    return next((function for function in functions if wanted in (None, function.get("name"))), None)


def _example(schema: Mapping[str, Any]) -> Any:
    """Return a value that fits a JSON schema's simple parts."""
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: _example(inner) for name, inner in properties.items()}
    if kind == "array":
        return [_example(schema.get("items") or {"type": "string"})]
    return _EXAMPLES.get(kind, "example")
