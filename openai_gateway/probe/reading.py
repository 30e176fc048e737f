"""What is read out of an endpoint's answers and its URL; whatever their form, nothing here raises.

What it means for the person who asked is `examining`'s.
"""

from __future__ import annotations

from typing import Any, Final

from openai_gateway.probe.calling import Answer

_SHOWN_CHARS: Final = 200


def find_endpoint(base_url: str) -> str:
    """Return the API's path that a base URL wrongly ends in, `""` if none."""
    paths = ("/chat/completions", "/responses", "/completions", "/models")
    return next((path for path in paths if base_url.partition("?")[0].endswith(path)), "")


def to_line(text: Any) -> str:
    """Return what an endpoint said as one short line, without characters that would steer a terminal."""
    line = "".join(character for character in " ".join(str(text).split()) if character.isprintable())
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}..."


def to_names(answer: Answer | None) -> list[str]:
    """Return the names of the models in an endpoint's list, which some send without OpenAI's `data` around it."""
    value = answer.to_value() if answer is not None else None
    data = value.get("data") if isinstance(value, dict) else value
    return [to_line(model.get("id")) for model in data if isinstance(model, dict)] if isinstance(data, list) else []


def _first_choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def is_call(api: str, body: dict[str, Any]) -> bool:
    """Tell whether the model called a function."""
    if api == "chat":
        message = _first_choice(body).get("message")
        return isinstance(message, dict) and bool(message.get("tool_calls"))
    output = body.get("output")
    items = output if isinstance(output, list) else []
    return any(isinstance(item, dict) and item.get("type") == "function_call" for item in items)


def to_usage(body: dict[str, Any]) -> str:
    """Return what an answer says that it took."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return "answers; it reports no tokens"
    tokens_in = usage.get("input_tokens", usage.get("prompt_tokens"))
    tokens_out = usage.get("output_tokens", usage.get("completion_tokens"))
    return to_line(f"{tokens_in} tokens in, {tokens_out} out")


def is_cut(body: dict[str, Any]) -> bool:
    """Tell whether the model had to stop before it was done."""
    return body.get("status") == "incomplete" or _first_choice(body).get("finish_reason") == "length"
