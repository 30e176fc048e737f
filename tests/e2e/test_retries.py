"""Retries through the real stack: they agree with the SDKs, can't storm, wait when told to, and end when they must."""

from __future__ import annotations

import gzip
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.upstreams import (
    PATHS,
    Conversation,
    ScriptedUpstream,
    answer_always,
    run_upstream,
    to_answer,
    to_request_body,
)

QUOTA = b'{"error": {"message": "quota", "type": "insufficient_quota", "param": null, "code": "insufficient_quota"}}'
BILLING = b'{"error": {"message": "pay", "type": "billing_not_active", "param": null, "code": "billing_not_active"}}'
RATE = b'{"error": {"message": "slow down", "type": "requests", "param": null, "code": "rate_limit_exceeded"}}'


@pytest.fixture(scope="module")
def upstream_of_all() -> Iterator[ScriptedUpstream]:
    with run_upstream(answer_always) as running:
        yield running


@pytest.fixture
def upstream(upstream_of_all: ScriptedUpstream) -> ScriptedUpstream:
    upstream_of_all.requests.clear()
    return upstream_of_all


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream_of_all: ScriptedUpstream) -> Iterator[Gunicorn]:
    """A gateway whose breaker and retry ratio are off, for tests that look at single calls."""
    settings = {"breaker_cooldown_s": None, "retry_ratio": None}
    with run_gateway(tmp_path_factory.mktemp("retries"), upstream_of_all.url, settings) as running:
        yield running


def _answer(status: str, headers: str = "", body: bytes = b"{}", times: int = 10_000) -> Callable[[Conversation], None]:
    """Return a script that answers so `times` times over all connections, then with 200."""
    left = [times]
    lock = threading.Lock()

    def script(talk: Conversation) -> None:
        while talk.read_request() is not None:
            with lock:
                left[0] -= 1
                fails = left[0] >= 0
            more = f"content-type: application/json\r\n{headers}"
            talk.send(to_answer(body, status=status, headers=more) if fails else to_answer(b'{"ok": true}'))

    return script


def _post(gateway: Gunicorn, **kwargs: Any) -> requests.Response:
    return requests.post(gateway.url + PATHS["responses"], json=to_request_body("responses"), timeout=60, **kwargs)


@pytest.mark.parametrize(
    ("status", "headers", "body", "attempts"),
    [
        pytest.param("500 Oops", "retry-after-ms: 10\r\n", b"{}", 3, id="a server error is tried again"),
        pytest.param("409 Locked", "retry-after-ms: 10\r\n", b"{}", 3, id="a lock timeout is tried again"),
        pytest.param("408 Late", "retry-after-ms: 10\r\n", b"{}", 3, id="a request timeout is tried again"),
        pytest.param("400 Bad", "", b"{}", 1, id="a bad request is not"),
        pytest.param(
            "400 Bad", "x-should-retry: true\r\nretry-after-ms: 10\r\n", b"{}", 3, id="unless the upstream says so"
        ),
        pytest.param("500 Oops", "x-should-retry: false\r\n", b"{}", 1, id="nor is what the upstream says is final"),
        pytest.param("500 Oops", "retry-after: 121\r\n", b"{}", 1, id="nor what would take over two minutes"),
        pytest.param("429 Quota", "retry-after-ms: 10\r\n", QUOTA, 1, id="nor used-up quota"),
        pytest.param("429 Quota", "retry-after-ms: 10\r\n", BILLING, 1, id="nor an account that is not paid for"),
        pytest.param("504 Late", "retry-after-ms: 10\r\n", b"{}", 2, id="what timed out is tried again once"),
        pytest.param("401 No", "", b"{}", 1, id="nor a refused key"),
    ],
)
def test_failure_is_tried_again_as_the_sdks_would(
    status: str, headers: str, body: bytes, attempts: int, gateway: Gunicorn, upstream: ScriptedUpstream
) -> None:
    upstream.script = _answer(status, headers, body)
    answer = _post(gateway)
    assert answer.status_code == int(status[:3])
    assert answer.content == body
    assert len(upstream.requests) == attempts
    assert answer.headers.get("x-gateway-retries", "") == ",".join([status[:3]] * (attempts - 1))
    assert (answer.headers.get("x-should-retry") == "false") == (attempts > 1 or "x-should-retry: false" in headers)


