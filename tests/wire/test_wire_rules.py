"""Headers, paths, retries, events and errors: each rule of the wire contract as a table."""

from __future__ import annotations

import email.utils
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from openai_gateway import errors
from openai_gateway.wire import head, headers, paths, retries
from openai_gateway.wire.api import Api
from openai_gateway.wire.head import Head
from openai_gateway.wire.retries import FINAL_QUOTA_CODES, Outcome
from openai_gateway.wire.sse import is_event_stream, make_closing_event

OWN = {"host": "up", "authorization": "Bearer key"}


@pytest.mark.parametrize(
    "name",
    ["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
     "upgrade", "expect", "cookie", "forwarded", "x-forwarded-for", "x-forwarded-anything", "content-length"],
)  # fmt: skip
def test_header_of_the_client_stays_out(name: str) -> None:
    environ = {"HTTP_" + name.upper().replace("-", "_"): "close"}
    assert name not in headers.select_for_upstream(environ, has_body=False)


@pytest.mark.parametrize(
    "name",
    ["openai-beta", "openai-organization", "openai-project", "idempotency-key", "x-client-request-id",
     "x-stainless-arch", "traceparent", "user-agent", "accept", "x-anything"],
)  # fmt: skip
def test_header_of_the_client_goes_upstream(name: str) -> None:
    environ = {"HTTP_" + name.upper().replace("-", "_"): "v"}
    assert headers.select_for_upstream(environ, has_body=False)[name] == "v"


def test_headers_named_by_connection_stay_out_and_own_ones_win() -> None:
    environ = {
        "HTTP_CONNECTION": "X-Hop, close",
        "HTTP_X_HOP": "1",
        "HTTP_AUTHORIZATION": "Bearer client",
        "HTTP_HOST": "evil",
        "HTTP_API_KEY": "client",
        "CONTENT_TYPE": "application/json; charset=utf-8",
    }
    own = {**OWN, "api-key": "azure"}
    given = headers.select_for_upstream(environ, has_body=True)
    assert given.with_own(own) is given.with_own(own)
    assert given.with_own(own) == {
        "accept-encoding": "identity", "content-type": "application/json; charset=utf-8", "host": "up",
        "authorization": "Bearer key", "api-key": "azure",
    }  # fmt: skip
    assert given.with_own({**OWN, "authorization": "Bearer new"})["authorization"] == "Bearer new"
    assert headers.select_for_upstream({"HTTP_ACCEPT_ENCODING": "gzip"}, has_body=False) == {"accept-encoding": "gzip"}


def test_answer_headers_pass_but_for_cookies_hops_date_and_server() -> None:
    given_headers = [
        ("Date", "d"), ("Server", "s"), ("Set-Cookie", "a"), ("set-cookie", "b"), ("Connection", "close, x-hop"),
        ("X-Hop", "1"), ("Transfer-Encoding", "chunked"), ("Content-Length", "5"), ("Keep-Alive", "5"),
        ("X-Request-Id", "r"), ("x-ratelimit-limit-requests", "1"), ("Retry-After", "1"), ("Warning", "1"),
        ("warning", "2"), ("Content-Encoding", "gzip"),
    ]  # fmt: skip
    assert Head(200, "OK", given_headers).passing == given_headers[9:]


