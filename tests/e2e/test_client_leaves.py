"""A client that goes away in any phase: the upstream connection closes, the slot is free, nothing goes on."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.upstreams import (
    LAST_CHUNK,
    PATHS,
    STREAM_HEAD,
    Conversation,
    ScriptedUpstream,
    answer_always,
    run_upstream,
    to_answer,
    to_chunk,
    to_event,
    to_request_body,
)

# Against hangs: no time-out of the gateway is as short.
SEEN_WITHIN_S = 30.0


class Client:
    """A client on a raw socket, which can leave at any moment."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.sock = socket.create_connection((host, int(port)), timeout=60)

    def send_request(self, api: str, *, stream: bool = False, cut: int | None = None, **more: Any) -> None:
        body = json.dumps(to_request_body(api, stream=stream, **more)).encode()
        head = f"POST {PATHS[api]} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        self.sock.sendall(head.encode() + body[:cut])

    def leave(self, *, by_reset: bool) -> float:
        if by_reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        return time.monotonic()


@pytest.fixture(scope="module")
def url_of_upstream() -> Iterator[ScriptedUpstream]:
    with run_upstream(answer_always) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, url_of_upstream: ScriptedUpstream) -> Iterator[Gunicorn]:
    settings = {"max_concurrent_requests": 1, "max_retries": 5, "retry_ratio": None}
    with run_gateway(tmp_path_factory.mktemp("leaves"), url_of_upstream.url, settings) as running:
        yield running


def _wait_in_phase(phase: str, in_phase: threading.Event, seen: list[float]) -> Any:
    def script(talk: Conversation) -> None:
        talk.read_request()
        if phase == "backoff":
            talk.send(to_answer(b"{}", status="500 Oops"))
            in_phase.set()
            talk.read_request()
            return
        if phase == "stream":
            talk.send(STREAM_HEAD + to_chunk(to_event("responses", "one")))
        if phase == "body":
            talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        in_phase.set()
        closed = talk.wait_until_closed()
        if closed is not None:
            seen.append(closed)

    return script


