"""Which of gunicorn's workers the gateway takes, and that gunicorn's settings go on working under its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import requests

from tests.support.certificates import make_certificates
from tests.support.processes import ROOT, eventually, run_gateway, write_config
from tests.support.upstreams import (
    LAST_CHUNK,
    PATHS,
    STREAM_HEAD,
    Conversation,
    answer_always,
    run_upstream,
    to_answer,
    to_chunk,
    to_event,
    to_request_body,
)

REQUEST = b'POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"input": "x"}'


@pytest.mark.parametrize("name", ["sync", "gthread", "gevent_pywsgi"])
def test_any_other_worker_is_refused_with_one_message(name: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9")
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-k", name, "-b", "127.0.0.1:0", "--no-control-socket", "wsgi:app"],
        cwd=ROOT,
        env={"OPENAI_GATEWAY_CONFIG_PATHS": str(config), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 4
    assert ended.stderr.count("The gateway needs gunicorn's gevent worker, and this is ") == 1
    assert "Traceback" not in ended.stderr


def test_access_log_and_proxy_protocol_go_on_working(tmp_path: Path) -> None:
    arguments = ["--access-logfile", "-", "--proxy-protocol", "v1", "--proxy-allow-from", "*"]
    with run_upstream(answer_always) as upstream, run_gateway(tmp_path, upstream.url, None, *arguments) as gateway:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n" + REQUEST)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            client.sendall(REQUEST)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        eventually(lambda: gateway.log().count("192.0.2.7 - - [") == 2)
        assert gateway.log().count('"POST /v1/responses HTTP/1.1" 200') == 2


def test_tls_goes_on_working(tmp_path: Path) -> None:
    def serve(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if b'"stream"' in request.body:
                talk.send(
                    STREAM_HEAD + to_chunk(to_event("chat", "x")) * 3 + to_chunk(b"data: [DONE]\n\n") + LAST_CHUNK
                )
            else:
                talk.send(to_answer(b'{"ok": true}'))

    made = make_certificates(tmp_path)
    arguments = ["--certfile", str(made.server), "--keyfile", str(made.server_key)]
    with run_upstream(serve) as upstream, run_gateway(tmp_path, upstream.url, None, *arguments) as gateway:
        session = requests.Session()
        session.trust_env, session.verify = False, str(made.ca)
        url = gateway.url + PATHS["chat"]
        for _ in range(3):
            assert session.post(url, json=to_request_body("chat"), timeout=60).json() == {"ok": True}
        large = {**to_request_body("chat"), "user": "x" * 500_000}
        assert session.post(url, json=large, timeout=60).ok
        streamed = session.post(url, json=to_request_body("chat", stream=True), timeout=60)
        assert streamed.content.count(to_event("chat", "x")) == 3
        assert streamed.content.endswith(b"data: [DONE]\n\n")


def test_client_over_tls_that_stops_reading_gives_its_slot_back(tmp_path: Path) -> None:
    def stream_on(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD)
        for _ in range(3000):
            talk.send(to_chunk(b"data: " + b"x" * 10_000 + b"\n\n"))

    made = make_certificates(tmp_path)
    arguments = ["--certfile", str(made.server), "--keyfile", str(made.server_key)]
    settings = {"client_timeout_s": 1}
    with run_upstream(stream_on) as upstream, run_gateway(tmp_path, upstream.url, settings, *arguments) as gateway:

        def count_in_flight() -> object:
            return requests.get(f"{gateway.url}/__inspect", verify=str(made.ca), timeout=60).json()["in_flight"]

        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.connect(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
            with ssl.create_default_context(cafile=str(made.ca)).wrap_socket(
                plain, server_hostname="localhost"
            ) as client:
                client.sendall(
                    REQUEST.replace(b'14\r\n\r\n{"input": "x"}', b'30\r\n\r\n{"input": "x", "stream": true}')
                )
                eventually(lambda: len(upstream.requests) == 1)
                eventually(lambda: count_in_flight() == 0)


@pytest.mark.parametrize("workers", [2, 4])
def test_connections_are_spread_evenly_over_workers(workers: int, tmp_path: Path) -> None:
    count = 16 * workers
    with (
        run_upstream(answer_always) as upstream,
        run_gateway(tmp_path, upstream.url, None, "--workers", str(workers)) as gateway,
        contextlib.ExitStack() as stack,
    ):
        eventually(lambda: len(gateway.workers()) == workers)
        # Each has said once how many it has.
        eventually(lambda: len({gateway.inspect()["pid"] for _ in range(workers)}) == workers)
        sessions = [stack.enter_context(requests.Session()) for _ in range(count)]
        pids = Counter(session.get(gateway.url + "/__inspect", timeout=60).json()["pid"] for session in sessions)
        assert max(pids.values()) <= 1.3 * min(pids[pid] for pid in gateway.workers())


def test_calls_are_answered_while_a_recycled_worker_ends_its_last_call(tmp_path: Path) -> None:
    is_over = threading.Event()

    def serve(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if b"long" in request.body:
                is_over.wait(120)
            talk.send(to_answer(b'{"ok": true}'))

    def call(what: str) -> int:
        body = {**to_request_body("chat"), "user": what}
        return requests.post(gateway.url + PATHS["chat"], json=body, timeout=60).status_code

    with run_upstream(serve) as upstream, run_gateway(tmp_path, upstream.url, None, "--max-requests", "8") as gateway:
        old = gateway.inspect()["pid"]
        long_call: list[int] = []
        thread = threading.Thread(target=lambda: long_call.append(call("long")))
        thread.start()
        eventually(lambda: any(b"long" in request.body for request in upstream.requests))
        assert {call("short") for _ in range(10)} == {200}
        assert old in gateway.workers()
        is_over.set()
        thread.join(60)
        assert long_call == [200]
        eventually(lambda: old not in gateway.workers() and len(gateway.workers()) == 1)
