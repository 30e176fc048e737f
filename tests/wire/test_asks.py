"""What a request tells the queue."""

from __future__ import annotations

import msgspec
import pytest

from openai_gateway.wire.api import Api
from openai_gateway.wire.asks import to_output_tokens, to_rollout_key


@pytest.mark.parametrize(
    ("body", "headers", "key"),
    [
        pytest.param(b"{}", {}, None, id="nothing"),
        pytest.param(b'{"previous_response_id": "resp_1"}', {}, '"resp_1"', id="the call before"),
        pytest.param(b'{"previous_response_id": "r"}', {"HTTP_SESSION_ID": "s"}, "s", id="a session wins over it"),
        pytest.param(b'{"prompt_cache_key": "k"}', {"HTTP_SESSION_ID": "s"}, '"k"', id="the cache's key over both"),
    ],
)
def test_rollout_is_told_by_the_most_telling(body: bytes, headers: dict[str, str], key: str | None) -> None:
    assert to_rollout_key(headers, msgspec.json.decode(body, type=dict[str, msgspec.Raw])) == key


@pytest.mark.parametrize(
    ("body", "api", "tokens"),
    [
        (b"{}", Api.CHAT, None),
        (b'{"max_tokens": 7}', Api.CHAT, 7),
        (b'{"max_tokens": 7, "max_completion_tokens": 9}', Api.CHAT, 9),
        (b'{"max_output_tokens": 1024}', Api.RESPONSES, 1024),
        (b'{"max_output_tokens": null}', Api.RESPONSES, None),
        (b'{"max_output_tokens": 1e99}', Api.RESPONSES, None),
    ],
)
def test_bound_of_the_answer_is_read(body: bytes, api: Api, tokens: int | None) -> None:
    assert to_output_tokens(msgspec.json.decode(body, type=dict[str, msgspec.Raw]), api) == tokens


def test_rollouts_key_is_kept_by_its_end_if_it_is_long() -> None:
    values = {"prompt_cache_key": msgspec.Raw(b'"' + b"x" * 1_000_000 + b'7"')}
    assert to_rollout_key({}, values) == "x" * 254 + '7"'