@pytest.mark.parametrize("by_reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("phase", ["first byte", "body", "stream"])
def test_upstream_connection_closes_at_once(
    phase: str, by_reset: bool, gateway: Gunicorn, url_of_upstream: ScriptedUpstream
) -> None:
    in_phase, seen = threading.Event(), list[float]()
    url_of_upstream.script = _wait_in_phase(phase, in_phase, seen)
    client = Client(gateway.url)
    client.send_request("responses", stream=phase == "stream")
    assert in_phase.wait(60)
    time.sleep(0.05)
    left = client.leave(by_reset=by_reset)
    eventually(lambda: bool(seen))
    print(f"\n{phase}: seen by the upstream after {(seen[0] - left) * 1000:.1f} ms")
    assert seen[0] - left < SEEN_WITHIN_S
    eventually(lambda: gateway.inspect()["in_flight"] == 0)
    eventually(lambda: "call client_gone" in gateway.log())


def test_no_further_attempt_is_made_for_a_client_that_left_during_backoff(
    gateway: Gunicorn, url_of_upstream: ScriptedUpstream
) -> None:
    in_phase = threading.Event()
    url_of_upstream.script = _wait_in_phase("backoff", in_phase, [])
    before = len(url_of_upstream.requests)
    client = Client(gateway.url)
    client.send_request("chat")
    assert in_phase.wait(60)
    time.sleep(0.1)
    client.leave(by_reset=False)
    eventually(lambda: gateway.inspect()["in_flight"] == 0, timeout_s=SEEN_WITHIN_S)
    time.sleep(1.2)
    assert len(url_of_upstream.requests) == before + 1


def test_slot_is_free_again_after_a_client_left_while_queued(
    gateway: Gunicorn, url_of_upstream: ScriptedUpstream
) -> None:
    in_phase, seen = threading.Event(), list[float]()
    url_of_upstream.script = _wait_in_phase("first byte", in_phase, seen)
    holder = Client(gateway.url)
    holder.send_request("responses")
    assert in_phase.wait(60)
    queued = [Client(gateway.url) for _ in range(5)]
    for client in queued:
        client.send_request("chat")
    eventually(lambda: gateway.inspect()["queued"] == 5)
    for index, client in enumerate(queued):
        client.leave(by_reset=index % 2 == 0)
    eventually(lambda: gateway.inspect()["queued"] == 0, timeout_s=SEEN_WITHIN_S)
    holder.leave(by_reset=False)
    url_of_upstream.script = answer_always
    assert requests.post(gateway.url + PATHS["chat"], json=to_request_body("chat"), timeout=60).ok
    assert gateway.inspect()["in_flight"] == 0


def test_client_that_leaves_while_sending_its_body_holds_nothing(gateway: Gunicorn) -> None:
    client = Client(gateway.url)
    client.send_request("responses", cut=10)
    time.sleep(0.1)
    client.leave(by_reset=False)
    eventually(lambda: gateway.inspect()["greenlets"] <= 2)
    assert gateway.inspect()["in_flight"] == 0


def test_client_that_leaves_while_connecting_holds_nothing(tmp_path: Path) -> None:
    hole = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(hole.getsockname())
    url = f"http://127.0.0.1:{hole.getsockname()[1]}"
    with run_gateway(tmp_path, url) as gateway:
        before = gateway.inspect()["fds"]
        client = Client(gateway.url)
        client.send_request("chat")
        eventually(lambda: gateway.inspect()["in_flight"] == 1)
        client.leave(by_reset=False)
        eventually(lambda: gateway.inspect()["in_flight"] == 0, timeout_s=SEEN_WITHIN_S)
        assert gateway.inspect()["fds"] <= before
    for sock in (hole, *fillers):
        sock.close()


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        pytest.param({"background": True}, {}, id="background"),
        pytest.param({}, {"cancel_on_disconnect": False}, id="configured"),
    ],
)
def test_call_that_must_not_be_cancelled_runs_to_its_end(
    more: dict[str, Any], settings: dict[str, Any], tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    answered = threading.Event()

    def answer_late(talk: Conversation) -> None:
        if talk.read_request() is None:
            return
        time.sleep(0.5)
        talk.send(to_answer(b'{"ok": true}'))
        # A cancelled call would have closed the connection before this.
        if not talk.wait_until_closed(0.2):
            answered.set()

    upstream.script = answer_late
    with run_gateway(tmp_path, upstream.url, settings) as gateway:
        client = Client(gateway.url)
        client.send_request("responses", **more)
        time.sleep(0.1)
        client.leave(by_reset=False)
        assert answered.wait(60)
        eventually(lambda: gateway.inspect()["in_flight"] == 0)


@pytest.mark.parametrize("by_reset", [False, True], ids=["closes", "resets"])
def test_stream_that_must_not_be_cancelled_is_read_to_its_end_and_its_usage_recorded(
    by_reset: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    is_read = threading.Event()
    usage = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\ndata: [DONE]\n\n'

    def stream(talk: Conversation) -> None:
        if talk.read_request() is None:
            return
        talk.send(STREAM_HEAD)
        for _ in range(15):
            talk.send(to_chunk(to_event("chat", "x" * 100_000)))
            time.sleep(0.02)
        talk.send(to_chunk(usage) + LAST_CHUNK)
        if not talk.wait_until_closed(0.2):
            is_read.set()

    upstream.script = stream
    log = tmp_path / "usage.jsonl"
    settings = {"cancel_on_disconnect": False, "usage_log": str(log)}
    with run_gateway(tmp_path, upstream.url, settings) as gateway:
        client = Client(gateway.url)
        client.send_request("chat", stream=True)
        time.sleep(0.1)
        client.leave(by_reset=by_reset)
        assert is_read.wait(60)
        eventually(lambda: gateway.inspect()["in_flight"] == 0)
        eventually(lambda: log.exists() and log.read_text() != "")
    record = json.loads(log.read_text())
    assert (record["outcome"], record["usage"]["output_tokens"]) == ("client_gone", 5)


def test_client_that_does_not_read_is_dropped_in_time(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    def flood(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD)
        for _ in range(4000):
            talk.send(to_chunk(to_event("chat", "x" * 8000)))

    upstream.script = flood
    with run_gateway(tmp_path, upstream.url, {"client_timeout_s": 0.5}) as gateway:
        client = Client(gateway.url)
        client.send_request("chat", stream=True)
        eventually(lambda: gateway.inspect()["in_flight"] == 1)
        eventually(lambda: gateway.inspect()["in_flight"] == 0)
        eventually(lambda: gateway.inspect()["greenlets"] <= 2)
        client.leave(by_reset=False)


def test_client_that_sends_its_body_too_slowly_gets_408(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    with run_gateway(tmp_path, upstream.url, {"client_timeout_s": 0.3}) as gateway:
        client = Client(gateway.url)
        client.send_request("chat", cut=5)
        answer = b""
        while b"}}" not in answer:
            answer += client.sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"request_timeout"' in answer
        client.leave(by_reset=False)


def test_rest_of_a_body_that_came_too_slowly_is_no_request(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Chunks that arrive after the 408 must not be taken for requests of their own."""
    upstream.script = answer_always
    inner = b'POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"input": "x"}'
    with run_gateway(tmp_path, upstream.url, {"client_timeout_s": 0.3}) as gateway:
        client = Client(gateway.url)
        head = b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sock.sendall(head + b"%x\r\n{" % (len(inner) + 1))
        answer = client.sock.recv(65536)
        with contextlib.suppress(OSError):
            client.sock.sendall(inner + b"\r\n0\r\n\r\n")
            while piece := client.sock.recv(65536):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in answer
    assert not upstream.requests


def test_pipelining_client_is_served_in_order_and_does_not_spin_the_worker(
    gateway: Gunicorn, url_of_upstream: ScriptedUpstream
) -> None:
    def answer_late(talk: Conversation) -> None:
        while talk.read_request() is not None:
            time.sleep(0.6)
            talk.send(to_answer(b'{"ok": true}'))

    url_of_upstream.script = answer_late
    worker = gateway.inspect()["pid"]
    client = Client(gateway.url)
    client.send_request("chat")
    time.sleep(0.1)
    client.send_request("chat")
    before = _cpu_ticks(worker)
    time.sleep(0.4)
    assert _cpu_ticks(worker) - before <= 10, "the worker spins on the pipelined bytes"
    received = b""
    while received.count(b'{"ok": true}') < 2:
        received += client.sock.recv(65536)
    client.leave(by_reset=False)


def test_total_time_bounds_a_call_and_is_not_tried_again(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    def drip(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD)
        for _ in range(100):
            talk.send(to_chunk(to_event("responses", "x")))
            time.sleep(0.05)
        talk.send(LAST_CHUNK)

    upstream.script = drip
    with run_gateway(tmp_path, upstream.url, {"total_timeout_s": 0.5}) as gateway:
        body = to_request_body("responses", stream=True)
        answer = requests.post(gateway.url + PATHS["responses"], json=body, timeout=60)
        assert b'"code": "upstream_timeout"' in answer.content
        upstream.script = lambda talk: talk.wait_until_closed() and None
        plain = requests.post(gateway.url + PATHS["responses"], json=to_request_body("responses"), timeout=60)
        assert (plain.status_code, plain.json()["error"]["code"]) == (504, "upstream_timeout")
        assert upstream.connections == 2
        assert gateway.inspect()["in_flight"] == 0


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
