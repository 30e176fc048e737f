"""What an admission tells of the limits that it has found out, and what it knows of calls."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import msgspec
import pytest

from openai_gateway.config.secret import Secret
from openai_gateway.limits.admission import Admission
from openai_gateway.limits.order import Rollout
from openai_gateway.limits.queued_call import QueuedCall
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.rate_limits import RateLimit
from openai_gateway.wire.retries import Outcome


class _Server:
    """The settings that an admission reads."""

    requests_per_minute = tokens_per_minute = max_concurrent_requests = max_concurrent_requests_total = None
    max_queue = queue_timeout_s = retry_budget_s = None
    learn_limits = True
    limits_url: Secret | None = None
    openai_base_url, openai_model = "http://a/v1", "m"
    schedule = "rollouts"
    openai_default_headers: ClassVar[dict[str, str]] = {}


def _admission() -> Admission:
    server: Any = _Server()
    return Admission(server)


def test_nothing_is_told_before_a_limit_is_met() -> None:
    assert _admission().under_way().learned_limits == {}


def test_limit_of_the_headers_is_told_with_what_is_free() -> None:
    admission = _admission()
    admitted = admission.queue.take_at_once(Rollout(0.0), 10.0, is_limited=True)
    assert admitted is not None
    assert admitted.sent is not None
    admission.queue.answer(admitted.sent, {"requests": RateLimit(600.0, 500.0, 10.0)})
    found = admission.under_way().learned_limits["requests"]
    assert found.per_minute == 600.0
    assert found.free == pytest.approx(501.0, abs=1.0)


def test_workers_of_hosts_that_know_nothing_of_each_other_begin_with_few_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for workers, limits_url, first in ((1, None, 6.0), (2, None, 3.0), (8, None, 1.0), (1, Secret("redis://h"), 1.5)):
        admission = _admission()
        admission._server.limits_url = limits_url
        admission.share("key", workers)
        assert admission.limiter.window.most == first


def test_rate_learnt_from_refusals_is_told_too() -> None:
    admission = _admission()
    admission.limiter.blind.refuse(1, 0.0, 50.0, 0.0)
    assert admission.under_way().learned_limits["requests"].per_minute > 0


def test_chain_of_previous_responses_is_one_rollout() -> None:
    """However long it is; what says a key of its own is one by that."""
    admission = _admission()
    queued = [_queued(None), _queued('"resp_1"'), _queued('"resp_2"'), _queued('"resp_3"')]
    for number, each in enumerate(queued, 1):
        admission.admit(each)
        admission._follow(b'{"id": "resp_%d", "output": []}' % number, each)
    assert len({id(each.rollout) for each in queued}) == 1
    assert queued[0].rollout is not None
    assert queued[0].rollout.calls == 4


def test_call_that_was_refused_for_its_tokens_waits_as_one_of_as_many_as_the_upstream_counts() -> None:
    admission = _admission()
    queued = _queued(None)
    queued.call = msgspec.structs.replace(queued.call, is_metered=True)
    queued.request_bytes = 4000
    admission.admit(queued)
    assert queued.admitted is not None
    assert queued.admitted.sent is not None
    tokens = queued.admitted.sent.tokens
    text = f"tokens per min (TPM): Limit 60000, Used 59500, Requested {1.5 * tokens:.0f}."
    told = {"x-ratelimit-limit-tokens": "60000", "x-ratelimit-remaining-tokens": "500"}
    assert not admission.readmit(queued, Outcome(429, told), text.encode(), monotonic() + 0.01)
    assert queued.place is not None
    assert queued.place.tokens == pytest.approx(1.5 * tokens, rel=0.01)
    admission.limiter.token_factor *= 2
    assert queued.find_place_again(Rollout(0.0), 0.0, admission.limiter.token_factor) is queued.place
    assert queued.place.tokens == pytest.approx(3.0 * tokens, rel=0.01)


def _queued(rollout_key: str | None) -> QueuedCall:
    return QueuedCall(Call(Api.RESPONSES, "POST", "/responses", RequestHeaders(), b"{}", rollout_key=rollout_key))
