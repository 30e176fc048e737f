"""How much work a call is, exactly: the calls of Python's for one warm call and for one event of a stream.

Unlike a time, the count doesn't depend on the machine or its load. If yours is higher for a good reason, say so where
you raise the figure; if it is lower, lower the figure.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import run_gateway
from tests.support.upstreams import (
    LAST_CHUNK,
    STREAM_HEAD,
    Conversation,
    run_upstream,
    to_answer,
    to_chunk,
    to_event,
    to_request_body,
)
from tests.support.websockets import RawWebSocket, accept_websocket, open_websocket, to_create, to_server_event

# On Python 3.11; later versions count fewer, for comprehensions are no calls there.
# 0.1.0 took 158 and 5.
MOST_OF_A_CALL = 125
MOST_OF_AN_EVENT = 3
MOST_OF_A_WEBSOCKETS_EVENT = 3
# Of the gateway's own: a reader has to follow a call through all of them.
MOST_FILES = 36
PACKAGE = Path(__file__).parents[2] / "openai_gateway"
CALLS = 50
EVENTS = 50
# Called if a socket's bytes are not there yet, and if calls are slow to come.
OF_THE_MOMENT = {
    "gevent/_compat.py:exc_clear",
    "upstream/recorder.py:_settle_in_time",
    "upstream/recorder.py:settle",
    # Timers, on a machine so busy that a call takes as long.
    "server/waits.py:tick",
    "transport/ticker.py:_tick",
    "transport/ticker.py:add",
    "transport/watch.py:tick",
    "transport/watch.py:_rest",
    "transport/watch.py:_look_again",
    "wire/rate_limits.py:<genexpr>",
    "wire/rate_limits.py:_read_number",
}


class Client:
    """A connection on which each request goes out in one piece, as does each answer's reading."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._file = self._socket.makefile("rb")

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        lines = [f"{method} {path} HTTP/1.1", "host: gateway", "accept: application/json", "user-agent: test"]
        if body:
            lines += ["authorization: Bearer sk-x", "content-type: application/json", f"content-length: {len(body)}"]
        self._socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def read_head(self) -> dict[str, str]:
        assert self._file.readline().startswith(b"HTTP/1.1 200 ")
        headers = {}
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return headers

    def read_chunk(self) -> bytes:
        chunk = self._file.read(int(self._file.readline(), 16))
        self._file.readline()
        return chunk

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        self.send(method, path, body)
        return self._file.read(int(self.read_head()["content-length"]))

    def count_calls(self) -> Counter[str]:
        """Return what was counted since the last time."""
        return Counter(json.loads(self.ask("GET", "/__calls")))

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.mark.skipif(sys.gettrace() is not None, reason="coverage counts calls itself")
def test_a_call_and_an_event_take_no_more_calls_of_pythons_than_they_did(tmp_path: Path) -> None:
    go_on = threading.Semaphore(0)

    def serve(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if b'"stream"' not in request.body:
                talk.send(to_answer(b'{"ok": true}'))
                continue
            talk.send(STREAM_HEAD)
            for _ in range(json.loads(request.body)["n"]):
                assert go_on.acquire(timeout=60)
                talk.send(to_chunk(to_event("chat", "x")))
            assert go_on.acquire(timeout=60)
            talk.send(to_chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    def stream(client: Client, events: int) -> Counter[str]:
        client.count_calls()
        body: dict[str, Any] = {**to_request_body("chat", stream=True), "n": events}
        client.send("POST", "/v1/chat/completions", json.dumps(body).encode())
        go_on.release()
        client.read_head()
        for _ in range(events):
            client.read_chunk()
            go_on.release()
        while client.read_chunk():
            pass
        return client.count_calls()

    body = json.dumps(to_request_body("chat")).encode()
    with run_upstream(serve) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        client = Client(gateway.url)
        for _ in range(20):
            client.ask("POST", "/v1/chat/completions", body)
        client.count_calls()
        begun = time.monotonic()
        for _ in range(CALLS):
            client.ask("POST", "/v1/chat/completions", body)
        took_s = time.monotonic() - begun
        of_calls = client.count_calls()
        # What timers do meanwhile, which on a busy machine is much, and what counting itself takes.
        time.sleep(took_s)
        of_calls.subtract(client.count_calls())
        stream(client, EVENTS)
        few, many = stream(client, EVENTS), stream(client, 2 * EVENTS)
        many.subtract(few)
        client.close()
    of_call, of_event = _to_one(of_calls, CALLS), _to_one(many, EVENTS)
    assert of_call.total() <= MOST_OF_A_CALL, of_call.most_common()
    assert of_event.total() <= MOST_OF_AN_EVENT, of_event.most_common()
    files = {name.partition(":")[0] for name in of_call}
    own = sorted(file for file in files if (PACKAGE / file).exists() or (PACKAGE.parent / file).exists())
    assert len(own) <= MOST_FILES, own


@pytest.mark.skipif(sys.gettrace() is not None, reason="coverage counts calls itself")
def test_an_event_over_a_websocket_takes_no_more_calls_of_pythons_than_it_did(tmp_path: Path) -> None:
    go_on = threading.Semaphore(0)

    def serve(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        upstream.receive_event()
        upstream.send(to_server_event("created"))
        while go_on.acquire(timeout=60):
            upstream.send(to_server_event("output_text.delta", delta="x"))

    def pass_on(counter: Client, client: RawWebSocket, events: int) -> Counter[str]:
        counter.count_calls()
        for _ in range(events):
            go_on.release()
            client.receive()
        return counter.count_calls()

    with run_upstream(serve) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        counter, client = Client(gateway.url), open_websocket(gateway.url)
        client.send(to_create())
        client.receive()
        pass_on(counter, client, EVENTS)
        few, many = pass_on(counter, client, EVENTS), pass_on(counter, client, 2 * EVENTS)
        many.subtract(few)
        counter.close()
        client.leave()
    of_event = _to_one(many, EVENTS)
    assert 0 < of_event.total() <= MOST_OF_A_WEBSOCKETS_EVENT, of_event.most_common()


def _to_one(counted: Counter[str], times: int) -> Counter[str]:
    """Return what is called each time; what depends on the moment, such as a look at a clock, is left out."""
    each = {name: round(count / times) for name, count in counted.items() if name not in OF_THE_MOMENT}
    return Counter({name: count for name, count in each.items() if count})