def test_caches_of_names_stay_bounded() -> None:
    for number in range(3000):
        headers.select_for_upstream({f"HTTP_X_{number}": "1"}, has_body=False)
        Head(200, "OK", [(f"x-{number}", "1")])
    assert len(headers._to_upstream_names) <= 1024
    assert len(head._roles) <= 1024
    assert Head(200, "OK", [("x-2999", "1")]).passing == [("x-2999", "1")]


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/v1/responses", (None, None, "/v1/responses")),
        ("/judge/v1/responses", (None, "judge", "/v1/responses")),
        ("/ng-rollout/a.b-1/v1/models", ("a.b-1", None, "/v1/models")),
        ("/ng-rollout/r/judge/v1/models", ("r", "judge", "/v1/models")),
        ("/ng-rollout/r/training-token-capture/v1/models", ("r", None, "/v1/models")),
        ("/ng-rollout/r/training-token-capture/judge/v1/responses", ("r", "judge", "/v1/responses")),
        ("/ng-rollout/r/v1/training-token-capture/x", ("r", None, paths.UNKNOWN)),
        (f"/ng-rollout/{'a' * 200}/v1/models", ("a" * 200, None, "/v1/models")),
        (f"/ng-rollout/{'a' * 201}/v1/models", (None, None, paths.UNKNOWN)),
        ("/ng-rollout//v1/models", (None, None, paths.UNKNOWN)),
        ("/ng-rollout/a b/v1", (None, None, paths.UNKNOWN)),
        ("/other/v1/models", (None, None, "/other/v1/models")),
        ("/judge", (None, None, "/judge")),
        ("/", (None, None, "/")),
        ("/metrics", (None, None, "/metrics")),
        ("/judge/metrics", (None, "judge", paths.UNKNOWN)),
        ("/ng-rollout/r/metrics", ("r", None, paths.UNKNOWN)),
        ("/ng-rollout/r/judge/readyz", ("r", "judge", paths.UNKNOWN)),
        ("/judge/", (None, "judge", paths.UNKNOWN)),
        ("/responses", (None, None, "/v1/responses")),
        ("/judge/chat/completions", (None, "judge", "/v1/chat/completions")),
        ("/v1/chat/completions/", (None, None, "/v1/chat/completions")),
        ("/v1/v1/responses/r_1/cancel", (None, None, "/v1/responses/r_1/cancel")),
        ("/openai/v1/responses", (None, None, "/v1/responses")),
        ("/openai/responses", (None, None, "/v1/responses")),
        ("/openai/deployments/any/chat/completions", (None, None, "/v1/chat/completions")),
        ("/ng-rollout/r/judge/openai/deployments/any/chat/completions", ("r", "judge", "/v1/chat/completions")),
        ("/v1/conversations/c/items/i/", (None, None, "/v1/conversations/c/items/i")),
        ("/v1/models/org/model", (None, None, "/v1/models/org/model")),
        ("/v1/v1/v1/responses", (None, None, paths.UNKNOWN)),
        ("/v1/embeddings", (None, None, paths.UNKNOWN)),
        ("/openai/embeddings", (None, None, "/openai/embeddings")),
        ("//v1/responses", (None, None, paths.UNKNOWN)),
        ("/v1//responses", (None, None, paths.UNKNOWN)),
        ("/v1/responses//", (None, None, paths.UNKNOWN)),
        ("/judge//v1/responses", (None, None, paths.UNKNOWN)),
    ],
)
def test_path_names_rollout_and_server(path: str, parts: tuple[str | None, str | None, str]) -> None:
    assert paths.split(path, {"judge": 1}) == parts


SDK: Any = openai.OpenAI(api_key="x", base_url="http://127.0.0.1:1/v1")
NOW = 1_800_000_000.0
DATES = [email.utils.formatdate(NOW + seconds, usegmt=True) for seconds in (30, 500)]
RETRY_AFTERS = [None, "0", "1", "2.5", "-3", "119.9", "120", "121", "1e999", "inf", "nan", "soon", "", *DATES]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 429, 500, 502, 503, 520])
@pytest.mark.parametrize("retry_after", RETRY_AFTERS)
@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms"])
@pytest.mark.parametrize("hint", [None, "true", "false", "maybe"])
def test_decision_and_wait_are_the_sdks(
    status: int, retry_after: str | None, name: str, hint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_headers = {key: value for key, value in ((name, retry_after), ("x-should-retry", hint)) if value is not None}
    monkeypatch.setattr("time.time", lambda: NOW)
    monkeypatch.setattr("openai._base_client.random", lambda: 0.0)
    outcome = Outcome(status, given_headers)
    response = SimpleNamespace(headers=given_headers, status_code=status)
    assert retries.is_retryable(outcome, NOW) == SDK._should_retry(response)
    options = SimpleNamespace(get_max_retries=lambda most: 2)
    expected = SDK._calculate_retry_timeout(1, options, given_headers)
    assert retries.choose_wait_s(outcome, 1, NOW, lambda: 0.0) == pytest.approx(expected)


@pytest.mark.parametrize("code", sorted(FINAL_QUOTA_CODES))
def test_used_up_quota_is_final(code: str) -> None:
    body = b'{"error": {"message": "m", "type": "t", "param": null, "code": "' + code.encode() + b'"}}'
    outcome = Outcome(429, {"retry-after": "1"}, retries.read_error_code(body))
    assert retries.is_final(outcome)
    assert not retries.is_retryable(outcome, NOW)
    assert retries.read_pause_s(outcome, NOW) is None


def test_unanswered_attempt_may_be_tried_again_and_a_refused_key_is_final() -> None:
    assert retries.is_retryable(retries.UNANSWERED, NOW)
    assert not retries.is_retryable(retries.HOPELESS, NOW)
    for code in (None, "invalid_api_key", "account_deactivated"):
        assert retries.is_final(Outcome(401, {}, code))
    for code in ("mismatched_organization", "invalid_organization", "ip_not_authorized"):
        assert not retries.is_final(Outcome(401, {}, code))
    assert not retries.is_final(Outcome(429, {}, "rate_limit_exceeded"))


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"null", b'{"error": null}', b'{"error": "x"}', b'{"error": {}}'])
def test_body_without_error_code_has_none(body: bytes) -> None:
    assert retries.read_error_code(body) is None


