"""Each line of the endpoint table through real gunicorn, what the gateway answers itself, and what passes each way."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import ROOT, Gunicorn, run_command, run_gateway, write_config

MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "response": {"input": "hello"},
    "chat": {"messages": MESSAGES, "store": True},
    "none": {},
    "metadata": {"metadata": {"a": "b"}},
}


@pytest.fixture(scope="module", params=["-k gevent", "-c conf/gunicorn.conf.py", "serve"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, simulator: Gunicorn
) -> Iterator[Gunicorn]:
    """All ways to start it; the second with an access log and Flask's dispatch, so that nothing goes a shorter way."""
    settings = {"max_retries": 1, "retry_ratio": None, "breaker_cooldown_s": None}
    folder = tmp_path_factory.mktemp("gateway")
    if request.param == "-k gevent":
        with run_gateway(folder, simulator.url, settings) as running:
            yield running
        return
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": str(write_config(folder, simulator.url, settings))}
    if request.param == "serve":
        command = [sys.executable, "-m", "openai_gateway.cli", "serve", "--port", "0"]
    else:
        environ["INSPECTED_WAY"] = "flask"
        conf = str(ROOT / "conf" / "gunicorn.conf.py")
        command = [sys.executable, "-m", "gunicorn", "-c", conf, "-b", "127.0.0.1:0", "--access-logfile", "/dev/null"]
        command.append("tests.support.inspected:app")
    with run_command(command, folder, environ) as running:
        yield running


@pytest.fixture(scope="module")
def ids(gateway: Gunicorn) -> dict[str, str]:
    response = requests.post(f"{gateway.url}/v1/responses", json=BODIES["response"], timeout=60).json()
    completion = requests.post(f"{gateway.url}/v1/chat/completions", json=BODIES["chat"], timeout=60).json()
    return {"response": response["id"], "completion": completion["id"]}


ROWS = [
    ("POST", "/responses", "response", 200),
    ("POST", "/responses/compact", "response", 200),
    ("POST", "/responses/input_tokens", "response", 200),
    ("GET", "/responses/{response}?include=usage", None, 200),
    ("GET", "/responses/{response}/input_items?limit=1", None, 200),
    ("POST", "/responses/{response}/cancel", None, 200),
    ("DELETE", "/responses/{response}", None, 200),
    ("GET", "/responses/{response}", None, 404),
    ("POST", "/chat/completions", "chat", 200),
    ("GET", "/chat/completions?limit=2", None, 200),
    ("GET", "/chat/completions/{completion}", None, 200),
    ("POST", "/chat/completions/{completion}", "metadata", 200),
    ("GET", "/chat/completions/{completion}/messages", None, 200),
    ("DELETE", "/chat/completions/{completion}", None, 200),
    ("GET", "/models", None, 200),
    ("GET", "/models/the-model", None, 200),
    ("GET", "/models/other", None, 404),
    ("GET", "/embeddings", None, 404),
    ("POST", "/responses/", "response", 200),
    ("POST", "/responses", "none", 400),
    ("GET", "/embeddings/", None, 404),
    ("PUT", "/responses", "response", 405),
    ("PATCH", "/chat/completions", "chat", 405),
    ("POST", "/models", "none", 405),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), ROWS)
def test_endpoint_answers_with_its_status(
    method: str, path: str, body: str | None, status: int, gateway: Gunicorn, simulator: Gunicorn, ids: dict[str, str]
) -> None:
    url = f"{gateway.url}/v1{path.format(**ids)}"
    request_id = str(uuid.uuid4())
    payload = None if body is None else json.dumps(BODIES[body])
    headers = {"x-client-request-id": request_id, **({"content-type": "application/json"} if payload else {})}
    answer = requests.request(method, url, data=payload, headers=headers, timeout=60)
    assert answer.status_code == status
    if status == 405:
        assert answer.headers["allow"]
    if status in (404, 405):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    seen = requests.get(f"{simulator.url}/sim/requests/{request_id}", timeout=60).json()
    is_relayed = status == 200 and not path.startswith("/models")
    if is_relayed:
        target = path.format(**ids)
        assert (seen["method"], seen["path"]) == (method, "/v1" + target.partition("?")[0].removesuffix("/"))
        assert seen["query"] == target.partition("?")[2]


