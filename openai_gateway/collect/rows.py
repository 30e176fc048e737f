"""The rows of an input file: each read by itself, checked, and made into the body of its call.

See also: questions (what a row asks), params (which parameters go out), plan (which calls are still to be made).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from openai_gateway.collect.params import (
    NOT_SENT_WITH_MESSAGES,
    NOTHING_ADDED,
    SENT_WITH_MESSAGES,
    Additions,
    Params,
    add_seed,
    make_params,
    put_params,
    read_max_output_tokens,
    read_number,
    read_text,
)
from openai_gateway.collect.questions import MESSAGES, QUESTIONS, BadRow, compute_checksum, find_api, find_question
from openai_gateway.wire.input_tokens import count_input_tokens, has_pictures

TASK_INDEX: Final = "_ng_task_index"
ROLLOUT_INDEX: Final = "_ng_rollout_index"
RESPONSE: Final = "response"
# A column `response` of the row's own, such as a reference answer.
GIVEN_RESPONSE: Final = "input_response"
FAILURE_CLASS: Final = "_ng_failure_class"
FAILURE: Final = "_ng_failure"
DURATION: Final = "_ng_duration_s"
# Without the waiting before the last attempt; only there if that makes a difference.
LATENCY: Final = "_ng_latency_s"
# Only there if the answer was one that recordings had, which cost nothing.
REPLAYED: Final = "_ng_is_replayed"
# What earlier attempts of an answer may have cost that timed out; only there if some did.
PERHAPS_BILLED: Final = "_ng_perhaps_billed_usd"
AGENT_REF: Final = "agent_ref"
_ADDED: Final = (
    RESPONSE,
    TASK_INDEX,
    ROLLOUT_INDEX,
    FAILURE_CLASS,
    FAILURE,
    DURATION,
    LATENCY,
    REPLAYED,
    PERHAPS_BILLED,
)
_MAX_INDEX: Final = 2**53
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
# A string, which is passed over, or what Python writes though JSON has no such number.
_CONSTANT: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b')
_MARK: Final = b'"\x7fnot a number\x7f"'

_fields_decoder = msgspec.json.Decoder(Params)


class Row(msgspec.Struct, frozen=True):
    """One row: `fields` as they are to be kept, `body` as it is sent, less a repeat's seed.

    `checksum` is of what the row itself asked, and the same for the row's copy in the output. `max_output_tokens` is
    the bound that the row sets, None if it sets none. `input_tokens` are estimated, and no more than
    `most_input_tokens`. `notes` say what is not done with the row as might be thought.
    """

    line: int
    task_index: int
    first_rollout: int
    api: str
    question: str
    fields: Params
    params: Params
    body: bytes
    checksum: int
    max_output_tokens: int | None
    service_tier: str | None
    input_tokens: int
    most_input_tokens: int
    has_seeds: bool = False
    notes: tuple[str, ...] = ()

    @property
    def has_pictures(self) -> bool:
        """Tell whether its tokens are a guess."""
        return has_pictures(self.body)

    @property
    def is_background(self) -> bool:
        """Tell whether the answer is to be polled for."""
        return bytes(self.params.get("background", b"")) == b"true"

    def make_params(self, rollout_index: int) -> Params:
        """Return the parameters of one repeat."""
        return add_seed(self.params, self.api, rollout_index) if self.has_seeds else self.params

    def to_body(self, rollout_index: int) -> bytes:
        """Return the body of one repeat's call."""
        return msgspec.json.encode(self.make_params(rollout_index)) if self.has_seeds else self.body

    def to_fields(self, rollout_index: int) -> Params:
        """Return the row as it is kept with one repeat's answer, without what a run adds."""
        fields = self.fields
        if self.has_seeds:
            fields = put_params(fields, self.question, self.make_params(rollout_index))
        return {name: value for name, value in fields.items() if name not in _ADDED}


