"""nginx in front of the gateway, with the shipped site: what passes through the gateway passes through it too."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from openai_gateway.config import ServerConfig
from tests.support.nginx import SITE, Nginx, needs_nginx, run_nginx
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

pytestmark = needs_nginx
MAX_BODY_BYTES = 8 << 20


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with run_upstream(answer_always) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream) -> Iterator[Gunicorn]:
    settings = {"max_retries": 0, "max_concurrent_requests": 4, "breaker_cooldown_s": None}
    settings["max_body_bytes"] = MAX_BODY_BYTES
    with run_gateway(tmp_path_factory.mktemp("gateway"), upstream.url, settings) as running:
        yield running


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, gateway: Gunicorn) -> Iterator[Nginx]:
    with run_nginx(tmp_path_factory.mktemp("nginx"), gateway.url) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left_in_flight(gateway: Gunicorn) -> Iterator[None]:
    yield
    eventually(lambda: gateway.inspect()["in_flight"] == 0)


def _post(nginx: Nginx, path: str, body: object, *, stream: bool = False) -> requests.Response:
    return requests.post(f"{nginx.url}{path}", json=body, verify=nginx.ca, stream=stream, timeout=60)


def _connect(nginx: Nginx) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", nginx.port), timeout=60)
    return ssl.create_default_context(cafile=nginx.ca).wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize("api", ["responses", "chat"])
def test_stream_arrives_event_by_event(api: str, nginx: Nginx, upstream: ScriptedUpstream) -> None:
    has_arrived = threading.Semaphore(0)
    is_given_up = threading.Event()

    def send_when_the_one_before_has_arrived(talk: Conversation) -> None:
        talk.read_request()
        talk.send(STREAM_HEAD)
        for number in range(20):
            talk.send(to_chunk(to_event(api, f"event {number}")))
            if not has_arrived.acquire(timeout=60):
                is_given_up.set()
                return
        talk.send(LAST_CHUNK)

    upstream.script = send_when_the_one_before_has_arrived
    with _post(nginx, PATHS[api], to_request_body(api, stream=True), stream=True) as answer:
        events = [to_event(api, f"event {number}") for number in range(20)]
        for event in events:
            received = b""
            while len(received) < len(event):
                received += answer.raw.read1(len(event) - len(received))
            assert received == event
            has_arrived.release()
        assert answer.raw.read1() == b""
    assert not is_given_up.is_set()


@pytest.mark.parametrize("by_reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("phase", ["first byte", "stream"])
def test_client_that_leaves_ends_its_call_upstream(
    phase: str, by_reset: bool, nginx: Nginx, gateway: Gunicorn, upstream: ScriptedUpstream
) -> None:
    is_in_phase, is_closed = threading.Event(), threading.Event()

    def wait(talk: Conversation) -> None:
        talk.read_request()
        if phase == "stream":
            talk.send(STREAM_HEAD + to_chunk(to_event("chat", "one")))
        is_in_phase.set()
        if talk.wait_until_closed() is not None:
            is_closed.set()

    upstream.script = wait
    body = json.dumps(to_request_body("chat", stream=phase == "stream")).encode()
    client = _connect(nginx)
    head = f"POST {PATHS['chat']} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    assert is_in_phase.wait(60)
    if phase == "stream":
        received = b""
        while b"one" not in received:
            received += client.recv(65536)
    assert not is_closed.is_set()
    if by_reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert is_closed.wait(60)
    eventually(lambda: gateway.inspect()["in_flight"] == 0)


@pytest.mark.parametrize(
    "status",
    [
        *("200 OK", "400 Bad Request", "401 Unauthorized", "404 Not Found", "429 Slow Down"),
        *("500 Oops", "502 Bad Gateway", "503 Busy", "504 Late", "529 Overloaded"),
    ],
)
def test_status_headers_and_body_pass(status: str, nginx: Nginx, upstream: ScriptedUpstream) -> None:
    sent = {
        "x-request-id": "req_1",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-tokens": "6m0s",
        "retry-after-ms": "5",
    }
    body = json.dumps({"status": status}).encode()
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())

    def answer(talk: Conversation) -> None:
        while talk.read_request() is not None:
            talk.send(to_answer(body, status=status, headers=f"content-type: application/json\r\n{head}"))

    upstream.script = answer
    found = requests.post(
        f"{nginx.url}{PATHS['responses']}",
        json=to_request_body("responses"),
        headers={"x-client-request-id": "mine"},
        verify=nginx.ca,
        timeout=60,
    )
    assert (found.status_code, found.content) == (int(status[:3]), body)
    assert sent.items() <= {name.lower(): value for name, value in found.headers.items()}.items()
    assert found.headers["x-gateway-request-id"]
    assert upstream.requests[-1].headers["x-client-request-id"] == "mine"


def test_large_body_passes_whole(nginx: Nginx, upstream: ScriptedUpstream) -> None:
    upstream.script = answer_always
    body = {"input": "x" * (5 << 20)}
    assert _post(nginx, PATHS["responses"], body).status_code == 200
    assert json.loads(upstream.requests[-1].body)["input"] == body["input"]


def test_body_over_the_limit_gets_the_gateways_own_answer(nginx: Nginx) -> None:
    # nginx is still sending when the answer comes, and must not be reset meanwhile.
    for times in (1, 2, 2, 2, 2):
        answer = _post(nginx, PATHS["responses"], {"input": "x" * (MAX_BODY_BYTES * times + 1)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_silence_is_the_gateways_to_judge() -> None:
    found = re.search(r"^\s*proxy_read_timeout (\d+)h;$", SITE.read_text(), re.MULTILINE)
    assert found is not None
    server = ServerConfig("policy_model", "https://upstream.example/v1", "a-model")
    assert int(found[1]) * 3600 > 10 * max(server.first_byte_timeout_s or 0, server.idle_timeout_s or 0)


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_call_that_breaks_is_not_sent_twice_and_gets_an_error_in_openais_form(method: str, tmp_path: Path) -> None:
    def break_the_second(talk: Conversation) -> None:
        talk.read_request()
        talk.send(to_answer(b"{}"))
        talk.read_request()

    # In the gateway's place, with a connection that nginx has kept from asking whether it is ready.
    with run_upstream(break_the_second) as broken, run_nginx(tmp_path, broken.url) as nginx:
        broken.requests.clear()
        answer = requests.request(method, f"{nginx.url}/v1/responses/resp_1", data="{}", verify=nginx.ca, timeout=60)
        assert [request.method for request in broken.requests] == [method]
        assert broken.requests[0].headers["x-forwarded-for"] == "127.0.0.1"
    assert (answer.status_code, answer.headers["retry-after"]) == (502, "1")
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def test_body_goes_on_while_it_comes(tmp_path: Path) -> None:
    has_begun = threading.Event()

    def answer_late(talk: Conversation) -> None:
        while talk.read_head() is not None:
            has_begun.set()
            talk.send(to_answer(b"{}"))

    with run_upstream(answer_late) as gateway, run_nginx(tmp_path, gateway.url) as nginx, _connect(nginx) as client:
        has_begun.clear()
        client.sendall(b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        assert has_begun.wait(60)


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
def test_what_needs_no_key_is_for_this_machine_only(path: str, nginx: Nginx) -> None:
    statuses = []
    for source in ("127.0.0.1", "127.0.0.2"):
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            nginx.port,
            context=ssl.create_default_context(cafile=nginx.ca),
            source_address=(source, 0),
            timeout=60,
        )
        connection.request("GET", path)
        statuses.append(connection.getresponse().status)
        connection.close()
    assert statuses[0] != 403
    assert statuses[1] == 403
