"""The simulator under a real gevent worker: faults that close sockets, and counts that have to be exact."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.processes import Gunicorn, eventually

AUTHORIZED = {"authorization": "Bearer sk-upstream-key", "content-type": "application/json"}


@pytest.fixture
def sim(simulator: Gunicorn) -> Iterator[Gunicorn]:
    """The module's simulator, counting from zero; a test leaves nothing in flight."""
    requests.post(f"{simulator.url}/sim/reset", timeout=60)
    yield simulator
    eventually(lambda: _stats(simulator)["in_flight"] == 0)
    assert "Traceback" not in simulator.log()


def _stats(sim: Gunicorn) -> dict[str, Any]:
    stats: dict[str, Any] = requests.get(f"{sim.url}/sim/stats", timeout=60).json()
    return stats


def _post(sim: Gunicorn, **metadata: str) -> requests.Response:
    body = {"model": "m", "input": "x", "metadata": metadata}
    return requests.post(f"{sim.url}/v1/responses", json=body, headers=AUTHORIZED, timeout=60)


def _open_and_send(sim: Gunicorn, **body: Any) -> socket.socket:
    payload = json.dumps({"model": "m", "input": "x", **body}).encode()
    parts = urlsplit(sim.url)
    sock = socket.create_connection((parts.hostname or "", parts.port or 0), 10)
    head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in AUTHORIZED.items())
    sock.sendall(head.encode() + b"\r\n" + payload)
    return sock


def _read_all(sock: socket.socket) -> bytes:
    """Return what comes until the connection is closed."""
    read = b""
    while piece := sock.recv(65536):
        read += piece
    return read


def test_connection_dropped_before_headers_brings_nothing(sim: Gunicorn) -> None:
    with _open_and_send(sim, metadata={"sim_fault": "drop_before_headers"}) as sock:
        assert sock.recv(1) == b""
    assert _stats(sim)["aborted"] == 1


def test_connection_dropped_in_a_body_brings_half_of_it(sim: Gunicorn) -> None:
    with _open_and_send(sim, metadata={"sim_fault": "drop_in_body"}) as sock:
        head, _, body = _read_all(sock).partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    assert len(body) == length // 2
    assert _stats(sim)["aborted"] == 1


@pytest.mark.parametrize("after", [0, 1, 3])
def test_connection_dropped_in_a_stream_brings_so_many_deltas(sim: Gunicorn, after: int) -> None:
    with _open_and_send(sim, stream=True, metadata={"sim_fault": "drop_in_stream", "sim_after": str(after)}) as sock:
        read = _read_all(sock)
    assert read.count(b"event: response.output_text.delta\n") == after
    assert read.endswith(b"\n\n\r\n")


def test_short_stream_is_dropped_before_its_end(sim: Gunicorn) -> None:
    metadata = {"sim_fault": "drop_in_stream", "sim_events": "1", "sim_after": "5"}
    with _open_and_send(sim, stream=True, metadata=metadata) as sock:
        read = _read_all(sock)
    assert (read.count(b".delta\n"), read.count(b"response.completed")) == (1, 0)


@pytest.mark.parametrize(
    ("fault", "stream", "expected"),
    [
        pytest.param("silence_before_headers", False, b"", id="before headers"),
        pytest.param("silence_in_body", False, b'{"id": "resp_', id="in a body"),
        pytest.param("silence_in_stream", True, b"response.output_text.delta", id="in a stream"),
    ],
)
def test_silence_lasts_until_the_client_leaves(sim: Gunicorn, fault: str, stream: bool, expected: bytes) -> None:
    with _open_and_send(sim, stream=stream, metadata={"sim_fault": fault}) as sock:
        read = b""
        while expected not in read:
            read += sock.recv(65536)
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):  # noqa: PT012
            while sock.recv(65536):
                pass
        assert _stats(sim)["in_flight"] == 1
    eventually(lambda: _stats(sim)["aborted"] == 1)


def test_html_page_of_a_proxy_is_answered(sim: Gunicorn) -> None:
    answer = _post(sim, sim_fault="html_502")
    assert (answer.status_code, answer.headers["content-type"][:9]) == (502, "text/html")


def test_fault_passes_after_so_many_times(sim: Gunicorn) -> None:
    script = {"sim_fault": "drop_before_headers", "sim_times": "2", "sim_key": "passes"}
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            _post(sim, **script)
    assert _post(sim, **script).ok


