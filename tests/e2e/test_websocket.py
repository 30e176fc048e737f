"""The Responses API's WebSocket mode through real gunicorn: the official SDK, slots, records, and every way to end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import openai
import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from openai_gateway.wire import frames
from openai_gateway.wire.frames import compute_accept, to_frame
from tests.support.processes import Gunicorn, eventually, run_gateway, run_simulator
from tests.support.upstreams import Conversation, Request, ScriptedUpstream, answer_always, run_upstream, to_answer
from tests.support.websockets import RawWebSocket, accept_websocket, ask_for_websocket, open_websocket, to_server_event

# The official client, too, uses what the package would rather have as a context manager.
pytestmark = pytest.mark.filterwarnings("ignore:connect:DeprecationWarning", "ignore:serve:DeprecationWarning")
CASES = [({"websocket": False}, {}), ({}, {"websocket": False})]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gunicorn, Gunicorn, Path]]:
    folder = tmp_path_factory.mktemp("websocket")
    settings = {
        "usage_log": str(folder / "usage.jsonl"),
        "max_concurrent_requests": 2,
        "max_queue": 1,
        "extra_body": {"temperature": 0.5},
    }
    with run_simulator(folder) as simulator, run_gateway(folder, simulator.url, settings) as gateway:
        yield gateway, simulator, folder


class _Upstream:
    """WebSockets on which it happens what the test's script says."""

    def __init__(self, script: Callable[[ServerConnection], None]) -> None:
        self.script = script
        self._server = serve(lambda connection: self.script(connection), "127.0.0.1", 0, max_size=None)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        host, port = self._server.socket.getsockname()
        self.url = f"http://{host}:{port}"

    def __enter__(self) -> _Upstream:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()


def _echo(upstream: ServerConnection) -> None:
    for message in upstream:
        upstream.send(message)


@pytest.fixture(scope="module")
def plain_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gunicorn, _Upstream, Path]]:
    folder = tmp_path_factory.mktemp("scripted")
    settings = {"usage_log": str(folder / "usage.jsonl")}
    with _Upstream(_echo) as upstream, run_gateway(folder, upstream.url, settings) as gateway:
        yield gateway, upstream, folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gunicorn, ScriptedUpstream]]:
    """The same in front of bare sockets."""
    with (
        run_upstream(answer_always) as upstream,
        run_gateway(tmp_path_factory.mktemp("raw"), upstream.url) as gateway,
    ):
        yield gateway, upstream


@pytest.fixture
def scripted(plain_gateway: tuple[Gunicorn, _Upstream, Path]) -> Iterator[tuple[Gunicorn, _Upstream, Path]]:
    """A gateway with no settings of note, for one test at a time: what the last one held is given back."""
    gateway, _, _ = plain_gateway
    yield plain_gateway
    eventually(lambda: gateway.inspect()["in_flight"] == 0)


def _open(gateway: Gunicorn, path: str = "/v1/responses", name: str = "") -> ClientConnection:
    url = gateway.url.replace("http", "ws") + path
    return connect(url, additional_headers={"x-client-request-id": name}, open_timeout=20, close_timeout=5)


def _create(**more: Any) -> str:
    return json.dumps({"type": "response.create", "model": "x", "input": "hello", **more})


def _receive(client: ClientConnection, last: str = "response.completed") -> list[dict[str, Any]]:
    events = []
    while not events or events[-1]["type"] not in (last, "error"):
        events.append(json.loads(client.recv(timeout=60)))
    return events


def _read_usage(folder: Path, name: str = "") -> list[dict[str, Any]]:
    path = folder / "usage.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["client_request_id"] == name]


def test_official_client_goes_on_in_one_connection(through: tuple[Gunicorn, Gunicorn, Path]) -> None:
    gateway, _, _ = through
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="k")
    ids = []
    with client.responses.connect() as connection:
        previous = None
        for _ in range(3):
            more: Any = {"previous_response_id": previous} if previous else {}
            connection.response.create(model="x", input="hello", store=False, **more)
            for event in connection:
                if event.type == "response.completed":
                    assert event.response.model == "the-model"
                    previous = event.response.id
                    break
            ids.append(previous)
    assert len(set(ids)) == 3


