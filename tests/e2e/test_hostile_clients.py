"""Clients that go on sending, or send too slowly, are ended in bounds, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.upstreams import (
    PATHS,
    Conversation,
    Script,
    ScriptedUpstream,
    answer_always,
    run_upstream,
    to_answer,
    to_request_body,
)

KEY = "gw-key-0123456789"
WAYS = {"-k gevent": ["-k", "gevent"], "gunicorn's parser": ["--access-logfile", "/dev/null"]}


# Whoever reads nothing is waited for as soon as the kernel holds this much for it; it would take 4 MB.
_SMALL_BUFFERS = """
import socket

def post_worker_init(worker):
    for listener in worker.sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with run_upstream(answer_always) as running:
        yield running


@pytest.fixture(scope="module", params=WAYS)
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream
) -> Iterator[Gunicorn]:
    settings = {"gateway_api_keys": [KEY], "client_timeout_s": 3, "max_body_bytes": 300_000}
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "buffers.py").write_text(_SMALL_BUFFERS)
    arguments = ["-c", str(folder / "buffers.py"), *WAYS[request.param]]
    with run_gateway(folder, upstream.url, settings, *arguments) as running:
        yield running


def _connect(gateway: Gunicorn) -> socket.socket:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def _head(key: str = KEY, *, method: str = "POST", path: str = PATHS["chat"], **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {key}", "content-type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def _read_to_the_end(client: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            got += piece
    return got


def _is_served(gateway: Gunicorn) -> bool:
    headers = {"authorization": f"Bearer {KEY}"}
    return requests.post(gateway.url + PATHS["chat"], json=to_request_body("chat"), headers=headers, timeout=60).ok


def _send_on(client: socket.socket, first: bytes, again: bytes) -> threading.Thread:
    """Send without end, until the other side has had enough."""

    def send() -> None:
        with contextlib.suppress(OSError):
            client.sendall(first)
            for _ in range(100_000):
                client.sendall(again)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def _send_now_and_then(client: socket.socket) -> None:
    def send() -> None:
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.sendall(b"x")
                time.sleep(0.2)

    threading.Thread(target=send, daemon=True).start()


CALL = _head(content_length=16) + b'{"messages": []}'
ENDLESS = {
    "a body after a 401": (_head("wrong", content_length=10**15), b"x" * 65536, b" 401 "),
    "a body after a 413": (_head(content_length=10**15), b"x" * 65536, b" 413 "),
    "a body after a 404": (_head(path="/nothing", content_length=10**15), b"x" * 65536, b" 404 "),
    "a body nobody asked for": (_head(method="GET", path="/healthz", content_length=10**15), b"x" * 65536, b" 200 "),
    "chunks after a 401": (_head("wrong", transfer_encoding="chunked"), b"1000\r\n" + b"x" * 4096 + b"\r\n", b" 401 "),
    "chunks after a 413": (_head(transfer_encoding="chunked"), b"1000\r\n" + b"x" * 4096 + b"\r\n", b" 413 "),
    "trailers": (_head(transfer_encoding="chunked") + b"2\r\n{}\r\n0\r\n", b"a: b\r\n" * 500, b" 400 "),
    "a chunk's extension": (_head(transfer_encoding="chunked") + b"2;", b"x" * 5000, b" 400 "),
    "a head": (b"GET /healthz HTTP/1.1\r\n", b"a: " + b"b" * 4000 + b"\r\n", b" 431 "),
    "a request line": (b"GET /", b"x" * 4096, b" 414 "),
    "a body after its call was answered": (_head(content_length=16) + b'{"messages": []}', b"x" * 65536, b" 200 "),
}


@pytest.mark.parametrize(("first", "again", "status"), ENDLESS.values(), ids=ENDLESS)
def test_what_has_no_end_is_answered_then_ended_and_others_are_served(
    first: bytes, again: bytes, status: bytes, gateway: Gunicorn
) -> None:
    with _connect(gateway) as client:
        sender = _send_on(client, first, again)
        assert _is_served(gateway)
        answer = _read_to_the_end(client)
        assert answer.startswith(b"HTTP/1.1" + status)
        sender.join(60)
        assert not sender.is_alive(), "the connection was ended"
    assert _is_served(gateway)


@pytest.mark.parametrize("path", [PATHS["chat"], "/nothing"])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("key", [KEY, "wrong"])
def test_client_that_sends_all_of_a_large_body_before_it_reads_gets_its_refusal(
    key: str, is_chunked: bool, path: str, gateway: Gunicorn
) -> None:
    body = b"x" * 20_000_000
    framing = {"transfer_encoding": "chunked"} if is_chunked else {"content_length": len(body)}
    with _connect(gateway) as client:
        client.sendall(_head(key, path=path, **framing))
        client.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body)
        answer = client.recv(65536)
        status = 404 if path == "/nothing" else 413 if key == KEY else 401
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close" in answer.lower()
        assert client.recv(65536) == b""


def test_client_that_never_reads_what_it_asks_for_is_ended(gateway: Gunicorn) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        client.connect((host, int(port)))
        sender = _send_on(client, b"", _head(method="GET", path="/status") * 100)
        sender.join(120)
        assert not sender.is_alive(), "the connection was ended"
    assert _is_served(gateway)


PIPELINED = {
    "health": b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "refusals": _head("wrong", content_length=2) + b"{}",
    "refusals with a body to be read": _head("wrong", content_length=40_000) + b"x" * 40_000,
    "unknown URLs": _head(method="GET", path="//v1//responses"),
    "preflights": _head(method="OPTIONS", origin="http://a.test", access_control_request_method="POST"),
}


@pytest.mark.parametrize("request_bytes", PIPELINED.values(), ids=PIPELINED)
def test_client_that_waits_for_no_answer_keeps_nobody_waiting(request_bytes: bytes, gateway: Gunicorn) -> None:
    with _connect(gateway) as client:
        reader = threading.Thread(target=_read_to_the_end, args=(client,), daemon=True)
        reader.start()
        sender = _send_on(client, b"", request_bytes * 500)
        for _ in range(20):
            assert _is_served(gateway)
        client.shutdown(socket.SHUT_RDWR)
        sender.join(60)
        reader.join(60)


def test_small_rest_of_a_refused_body_keeps_the_connection(gateway: Gunicorn) -> None:
    with _connect(gateway) as client:
        for key, status in (("wrong", b"401"), (KEY, b"200"), ("wrong", b"401")):
            body = b'{"messages": [], "user": "' + b"x" * 3000 + b'"}'
            client.sendall(_head(key, content_length=len(body)))
            time.sleep(0.05)
            client.sendall(body)
            got = client.recv(65536)
            assert got.startswith(b"HTTP/1.1 " + status)
            assert b"connection: keep-alive" in got.lower()


def test_rest_of_a_refused_body_that_does_not_come_is_not_waited_for(gateway: Gunicorn) -> None:
    with _connect(gateway) as client:
        client.sendall(_head("wrong", content_length=1000) + b"{")
        assert _read_to_the_end(client).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("key", [KEY, "wrong"])
def test_body_is_asked_for_once_its_client_is_let_in(key: str, gateway: Gunicorn) -> None:
    body = b'{"messages": []}'
    with _connect(gateway) as client:
        client.sendall(_head(key, content_length=len(body), expect="100-continue"))
        first = client.recv(65536)
        if key != KEY:
            assert first.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" in first.lower()
            return
        assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "lines",
    [{"connection": "close, TE"}, {"connection": "te , Close"}, {"connection": "TE\r\nconnection: close"}],
    ids=str,
)
def test_close_counts_beside_other_options(lines: dict[str, str], gateway: Gunicorn) -> None:
    with _connect(gateway) as client:
        client.sendall(_head(content_length=16, te="trailers", **lines) + b'{"messages": []}')
        answer = _read_to_the_end(client)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer.lower()