def test_client_that_leaves_during_latency_or_a_gap_is_counted_as_aborted(sim: Gunicorn) -> None:
    with _open_and_send(sim, metadata={"sim_latency_ms": "200"}):
        eventually(lambda: _stats(sim)["in_flight"] == 1)
    with _open_and_send(sim, stream=True, metadata={"sim_event_gap_ms": "50", "sim_events": "100"}) as sock:
        assert sock.recv(65536)
    eventually(lambda: _stats(sim)["in_flight"] == 0)
    assert _stats(sim)["aborted"] >= 1


def test_call_is_in_flight_while_its_body_is_still_coming(sim: Gunicorn) -> None:
    parts = urlsplit(sim.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 10) as sock:
        sock.sendall(b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        eventually(lambda: _stats(sim)["in_flight"] == 1)
    eventually(lambda: _stats(sim)["in_flight"] == 0)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_peak_of_callers_that_take_turns_is_their_number(sim: Gunicorn, stream: bool) -> None:
    """As with a cap: each caller begins anew as soon as it has its last byte."""

    def call_on(_: int) -> None:
        with requests.Session() as session:
            for number in range(25):
                # The first ones meet for certain.
                metadata = {"sim_events": "3", "sim_event_gap_ms": "1", "sim_latency_ms": "1" if number else "500"}
                body = {"model": "m", "input": "x", "stream": stream, "metadata": metadata}
                assert session.post(f"{sim.url}/v1/responses", json=body, headers=AUTHORIZED, timeout=60).ok

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call_on, range(4)))
    stats = _stats(sim)
    assert (stats["requests"], stats["finished"], stats["aborted"]) == (100, 100, 0)
    assert stats["streams_finished"] == (100 if stream else 0)
    assert (stats["peak_in_flight"], stats["in_flight"]) == (4, 0)
    assert stats["by_path"] == {"POST /v1/responses": 100}
    assert stats["by_status"] == {"200": 100}


def test_two_hundred_open_streams_are_all_counted(sim: Gunicorn) -> None:
    # Long enough for the last to begin before the first is over.
    metadata = {"sim_events": "4", "sim_event_gap_ms": "1500"}
    socks = [_open_and_send(sim, stream=True, metadata=metadata) for _ in range(200)]
    eventually(lambda: _stats(sim)["in_flight"] == 200)
    for sock in socks[:100]:
        sock.close()
    for sock in socks[100:]:
        read = b""
        while b"\r\n0\r\n\r\n" not in read:
            read += sock.recv(65536)
        sock.close()
    eventually(lambda: _stats(sim)["in_flight"] == 0)
    stats = _stats(sim)
    assert (stats["peak_in_flight"], stats["streams_finished"], stats["aborted"]) == (200, 100, 100)


def test_head_and_refused_calls_are_not_left_in_flight(sim: Gunicorn) -> None:
    for _ in range(3):
        requests.head(f"{sim.url}/v1/models", headers=AUTHORIZED, timeout=60)
        assert requests.get(f"{sim.url}/v1/models", timeout=60).status_code == 401
    assert (_stats(sim)["in_flight"], _stats(sim)["by_status"]) == (0, {"200": 3, "401": 3})


def test_request_is_kept_byte_for_byte(sim: Gunicorn) -> None:
    body = b'{"model":"m" ,  "input": "\\u00e9\xc3\xa9", "n": 1e400, "x":1.0}'
    headers = {**AUTHORIZED, "x-client-request-id": "a/b c", "x-own": "1"}
    answer = requests.post(f"{sim.url}/v1/responses?a=%20b&c", data=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    last = requests.get(f"{sim.url}/sim/last", timeout=60).json()
    assert last == requests.get(f"{sim.url}/sim/requests/a/b%20c", timeout=60).json()
    assert (last["method"], last["path"], last["query"]) == ("POST", "/v1/responses", "a=%20b&c")
    assert base64.b64decode(last["body_base64"]) == body
    assert last["body_sha256"] == hashlib.sha256(body).hexdigest()
    assert ["X-Own", "1"] in last["headers"]


def test_only_the_last_fifty_requests_are_kept(sim: Gunicorn) -> None:
    for number in range(51):
        headers = {**AUTHORIZED, "x-client-request-id": f"r{number}"}
        requests.get(f"{sim.url}/v1/models", headers=headers, timeout=60)
    kept = [requests.get(f"{sim.url}/sim/requests/r{number}", timeout=60).json() for number in (0, 1, 50)]
    assert [bool(found) for found in kept] == [False, True, True]
