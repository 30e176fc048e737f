"""What an answer means: kept, or a failure with its class and cure; and what answers add up to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_gateway.collect.client import GatewayAnswer
from openai_gateway.collect.failures import NOT_HELD_AGAINST, make_failure, make_unreachable_failure
from openai_gateway.collect.results import read_result
from openai_gateway.collect.sums import Latencies, Sums
from openai_gateway.wire.api import Api
from openai_gateway.wire.usage import Report, Usage


def _error(code: str | None) -> bytes:
    return json.dumps({"error": {"message": "why", "type": "t", "param": None, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "code", "expected", "is_general"),
    [
        (401, "invalid_api_key", "key_refused", True),
        (429, "insufficient_quota", "quota_used_up", True),
        (429, "project_spend_limit_exceeded", "quota_used_up", True),
        (402, None, "quota_used_up", True),
        (404, "model_not_found", "model_not_found", True),
        (404, None, "unknown_url", True),
        (405, "method_not_allowed", "unknown_url", True),
        (307, None, "unknown_url", True),
        (503, "gateway_draining", "gateway_draining", True),
        (404, "file_not_found", "not_found", False),
        (429, "rate_limit_exceeded", "rate_limited", False),
        (429, "gateway_queue_timeout", "gateway_full", False),
        (403, None, "forbidden", False),
        (400, "context_length_exceeded", "invalid_request", False),
        (413, "request_too_large", "invalid_request", False),
        (504, "upstream_timeout", "timeout", False),
        (502, "upstream_unreachable", "upstream_unreachable", False),
        (503, None, "upstream_unavailable", False),
        (502, "bad_gateway", "upstream_unavailable", False),
        (500, None, "upstream_error", False),
    ],
)
def test_class_of_a_failure(status: int, code: str | None, expected: str, is_general: bool) -> None:
    failure = make_failure(status, _error(code))
    assert (failure.failure_class, failure.code, failure.is_general) == (expected, code, is_general)
    assert failure.message == "why"
    assert failure.what_to_do


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, {"error": {"code": "DeploymentNotFound", "message": "no such deployment"}}, "model_not_found"),
        (404, {"object": "error", "message": "The model `x` does not exist.", "code": 404}, "model_not_found"),
        (404, {"error": {"message": "The model `x` does not exist.", "code": 404}}, "model_not_found"),
        (403, {"error": {"message": "Project p does not have access to model m", "code": None}}, "model_not_found"),
        (403, {"error": {"message": "m", "code": "model_not_found"}}, "model_not_found"),
        (403, {"error": {"message": "no", "code": "unsupported_country_region_territory"}}, "region_refused"),
        (429, {"error": {"message": "pay", "code": "billing_not_active"}}, "quota_used_up"),
    ],
)
def test_what_every_call_would_meet_is_general_and_no_rows_fault(status: int, body: Any, expected: str) -> None:
    failure = make_failure(status, json.dumps(body).encode())
    assert (failure.failure_class, failure.is_general) == (expected, True)
    assert failure.failure_class in NOT_HELD_AGAINST


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>\n Bad   Gateway</html>", "<html> Bad Gateway</html>"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"error": "plain"}', "plain"),
        (b"", ""),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"x" * 10_000, "x" * 500),
    ],
)
def test_message_is_found_in_whatever_form(body: bytes, message: str) -> None:
    assert make_failure(502, body).message == message


def test_answer_is_kept_on_one_line_with_its_numbers_as_they_were() -> None:
    pretty = b'{\n  "status": "completed", "output": [7],\r\n  "big": 12345678901234567890123, "t": "a\\nb  c"\n}\n'
    response, failure = read_result(Api.RESPONSES, GatewayAnswer(200, {}, pretty))
    assert failure is None
    assert response == b'{"status":"completed","output":[7],"big":12345678901234567890123,"t":"a\\nb  c"}'


@pytest.mark.parametrize(
    ("api", "answer", "expected"),
    [
        (Api.RESPONSES, {"status": "failed", "error": {"code": "server_error", "message": "m"}}, "response_failed"),
        (Api.RESPONSES, {"status": "queued"}, "response_failed"),
        (Api.RESPONSES, {"status": "incomplete", "error": None, "output": []}, None),
        (Api.RESPONSES, {"output": [{}], "status": "completed"}, None),
        (Api.RESPONSES, {"output": [], "status": "completed", "usage": {"output_tokens": 1}}, None),
        (Api.RESPONSES, {"output": [], "status": "completed"}, "response_failed"),
        (Api.RESPONSES, {"output": [], "status": "completed", "usage": None}, "response_failed"),
        (Api.RESPONSES, {"status": "completed"}, "response_failed"),
        (Api.RESPONSES, {"choices": [{}]}, "response_failed"),
        (Api.CHAT, {"error": {"code": 500, "message": "m"}}, "response_failed"),
        (Api.CHAT, {"error": {"code": 404, "message": "no such file"}}, "response_failed"),
        (Api.CHAT, {"choices": [{"finish_reason": "stop", "message": {}}], "status": 7, "error": None}, None),
        (Api.CHAT, {"choices": [{"finish_reason": "stop", "message": {"content": None}}]}, None),
        (Api.CHAT, {"choices": [{}, {"message": {"content": "a"}}]}, None),
        (Api.CHAT, {"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 1}}, "response_failed"),
        (Api.CHAT, {"choices": [{"finish_reason": None, "message": {}}]}, None),
        (Api.CHAT, {"choices": []}, "response_failed"),
        (Api.CHAT, {"choices": None}, "response_failed"),
        (Api.CHAT, {"choices": [{"error": {"code": 500}}]}, "response_failed"),
        # Of these every other call would have the same.
        (Api.CHAT, {"error": {"code": 402, "message": "insufficient credits"}}, "quota_used_up"),
        (Api.CHAT, {"error": {"code": 401, "message": "no auth"}}, "key_refused"),
        (Api.RESPONSES, {"status": "failed", "error": {"code": "insufficient_quota"}}, "quota_used_up"),
        (Api.RESPONSES, {"status": "failed", "error": {"code": "model_not_found"}}, "model_not_found"),
        # And these are held against no row.
        (Api.RESPONSES, {"status": "failed", "error": {"code": "rate_limit_exceeded"}}, "rate_limited"),
        (Api.CHAT, {"choices": [{"error": {"code": 502}}]}, "upstream_unavailable"),
        (Api.CHAT, {"choices": [{}, {"finish_reason": "error"}]}, "response_failed"),
        (Api.CHAT, {"output": []}, "response_failed"),
        (Api.CHAT, {}, "response_failed"),
        (Api.CHAT, {"error": "model overloaded", "choices": [{}]}, "response_failed"),
        (Api.CHAT, {"detail": "Internal error"}, "response_failed"),
        (Api.CHAT, {"object": "error", "message": "oops", "code": 500}, "response_failed"),
        ("chat", [1], "broken_answer"),
    ],
)
def test_200_that_holds_no_answer_is_a_failure(api: Api, answer: Any, expected: str | None) -> None:
    _, failure = read_result(api, GatewayAnswer(200, {}, json.dumps(answer).encode()))
    assert (failure.failure_class if failure else None) == expected


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"status": "comp', b'{"t": "\xff"}'])
def test_200_that_is_no_json_is_a_failure(body: bytes) -> None:
    _, failure = read_result(Api.RESPONSES, GatewayAnswer(200, {}, body))
    assert failure is not None
    assert failure.failure_class == "broken_answer"


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ({"choices": [{"error": {"code": 502, "message": "provider gone"}}]}, "502", "provider gone"),
        ({"error": "model overloaded"}, None, "model overloaded"),
        ({"object": "error", "message": "oops"}, None, "without choices: oops"),
        ({}, None, "answered with 200, but without choices"),
        ({"detail": "Internal error"}, None, "without choices: Internal error"),
    ],
)
def test_what_came_in_the_place_of_an_answer_is_told(answer: Any, code: str | None, said: str) -> None:
    _, failure = read_result("chat", GatewayAnswer(200, {}, json.dumps(answer).encode()))
    assert failure is not None
    assert (failure.code, said in failure.message) == (code, True)


def test_failure_tells_attempts_and_request_id() -> None:
    headers = {"x-gateway-attempts": "3", "x-gateway-request-id": "gwreq_1", "x-request-id": "req_2"}
    _, failure = read_result("chat", GatewayAnswer(500, headers, b""))
    assert failure is not None
    assert (failure.attempts, failure.request_id) == (3, "gwreq_1")
    assert read_result("chat", make_unreachable_failure("x"))[1] == make_unreachable_failure("x")


def test_sums_tell_unknown_from_nothing() -> None:
    sums = Sums()
    assert sums.to_json()["cost_usd"] == 0
    sums.add(Report(), None, None)
    assert sums.to_json()["cost_usd"] is None
    sums.add(Report(Usage(10, 5, cached_tokens=4, reasoning_tokens=3), "stop"), 0.5, 2.0)
    sums.add(Report(Usage(1, 1), "length"), None, 4.0)
    found = sums.to_json()
    assert found["tokens"] == {"input": 11, "cached": 4, "output": 6, "reasoning": 3, "answers_without_usage": 1}
    assert (found["cost_usd"], found["answers_without_price"]) == (0.5, 1)
    assert found["finish_reasons"] == {"unknown": 1, "stop": 1, "length": 1}


def test_percentiles_are_true_to_within_a_step() -> None:
    latencies = Latencies()
    for number in range(1, 1001):
        latencies.add(number / 100)
    found = latencies.to_json()
    assert found is not None
    assert found["p50"] == pytest.approx(5.0, rel=0.09)
    assert found["p99"] == pytest.approx(9.9, rel=0.09)
    assert (found["max"], found["mean"]) == (10.0, 5.005)
    assert Latencies().to_json() is None