def test_body_that_comes_too_slowly_is_given_up(gateway: Gunicorn) -> None:
    with _connect(gateway) as client:
        client.sendall(_head(content_length=100) + b"{")
        assert _read_to_the_end(client).startswith(b"HTTP/1.1 408 ")


def test_refusals_show_nothing_of_the_request(gateway: Gunicorn) -> None:
    secret = "sk-planted-0123456789"
    for head in (
        f"POST /v1/responses HTTP/1.1\r\nAuthorization Bearer {secret}\r\n\r\n",
        f"POST /v1/responses HTTP/1.1\r\nAuthorization : Bearer {secret}\r\n\r\n",
        f"POST /v1/responses?key={secret}\r\n\r\n",
        f"GET /v1/models?q=a b&key={secret} HTTP/1.1\r\n\r\n",
        f"GET /v1/models HTTP/1.1\nAuthorization: Bearer {secret}\n\n",
        f"GET /v1/models HTTP/1.1\r\nexpect: {secret}\r\n\r\n",
        f"GET /v1/models HTTP/1.1\r\ntransfer-encoding: {secret}\r\n\r\n",
    ):
        with _connect(gateway) as client:
            client.sendall(head.encode())
            answer = _read_to_the_end(client)
        assert answer[9:10] in (b"4", b"5")
        assert b'"error": {"message"' in answer
        assert secret.encode() not in answer
    assert secret not in gateway.log()


