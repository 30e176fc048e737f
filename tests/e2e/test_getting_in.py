"""Who gets in, and what a hostile client can't do: keys, smuggling shapes, limits; and no key ever shows."""

from __future__ import annotations

import itertools
import logging
import pickle
import socket
import time
from pathlib import Path

import pytest
import requests

from openai_gateway.config import Secret, load_config
from tests.support.processes import Gunicorn, run_gateway
from tests.support.upstreams import PATHS, Conversation, answer_always, run_upstream, to_answer, to_request_body

PLANTED = "sk-planted-0f3c9a7e5d"


def _send_raw(gateway: Gunicorn, request: bytes) -> bytes:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(request)
        received = b""
        while piece := sock.recv(65536):
            received += piece
            if b"\r\n\r\n" in received and b"connection: close" not in received.lower():
                break
        return received


HEAD = b"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", id="length and chunks"),
        pytest.param(HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", id="two lengths"),
        pytest.param(HEAD + b"content-length: +2\r\n\r\n{}", id="a signed length"),
        pytest.param(HEAD + b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}", id="a folded header"),
        pytest.param(HEAD + b"x : a\r\ncontent-length: 2\r\n\r\n{}", id="space before the colon"),
        pytest.param(HEAD + b"x: a\nauthorization: b\r\ncontent-length: 2\r\n\r\n{}", id="a bare line feed"),
        pytest.param(HEAD + b"x: a\x00b\r\ncontent-length: 2\r\n\r\n{}", id="a NUL in a header"),
        pytest.param(HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", id="a bad chunk size"),
        pytest.param(b"POST /v1/responses\r\n\r\n", id="no version"),
        pytest.param(bytes.fromhex("16030100c8010000c40303") + b"\xaa" * 190, id="TLS"),
        pytest.param(b"POST http://evil/v1/responses HTTP/9.9\r\n\r\n", id="a wild version"),
    ],
)
def test_malformed_request_is_refused_and_never_sent_on(request_bytes: bytes, tmp_path_factory: pytest.TempPathFactory,
                                                         hostile: tuple[Gunicorn, list[object]]) -> None:  # fmt: skip
    gateway, seen = hostile
    assert _send_raw(gateway, request_bytes)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 505", b"HTTP/1.0 400")
    assert not seen