def test_official_async_client(through: tuple[Gunicorn, Gunicorn, Path]) -> None:
    gateway, _, _ = through

    async def ask() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k")
        async with client.responses.connect() as connection:
            await connection.response.create(model="x", input="hello")
            names = []
            async for event in connection:
                names.append(event.type)
                if event.type == "response.completed":
                    break
            return names

    assert asyncio.run(ask())[0] == "response.created"


class _Dropping:
    """Drops the first connection within its response, answers over the next."""

    def __init__(self, drop: Callable[[RawWebSocket], None]) -> None:
        self._drop = drop
        self.created = 0

    def __call__(self, talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        while (frame := upstream.receive()) is not None and frame.opcode != frames.CLOSE:
            self.created += 1
            upstream.send(to_server_event("created"))
            if self.created == 1:
                self._drop(upstream)
                return
            upstream.send(to_server_event("completed"))


_DROPS = [(lambda upstream: upstream.leave(), 1011), (lambda upstream: upstream.close_with(1012), 1012)]


@pytest.mark.parametrize(("drop", "code"), _DROPS, ids=["broken off", "closed with 1012"])
def test_official_client_reconnects_after_a_dropped_connection(
    drop: Any, code: int, raw: tuple[Gunicorn, ScriptedUpstream]
) -> None:
    gateway, running = raw
    running.script = upstream = _Dropping(drop)
    codes: list[int] = []
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="k")

    def ask_again(event: Any) -> None:
        codes.append(event.close_code)
        # Kept by the SDK until there is a connection again.
        connection.response.create(model="x", input="hello")

    with client.responses.connect(on_reconnecting=ask_again) as connection:
        connection.response.create(model="x", input="hello")
        assert _names_until_completed(connection) == ["response.created"] * 2 + ["response.completed"]
    assert (codes, upstream.created) == ([code], 2)


def _names_until_completed(connection: Any) -> list[str]:
    names: list[str] = []
    for event in connection:
        names.append(event.type)
        if event.type == "response.completed":
            break
    return names


@pytest.mark.parametrize(("drop", "code"), _DROPS, ids=["broken off", "closed with 1012"])
def test_official_async_client_reconnects_after_a_dropped_connection(
    drop: Any, code: int, raw: tuple[Gunicorn, ScriptedUpstream]
) -> None:
    gateway, running = raw
    running.script = upstream = _Dropping(drop)
    codes: list[int] = []

    async def ask(url: str) -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k")
        asked: list[Any] = []

        def ask_again(event: Any) -> None:
            codes.append(event.close_code)
            asked.append(asyncio.ensure_future(connection.response.create(model="x", input="hello")))

        names: list[str] = []
        async with client.responses.connect(on_reconnecting=ask_again) as connection:
            await connection.response.create(model="x", input="hello")
            async for event in connection:
                names.append(event.type)
                if event.type == "response.completed":
                    break
        return names

    assert asyncio.run(ask(gateway.url)) == ["response.created"] * 2 + ["response.completed"]
    assert (codes, upstream.created) == ([code], 2)


@pytest.mark.parametrize("prefix", ["", "/policy_model", "/ng-rollout/ws1", "/ng-rollout/ws1/policy_model"])
def test_each_create_is_a_recorded_call_with_model_and_defaults(
    prefix: str, through: tuple[Gunicorn, Gunicorn, Path]
) -> None:
    gateway, _, folder = through
    with _open(gateway, f"{prefix}/v1/responses", f"each{prefix}") as client:
        for _ in range(2):
            client.send(_create())
            events = _receive(client)
            assert (events[-1]["response"]["model"], events[-1]["response"]["temperature"]) == ("the-model", 0.5)
    eventually(lambda: len(_read_usage(folder, f"each{prefix}")) == 2)
    for line in _read_usage(folder, f"each{prefix}"):
        assert (line["outcome"], line["status"], line["method"], line["path"]) == (
            "completed",
            200,
            "WEBSOCKET",
            "/responses",
        )
        assert line["usage"]["output_tokens"] > 0
        assert line["rollout_id"] == ("ws1" if "ws1" in prefix else None)


def test_create_that_generates_nothing_ends_and_can_be_gone_on_from(through: tuple[Gunicorn, Gunicorn, Path]) -> None:
    gateway, _, _ = through
    with _open(gateway) as client:
        client.send(_create(generate=False, store=False))
        warm = _receive(client)
        assert (warm[-1]["type"], warm[-1]["response"]["output"]) == ("response.completed", [])
        client.send(_create(previous_response_id=warm[-1]["response"]["id"], store=False))
        assert _receive(client)[-1]["response"]["output"]


