"""Talking to the gateway: rollout ids in the URL, and calls asked for again only if they were not taken."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from gevent.event import Event

from openai_gateway.collect.client import Gateway, GatewayAnswer
from openai_gateway.collect.failures import Failure
from openai_gateway.collect.wait_reasons import FoundLimit, WaitReasons
from tests.support.upstreams import Conversation, Script, run_upstream, to_answer

MODELS = b'{"object": "list", "data": [{"id": "the-model", "object": "model"}]}'


def _error(code: str) -> bytes:
    return json.dumps({"error": {"message": "m", "code": code}}).encode()


def _refuse_then_answer(status: str, code: str, times: int, retry_after: str = "retry-after-ms: 5\r\n") -> Script:
    answers = iter([to_answer(_error(code), status=status, headers=retry_after)] * times)

    def script(conversation: Conversation) -> None:
        while conversation.read_request() is not None:
            conversation.send(next(answers, to_answer(b'{"id": 1}')))

    return script


def _post(gateway: Gateway, give_up: Event | None = None) -> GatewayAnswer | Failure | None:
    return gateway.post("responses", b"{}", "3-1", give_up or Event())[0]


@pytest.mark.parametrize(
    ("path", "known", "posted"),
    [
        ("/v1", "/ng-rollout/", "/ng-rollout/3-1/v1/responses"),
        ("/judge/v1", "/ng-rollout/", "/ng-rollout/3-1/judge/v1/responses"),
        ("/proxied/v1", "/proxied/ng-rollout/", "/proxied/ng-rollout/3-1/v1/responses"),
        ("/a/proxied/v1", "/a/proxied/ng-rollout/", "/a/proxied/ng-rollout/3-1/v1/responses"),
        ("/v1", "nowhere", "/v1/responses"),
    ],
    ids=["plain", "a server's", "behind a proxy's path", "behind two", "no gateway of ours"],
)
def test_rollout_id_goes_where_the_gateway_looks_for_it(path: str, known: str, posted: str) -> None:
    def script(conversation: Conversation) -> None:
        while (request := conversation.read_request()) is not None:
            is_known = request.method == "POST" or request.target.startswith(known) or request.target == "/v1/models"
            answer = to_answer(MODELS) if is_known else to_answer(b"no", status="404 Not Found", headers="")
            conversation.send(answer)

    with run_upstream(script) as upstream:
        gateway = Gateway(upstream.url + path, "the-key")
        assert gateway.greet() == ["the-model"]
        assert gateway.knows_rollouts == (known != "nowhere")
        assert isinstance(_post(gateway), GatewayAnswer)
        gateway.close()
    request = upstream.requests[-1]
    assert (request.method, request.target) == ("POST", posted)
    assert request.headers["authorization"] == "Bearer the-key"
    assert request.body == b"{}"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("429 Too Many Requests", "gateway_queue_full"),
        ("429 Too Many Requests", "gateway_queue_timeout"),
        ("503 Service Unavailable", "gateway_draining"),
    ],
)
def test_call_that_was_not_taken_is_asked_for_again(status: str, code: str) -> None:
    with run_upstream(_refuse_then_answer(status, code, times=5)) as upstream:
        found = _post(Gateway(upstream.url))
    assert isinstance(found, GatewayAnswer)
    assert (found.status, found.body, len(upstream.requests)) == (200, b'{"id": 1}', 6)


def test_call_is_asked_for_again_a_bounded_number_of_times() -> None:
    with run_upstream(_refuse_then_answer("429 Too Many Requests", "gateway_queue_full", times=50)) as upstream:
        found = _post(Gateway(upstream.url))
    assert isinstance(found, GatewayAnswer)
    assert (found.status, len(upstream.requests)) == (429, 10)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("429 Too Many Requests", "rate_limit_exceeded"),
        ("503 Service Unavailable", "overloaded"),
        ("500 Internal Server Error", "gateway_queue_full"),
        ("502 Bad Gateway", "upstream_unreachable"),
    ],
)
def test_whatever_the_gateway_has_retried_is_not_retried_again(status: str, code: str) -> None:
    with run_upstream(_refuse_then_answer(status, code, times=1)) as upstream:
        found = _post(Gateway(upstream.url))
    assert isinstance(found, GatewayAnswer)
    assert (found.status, len(upstream.requests)) == (int(status[:3]), 1)


def test_connection_that_closes_before_the_answer_is_made_anew() -> None:
    lost = iter([True, True])

    def script(conversation: Conversation) -> None:
        if conversation.read_request() is not None and not next(lost, False):
            conversation.send(to_answer(b"{}"))

    with run_upstream(script) as upstream:
        found, unanswered = Gateway(upstream.url).post("responses", b"{}", "3-1", Event())
        assert isinstance(found, GatewayAnswer)
        assert len(upstream.requests) == 3
    assert unanswered == 2


def test_answer_that_breaks_off_is_a_failure_and_not_asked_for_again() -> None:
    def script(conversation: Conversation) -> None:
        conversation.read_request()
        conversation.send(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"id"')

    with run_upstream(script) as upstream:
        found, unanswered = Gateway(upstream.url).post("responses", b"{}", "3-1", Event())
        assert len(upstream.requests) == 1
    assert isinstance(found, Failure)
    assert (found.failure_class, found.status, unanswered) == ("broken_answer", 200, 0)


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_wait_for_a_gateway_that_is_away_ends_when_the_run_does(closed_port: int) -> None:
    give_up = Event()
    give_up.set()
    gateway = Gateway(f"http://127.0.0.1:{closed_port}")
    assert gateway.post("responses", b"{}", "3-1", give_up) == (None, 0)


def test_greeting_tells_why_there_is_no_talking(closed_port: int) -> None:
    found = Gateway(f"http://127.0.0.1:{closed_port}/v1").greet()
    assert isinstance(found, Failure)
    assert found.failure_class == "gateway_unreachable"
    with run_upstream(_refuse_then_answer("401 Unauthorized", "invalid_api_key", times=9)) as upstream:
        found = Gateway(f"{upstream.url}/v1").greet()
    assert isinstance(found, Failure)
    assert found.failure_class == "key_refused"


def test_why_calls_wait_is_read_from_the_gateway() -> None:
    state = (
        b'{"servers": {"a": {"queued": 2, "retrying": {"429": 3}, "queue_reason": "rate", "most_in_flight": null,'
        b' "limits": {"requests": {"per_minute": 3000.0, "used_share": 0.99}}},'
        b' "b": {"queued": 0, "retrying": {"429": 1}}}}'
    )

    def script(conversation: Conversation) -> None:
        while conversation.read_request() is not None:
            conversation.send(to_answer(state))

    with run_upstream(script) as upstream:
        gateway = Gateway(f"{upstream.url}/v1")
        limits = {"requests": FoundLimit(3000.0, 0.99)}
        assert gateway.read_waits() == WaitReasons({"429": 4, "queued": 2}, "rate", limits)
        assert upstream.requests[0].target == "/readyz"
        gateway.close()
