"""Who may see the status page, and with which headers it comes."""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import jinja2
import pytest
from flask.testing import FlaskClient

from openai_gateway.app import create_app
from openai_gateway.config import GatewayConfig, Secret, ServerConfig
from openai_gateway.page.feed import MOST_VIEWERS

PATHS = ("/status", "/status/events")


def _client(*keys: tuple[str, ...], key_file: Path | None = None) -> FlaskClient:
    """Return a client of a gateway with a server for each tuple of gateway keys."""
    path = str(key_file) if key_file else None
    servers = {
        f"server{index}": ServerConfig(
            f"server{index}",
            "https://upstream.example/v1",
            "the-model",
            openai_api_key=Secret("sk-x"),
            gateway_api_keys=tuple(map(Secret, given)),
            gateway_api_keys_file=path,
        )
        for index, given in enumerate(keys)
    }
    return create_app(GatewayConfig(servers, "server0")).test_client(use_cookies=False)


def _get(client: FlaskClient, path: str, headers: Mapping[str, str] | None = None, peer: str = "127.0.0.1") -> Any:
    given = {"host": "127.0.0.1:8000", **(headers or {})}
    answer = client.get(path, headers=given, environ_overrides={"REMOTE_ADDR": peer})
    answer.close()
    return answer


def _basic(password: str, user: str = "me") -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("127.0.0.1:8000", "127.0.0.1"),
        ("localhost:8000", "127.0.0.1"),
        ("LOCALHOST", "127.8.8.8"),
        ("[::1]:8000", "::1"),
        ("localhost", "::ffff:127.0.0.1"),
    ],
)
def test_without_keys_this_machine_is_let_in(path: str, host: str, peer: str) -> None:
    assert _get(_client(()), path, {"host": host}, peer).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        pytest.param({}, "10.0.0.7", id="another machine"),
        pytest.param({}, "::ffff:10.0.0.7", id="another machine, by IPv6"),
        pytest.param({}, "", id="a Unix socket, behind which a proxy is"),
        pytest.param({"host": "evil.example"}, "127.0.0.1", id="a name pointed at 127.0.0.1"),
        pytest.param({"host": "127.0.0.1.evil.example"}, "127.0.0.1", id="a name that begins like an address"),
        pytest.param({"host": "[::1"}, "127.0.0.1", id="a host that can't be parsed"),
        pytest.param({"host": ""}, "127.0.0.1", id="no host"),
        pytest.param({"x-forwarded-for": "127.0.0.1"}, "127.0.0.1", id="through a proxy"),
        pytest.param({"x-forwarded-host": "localhost"}, "127.0.0.1", id="through a proxy that tells the host"),
        pytest.param({"forwarded": "for=127.0.0.1"}, "127.0.0.1", id="through a proxy of RFC 7239"),
        pytest.param({"x-real-ip": "127.0.0.1"}, "127.0.0.1", id="through nginx"),
        pytest.param({"via": "1.1 proxy"}, "127.0.0.1", id="through a proxy that says so"),
        pytest.param({"authorization": "Bearer sk-x"}, "10.0.0.7", id="another machine with the upstream's key"),
    ],
)
def test_without_keys_nobody_else_is_let_in_and_told_what_to_do(path: str, headers: dict[str, str], peer: str) -> None:
    answer = _get(_client((), ()), path, headers, peer)
    assert answer.status_code == 403
    error = answer.get_json()["error"]
    assert error["code"] == "loopback_only"
    assert "gateway_api_keys" in error["message"]
    assert "www-authenticate" not in answer.headers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"authorization": "Bearer key-a"}, id="bearer"),
        pytest.param({"authorization": "bearer  key-b"}, id="bearer of another server"),
        pytest.param(_basic("key-b"), id="password"),
        pytest.param(_basic("key:with:colons", user=""), id="password with colons and no user"),
    ],
)
def test_with_keys_the_key_of_any_server_lets_in_from_anywhere(path: str, headers: dict[str, str]) -> None:
    client = _client(("key-a",), (), ("key-b", "key:with:colons"))
    assert _get(client, path, {"host": "gw.example", **headers}, "10.0.0.7").status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"authorization": "Bearer key-c"}, id="wrong bearer"),
        pytest.param({"authorization": "Bearer "}, id="empty bearer"),
        pytest.param(_basic(""), id="empty password"),
        pytest.param(_basic("x", user="key-a"), id="key as user"),
        pytest.param({"authorization": "Basic key-a"}, id="not base64"),
        pytest.param({"authorization": "Basic \xe4\xf6"}, id="not ASCII"),
        pytest.param({"authorization": "Digest key-a"}, id="another scheme"),
    ],
)
def test_with_keys_nobody_is_let_in_without_one_and_a_browser_asks(path: str, headers: dict[str, str]) -> None:
    answer = _get(_client(("key-a",), ()), path, headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert answer.get_json()["error"]["code"] == "invalid_api_key"
    assert "key-a" not in answer.text


def test_keys_of_a_file_count_and_a_missing_file_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    assert _get(_client((), key_file=file), "/status", _basic("")).status_code == 401
    file.write_text("key-f\n")
    assert _get(_client((), key_file=file), "/status", _basic("key-f")).status_code == 200


def test_page_may_load_nothing_and_be_kept_nowhere() -> None:
    client = _client(())
    first, second = (_get(client, "/status").headers for _ in range(2))
    policy = first["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert policy != second["content-security-policy"], "the nonce is a new one each time"
    assert (first["x-content-type-options"], first["cache-control"]) == ("nosniff", "no-store")
    assert first["referrer-policy"] == "no-referrer"


def test_page_with_all_it_needs_is_at_most_60_kb_and_names_no_other_host() -> None:
    text = _get(_client(()), "/status").text
    assert len(text.encode()) <= 60_000
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text.replace("https://upstream.example/v1", "")


def test_one_viewer_too_many_is_told_so_until_another_leaves() -> None:
    client = _client(())
    viewers = [client.get("/status/events") for _ in range(MOST_VIEWERS)]
    refused = client.get("/status/events")
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (503, "too_many_viewers")
    assert refused.headers["retry-after"] == "5"
    assert client.get("/status").status_code == 200
    viewers[0].close()
    last = client.get("/status/events")
    assert last.status_code == 200
    for viewer in (*viewers, last):
        viewer.close()
    assert client.application.extensions["openai_gateway.feed"].viewers == 0


def test_asking_for_the_head_of_the_events_takes_no_place() -> None:
    client = _client(())
    answer = client.head("/status/events")
    assert (answer.status_code, answer.content_type, answer.data) == (200, "text/event-stream", b"")
    assert client.application.extensions["openai_gateway.feed"].viewers == 0


@pytest.mark.parametrize(
    ("accept", "leads_to"),
    [
        pytest.param("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "status", id="a browser"),
        pytest.param("*/*", None, id="curl"),
        pytest.param("", None, id="NeMo Gym, a probe"),
        pytest.param("application/json, text/html;q=0.5", None, id="a program that takes both"),
    ],
)
def test_person_at_the_root_is_led_to_the_page_and_a_program_is_not(accept: str, leads_to: str | None) -> None:
    """Relative, so that it is right behind a proxy that takes a prefix off, too."""
    answer = _client([]).get("/", headers={"accept": accept} if accept else {})
    assert answer.headers.get("location") == leads_to
    assert (answer.status_code, answer.json if leads_to is None else None) == (
        (200, {"status": "ok"}) if leads_to is None else (302, None)
    )


def test_page_is_compiled_once_and_beside_the_loop_which_all_calls_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than once at a time, they could wait for each other's lock for ever: gevent's holds between greenlets."""
    threads: list[int] = []
    names: list[str] = []
    compile_one = jinja2.Environment.compile

    def compile_and_tell(*arguments: Any, **named: Any) -> Any:
        threads.append(threading.get_ident())
        names.append(arguments[2])
        return compile_one(*arguments, **named)

    monkeypatch.setattr(jinja2.Environment, "compile", compile_and_tell)
    app = _client(()).application
    viewers = [gevent.spawn(_get, app.test_client(), "/status") for _ in range(3)]
    assert [viewer.get(timeout=60).status_code for viewer in viewers] == [200] * 3
    assert sorted(names) == ["status.css", "status.html", "status.js"]
    assert threading.get_ident() not in threads
