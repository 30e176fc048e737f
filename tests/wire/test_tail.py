"""What is kept of an answer tells model, tier, finish reason and usage, whatever its length and however it comes."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from time import monotonic
from typing import Any

import pytest

from openai_gateway.wire.body import ChunkedDecoder
from openai_gateway.wire.head import Head
from openai_gateway.wire.sse import is_event_stream
from openai_gateway.wire.tail import Tail, make_tail
from openai_gateway.wire.usage import Report, Usage, read_answer, read_stream

CHAT = Report(Usage(10, 5, 3, None, 2), "length", "m-1", "flex", "fp")
RESPONSE = Report(Usage(10, 5, 3, None, 2), "max_output_tokens", "m-1", "flex")
# What looks like a report, in a text and in an object of its own.
DECOY = 'He said: "usage": {"input_tokens": 1}, "model": "no", "service_tier": "no" {[ \\" \\'
NESTED = {"model": "no", "service_tier": "no", "status": "no", "usage": {"input_tokens": 1, "output_tokens": 1}}


def _usage(given: str, made: str, of_given: str, of_made: str) -> dict[str, Any]:
    return {given: 10, made: 5, of_given: {"cached_tokens": 3}, of_made: {"reasoning_tokens": 2}}


def _response(size: int) -> dict[str, Any]:
    return {
        "id": "r",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "model": "m-1",
        "output": [{"status": "completed", "content": [{"text": DECOY + "x" * size}], "metadata": NESTED}],
        "service_tier": "flex",
        "tools": [{"name": "f", "parameters": NESTED}],
        "usage": _usage("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details"),
        "metadata": {"model": "no", "note": DECOY},
    }


def _chat(size: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": "x" * size + DECOY}
    return {
        "model": "m-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
        "usage": _usage("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"),
        "service_tier": "flex",
        "system_fingerprint": "fp",
    }


def _stream(size: int) -> bytes:
    created = {"type": "response.created", "response": {"model": "no", "service_tier": "auto", "status": "in_progress"}}
    delta = {"type": "response.output_text.delta", "delta": DECOY}
    item = {"type": "response.output_item.done", "item": {"status": "completed", "text": "x" * size}}
    done = {"type": "response.incomplete", "response": _response(size), "sequence_number": 9}
    events = [created, *[delta] * 20, item, done]
    return b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)


def _chat_stream(size: int) -> bytes:
    choice = {"index": 0, "delta": {"content": "x" * size + DECOY}, "finish_reason": None}
    chunks: list[dict[str, Any]] = [
        {"model": "m-1", "service_tier": "flex", "system_fingerprint": "fp", "choices": [choice]}
    ] * 3
    whole = _chat(0)
    chunks.append({**chunks[0], "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    chunks.append({**chunks[0], "choices": [], "usage": whole["usage"]})
    data = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    return data + b"data: [DONE]\n\n" + b": still here\n\n" * 30


ANSWERS = {
    "response": (lambda size: json.dumps(_response(size)).encode(), "application/json", RESPONSE),
    "indented response": (lambda size: json.dumps(_response(size), indent=2).encode(), "application/json", RESPONSE),
    "chat": (lambda size: json.dumps(_chat(size)).encode(), "application/json", CHAT),
    "indented chat": (lambda size: json.dumps(_chat(size), indent=2).encode() + b"\n", "application/json", CHAT),
    "response stream": (_stream, "text/event-stream", RESPONSE),
    "chat stream": (_chat_stream, "text/event-stream", CHAT),
}


def _report(tail: Tail, head: Head) -> Report:
    read = read_stream if is_event_stream(head.known["content-type"]) else read_answer
    return read(tail.end(), tail.beginning())


def _add(tail: Tail, body: bytes, sizes: random.Random, most: int) -> None:
    while body:
        length = sizes.randint(1, most)
        piece, body = body[:length], body[length:]
        if tail.takes_chunks and sizes.random() < 0.7:
            # As an upstream's chunks come: an event each, if there are events, and what is torn by itself.
            chunks = b"".join([b"%x\r\n%b\r\n" % (len(line), line) for line in piece.splitlines(keepends=True)])
            tail.length += len(piece)
            decoder = ChunkedDecoder()
            decoder.feed(chunks)
            tail.add_chunks(chunks, decoder.mark if decoder.whole_length(chunks) else 0)
        else:
            tail.add(piece)


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
@pytest.mark.parametrize("is_captured", [False, True])
@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("size", [0, 3_000, 20_000, 40_000, 200_000])
def test_report_is_read_however_long_the_answer_and_however_it_comes(
    kind: str, size: int, encoding: str, is_captured: bool
) -> None:
    make, content_type, expected = ANSWERS[kind]
    whole = make(size)
    body = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[encoding](whole)
    head = Head(200, "OK", [("content-type", content_type), ("content-encoding", encoding)])
    sizes = random.Random(size)
    # The smallest pieces make large answers slow to test and tell nothing new.
    for most in [64 * 1024, 5_000, 1_400, *([40] if len(body) < 10_000 else [])]:
        tail = make_tail(head, monotonic, is_captured=is_captured)
        _add(tail, body, sizes, most)
        assert _report(tail, head) == expected
        assert tail.length == len(body)
        assert len(tail.end()) < 64 * 1024
        if is_captured:
            assert tail.kept() == whole


def test_compressed_answer_that_grows_without_end_is_given_up() -> None:
    head = Head(200, "OK", [("content-type", "application/json"), ("content-encoding", "gzip")])
    tail = make_tail(head, monotonic, is_captured=True)
    for _ in range(3):
        tail.add(gzip.compress(b"x" * 10_000_000))
    assert (tail.end(), tail.kept(), _report(tail, head)) == (b"", None, Report())


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip"])
def test_what_cant_be_decoded_is_unknown(encoding: str) -> None:
    head = Head(200, "OK", [("content-type", "application/json"), ("content-encoding", encoding)])
    tail = make_tail(head, monotonic, is_captured=True)
    tail.add(json.dumps(_chat(0)).encode())
    assert (tail.end(), tail.kept(), _report(tail, head)) == (b"", None, Report())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_report_is_read_where_each_line_comes_by_itself(end: str, *, is_chunked: bool) -> None:
    text = _chat_stream(100).replace(b"\n", end.encode())
    tail = Tail(monotonic)
    for line in text.splitlines(keepends=True):
        if is_chunked:
            tail.add_chunks(b"%x\r\n%b\r\n" % (len(line), line))
        else:
            tail.add(line)
    assert read_stream(tail.end(), tail.beginning()) == CHAT
    assert len(tail.end()) < 2_000, "blank lines behind comments were kept"


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b" \n", b"\r\r\n", b" " * 63 + b"\n"])
def test_blank_lines_are_not_kept_for_ever(blank: bytes) -> None:
    tail = Tail(monotonic)
    tail.add(b"data: x\n")
    for _ in range(100):
        tail.add(blank)
        tail.add_chunks(b"%x\r\n%b\r\n" % (len(blank), blank))
    assert len(tail.end()) < 300
