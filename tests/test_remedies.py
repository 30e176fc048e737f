"""What is advised about a failed call: the cure that fits it, for every error there is."""

from __future__ import annotations

import pytest

from openai_gateway import errors
from openai_gateway.remedies import advise, find_remedy
from openai_gateway.wire.retries import FINAL_QUOTA_CODES

OWN_CODES = {
    "invalid_type",
    "missing_required_parameter",
    "gateway_queue_timeout",
    *(kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GatewayError)),
} - {"unknown_url", "method_not_allowed", "loopback_only"}  # these are no calls


@pytest.mark.parametrize(
    ("status", "code", "outcome", "words"),
    [
        pytest.param(401, None, "completed", "openai_api_key", id="the upstream refused the key"),
        pytest.param(401, "invalid_api_key", "failed", "gateway_api_keys", id="the gateway refused the client's"),
        pytest.param(429, "insufficient_quota", "completed", "billing", id="quota"),
        pytest.param(429, "rate_limit_exceeded", "completed", "lower max_concurrent_requests, or wait", id="rate"),
        pytest.param(429, None, "completed", "check billing", id="a 429 that doesn't say which"),
        pytest.param(429, "gateway_queue_full", "failed", "max_queue", id="queue full"),
        pytest.param(429, "gateway_queue_timeout", "failed", "queue_timeout_s", id="waited too long"),
        pytest.param(404, "model_not_found", "completed", "openai_model", id="unknown model"),
        pytest.param(404, None, "completed", "openai_model", id="404 that doesn't say of what"),
        pytest.param(400, None, "completed", "request is at fault", id="bad request"),
        pytest.param(422, "anything", "completed", "request is at fault", id="unknown 4xx"),
        pytest.param(500, None, "completed", "send the call again", id="upstream failed"),
        pytest.param(529, "overloaded", "completed", "send the call again", id="unknown 5xx"),
        pytest.param(503, None, "completed", "overloaded", id="overloaded"),
        pytest.param(502, "upstream_unreachable", "failed", "openai_base_url", id="unreachable"),
        pytest.param(200, "upstream_protocol_error", "failed", "broke off", id="stream broke off"),
        pytest.param(504, "upstream_timeout", "failed", "first_byte_timeout_s", id="too slow"),
        pytest.param(503, "gateway_draining", "failed", "send the call again", id="stopping"),
        pytest.param(None, None, "failed", "its log", id="unexpected error"),
    ],
)
def test_advice_names_the_cure(status: int | None, code: str | None, outcome: str, words: str) -> None:
    advice = advise(status, code, outcome)
    assert words in advice
    assert "{" not in advice
    assert (advice[0].isupper(), advice[-1]) == (True, ".")


@pytest.mark.parametrize("code", sorted(OWN_CODES))
def test_every_error_of_the_gateway_has_its_own_advice(code: str) -> None:
    assert advise(599, code, "failed") != advise(599, None, "completed")


@pytest.mark.parametrize("code", sorted(FINAL_QUOTA_CODES))
def test_used_up_quota_is_a_matter_of_billing(code: str) -> None:
    assert "billing" in advise(429, code, "completed")


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        pytest.param(404, "404", "The model `x` does not exist.", "model_not_found", id="vLLM knows no such model"),
        pytest.param(404, "DeploymentNotFound", "no", "model_not_found", id="Azure has no such deployment"),
        pytest.param(403, "model_not_found", "no access", "model_not_found", id="the key may not use the model"),
        pytest.param(404, "404", "Not Found", "unknown_url", id="a path that is not served"),
        pytest.param(404, "item_not_found", "Item 'x' not found", "not_found", id="an item that the call names"),
        pytest.param(301, None, "", "unknown_url", id="a redirect"),
        pytest.param(529, "overloaded_error", "", "upstream_unavailable", id="overloaded"),
        pytest.param(451, None, "", "invalid_request", id="another 4xx"),
    ],
)
def test_kind_of_an_error(status: int, code: str | None, message: str, kind: str) -> None:
    assert find_remedy(status, code, message).kind == kind


def test_a_caller_may_say_more_of_what_to_change() -> None:
    remedy = find_remedy(401, None)
    assert remedy.tell(key="openai_api_key (now from env.yaml)").endswith("set openai_api_key (now from env.yaml)")