def test_process_answers_for_itself(gateway: Gunicorn) -> None:
    assert requests.get(f"{gateway.url}/", timeout=60).json() == {"status": "ok"}
    assert requests.get(f"{gateway.url}/healthz", timeout=60).status_code == 200
    ready = requests.get(f"{gateway.url}/readyz", timeout=60)
    assert (ready.status_code, ready.json()["servers"]["policy_model"]["breaker"]) == (200, "closed")


@pytest.mark.parametrize("prefix", ["", "/policy_model", "/ng-rollout/run-1.a_b", "/ng-rollout/run-1.a_b/policy_model"])
def test_prefixes_lead_to_the_same_server(prefix: str, gateway: Gunicorn) -> None:
    answer = requests.post(f"{gateway.url}{prefix}/v1/responses", json={"input": "x"}, timeout=60)
    assert (answer.status_code, answer.json()["model"]) == (200, "the-model")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/..%2f..%2fadmin",
        "/v1/responses/%2e%2e/models",
        "/v1/responses//cancel",
        "/v1//responses",
        "/v1/responses/a%00b",
        "/v1/responses/a%0d%0ax",
        "/v1/chat/completions/a%5cb",
        "/ng-rollout/a%20b/v1/models",
        "/no_such_server/v1/models",
    ],
)
def test_path_that_could_lead_elsewhere_is_unknown(path: str, gateway: Gunicorn, simulator: Gunicorn) -> None:
    requests.post(f"{simulator.url}/sim/reset", timeout=60)
    session = requests.Session()
    request = requests.Request("GET", gateway.url).prepare()
    request.url = gateway.url + path
    answer = session.send(request, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "unknown_url")
    assert "Servers: policy_model" in error["message"], "whoever misspelt a server's name sees what there is"
    assert requests.get(f"{simulator.url}/sim/stats", timeout=60).json()["requests"] == 0


def test_headers_pass_and_stay_out_as_listed(gateway: Gunicorn, simulator: Gunicorn) -> None:
    sent = {
        "authorization": "Bearer sk-client",
        "cookie": "a=b",
        "x-forwarded-for": "1.2.3.4",
        "forwarded": "for=1.2.3.4",
        "connection": "x-secret-hop",
        "x-secret-hop": "1",
        "openai-beta": "responses=v1",
        "openai-organization": "org",
        "idempotency-key": "idem",
        "x-stainless-lang": "python",
        "traceparent": "00-1-2-03",
        "accept-encoding": "gzip",
        "x-client-request-id": "headers",
    }
    answer = requests.post(f"{gateway.url}/v1/responses", json={"input": "x"}, headers=sent, timeout=60)
    seen = requests.get(f"{simulator.url}/sim/requests/headers", timeout=60).json()["headers"]
    got = {name.lower(): value for name, value in seen}
    assert got["authorization"] == "Bearer sk-upstream-key"
    assert not {"cookie", "x-forwarded-for", "forwarded", "connection", "x-secret-hop"} & set(got)
    for name in ("openai-beta", "openai-organization", "idempotency-key", "x-stainless-lang", "traceparent"):
        assert got[name] == sent[name]
    assert got["accept-encoding"] == "gzip"
    assert "set-cookie" not in answer.headers
    for name in ("x-request-id", "openai-processing-ms", "openai-version", "openai-organization"):
        assert name in answer.headers
    for kind in ("requests", "tokens"):
        for what in ("limit", "remaining", "reset"):
            assert f"x-ratelimit-{what}-{kind}" in answer.headers


