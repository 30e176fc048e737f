"""`/readyz`: whether calls can succeed, as probes and operators ask; never behind the key, the cap or a call."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.upstreams import (
    PATHS,
    Conversation,
    answer_always,
    run_upstream,
    to_answer,
    to_request_body,
)

REFUSAL = b'{"error": {"message": "Incorrect API key", "type": "x", "param": null, "code": "invalid_api_key"}}'
READY_SERVER = {
    "in_flight": 0,
    "queued": 0,
    "queue_reason": "",
    "retrying": {},
    "max_concurrent_requests": None,
    "most_in_flight": None,
    "limits": {},
    "breaker": "closed",
}


def _answer_with(status: str, body: bytes = b"{}") -> Any:
    def script(talk: Conversation) -> None:
        while talk.read_request() is not None:
            talk.send(to_answer(body, status=status))

    return script


def _ask(gateway: Gunicorn, query: str = "") -> tuple[int, dict[str, Any]]:
    answer = requests.get(f"{gateway.url}/readyz{query}", timeout=60)
    body = answer.json()
    assert body["status"] == ("ready" if answer.status_code == 200 else "not ready")
    return answer.status_code, body["servers"]["policy_model"]


def _call(gateway: Gunicorn) -> int:
    return requests.post(gateway.url + PATHS["chat"], json=to_request_body("chat"), timeout=60).status_code


def test_gateway_is_ready_without_asking_the_upstream(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        assert _ask(gateway) == (200, READY_SERVER)
        assert _ask(gateway, "?upstream=0") == (200, READY_SERVER)
        assert upstream.connections == 0


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param("200 OK", 200, id="good"),
        pytest.param("404 Not Found", 200, id="serves no models"),
        pytest.param("429 Slow Down", 200, id="rate-limited"),
        pytest.param("401 Unauthorized", 503, id="refuses the key"),
        pytest.param("403 Forbidden", 503, id="forbids"),
        pytest.param("500 Oops", 503, id="fails"),
    ],
)
def test_upstream_is_asked_for_its_models(status: str, expected: int, tmp_path: Path) -> None:
    with run_upstream(_answer_with(status)) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        assert _ask(gateway, "?upstream=1") == (expected, {**READY_SERVER, "upstream": int(status[:3])})
        assert [(request.method, request.target) for request in upstream.requests] == [("GET", "/v1/models")]
        assert upstream.requests[0].headers["authorization"] == "Bearer sk-upstream-key"
        # What a probe learns is the prober's: calls are still made, and decide for themselves.
        assert _ask(gateway) == (200, READY_SERVER)


def test_upstream_that_is_not_there_is_named(tmp_path: Path) -> None:
    with run_upstream(answer_always) as gone:
        url = gone.url
    with run_gateway(tmp_path, url) as gateway:
        assert _ask(gateway, "?upstream=1") == (503, {**READY_SERVER, "upstream": "upstream_unreachable"})


def test_server_whose_key_is_refused_is_not_ready_until_the_next_probe_is_due(tmp_path: Path) -> None:
    settings = {"breaker_cooldown_s": 3, "max_retries": 0}
    refuse = _answer_with("401 Unauthorized", REFUSAL)
    with run_upstream(refuse) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        assert [_call(gateway) for _ in range(2)] == [401, 401]
        assert _ask(gateway) == (503, {**READY_SERVER, "breaker": "open"})
        # A balancer that sends calls to those that are ready only would else never let the probe through.
        eventually(lambda: _ask(gateway) == (200, {**READY_SERVER, "breaker": "open"}))
        assert len(upstream.requests) == 2
        upstream.script = answer_always
        assert _call(gateway) == 200
        assert _ask(gateway) == (200, READY_SERVER)


def test_full_server_that_wants_a_key_answers_probes_at_once(tmp_path: Path) -> None:
    is_over = threading.Event()

    def hold(talk: Conversation) -> None:
        if talk.read_request() is not None:
            is_over.wait(120)
            talk.send(to_answer(b"{}"))

    settings = {"max_concurrent_requests": 1, "gateway_api_keys": ["sk-client"]}
    with run_upstream(hold) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        headers = {"authorization": "Bearer sk-client"}
        url, body = gateway.url + PATHS["chat"], to_request_body("chat")
        callers = [
            threading.Thread(
                target=requests.post, args=(url,), kwargs={"json": body, "headers": headers, "timeout": 30}
            )
            for _ in range(2)
        ]
        for caller in callers:
            caller.start()
        full = {**READY_SERVER, "in_flight": 1, "queued": 1, "queue_reason": "slot", "max_concurrent_requests": 1}
        eventually(lambda: _ask(gateway) == (200, full))
        is_over.set()
        for caller in callers:
            caller.join(60)


def test_draining_process_is_not_ready(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        address = urlsplit(gateway.url)
        # Opened before, because a process that drains takes no new connections; it ends those that are idle.
        with (
            socket.create_connection((address.hostname, address.port), timeout=60) as asked,
            socket.create_connection((address.hostname, address.port), timeout=60) as idle,
        ):
            asked.sendall(b"GET /readyz HTTP/1.1\r\n")
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert idle.recv(65536).startswith(b"HTTP/1.1 200")
            gateway.send_signal(signal.SIGTERM)
            while idle.recv(65536):
                pass
            asked.sendall(b"Host: gateway\r\n\r\n")
            assert asked.recv(65536).startswith(b"HTTP/1.1 503")
        assert gateway.process.wait(60) == 0
