"""How the gateway gets to its upstream: by a client certificate, through a proxy, with probes while silent."""

from __future__ import annotations

import base64
import os
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.support.certificates import make_certificates
from tests.support.processes import Gunicorn, run_gateway, run_gunicorn, to_config
from tests.support.upstreams import (
    PATHS,
    Conversation,
    ScriptedUpstream,
    answer_always,
    run_upstream,
    to_answer,
    to_request_body,
)

CREDENTIALS = "Basic " + base64.b64encode(b"user:pass word").decode()


def _connect_as_asked(talk: Conversation) -> None:
    """Be a proxy that wants credentials: connect to where CONNECT says, and pass bytes both ways."""
    request = talk.read_request()
    if request is None:
        return
    if request.headers.get("proxy-authorization") != CREDENTIALS:
        talk.send(to_answer(b"", status="407 No, not user:password", headers=""))
        return
    host, _, port = request.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as far:
        talk.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        near = talk.sock
        while True:
            for ready in select.select([near, far], [], [], 10)[0]:
                piece = ready.recv(65536)
                if not piece:
                    return
                (far if ready is near else near).sendall(piece)


@pytest.fixture(scope="module")
def proxy() -> Iterator[ScriptedUpstream]:
    with run_upstream(_connect_as_asked) as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[ScriptedUpstream]:
    with run_upstream(answer_always) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, proxy: ScriptedUpstream, plain: ScriptedUpstream
) -> Iterator[Gunicorn]:
    folder = tmp_path_factory.mktemp("connections")
    certificates = make_certificates(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    tls.load_verify_locations(certificates.ca)
    tls.verify_mode = ssl.CERT_REQUIRED
    proxy_url = proxy.url.removeprefix("http://")
    own = {"ssl_cert_file": str(certificates.server), "ssl_key_file": str(certificates.server_key)}
    with_password = {"upstream_proxy": f"http://user:pass%20word@{proxy_url}"}
    config: dict[str, Any] = {}
    with run_upstream(answer_always, tls) as secure:
        for name, url, more in (
            ("policy_model", plain.url, {}),
            ("with_certificate", secure.url, {"ssl_ca_file": str(certificates.ca), **own}),
            ("without_certificate", secure.url, {"ssl_ca_file": str(certificates.ca)}),
            ("proxied", plain.url, with_password),
            ("proxied_tls", secure.url, {"ssl_ca_file": str(certificates.ca), **own, **with_password}),
            ("refused_by_proxy", plain.url, {"upstream_proxy": f"http://{proxy_url}"}),
            ("from_environment", plain.url.replace("127.0.0.1", "localhost"), {"upstream_proxy": "environment"}),
            ("bypassed", plain.url, {"upstream_proxy": "environment"}),
        ):
            config[name] = yaml.safe_load(to_config(url, {"max_retries": 0, **more}))["policy_model"]
        path = folder / "connections.yaml"
        path.write_text(yaml.safe_dump(config))
        environ = {
            "OPENAI_GATEWAY_CONFIG_PATHS": str(path),
            "http_proxy": f"http://user:pass%20word@{proxy_url}",
            "no_proxy": "127.0.0.1",
        }
        with run_gunicorn("tests.support.inspected:app", folder, environ=environ) as running:
            yield running
            assert "pass" not in running.log().replace("bypass", "")


@pytest.mark.parametrize(
    ("server", "status", "is_proxied"),
    [
        pytest.param("policy_model", 200, False, id="the environment's proxy is not looked at"),
        pytest.param("with_certificate", 200, False, id="a certificate is shown"),
        pytest.param("without_certificate", 502, False, id="a certificate is wanted and there is none"),
        pytest.param("proxied", 200, True, id="through the proxy"),
        pytest.param("proxied_tls", 200, True, id="TLS through the proxy"),
        pytest.param("refused_by_proxy", 502, True, id="the proxy refuses"),
        pytest.param("from_environment", 200, True, id="the environment's proxy, as told"),
        pytest.param("bypassed", 200, False, id="the environment says no proxy"),
    ],
)
def test_upstream_is_reached(
    server: str, status: int, is_proxied: bool, gateway: Gunicorn, proxy: ScriptedUpstream, plain: ScriptedUpstream
) -> None:
    proxied, sent = len(proxy.requests), len(plain.requests)
    for _ in range(2):
        answer = requests.post(
            f"{gateway.url}/{server}{PATHS['chat']}", json=to_request_body("chat"), timeout=60, proxies={"http": ""}
        )
        assert answer.status_code == status
        if server == "refused_by_proxy":
            assert "the proxy answered 407 Proxy Authentication Required" in answer.json()["error"]["message"]
        elif status == 502:
            assert "TLS" in answer.json()["error"]["message"] or "broke off" in answer.json()["error"]["message"]
    assert (len(proxy.requests) > proxied) is is_proxied
    if status == 200:
        assert len(proxy.requests) - proxied <= 1, "the tunnel is kept as any connection is"
    for request in plain.requests[sent:]:
        assert "proxy-authorization" not in request.headers


def test_kernel_probes_silent_connections_on_both_sides(tmp_path: Path) -> None:
    probes: dict[str, float | None] = {}
    is_asked, may_answer = threading.Event(), threading.Event()

    def answer_late(talk: Conversation) -> None:
        if talk.read_request() is not None:
            probes["peer"] = talk.sock.getpeername()[1]
            is_asked.set()
            may_answer.wait(120)
            talk.send(to_answer(b"{}"))

    with run_upstream(answer_late) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            body = b'{"messages": []}'
            head = f"POST {PATHS['chat']} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            client.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
            assert is_asked.wait(60)
            upstream_port = int(upstream.url.rpartition(":")[2])
            for local, remote in ((probes["peer"], upstream_port), (port, client.getsockname()[1])):
                assert _wait_for_probe(int(local or 0), remote) <= 60
            may_answer.set()
            assert client.recv(65536)


def _wait_for_probe(local_port: int, remote_port: int) -> float:
    """Return in how many seconds the kernel probes a connection, as /proc tells it once nothing else is under way."""
    for _ in range(200):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            local, remote = (int(end.split(":")[1], 16) for end in fields[1:3])
            kind, when = fields[5].split(":")
            if (local, remote, kind) == (local_port, remote_port, "02"):
                return int(when, 16) / os.sysconf("SC_CLK_TCK")
        threading.Event().wait(0.02)
    raise AssertionError("the connection is never probed")
