"""The app in one process with the `responses` library as upstream, through the shortcut and through Flask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import responses
from flask.testing import FlaskClient

from openai_gateway.app import GatewayApp, create_app
from openai_gateway.config import GatewayConfig, Secret, ServerConfig

URL = "https://upstream.example/v1"


class ClosingClient(FlaskClient):
    """Reads each answer to its end and closes it, as a server does."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        return super().open(*args, **{"buffered": True, **kwargs})


@pytest.fixture(params=[True, False], ids=["shortcut", "through Flask"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlaskClient]:
    monkeypatch.setattr(GatewayApp, "has_shortcut", request.param)
    server = ServerConfig("policy_model", URL, "the-model", openai_api_key=Secret("sk-x"), max_retries=0)
    app = create_app(GatewayConfig({"policy_model": server}, "policy_model"))
    app.test_client_class = ClosingClient
    yield app.test_client()
    assert app.extensions["openai_gateway"]["policy_model"].state().in_flight == 0


@pytest.fixture
def mock() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


def test_call_goes_to_the_mock_and_back(client: FlaskClient, mock: responses.RequestsMock) -> None:
    mock.post(f"{URL}/responses", json={"id": "resp_1"}, headers={"x-request-id": "req_1"})
    answer = client.post("/v1/responses", json={"input": "x"})
    assert (answer.status_code, answer.json) == (200, {"id": "resp_1"})
    sent = mock.calls[0].request
    assert json.loads(sent.body or b"") == {"input": "x", "model": "the-model"}
    assert sent.headers["authorization"] == "Bearer sk-x"


def test_query_and_matchers_work(client: FlaskClient, mock: responses.RequestsMock) -> None:
    matchers = [
        responses.matchers.query_param_matcher({"a": "1"}),
        responses.matchers.json_params_matcher({"messages": [], "model": "the-model"}),
        responses.matchers.header_matcher({"openai-beta": "b"}),
    ]
    mock.post(f"{URL}/chat/completions", json={}, match=matchers)
    headers = {"openai-beta": "b"}
    assert client.post("/v1/chat/completions?a=1", json={"messages": []}, headers=headers).status_code == 200


def test_stream_and_error_status_pass(client: FlaskClient, mock: responses.RequestsMock) -> None:
    events = b"data: one\n\ndata: [DONE]\n\n"
    mock.post(f"{URL}/chat/completions", body=events, content_type="text/event-stream")
    assert client.post("/v1/chat/completions", json={"messages": []}).data == events
    mock.post(f"{URL}/responses", json={"error": {"message": "no"}}, status=404)
    assert client.post("/v1/responses", json={"input": "x"}).status_code == 404


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (requests.ConnectionError("refused"), 502, "upstream_unreachable"),
        (requests.ConnectTimeout("late"), 504, "upstream_timeout"),
        (requests.ReadTimeout("late"), 504, "upstream_timeout"),
        (requests.exceptions.ChunkedEncodingError("broken"), 502, "upstream_protocol_error"),
    ],
)
def test_exception_of_the_mock_becomes_our_error(
    raised: Exception, status: int, code: str, client: FlaskClient, mock: responses.RequestsMock
) -> None:
    mock.post(f"{URL}/responses", body=raised)
    answer = client.post("/v1/responses", json={"input": "x"})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (status, code)


def test_slots_are_given_back_for_bodies_that_nobody_reads(client: FlaskClient, mock: responses.RequestsMock) -> None:
    mock.get(f"{URL}/responses/r1", json={"id": "r1"})
    server = client.application.extensions["openai_gateway"]["policy_model"]
    for _ in range(3):
        answer = client.get("/v1/responses/r1", buffered=False)
        answer.close()
    assert server.state().in_flight == 0


def test_query_of_the_base_url_and_of_the_client_both_go_upstream(mock: responses.RequestsMock) -> None:
    server = ServerConfig("s", f"{URL}?api-version=preview", "m", openai_api_key=Secret("sk-x"))
    client = create_app(GatewayConfig({"s": server}, "s")).test_client()
    mock.post(f"{URL}/responses", json={})
    for path, query in (("/v1/responses", "api-version=preview"), ("/v1/responses?a=1", "a=1&api-version=preview")):
        assert client.post(path, json={"input": "x"}, buffered=True).status_code == 200
        assert (mock.calls[-1].request.url or "").partition("?")[2] == query
