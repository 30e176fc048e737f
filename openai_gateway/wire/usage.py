"""What an answer reports of itself: token counts, why it ended, and which model gave it.

From a JSON answer, or from a stream's last bytes; what was not reported is None, never zero.
"""

from __future__ import annotations

import re
import zlib
from typing import Final

import msgspec

# A stream's report is in its last three events, of at most three lines each: finish, usage, [DONE].
_MAX_LINES: Final = 18
_USAGE_KEY: Final = re.compile(rb'(?<!\\)"usage"\s*:\s*(?=\{)')
_MAX_USAGE_BYTES: Final = 4096
_MAX_CANDIDATES: Final = 3
_ANY_WINDOW: Final = zlib.MAX_WBITS | 32
_MAX_DECOMPRESSED_BYTES: Final = 8 * 1024 * 1024
# What every JSON reader takes whole; sums of it keep to 64 bits.
_MOST_TOKENS: Final = 2**53


class Usage(msgspec.Struct, frozen=True):
    """Token counts; cached and newly cached ones are parts of the input, `reasoning_tokens` of the output."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class Report(msgspec.Struct, frozen=True):
    """What an answer says of itself; `finish_reason` is chat's, or a response's status or why it is incomplete."""

    usage: Usage | None = None
    finish_reason: str | None = None
    model: str | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None


NOTHING: Final = Report()


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Answer(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None
    choices: list[_Choice] | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None


class _Event(_Answer):
    response: _Answer | None = None


_answer_decoder = msgspec.json.Decoder(_Answer)
_event_decoder = msgspec.json.Decoder(_Event)
_usage_decoder = msgspec.json.Decoder(_Usage)
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_answer(body: bytes) -> Report:
    """Return what a JSON answer of either API reports, or its end if `body` lacks the beginning; NOTHING if none."""
    try:
        return _to_report(_answer_decoder.decode(body))
    except _BROKEN:
        return Report(usage=_find_usage(body))


def decompress(body: bytes, encoding: str) -> bytes:
    """Return a gzip or deflate body as it was before, at most its first 8 MiB; `b""` for any other encoding."""
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return b""
    try:
        return zlib.decompressobj(_ANY_WINDOW).decompress(body, _MAX_DECOMPRESSED_BYTES)
    except zlib.error:
        return b""


def read_stream(tail: bytes) -> Report:
    """Return what a stream's last events report; of the first one in `tail` only the end may be there."""
    usage: Usage | None = None
    finish_reason: str | None = None
    last: _Answer | None = None
    # From the end, and no further than need be: the tail may hold hundreds of events.
    lines = tail.rsplit(b"\n", _MAX_LINES)
    for line in reversed(lines[1:] if len(lines) > _MAX_LINES else lines):
        if not line.startswith(b"data:") or line.startswith(b"data: [DONE]"):
            continue
        try:
            event = _event_decoder.decode(line[5:])
        except _BROKEN:
            usage = usage or _find_usage(line)
            continue
        if event.response is not None:
            return _to_report(event.response)
        last = last or event
        usage = usage or _to_usage(event.usage)
        finish_reason = finish_reason or _to_finish_reason(event)
        if usage is not None and finish_reason is not None:
            break
    if last is None:
        return Report(usage=usage or _find_usage(tail))
    return Report(usage, finish_reason, last.model, last.service_tier, last.system_fingerprint)


def _to_report(answer: _Answer) -> Report:
    return Report(
        _to_usage(answer.usage),
        _to_finish_reason(answer),
        answer.model,
        answer.service_tier,
        answer.system_fingerprint,
    )


def _to_finish_reason(answer: _Answer) -> str | None:
    if answer.choices is not None:
        return next((choice.finish_reason for choice in answer.choices if choice.finish_reason is not None), None)
    return (answer.incomplete_details.reason if answer.incomplete_details is not None else None) or answer.status


def _to_usage(found: _Usage | None) -> Usage | None:
    if found is None:
        return None
    given = _to_count(found.input_tokens if found.input_tokens is not None else found.prompt_tokens)
    made = _to_count(found.output_tokens if found.output_tokens is not None else found.completion_tokens)
    if given is None or made is None:
        return None
    of_input = found.input_tokens_details or found.prompt_tokens_details or _Details()
    of_output = found.output_tokens_details or found.completion_tokens_details or _Details()
    return Usage(
        given,
        made,
        _to_count(of_input.cached_tokens),
        _to_count(of_input.cache_write_tokens),
        _to_count(of_output.reasoning_tokens),
    )


def _to_count(tokens: int | None) -> int | None:
    return tokens if tokens is not None and 0 <= tokens <= _MOST_TOKENS else None


def _find_usage(text: bytes) -> Usage | None:
    """Return the last usage object in JSON whose beginning is missing; a quoted one in a text has escaped quotes."""
    for match in list(_USAGE_KEY.finditer(text))[: -_MAX_CANDIDATES - 1 : -1]:
        piece = text[match.end() : match.end() + _MAX_USAGE_BYTES]
        depth = 0
        for index, byte in enumerate(piece):
            depth += (byte == ord("{")) - (byte == ord("}"))
            if depth == 0:
                try:
                    usage = _to_usage(_usage_decoder.decode(piece[: index + 1]))
                except _BROKEN:
                    usage = None
                if usage is not None:
                    return usage
                break
    return None