def test_lanes_run_at_once_and_each_waits_for_a_slot(through: tuple[Gunicorn, Gunicorn, Path]) -> None:
    gateway, simulator, _ = through
    requests.post(f"{simulator.url}/sim/reset", timeout=60)
    slow = {"sim_latency_ms": "300"}
    with _open(gateway) as client:
        for lane in ("a", "b", "c"):
            client.send(_create(stream_id=lane, metadata=slow))
        done: set[str] = set()
        while len(done) < 3:
            event = json.loads(client.recv(timeout=60))
            assert event["type"] != "error", event
            if event["type"] == "response.completed":
                done.add(event["stream_id"])
    assert done == {"a", "b", "c"}
    assert requests.get(f"{simulator.url}/sim/stats", timeout=60).json()["peak_in_flight"] == 2
    eventually(lambda: gateway.inspect()["in_flight"] == 0)


def test_idle_connection_holds_no_slot_and_a_refused_create_keeps_it_open(
    through: tuple[Gunicorn, Gunicorn, Path],
) -> None:
    gateway, _, _ = through
    with _open(gateway) as client:
        client.send(_create())
        _receive(client)
        assert gateway.inspect()["in_flight"] == 0
        assert "openai_gateway_websockets 1.0" in requests.get(f"{gateway.url}/metrics", timeout=60).text
        client.send(_create(metadata=5))
        refused = json.loads(client.recv(timeout=60))
        assert (refused["type"], refused["status"], refused["error"]["code"]) == ("error", 400, "invalid_type")
        # Two run, one waits, the next is one too many.
        for lane in ("a", "b", "c", "d"):
            client.send(_create(stream_id=lane, metadata={"sim_latency_ms": "400"}))
            time.sleep(0.05)
        error = json.loads(client.recv(timeout=60))
        assert (error["status"], error["stream_id"], error["error"]["code"]) == (429, "d", "gateway_queue_full")
        done = 0
        while done < 3:
            done += json.loads(client.recv(timeout=60))["type"] == "response.completed"


def test_error_of_the_upstream_is_recorded_as_one(through: tuple[Gunicorn, Gunicorn, Path]) -> None:
    gateway, _, folder = through
    with _open(gateway, name="error") as client:
        client.send(_create(metadata={"sim_status": "429", "sim_error_code": "rate_limit_exceeded"}))
        assert _receive(client)[-1]["status"] == 429
        client.send(_create())
        assert _receive(client)[-1]["type"] == "response.completed"
    eventually(lambda: len(_read_usage(folder, "error")) == 2)
    lines = _read_usage(folder, "error")
    assert [(line["status"], line["error_code"]) for line in lines] == [(429, "rate_limit_exceeded"), (200, None)]


@pytest.mark.parametrize(
    ("settings", "simulated"),
    [({"websocket": False}, {}), ({"recordings": "replay"}, {}), ({}, {"websocket": False})],
    ids=["off", "only kept answers", "upstream has none"],
)
def test_without_websockets_the_client_is_told_426(settings: Any, simulated: Any, tmp_path: Path) -> None:
    if "recordings" in settings:
        settings = {**settings, "recordings_dir": str(tmp_path / "kept")}
    with run_simulator(tmp_path, simulated) as simulator, run_gateway(tmp_path, simulator.url, settings) as gateway:
        for _ in range(2):
            with pytest.raises(InvalidStatus) as refused:
                _open(gateway)
            assert refused.value.response.status_code == 426
        # Asked once, then known.
        assert requests.get(f"{simulator.url}/sim/stats", timeout=60).json()["requests"] <= 1


def test_refused_handshake_is_answered_as_the_upstream_answers_it(tmp_path: Path) -> None:
    with run_simulator(tmp_path, {"api_key": "another"}) as simulator, run_gateway(tmp_path, simulator.url) as gateway:
        with pytest.raises(InvalidStatus) as refused:
            _open(gateway)
        assert refused.value.response.status_code == 401
        assert b"invalid_api_key" in (refused.value.response.body or b"")
        assert b"sk-upstream-key" not in (refused.value.response.body or b"")


