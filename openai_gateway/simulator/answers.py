"""What the simulated model says: deterministic text or a function call, and the tokens it cost.

Tokens: a fourth of the characters of the input's JSON (with instructions and tools), half of them cached from 1,024
on; one for each word of a text; a fourth of the characters of a function call's arguments; and for a reasoning effort
the number in EFFORT_TOKENS. See also: responses and chat (the form of the two APIs).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from openai_gateway.simulator.examples import make_example
from openai_gateway.simulator.settings import Script

EFFORT_TOKENS: Final = {"low": 8, "medium": 16, "high": 32, "xhigh": 64, "max": 128}
_SENTENCE: Final = "I am the simulator and answer without a model so nothing is paid."
_WORDS: Final = tuple(_SENTENCE.split())
_WORDS_BESIDE_ECHO: Final = 16
_ECHOED_CHARACTERS: Final = 200
_CHARACTERS_A_TOKEN: Final = 4
_CACHED_FROM_TOKENS: Final = 1024


@dataclass(frozen=True)
class Said:
    """What was said: text in `pieces`, or a call of function `name`; `is_cut` if the token limit ended it."""

    pieces: tuple[str, ...]
    name: str | None
    arguments: str
    is_cut: bool
    input_tokens: int
    cached_tokens: int
    reasoning_tokens: int

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)

    @property
    def output_tokens(self) -> int:
        """Those of the text or the arguments, and those of reasoning."""
        said = len(self.pieces) if self.name is None else max(1, len(self.arguments) // _CHARACTERS_A_TOKEN)
        return said + self.reasoning_tokens


def compose_answer(body: Mapping[str, Any], script: Script) -> Said:
    """Return the answer to a request body of either API."""
    asked = body.get("input", body.get("messages", ""))
    items = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    input_tokens = count_input_tokens(body)
    cached_tokens = input_tokens // 2 if input_tokens >= _CACHED_FROM_TOKENS else 0
    limit = read_token_limit(body)
    reasoning_tokens = _reasoning_tokens(body)
    tool = _chosen_tool(body, items)
    if tool is not None:
        arguments = json.dumps(make_example(tool.get("parameters")))
        return Said((), str(tool.get("name")), arguments, False, input_tokens, cached_tokens, reasoning_tokens)
    words = _make_words(items, script.events)
    is_cut = limit is not None and limit < len(words) + reasoning_tokens
    if limit is not None and is_cut:
        reasoning_tokens = min(reasoning_tokens, limit)
        words = words[: limit - reasoning_tokens]
    return Said(tuple(words), None, "", is_cut, input_tokens, cached_tokens, reasoning_tokens)


def count_input_tokens(body: Mapping[str, Any]) -> int:
    """Return the tokens of a request body of either API."""
    told = [body.get(name) for name in ("instructions", "input", "messages", "tools")]
    characters = sum(len(json.dumps(value, ensure_ascii=False)) for value in told if value is not None)
    return max(1, characters // _CHARACTERS_A_TOKEN)


def _make_words(items: list[Any], events: int) -> list[str]:
    """Return the words to say, white space in front of each; exactly `events` of them unless that is 0."""
    words = re.findall(r"\s*\S+", f"You said: {_last_text(items)[:_ECHOED_CHARACTERS]}.")
    if not events:
        return [*words, *(f" {_WORDS[index % len(_WORDS)]}" for index in range(_WORDS_BESIDE_ECHO))]
    return [*words, *(f" token{index}" for index in range(len(words), events))][:events]


def _last_text(items: list[Any]) -> str:
    for item in reversed(items):
        if isinstance(item, dict) and item.get("role") == "user":
            content = item.get("content")
            if isinstance(content, list):
                return " ".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
            return content if isinstance(content, str) else ""
    return ""


def read_token_limit(body: Mapping[str, Any]) -> int | None:
    """Return the bound that a request body of either API sets its output, None if it sets none."""
    for name in ("max_output_tokens", "max_completion_tokens", "max_tokens"):
        limit = body.get(name)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            return limit
    return None


def _reasoning_tokens(body: Mapping[str, Any]) -> int:
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else body.get("reasoning_effort")
    return EFFORT_TOKENS.get(effort, 0) if isinstance(effort, str) else 0


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
        tool["function"] if isinstance(tool.get("function"), dict) else tool
        for tool in tools
        if isinstance(tool, dict) and tool.get("type") == "function"
    ]
    wanted = _named_in(choice)
    return next((function for function in functions if wanted in (None, function.get("name"))), None)


def _named_in(choice: Any) -> Any:
    """Return the function that a `tool_choice` names in either API's form, or the first that it allows."""
    if not isinstance(choice, dict):
        return None
    allowed = choice.get("allowed_tools")
    tools = allowed.get("tools") if isinstance(allowed, dict) else choice.get("tools")
    if isinstance(tools, list) and tools:
        return _named_in(tools[0])
    function = choice.get("function")
    return function.get("name") if isinstance(function, dict) else choice.get("name")
