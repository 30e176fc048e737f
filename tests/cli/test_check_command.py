"""`openai-gateway check` against upstreams that work and that fail: the lines a person sees, and the exit codes."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from click.testing import CliRunner, Result

from openai_gateway.cli.main import main
from tests.support.certificates import make_certificates
from tests.support.processes import Gunicorn, run_simulator
from tests.support.upstreams import Conversation, run_upstream, to_answer

KEY = "sk-right-key-0123456789"
PLACE = "(now from gateway.yaml, ${policy_base_url} in env.yaml)"
CONFIG = """
policy_model:
  responses_api_models:
    openai_model:
      openai_base_url: ${policy_base_url}
      openai_api_key: ${policy_api_key}
      openai_model: gpt-5-mini
"""
MODELS = to_answer(b'{"object": "list", "data": [{"id": "gpt-5-mini"}]}')


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    settings = {"api_key": KEY, "models": ["gpt-5-mini", "gpt-5"]}
    with run_simulator(tmp_path_factory.mktemp("simulator"), settings) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "gateway.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _check(folder: Path, base_url: str, *arguments: str, key: str = KEY) -> Result:
    (folder / "env.yaml").write_text(f"policy_base_url: {base_url}\npolicy_api_key: {key}\n")
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": "gateway.yaml", "OPENAI_GATEWAY_OVERRIDES": None}
    result = CliRunner(env=environ).invoke(main, ["check", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert key not in result.output
    return result


def _lines(result: Result) -> dict[str, str]:
    """Return each finding's mark and detail, with the cure after `->`."""
    found: dict[str, str] = {}
    name = ""
    for line in result.output.splitlines():
        if line.startswith("      -> "):
            found[name] += f" {line.strip()}"
        elif line.startswith("  ") and " ms  " in line:
            head, _, detail = line.partition(" ms  ")
            name = head[4:24].strip()
            found[name] = f"{head[2]} {detail}"
    return found


def _answer(answers: Mapping[str, bytes]) -> Any:
    """Return a script that answers `METHOD path` as `answers` say, anything else with a bare 404."""

    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            unknown = to_answer(b'{"detail": "Not Found"}', status="404 Not Found")
            talk.send(answers.get(f"{request.method} {request.target}", unknown))

    return script


def _error(status: str, code: str, headers: str = "") -> bytes:
    body = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": code}}).encode()
    return to_answer(body, status=status, headers=f"content-type: application/json\r\n{headers}")


def test_all_is_well_with_the_simulator_and_it_costs_five_calls(folder: Path, simulator: Gunicorn) -> None:
    requests.post(f"{simulator.url}/sim/reset", timeout=60)
    result = _check(folder, f"{simulator.url}/v1")
    assert result.exit_code == 0
    by_path = requests.get(f"{simulator.url}/sim/stats", timeout=60).json()["by_path"]
    assert by_path == {
        "GET /v1/models": 1,
        "GET /v1/responses": 1,
        "POST /v1/responses": 3,
        "POST /v1/chat/completions": 2,
    }
    assert result.output.startswith("Up to 5 small calls a server")
    assert "All is well." in result.output
    lines = _lines(result)
    assert list(lines) == [
        *("DNS", "TCP", "URL", "key", "model"),
        *("Responses", "Responses, streamed", "Chat", "Chat, streamed", "function calling"),
        *("WebSocket mode", "rate limits"),
    ]
    assert {line[0] for line in lines.values()} == {"✓"}
    assert "get_weather was called" in lines["function calling"]
    assert lines["WebSocket mode"] == "✓ is there"
    assert "told in openai's headers" in lines["rate limits"]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b"", "✓ there is none; clients are told so (426) and use plain HTTP"),
        (_error("403 Forbidden", "no_such_right"), "? 403 no_such_right: no"),
        (_error("500 Internal Server Error", "e"), "? 500 e: no"),
    ],
)
def test_handshake_tells_of_the_websocket_mode_and_decides_nothing(folder: Path, answer: bytes, line: str) -> None:
    text = b'{"status": "completed", "output": [], "usage": {"input_tokens": 1, "output_tokens": 1}}'
    answers = {"GET /v1/models": MODELS, "POST /v1/responses": to_answer(text)}
    with run_upstream(_answer({**answers, **({"GET /v1/responses": answer} if answer else {})})) as upstream:
        lines = _lines(_check(folder, f"{upstream.url}/v1", "--api", "responses"))
    assert lines["WebSocket mode"].startswith(line)
    assert list(lines)[-1] == "rate limits"


