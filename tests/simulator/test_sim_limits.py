"""Keys, limits and scripted errors, with the headers that OpenAI sends."""

from __future__ import annotations

import pytest

from openai_gateway.simulator.settings import Script
from tests.simulator.calling import Clock, chat, make_client, respond

KEY = "sk-proj-abcdefghijklmnopqrstuvwxyz"


def test_every_answer_has_openais_headers_and_two_cookies() -> None:
    client = make_client()
    for answer in (respond(client), chat(client), client.get("/v1/models"), client.get("/v1/responses/no")):
        for name in ("x-request-id", "openai-processing-ms", "openai-version", "openai-organization"):
            assert answer.headers[name]
        for kind in ("requests", "tokens"):
            assert answer.headers[f"x-ratelimit-remaining-{kind}"] == answer.headers[f"x-ratelimit-limit-{kind}"]
            assert answer.headers[f"x-ratelimit-reset-{kind}"] == "0ms"
        assert len(answer.headers.getlist("set-cookie")) == 2


def test_request_ids_do_not_come_back_after_a_reset() -> None:
    client = make_client()
    before = respond(client).headers["x-request-id"]
    client.post("/sim/reset")
    assert respond(client).headers["x-request-id"] != before


def test_refused_key_is_shown_masked() -> None:
    answer = make_client(api_key="right").get("/v1/models", headers={"authorization": f"Bearer {KEY}"})
    assert (answer.status_code, answer.json["error"]["code"]) == (401, "invalid_api_key")
    assert "sk-proj-" in answer.json["error"]["message"]
    assert "wxyz" in answer.json["error"]["message"]
    assert KEY not in answer.text


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer ", "Basic abc", ""])
def test_no_key_is_told_apart_from_a_wrong_one(authorization: str) -> None:
    answer = make_client().get("/v1/models", headers={"authorization": authorization})
    assert answer.status_code == 401
    assert answer.json["error"]["message"].startswith("You didn't provide an API key.")


def test_requests_come_back_at_the_rate_of_the_limit() -> None:
    clock = Clock()
    client = make_client(clock, rpm=60)
    assert {respond(client).status_code for _ in range(60)} == {200}
    refused = respond(client)
    assert (refused.status_code, refused.json["error"]["type"]) == (429, "requests")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"] == "1m0s"
    clock.now_s += float(refused.headers["retry-after-ms"]) / 1000
    assert [respond(client).status_code for _ in range(2)] == [200, 429]


def test_tokens_per_minute_are_enforced_over_both_apis() -> None:
    clock = Clock()
    client = make_client(clock, tpm=60)
    used = respond(client).json["usage"]["total_tokens"]
    assert client.get("/v1/models").headers["x-ratelimit-remaining-tokens"] == str(60 - used)
    statuses = [chat(client).status_code for _ in range(3)]
    assert statuses[-1] == 429
    refused = chat(client)
    assert refused.json["error"]["type"] == "tokens"
    assert 0 < int(refused.headers["x-ratelimit-remaining-tokens"]) < used
    assert refused.headers["x-ratelimit-remaining-requests"] != "0"
    clock.now_s += float(refused.headers["retry-after-ms"]) / 1000
    assert chat(client).status_code == 200


def test_call_larger_than_the_limit_is_refused_for_good() -> None:
    refused = respond(make_client(tpm=5))
    assert refused.status_code == 429
    assert refused.json["error"]["message"].startswith("Request too large for m")


def test_call_is_charged_for_its_bound_as_it_comes() -> None:
    client = make_client(tpm=1000)
    answer = respond(client, max_output_tokens=500)
    left = 1000 - answer.json["usage"]["input_tokens"] - 500
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(left)
    assert client.get("/v1/models").headers["x-ratelimit-remaining-tokens"] == str(left)


def test_unused_tokens_come_back_when_the_answer_is_over() -> None:
    client = make_client(tpm=1000, unused_given_back=True, output_tokens_charged=500)
    answer = respond(client)
    used = answer.json["usage"]["total_tokens"]
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) <= 500
    answer.close()
    assert client.get("/v1/models").headers["x-ratelimit-remaining-tokens"] == str(1000 - used)


@pytest.mark.parametrize(
    ("status", "code", "kind", "expected"),
    [
        (400, "", "invalid_request_error", None),
        (401, "", "invalid_request_error", "invalid_api_key"),
        (403, "", "invalid_request_error", "unsupported_country_region_territory"),
        (404, "", "invalid_request_error", "model_not_found"),
        (429, "", "requests", "rate_limit_exceeded"),
        (429, "insufficient_quota", "insufficient_quota", "insufficient_quota"),
        (500, "", "server_error", None),
        (502, "", "server_error", None),
        (503, "", "service_unavailable_error", None),
    ],
)
def test_scripted_error_has_openais_form(status: int, code: str, kind: str, expected: str | None) -> None:
    client = make_client(script=Script(status=status, error_code=code))
    for answer in (respond(client), chat(client, stream=True)):
        error = answer.json["error"]
        assert (answer.status_code, error["type"], error["code"]) == (status, kind, expected)
        assert "retry-after" not in answer.headers
        assert "x-should-retry" not in answer.headers


def test_scripted_headers_are_sent() -> None:
    metadata = {"sim_status": "503", "sim_retry_after": "Wed, 21 Oct 2026 07:28:00 GMT", "sim_should_retry": "false"}
    headers = respond(make_client(), metadata=metadata).headers
    assert headers["retry-after"] == metadata["sim_retry_after"]
    assert headers["x-should-retry"] == "false"


def test_failures_are_counted_by_key_or_else_by_body() -> None:
    client = make_client()
    script = {"sim_status": "500", "sim_times": "1"}
    by_body = [respond(client, input=text, metadata=script).status_code for text in ("a", "b", "a", "b")]
    assert by_body == [500, 500, 200, 200]
    keyed = [respond(client, input=text, metadata={**script, "sim_key": "k"}).status_code for text in ("a", "b")]
    assert keyed == [500, 200]
    client.post("/sim/reset")
    assert respond(client, input="a", metadata=script).status_code == 500


def test_scripted_failures_cost_no_quota() -> None:
    client = make_client(rpm=1)
    assert respond(client, metadata={"sim_status": "500"}).status_code == 500
    assert [respond(client).status_code for _ in range(2)] == [200, 429]
