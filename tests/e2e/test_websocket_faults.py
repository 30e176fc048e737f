"""Every fault of an upstream or a client x one or two lanes: what the other side gets, one record, nothing left behind.

The counterpart of test_fault_matrix for the Responses API's WebSocket mode.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from openai_gateway.wire import frames
from openai_gateway.wire.frames import make_close, to_frame
from tests.support.processes import Gunicorn, eventually, run_gunicorn, to_config
from tests.support.upstreams import Conversation, Request, ScriptedUpstream, to_answer
from tests.support.websockets import (
    RawWebSocket,
    accept_websocket,
    ask_for_websocket,
    connect_raw,
    open_websocket,
    to_agreement,
    to_create,
    to_handshake,
    to_server_event,
)

KEY = "sk-upstream-key"
CLIENT = "authorization: Bearer gw-key-of-the-team\r\nx-client-request-id: {}\r\n"
CAP = 4
LANES = [[""], ["a", "b"]]
Fault = Callable[[RawWebSocket], None]


@dataclass
class Bench:
    """The gateway under test, its scripted upstream, and what was seen so far."""

    gateway: Gunicorn
    upstream: ScriptedUpstream
    folder: Path
    table: list[str]
    outputs: list[str]

    def read_records(self, name: str) -> list[tuple[str, int | None, str | None]]:
        path = self.folder / "usage.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        of_name = [line for line in lines if line["client_request_id"] == name]
        return [(line["outcome"], line["status"], line["error_code"]) for line in of_name]

    def read_reserved(self) -> list[str]:
        text = requests.get(f"{self.gateway.url}/metrics", timeout=60).text
        return re.findall(r'^openai_gateway_client_reserved_usd\{client="team"\} (\S+)$', text, re.M)

    @contextlib.contextmanager
    def all_given_back(self) -> Iterator[None]:
        """Check that after the block the worker lives and holds what it held before it."""
        before = self.gateway.inspect()
        yield

        def is_as_before() -> bool:
            after = self.gateway.inspect()
            held = after["in_flight"] + after["queued"]
            return held == 0 and after["greenlets"] <= before["greenlets"] and after["fds"] <= before["fds"] + 1

        eventually(is_as_before)
        after = self.gateway.inspect()
        assert after["pid"] == before["pid"], "the worker died"
        assert self.read_reserved() == ["0.0"]
        assert "openai_gateway_websockets 0.0" in requests.get(f"{self.gateway.url}/metrics", timeout=60).text


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "prices.yaml").write_text("models: {the-model: &p {input: 1.0, output: 10.0}, other: *p}\n")
    clients = {"team": {"key": "gw-key-of-the-team", "budget_usd": 1000, "per": "day"}}
    (folder / "clients.yaml").write_text(json.dumps(clients))
    upstream = ScriptedUpstream(_refuse_with("403 Forbidden"))
    refused = socket.socket()
    refused.bind(("127.0.0.1", 0))
    shared = {
        "usage_log": str(folder / "usage.jsonl"),
        "price_file": str(folder / "prices.yaml"),
        "clients_file": str(folder / "clients.yaml"),
        "max_concurrent_requests_total": CAP,
        "breaker_cooldown_s": None,
    }
    patient = {"first_byte_timeout_s": 60, "idle_timeout_s": 60, "client_timeout_s": 60}
    config: dict[str, Any] = {}
    for name, url, more in (
        ("policy_model", upstream.url, patient),
        ("hasty", upstream.url, {"first_byte_timeout_s": 0.5, "idle_timeout_s": 0.5}),
        ("narrow", upstream.url, {**patient, "max_concurrent_requests": 1, "openai_model": "other"}),
        ("refused", f"http://127.0.0.1:{refused.getsockname()[1]}", patient),
    ):
        config[name] = yaml.safe_load(to_config(url, {**shared, **more}))["policy_model"]
    path = folder / "faults.yaml"
    path.write_text(yaml.safe_dump(config))
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": str(path)}
    with run_gunicorn("tests.support.inspected:app", folder, environ=environ) as gateway:
        bench = Bench(gateway, upstream, folder, [], [])
        # The first call of each server makes what stays.
        for name in config:
            ask_for_websocket(gateway.url, f"/{name}/v1/responses", CLIENT.format("warm"))[3].close()
        yield bench
        bench.outputs.append(gateway.log())
    for closing in (upstream, refused):
        closing.close()
    print("\n" + "\n".join(bench.table))
    assert not [output for output in bench.outputs if KEY in output], "the key shows"
    assert "Traceback" not in bench.outputs[-1]


def _refuse_with(status: str, body: bytes = b'{"error": {"code": "x"}}') -> Callable[[Conversation], None]:
    def script(talk: Conversation) -> None:
        talk.read_head()
        talk.send(to_answer(body, status=status))

    return script


def _agree(headers: str = "", accept: str | None = None) -> Callable[[Conversation], None]:
    def script(talk: Conversation) -> None:
        head = talk.read_head()
        assert head is not None
        answer = to_agreement(Request(head, b""), headers)
        if accept is not None:
            answer = re.sub(rb"sec-websocket-accept:.*\r\n", accept.encode(), answer)
        talk.send(answer)
        talk.wait_until_closed()

    return script


def _be_silent(talk: Conversation) -> None:
    talk.read_head()
    talk.wait_until_closed()


def _send_and_wait(data: bytes) -> Callable[[Conversation], None]:
    def script(talk: Conversation) -> None:
        talk.read_head()
        talk.send(data)
        talk.wait_until_closed()

    return script


def _reset(talk: Conversation) -> None:
    talk.read_head()
    talk.reset()


_ECHO = f'{{"error": {{"code": "invalid_api_key", "message": "no {KEY}"}}}}'.encode()
HANDSHAKES: list[tuple[str, Callable[[Conversation], None], int, str, str]] = [
    ("401 that echoes the key", _refuse_with("401 Unauthorized", _ECHO), 401, "invalid_api_key", "policy_model"),
    ("403", _refuse_with("403 Forbidden"), 403, "x", "policy_model"),
    ("429", _refuse_with("429 Too Many Requests"), 429, "x", "policy_model"),
    ("500", _refuse_with("500 Oops"), 500, "x", "policy_model"),
    ("400", _refuse_with("400 Bad Request"), 426, "websocket_not_supported", "policy_model"),
    ("no 101, but connection refused", _reset, 502, "upstream_unreachable", "refused"),
    ("reset", _reset, 502, "upstream_unreachable", "policy_model"),
    ("silence", _be_silent, 504, "upstream_timeout", "hasty"),
    ("wrong accept", _agree(accept="sec-websocket-accept: AAAA\r\n"), 502, "upstream_protocol_error", "policy_model"),
    ("no accept", _agree(accept=""), 502, "upstream_protocol_error", "policy_model"),
    (
        "an extension that nobody offered",
        _agree("sec-websocket-extensions: permessage-deflate\r\n"),
        502,
        "upstream_protocol_error",
        "policy_model",
    ),
    ("no HTTP", _send_and_wait(b"\x16\x03\x01\x00\x02\r\n\r\n"), 502, "upstream_protocol_error", "policy_model"),
    ("half a head", _send_and_wait(b"HTTP/1.1 101 Swi"), 504, "upstream_timeout", "hasty"),
]


@pytest.mark.parametrize(("name", "script", "status", "code", "server"), HANDSHAKES, ids=[row[0] for row in HANDSHAKES])
def test_handshake_that_fails_upstream_is_answered_and_leaves_nothing_behind(
    name: str, script: Callable[[Conversation], None], status: int, code: str, server: str, bench: Bench
) -> None:
    bench.upstream.script = script
    with bench.all_given_back():
        got, headers, body, sock = ask_for_websocket(bench.gateway.url, f"/{server}/v1/responses", CLIENT.format(name))
        sock.close()
    bench.outputs.append(f"{headers} {body!r}")
    assert (got, json.loads(body)["error"]["code"]) == (status, code)
    bench.table.append(f"handshake: {name:45} {status} {code}")


@pytest.mark.parametrize(
    "status", ["200 OK", "404 Not Found", "405 Method Not Allowed", "426 X", "501 Not Implemented"]
)
def test_upstream_that_has_no_websockets_is_426_and_asked_once(status: str, tmp_path: Path) -> None:
    upstream = ScriptedUpstream(_refuse_with(status))
    path = tmp_path / "config.yaml"
    path.write_text(to_config(upstream.url))
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": str(path)}
    with run_gunicorn("tests.support.inspected:app", tmp_path, environ=environ) as gateway:
        before = gateway.inspect()
        for _ in range(2):
            got, _, body, sock = ask_for_websocket(gateway.url)
            sock.close()
            assert (got, json.loads(body)["error"]["code"]) == (426, "websocket_not_supported")
        assert upstream.connections == 1
        eventually(lambda: gateway.inspect()["fds"] <= before["fds"] + 1)
    upstream.close()


@dataclass(frozen=True)
class Row:
    """What an upstream does once each lane has begun, and what must come of it.

    `code` is what the client is closed with. `record` is each lane's; `last` the type of the event that each lane gets
    before the end, beside those that it had already.
    """

    name: str
    fault: Fault
    code: int
    record: tuple[str, int | None, str | None] = ("failed", 200, "upstream_protocol_error")
    last: str | None = None
    server: str = "policy_model"


def _close_with(code: int | None) -> Fault:
    def fault(upstream: RawWebSocket) -> None:
        upstream.send(make_close(code, "so be it") if code else b"", frames.CLOSE)
        upstream.receive()

    return fault


def _raw(data: bytes) -> Fault:
    def fault(upstream: RawWebSocket) -> None:
        upstream.send_raw(data)
        upstream.receive()

    return fault


def _then_leave(data: bytes, *, by_reset: bool = False) -> Fault:
    def fault(upstream: RawWebSocket) -> None:
        upstream.send_raw(data)
        if by_reset:
            # What was sent must have been read before a reset takes it away.
            time.sleep(0.2)
        upstream.leave(by_reset=by_reset)

    return fault


def _hang(upstream: RawWebSocket, data: bytes = b"") -> None:
    upstream.send_raw(data)
    while upstream.receive() is not None:
        pass


def _pad(length: int) -> bytes:
    head = json.dumps({"type": "of.no.response", "stream_id": "zzz"})[:-1]
    return f'{head}, "delta": "{"x" * (length - len(head) - 13)}"}}'.encode()


_EVENT = to_frame(frames.TEXT, _pad(200), is_masked=False)
_FRAGMENT = b"\x01" + _EVENT[1:]
_MIB = 1 << 20
ROWS = [
    *[Row(f"close {code}", _close_with(code), code) for code in (1000, 1001, 1008, 1011, 1012, 1013, 4000)],
    Row("close without a code", _close_with(None), 1005),
    Row("close 1015, which nobody may send", _raw(b"\x88\x02\x03\xf7"), 1011),
    Row("end between events", _then_leave(b""), 1011),
    Row("reset between events", _then_leave(b"", by_reset=True), 1011),
    Row("end within an event", _then_leave(_EVENT[:-4]), 1011),
    Row("end within an event's head", _then_leave(b"\x81"), 1011),
    Row("reset within an event", _then_leave(_EVENT[:50], by_reset=True), 1011),
    Row("end after half a message", _then_leave(_FRAGMENT), 1011),
    Row("close within a message", _raw(_FRAGMENT + to_frame(frames.CLOSE, make_close(1001), is_masked=False)), 1001),
    Row("silence", _hang, 1011, ("failed", 200, "upstream_timeout"), "error", "hasty"),
    Row("silence within an event", lambda upstream: _hang(upstream, _EVENT[:-4]), 1011,
        ("failed", 200, "upstream_timeout"), "error", "hasty"),
    Row("masked frame", _raw(to_frame(frames.TEXT, b"{}", is_masked=True)), 1011),
    Row("reserved bit", _raw(b"\xc1\x02{}"), 1011),
    Row("unknown opcode", _raw(b"\x83\x00"), 1011),
    Row("unknown control opcode", _raw(b"\x8b\x00"), 1011),
    Row("fragmented ping", _raw(b"\x09\x00"), 1011),
    Row("ping that is too long", _raw(b"\x89\x7e\x00\x80" + bytes(128)), 1011),
    Row("close of one byte", _raw(b"\x88\x01x"), 1011),
    Row("reason that is no UTF-8", _raw(b"\x88\x03\x03\xe8\xff"), 1011),
    Row("going on with no message", _raw(b"\x80\x02{}"), 1011),
    Row("message within a message", _raw(_FRAGMENT + _EVENT), 1011),
    Row("length longer than need be", _raw(b"\x81\x7e\x00\x05hello"), 1011),
    Row("length beyond 63 bits", _raw(b"\x81\x7f\xff" + bytes(7)), 1011),
    Row("17 MiB", _raw(b"\x81\x7f" + (17 * _MIB).to_bytes(8, "big")), 1011),
]  # fmt: skip


def _serve(lanes: list[str], fault: Fault) -> Callable[[Conversation], None]:
    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        for _ in lanes:
            create = upstream.receive_event()
            assert (create["type"], create["model"]) == ("response.create", "the-model")
        for kind in ("created", "output_text.delta"):
            for lane in lanes:
                upstream.send(to_server_event(kind, lane, delta="x"))
        fault(upstream)

    return script


def _begin(bench: Bench, lanes: list[str], name: str, server: str = "policy_model") -> RawWebSocket:
    client = open_websocket(bench.gateway.url, f"/{server}/v1/responses", CLIENT.format(name))
    for lane in lanes:
        client.send(to_create(lane, max_output_tokens=100))
    return client


def _receive(client: RawWebSocket, count: int) -> list[str]:
    return [client.receive_event()["type"] for _ in range(count)]


@pytest.mark.parametrize("lanes", LANES, ids=["one lane", "two lanes"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_fault_of_the_upstream_reaches_the_client_and_leaves_nothing_behind(
    row: Row, lanes: list[str], bench: Bench
) -> None:
    name = f"{row.name}, {len(lanes)}"
    bench.upstream.script = _serve(lanes, row.fault)
    with bench.all_given_back():
        client = _begin(bench, lanes, name, row.server)
        assert len(_receive(client, 2 * len(lanes))) == 2 * len(lanes)
        events, code = client.receive_all()
        assert code == row.code
        assert [event["type"] for event in events] == ([row.last] * len(lanes) if row.last else [])
        client.leave()
    eventually(lambda: len(bench.read_records(name)) == len(lanes))
    assert bench.read_records(name) == [row.record] * len(lanes)
    bench.table.append(f"upstream: {name:45} {code} {row.record}")


@pytest.mark.parametrize("lanes", LANES, ids=["one lane", "two lanes"])
def test_events_before_a_broken_frame_arrive_though_they_came_with_it(lanes: list[str], bench: Bench) -> None:
    def fault(upstream: RawWebSocket) -> None:
        ends = [json.dumps(to_server_event("completed", lane)).encode() for lane in lanes]
        upstream.send_raw(b"".join(to_frame(frames.TEXT, end, is_masked=False) for end in ends) + b"\xc1\x02{}")
        upstream.receive()

    name = f"completed, then broken, {len(lanes)}"
    bench.upstream.script = _serve(lanes, fault)
    with bench.all_given_back():
        client = _begin(bench, lanes, name)
        events, code = client.receive_all()
        client.leave()
    assert [event["type"] for event in events[2 * len(lanes) :]] == ["response.completed"] * len(lanes)
    assert code == 1011
    assert bench.read_records(name) == [("completed", 200, None)] * len(lanes)


@pytest.mark.parametrize(
    "data",
    [
        _EVENT,
        to_frame(frames.TEXT, _pad(16 * _MIB - 100), is_masked=False),
        to_frame(frames.TEXT, b"\xff\xfe no UTF-8", is_masked=False),
        to_frame(frames.TEXT, b"no JSON", is_masked=False),
        to_frame(frames.TEXT, b"", is_masked=False),
        to_frame(frames.BINARY, bytes(range(256)), is_masked=False),
        _FRAGMENT + to_frame(frames.PING, b"between", is_masked=False) + b"\x00\x01{" + b"\x80\x01}",
        to_frame(frames.PONG, b"unasked", is_masked=False),
    ],
    ids=["event", "16 MiB", "no UTF-8", "no JSON", "empty", "binary", "fragments with a ping", "pong"],
)
@pytest.mark.parametrize("lanes", LANES, ids=["one lane", "two lanes"])
def test_whatever_is_whole_passes_byte_for_byte(lanes: list[str], data: bytes, bench: Bench) -> None:
    def fault(upstream: RawWebSocket) -> None:
        for lane in lanes:
            upstream.send(to_server_event("completed", lane))
        upstream.send_raw(data)
        _close_with(1000)(upstream)

    name = f"whole {len(data)}, {len(lanes)}"
    bench.upstream.script = _serve(lanes, fault)
    with bench.all_given_back():
        client = _begin(bench, lanes, name)
        while (frame := client.receive()) is not None and frame.opcode != frames.CLOSE:
            pass
        assert bytes(client.got).endswith(data + to_frame(frames.CLOSE, make_close(1000, "so be it"), is_masked=False))
        client.leave()
    eventually(lambda: bench.read_records(name)[-len(lanes) :] == [("completed", 200, None)] * len(lanes))


def _wait_for_end(upstream: RawWebSocket, seen: list[float]) -> None:
    while (frame := upstream.receive()) is not None and frame.opcode != frames.CLOSE:
        pass
    seen.append(time.monotonic())


@pytest.mark.parametrize("by_reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("lanes", LANES, ids=["one lane", "two lanes"])
@pytest.mark.parametrize("phase", ["idle", "first event", "mid-stream", "queued", "closing"])
def test_client_that_leaves_in_any_phase_leaves_nothing_behind(
    phase: str, lanes: list[str], by_reset: bool, bench: Bench
) -> None:
    seen: list[float] = []

    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        if phase == "idle":
            for _ in lanes:
                upstream.send(to_server_event("completed", upstream.receive_event().get("stream_id", "")))
        elif phase in ("mid-stream", "queued", "closing"):
            for _ in lanes if phase != "queued" else lanes[:1]:
                upstream.send(to_server_event("created", upstream.receive_event().get("stream_id", "")))
        else:
            for _ in lanes:
                upstream.receive_event()
            upstream.send(b"come", frames.PING)
        _wait_for_end(upstream, seen)

    name = f"client {phase}, {len(lanes)}, {by_reset}"
    bench.upstream.script = script
    narrow = "narrow" if phase == "queued" else "policy_model"
    creates = [*lanes, "c"] if phase == "queued" else lanes
    with bench.all_given_back():
        client = _begin(bench, creates, name, narrow)
        if phase == "first event":
            frame = client.receive()
            assert frame is not None
            assert frame.opcode == frames.PING
        else:
            _receive(client, len(lanes) if phase != "queued" else 1)
        if phase == "queued":
            eventually(lambda: bench.gateway.inspect()["queued"] == len(creates) - 1)
        if phase == "closing":
            client.close_with(1000)
        client.leave(by_reset=by_reset)
        left = time.monotonic()
        eventually(lambda: bool(seen))
        assert seen[0] - left < 1.0, "the upstream's connection outlived its client"
    record = ("completed", 200, None) if phase == "idle" else ("client_gone", 200, None)
    eventually(lambda: len(bench.read_records(name)) == len(creates))
    records = sorted(bench.read_records(name), key=str)
    waited = len(creates) - 1 if phase == "queued" else 0
    assert records == sorted([record] * (len(creates) - waited) + [("client_gone", None, None)] * waited, key=str)
    bench.table.append(f"client leaves: {name:40} {records}")


@pytest.mark.parametrize("by_reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize("cut", [30, None], ids=["half a head", "head"])
def test_client_that_leaves_within_the_handshake_leaves_nothing_behind(
    cut: int | None, by_reset: bool, bench: Bench
) -> None:
    asked: list[float] = []
    ended: list[float] = []

    def script(talk: Conversation) -> None:
        talk.read_head()
        asked.append(time.monotonic())
        talk.wait_until_closed()
        ended.append(time.monotonic())

    bench.upstream.script = script
    with bench.all_given_back():
        sock = connect_raw(bench.gateway.url)
        sock.sendall(to_handshake(headers=CLIENT.format("half"))[:cut])
        if cut is None:
            eventually(lambda: bool(asked))
        else:
            time.sleep(0.05)
        RawWebSocket(sock, is_client=True).leave(by_reset=by_reset)
        left = time.monotonic()
        if cut is None:
            eventually(lambda: bool(ended))
            assert ended[0] - left < 1.0
        else:
            assert not asked


_MASK = b"\0\0\0\0"
BROKEN = [
    ("unmasked", b"\x81\x02{}", 1002),
    ("reserved bit", b"\xc1\x82" + _MASK + b"{}", 1002),
    ("unknown opcode", b"\x83\x80" + _MASK, 1002),
    ("unknown control opcode", b"\x8f\x80" + _MASK, 1002),
    ("fragmented ping", b"\x09\x80" + _MASK, 1002),
    ("ping that is too long", b"\x89\xfe\x00\x80" + _MASK + bytes(128), 1002),
    ("close of one byte", b"\x88\x81" + _MASK + b"x", 1002),
    ("close 1006", b"\x88\x82" + _MASK + b"\x03\xee", 1002),
    ("reason that is no UTF-8", b"\x88\x83" + _MASK + b"\x03\xe8\xff", 1007),
    ("going on with no message", b"\x80\x82" + _MASK + b"{}", 1002),
    ("message within a message", b"\x01\x81" + _MASK + b"{" + b"\x81\x81" + _MASK + b"}", 1002),
    ("length longer than need be", b"\x81\xfe\x00\x05" + _MASK + b"hello", 1002),
    ("length beyond 63 bits", b"\x81\xff\xff" + bytes(7) + _MASK, 1009),
    ("17 MiB", b"\x81\xff" + (17 * _MIB).to_bytes(8, "big") + _MASK, 1009),
    ("17 MiB in fragments", b"\x01\xff" + (9 * _MIB).to_bytes(8, "big") + _MASK + bytes(9 * _MIB)
     + b"\x80\xff" + (8 * _MIB).to_bytes(8, "big") + _MASK, 1009),
]  # fmt: skip


@pytest.mark.parametrize("lanes", LANES, ids=["one lane", "two lanes"])
@pytest.mark.parametrize(("what", "data", "code"), BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_frame_of_a_client_ends_its_connection_and_leaves_nothing_behind(
    what: str, data: bytes, code: int, lanes: list[str], bench: Bench
) -> None:
    seen: list[float] = []
    bench.upstream.script = _serve(lanes, lambda upstream: _wait_for_end(upstream, seen))
    name = f"broken, {what}, {len(lanes)}"
    with bench.all_given_back():
        client = _begin(bench, lanes, name)
        _receive(client, 2 * len(lanes))
        client.send_raw(data)
        events, got = client.receive_all()
        assert (events, got) == ([], code)
        client.leave()
        eventually(lambda: bool(seen))
    eventually(lambda: bench.read_records(name) == [("client_gone", 200, None)] * len(lanes))
    bench.table.append(f"client sends: {name:42} {code}")


def test_afterwards_all_permits_of_the_total_cap_are_there(bench: Bench) -> None:
    def script(talk: Conversation) -> None:
        upstream = accept_websocket(talk)
        for _ in range(CAP):
            upstream.send(to_server_event("created", upstream.receive_event()["stream_id"]))
        _hang(upstream)

    bench.upstream.script = script
    with bench.all_given_back():
        client = _begin(bench, [str(number) for number in range(CAP)], "permits")
        assert len(_receive(client, CAP)) == CAP
        client.leave()
