"""The top level of a request body: checked with marshmallow, values kept as the bytes they came as (msgspec.Raw).

Only `model` is replaced and missing defaults are added; what a value means is the upstream's business. See also:
members (what is read of nested values), api, blueprints.calls.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8, utf_8_decode
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any, Final, NoReturn

import msgspec
from marshmallow import EXCLUDE, Schema, ValidationError, fields, missing

from openai_gateway.errors import InvalidRequest
from openai_gateway.wire.api import Api

Values = dict[str, msgspec.Raw]

_values_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_SURROGATE: Final = re.compile(rb"\\u[dD]")
_ABSENT: Final = msgspec.Raw(b"\0")
_UTF8_WINDOW_BYTES: Final = 32 * 1024
_TRUE: Final = ord("t")
# Thousands of rollout keys are kept. Of a longer one only the end is: it tells rollouts apart as well.
_MOST_KEY_LENGTH: Final = 256
_STARTS: Final = {"string": '"', "array": "[", "object": "{", "boolean": "tf", "null": "n"}
_NAMES_OF_STARTS: Final = {
    '"': "a string",
    "[": "an array",
    "{": "an object",
    "t": "a boolean",
    "f": "a boolean",
    "n": "null",
}


class RawField(fields.Field):  # type: ignore[type-arg]
    """A JSON value of one of the named types, told by the first character, which stands for it."""

    def __init__(self, *types: str, required: bool = False) -> None:
        super().__init__(required=required)
        self._starts = "".join(_STARTS[name] for name in types)
        self._wanted = " or ".join(types)

    def deserialize(self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any) -> Any:
        """Return the value as it is; overridden whole, for there is nothing to convert or validate further."""
        if value is missing:
            if self.required:
                raise self.make_error("required")
            return value
        if value not in self._starts:
            found = _NAMES_OF_STARTS.get(value, "a number")
            raise ValidationError(f"expected {self._wanted}, but got {found}")
        return value


class ModelEnvelope(Schema):
    """What every rewritten body has: a model, which the gateway replaces."""

    class Meta:
        """Unknown keys pass: they are relayed from the parsed values, not from what the schema loads."""

        unknown = EXCLUDE

    model = RawField("string", "null")

    @cached_property
    def looked_at(self) -> tuple[str, ...]:
        """The keys on whose values the verdict depends."""
        return tuple(self.load_fields)


class ResponsesEnvelope(ModelEnvelope):
    """The envelope of `POST /responses`; whether there is enough to answer is the API's to judge."""

    stream = RawField("boolean", "null")
    input = RawField("string", "array", "null")
    stream_options = RawField("object", "null")
    metadata = RawField("object", "null")


class ChatEnvelope(ModelEnvelope):
    """The envelope of `POST /chat/completions`."""

    stream = RawField("boolean", "null")
    messages = RawField("array", required=True)
    stream_options = RawField("object", "null")
    metadata = RawField("object", "null")


def parse(body: bytes, schema: ModelEnvelope) -> Values:
    """Return the top-level values of a JSON object, in their order, each as it came.

    Raises InvalidRequest, with `param` where one key is to blame. Of a repeated key the last value counts.
    """
    if not body:
        raise InvalidRequest("The request body is empty; a JSON object is required.")
    if not body.isascii():
        _check_utf8(body)
    try:
        values = _values_decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error).replace("Expected `object`", "a JSON object was expected at the top level")
        raise InvalidRequest(f"The request body is not valid: {message}.", code="invalid_type") from None
    except RecursionError:
        # From Python 3.14 on, a body is only refused if the C stack can't hold it. That is as well: values are relayed
        # unparsed, so nothing else depends on it, and counting levels would cost a large body more than parsing does.
        raise InvalidRequest("The request body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        values = _parse_lone_surrogates(body, error)
    fault = _find_fault(schema, tuple([memoryview(values.get(name, _ABSENT))[0] for name in schema.looked_at]))
    if fault is not None:
        message, code, name = fault
        raise InvalidRequest(message, code=code, param=name)
    return values


@lru_cache(maxsize=1024)
def _find_fault(schema: ModelEnvelope, starts: tuple[int, ...]) -> tuple[str, str, str] | None:
    """Return message, code and param of the first fault of a body, None if it has none.

    `starts` are the first bytes of the values that the schema looks at, 0 for one that isn't there. As nothing else
    counts, bodies of one shape are judged once.
    """
    shape = {name: chr(start) for name, start in zip(schema.looked_at, starts, strict=True) if start}
    for name, messages in schema.validate(shape).items():
        if name in shape:
            return f"Invalid type for '{name}': {messages[0]}.", "invalid_type", name
        return f"Missing required parameter: '{name}'.", "missing_required_parameter", name
    return None


def rewrite(values: Values, model: msgspec.Raw, defaults: Mapping[str, msgspec.Raw]) -> bytes:
    """Return the body to send: `model` replaced in its place, missing defaults added at the end.

    An explicit null in the request wins over a default (NeMo Gym: `extra_body | request`).
    """
    values["model"] = model
    for name, value in defaults.items():
        values.setdefault(name, value)
    try:
        return msgspec.json.encode(values)
    except UnicodeEncodeError:
        # A key with a lone surrogate: only JSON's own escapes can carry it.
        return b"{" + b",".join(json.dumps(name).encode() + b":" + bytes(raw) for name, raw in values.items()) + b"}"


def to_raw(values: Mapping[str, Any]) -> dict[str, msgspec.Raw]:
    """Return configured defaults as raw values, encoded once."""
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in values.items()}