def test_findings_as_json(folder: Path, simulator: Gunicorn) -> None:
    result = _check(folder, f"{simulator.url}/v1", "--json", "--api", "chat")
    found = json.loads(result.stdout)
    assert found["ok"] is True
    checks = found["servers"]["policy_model"]["checks"]
    assert [check["check"] for check in checks][-4:] == ["Chat", "Chat, streamed", "function calling", "rate limits"]
    assert all(check["ms"] >= 0 and check["cure"] is None for check in checks)


def test_wrong_key_ends_the_check_and_says_where_the_key_came_from(folder: Path, simulator: Gunicorn) -> None:
    result = _check(folder, f"{simulator.url}/v1", key="sk-wrong-key-0123456789")
    assert result.exit_code == 1
    lines = _lines(result)
    assert list(lines)[-1] == "key"
    assert lines["key"].startswith("✗ 401 invalid_api_key: ")
    assert "set openai_api_key (now from gateway.yaml, ${policy_api_key} in env.yaml)" in lines["key"]


def test_wrong_model_ends_the_check_and_near_ones_are_named(folder: Path, simulator: Gunicorn) -> None:
    wrong = "++policy_model.responses_api_models.openai_model.openai_model=gpt5mini"
    lines = _lines(_check(folder, f"{simulator.url}/v1", wrong))
    assert list(lines)[-1] == "model"
    assert "set openai_model (now from command line); near it are: gpt-5-mini, gpt-5" in lines["model"]


def test_base_url_without_v1_is_mended(folder: Path, simulator: Gunicorn) -> None:
    lines = _lines(_check(folder, simulator.url))
    assert list(lines)[-1] == "URL"
    assert f"-> {simulator.url}/v1 does answer: set openai_base_url to it {PLACE}" in lines["URL"]


def test_base_url_that_names_an_endpoint_is_mended(folder: Path, simulator: Gunicorn) -> None:
    lines = _lines(_check(folder, f"{simulator.url}/v1/chat/completions"))
    assert f"set openai_base_url to {simulator.url}/v1 " in lines["URL"]


