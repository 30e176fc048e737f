"""What upstreams of each dialect say of their limits is understood; what means nothing is nothing."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_gateway.wire.rate_limits import RateLimit, Refusal, read_dialect, read_refusal

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("headers", "dialect", "limits"),
    [
        pytest.param({}, None, {}, id="nothing"),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "5000",
                "x-ratelimit-remaining-requests": "4999",
                "x-ratelimit-reset-requests": "12ms",
                "x-ratelimit-limit-tokens": "4000000",
                "x-ratelimit-remaining-tokens": "3999984",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            "openai",
            {"requests": RateLimit(5000, 4999, 0.012), "tokens": RateLimit(4_000_000, 3_999_984, 360)},
            id="OpenAI",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "-1",
                "x-ratelimit-remaining-requests": "-1",
                "x-ratelimit-reset-requests": "0",
                "x-ratelimit-limit-tokens": "0",
                "x-ratelimit-remaining-tokens": "0",
            },
            None,
            {},
            id="Azure, which doesn't tell",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "14400",
                "x-ratelimit-remaining-requests": "14370",
                "x-ratelimit-reset-requests": "2m59.56s",
            },
            "openai",
            {"requests": RateLimit(14_400, 14_370, 179.56)},
            id="Groq, requests a day",
        ),
        pytest.param(
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2026-01-01T12:00:01Z",
            },
            "anthropic",
            {"requests": RateLimit(50, 49, 1.0)},
            id="Anthropic, a time of day",
        ),
        pytest.param(
            {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "20", "ratelimit-reset": "30"},
            "ietf",
            {"requests": RateLimit(100, 20, 30)},
            id="the IETF's draft",
        ),
        pytest.param(
            {
                "x-ratelimit-limit": "20",
                "x-ratelimit-remaining": "0",
                "x-ratelimit-reset": str(int(NOW * 1000) + 2500),
            },
            "plain",
            {"requests": RateLimit(20, 0, 2.5)},
            id="a Unix time in milliseconds",
        ),
        pytest.param(
            {"x-ratelimit-remaining-requests": "nan", "x-ratelimit-limit-requests": "many"}, None, {}, id="no numbers"
        ),
    ],
)
def test_limits_are_read_in_each_dialect(
    headers: dict[str, str], dialect: str | None, limits: dict[str, RateLimit]
) -> None:
    found, read = read_dialect(headers, NOW)
    assert found == dialect
    assert read.keys() == limits.keys()
    for kind, limit in limits.items():
        assert (read[kind].limit, read[kind].remaining) == (limit.limit, limit.remaining)
        assert read[kind].reset_s == pytest.approx(limit.reset_s, abs=1e-3)


@pytest.mark.parametrize(
    ("headers", "text", "refusal"),
    [
        pytest.param(
            {},
            "Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 30,000, Used 29500, "
            "Requested 1200. Please try again in 1.4s. Visit https://x to learn more.",
            Refusal("tokens", 1.4, 30_000, 29_500, 1200),
            id="OpenAI's text",
        ),
        pytest.param(
            {"retry-after-ms": "250", "retry-after": "1"},
            "Rate limit reached on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s.",
            Refusal("requests", 0.25, 3, 3, 1),
            id="a header wins over the text",
        ),
        pytest.param(
            {},
            "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 45000.",
            Refusal("tokens", None, 30_000, None, 45_000, True),
            id="a call that can never pass",
        ),
        pytest.param(
            {}, "You exceeded your quota. Please retry in 46.5s.", Refusal(None, 46.5), id="Gemini's text, no headers"
        ),
        pytest.param({}, "Please retry in 46s.", Refusal(None, 46.0), id="Gemini's, in whole seconds"),
        pytest.param({}, "Please try again in 6m0s.", Refusal(None, 360.0), id="minutes"),
        pytest.param({}, "Please try again in 120ms. Visit", Refusal(None, 0.12), id="milliseconds"),
        pytest.param({}, "slow_down", Refusal("slow_down"), id="grown too fast"),
        pytest.param({}, "Too many concurrent requests", Refusal("in_flight"), id="calls in flight"),
        pytest.param({"retry-after": "7"}, "slow", Refusal(None, 7.0), id="only Retry-After"),
        pytest.param({}, "", Refusal(), id="nothing"),
    ],
)
def test_refusals_say_which_limit_and_its_numbers(headers: dict[str, str], text: str, refusal: Refusal) -> None:
    assert read_refusal(headers, b'{"error": {"message": "%s"}}' % text.encode(), NOW) == refusal


@given(st.dictionaries(st.sampled_from(["x-ratelimit-limit-requests", "retry-after", "ratelimit-reset"]), st.text()))
def test_no_header_value_is_too_odd_to_be_read(headers: dict[str, str]) -> None:
    read_dialect(headers, NOW)
    read_refusal(headers, repr(headers).encode(), NOW)