def _begin(upstream: ServerConnection) -> None:
    upstream.recv(timeout=60)
    upstream.send(json.dumps({"type": "response.created", "response": {"id": "r"}}))


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013])
def test_upstreams_close_code_is_the_clients(code: int, scripted: tuple[Gunicorn, _Upstream, Path]) -> None:
    gateway, upstream, folder = scripted

    def script(upstream: ServerConnection) -> None:
        _begin(upstream)
        upstream.close(code, "so be it")

    upstream.script = script
    with _open(gateway, name=f"close {code}") as client:
        client.send(_create())
        assert json.loads(client.recv(timeout=60))["type"] == "response.created"
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=60)
        assert client.close_code == code
    eventually(lambda: gateway.inspect()["in_flight"] == 0 and len(_read_usage(folder, f"close {code}")) == 1)


def test_upstream_that_breaks_off_is_1011_and_a_failed_call(scripted: tuple[Gunicorn, _Upstream, Path]) -> None:
    gateway, upstream, folder = scripted

    def script(upstream: ServerConnection) -> None:
        _begin(upstream)
        upstream.socket.shutdown(socket.SHUT_RDWR)

    upstream.script = script
    with _open(gateway, name="broken off") as client:
        client.send(_create())
        client.recv(timeout=60)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=60)
        assert client.close_code == 1011
    eventually(lambda: [line["outcome"] for line in _read_usage(folder, "broken off")] == ["failed"])


@pytest.mark.parametrize("phase", ["queued", "running"])
def test_client_that_leaves_ends_the_upstreams_connection_and_its_calls(phase: str, tmp_path: Path) -> None:
    ended = threading.Event()

    def script(upstream: ServerConnection) -> None:
        try:
            _begin(upstream)
            upstream.recv(timeout=60)
        except ConnectionClosed:
            ended.set()

    settings = {"max_concurrent_requests": 1, "usage_log": str(tmp_path / "usage.jsonl")}
    with _Upstream(script) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        client = _open(gateway)
        client.send(_create(stream_id="a"))
        client.recv(timeout=60)
        count = 1
        if phase == "queued":
            client.send(_create(stream_id="b"))
            eventually(lambda: gateway.inspect()["queued"] == 1)
            count = 2
        client.socket.shutdown(socket.SHUT_RDWR)
        assert ended.wait(60)
        eventually(lambda: gateway.inspect()["in_flight"] == 0 and gateway.inspect()["queued"] == 0)
        eventually(lambda: [line["outcome"] for line in _read_usage(tmp_path)] == ["client_gone"] * count)


def test_response_for_which_nothing_comes_ends_in_an_error(tmp_path: Path) -> None:
    def script(upstream: ServerConnection) -> None:
        upstream.recv(timeout=60)
        upstream.recv(timeout=60)

    settings = {"first_byte_timeout_s": 0.3}
    with _Upstream(script) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        with _open(gateway) as client:
            time.sleep(0.6)  # idle is no reason
            client.send(_create())
            event = json.loads(client.recv(timeout=60))
            assert (event["type"], event["status"], event["error"]["code"]) == ("error", 504, "upstream_timeout")
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=60)
            assert client.close_code == 1011
        eventually(lambda: gateway.inspect()["in_flight"] == 0)


def test_stop_lets_the_running_response_finish_then_closes_with_1012(tmp_path: Path) -> None:
    with run_simulator(tmp_path) as simulator, run_gateway(tmp_path, simulator.url) as gateway:
        with _open(gateway) as client:
            client.send(_create(metadata={"sim_latency_ms": "1500"}))
            eventually(lambda: gateway.inspect()["in_flight"] == 1)
            gateway.send_signal(signal.SIGTERM)
            time.sleep(0.4)
            client.send(_create(stream_id="late"))
            late = json.loads(client.recv(timeout=60))
            assert (late["type"], late["status"], late["error"]["code"]) == ("error", 503, "gateway_draining")
            assert _receive(client)[-1]["type"] == "response.completed"
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=60)
            assert client.close_code == 1012
        gateway.process.wait(60)


def test_frames_of_any_size_and_shape_pass_as_they_are(scripted: tuple[Gunicorn, _Upstream, Path]) -> None:
    gateway, upstream, _ = scripted
    upstream.script = _echo
    with connect(gateway.url.replace("http", "ws") + "/v1/responses", max_size=None, compression=None) as client:
        for message in ("{}", "no json", '{"type":"response.steer"}', "é" * 40_000, b"\x00\xff", "x" * 15_000_000):
            client.send(message)
            assert client.recv(timeout=60) == message
        client.send(iter(["frag", "men", "ted"]))
        assert client.recv(timeout=60) == "fragmented"
        client.ping().wait(60)
        client.send(iter(['{"type":"response.create",', '"model":"a","input":[]}']))
        assert json.loads(client.recv(timeout=60)) == {"type": "response.create", "model": "the-model", "input": []}


