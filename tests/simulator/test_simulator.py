"""The simulator by itself: what it answers, refuses, limits, and does as scripted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from openai_gateway.simulator.app import create_app
from openai_gateway.simulator.settings import Script, SimulatorSettings

AUTHORIZED = {"authorization": "Bearer k"}


def _client(**settings: Any) -> FlaskClient:
    return create_app(SimulatorSettings(**settings), clock=lambda: 0.0).test_client()


def _post(client: FlaskClient, body: dict[str, Any], path: str = "/v1/responses", **kwargs: Any) -> Any:
    return client.post(path, json={"model": "m", **body}, headers=AUTHORIZED, **kwargs)


def test_same_request_gets_the_same_words_every_time() -> None:
    answers = [_post(_client(), {"input": "hello"}).json for _ in range(2)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({}, {}, 401),
        ({}, {"authorization": "Bearer x"}, 200),
        ({}, {"api-key": "x"}, 200),
        ({"api_key": "k"}, {"authorization": "Bearer x"}, 401),
        ({"api_key": "k"}, {"authorization": "Bearer k"}, 200),
    ],
)
def test_key_is_checked(settings: dict[str, Any], headers: dict[str, str], status: int) -> None:
    client = _client(**settings)
    assert client.post("/v1/responses", json={"model": "m", "input": "x"}, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("settings", "body", "status", "code"),
    [
        ({"models": ("other",)}, {"input": "x"}, 404, "model_not_found"),
        ({"apis": ("chat",)}, {"input": "x"}, 404, "unknown_url"),
        ({}, {"model": None, "input": "x"}, 400, "missing_required_parameter"),
        ({}, {"instructions": "x"}, 400, "missing_required_parameter"),
        ({}, {"input": "x", "previous_response_id": "resp_no"}, 400, "previous_response_not_found"),
        ({}, {"input": "x", "metadata": {"sim_nonsense": "1"}}, 400, "invalid_value"),
    ],
)
def test_what_the_real_api_refuses_is_refused(
    settings: dict[str, Any], body: dict[str, Any], status: int, code: str | None
) -> None:
    answer = _post(_client(**settings), body)
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)


def test_token_limit_cuts_the_answer() -> None:
    response = _post(_client(), {"input": "x", "max_output_tokens": 2}).json
    assert (response["status"], response["usage"]["output_tokens"]) == ("incomplete", 2)
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert _post(_client(), body, "/v1/chat/completions").json["choices"][0]["finish_reason"] == "length"


def test_tool_result_is_answered_with_text() -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"properties": {"n": {"enum": [7]}}}}]
    client = _client()
    call = _post(client, {"input": "x", "tools": tools}).json["output"][0]
    assert (call["type"], json.loads(call["arguments"])) == ("function_call", {"n": 7})
    items = [{"role": "user", "content": "x"}, {"type": "function_call_output", "call_id": "c", "output": "1"}]
    assert _post(client, {"input": items, "tools": tools}).json["output"][0]["type"] == "message"
    assert _post(client, {"input": "x", "tools": tools, "tool_choice": "none"}).json["output"][0]["type"] == "message"


def test_requests_per_minute_are_enforced_with_real_headers() -> None:
    client = _client(rpm=2)
    assert [_post(client, {"input": "x"}).status_code for _ in range(3)] == [200, 200, 429]
    refused = _post(client, {"input": "x"})
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert float(refused.headers["retry-after-ms"]) == pytest.approx(30_000, abs=2)


def test_scripted_failure_happens_so_many_times() -> None:
    client = _client(script=Script(status=429, retry_after="3", times=2, key="k"))
    answers = [_post(client, {"input": "x"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "3"


def test_store_forgets_the_oldest() -> None:
    client = _client(max_stored=1)
    first, _ = (_post(client, {"input": "x"}).json["id"] for _ in range(2))
    assert client.get(f"/v1/responses/{first}", headers=AUTHORIZED).status_code == 404


def test_counts_are_exact_for_streams_that_nobody_reads() -> None:
    client = _client()
    for _ in range(3):
        _post(client, {"input": "x", "stream": True}, buffered=False).close()
    whole = _post(client, {"input": "x", "stream": True})
    assert whole.data.endswith(b"}\n\n")
    whole.close()
    counts = client.get("/sim/stats").json
    assert (counts["in_flight"], counts["finished"], counts["aborted"]) == (0, 1, 3)
    assert client.post("/sim/reset").json["requests"] == 0
