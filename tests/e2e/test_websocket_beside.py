"""WebSockets beside what else a gateway may have: TLS upstream, workers, budgets, recordings, too few descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from openai_gateway.wire import frames
from openai_gateway.wire.frames import to_frame
from tests.support.certificates import make_certificates
from tests.support.processes import eventually, run_gateway, run_simulator
from tests.support.upstreams import Conversation, run_upstream
from tests.support.websockets import (
    RawWebSocket,
    accept_websocket,
    ask_for_websocket,
    open_websocket,
    to_create,
    to_server_event,
)


def _read_usage(folder: Path) -> list[dict[str, Any]]:
    path = folder / "usage.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _answer(client: RawWebSocket) -> dict[str, Any]:
    """Return a response's last event."""
    while (event := client.receive_event())["type"] not in ("response.completed", "error"):
        pass
    return event


@pytest.mark.parametrize("most", [1, 1 << 14, 1 << 20], ids=["single bytes", "records", "many records"])
def test_what_a_tls_upstream_sends_passes_byte_for_byte_however_it_is_cut(most: int, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    sizes = [0, 5, 3000, 20_000, 70_000] if most > 1 else [0, 5, 130]
    answer = to_frame(frames.TEXT, json.dumps(to_server_event("created")).encode(), is_masked=False)
    for size in sizes:
        delta = to_server_event("output_text.delta", delta="x" * size)
        answer += to_frame(frames.TEXT, json.dumps(delta).encode(), is_masked=False)
    answer += to_frame(frames.TEXT, json.dumps(to_server_event("completed")).encode(), is_masked=False)
    asked = "y" * 3_000_000 if most > 1 else "y"

    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        while (frame := upstream.receive()) is not None and frame.opcode == frames.TEXT:
            assert json.loads(frame.payload)["input"] == asked
            for at in range(0, len(answer), most):
                upstream.send_raw(answer[at : at + most])

    settings = {"ssl_ca_file": str(certificates.ca), "usage_log": str(tmp_path / "usage.jsonl")}
    with run_upstream(script, tls) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        client = open_websocket(gateway.url)
        for _ in range(2):
            client.send(to_create(input=asked))
            assert _answer(client)["type"] == "response.completed"
        assert bytes(client.got) == answer * 2
        client.leave()
        eventually(lambda: len(_read_usage(tmp_path)) == 2)
    assert [(line["outcome"], line["usage"]["output_tokens"]) for line in _read_usage(tmp_path)] == [
        ("completed", 5)
    ] * 2


def test_total_cap_holds_for_websockets_of_two_workers(tmp_path: Path) -> None:
    settings = {"usage_log": str(tmp_path / "usage.jsonl"), "max_concurrent_requests_total": 2}

    def call(number: int) -> str:
        client = open_websocket(gateway.url)
        with contextlib.closing(client.sock):
            for _ in range(3):
                client.send(to_create())
                if _answer(client)["type"] != "response.completed":
                    return "error"
        return "completed"

    with (
        run_simulator(tmp_path) as simulator,
        run_gateway(tmp_path, simulator.url, settings, "--workers", "2") as gateway,
        ThreadPoolExecutor(12) as pool,
    ):
        eventually(lambda: len(gateway.workers()) == 2)
        assert list(pool.map(call, range(12))) == ["completed"] * 12
        eventually(lambda: len(_read_usage(tmp_path)) == 36)
        counts = requests.get(f"{simulator.url}/sim/stats", timeout=60).json()
    assert counts["peak_in_flight"] <= 2, counts


def test_clients_budget_holds_for_each_create_and_the_connection_stays_open(tmp_path: Path) -> None:
    # A response is 12 tokens; its estimate is what it may have at most.
    (tmp_path / "prices.yaml").write_text("models: {the-model: {input: 1000.0, output: 1000.0}}\n")
    clients = {"team": {"key": "gw-team", "budget_usd": 0.15, "per": "day"}, "other": {"key": "gw-other"}}
    (tmp_path / "clients.yaml").write_text(json.dumps(clients))
    settings = {
        "usage_log": str(tmp_path / "usage.jsonl"),
        "price_file": str(tmp_path / "prices.yaml"),
        "clients_file": str(tmp_path / "clients.yaml"),
    }

    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        while (frame := upstream.receive()) is not None and frame.opcode == frames.TEXT:
            upstream.send(to_server_event("created"))
            upstream.send(to_server_event("completed"))

    with run_upstream(script) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        status, _, body, sock = ask_for_websocket(gateway.url, headers="authorization: Bearer nobodys\r\n")
        sock.close()
        assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
        client = open_websocket(gateway.url, headers="authorization: Bearer gw-team\r\n")
        ends = []
        while not ends or ends[-1]["type"] != "error":
            client.send(to_create(max_output_tokens=10))
            ends.append(_answer(client))
        assert (ends[-1]["status"], ends[-1]["error"]["code"]) == (429, "gateway_budget_exceeded")
        # The estimate of each was above its 12 tokens, which are what is charged.
        assert 2 < len(ends) < 13
        client.send(to_create(max_output_tokens=10_000))
        assert _answer(client)["error"]["code"] == "gateway_budget_exceeded"
        other = open_websocket(gateway.url, headers="authorization: Bearer gw-other\r\n")
        other.send(to_create(max_output_tokens=10_000))
        assert _answer(other)["type"] == "response.completed"
        client.leave()
        other.leave()
        eventually(lambda: len(_read_usage(tmp_path)) == len(ends) + 2)
    by_client = [(line["client"], line["charged_usd"]) for line in _read_usage(tmp_path) if line["status"] == 200]
    assert sorted(by_client) == [("other", pytest.approx(0.012))] + [("team", pytest.approx(0.012))] * (len(ends) - 1)


def test_recordings_neither_keep_nor_answer_what_goes_over_a_websocket(tmp_path: Path) -> None:
    settings = {
        "usage_log": str(tmp_path / "usage.jsonl"),
        "recordings": "reuse",
        "recordings_dir": str(tmp_path / "kept"),
    }
    with run_simulator(tmp_path) as simulator, run_gateway(tmp_path, simulator.url, settings) as gateway:
        client = open_websocket(gateway.url)
        for _ in range(2):
            client.send(to_create())
            assert _answer(client)["type"] == "response.completed"
        client.leave()
        eventually(lambda: len(_read_usage(tmp_path)) == 2)
        asked, asker = {"model": "x", "input": "hi"}, {"x-gateway-repeat": "1"}
        got = [requests.post(f"{gateway.url}/v1/responses", json=asked, headers=asker, timeout=60) for _ in range(2)]
        eventually(lambda: len(_read_usage(tmp_path)) == 4)
    assert ["hit" in answer.headers["cache-status"].partition(";")[2] for answer in got] == [False, True]
    assert [line["is_replayed"] for line in _read_usage(tmp_path)] == [False, False, False, True]


def test_handshakes_without_descriptors_are_told_so_and_later_ones_are_served(tmp_path: Path) -> None:
    with run_simulator(tmp_path) as simulator, run_gateway(tmp_path, simulator.url) as gateway:
        open_websocket(gateway.url).leave()
        (worker,) = gateway.workers()
        eventually(lambda: "openai_gateway_websockets 0.0" in requests.get(f"{gateway.url}/metrics", timeout=60).text)
        before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        most = max(int(name) for name in os.listdir(f"/proc/{worker}/fd")) + 8
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (most, before[1]))
        with ThreadPoolExecutor(20) as pool:
            asked = list(pool.map(lambda _: pool.submit(ask_for_websocket, gateway.url), range(20)))
            gateway.wait_for_log("no new connection can be taken")
            early = [each.result() for each in asked if each.done()]
            assert {101, 503} >= {status for status, *_ in early}
            refused = [body for status, _, body, _ in early if status == 503]
            assert {json.loads(body)["error"]["code"] for body in refused} <= {"gateway_out_of_descriptors"}
            opened = [RawWebSocket(sock, rest, is_client=True) for status, _, rest, sock in early if status == 101]
            for client in opened:
                client.send(to_create())
                assert _answer(client)["type"] == "response.completed"
            resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
            for status, _, _, sock in [each.result() for each in asked]:
                assert status in (101, 503)
                sock.close()
        assert gateway.workers() == [worker]
        eventually(lambda: "openai_gateway_websockets 0.0" in requests.get(f"{gateway.url}/metrics", timeout=60).text)
        client = open_websocket(gateway.url)
        client.send(to_create())
        assert _answer(client)["type"] == "response.completed"
        client.leave()
        assert "Traceback" not in gateway.log()
