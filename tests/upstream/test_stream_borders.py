"""Wherever events, chunks and pieces end: each byte passes, and what a stream reports at its end is found."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from time import monotonic

import pytest

from openai_gateway.wire import body
from openai_gateway.wire.body import ChunkedDecoder
from openai_gateway.wire.tail import Tail
from openai_gateway.wire.usage import Report, Usage, read_stream
from tests.upstream.test_pump import _Client, _pump

SIZES = {"small": [0, 90], "mixed": [0, 90, 1500], "large": [0, 90, 5000, 50_000]}


def _event(end: bytes, name: str, **members: object) -> bytes:
    start = b"event: %b%b" % (name.encode(), end) if name else b""
    return start + b"data: %b" % json.dumps({"type": name, **members}).encode() + end * 2


def _make_events(chance: random.Random, end: bytes) -> tuple[list[bytes], Report]:
    """Return a stream's events, and what its last ones report."""
    sizes = SIZES[chance.choice(sorted(SIZES))]
    texts = ["x" * chance.randint(0, chance.choice(sizes)) for _ in range(chance.choice([0, 3, 40, 400]))]
    comments = [b": still here" + end * 2] * chance.choice([0, 0, 1, 20])
    if chance.random() < 0.5:
        deltas = [_event(end, "response.output_text.delta", delta=text) for text in texts]
        usage = {"input_tokens": 10, "output_tokens": 5}
        response = {"status": "completed", "model": "m", "service_tier": "flex", "usage": usage}
        text = "x" * chance.choice([0, 3000, 3900, 4100, 50_000])
        completed = _event(end, "response.completed", response={"output": [text], **response})
        return [*deltas, completed, *comments], Report(Usage(10, 5), "completed", "m", "flex")
    common = {"model": "m", "service_tier": "flex"}
    chunks = [_event(end, "", **common, choices=[{"delta": {"content": text}}]) for text in texts]
    chunks.append(_event(end, "", **common, choices=[{"delta": {}, "finish_reason": "length"}]))
    chunks.append(_event(end, "", **common, choices=[], usage={"prompt_tokens": 10, "completion_tokens": 5}))
    return [*chunks, b"data: [DONE]" + end * 2, *comments], Report(Usage(10, 5), "length", "m", "flex")


def _cut(chance: random.Random, text: bytes, most: int) -> Iterator[bytes]:
    at, most = 0, max(most, len(text) // 1000)
    while at < len(text):
        length = chance.choice([most, chance.randint(1, most)])
        yield text[at : at + length]
        at += length


def _to_wire(chance: random.Random, events: list[bytes]) -> Iterator[bytes]:
    """Yield a stream's chunks: an event or a line each, or with borders of their own, as behind a proxy."""
    payloads = events
    if chance.random() < 0.2:
        payloads = b"".join(events).splitlines(keepends=True)
    elif chance.random() < 0.6:
        payloads = list(_cut(chance, b"".join(events), chance.choice([7, 40, 1000, 3991, 130_000])))
    extension = chance.choice([b"", b"", b"", b";a=b"])
    for payload in payloads:
        yield b"%x%b\r\n%b\r\n" % (len(payload), extension if chance.random() < 0.2 else b"", payload)
    yield b"0\r\n%b\r\n" % chance.choice([b"", b"x-trailer: 1\r\n"])


@pytest.mark.parametrize("seed", range(120))
def test_stream_passes_whole_and_its_report_is_found(seed: int) -> None:
    chance = random.Random(seed)
    events, report = _make_events(chance, chance.choice([b"\n", b"\n", b"\r\n"]))
    chunks = list(_to_wire(chance, events))
    wire = b"".join(chunks)
    body._KNOWN_SIZES.clear()
    if chance.random() < 0.7:
        # Sizes are known once they were seen.
        ChunkedDecoder().feed(wire)
    pieces = chunks if chance.random() < 0.3 else list(_cut(chance, wire, chance.choice([1448, 16_384, 122_880])))
    first = pieces.pop(0) if pieces and chance.random() < 0.6 else b""
    client = _Client(chance.choice([1 << 20, 7000]), is_slow=chance.random() < 0.3)
    tail = Tail(monotonic)
    _pump([*pieces], client, tail, first)
    decoder, whole = ChunkedDecoder(), b"".join(events)
    assert decoder.feed(client.got) == whole
    assert (decoder.done, decoder.surplus) == (True, b"")
    assert tail.length == len(whole)
    assert read_stream(tail.end(), tail.beginning()) == report
    assert len(tail.end()) < 64 * 1024
