"""The parameters of a row's call: those of the row, those given for all rows, and a seed for each repeat.

See also: questions (which field of a row holds them).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from openai_gateway.collect.questions import CHAT, MESSAGES, METADATA, SEED, BadRow

# Of a row of bare messages these go along, OpenAI's and those of open model servers; the rest belongs to the task.
_SENT_WITH_MESSAGES: Final = """
messages tools tool_choice parallel_tool_calls functions function_call response_format max_tokens
max_completion_tokens temperature top_p n stop seed reasoning_effort verbosity logprobs top_logprobs logit_bias
frequency_penalty presence_penalty service_tier modalities audio prediction web_search_options prompt_cache_key
prompt_cache_retention safety_identifier model
top_k min_p min_tokens repetition_penalty length_penalty stop_token_ids ignore_eos include_stop_str_in_output
skip_special_tokens chat_template chat_template_kwargs guided_json guided_regex guided_choice guided_grammar
structured_outputs reasoning thinking include_reasoning provider thinking_token_budget
"""
SENT_WITH_MESSAGES: Final = frozenset(_SENT_WITH_MESSAGES.split())
# Parameters of the API whose names tasks use, too: not sent, and said so.
NOT_SENT_WITH_MESSAGES: Final = frozenset({"user", "metadata", "store"})
# Answers are collected whole.
_NOT_SENT: Final = ("stream", "stream_options")
_OUTPUT_BOUNDS: Final = ("max_output_tokens", "max_completion_tokens", "max_tokens")
_EXTRA_BODY: Final = "extra_body"

Params = dict[str, msgspec.Raw]
_params_decoder = msgspec.json.Decoder(Params)


class Additions(msgspec.Struct, frozen=True):
    """What is given for all rows: parameters, which win over a row's own, whether repeats get seeds, and an agent."""

    params: Params = {}
    has_seeds: bool = False
    agent: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The parameters as plain values."""
        return {name: msgspec.json.decode(value) for name, value in self.params.items()}

    @property
    def names(self) -> frozenset[str]:
        """The parameters that are not the row's own."""
        return frozenset(self.params) | (frozenset({SEED, METADATA}) if self.has_seeds else frozenset())


NOTHING_ADDED: Final = Additions()


def make_additions(params: Mapping[str, Any], *, has_seeds: bool, agent: str | None) -> Additions:
    """Return what is given for all rows, from plain values."""
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in params.items()}
    return Additions(raw, has_seeds, agent)


def make_params(name: str, fields: Params, additions: Additions) -> tuple[Params, bool]:
    """Return the parameters of a row's question, and whether they are as they stand in the row. Raises BadRow."""
    if name == MESSAGES:
        given = {each: value for each, value in fields.items() if each in SENT_WITH_MESSAGES}
    else:
        given = decode_params(fields[name], name)
    sent = {each: value for each, value in given.items() if each not in _NOT_SENT}
    if not additions.params:
        return sent, name != MESSAGES and len(sent) == len(given)
    return {**sent, **additions.params}, False


def put_params(fields: Params, name: str, params: Params) -> Params:
    """Return a row whose question has these parameters."""
    return {**fields, **params} if name == MESSAGES else {**fields, name: msgspec.Raw(msgspec.json.encode(params))}


def add_seed(params: Params, api: str, seed: int) -> Params:
    """Return parameters with a seed, where the API has none in the metadata, as NeMo Gym does. Raises BadRow."""
    if api == CHAT:
        return {**params, SEED: msgspec.Raw(str(seed).encode())}
    try:
        metadata = msgspec.json.decode(params.get(METADATA, b"{}"), type=dict[str, Any])
        extra = msgspec.json.decode(metadata.get(_EXTRA_BODY, "{}"), type=dict[str, Any])
    except (msgspec.MsgspecError, TypeError):
        raise BadRow("has metadata that no seed can be put into") from None
    metadata[_EXTRA_BODY] = msgspec.json.encode({**extra, SEED: seed}).decode()
    return {**params, METADATA: msgspec.Raw(msgspec.json.encode(metadata))}


def read_max_output_tokens(params: Mapping[str, Any]) -> int | None:
    """Return how many tokens a call with these parameters may answer with, None if they don't say."""
    for name in _OUTPUT_BOUNDS:
        bound = read_number(params.get(name))
        if bound is not None:
            return bound * (read_number(params.get("n")) or 1)
    return None


def read_text(value: Any) -> str | None:
    """Return a parameter that is a string, None for any other."""
    if isinstance(value, msgspec.Raw):
        value = msgspec.json.decode(value)
    return value if isinstance(value, str) else None


def read_number(value: Any) -> int | None:
    """Return a whole number that is not negative; None for anything else."""
    text = bytes(value) if isinstance(value, msgspec.Raw) else str(value).encode()
    return int(text) if text.isdigit() and len(text) < 19 else None


def decode_params(text: msgspec.Raw, what: str) -> Params:
    """Return a JSON object with its values as they stand. Raises BadRow."""
    try:
        return _params_decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise BadRow(f"{what} is no JSON object ({error})") from None