def parse_row(text: bytes, line: int, position: int, additions: Additions = NOTHING_ADDED) -> Row:
    """Return the row of a line; `position`, from 0, is its task index unless it brings its own. Raises BadRow."""
    fields = _decode(text)
    name = find_question(fields)
    params, is_as_it_came = make_params(name, fields, additions)
    api = find_api(name, fields, params)
    body = bytes(fields[name]) if is_as_it_came else msgspec.json.encode(params)
    if additions.has_seeds:
        add_seed(params, api, 0)
    kept = put_params(fields, name, params) if additions.params else fields
    if RESPONSE in fields and ROLLOUT_INDEX not in fields:
        kept = {**kept, GIVEN_RESPONSE: fields[RESPONSE]}
    if additions.agent is not None and AGENT_REF not in kept:
        kept = {**kept, AGENT_REF: msgspec.Raw(msgspec.json.encode({"name": additions.agent}))}
    input_tokens, most_input_tokens = count_input_tokens(body)
    return Row(
        line=line,
        task_index=_read_index(fields, TASK_INDEX, position),
        first_rollout=_read_index(fields, ROLLOUT_INDEX, 0),
        api=api,
        question=name,
        fields=kept,
        params=params,
        body=body,
        checksum=compute_checksum(fields[name], additions.names),
        max_output_tokens=read_max_output_tokens(params),
        service_tier=read_text(params.get("service_tier")),
        input_tokens=input_tokens,
        most_input_tokens=most_input_tokens,
        has_seeds=additions.has_seeds,
        notes=_find_notes(name, fields, params),
    )


def to_line(fields: Mapping[str, Any], added: Mapping[str, Any]) -> bytes:
    """Return a row as a line of JSON with `added` at its end."""
    return msgspec.json.encode({**fields, **added}) + b"\n"


def _find_notes(name: str, fields: Params, params: Params) -> tuple[str, ...]:
    notes = []
    if RESPONSE in fields and ROLLOUT_INDEX not in fields:
        notes.append(f"a column {RESPONSE} of the row's own is kept as {GIVEN_RESPONSE}")
    if (model := read_text(params.get("model"))) is not None:
        notes.append(f"the model {model} is named, but the gateway's own is asked")
    if name == MESSAGES and (unsent := sorted(NOT_SENT_WITH_MESSAGES & fields.keys())):
        notes.append(f"not sent, as it may be the task's: {', '.join(unsent)} (chat_create_params sends all)")
    return tuple(notes)


def _decode(text: bytes) -> Params:
    try:
        # msgspec does not look into the values.
        text.decode()
        return _fields_decoder.decode(text)
    except UnicodeDecodeError:
        raise BadRow("the line is not UTF-8") from None
    except RecursionError:
        raise BadRow("the line is nested too deeply") from None
    except msgspec.MsgspecError as error:
        return _decode_as_python_does(text, error)


def _decode_as_python_does(text: bytes, error: Exception) -> Params:
    """Return the fields of a line with NaN in it, which Python writes for a missing number, as null. Raises BadRow."""
    marked = _CONSTANT.sub(lambda found: found[0] if found[0].startswith(b'"') else _MARK, text)
    try:
        fields = _fields_decoder.decode(marked)
    except (msgspec.MsgspecError, RecursionError):
        raise BadRow(_describe_fault(text, error)) from None
    for name, value in fields.items():
        if _MARK in bytes(value):
            if name in QUESTIONS or name in SENT_WITH_MESSAGES:
                raise BadRow(f"{name} holds NaN or Infinity, which JSON doesn't have; take it out")
            fields[name] = msgspec.Raw(bytes(value).replace(_MARK, b"null"))
    return fields


def _describe_fault(text: bytes, error: Exception) -> str:
    try:
        half = _SURROGATE.search(json.dumps(json.loads(text), ensure_ascii=False))
    except (ValueError, RecursionError):
        half = None
    if half is None:
        return f"the line is no JSON object ({error})"
    return (
        f"the line holds half of a surrogate pair (\\u{ord(half[0]):04x}), as does text that another tool cut in two; "
        "take it out"
    )


def _read_index(fields: Params, name: str, default: int) -> int:
    if name not in fields:
        return default
    index = read_number(fields[name])
    if index is None or index >= _MAX_INDEX:
        raise BadRow(f"{name} must be a whole number from 0; take it out to have the rows counted")
    return index
