"""Calls that are over are recorded soon, in batches, and each one whatever becomes of the others."""

from __future__ import annotations

import logging
from time import monotonic

import gevent
import pytest

from openai_gateway.config import ServerConfig
from openai_gateway.config.secret import Secret
from openai_gateway.upstream.progress import Progress
from openai_gateway.upstream.recorder import Recorder
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call, CallRecord
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.tail import Tail

SERVER = ServerConfig(
    name="policy_model", openai_base_url="http://u/v1", openai_api_key=Secret("sk"), openai_model="the-model"
)


def _over(request_id: str = "1", body: bytes = b"{}") -> Progress:
    call = Call(Api.CHAT, "POST", "/chat/completions", RequestHeaders(), body, request_id=request_id, is_metered=True)
    progress = Progress(call, len(body), status=200, outcome="completed", tail=Tail(monotonic))
    progress.ended = progress.started + 1.5
    return progress


@pytest.fixture
def seen() -> list[CallRecord]:
    return []


@pytest.fixture
def recorder(seen: list[CallRecord]) -> Recorder:
    return Recorder(SERVER, [seen.append], None)


def test_call_is_recorded_by_itself_soon_after(recorder: Recorder, seen: list[CallRecord]) -> None:
    recorder.add(_over())
    assert not seen
    with gevent.Timeout(5):
        while not seen:
            gevent.sleep(0.01)
    assert (seen[0].request_id, seen[0].request_bytes, seen[0].duration_s) == ("1", 2, 1.5)


def test_many_calls_are_recorded_together_in_their_order(recorder: Recorder, seen: list[CallRecord]) -> None:
    for number in range(23):
        recorder.add(_over(str(number)))
    assert not seen
    recorder.add(_over("23"))
    assert [record.request_id for record in seen] == [str(number) for number in range(24)]


def test_large_call_is_recorded_at_once_for_it_holds_memory(recorder: Recorder, seen: list[CallRecord]) -> None:
    recorder.add(_over(body=b"x" * 200_000))
    assert [record.request_bytes for record in seen] == [200_000]


def test_whoever_asks_gets_every_call(recorder: Recorder, seen: list[CallRecord]) -> None:
    recorder.add(_over())
    recorder.settle()
    recorder.settle()
    assert len(seen) == 1


def test_call_that_cannot_be_recorded_takes_no_other_with_it(
    seen: list[CallRecord], caplog: pytest.LogCaptureFixture
) -> None:
    def observe(record: CallRecord) -> None:
        if record.request_id == "bad":
            raise OSError("disk full")
        seen.append(record)

    recorder = Recorder(SERVER, [observe], None)
    for request_id in ("1", "bad", "2"):
        recorder.add(_over(request_id))
    with caplog.at_level(logging.ERROR):
        recorder.settle()
    assert [record.request_id for record in seen] == ["1", "2"]
    assert "a call could not be recorded" in caplog.text


def test_body_of_a_stream_is_let_go_and_still_counted(recorder: Recorder, seen: list[CallRecord]) -> None:
    progress = _over(body=b"x" * 1000)
    progress.drop_body()
    assert progress.call.body is None
    recorder.add(progress)
    recorder.settle()
    assert seen[0].request_bytes == 1000