@pytest.mark.parametrize("coding", ["gzip, chunked", "deflate, chunked", "br, chunked"])
def test_a_transfer_coding_that_is_not_undone_is_refused(coding: str, hostile: tuple[Gunicorn, list[object]]) -> None:
    """RFC 9112 6.1: else the upstream would get compressed bytes as if they were the body."""
    gateway, seen = hostile
    answer = _send_raw(gateway, HEAD + f"transfer-encoding: {coding}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert b"unsupported_transfer_coding" in answer
    assert not seen


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("hostile")
    with run_upstream(answer_always) as upstream, run_gateway(folder, upstream.url) as gateway:
        yield gateway, upstream.requests


def test_client_can_change_neither_host_nor_key_nor_model(hostile: tuple[Gunicorn, list[object]]) -> None:
    gateway, seen = hostile
    headers = {"host": "evil.example", "authorization": "Bearer evil", "x-forwarded-host": "evil", "openai-model": "m"}
    body = b'{"model": "a", "mod\\u0065l": "b", "input": "x", "model": "c"}'
    url = f"{gateway.url}/v1/responses?model=evil&api-version=1"
    assert requests.post(url, data=body, headers={**headers, "content-type": "application/json"}, timeout=60).ok
    request = seen.pop()
    assert request.body == b'{"model":"the-model","input":"x"}'  # type: ignore[attr-defined]
    assert request.headers["authorization"] == "Bearer sk-upstream-key"  # type: ignore[attr-defined]
    assert request.headers["host"].startswith("127.0.0.1:")  # type: ignore[attr-defined]


def test_only_the_gateways_own_keys_let_a_client_in(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# for the team\ngw-one\ngw-two\n")
    settings = {"gateway_api_keys_file": str(keys)}
    with run_upstream(answer_always) as upstream, run_gateway(tmp_path, upstream.url, settings) as gateway:
        url = gateway.url + PATHS["chat"]

        def status(**headers: str) -> int:
            answer = requests.post(url, json=to_request_body("chat"), headers=headers, timeout=60)
            assert answer.ok or answer.json()["error"]["code"] == "invalid_api_key"
            return answer.status_code

        assert [status(), status(authorization="Bearer gw-three"), status(authorization="Basic gw-one")] == [401] * 3
        assert [status(authorization=f"Bearer {key}") for key in ("gw-one", "gw-two")] == [200, 200]
        assert requests.get(f"{gateway.url}/v1/models", timeout=60).status_code == 200
        assert requests.get(f"{gateway.url}/healthz", timeout=60).status_code == 200
        keys.write_text("gw-three\n")
        time.sleep(1.1)
        assert [status(authorization=f"Bearer {key}") for key in ("gw-one", "gw-three")] == [401, 200]
        assert (
            "authorization" not in upstream.requests[-1].headers
            or "gw-" not in upstream.requests[-1].headers["authorization"]
        )


@pytest.mark.parametrize(
    ("host", "keys", "warns"), [("0.0.0.0", [], True), ("0.0.0.0", ["gw-key"], False), ("127.0.0.1", [], False)]
)
def test_start_warns_if_anybody_may_use_the_key(host: str, keys: list[str], warns: bool, tmp_path: Path) -> None:
    settings = {"gateway_api_keys": keys}
    with run_gateway(tmp_path, "http://127.0.0.1:1", settings, "-b", f"{host}:0") as gateway:
        assert ("anybody who reaches this address" in gateway.log()) is warns


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_web_page_of_another_site_spends_nothing(tmp_path: Path, site: str) -> None:
    with run_upstream(answer_always) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        url = f"{gateway.url}/v1/responses"
        answer = requests.post(url, data='{"input": "x"}', headers={"sec-fetch-site": site}, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request")
        assert not upstream.requests
        assert requests.post(url, data='{"input": "x"}', headers={"sec-fetch-site": "none"}, timeout=60).ok


def _echo_the_key(talk: Conversation) -> None:
    statuses = itertools.cycle(["401 No", "500 Oops", "400 Bad", "429 Slow", "200 OK", "302 Found"])
    while (request := talk.read_request()) is not None:
        key = request.headers["authorization"]
        headers = f"content-type: application/json\r\nwww-authenticate: {key}\r\nx-request-id: {key}\r\n"
        status = next(statuses)
        # The code says the key in JSON's escapes: it shows only once it is decoded.
        code = "".join(f"\\u{ord(letter):04x}" for letter in key)
        error = f'{{"error": {{"message": "wrong key {key}", "code": "{code}"}}}}'
        body = b"{}" if status[0] in "23" else error.encode()
        talk.send(to_answer(body, status=f"{status} {key}", headers=headers))


def test_planted_key_shows_in_no_output(tmp_path: Path) -> None:
    settings = {
        "openai_api_key": PLANTED,
        "max_retries": 0,
        "access_log": True,
        "usage_log": "usage.jsonl",
        "breaker_cooldown_s": None,
        "openai_default_headers": {"api-key": PLANTED + "-azure"},
    }
    outputs: list[str] = []
    with run_upstream(_echo_the_key) as upstream:
        with run_gateway(tmp_path, upstream.url, settings, "--log-level", "debug") as gateway:
            paths = ["/v1/responses", "/v1/chat/completions", "/v1/responses/r1", "/v1/models", "/readyz", "/", "/nope"]
            for path, method in itertools.product(paths, ["GET", "POST", "DELETE", "PUT"]):
                for body in (b'{"input": "x", "messages": []}', b"{"):
                    headers = {"content-type": "application/json", "authorization": "Bearer client"}
                    answer = requests.request(method, gateway.url + path, data=body, headers=headers, timeout=60)
                    outputs += [answer.text, str(answer.headers)]
            for path in ("/metrics", "/status"):
                outputs.append(requests.get(gateway.url + path, timeout=60).text)
            for pid in [gateway.pid, *gateway.workers()]:
                outputs.append(Path(f"/proc/{pid}/cmdline").read_text())
        outputs += [gateway.log(), (tmp_path / "usage.jsonl").read_text()]
    config = load_config({"OPENAI_GATEWAY_CONFIG_PATHS": str(tmp_path / "gateway.yaml")}, cwd=tmp_path)
    outputs += [repr(config), str(config), f"{config.servers['policy_model'].openai_api_key}"]
    with pytest.raises(TypeError):
        pickle.dumps(Secret(PLANTED))
    logging.getLogger("openai_gateway").info("%s", config)
    print(f"\n{len(outputs)} outputs searched for the planted key, none found")
    assert any("key masked by openai_gateway" in output for output in outputs)
    assert not [output for output in outputs if PLANTED in output]


def test_refused_client_that_goes_on_sending_holds_up_nobody(tmp_path: Path) -> None:
    head = HEAD + b"content-length: 999999999999\r\n\r\n"
    with (
        run_upstream(answer_always) as upstream,
        run_gateway(tmp_path, upstream.url, {"gateway_api_keys": ["k"]}) as gateway,
    ):
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as sock:
            sock.sendall(head)
            # Cut off long before it is through; a gateway that read it all would be at it for minutes.
            with pytest.raises(ConnectionError):
                sock.sendall(bytes(200_000_000))
            assert requests.get(f"{gateway.url}/healthz", timeout=60).status_code == 200