def test_error_code_may_be_a_number() -> None:
    assert retries.read_error_code(b'{"error": {"code": 42}}') == "42"


@pytest.mark.parametrize(
    ("status", "given_headers", "pause_s"),
    [
        (429, {}, None),
        (429, {"retry-after": "3"}, 3),
        (503, {"retry-after-ms": "250"}, 0.25),
        (503, {}, None),
        (500, {"retry-after": "3"}, None),
        (429, {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360),
        (429, {"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "6m0s"}, None),
        (429, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "120ms"}, 0.12),
        (429, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "soon"}, None),
        (429, {"x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "1s"}, None),
    ],
)
def test_pause_is_what_the_upstream_asks_for(status: int, given_headers: dict[str, str], pause_s: float | None) -> None:
    assert retries.read_pause_s(Outcome(status, given_headers), NOW) == pause_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("120ms", 0.12), ("1h2m3.5s", 3723.5), ("5", 5), ("1m", 60), ("", None), ("x", None)],
)
def test_duration_is_read(text: str, seconds: float | None) -> None:
    assert retries.parse_duration_s(text) == seconds


@pytest.mark.parametrize("api", Api)
@given(data=st.data())
def test_closing_event_is_an_error_to_the_sdk_wherever_a_stream_breaks(api: Api, data: st.DataObject) -> None:
    stream = b'event: x\ndata: {"a": 1}\n\n' * 3
    cut = data.draw(st.integers(0, len(stream)))
    whole = stream[:cut] + make_closing_event(errors.UpstreamProtocolError("broke"), api=api, tail=stream[:cut][-4:])
    events = list(SSEDecoder().iter_bytes(iter([whole])))
    last = events[-1].json()
    assert last["error"] == {"message": "broke", "type": "upstream_error", "param": None,
                             "code": "upstream_protocol_error"}  # fmt: skip
    assert all(event.json() == {"a": 1} for event in events[:-2])


@pytest.mark.parametrize(
    ("content_type", "is_stream"),
    [("text/event-stream", True), ("Text/Event-Stream; charset=utf-8", True), ("application/json", False), ("", False)],
)
def test_stream_is_known_by_its_content_type(content_type: str, is_stream: bool) -> None:
    assert is_event_stream(content_type) is is_stream


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.InvalidRequest("m"), 400, "invalid_request_error", "invalid_json"),
        (errors.Unauthorized("m"), 401, "invalid_request_error", "invalid_api_key"),
        (errors.UnknownUrl("m"), 404, "invalid_request_error", "unknown_url"),
        (errors.MethodNotAllowed("m", "GET"), 405, "invalid_request_error", "method_not_allowed"),
        (errors.BodyTimeout("m"), 408, "invalid_request_error", "request_timeout"),
        (errors.RequestTooLarge("m"), 413, "invalid_request_error", "request_too_large"),
        (errors.UnsupportedMediaType("m"), 415, "invalid_request_error", "unsupported_media_type"),
        (errors.Saturated("m"), 429, "rate_limit_error", "gateway_queue_full"),
        (errors.UpstreamUnreachable("m"), 502, "upstream_error", "upstream_unreachable"),
        (errors.UpstreamProtocolError("m"), 502, "upstream_error", "upstream_protocol_error"),
        (errors.Unavailable("m"), 503, "upstream_error", "gateway_draining"),
        (errors.UpstreamTimeout("m"), 504, "upstream_error", "upstream_timeout"),
        (errors.CallTimeout("m"), 504, "upstream_error", "upstream_timeout"),
        (errors.GatewayError("m"), 500, "api_error", "internal_error"),
    ],
)
def test_error_has_its_status_and_all_four_keys(error: errors.GatewayError, status: int, kind: str, code: str) -> None:
    assert error.status == status
    assert error.to_body() == {"error": {"message": "m", "type": kind, "param": None, "code": code}}


def test_cancellation_is_no_ordinary_exception() -> None:
    cancelled = errors.Cancelled(errors.ClientGone("left"))
    assert not isinstance(cancelled, Exception)
    assert isinstance(cancelled.reason, errors.ClientGone)