def _to_hard_body() -> tuple[bytes, dict[str, bytes]]:
    """Return a 5 MB chat body and the exact bytes of each of its values but `model`."""
    text = json.dumps("caf\u00e9 \u20ac \U0001f600 \\ud83d " + "x" * 5_000_000, ensure_ascii=False).encode()
    messages = b'[ {"role" :"user",\t"content": ' + text + b' , "n": 1.0, "e": 1E5, "z": -0, "u": "\\u0041\\/"}\n ]'
    values = {
        "temperature": b"1.0",
        "messages": messages,
        "seed": b"123456789012345678901234567890",
        "top_p": b"1e400",
        "logit_bias": b'{ "50256" : -100.0 }',
        "user": b'"a\\u0000b\\ud83d\\ude00"',
    }
    items = [b'"%b"  :  %b ' % (name.encode(), value) for name, value in values.items()]
    items.insert(2, b'"model" : "wanted by the client"')
    return b" {\n" + b",\n ".join(items) + b"}\n", values


def test_bytes_of_every_value_but_model_arrive_unchanged_and_in_order(gateway: Gunicorn, simulator: Gunicorn) -> None:
    body, values = _to_hard_body()
    headers = {"content-type": "application/json", "x-client-request-id": "hard"}
    answer = requests.post(f"{gateway.url}/v1/chat/completions", data=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    seen = requests.get(f"{simulator.url}/sim/requests/hard", timeout=60).json()
    arrived = base64.b64decode(seen["body_base64"])
    order = ["temperature", "messages", "model", "seed", "top_p", "logit_bias", "user"]
    exact = {**values, "model": b'"the-model"'}
    expected = b"{" + b",".join(b'"%b":%b' % (name.encode(), exact[name]) for name in order) + b"}"
    assert hashlib.sha256(arrived).hexdigest() == hashlib.sha256(expected).hexdigest()


def test_lone_surrogates_arrive_as_they_were_sent(gateway: Gunicorn, simulator: Gunicorn) -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud800 alone"}], "model": "x"}'
    headers = {"content-type": "application/json", "x-client-request-id": "lone"}
    assert requests.post(f"{gateway.url}/v1/chat/completions", data=body, headers=headers, timeout=60).ok
    seen = requests.get(f"{simulator.url}/sim/requests/lone", timeout=60).json()
    assert b'"\\ud800 alone"' in base64.b64decode(seen["body_base64"])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b'{"messages": NaN}', "invalid_json"),
        (b'\xef\xbb\xbf{"messages": []}', "invalid_json"),
        (b'{"messages": ["\xff"]}', "invalid_json"),
        (b'{"messages": ["\x00"]}', "invalid_json"),
        (b'{"messages": ' + b"[" * 100_000, "invalid_json"),
        (b'{"messages": "text"}', "invalid_type"),
        (b'{"messages": [], "stream": "yes"}', "invalid_type"),
        (b'{"model": 1, "messages": []}', "invalid_type"),
        (b'{"model": "m"}', "missing_required_parameter"),
    ],
)
def test_bad_body_is_a_400_in_openais_form(body: bytes, code: str, gateway: Gunicorn) -> None:
    headers = {"content-type": "application/json"}
    answer = requests.post(f"{gateway.url}/v1/chat/completions", data=body, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_body_of_another_type_or_too_large_is_refused(tmp_path: Path, simulator: Gunicorn) -> None:
    with run_gateway(tmp_path, simulator.url, {"max_body_bytes": 1000}) as gateway:
        url = f"{gateway.url}/v1/responses"
        plain = requests.post(url, data="input=x", headers={"content-type": "text/plain"}, timeout=60)
        assert (plain.status_code, plain.json()["error"]["code"]) == (415, "unsupported_media_type")
        large = requests.post(url, json={"input": "x" * 2000}, timeout=60)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
        pieces = (b'{"input": "' + b"x" * 800 for _ in range(3))
        chunked = requests.post(url, data=pieces, headers={"content-type": "application/json"}, timeout=60)
        assert chunked.status_code == 413


def test_defaults_are_merged_for_their_api_and_the_request_wins(tmp_path: Path, simulator: Gunicorn) -> None:
    settings = {
        "extra_body": {"temperature": 0.5, "user": "default"},
        "extra_body_responses": {"max_output_tokens": None},
        "extra_body_chat": {"top_p": 0.9},
        "openai_default_headers": {"Api-Key": "azure-key", "X-Extra": "1"},
        "drop_input_reasoning_items": True,
    }
    items = [{"type": "reasoning", "id": "r"}, {"role": "user", "content": "hi"}]
    with run_gateway(tmp_path, simulator.url, settings) as gateway:
        headers = {"x-client-request-id": "merged-1", "api-key": "of the client"}
        requests.post(f"{gateway.url}/v1/responses", json={"input": items, "user": None}, headers=headers, timeout=60)
        headers = {"x-client-request-id": "merged-2"}
        requests.post(f"{gateway.url}/v1/chat/completions", json={"messages": MESSAGES}, headers=headers, timeout=60)
    seen = requests.get(f"{simulator.url}/sim/requests/merged-1", timeout=60).json()
    assert json.loads(base64.b64decode(seen["body_base64"])) == {
        "input": items[1:], "user": None, "model": "the-model", "temperature": 0.5, "max_output_tokens": None,
    }  # fmt: skip
    got = {name.lower(): value for name, value in seen["headers"]}
    assert (got["api-key"], got["x-extra"]) == ("azure-key", "1")
    seen = requests.get(f"{simulator.url}/sim/requests/merged-2", timeout=60).json()
    body = json.loads(base64.b64decode(seen["body_base64"]))
    assert body["top_p"] == 0.9
    assert "max_output_tokens" not in body


def test_cap_holds_under_two_hundred_streams_and_is_reached_again(tmp_path: Path, simulator: Gunicorn) -> None:
    def stream(number: int) -> int:
        body = {"input": "x", "stream": True, "metadata": {"sim_event_gap_ms": "5", "sim_events": "4"}}
        answer = requests.post(f"{gateway.url}/v1/responses", json=body, timeout=60)
        return answer.status_code if b"response.completed" in answer.content else 0

    with run_gateway(tmp_path, simulator.url, {"max_concurrent_requests": 4}) as gateway:
        for _ in range(2):
            requests.post(f"{simulator.url}/sim/reset", timeout=60)
            with ThreadPoolExecutor(200) as pool:
                assert set(pool.map(stream, range(200))) == {200}
            stats = requests.get(f"{simulator.url}/sim/stats", timeout=60).json()
            assert (stats["peak_in_flight"], stats["finished"], stats["in_flight"]) == (4, 200, 0)
        assert gateway.inspect()["in_flight"] == 0


def test_queue_is_bounded_in_length_and_time(tmp_path: Path, simulator: Gunicorn) -> None:
    def call(number: int) -> tuple[int, str]:
        body = {"input": "x", "metadata": {"sim_latency_ms": "900"}}
        answer = requests.post(f"{gateway.url}/v1/responses", json=body, timeout=60)
        code = answer.json().get("error", {}).get("code", "") if not answer.ok else ""
        if code == "gateway_queue_timeout":
            assert int(answer.headers["x-gateway-queue-ms"]) >= 300
        return answer.status_code, code

    usage_log = tmp_path / "usage.jsonl"
    settings = {"max_concurrent_requests": 1, "max_queue": 2, "queue_timeout_s": 0.3, "usage_log": str(usage_log)}
    with run_gateway(tmp_path, simulator.url, settings) as gateway, ThreadPoolExecutor(6) as pool:
        answers = sorted(pool.map(call, range(6)))
    assert answers == [
        (200, ""), (429, "gateway_queue_full"), (429, "gateway_queue_full"), (429, "gateway_queue_full"),
        (429, "gateway_queue_timeout"), (429, "gateway_queue_timeout"),
    ]  # fmt: skip
    records = [json.loads(line) for line in usage_log.read_text().splitlines()]
    waits = [record["queue_wait_s"] for record in records if record["error_code"] == "gateway_queue_timeout"]
    assert [wait >= 0.3 for wait in waits] == [True, True]
