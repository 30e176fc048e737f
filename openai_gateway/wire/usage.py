"""What an answer reports of itself: token counts, why it ended, which model gave it, at which service tier.

From a JSON answer, or from a stream's last bytes; what was not reported is None, never zero. Of a long answer only
the beginning and the end are at hand. See also: members (which reads those), tail (which keeps them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from openai_gateway.wire.members import read_beginning, read_end

# A stream's report is in its last three events: finish, usage, [DONE]. Comments may follow.
_MAX_EVENTS: Final = 6
_USAGE_KEY: Final = re.compile(rb'(?<!\\)"usage"\s*:\s*(?=\{)')
_MAX_USAGE_BYTES: Final = 4096
_MAX_CANDIDATES: Final = 3
# What every JSON reader takes whole; sums of it keep to 64 bits.
_MOST_TOKENS: Final = 2**53


class Usage(msgspec.Struct, frozen=True):
    """Token counts; cached, newly cached and audio ones are parts of the input, `reasoning_tokens` of the output."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None


class Report(msgspec.Struct, frozen=True):
    """What an answer says of itself; `finish_reason` is chat's, or a response's status or why it is incomplete."""

    usage: Usage | None = None
    finish_reason: str | None = None
    model: str | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None


NOTHING: Final = Report()


class _Details(msgspec.Struct):
    cached_tokens: int | float | None = None
    cache_write_tokens: int | float | None = None
    reasoning_tokens: int | float | None = None
    audio_tokens: int | float | None = None


_NO_DETAILS: Final = _Details()


class _Usage(msgspec.Struct):
    input_tokens: int | float | None = None
    output_tokens: int | float | None = None
    prompt_tokens: int | float | None = None
    completion_tokens: int | float | None = None
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


# The members of an answer that are scalars or small objects.
_REPORTED: Final = frozenset(name.encode() for name in _Answer.__struct_fields__) - {b"choices"}
_LAST_EVENTS: Final = (b"completed", b"incomplete", b"failed")
_answer_decoder = msgspec.json.Decoder(_Answer)
_event_decoder = msgspec.json.Decoder(_Event)
_usage_decoder = msgspec.json.Decoder(_Usage)
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_answer(body: bytes, beginning: bytes = b"") -> Report:
    """Return what a JSON answer of either API reports, NOTHING if it is none.

    If `beginning` is given, `body` is only the answer's end, and what is between them is missing.
    """
    if beginning:
        return _read_parts(beginning, body)
    try:
        return _make_report(_answer_decoder.decode(body))
    except _BROKEN:
        return Report(usage=_find_usage(body))


def read_stream(tail: bytes, beginning: bytes = b"") -> Report:
    """Return what a stream's last events report.

    `tail` may begin within an event; `beginning` is then the beginning of that one's line, if it is at hand.
    """
    usage: Usage | None = None
    finish_reason: str | None = None
    last: _Answer | None = None
    for is_whole, payload in _read_backwards(tail):
        if not is_whole and beginning.startswith(b"data:"):
            report = _read_parts(beginning[5:], payload)
            return report if usage is None else msgspec.structs.replace(report, usage=usage)
        try:
            event = _event_decoder.decode(payload)
        except _BROKEN:
            usage = usage or _find_usage(payload)
            continue
        if event.response is not None:
            return _make_report(event.response)
        last = last or event
        usage = usage or _to_usage(event.usage)
        finish_reason = finish_reason or _find_finish_reason(event)
        if usage is not None and finish_reason is not None:
            break
    if last is None:
        return Report(usage=usage or _find_usage(tail))
    return Report(usage, finish_reason, last.model, last.service_tier, last.system_fingerprint)


def _read_backwards(tail: bytes) -> Iterator[tuple[bool, bytes]]:
    """Yield the payloads of a stream's last events, the last one first, and whether each is whole.

    No further than need be: the tail may hold hundreds of events.
    """
    end, found = len(tail), 0
    while end > 0 and found < _MAX_EVENTS:
        start = tail.rfind(b"\n", 0, end) + 1
        line = tail[start:end]
        end = start - 1
        if line.startswith(b"data:"):
            if not line.startswith(b"data: [DONE]"):
                found += 1
                yield True, line[5:]
        elif start == 0 and line.rstrip().endswith(b"}"):
            yield False, line


def _read_parts(beginning: bytes, end: bytes) -> Report:
    """Return what an answer, or the last event with a whole response, reports whose middle is missing."""
    first = read_beginning(beginning)
    depth = 2 if (1, b"response") in first else 1
    if depth == 2 and first.get((1, b"type"), b"").rpartition(b".")[2].strip(b'"') not in _LAST_EVENTS:
        return Report(usage=_find_usage(end))
    last = read_end(end)
    found = {key: value for (at, key), value in (*first.items(), *last.items()) if at == depth and key in _REPORTED}
    finish = last.get((depth + 2, b"finish_reason"))
    if finish is not None:
        found[b"choices"] = b'[{"finish_reason":%b}]' % finish
    try:
        return _make_report(_answer_decoder.decode(b"{%b}" % b",".join(b'"%b":%b' % pair for pair in found.items())))
    except _BROKEN:
        return Report(usage=_find_usage(end))


def _make_report(answer: _Answer) -> Report:
    return Report(
        _to_usage(answer.usage),
        _find_finish_reason(answer),
        answer.model,
        answer.service_tier,
        answer.system_fingerprint,
    )


def _find_finish_reason(answer: _Answer) -> str | None:
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
    of_input = found.input_tokens_details or found.prompt_tokens_details or _NO_DETAILS
    of_output = found.output_tokens_details or found.completion_tokens_details or _NO_DETAILS
    details = (
        of_input.cached_tokens,
        of_input.cache_write_tokens,
        of_output.reasoning_tokens,
        of_input.audio_tokens,
        of_output.audio_tokens,
    )
    return Usage(given, made, *[None if tokens is None else _to_count(tokens) for tokens in details])


def _to_count(tokens: int | float | None) -> int | None:
    """Return a count as a whole number; some upstreams tell of 14417.0 tokens, or of 14417.92."""
    if tokens is None or not 0 <= tokens <= _MOST_TOKENS:
        return None
    return tokens if type(tokens) is int else round(tokens)


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
