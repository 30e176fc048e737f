"""The rows of an input file: each read by itself, checked, and made into the body of its call.

Which calls of a row are still to be made is `plan`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec

RESPONSES: Final = "responses"
CHAT: Final = "chat"
PATHS: Final = {RESPONSES: "/responses", CHAT: "/chat/completions"}
TASK_INDEX: Final = "_ng_task_index"
ROLLOUT_INDEX: Final = "_ng_rollout_index"
RESPONSE: Final = "response"
FAILURE_CLASS: Final = "_ng_failure_class"
FAILURE: Final = "_ng_failure"
DURATION: Final = "_ng_duration_s"
_ADDED: Final = (RESPONSE, TASK_INDEX, ROLLOUT_INDEX, FAILURE_CLASS, FAILURE, DURATION)
BYTES_PER_TOKEN: Final = 4
_RESPONSES_PARAMS: Final = "responses_create_params"
_CHAT_PARAMS: Final = "chat_create_params"
_MESSAGES: Final = "messages"
QUESTIONS: Final = {_RESPONSES_PARAMS: RESPONSES, _CHAT_PARAMS: CHAT, _MESSAGES: CHAT}
# Of a row of bare messages these go along; anything else in it belongs to the task.
_SENT_WITH_MESSAGES: Final[tuple[str, ...]] = (
    _MESSAGES,
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "reasoning_effort",
    "logprobs",
    "top_logprobs",
)
_OUTPUT_BOUNDS: Final = ("max_output_tokens", "max_completion_tokens", "max_tokens")
# Answers are collected whole.
_NOT_SENT: Final = ("stream", "stream_options")
_MAX_INDEX: Final = 2**53
_BOM: Final = b"\xef\xbb\xbf"

_Fields = dict[str, msgspec.Raw]
_fields_decoder = msgspec.json.Decoder(_Fields)


class BadRow(Exception):
    """A line of the input can't be sent; the message says why and what is wanted."""


class Row(msgspec.Struct, frozen=True):
    """One row: `fields` as they came, `body` as it is sent.

    `checksum` is of what was asked, and the same for the row's copy in the output. `max_output_tokens` is the bound
    that the row itself sets, None if it sets none.
    """

    line: int
    task_index: int
    first_rollout: int
    api: str
    fields: _Fields
    body: bytes
    checksum: int
    max_output_tokens: int | None

    @property
    def input_tokens(self) -> int:
        """About how many tokens the body has."""
        return math.ceil(len(self.body) / BYTES_PER_TOKEN)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line that is not blank with its number, from 1; one line is in memory at a time."""
    with path.open("rb", buffering=1024 * 1024) as file:
        for number, line in enumerate(file, 1):
            stripped = (line.removeprefix(_BOM) if number == 1 else line).strip()
            if stripped:
                yield number, stripped


def to_row(text: bytes, line: int, position: int) -> Row:
    """Return the row of a line; `position`, from 0, is its task index unless it brings its own. Raises BadRow."""
    fields = _decode(text, "the line")
    task_index = _to_index(fields, TASK_INDEX, position)
    first_rollout = _to_index(fields, ROLLOUT_INDEX, 0)
    name = to_question(fields)
    asked = fields[name]
    if name == _MESSAGES:
        params = {name: fields[name] for name in _SENT_WITH_MESSAGES if name in fields}
    else:
        params = _decode(asked, name)
    if bytes(params.get("background", b"")) == b"true":
        raise BadRow("asks for background: true, but answers are collected whole; take it out")
    sent = {name: value for name, value in params.items() if name not in _NOT_SENT}
    is_as_it_came = name != _MESSAGES and len(sent) == len(params)
    return Row(
        line=line,
        task_index=task_index,
        first_rollout=first_rollout,
        api=QUESTIONS[name],
        fields=fields,
        body=bytes(asked) if is_as_it_came else msgspec.json.encode(sent),
        checksum=to_checksum(asked),
        max_output_tokens=to_max_output_tokens(sent),
    )


def to_question(fields: Mapping[str, Any]) -> str:
    """Return the name of the field that holds what is asked. Raises BadRow if there is none."""
    for name in QUESTIONS:
        if name in fields:
            return name
    raise BadRow(f"has none of {', '.join(QUESTIONS)}")


def to_checksum(asked: msgspec.Raw) -> int:
    """Return 32 bits, never 0, that tell one row's question from another's."""
    return crc32(asked) or 1


def to_max_output_tokens(params: Mapping[str, Any]) -> int | None:
    """Return how many tokens a call with these parameters may answer with, None if they don't say."""
    for name in _OUTPUT_BOUNDS:
        bound = _to_number(params.get(name))
        if bound is not None:
            return bound * (_to_number(params.get("n")) or 1)
    return None


def to_line(row: Row, added: Mapping[str, Any]) -> bytes:
    """Return the row as a line of JSON with `added` at its end; what an earlier run added is left out."""
    kept = {name: value for name, value in row.fields.items() if name not in _ADDED}
    return msgspec.json.encode({**kept, **added}) + b"\n"


def _decode(text: bytes | msgspec.Raw, what: str) -> _Fields:
    try:
        if isinstance(text, bytes):
            # msgspec does not look into the values.
            text.decode()
        return _fields_decoder.decode(text)
    except msgspec.MsgspecError as error:
        if _holds_lone_surrogate(text):
            raise BadRow(f"{what} holds half of a surrogate pair such as \\ud83d, which is no character") from None
        raise BadRow(f"{what} is no JSON object ({error})") from None
    except UnicodeDecodeError:
        raise BadRow(f"{what} is not UTF-8") from None
    except RecursionError:
        raise BadRow(f"{what} is nested too deeply") from None


def _holds_lone_surrogate(text: bytes | msgspec.Raw) -> bool:
    """Tell whether that is all that is wrong with a text that msgspec refuses: JSON itself allows it."""
    try:
        json.loads(bytes(text))
    except ValueError:
        return False
    return b"\\ud" in bytes(text).lower()


def _to_index(fields: _Fields, name: str, default: int) -> int:
    if name not in fields:
        return default
    index = _to_number(fields[name])
    if index is None or index >= _MAX_INDEX:
        raise BadRow(f"{name} must be a whole number from 0; take it out to have the rows counted")
    return index


def _to_number(value: Any) -> int | None:
    """Return a whole number that is not negative; None for anything else."""
    text = bytes(value) if isinstance(value, msgspec.Raw) else str(value).encode()
    return int(text) if text.isdigit() and len(text) < 19 else None