def test_calls_that_wait_for_another_attempt_are_told_with_their_reason(
    gateway: Gunicorn, upstream: ScriptedUpstream
) -> None:
    upstream.script = _answer("429 Slow", "retry-after: 1\r\n", RATE, times=1)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(_post, gateway)
        eventually(lambda: _to_retrying(gateway) == {"429": 1})
        answer = call.result()
    assert answer.ok
    assert (answer.headers["x-gateway-attempts"], answer.headers["x-gateway-retries"]) == ("2", "429")
    assert int(answer.headers["x-gateway-wait-ms"]) >= 1000
    assert _to_retrying(gateway) == {}


def _to_retrying(gateway: Gunicorn) -> dict[str, int]:
    (state,) = requests.get(f"{gateway.url}/readyz", timeout=60).json()["servers"].values()
    retrying: dict[str, int] = state["retrying"]
    return retrying


def test_rate_limit_costs_no_retry(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.script = _answer("429 Slow", "retry-after-ms: 10\r\n", RATE, times=3)
    with run_gateway(tmp_path, upstream.url, {"max_retries": 0, "retry_budget_s": 60}) as gateway:
        answer = _post(gateway)
    assert answer.status_code == 200
    assert answer.headers["x-gateway-retries"] == "429,429,429"
    assert answer.headers["x-gateway-queue-reason"] in ("rate", "pause")
    assert float(answer.headers["x-gateway-queue-ms"]) > 0


@pytest.mark.parametrize("hint", ["", "retry-after: 1\r\n"])
def test_upstream_that_only_refuses_holds_nobody_up_for_longer_than_one_call(
    tmp_path: Path, upstream: ScriptedUpstream, hint: str
) -> None:
    """Those behind the one that asks have had no turn yet, and it is no use to give each of them its own time."""
    upstream.script = _answer("429 Slow", hint, RATE, times=10**6)
    with (
        run_gateway(tmp_path, upstream.url, {"retry_budget_s": 3}) as gateway,
        ThreadPoolExecutor(40) as pool,
    ):
        began = time.monotonic()
        answers = list(pool.map(lambda _: _post(gateway), range(40)))
        took_s = time.monotonic() - began
    assert {answer.status_code for answer in answers} == {429}
    assert took_s < 20, "each took its own time, one after the other"
    behind = [answer for answer in answers if answer.json()["error"]["code"] == "gateway_queue_timeout"]
    assert behind
    assert all("refuses" in answer.json()["error"]["message"] for answer in behind)


def test_refusal_too_large_to_keep_goes_out_and_its_connection_is_not_kept_waiting(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.script = _answer("429 Slow", "retry-after: 30\r\n", RATE + b" " * 2_000_000, times=1)
    with run_gateway(tmp_path, upstream.url, {"retry_budget_s": 60}) as gateway:
        answer = _post(gateway)
        assert (answer.status_code, len(answer.content)) == (429, len(RATE) + 2_000_000)
        assert _post(gateway).status_code == 200


def test_limit_that_headers_tell_is_kept_without_a_refusal(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """40 calls at 600 a minute, of which 10 are left at first."""
    lock, started, admitted, refused = threading.Lock(), time.monotonic(), [0], [0]

    def script(talk: Conversation) -> None:
        while talk.read_request() is not None:
            with lock:
                left = 10 + 10 * (time.monotonic() - started) - admitted[0]
                admitted[0] += left >= 1
                refused[0] += left < 1
            told = f"x-ratelimit-limit-requests: 600\r\nx-ratelimit-remaining-requests: {max(0, int(left - 1))}\r\n"
            status = "200 OK" if left >= 1 else "429 Slow"
            talk.send(to_answer(b"{}", status=status, headers=f"content-type: application/json\r\n{told}"))

    upstream.script = script
    with run_gateway(tmp_path, upstream.url, {"retry_budget_s": 60}) as gateway, ThreadPoolExecutor(40) as pool:
        started = time.monotonic()
        answers = list(pool.map(lambda _: _post(gateway), range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert any(answer.headers.get("x-gateway-queue-reason") == "rate" for answer in answers)
    assert refused[0] <= 2, "the limit was in every answer"


def test_call_that_is_always_refused_holds_up_nobody_and_gets_the_upstreams_own_answer(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            headers = "content-type: application/json\r\n"
            if b"poison" in request.body:
                talk.send(to_answer(RATE, status="429 Slow", headers=f"{headers}retry-after: 1\r\n"))
            else:
                talk.send(to_answer(b"{}", headers=headers))

    upstream.script = script
    with run_gateway(tmp_path, upstream.url, {"retry_budget_s": 60}) as gateway, ThreadPoolExecutor(8) as pool:
        body = {"model": "m", "input": "poison"}
        poison = pool.submit(requests.post, gateway.url + PATHS["responses"], json=body, timeout=60)
        waited_ms = 0.0
        while not poison.done():
            for answer in pool.map(lambda _: _post(gateway), range(7)):
                assert answer.status_code == 200
                waited_ms = max(waited_ms, float(answer.headers["x-gateway-queue-ms"]))
    assert poison.result().status_code == 429
    assert poison.result().content == RATE
    assert sum(b"poison" in request.body for request in upstream.requests) == 3
    assert waited_ms < 500, "others waited for the Retry-After of one call"


def test_several_calls_that_are_always_refused_without_a_word_are_answered_while_others_go_on(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if b"poison" in request.body:
                talk.send(to_answer(b"{}", status="429 No"))
            else:
                time.sleep(0.2)
                talk.send(to_answer(b"{}"))

    upstream.script = script
    with run_gateway(tmp_path, upstream.url, {"retry_budget_s": 60}) as gateway, ThreadPoolExecutor(20) as pool:
        assert [each.status_code for each in pool.map(lambda _: _post(gateway), range(10))] == [200] * 10
        body = {"model": "m", "input": "poison"}
        poison = [pool.submit(requests.post, gateway.url + PATHS["responses"], json=body, timeout=60) for _ in range(3)]
        answered = 0
        while not all(each.done() for each in poison):
            answered += sum(each.status_code == 200 for each in pool.map(lambda _: _post(gateway), range(10)))
        assert [each.result().status_code for each in poison] == [429] * 3
        assert answered >= 10, "others were held up"
        assert float(_post(gateway).headers["x-gateway-queue-ms"]) < 100, "a limit is kept that there never was"
    assert sum(b"poison" in request.body for request in upstream.requests) <= 24


@pytest.mark.parametrize(
    "text", ["Request too large for m on tokens per min (TPM): Limit 3, Requested 4.", "Limit 3, Requested 4."]
)
def test_call_above_the_whole_limit_is_not_tried_again(
    text: str, gateway: Gunicorn, upstream: ScriptedUpstream
) -> None:
    upstream.script = _answer("429 Slow", "", b'{"error": {"message": "%s"}}' % text.encode())
    assert _post(gateway).status_code == 429
    assert len(upstream.requests) == 1


def test_wait_of_a_call_that_gave_up_in_the_queue_is_told(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    settings = {"max_concurrent_requests": 1, "queue_timeout_s": 0.3}
    release = threading.Event()

    def script(talk: Conversation) -> None:
        while talk.read_request() is not None:
            release.wait(120)
            talk.send(to_answer(b"{}"))

    upstream.script = script
    with run_gateway(tmp_path, upstream.url, settings) as gateway, ThreadPoolExecutor(1) as pool:
        first = pool.submit(_post, gateway)
        eventually(lambda: upstream.requests)
        answer = _post(gateway)
        release.set()
        assert first.result().status_code == 200
    assert answer.json()["error"]["code"] == "gateway_queue_timeout"
    assert float(answer.headers["x-gateway-queue-ms"]) >= 290
    assert answer.headers["x-gateway-queue-reason"] == "slot"


def test_failures_other_than_rate_limits_are_bounded_by_the_retry_ratio(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.script = _answer("503 Down", "retry-after-ms: 1\r\n")
    calls = 100
    with run_gateway(tmp_path, upstream.url, {"max_retries": 20}) as gateway, ThreadPoolExecutor(20) as pool:
        assert {answer.status_code for answer in pool.map(lambda _: _post(gateway), range(calls))} == {503}
    assert len(upstream.requests) <= calls * 1.2 + 11


def test_call_that_times_out_is_tried_twice_however_many_retries_there_are(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    def script(talk: Conversation) -> None:
        if talk.read_request() is not None:
            talk.wait_until_closed()

    upstream.script = script
    settings = {"max_retries": 100, "retry_ratio": None, "first_byte_timeout_s": 0.3, "retry_budget_s": 60}
    with run_gateway(tmp_path, upstream.url, settings) as gateway:
        answer = _post(gateway)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    assert len(upstream.requests) == 2


def test_retry_after_beyond_the_budget_goes_out_at_once_and_within_it_is_waited_for(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """However long that is: 120 s are no bound of the queue's."""
    upstream.script = _answer("429 Slow", "retry-after: 130\r\n", RATE, times=2)
    with (
        run_gateway(tmp_path, upstream.url, {"retry_budget_s": 60}) as hasty,
        run_gateway(tmp_path, upstream.url, {"retry_budget_s": 600}) as patient,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = _post(hasty)
        assert (answer.status_code, answer.content, answer.headers["x-gateway-attempts"]) == (429, RATE, "1")
        waiting = pool.submit(_post, patient)
        eventually(lambda: _to_retrying(patient) == {"429": 1})
        assert _post(patient).status_code == 200, "one call's Retry-After held up another"
        patient.stop()
        assert waiting.result().status_code == 503


def test_overloaded_upstream_is_no_limit(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    body = b'{"error": {"message": "m", "type": "server_error", "param": null, "code": "server_is_overloaded"}}'
    upstream.script = _answer("503 Busy", "retry-after-ms: 10\r\n", body, times=2)
    with run_gateway(tmp_path, upstream.url, {"max_retries": 2}) as gateway:
        answer = _post(gateway)
        assert (answer.status_code, answer.headers["x-gateway-retries"]) == (200, "503,503")
        metrics = requests.get(f"{gateway.url}/metrics", timeout=60).text
    assert "learned_limit_per_minute{" not in metrics


def test_retries_end_with_their_budget_of_time(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.script = _answer("429 Slow", "retry-after-ms: 200\r\n", RATE)
    with run_gateway(tmp_path, upstream.url, {"max_retries": 1000, "retry_budget_s": 2}) as gateway:
        assert _post(gateway).status_code == 429
    assert 2 <= len(upstream.requests) <= 11


def test_sdk_does_not_multiply_the_gateways_retries(gateway: Gunicorn, upstream: ScriptedUpstream) -> None:
    upstream.script = _answer("500 Oops", "retry-after-ms: 10\r\n")
    client = openai.OpenAI(api_key="x", base_url=f"{gateway.url}/v1", max_retries=5)
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="m", input="x")
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_breaker_refuses_in_its_own_words_until_a_probe_succeeds(
    encoding: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    body = QUOTA if encoding == "identity" else gzip.compress(QUOTA)
    upstream.script = _answer("429 Quota", f"content-encoding: {encoding}\r\n", body)
    cooldown_s = 2.0
    settings = {"breaker_cooldown_s": cooldown_s, "max_concurrent_requests": 1}
    with run_gateway(tmp_path, upstream.url, settings) as gateway, ThreadPoolExecutor(30) as pool:
        started = time.monotonic()
        answers = list(pool.map(lambda _: _post(gateway), range(30)))
        # On a busy machine there may have been time for a probe.
        most = 2 + (time.monotonic() - started) / cooldown_s
        assert {answer.status_code for answer in answers} == {429}
        assert {answer.json()["error"]["code"] for answer in answers} == {"insufficient_quota"}
        asked = len(upstream.requests)
        assert sum(answer.json() == json.loads(QUOTA) for answer in answers) == asked
        assert 2 <= asked <= most, "calls went on after two final answers"
        assert answers[-1].headers["x-should-retry"] == "false"
        assert requests.get(f"{gateway.url}/readyz", timeout=60).status_code == 503
        eventually(lambda: _post(gateway).json() == json.loads(QUOTA))
        assert _post(gateway).json() != json.loads(QUOTA)
        assert len(upstream.requests) == asked + 1, "only the probe was to be sent"
        upstream.script = answer_always
        eventually(lambda: _post(gateway).status_code == 200)
        assert requests.get(f"{gateway.url}/readyz", timeout=60).status_code == 200


@pytest.mark.parametrize("header", ["OpenAI-Organization", "OpenAI-Project", "OpenAI-Beta"])
def test_what_a_clients_own_header_is_refused_for_stops_nobody_else(
    header: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            is_wrong = header.lower() in request.headers
            talk.send(to_answer(b"{}", status="401 No") if is_wrong else to_answer(b"{}"))

    upstream.script = script
    with run_gateway(tmp_path, upstream.url) as gateway:
        assert [_post(gateway, headers={header: "another"}).status_code for _ in range(3)] == [401] * 3
        assert [_post(gateway).status_code for _ in range(2)] == [200] * 2


@pytest.mark.parametrize("name", ["OpenAI-Project", "openai-organization"])
def test_limit_of_a_clients_own_account_holds_up_nobody_else(
    name: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    def limit_one(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            limits = "retry-after: 60\r\nx-ratelimit-limit-requests: 1\r\nx-ratelimit-remaining-requests: 0\r\n"
            body = b'{"error": {"code": "rate_limit_exceeded", "message": "Rate limit reached"}}'
            is_limited = name.lower() in request.headers
            talk.send(to_answer(body, status="429 No", headers=limits) if is_limited else to_answer(b'{"ok": true}'))

    upstream.script = limit_one
    with run_gateway(tmp_path, upstream.url, {"max_retries": 0}) as gateway:
        assert _post(gateway, headers={name: "mine"}).status_code == 429
        for _ in range(3):
            assert int(_post(gateway).headers["x-gateway-queue-ms"]) < 30_000
        # The gateway's own header is nobody's but its own.
        assert _post(gateway, headers={name.replace("-", "_"): "mine"}).status_code == 200


def test_new_key_in_the_file_is_used_by_queued_calls_and_closes_the_breaker(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    may_answer = threading.Event()

    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            is_good = request.headers["authorization"] == "Bearer sk-new"
            if request.headers.get("x-client-request-id") == "first":
                may_answer.wait(120)
            talk.send(to_answer(b"{}") if is_good else to_answer(b"{}", status="401 No"))

    upstream.script = script
    key_file = tmp_path / "key"
    key_file.write_text("sk-old\n")
    settings = {
        "openai_api_key": None,
        "openai_api_key_file": str(key_file),
        "breaker_cooldown_s": 300,
        "max_concurrent_requests": 1,
    }
    with run_gateway(tmp_path, upstream.url, settings) as gateway, ThreadPoolExecutor(3) as pool:
        assert [_post(gateway).status_code for _ in range(3)] == [401] * 3
        assert len(upstream.requests) == 2
        _replace_key(key_file, "sk-newer-but-wrong")
        assert _post(gateway).status_code == 401
        assert len(upstream.requests) == 3
        first = pool.submit(_post, gateway, headers={"x-client-request-id": "first"})
        eventually(lambda: len(upstream.requests) == 4)
        queued = pool.submit(_post, gateway)
        eventually(lambda: gateway.inspect()["queued"] == 1)
        _replace_key(key_file, "sk-new")
        may_answer.set()
        assert first.result().status_code == 401, "was sent with the old key, whose refusal opens nothing"
        assert queued.result().status_code == 200
        assert _post(gateway).status_code == 200


def _replace_key(key_file: Path, key: str) -> None:
    replacement = key_file.with_suffix(".new")
    replacement.write_text(f"{key}\n")
    replacement.rename(key_file)
    # The file is looked at once a second.
    time.sleep(1.1)


def test_call_is_sent_no_more_often_than_retries_allow(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A kept connection that breaks has the request sent anew: that counts, for the upstream may act on each."""

    def answer_once(talk: Conversation) -> None:
        talk.read_request()
        talk.send(to_answer(b"{}"))
        talk.read_request()

    upstream.script = answer_once
    with run_gateway(tmp_path, upstream.url, {"max_retries": 0}) as gateway:
        assert _post(gateway).status_code == 200
        answer = _post(gateway)
        assert (answer.status_code, len(upstream.requests)) == (502, 2)
        assert answer.headers["x-gateway-attempts"] == "1"
    with run_gateway(tmp_path, upstream.url, {"max_retries": 2}) as gateway:
        assert _post(gateway).status_code == 200
        before = len(upstream.requests)
        upstream.script = lambda talk: talk.read_request() and None
        answer = _post(gateway)
        assert (answer.status_code, len(upstream.requests) - before) == (502, 3)
        assert answer.headers["x-gateway-attempts"] == "3"


@pytest.mark.parametrize("has_sdk", [False, True], ids=["plain callers", "SDK callers"])
def test_upstream_that_always_says_429_is_not_stormed(
    has_sdk: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.script = _answer("429 Slow", "retry-after: 1\r\n", RATE)
    length_s, callers, is_over = 4.0, 50, threading.Event()
    ends: list[type[Exception]] = []

    def call_on(client: openai.OpenAI) -> None:
        while not is_over.is_set():
            with pytest.raises(openai.APIError) as raised:
                client.responses.create(model="m", input="x")
            if not is_over.is_set():
                ends.append(raised.type)

    with run_gateway(tmp_path, upstream.url, {"retry_budget_s": 3}) as gateway, ThreadPoolExecutor(callers) as pool:
        client = openai.OpenAI(api_key="x", base_url=f"{gateway.url}/v1", max_retries=2 if has_sdk else 0)
        began = time.monotonic()
        calls = [pool.submit(call_on, client) for _ in range(callers)]
        try:
            eventually(lambda: ends and time.monotonic() > began + length_s)
            took_s, sent = time.monotonic() - began, len(upstream.requests)
        finally:
            # Nobody waits for the calls that are under way now: the last would come to its end in a minute.
            is_over.set()
            gateway.stop(signal.SIGQUIT)
        for call in calls:
            call.result()
    assert set(ends) == {openai.RateLimitError}
    # One wave of callers a pause of one second, and the wave at the start.
    assert sent <= callers * (took_s + 1), f"{sent} upstream requests in {took_s:.1f} s"
