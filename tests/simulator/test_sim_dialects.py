"""How each kind of upstream tells of its limits, and how it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from openai_gateway.simulator.dialects import to_duration
from openai_gateway.simulator.settings import DIALECTS
from openai_gateway.wire.rate_limits import read_dialect, read_refusal
from tests.simulator.calling import Clock, chat, make_client, respond


def to_limit_headers(answer: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items() if "ratelimit" in name.lower()}


def refuse(dialect: str, **settings: Any) -> Any:
    client = make_client(dialect=dialect, **settings)
    answers = iter(lambda: chat(client), None)
    return next(answer for answer in answers if answer.status_code != 200)


def test_answer_tells_what_was_left_when_its_call_was_admitted() -> None:
    clock = Clock()
    client = make_client(clock, rpm=60)
    stream = client.post("/v1/responses", json={"model": "m", "input": "x", "stream": True})
    clock.now_s += 30
    assert stream.headers["x-ratelimit-remaining-requests"] == "59"
    assert respond(client).headers["x-ratelimit-remaining-requests"] == "59"


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (
            "openai",
            {"limit-requests": "60", "remaining-requests": "59", "reset-requests": "1s", "limit-tokens": "1000000"}
            | {"remaining-tokens": "1000000", "reset-tokens": "0ms"},
        ),
        ("azure", {"limit-requests": "60", "remaining-requests": "59"}),
        ("groq", {"limit-requests": "100", "remaining-requests": "99", "reset-requests": "14m24s"}),
        ("gemini", {}),
        ("none", {}),
    ],
)
def test_headers_are_those_of_the_dialect(dialect: str, expected: dict[str, str]) -> None:
    headers = to_limit_headers(chat(make_client(dialect=dialect, rpm=60, rpd=100)))
    assert headers == {f"x-ratelimit-{name}": value for name, value in expected.items()}


def test_anthropic_tells_the_reset_as_a_time() -> None:
    headers = to_limit_headers(chat(make_client(dialect="anthropic", rpm=60)))
    assert headers.keys() == {f"anthropic-ratelimit-requests-{what}" for what in ("limit", "remaining", "reset")}
    _, limits = read_dialect(headers, 0.0)
    assert limits["requests"].reset_s is not None
    assert limits["requests"].reset_s > 1_700_000_000


def test_azures_responses_api_tells_nothing() -> None:
    client = make_client(dialect="azure", rpm=60, tpm=60_000)
    assert set(to_limit_headers(respond(client)).values()) == {"-1", "0"}
    assert read_dialect(to_limit_headers(respond(client)), 0.0)[0] is None


@pytest.mark.parametrize(
    ("dialect", "hints"),
    [
        ("openai", {"retry-after-ms": "1000", "retry-after": "1"}),
        ("azure", {"retry-after-ms": "1000", "retry-after": "1"}),
        ("groq", {"retry-after": "1"}),
        ("anthropic", {"retry-after": "1"}),
        ("gemini", {}),
        ("none", {}),
    ],
)
def test_hints_of_a_429_are_those_of_the_dialect(dialect: str, hints: dict[str, str]) -> None:
    answer = refuse(dialect, rpm=60)
    assert {name.lower(): value for name, value in answer.headers.items() if "retry" in name.lower()} == hints


@pytest.mark.parametrize("dialect", DIALECTS)
def test_gateway_reads_from_a_429_what_the_dialect_says(dialect: str) -> None:
    answer = refuse(dialect, rpm=60)
    headers = {name.lower(): value for name, value in answer.headers.items()}
    refusal = read_refusal(headers, answer.data, 0.0)
    assert refusal.wait_s == (None if dialect == "none" else 1)
    assert not refusal.is_too_large
    if dialect in ("openai", "groq"):
        assert (refusal.kind, refusal.limit, refusal.used, refusal.requested) == ("requests", 60, 60, 1)


@pytest.mark.parametrize("dialect", ["openai", "groq"])
def test_too_large_call_is_told_so_without_a_time_to_wait(dialect: str) -> None:
    answer = refuse(dialect, tpm=5)
    assert read_refusal({}, answer.data, 0.0).is_too_large
    assert not any("retry" in name.lower() for name, _ in answer.headers)


def test_limit_on_calls_in_flight_is_told_as_one() -> None:
    client = make_client(in_flight=1)
    with client.post("/v1/responses", json={"model": "m", "input": "x", "stream": True}, buffered=False) as stream:
        next(iter(stream.response))
        refused = chat(client)
    assert refused.status_code == 429
    assert read_refusal({}, refused.data, 0.0).kind == "in_flight"
    assert chat(client).status_code == 200


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0ms"),
        (0.012, "12ms"),
        (0.0005, "1ms"),
        (1.5, "1.5s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (86399.5, "23h59m59.5s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, expected: str) -> None:
    assert to_duration(seconds) == expected