@pytest.mark.parametrize(
    "frame", [b"\x81\x01x", b"\xc1\x80\0\0\0\0", b"\x89\xfe\x00\x80\0\0\0\0"], ids=["unmasked", "reserved", "long ping"]
)
def test_broken_frame_closes_with_1002_and_leaks_nothing(
    frame: bytes, through: tuple[Gunicorn, Gunicorn, Path]
) -> None:
    gateway, _, _ = through
    client = _open(gateway)
    client.socket.sendall(frame)
    with pytest.raises(ConnectionClosed):
        client.recv(timeout=60)
    assert client.close_code == 1002
    eventually(lambda: gateway.inspect()["in_flight"] == 0)


def test_message_above_the_configs_bound_closes_with_1009(tmp_path: Path) -> None:
    with (
        _Upstream(_echo) as upstream,
        run_gateway(tmp_path, upstream.url, {"max_body_bytes": 1000}) as gateway,
        _open(gateway) as client,
    ):
        client.send("x" * 900)
        assert client.recv(timeout=60) == "x" * 900
        client.send("x" * 1001)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=60)
        assert client.close_code == 1009


def test_key_that_a_browser_names_as_a_subprotocol_stays_here(raw: tuple[Gunicorn, ScriptedUpstream]) -> None:
    gateway, upstream = raw

    def script(talk: Conversation) -> None:
        accept_websocket(talk, "sec-websocket-protocol: realtime\r\n").receive()

    upstream.script = script
    asked = "sec-websocket-protocol: realtime, openai-insecure-api-key.secret\r\n"
    status, headers, _, sock = ask_for_websocket(gateway.url, headers=asked)
    sock.close()
    assert (status, headers["sec-websocket-protocol"]) == (101, "realtime")
    assert upstream.requests[-1].headers["sec-websocket-protocol"] == "realtime"


def test_message_that_never_ends_is_not_kept_for_ever(tmp_path: Path) -> None:
    settings = {"client_timeout_s": 0.5}
    with run_simulator(tmp_path) as simulator, run_gateway(tmp_path, simulator.url, settings) as gateway:
        for half in (b"\x81\xfe\x03\xe8\0\0\0\0half", b"\x01\x81\0\0\0\0{"):
            client = open_websocket(gateway.url)
            time.sleep(0.7)  # an idle connection may stay
            client.send_raw(half)
            assert client.receive_all() == ([], 1008)
            client.leave()


def test_handshake_that_is_malformed_never_reaches_the_upstream(raw: tuple[Gunicorn, ScriptedUpstream]) -> None:
    gateway, upstream = raw
    upstream.requests.clear()
    good = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    url = f"{gateway.url}/v1/responses"
    no_key = requests.get(url, headers=good, timeout=60)
    assert (no_key.status_code, no_key.json()["error"]["code"]) == (400, "invalid_handshake")
    old = requests.get(url, headers={**good, "sec-websocket-version": "8"}, timeout=60)
    assert (old.status_code, old.headers["sec-websocket-version"]) == (426, "13")
    foreign = requests.get(url, headers={**good, "origin": "https://evil.example"}, timeout=60)
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "cross_site_request")
    elsewhere = requests.get(f"{gateway.url}/v1/chat/completions", headers=good, timeout=60)
    assert elsewhere.status_code == 426
    assert not upstream.requests


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('{"type":"response.create","model":"dear","stream_id":5}', None),
        ('{"type":"response.create","model":"dear","input":"\\ud800"}', None),
        (b'{"type":"response.create","model":"dear"}', None),
        (iter(['{"type":"response.', 'create","model":"dear","model":', '"dearer"}']), None),
        ('{"type":"response.create","model":"dear","temperature":NaN}', "invalid_request"),
        ('{"type":"response.create","model":"dear"}'.encode("utf-16"), "invalid_request"),
    ],
    ids=["stream_id no text", "lone surrogate", "binary", "fragments, key repeated", "NaN", "UTF-16"],
)
def test_no_create_gets_past_the_model_and_the_slots(
    message: Any, code: str | None, scripted: tuple[Gunicorn, _Upstream, Path]
) -> None:
    gateway, upstream, _ = scripted
    upstream.script = _echo
    with _open(gateway) as client:
        client.send(message)
        got = json.loads(client.recv(timeout=60))
        if code is None:
            assert (got["type"], got["model"]) == ("response.create", "the-model")
            assert gateway.inspect()["in_flight"] == 1
        else:
            assert (got["type"], got["status"]) == ("error", 400)


