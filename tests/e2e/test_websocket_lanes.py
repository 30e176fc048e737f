"""A WebSocket's responses among others: a slot that passes from one to the next, one that hangs, ones that wait."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import requests

from openai_gateway.wire import frames
from tests.support.processes import eventually, run_gateway
from tests.support.upstreams import Conversation, run_upstream
from tests.support.websockets import accept_websocket, open_websocket, to_create, to_server_event


def _read_usage(folder: Path) -> list[tuple[str, str, int | None, str | None]]:
    path = folder / "usage.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["client_request_id"], line["outcome"], line["status"], line["error_code"]) for line in lines]


def _named(name: str) -> str:
    return f"x-client-request-id: {name}\r\n"


def test_what_follows_a_steered_response_takes_its_slot_before_any_that_waits(tmp_path: Path) -> None:
    may_follow, steps = threading.Event(), list[str]()

    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        name = talk.seen[-1].headers["x-client-request-id"]
        upstream.receive_event()
        steps.append(f"{name} begins")
        upstream.send(to_server_event("created"))
        if name == "steered":
            assert upstream.receive_event()["type"] == "response.steer"
            upstream.send(to_server_event("steer.accepted", steer={"id": "steer_1"}))
            upstream.send(to_server_event("incomplete"))
            assert may_follow.wait(60)
            upstream.send(to_server_event("created"))
            steps.append("the steered one is over")
        upstream.send(to_server_event("completed"))
        upstream.receive()

    settings = {"usage_log": str(tmp_path / "usage.jsonl"), "max_concurrent_requests": 1}
    with run_upstream(script) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        first = open_websocket(gateway.url, headers=_named("steered"))
        first.send(to_create())
        assert first.receive_event()["type"] == "response.created"
        second = open_websocket(gateway.url, headers=_named("waiting"))
        second.send(to_create())
        eventually(lambda: gateway.inspect()["queued"] == 1)
        first.send({"type": "response.steer", "previous_response_id": "resp_x", "input": "no"})
        types = [first.receive_event()["type"] for _ in range(2)]
        assert types == ["response.steer.accepted", "response.incomplete"]
        # What is asked now comes after whatever the slot's return would have let go.
        assert gateway.inspect()["in_flight"] == 1
        may_follow.set()
        assert [first.receive_event()["type"] for _ in range(2)] == ["response.created", "response.completed"]
        assert [second.receive_event()["type"] for _ in range(2)] == ["response.created", "response.completed"]
        eventually(lambda: gateway.inspect()["in_flight"] == 0)
        eventually(lambda: len(_read_usage(tmp_path)) == 3)
        for client in (first, second):
            client.leave()
    assert steps == ["steered begins", "the steered one is over", "waiting begins"]
    assert sorted(line[0] for line in _read_usage(tmp_path)) == ["steered", "steered", "waiting"]


def test_one_lane_that_hangs_costs_the_others_nothing(tmp_path: Path) -> None:
    has_hung = threading.Event()

    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        for _ in range(2):
            upstream.send(to_server_event("created", upstream.receive_event()["stream_id"]))
        while not has_hung.wait(0.1):
            upstream.send(to_server_event("output_text.delta", "b", delta="x"))
        upstream.send(to_server_event("completed", "b"))
        upstream.receive()

    settings = {"usage_log": str(tmp_path / "usage.jsonl"), "idle_timeout_s": 1}
    with run_upstream(script) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        client = open_websocket(gateway.url)
        for lane in "ab":
            client.send(to_create(lane))
        while (event := client.receive_event())["type"] != "error":
            pass
        assert (event["stream_id"], event["status"], event["error"]["code"]) == ("a", 504, "upstream_timeout")
        assert gateway.inspect()["in_flight"] == 2
        client.send(to_create("c"))
        while (event := client.receive_event())["type"] != "error":
            pass
        assert (event["stream_id"], event["status"], event["error"]["code"]) == ("c", 504, "upstream_timeout")
        has_hung.set()
        events, code = client.receive_all()
        client.leave()
        assert {(event["type"], event["stream_id"]) for event in events} <= {
            ("response.output_text.delta", "b"),
            ("response.completed", "b"),
        }
        assert (events[-1]["type"], code) == ("response.completed", 1011)
        eventually(lambda: gateway.inspect()["in_flight"] == 0)
        eventually(lambda: len(_read_usage(tmp_path)) == 3)
    assert sorted(line[1:] for line in _read_usage(tmp_path)) == [
        ("completed", 200, None),
        ("failed", 200, "upstream_timeout"),
        ("failed", 504, "upstream_timeout"),
    ]


def test_creates_that_wait_behind_another_are_recorded_if_their_client_leaves(tmp_path: Path) -> None:
    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        frame = upstream.receive()
        if frame is not None and frame.opcode == frames.TEXT:
            upstream.send(to_server_event("created"))
            upstream.receive()

    (tmp_path / "clients.yaml").write_text(json.dumps({"team": {"key": "gw-key", "budget_usd": 10, "per": "day"}}))
    (tmp_path / "prices.yaml").write_text("models: {the-model: {input: 1.0, output: 10.0}}\n")
    settings = {
        "usage_log": str(tmp_path / "usage.jsonl"),
        "max_concurrent_requests": 1,
        "clients_file": str(tmp_path / "clients.yaml"),
        "price_file": str(tmp_path / "prices.yaml"),
    }
    key = "authorization: Bearer gw-key\r\n"
    with run_upstream(script) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        holder = open_websocket(gateway.url, headers=_named("holder") + key)
        holder.send(to_create(max_output_tokens=10))
        assert holder.receive_event()["type"] == "response.created"
        leaver = open_websocket(gateway.url, headers=_named("leaver") + key)
        for _ in range(3):
            leaver.send(to_create(max_output_tokens=10))
        # Once its ping has been answered, all has been read.
        leaver.send(to_create("other", max_output_tokens=10))
        eventually(lambda: gateway.inspect()["queued"] == 2)
        leaver.leave()
        eventually(lambda: len(_read_usage(tmp_path)) == 4)
        assert gateway.inspect()["in_flight"] == 1
        holder.leave()
        eventually(lambda: len(_read_usage(tmp_path)) == 5)
        metrics = requests.get(f"{gateway.url}/metrics", timeout=60).text
        assert 'openai_gateway_client_reserved_usd{client="team"} 0.0' in metrics
        charged = [json.loads(line)["charged_usd"] for line in (tmp_path / "usage.jsonl").read_text().splitlines()]
    assert _read_usage(tmp_path)[:4] == [("leaver", "client_gone", None, None)] * 4
    assert charged[:4] == [0.0] * 4