def is_true(value: msgspec.Raw | None) -> bool:
    """Tell whether a raw value is `true`."""
    return value is not None and memoryview(value)[0] == _TRUE


def is_given(value: msgspec.Raw | None) -> bool:
    """Tell whether there is a raw value, and it isn't `null`."""
    return _start(value) not in (0, ord("n"))


def find_rollout_key(values: Mapping[str, msgspec.Raw], environ: Mapping[str, Any]) -> str | None:
    """Return what tells which rollout a call belongs to, of one that its path doesn't tell; None if nothing does."""
    key = values.get("prompt_cache_key") or environ.get("HTTP_SESSION_ID") or values.get("previous_response_id")
    text = str(key, "utf-8", "replace") if isinstance(key, msgspec.Raw) else key
    return text if text is None else text[-_MOST_KEY_LENGTH:]


def read_output_tokens(values: Mapping[str, msgspec.Raw], api: Api) -> int | None:
    """Return the body's bound of output tokens, None if it has none that is a number."""
    given = values.get(api.token_limit) or values.get("max_tokens")
    digits = bytes(given) if given is not None else b""
    return int(digits) if digits.isdigit() and len(digits) < 10 else None


class _Item(msgspec.Struct):
    type: str | None = None


def drop_reasoning_items(values: Values) -> None:
    """Take items of type `reasoning` out of a Responses `input` array; the others keep their bytes."""
    if _start(values.get("input")) != ord("["):
        return
    given = bytes(values["input"])
    # A stand-in of the same length: msgspec refuses lone surrogates.
    readable = _SURROGATE.sub(rb"\\u0", given)
    try:
        items = _items_decoder.decode(readable)
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    kept, end = [], 1
    for item in items:
        text = bytes(item)
        start = readable.index(text, end)
        end = start + len(text)
        if not _is_reasoning(item):
            kept.append(given[start:end])
    if len(kept) < len(items):
        values["input"] = msgspec.Raw(b"[" + b",".join(kept) + b"]")


def _is_reasoning(item: msgspec.Raw) -> bool:
    try:
        return msgspec.json.decode(item, type=_Item).type == "reasoning"
    except (msgspec.MsgspecError, RecursionError):
        return False


def _start(value: msgspec.Raw | None) -> int:
    """Return the first byte of a value, which tells its type; 0 if there is none."""
    return 0 if value is None else memoryview(value)[0]


def _check_utf8(body: bytes) -> None:
    # In windows that fit the CPU's cache: the text itself is not needed, and may be four times as long.
    at = 0
    try:
        while at < len(body):
            at += utf_8_decode(body[at : at + _UTF8_WINDOW_BYTES], "strict", at + _UTF8_WINDOW_BYTES >= len(body))[1]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The request body is not UTF-8 (byte {at + error.start}).") from None
    if body.startswith(BOM_UTF8):
        raise InvalidRequest("The request body starts with a byte order mark; JSON must not (RFC 8259 8.1).")


def _parse_lone_surrogates(body: bytes, error: Exception) -> Values:
    r"""Parse a body that msgspec refuses for a lone `\ud800`, which JSON allows (RFC 8259 8.2); slow and rare."""
    if b"\\ud" not in body and b"\\uD" not in body:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from None
    text = body.decode()
    scan = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=str, parse_float=str).raw_decode
    values: Values = {}
    try:
        at = _skip_space(text, _expect(text, 0, "{"))
        while text[at : at + 1] != "}":
            name, at = json.decoder.scanstring(text, _expect(text, at, '"'))  # type: ignore[attr-defined]
            start = _skip_space(text, _expect(text, at, ":"))
            end = scan(text, start)[1]
            values[name] = msgspec.Raw(text[start:end].encode())
            at = _skip_space(text, end)
            if text[at : at + 1] != "}":
                at = _skip_space(text, _expect(text, at, ","))
                _expect(text, at, '"')
        if _skip_space(text, at + 1) != len(text):
            raise ValueError("trailing characters")
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except (ValueError, StopIteration) as problem:
        raise InvalidRequest(f"The request body is not valid JSON: {problem}.") from None
    return values


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _expect(text: str, at: int, character: str) -> int:
    at = _skip_space(text, at)
    if text[at : at + 1] != character:
        raise ValueError(f"expected {character!r} (character {at})")
    return at + 1


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