def _shake_hands(conversation: Conversation) -> None:
    asked = conversation.read_head()
    assert asked is not None
    key = Request(asked, b"").headers["sec-websocket-key"]
    agreed = "HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    head = f"{agreed}sec-websocket-accept: {compute_accept(key)}\r\n\r\n"
    conversation.send(head.encode())


def _flood(client: socket.socket) -> NoReturn:
    while True:
        client.sendall(to_frame(frames.TEXT, b"x" * 16_384, is_masked=True))


@pytest.mark.parametrize("who", ["upstream", "client"])
def test_side_that_does_not_read_holds_nothing_for_ever(who: str, tmp_path: Path) -> None:
    over = threading.Event()

    def script(conversation: Conversation) -> None:
        _shake_hands(conversation)
        if who == "client":
            conversation.sock.recv(65536)
            while not over.is_set():
                conversation.send(to_frame(frames.TEXT, b"x" * 16_384, is_masked=False))
        over.wait(120)

    settings = {"first_byte_timeout_s": 3, "idle_timeout_s": None, "client_timeout_s": 0.5}
    with run_upstream(script) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        before = gateway.inspect()["greenlets"]
        with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), 2) as client:
            client.sendall(
                b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
                b"sec-websocket-version: 13\r\nsec-websocket-key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
            )
            assert client.recv(12) == b"HTTP/1.1 101"
            if who == "client":
                client.sendall(to_frame(frames.TEXT, _create().encode(), is_masked=True))
            else:
                with contextlib.suppress(OSError):
                    _flood(client)
            eventually(lambda: gateway.inspect()["in_flight"] == 0 and gateway.inspect()["greenlets"] <= before)
        over.set()


def test_lanes_of_a_connection_are_bounded_and_forgotten(tmp_path: Path) -> None:
    with (
        _Upstream(_echo) as upstream,
        run_gateway(tmp_path, upstream.url, {"max_concurrent_requests": 1}) as gateway,
    ):
        with _open(gateway) as client:
            for number in range(300):
                client.send(_create(stream_id=f"lane {number}"))
            errors = 0
            while errors < 300 - 256:
                errors += json.loads(client.recv(timeout=60)).get("error", {}).get("code") == "too_many_messages"
            client.send(_create(stream_id="x" * 1000))
            # The one create that runs is echoed, sooner or later.
            while "status" not in (refused := json.loads(client.recv(timeout=60))):
                pass
            assert (refused["status"], refused["error"]["param"]) == (400, "stream_id")
        eventually(lambda: gateway.inspect()["in_flight"] + gateway.inspect()["queued"] == 0)


def test_one_clients_bad_handshake_does_not_end_the_websockets_of_others(tmp_path: Path) -> None:
    statuses = iter(["400 Bad Request", "401 Unauthorized"])

    def script(conversation: Conversation) -> None:
        conversation.read_head()
        conversation.send(to_answer(b'{"error": {"code": "x"}}', status=next(statuses)))

    with run_upstream(script) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        for expected in (426, 401):
            with pytest.raises(InvalidStatus) as refused:
                _open(gateway)
            assert refused.value.response.status_code == expected


def test_key_that_is_taken_away_ends_with_the_next_call(tmp_path: Path) -> None:
    clients = tmp_path / "clients.yaml"
    clients.write_text("team: {key: gw-0123456789abcdef}")
    settings = {"clients_file": str(clients)}
    with run_simulator(tmp_path) as simulator, run_gateway(tmp_path, simulator.url, settings) as gateway:
        url = gateway.url.replace("http", "ws") + "/v1/responses"
        with connect(url, additional_headers={"authorization": "Bearer gw-0123456789abcdef"}) as client:
            client.send(_create())
            assert _receive(client)[-1]["type"] == "response.completed"
            clients.write_text("another: {key: gw-fedcba9876543210}")

            def is_refused() -> bool:
                client.send(_create())
                return bool(_receive(client)[-1].get("status") == 401)

            eventually(is_refused)
