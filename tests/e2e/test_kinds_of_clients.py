"""Clients that write a call in their own way: encoded bodies, other paths and headers, web pages of another origin."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from openai_gateway.wire.encodings import split_encodings
from tests.support.processes import Gunicorn, run_gateway
from tests.support.upstreams import PATHS, ScriptedUpstream, answer_always, run_upstream, to_request_body

KEY = "gw-key-0123456789"
BEARER = {"authorization": f"Bearer {KEY}"}
APIS = ["chat", "responses"]
PAGE = {"origin": "https://app.example.com", "sec-fetch-site": "cross-site"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with run_upstream(answer_always) as running:
        yield running


@pytest.fixture(scope="module", params=["shortcut", "flask"])
def keyed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream
) -> Iterator[Gunicorn]:
    """A gateway that asks for keys, both ways."""
    settings = {"gateway_api_keys": [KEY], "max_body_bytes": 1_000_000}
    arguments = ["--access-logfile", "/dev/null"] if request.param == "flask" else []
    folder, environ = tmp_path_factory.mktemp("keyed"), {"INSPECTED_WAY": request.param}
    with run_gateway(folder, upstream.url, settings, *arguments, environ=environ) as running:
        yield running


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream) -> Iterator[Gunicorn]:
    with run_gateway(tmp_path_factory.mktemp("open"), upstream.url) as running:
        yield running


def _post(gateway: Gunicorn, path: str, body: bytes | dict[str, Any], **headers: str) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json", **BEARER, **headers}
    return requests.post(gateway.url + path, data=data, headers=sent, timeout=60)


def _compress(encoding: str, plain: bytes) -> bytes:
    if encoding == "zstd":
        if split_encodings("zstd") is None:
            pytest.skip("this Python 3.14 or later was built without libzstd (PEP 784); the backport is for older ones")
        try:
            from compression import zstd
        except ImportError:
            from backports import zstd
        compressed: bytes = zstd.compress(plain)
        return compressed
    return gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_encoded_body_goes_upstream_plain(
    encoding: str, stream: bool, api: str, keyed: Gunicorn, upstream: ScriptedUpstream
) -> None:
    upstream.requests.clear()
    plain = json.dumps(to_request_body(api, stream=stream, user="x" * 50_000)).encode()
    answer = _post(keyed, PATHS[api], _compress(encoding, plain), **{"content-encoding": encoding})
    assert answer.status_code == 200
    (seen,) = upstream.requests
    assert json.loads(seen.body) == {**json.loads(plain), "model": "the-model"}
    assert "content-encoding" not in seen.headers


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_bomb_is_refused_and_the_next_call_served(encoding: str, keyed: Gunicorn) -> None:
    bomb = _compress(encoding, b'{"messages": [], "x": "' + b"0" * 30_000_000 + b'"}')
    answer = _post(keyed, PATHS["chat"], bomb, **{"content-encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    torn = _post(keyed, PATHS["chat"], bomb[:-5], **{"content-encoding": encoding})
    assert torn.status_code in (400, 413)
    assert _post(keyed, PATHS["chat"], to_request_body("chat")).ok


def test_unknown_encoding_and_torn_body_are_named(keyed: Gunicorn) -> None:
    unknown = _post(keyed, PATHS["chat"], b"x", **{"content-encoding": "br"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (415, "unsupported_media_type")
    torn = _post(keyed, PATHS["chat"], gzip.compress(b"{}")[:-4], **{"content-encoding": "gzip"})
    assert torn.status_code == 400
    assert "gzip" in torn.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/responses", "/v1/responses"),
        ("/v1/v1/responses", "/v1/responses"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/openai/v1/responses?api-version=preview", "/v1/responses?api-version=preview"),
        (
            "/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
            "/v1/chat/completions?api-version=2024-10-21",
        ),
        ("/policy_model/responses/", "/v1/responses"),
    ],
)
def test_paths_of_other_base_urls_mean_the_same(
    path: str, target: str, keyed: Gunicorn, upstream: ScriptedUpstream
) -> None:
    upstream.requests.clear()
    body = {"messages": [], "input": "x"}
    answer = requests.post(keyed.url + path, json=body, headers={"api-key": KEY}, timeout=60)
    assert answer.status_code == 200
    (seen,) = upstream.requests
    assert seen.target == target
    assert json.loads(seen.body)["model"] == "the-model"


@pytest.mark.parametrize(
    "path",
    ["//v1/responses", "/v1//responses", "//v1//responses", "/policy_model//v1/responses", "/v1/responses//",
     "/policy_model/metrics", "/ng-rollout/r/metrics", "/policy_model/readyz", "/policy_model/", "/v1/embeddings"],
)  # fmt: skip
def test_any_other_path_is_unknown_and_never_goes_upstream(
    path: str, keyed: Gunicorn, upstream: ScriptedUpstream
) -> None:
    upstream.requests.clear()
    host, _, port = keyed.url.removeprefix("http://").partition(":")
    body = b'{"input": "x"}'
    for method in ("POST", "GET"):
        with socket.create_connection((host, int(port)), timeout=60) as client:
            head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n"
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b"base URL looks like http://" in answer
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/conversations"),
        ("GET", "/v1/conversations/conv_1"),
        ("POST", "/v1/conversations/conv_1"),
        ("DELETE", "/v1/conversations/conv_1"),
        ("GET", "/v1/conversations/conv_1/items?limit=2"),
        ("POST", "/v1/conversations/conv_1/items"),
        ("GET", "/v1/conversations/conv_1/items/msg_1"),
        ("DELETE", "/v1/conversations/conv_1/items/msg_1"),
    ],
)
def test_conversations_pass_as_they_are(method: str, path: str, keyed: Gunicorn, upstream: ScriptedUpstream) -> None:
    upstream.requests.clear()
    body = b'{"metadata": {"a": 1.0}}' if method == "POST" else None
    headers = {**BEARER, "content-type": "application/json"}
    answer = requests.request(method, keyed.url + path, data=body, headers=headers, timeout=60)
    assert answer.status_code == 200
    (seen,) = upstream.requests
    assert (seen.method, seen.target, seen.body) == (method, path, body or b"")


@pytest.mark.parametrize("api", APIS)
def test_headers_of_clients_pass_but_for_credentials(api: str, keyed: Gunicorn, upstream: ScriptedUpstream) -> None:
    upstream.requests.clear()
    credentials = dict.fromkeys(("api-key", "x-api-key", "x-goog-api-key", "ocp-apim-subscription-key"), KEY)
    underscored = {"session_id": "s1", "conversation_id": "c1"}
    # None of these may take the place of the header that it looks like.
    disguised = {"x_api_key": KEY, "api_key": KEY, "content_length": "3", "transfer_encoding": "chunked",
                 "x_forwarded_for": "1.2.3.4", "host_": "ok"}  # fmt: skip
    answer = _post(keyed, PATHS[api], to_request_body(api), **credentials, **underscored, **disguised)
    assert answer.status_code == 200
    (seen,) = upstream.requests
    assert {name: seen.headers.get(name) for name in underscored} == underscored
    assert seen.headers["authorization"] == "Bearer sk-upstream-key"
    assert not set(seen.headers) & {*credentials, *(set(disguised) - {"host_"})}
    assert seen.headers["host_"] == "ok"
    assert KEY not in str(seen.headers)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("key", [KEY, "wrong"])
def test_page_with_a_key_can_call_and_read_errors_too(api: str, key: str, keyed: Gunicorn) -> None:
    asked = {**PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = requests.options(keyed.url + PATHS[api], headers=asked, timeout=60)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == PAGE["origin"]
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    answer = _post(keyed, PATHS[api], to_request_body(api), **{**PAGE, "authorization": f"Bearer {key}"})
    assert answer.status_code == (200 if key == KEY else 401)
    assert answer.headers["access-control-allow-origin"] == PAGE["origin"]
    unknown = requests.get(keyed.url + "/v1/nothing", headers=PAGE, timeout=60)
    assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (404, PAGE["origin"])


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "page",
    [{"origin": "https://evil.test"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}, PAGE],
    ids=["origin", "opaque origin", "sec-fetch-site", "both"],
)
def test_page_of_another_origin_makes_no_call_without_keys(
    page: dict[str, str], api: str, open_to_all: Gunicorn, upstream: ScriptedUpstream
) -> None:
    upstream.requests.clear()
    # Without a content type no browser asks first.
    body = json.dumps(to_request_body(api)).encode()
    answer = requests.post(open_to_all.url + PATHS[api], data=body, headers=page, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request")
    assert "access-control-allow-origin" not in answer.headers
    asked = {**page, "origin": page.get("origin", "https://x.test"), "access-control-request-method": "POST"}
    assert requests.options(open_to_all.url + PATHS[api], headers=asked, timeout=60).status_code == 403
    assert upstream.requests == []


def test_page_of_the_gateways_own_origin_may_call_but_no_name_that_leads_to_it(open_to_all: Gunicorn) -> None:
    own = {"origin": open_to_all.url, "content-type": "application/json"}
    body = json.dumps(to_request_body("chat")).encode()
    assert requests.post(open_to_all.url + PATHS["chat"], data=body, headers=own, timeout=60).ok
    rebound = {"origin": "http://evil.test", "host": "evil.test"}
    assert requests.post(open_to_all.url + PATHS["chat"], data=body, headers=rebound, timeout=60).status_code == 403


def test_only_listed_origins_may_read(tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream) -> None:
    settings = {"gateway_api_keys": [KEY], "cors_origins": ["https://App.example.com"]}
    with run_gateway(tmp_path_factory.mktemp("listed"), upstream.url, settings) as gateway:
        listed = _post(gateway, PATHS["chat"], to_request_body("chat"), **PAGE)
        assert (listed.status_code, listed.headers["access-control-allow-origin"]) == (200, PAGE["origin"])
        other = _post(gateway, PATHS["chat"], to_request_body("chat"), origin="https://evil.test")
        assert (other.status_code, other.headers.get("access-control-allow-origin")) == (403, None)


@pytest.mark.parametrize(
    "accept",
    ["application/openmetrics-text; version=x", "text/plain;version=a.b", "a;b=;=c,,;", "*/*;q=x", "\xff", ";" * 500],
)
def test_odd_accept_gets_metrics(accept: str, open_to_all: Gunicorn) -> None:
    answer = requests.get(open_to_all.url + "/metrics", headers={"accept": accept.encode("latin-1")}, timeout=60)
    assert (answer.status_code, b"openai_gateway_" in answer.content) == (200, True)


def test_upstream_is_asked_once_by_all_who_want_to_know_whether_it_is_ready(
    open_to_all: Gunicorn, upstream: ScriptedUpstream
) -> None:
    upstream.requests.clear()
    for _ in range(5):
        assert requests.get(open_to_all.url + "/readyz?upstream=1", timeout=60).ok
    assert len(upstream.requests) == 1
