"""Every fault of an upstream x {responses, chat} x {plain, stream}: status, form, attempts, nothing left behind."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import yaml

from tests.support.certificates import make_certificates
from tests.support.processes import Gunicorn, eventually, run_gunicorn, to_config
from tests.support.upstreams import (
    LAST_CHUNK,
    PATHS,
    STREAM_HEAD,
    Conversation,
    ScriptedUpstream,
    answer_always,
    to_answer,
    to_chunk,
    to_event,
    to_request_body,
)

KEY = "sk-upstream-key"
Fault = Callable[[Conversation, str, bool], None]


@dataclass(frozen=True)
class Row:
    """What a fault does and what must come of it: (status, error code) for plain calls and for streams."""

    name: str
    fault: Fault | None
    plain: tuple[int, str | None]
    stream: tuple[int, str | None]
    plain_attempts: int = 2
    stream_attempts: int = 2
    server: str = "policy_model"
    body: bytes | None = None

    @property
    def served_by(self) -> str:
        """The server that a time-out is short for where one is waited for; else a busy machine could meet it."""
        is_late = "upstream_timeout" in (self.plain[1], self.stream[1])
        return "hasty" if is_late and self.server == "policy_model" else self.server


def _reset_before_headers(talk: Conversation, api: str, stream: bool) -> None:
    talk.read_request()
    talk.reset()


def _close_before_headers(talk: Conversation, api: str, stream: bool) -> None:
    talk.read_request()


def _send_raw(answer: bytes) -> Fault:
    def fault(talk: Conversation, api: str, stream: bool) -> None:
        talk.read_request()
        talk.send(answer)
        time.sleep(0.05)

    return fault


def _truncate_length(talk: Conversation, api: str, stream: bool) -> None:
    talk.read_request()
    kind = "text/event-stream" if stream else "application/json"
    talk.send(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: 5000\r\n\r\n".encode())
    talk.send(to_event(api, "one"))


def _break_chunks(last: Callable[[Conversation], None]) -> Fault:
    def fault(talk: Conversation, api: str, stream: bool) -> None:
        talk.read_request()
        head = STREAM_HEAD if stream else STREAM_HEAD.replace(b"text/event-stream", b"application/json")
        talk.send(head + to_chunk(to_event(api, "one")))
        last(talk)

    return fault


def _reset_in_a_moment(talk: Conversation) -> None:
    time.sleep(0.05)
    talk.reset()


def _send_and_wait(answer: bytes) -> Fault:
    def fault(talk: Conversation, api: str, stream: bool) -> None:
        talk.read_request()
        talk.send(answer)
        talk.wait_until_closed()

    return fault


def _trail_without_end(talk: Conversation, api: str, stream: bool) -> None:
    talk.read_request()
    head = STREAM_HEAD if stream else STREAM_HEAD.replace(b"text/event-stream", b"application/json")
    talk.send(head + to_chunk(to_event(api, "one")) + b"0\r\n" + b"a: b\r\n" * 20_000)


def _send_blanks(talk: Conversation, api: str, stream: bool) -> None:
    talk.read_request()
    talk.send(STREAM_HEAD.replace(b"text/event-stream", b"application/json"))
    for _ in range(3):
        talk.send(to_chunk(b"\n"))
        time.sleep(0.02)
    talk.send(to_chunk(b'{"ok": true}') + LAST_CHUNK)


def _be_silent(talk: Conversation, api: str = "", stream: bool = False) -> None:
    if not talk.seen or api:
        talk.read_request()
    talk.wait_until_closed()


def _drip(talk: Conversation, api: str, stream: bool) -> None:
    talk.read_request()
    head = STREAM_HEAD if stream else STREAM_HEAD.replace(b"text/event-stream", b"application/json")
    payload = to_event(api, "x") + b"data: [DONE]\n\n" if stream else b'{"dripped": true}'
    whole = head + to_chunk(payload) + LAST_CHUNK
    for at in range(0, len(whole), 16):
        talk.send(whole[at : at + 16])
        time.sleep(0.01)
    talk.wait_until_closed(0.3)


def _redirect(talk: Conversation, api: str, stream: bool) -> None:
    talk.read_request()
    talk.send(to_answer(b"", status="307 Temporary Redirect", headers="location: http://127.0.0.1:1/stolen\r\n"))


def _noise(talk: Conversation, api: str, stream: bool) -> None:
    talk.read_request()
    talk.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
    time.sleep(0.02)
    talk.send(b"HTTP/1.1 102 Processing\r\n\r\n" + to_answer(b'{"ok": true}'))


def _answer_early(talk: Conversation, api: str, stream: bool) -> None:
    talk.read_head()
    talk.send(to_answer(b'{"error": {"message": "too large"}}', status="413 Content Too Large"))
    talk.sock.shutdown(socket.SHUT_WR)
    talk.wait_until_closed(2)


_GZIP = "content-type: application/json\r\ncontent-encoding: gzip\r\n"
_CONTINUE = b"HTTP/1.1 102 Processing\r\n\r\n"
_LONG_CONTINUE = b"HTTP/1.1 102 Processing\r\nx-pad: " + b"a" * 16_000 + b"\r\n\r\n"
_ECHO = f'{{"error": {{"message": "no {KEY}", "pad": "{"x" * 1_300_000}"}}}}'.encode()
_LARGE_ECHO = to_answer(_ECHO, status="400 Bad")
_PACKED_ECHO = to_answer(gzip.compress(_ECHO), status="400 Bad", headers=_GZIP)
_BIG = json.dumps({"model": "m", "input": "x" * 8_000_000, "messages": []}).encode()
_WHOLE_STREAM = to_chunk(b"data: {}\n\n") + LAST_CHUNK
_BOTH_LENGTHS = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-length: 3\r\n\r\n") + _WHOLE_STREAM
_HTML = to_answer(b"<html>", status="502 Bad Gateway", headers="content-type: text/html\r\n")
_OOPS = to_answer(b'{"error": {"message": "boom"}}', status="500 Oops")
_GARBAGE = to_answer(b"\x1f\x8bgarbage", headers=_GZIP)
_BROKEN = (502, "upstream_protocol_error")
_GONE = (502, "upstream_unreachable")
_LATE = (504, "upstream_timeout")
_MIDWAY = (200, "upstream_protocol_error")

ROWS = [
    Row("connection refused", None, _GONE, _GONE, server="refused"),
    Row("host name unknown", None, _GONE, _GONE, server="unknown_host"),
    Row("certificate of an unknown CA", None, _GONE, _GONE, server="bad_tls"),
    Row("certificate of the configured CA", None, (200, None), (200, None), 1, 1, server="good_tls"),
    Row("connect is never accepted", None, _LATE, _LATE, server="black_hole"),
    Row("reset before headers", _reset_before_headers, _GONE, _GONE),
    Row("closed before headers", _close_before_headers, _GONE, _GONE),
    Row("malformed status line", _send_raw(b"SPDY/9 200 OK\r\n\r\n"), _BROKEN, _BROKEN, 1, 1),
    Row("bytes that are no HTTP", _send_raw(b"\x16\x03\x01" * 40 + b"\r\n\r\n"), _BROKEN, _BROKEN, 1, 1),
    Row("bytes that are no HTTP, then silence", _send_and_wait(b"\x15\x03\x01\x00\x02"), _BROKEN, _BROKEN, 1, 1),
    Row("bare line feeds, then silence", _send_and_wait(b"HTTP/1.1 200 OK\na: b\n\n{}"), _BROKEN, _BROKEN, 1, 1),
    Row("oversized headers", _send_raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000), _BROKEN, _BROKEN, 1, 1),
    Row("Content-Length and chunks at once", _send_raw(_BOTH_LENGTHS), (200, None), (200, None), 1, 1),
    Row("line break inside a header", _send_raw(b"HTTP/1.1 200 OK\r\nx: a\nb: c\r\n\r\n"), _BROKEN, _BROKEN, 1, 1),
    Row("informational answers without end", _send_raw(_LONG_CONTINUE * 100), _BROKEN, _BROKEN, 1, 1),
    Row("signs of life, then silence", _send_and_wait(_CONTINUE * 100), _LATE, _LATE),
    Row("trailers without end", _trail_without_end, _BROKEN, _MIDWAY, stream_attempts=1),
    Row("blanks before the answer", _send_blanks, (200, None), (200, None), 1, 1),
    Row("no stream though one was asked for", _send_raw(to_answer(b'{"ok": true}')), (200, None), (200, None), 1, 1),
    Row("large error that echoes the key", _send_raw(_LARGE_ECHO), (400, None), (400, None), 1, 1),
    Row("compressed error that echoes the key", _send_raw(_PACKED_ECHO), (400, None), (400, None), 1, 1),
    Row("truncated Content-Length", _truncate_length, _BROKEN, _MIDWAY, stream_attempts=1),
    Row("bad chunk", _break_chunks(lambda talk: talk.send(b"zz\r\nnot a chunk")), _BROKEN, _MIDWAY, stream_attempts=1),
    Row("closed in the body", _break_chunks(lambda talk: None), _BROKEN, _MIDWAY, stream_attempts=1),
    Row("reset in the body", _break_chunks(_reset_in_a_moment), _BROKEN, _MIDWAY, stream_attempts=1),
    Row("silence before headers", _be_silent, _LATE, _LATE),
    Row("silence in the body", _break_chunks(_be_silent), _LATE, (200, "upstream_timeout"), stream_attempts=1),
    Row("slow drip", _drip, (200, None), (200, None), 1, 1),
    Row("307 to another host", _redirect, (307, None), (307, None), 1, 1),
    Row("garbage that calls itself gzip", _send_raw(_GARBAGE), (200, None), (200, None), 1, 1),
    Row("1xx noise", _noise, (200, None), (200, None), 1, 1),
    Row("answer before the body is read", _answer_early, (413, None), (413, None), 1, 1, body=_BIG),
    Row("HTML 502 page", _send_raw(_HTML), (502, None), (502, None)),
    Row("500 in OpenAI's form", _send_raw(_OOPS), (500, None), (500, None)),
]  # fmt: skip


@dataclass
class Bench:
    """The gateway under test, its scripted upstream, and what was seen so far."""

    gateway: Gunicorn
    upstream: ScriptedUpstream
    table: list[str]
    outputs: list[str]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("matrix")
    certificates = make_certificates(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    upstream, secure = ScriptedUpstream(answer_always), ScriptedUpstream(answer_always, tls)
    hole = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(hole.getsockname())
    refused = socket.socket()
    refused.bind(("127.0.0.1", 0))
    quick = {
        "max_retries": 1,
        "retry_ratio": None,
        "connect_timeout_s": 0.5,
        "first_byte_timeout_s": 0.5,
        "idle_timeout_s": 0.5,
    }
    patient = {"connect_timeout_s": 60, "first_byte_timeout_s": 60, "idle_timeout_s": 60}
    config: dict[str, Any] = {}
    for name, url, more in (
        ("policy_model", upstream.url, patient),
        ("hasty", upstream.url, {}),
        ("refused", f"http://127.0.0.1:{refused.getsockname()[1]}", {}),
        ("unknown_host", "http://no-such-host.invalid", {"connect_timeout_s": 5}),
        ("bad_tls", secure.url, patient),
        ("good_tls", secure.url, {**patient, "ssl_ca_file": str(certificates.ca)}),
        ("black_hole", f"http://127.0.0.1:{hole.getsockname()[1]}", {}),
    ):
        config[name] = yaml.safe_load(to_config(url, {**quick, **more}))["policy_model"]
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump(config))
    with run_gunicorn(
        "tests.support.inspected:app", folder, environ={"OPENAI_GATEWAY_CONFIG_PATHS": str(path)}
    ) as gateway:
        bench = Bench(gateway, upstream, [], [])
        yield bench
        bench.outputs.append(gateway.log())
    for closing in (upstream, secure, hole, refused, *fillers):
        closing.close()
    print("\n" + "\n".join(bench.table))
    assert not [output for output in bench.outputs if KEY in output], "the key shows"


def _error_code(response: requests.Response, stream: bool) -> str | None:
    if stream and response.status_code == 200:
        tail = response.content.rstrip().rpartition(b"data: ")[2]
        if b'"error"' not in tail:
            return None
        found = json.loads(tail)["error"]
    else:
        try:
            found = response.json().get("error") or {}
        except ValueError:
            return None
    if not str(found.get("code", "")).startswith("upstream_"):
        return None
    assert set(found) == {"message", "type", "param", "code"}
    return str(found["code"])


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("api", ["responses", "chat"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_fault_gives_its_status_and_leaves_nothing_behind(row: Row, api: str, stream: bool, bench: Bench) -> None:
    before = bench.gateway.inspect()
    log_before = len(bench.gateway.log())
    fault = row.fault
    bench.upstream.script = answer_always if fault is None else lambda talk: fault(talk, api, stream)
    body = row.body or json.dumps(to_request_body(api, stream=stream)).encode()
    prefix = "" if row.served_by == "policy_model" else f"/{row.served_by}"
    with requests.Session() as session:
        response = session.post(
            bench.gateway.url + prefix + PATHS[api],
            data=body,
            headers={"content-type": "application/json", "x-client-request-id": "matrix", "connection": "close"},
            allow_redirects=False,
            stream=True,
            timeout=60,
        )
        response.raw.decode_content = False
        response._content = response.raw.read()
    bench.outputs += [response.content.decode("latin-1"), str(response.headers)]
    status, code = row.stream if stream else row.plain
    assert (response.status_code, _error_code(response, stream)) == (status, code)

    attempts = row.stream_attempts if stream else row.plain_attempts
    if status >= 400 or code is not None:
        eventually(lambda: '"client_request_id": "matrix"' in bench.gateway.log()[log_before:])
        assert f'"attempts": {attempts},' in bench.gateway.log()[log_before:]
    if attempts > 1 and status >= 500:
        assert response.headers["x-should-retry"] == "false"

    def is_all_given_back() -> bool:
        after = bench.gateway.inspect()
        held = after["in_flight"] + after["queued"]
        return held == 0 and after["greenlets"] <= before["greenlets"] and after["fds"] <= before["fds"] + 1

    eventually(is_all_given_back)
    assert bench.gateway.inspect()["pid"] == before["pid"], "the worker died"
    kind = "stream" if stream else "plain"
    bench.table.append(f"{row.name:36} {api:9} {kind:6} {status} {code or '-':24} attempts {attempts}  held")


def test_reused_connection_that_breaks_is_tried_again_on_a_fresh_one(bench: Bench) -> None:
    def answer_once_then_close_on_the_next(talk: Conversation) -> None:
        talk.read_request()
        talk.send(to_answer(b'{"ok": true}'))
        talk.read_request()

    bench.upstream.script = answer_once_then_close_on_the_next
    connections = bench.upstream.connections
    for _ in range(5):
        response = requests.post(bench.gateway.url + PATHS["chat"], json=to_request_body("chat"), timeout=60)
        assert response.status_code == 200
    assert bench.upstream.connections - connections >= 3