def test_closed_port(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = _check(folder, f"http://127.0.0.1:{port}/v1")
    assert result.exit_code == 1
    assert _lines(result)["TCP"].startswith(f"✗ connection refused -> nothing listens at 127.0.0.1:{port}")


def test_host_without_an_address(folder: Path) -> None:
    lines = _lines(_check(folder, "http://no-such-host.invalid/v1"))
    assert lines["DNS"].startswith("✗ no-such-host.invalid has no address")
    assert list(lines) == ["DNS"]


def test_certificate_of_an_unknown_ca_and_of_another_name(folder: Path) -> None:
    certificates = make_certificates(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    with run_upstream(_answer({"GET /v1/models": MODELS}), tls) as upstream:
        lines = _lines(_check(folder, f"{upstream.url}/v1"))
        assert lines["TLS"].startswith("✗ certificate refused")
        assert "name its file in ssl_ca_file" in lines["TLS"]
        trusted = f"++policy_model.responses_api_models.openai_model.ssl_ca_file={certificates.ca}"
        lines = _lines(_check(folder, f"{upstream.url}/v1", trusted))
        assert lines["TLS"].startswith("✓ TLSv1")
    other = trustme.CA()
    other.issue_cert("other.example").configure_cert(tls)
    other.cert_pem.write_to_path(str(certificates.ca))
    with run_upstream(_answer({}), tls) as upstream:
        lines = _lines(_check(folder, f"{upstream.url}/v1", trusted))
        assert "must have the name that the certificate is for" in lines["TLS"]


def test_https_to_a_plain_port_and_http_to_a_tls_port(folder: Path, simulator: Gunicorn) -> None:
    lines = _lines(_check(folder, f"{simulator.url.replace('http:', 'https:')}/v1"))
    assert "the port may speak plain HTTP" in lines["TLS"]
    certificates = make_certificates(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    with run_upstream(_answer({}), tls) as upstream:
        lines = _lines(_check(folder, f"{upstream.url.replace('https:', 'http:')}/v1"))
    assert "check http:// or https://" in lines["URL"]


def test_backend_with_chat_only(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"api_key": KEY, "apis": ["chat"]}
    with run_simulator(tmp_path_factory.mktemp("chat"), settings) as chat_only:
        result = _check(folder, f"{chat_only.url}/v1")
        assert result.exit_code == 1
        lines = _lines(result)
        assert "this backend serves Chat Completions only" in lines["Responses"]
        assert "--api chat" in lines["Responses"]
        assert lines["Chat"].startswith("✓")
        assert "over Chat" in lines["function calling"]
        assert _check(folder, f"{chat_only.url}/v1", "--api", "chat").exit_code == 0


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (_error("429 Too Many Requests", "insufficient_quota"), "the quota is used up: add credit"),
        (_error("429 Too Many Requests", "rate_limit_exceeded", "retry-after: 7\r\n"), "or wait 7 s"),
        (_error("403 Forbidden", "forbidden"), "the key may not do this"),
        (_error("400 Bad Request", "unsupported_parameter"), "a parameter is refused"),
        (_error("503 Service Unavailable", "overloaded"), "the upstream is overloaded or down"),
        (_error("401 Unauthorized", "invalid_api_key"), "the key is wrong"),
        (to_answer(b"<html>", headers="content-type: text/html\r\n"), "not in this API's form"),
        (to_answer(b'{"output": [], "status": "failed", "error": {"code": "x"}}'), "says that it failed"),
        (b"nonsense\r\n\r\n", "no complete HTTP answer"),
    ],
    ids=["quota", "rate limit", "forbidden", "parameter", "503", "key refused late", "HTML", "failed", "no HTTP"],
)
def test_refused_call_says_what_to_do(folder: Path, refusal: bytes, said: str) -> None:
    with run_upstream(_answer({"GET /v1/models": MODELS, "POST /v1/responses": refusal})) as upstream:
        result = _check(folder, f"{upstream.url}/v1", "--api", "responses")
    assert result.exit_code == 1
    assert said in _lines(result)["Responses"]


def test_chat_stream_that_ends_without_done_is_a_note_and_one_that_breaks_off_a_failure(folder: Path) -> None:
    words = [b'{"choices": [{"delta": {"content": "hi"}, "finish_reason": null}]}']
    end = b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}'
    for events, mark, said in (
        ([*words, end], "✓", "2 events, first words after"),
        (words, "✗", "broke off after 1 event"),
    ):
        body = b"".join(b"data: " + event + b"\n\n" for event in events)

        def script(talk: Conversation, body: bytes = body) -> None:
            while (request := talk.read_request()) is not None:
                is_stream = b'"stream": true' in request.body
                kind = "content-type: text/event-stream\r\n"
                whole = to_answer(b'{"choices": [], "data": [{"id": "gpt-5-mini"}]}')
                talk.send(to_answer(body, headers=kind) if is_stream else whole)

        with run_upstream(script) as upstream:
            line = _lines(_check(folder, f"{upstream.url}/v1", "--api", "chat"))["Chat, streamed"]
        assert (line[0], said in line) == (mark, True), line
        assert ("ends without [DONE]" in line) == (mark == "✓")


def test_web_page_and_redirect_at_the_base_url(folder: Path) -> None:
    page = to_answer(b"<html>", headers="content-type: text/html\r\n")
    moved = to_answer(b"", status="301 Moved", headers="location: https://elsewhere.example/v1/models?token=abc\r\n")
    with run_upstream(_answer({"GET /v1/models": page, "GET /old/v1/models": moved})) as upstream:
        assert "answers with text/html, not with JSON" in _lines(_check(folder, f"{upstream.url}/v1"))["URL"]
        line = _lines(_check(folder, f"{upstream.url}/old/v1"))["URL"]
    assert "https://elsewhere.example/v1/models?token=***" in line
    assert "redirects are never followed" in line


