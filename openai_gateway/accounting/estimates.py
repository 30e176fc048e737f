"""What a call may cost, before it is made: its input by bytes and content, its output by its bound or by experience.

An output without a bound is as long as 95 % of the client's last ones. Input is counted as half a token a byte of
text until the client's own calls tell how many there are; what a call refers to (a conversation, an earlier response, a
stored prompt) can't be seen in it, and is taken to be as long as 95 % of the client's inputs. See also: budgets.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from openai_gateway.config import ServerConfig
from openai_gateway.wire.api import Api
from openai_gateway.wire.input_tokens import split_input
from openai_gateway.wire.usage import Usage

ASSUMED_OUTPUT_TOKENS: Final = 2048
_KEPT: Final = 200
_SHARE: Final = 0.95
_TOKENS_PER_BYTE: Final = 0.5
_LEAST_PER_BYTE: Final = 0.25
_MARGIN: Final = 1.25
_LEAST_CALLS: Final = 20
_OUTPUT_BOUNDS: Final = {
    Api.RESPONSES: ("max_output_tokens",),
    Api.CHAT: ("max_completion_tokens", "max_tokens"),
}
_REFERENCES: Final = ("previous_response_id", "conversation", "prompt")


class Asked(msgspec.Struct, frozen=True):
    """What is known of a call's size beforehand; `refers` if a part of its input isn't in its body."""

    text_bytes: int
    other_tokens: int
    output_tokens: int | None
    service_tier: str | None
    refers: bool


def measure_call(
    api: Api, body: bytes, values: Mapping[str, msgspec.Raw], defaults: Mapping[str, msgspec.Raw]
) -> Asked:
    """Return the size of a call by its body and its values, those left out as the server's defaults have them."""
    known = {**defaults, **values}
    text_bytes, other_tokens = split_input(body)
    bounds = (_read_number(known.get(name)) for name in _OUTPUT_BOUNDS[api])
    bound = next((found for found in bounds if found is not None), None)
    answers = _read_number(known.get("n")) or 1 if api is Api.CHAT else 1
    tier = bytes(known.get("service_tier", b"null"))
    return Asked(
        text_bytes=text_bytes,
        other_tokens=other_tokens,
        output_tokens=None if bound is None else bound * answers,
        service_tier=tier[1:-1].decode("ascii", "replace") if tier[:1] == b'"' else None,
        refers=any(bytes(known.get(name, b"null")) != b"null" for name in _REFERENCES),
    )


def _read_number(value: msgspec.Raw | None) -> int | None:
    text = b"" if value is None else bytes(value)
    return int(text) if text.isdigit() and len(text) < 10 else None


class Experience:
    """What the last calls of one client to one server tell of the next.

    `unbounded` counts the calls under way whose output has no bound, `answers` those that have told what they used up.
    When such a call is over, the functions in `awaited` are called, once.
    """

    def __init__(self) -> None:
        self.answers = 0
        self.unbounded = 0
        self.awaited: list[Callable[[], object]] = []
        self._outputs: deque[int] = deque(maxlen=_KEPT)
        self._inputs: deque[int] = deque(maxlen=_KEPT)
        self._per_byte: deque[float] = deque(maxlen=_KEPT)
        self._known: tuple[int, int, float] | None = None

    def begin(self, asked: Asked) -> None:
        """Count a call that is about to be made."""
        self.unbounded += asked.output_tokens is None

    def end(self, asked: Asked, usage: Usage | None) -> None:
        """Take in what a call used up, as far as that is known."""
        if usage is not None:
            self._learn(asked, usage)
        if asked.output_tokens is None:
            self.unbounded -= 1
            awaited, self.awaited = self.awaited, []
            for tell in awaited:
                tell()

    def _learn(self, asked: Asked, usage: Usage) -> None:
        self._known = None
        self.answers += 1
        self._outputs.append(usage.output_tokens)
        self._inputs.append(usage.input_tokens)
        if not asked.refers and asked.text_bytes:
            self._per_byte.append(max(usage.input_tokens - asked.other_tokens, 0) / asked.text_bytes)

    def estimate_usd(self, server: ServerConfig, asked: Asked) -> float | None:
        """Return about the most that a call will cost; None if its model has no price."""
        if self._known is None:
            per_byte = max(self._per_byte) * _MARGIN if len(self._per_byte) >= _LEAST_CALLS else _TOKENS_PER_BYTE
            self._known = (
                _find_high(self._outputs, ASSUMED_OUTPUT_TOKENS),
                _find_high(self._inputs, 0),
                min(max(per_byte, _LEAST_PER_BYTE), 1.0),
            )
        output, inputs, per_byte = self._known
        seen = math.ceil(asked.text_bytes * per_byte) + asked.other_tokens
        given = seen + inputs if asked.refers else seen
        made = output if asked.output_tokens is None else asked.output_tokens
        return guess_usd(server, Usage(input_tokens=given, output_tokens=made), asked.service_tier)


def guess_usd(server: ServerConfig, usage: Usage, service_tier: str | None) -> float | None:
    """Return what a usage costs, by the nearest price there is; None only if the server's model has no price at all."""
    price = server.prices.find(server.openai_model)
    if price is None:
        return None
    for tier in (service_tier, None):
        cost = server.prices.cost_usd(server.openai_model, usage, tier)
        if cost is not None:
            return cost
    # A long input, or sounds, without a price of their own.
    return (usage.input_tokens * price.input + usage.output_tokens * price.output) / 1_000_000


def _find_high(counts: deque[int], assumed: int) -> int:
    """Return what 95 % of the counts don't exceed; of few, the largest, and no less than what is assumed of none."""
    if len(counts) < _LEAST_CALLS:
        return max([assumed, *counts])
    return sorted(counts)[math.ceil(len(counts) * _SHARE) - 1]
