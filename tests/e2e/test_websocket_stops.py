"""WebSockets while the gateway stops, reloads, loses a worker or gets another key; and what a refused key comes to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import requests

from openai_gateway.wire import frames
from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.upstreams import Conversation, run_upstream
from tests.support.websockets import (
    RawWebSocket,
    accept_websocket,
    ask_for_websocket,
    open_websocket,
    to_create,
    to_server_event,
)

LANES = [[""], ["a", "b"]]
TEAM = "authorization: Bearer gw-key-of-the-team\r\n"


def _begin_only(talk: Conversation) -> None:
    """Begin each response, and end it when told to by a message of any other type."""
    upstream = accept_websocket(talk)
    begun: list[str] = []
    while (frame := upstream.receive()) is not None and frame.opcode != frames.CLOSE:
        event = json.loads(frame.payload)
        if event["type"] == "response.create":
            begun.append(event.get("stream_id", ""))
            upstream.send(to_server_event("created", begun[-1]))
        else:
            for lane in begun:
                upstream.send(to_server_event("completed", lane))
            begun.clear()


def _begin(url: str, lanes: list[str], headers: str = "") -> RawWebSocket:
    client = open_websocket(url, headers=headers)
    for lane in lanes:
        client.send(to_create(lane, max_output_tokens=10))
    assert {client.receive_event()["type"] for _ in lanes} == {"response.created"}
    return client


def _listens(pid: int, url: str) -> bool:
    """Tell whether a process has the socket open that listens at this port."""
    address = f":{int(url.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{line[9]}]" for line in lines if line[1].endswith(address) and line[3] == "0A"}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed by now.
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(path) in listening:
                return True
    return False


def _read_usage(folder: Path) -> list[tuple[str, int | None, str | None]]:
    path = folder / "usage.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["outcome"], line["status"], line["error_code"]) for line in lines]


@pytest.mark.parametrize("lanes", LANES, ids=["one lane", "two lanes"])
def test_stop_that_waits_no_longer_tells_each_lane_and_closes_with_1012(lanes: list[str], tmp_path: Path) -> None:
    settings = {"usage_log": str(tmp_path / "usage.jsonl")}
    with (
        run_upstream(_begin_only) as upstream,
        run_gateway(tmp_path, upstream.url, settings, "--graceful-timeout", "2") as gateway,
    ):
        client = _begin(gateway.url, lanes)
        gateway.send_signal(signal.SIGTERM)
        events, code = client.receive_all()
        client.leave()
        gateway.process.wait(60)
    assert [event["error"]["code"] for event in events] == ["gateway_draining"] * len(lanes)
    assert [event.get("stream_id", "") for event in events] == lanes
    assert code == 1012
    assert _read_usage(tmp_path) == [("failed", 200, "gateway_draining")] * len(lanes)


@pytest.mark.parametrize("lanes", LANES, ids=["one lane", "two lanes"])
def test_reload_lets_responses_finish_and_idle_connections_reconnect(lanes: list[str], tmp_path: Path) -> None:
    settings = {"usage_log": str(tmp_path / "usage.jsonl")}
    with run_upstream(_begin_only) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        client, idle = _begin(gateway.url, lanes), open_websocket(gateway.url)
        old = gateway.inspect()["pid"]
        assert _listens(old, gateway.url)
        gateway.send_signal(signal.SIGHUP)
        assert idle.receive_all() == ([], 1012)
        idle.leave()
        # Told to stop, a worker may accept another connection within a second.
        eventually(lambda: not _listens(old, gateway.url))
        another = _begin(gateway.url, lanes)
        client.send({"type": "finish"})
        events, code = client.receive_all()
        assert ([event["type"] for event in events], code) == (["response.completed"] * len(lanes), 1012)
        client.leave()
        another.send({"type": "finish"})
        assert another.receive_event()["type"] == "response.completed"
        another.leave()
        eventually(lambda: gateway.inspect()["in_flight"] == 0)
        eventually(lambda: len(_read_usage(tmp_path)) == 2 * len(lanes))


@pytest.mark.parametrize("lanes", LANES, ids=["one lane", "two lanes"])
def test_killed_workers_permits_and_money_are_there_again(lanes: list[str], tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("models: {the-model: {input: 1.0, output: 10.0}}\n")
    clients = {"team": {"key": "gw-key-of-the-team", "budget_usd": 1, "per": "day"}}
    (tmp_path / "clients.yaml").write_text(json.dumps(clients))
    settings: dict[str, Any] = {
        "usage_log": str(tmp_path / "usage.jsonl"),
        "price_file": str(tmp_path / "prices.yaml"),
        "clients_file": str(tmp_path / "clients.yaml"),
        "max_concurrent_requests_total": len(lanes),
    }
    with run_upstream(_begin_only) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        client = _begin(gateway.url, lanes, TEAM)
        old = gateway.inspect()["pid"]
        os.kill(old, signal.SIGKILL)
        assert client.receive_all()[1] is None
        client.leave()
        eventually(lambda: _is_served_by_another(gateway, old))
        again = _begin(gateway.url, lanes, TEAM)
        again.send({"type": "finish"})
        for _ in lanes:
            assert again.receive_event()["type"] == "response.completed"
        again.leave()
        eventually(lambda: gateway.inspect()["in_flight"] == 0)
        metrics = requests.get(f"{gateway.url}/metrics", timeout=60).text
        assert 'openai_gateway_client_reserved_usd{client="team"} 0.0' in metrics


def _is_served_by_another(gateway: Gunicorn, old: int) -> bool:
    try:
        return bool(gateway.inspect()["pid"] != old)
    except requests.RequestException:
        return False


def test_new_key_is_that_of_the_next_connection(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-old")
    settings = {"openai_api_key": None, "openai_api_key_file": str(key)}
    with run_upstream(_begin_only) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        client = _begin(gateway.url, [""])
        key.write_text("sk-new")

        def has_new() -> bool:
            open_websocket(gateway.url).leave()
            return upstream.requests[-1].headers["authorization"] == "Bearer sk-new"

        eventually(has_new)
        assert upstream.requests[0].headers["authorization"] == "Bearer sk-old"
        client.send({"type": "finish"})
        assert client.receive_event()["type"] == "response.completed"
        client.leave()


def test_key_refused_in_two_events_opens_the_breaker_for_all_until_an_event_gets_through(tmp_path: Path) -> None:
    refuses = [True]

    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        while (frame := upstream.receive()) is not None and frame.opcode != frames.CLOSE:
            if refuses[0]:
                upstream.send({"type": "error", "status": 401, "error": {"code": "invalid_api_key", "message": "no"}})
            else:
                upstream.send(to_server_event("created"))
                upstream.send(to_server_event("completed"))

    settings = {"breaker_cooldown_s": 1, "max_retries": 0}
    with run_upstream(script) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        client = open_websocket(gateway.url)
        codes = []
        for _ in range(3):
            client.send(to_create())
            codes.append(client.receive_event()["error"]["code"])
        assert codes == ["invalid_api_key", "invalid_api_key", "upstream_key_refused"]
        post = requests.post(f"{gateway.url}/v1/responses", json={"input": "x"}, timeout=60)
        assert post.json()["error"]["code"] == "upstream_key_refused"
        status, _, body, sock = ask_for_websocket(gateway.url)
        sock.close()
        assert (status, json.loads(body)["error"]["code"]) == (401, "upstream_key_refused")
        refuses[0] = False

        def is_through() -> bool:
            client.send(to_create())
            return bool(client.receive_event()["type"] == "response.created")

        eventually(is_through)
        assert client.receive_event()["type"] == "response.completed"
        client.send(to_create())
        assert client.receive_event()["type"] == "response.created"
        client.leave()
        eventually(lambda: gateway.inspect()["in_flight"] == 0)


def test_refusals_in_events_teach_the_limiter(tmp_path: Path) -> None:
    """What an error's headers say of limits is on /status, as of a POST's answer."""

    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        while (frame := upstream.receive()) is not None and frame.opcode != frames.CLOSE:
            said = {f"x-ratelimit-{what}-requests": value for what, value in (("limit", "60"), ("remaining", "0"))}
            error = {
                "code": "rate_limit_exceeded",
                "message": "slow",
                "headers": {**said, "x-ratelimit-reset-requests": "1s"},
            }
            upstream.send({"type": "error", "status": 429, "error": error})

    with run_upstream(script) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        client = open_websocket(gateway.url)
        client.send(to_create())
        assert client.receive_event()["error"]["code"] == "rate_limit_exceeded"
        metrics = requests.get(f"{gateway.url}/metrics", timeout=60).text
        client.leave()
    found = [line for line in metrics.splitlines() if line.startswith("openai_gateway_learned")]
    assert any('kind="requests"' in line and line.endswith(" 60.0") for line in found), found
