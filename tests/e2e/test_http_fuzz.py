"""Wild requests against real gunicorn: whatever comes, the answer is a 4xx in OpenAI's form or the upstream's own."""

from __future__ import annotations

import http.client
import string
from collections.abc import Iterator

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.processes import Gunicorn, run_gateway
from tests.support.upstreams import answer_always, run_upstream

PATHS = st.one_of(
    st.sampled_from(["/v1/responses", "/v1/chat/completions", "/v1/models", "/", "/v1/responses/r1/cancel"]),
    st.text(string.ascii_letters + string.digits + "/._-~%?=&;:@!", max_size=60).map(lambda tail: "/v1/" + tail),
    st.text(string.ascii_letters + "/.%", max_size=30).map(lambda tail: "/ng-rollout/" + tail),
)
BODIES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b'{"input": "x"}', b'{"messages": []}', b'{"input": "x", "stream": true}', b"{", b"[]"]),
)
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "accept", "x-anything", "content-encoding", "accept-encoding", "te", "expect"]),
    st.text(string.ascii_letters + string.digits + "/;=,. -", max_size=20).map(str.strip),
    max_size=3,
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    folder = tmp_path_factory.mktemp("fuzz")
    with run_upstream(answer_always) as upstream, run_gateway(folder, upstream.url) as running:
        yield running


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]), PATHS, BODIES, HEADERS)
def test_any_request_is_answered_as_the_contract_says(
    gateway: Gunicorn, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, body, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    assert answer.status < 500
    is_ours = (answer.getheader("content-type") or "").startswith("application/json")
    if answer.status >= 400 and method != "HEAD" and is_ours:
        assert b'"error"' in content


def test_nothing_is_held_after_the_storm_and_nothing_unexpected_was_logged(gateway: Gunicorn) -> None:
    found = gateway.inspect()
    assert found["in_flight"] == 0
    assert "Traceback" not in gateway.log()
    assert requests.get(f"{gateway.url}/healthz", timeout=60).ok