def test_backend_without_a_list_of_models_that_knows_max_tokens_only(folder: Path) -> None:
    """Key and model are told from the calls themselves."""
    seen = []

    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if request.target != "/v1/chat/completions":
                talk.send(to_answer(b'{"detail": "Not Found"}', status="404 Not Found"))
                continue
            body = json.loads(request.body)
            seen.append(body)
            if "max_completion_tokens" in body:
                refusal = b'{"error": {"message": "unknown max_completion_tokens"}}'
                talk.send(to_answer(refusal, status="400 Bad Request"))
            else:
                talk.send(to_answer(b'{"choices": [{"message": {"content": "hi"}}]}'))

    with run_upstream(script) as upstream:
        lines = _lines(_check(folder, f"{upstream.url}/v1", "--api", "chat"))
    assert "it has no list of models" in lines["URL"]
    assert lines["model"].startswith("✓ gpt-5-mini answers")
    assert lines["Chat"].startswith("✓ answers; it reports no tokens")
    assert lines["Chat, streamed"].startswith("✗ the answer is no stream of events")
    assert "choose a model that knows tools" in lines["function calling"]
    assert max(body.get("max_tokens", 0) for body in seen) == 512


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (
            "x-ratelimit-limit-requests: 500\r\nx-ratelimit-remaining-requests: 499\r\n"
            "x-ratelimit-limit-tokens: 200000\r\nx-ratelimit-remaining-tokens: 199950\r\n"
            "x-ratelimit-reset-tokens: 15ms\r\n",
            "499 of 500 requests left, 199,950 of 200,000 tokens left (all back in 0.015 s)",
        ),
        ("anthropic-ratelimit-requests-remaining: 7\r\n", "told in anthropic's headers: 7 of ? requests left"),
        ("", "not told in headers; they are learnt from refusals"),
    ],
    ids=["OpenAI", "Anthropic", "none"],
)
def test_rate_limits_are_shown_in_whatever_dialect_they_are_told(folder: Path, headers: str, said: str) -> None:
    answer = to_answer(b'{"output": []}', headers=f"content-type: application/json\r\n{headers}")
    with run_upstream(_answer({"GET /v1/models": MODELS, "POST /v1/responses": answer})) as upstream:
        lines = _lines(_check(folder, f"{upstream.url}/v1", "--api", "responses"))
    assert said in lines["rate limits"]


def test_calls_are_made_as_the_server_makes_them(folder: Path) -> None:
    more = {
        "extra_body": {"temperature": 0.5, "max_output_tokens": None},
        "extra_body_responses": {"store": False},
        "openai_default_headers": {"X-Team": "blue", "api-key": "k"},
    }
    prefix = "++policy_model.responses_api_models.openai_model"
    overrides = [f"{prefix}.{key}={json.dumps(value)}" for key, value in more.items()]
    with run_upstream(_answer({"GET /v1/models?api-version=1": MODELS})) as upstream:
        _check(folder, f"{upstream.url}/v1?api-version=1", *overrides)
        (call,) = [request for request in upstream.requests if request.target == "/v1/responses?api-version=1"]
    body = json.loads(call.body)
    assert (body["temperature"], body["store"], body["max_output_tokens"]) == (0.5, False, 16)
    assert (call.headers["x-team"], call.headers["authorization"]) == ("blue", f"Bearer {KEY}")


def test_echoed_key_and_control_characters_are_not_shown(folder: Path) -> None:
    message = json.dumps({"error": {"message": f"bad {KEY}\x1b[31m\nred", "code": "x"}}).encode()
    refusal = to_answer(message, status="400 Bad Request")
    with run_upstream(_answer({"GET /v1/models": MODELS, "POST /v1/responses": refusal})) as upstream:
        result = _check(folder, f"{upstream.url}/v1", "--api", "responses")
    assert "\x1b" not in result.output
    assert "bad ***" in result.output


def test_bad_config_and_unknown_server_are_exit_code_2(folder: Path) -> None:
    result = _check(folder, "ftp://x")
    assert result.exit_code == 2
    assert "openai_base_url: a URL such as" in result.output
    result = _check(folder, "http://127.0.0.1:9/v1", "--server", "judge")
    assert (result.exit_code, "there are: policy_model" in result.output) == (2, True)


def test_silent_upstream_is_told_from_one_that_cant_be_reached(folder: Path) -> None:
    with run_upstream(lambda talk: talk.wait_until_closed() and None) as upstream:
        lines = _lines(_check(folder, f"{upstream.url}/v1", "--timeout", "1"))
    assert lines["TCP"].startswith("✓")
    assert lines["URL"].startswith("✗ connected, but no answer in time")