def test_headers_of_forwarders_change_nothing(gateway: Gunicorn) -> None:
    for headers in ({"SCRIPT_NAME": "/healthz"}, {"SCRIPT_NAME": "/x"}, {"PATH_INFO": "/metrics"}):
        assert requests.get(gateway.url + "/healthz", headers=headers, timeout=60).json() == {"status": "ok"}
    assert (
        requests.get(gateway.url + "/public/metrics", headers={"SCRIPT_NAME": "/public"}, timeout=60).status_code == 404
    )


def test_worker_without_descriptors_says_so_in_its_own_words_and_serves_again(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    with run_gateway(tmp_path, upstream.url, {"max_retries": 0}) as gateway, contextlib.ExitStack() as stack:
        (worker,) = gateway.workers()
        before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        most = max(int(name) for name in os.listdir(f"/proc/{worker}/fd")) + 3
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (most, before[1]))
        first, *_, last = [stack.enter_context(_connect(gateway)) for _ in range(most)]
        gateway.wait_for_log("no new connection can be taken")
        # Whatever was still being closed when they came has made room for one of them.
        eventually(lambda: len(os.listdir(f"/proc/{worker}/fd")) == most)
        first.sendall(CALL)
        answer = first.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "gateway_out_of_descriptors"' in answer
        last.sendall(CALL)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
        assert last.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert gateway.workers() == [worker]
        assert gateway.log().count("no new connection can be taken") == 1
        assert "Traceback" not in gateway.log()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/responses HTTP/1.1\r\n"], ids=["nothing", "half a head"])
def test_connections_that_ask_for_nothing_keep_out_nobody(
    sent: bytes, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    arguments = ["--worker-connections", "10"]
    with run_gateway(tmp_path, upstream.url, None, *arguments) as gateway, contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(_connect(gateway)).sendall(sent)
        for _ in range(3):
            assert _is_served(gateway)


def test_clients_that_hear_no_refusal_keep_out_nobody(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    arguments = ["--worker-connections", "3"]
    with run_gateway(tmp_path, upstream.url, None, *arguments) as gateway, contextlib.ExitStack() as stack:
        for _ in range(3):
            client = stack.enter_context(_connect(gateway))
            client.sendall(b"no request\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
            _send_now_and_then(client)
        assert _is_served(gateway)


def _hold(go_on: threading.Event) -> Script:
    def answer_when_told(talk: Conversation) -> None:
        while talk.read_request():
            go_on.wait(120)
            talk.send(to_answer(b"{}"))

    return answer_when_told


def test_last_connection_that_there_is_room_for_may_wait_before_it_sends(tmp_path: Path) -> None:
    go_on, arguments = threading.Event(), ["--worker-connections", "2"]
    with (
        run_upstream(_hold(go_on)) as upstream,
        run_gateway(tmp_path, upstream.url, None, *arguments) as gateway,
        _connect(gateway) as first,
    ):
        first.sendall(CALL)
        eventually(lambda: len(upstream.requests) == 1)
        with _connect(gateway) as last:
            assert not select.select([last], [], [], 0.2)[0], "it was closed"
            last.sendall(CALL)
            go_on.set()
            assert last.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_client_that_waits_for_room_has_it_once_a_call_is_over(tmp_path: Path) -> None:
    go_on, arguments = threading.Event(), ["--worker-connections", "2"]
    with (
        run_upstream(_hold(go_on)) as upstream,
        run_gateway(tmp_path, upstream.url, None, *arguments) as gateway,
        contextlib.ExitStack() as stack,
    ):
        for count in (1, 2):
            stack.enter_context(_connect(gateway)).sendall(CALL)
            eventually(lambda count=count: len(upstream.requests) == count)
        waiting = stack.enter_context(_connect(gateway))
        waiting.sendall(CALL)
        go_on.set()
        # The other two stay open, and ask for nothing more.
        assert waiting.recv(65536).startswith(b"HTTP/1.1 200 ")


_STOPPED_AT_ITS_FORK = """
import os, signal

def post_fork(server, worker):
    # As the master does, between the fork and the worker's own handlers.
    if worker.age == 1:
        os.kill(os.getpid(), signal.SIGTERM)
"""


def test_stop_that_comes_while_a_worker_boots_is_not_lost(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    (tmp_path / "stopped.py").write_text(_STOPPED_AT_ITS_FORK)
    arguments = ["-c", str(tmp_path / "stopped.py")]
    with run_gateway(tmp_path, upstream.url, None, *arguments) as gateway:
        # The first has ended, and the master, which is not stopping, started another.
        eventually(lambda: gateway.log().count("Booting worker") == 2)
        first = int(gateway.wait_for_log(r"Booting worker with pid: (\d+)")[1])
        eventually(lambda: first not in gateway.workers())
        assert _is_served(gateway)
