"""What a WebSocket's responses come to, event by event: slots, breaker, limits, money; without sockets."""

from __future__ import annotations

import json
from time import monotonic
from typing import Any

import gevent
import pytest

from openai_gateway.errors import BudgetExceeded, CallTimeout, ClientGone, GatewayError, UpstreamTimeout
from openai_gateway.limits.slots import Admitted, Slots
from openai_gateway.transport.watch import Timeouts
from openai_gateway.upstream.progress import Progress
from openai_gateway.websocket.turns import Turns
from openai_gateway.wire.api import Api
from openai_gateway.wire.call import Call
from openai_gateway.wire.headers import RequestHeaders
from openai_gateway.wire.retries import Outcome
from openai_gateway.wire.usage import read_stream


class Bench:
    """Turns with a relay and a tunnel that only note what they are asked."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self.sent: list[bytes] = []
        self.told: list[dict[str, Any]] = []
        self.ended: list[Progress] = []
        self.outcomes: list[Outcome] = []
        self.joined = 0
        self.dropped: list[str] = []
        self.slots = Slots(None, (), lambda: None)
        self.is_broke = False
        self.turns = Turns(
            self, timeouts or Timeouts(), self._to_call, lambda text, raw: self.sent.append(text or raw), self._tell
        )

    def _tell(self, text: bytes) -> None:
        self.told.append(json.loads(text))

    def _to_call(self, text: bytes | None) -> Call:
        if self.is_broke:
            raise BudgetExceeded("no room")
        return Call(Api.RESPONSES, "WEBSOCKET", "/responses", RequestHeaders(), text)

    def begin_turn(self, call: Call) -> Progress:
        progress = Progress(call)
        if self.slots.take():
            progress.admitted = Admitted(self.slots, None)
        return progress

    def join_turn(self, call: Call, kept: Admitted | None) -> Progress:
        self.joined += 1
        progress = Progress(call)
        progress.admitted = kept
        return progress

    def drop_turn(self, call: Call, error: GatewayError | ClientGone) -> None:
        self.dropped.append(type(error).__name__)

    def answer_turn(self, progress: Progress, outcome: Outcome, text: bytes) -> None:
        self.outcomes.append(outcome)

    def end_turn(self, progress: Progress) -> None:
        if progress.admitted is not None:
            progress.admitted.release()
        self.ended.append(progress)

    def create(self, lane: str = "") -> None:
        self.turns.take(json.dumps({"type": "response.create", **_in(lane)}).encode(), b"frames")
        gevent.sleep(0)

    def see(self, kind: str, lane: str = "", **more: Any) -> None:
        self.turns.see(json.dumps({"type": kind, **_in(lane), **more}).encode())

    @property
    def records(self) -> list[tuple[str, int | None]]:
        return [(progress.outcome, progress.status) for progress in self.ended]


def _in(lane: str) -> dict[str, str]:
    return {"stream_id": lane} if lane else {}


def test_first_event_that_is_an_error_is_an_answer_of_its_status() -> None:
    bench = Bench()
    bench.create()
    fields = {"code": "rate_limit_exceeded", "headers": {"Retry-After": "3"}}
    bench.see("error", status=429, error=fields)
    assert bench.outcomes == [Outcome(429, {"retry-after": "3"}, "rate_limit_exceeded")]
    assert bench.records == [("completed", 429)]


def test_error_after_other_events_ends_a_response_that_may_have_to_be_paid() -> None:
    bench = Bench()
    bench.create()
    bench.see("response.created")
    bench.see("error", status=500, error={"code": "server_error"})
    assert bench.outcomes == [Outcome(200, {})]
    # As a stream that ends with an error: with status 200 and no usage, so that a budget is charged the estimate.
    assert bench.records == [("completed", 200)]


def test_response_that_goes_on_after_an_error_is_a_call_of_its_own() -> None:
    bench = Bench()
    bench.create()
    bench.see("error", status=400, error={"code": "unknown_event"})
    bench.see("response.created")
    bench.see("response.completed", response={"usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}})
    assert bench.joined == 1
    assert bench.records == [("completed", 400), ("completed", 200)]


def test_what_the_upstream_begins_by_itself_is_a_call() -> None:
    bench = Bench()
    bench.create("a")
    for kind in ("response.created", "response.completed"):
        bench.see(kind, "a")
    bench.see("response.steer.pending", "a")
    assert bench.joined == 0
    for kind in ("response.created", "response.completed"):
        bench.see(kind, "a")
    assert bench.joined == 1
    assert bench.records == [("completed", 200)] * 2
    assert bench.turns.is_idle


def test_what_the_upstream_begins_by_itself_must_not_go_on_without_money() -> None:
    bench = Bench()
    bench.is_broke = True
    with pytest.raises(BudgetExceeded):
        bench.see("response.created")
    assert bench.turns.is_idle


def test_upstream_that_knows_of_no_lanes_answers_the_one_that_runs() -> None:
    bench = Bench()
    bench.create("a")
    bench.see("response.created")
    bench.see("response.completed")
    assert (bench.joined, bench.records) == (0, [("completed", 200)])


def test_a_lanes_second_response_has_all_its_time_when_the_first_is_over() -> None:
    bench = Bench(Timeouts(first_byte_s=10, idle_s=20))
    bench.create()
    bench.create()
    bench.see("response.created")
    now = monotonic()
    assert bench.turns.find_overdue(now + 15) is None
    bench.see("response.completed")
    assert bench.turns.find_overdue(monotonic() + 9) is None
    assert isinstance(bench.turns.find_overdue(monotonic() + 11), UpstreamTimeout)


def test_events_that_come_start_the_idle_time_anew() -> None:
    bench = Bench(Timeouts(idle_s=20))
    bench.create()
    bench.see("response.created")
    assert bench.turns.pass_on([memoryview(b'{"type":"response.output_text.delta"}')])
    now = monotonic() + 30
    assert bench.turns.find_overdue(now) is None
    assert isinstance(bench.turns.find_overdue(now + 21), UpstreamTimeout)


def test_total_time_of_the_config_holds() -> None:
    bench = Bench(Timeouts(total_s=5))
    bench.create()
    assert bench.turns.find_overdue(monotonic() + 4) is None
    assert isinstance(bench.turns.find_overdue(monotonic() + 6), CallTimeout)


def test_events_pass_at_once_only_if_none_begins_or_ends_a_response() -> None:
    bench = Bench()
    bench.create("a")
    delta = memoryview(b'{"type":"response.output_text.delta","stream_id":"a"}')
    assert not bench.turns.pass_on([delta])
    bench.see("response.created", "a")
    assert bench.turns.pass_on([delta, delta])
    last = memoryview(b'{"type":"response.completed","stream_id":"a"}')
    other = memoryview(b'{"type":"response.output_text.delta","stream_id":"b"}')
    for texts in ([delta, last], [delta, other], [memoryview(b"no JSON")], [memoryview(b'{"stream_id":5}')]):
        assert not bench.turns.pass_on(texts)
    bench.see("response.completed", "a")
    tail = bench.ended[0].tail
    assert tail is not None
    began = json.dumps({"type": "response.created", "stream_id": "a"})
    end = json.dumps({"type": "response.completed", "stream_id": "a"})
    assert tail.length == len(f"data: {began}\n\ndata: {end}\n\n") + 2 * len(delta)


def test_usage_of_an_event_in_several_lines_is_read() -> None:
    bench = Bench()
    bench.create()
    bench.see("response.created")
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    event = {"type": "response.completed", "response": {"model": "m", "usage": usage}}
    bench.turns.see(json.dumps(event, indent=2).encode())
    tail = bench.ended[0].tail
    assert tail is not None
    found = read_stream(tail.end(), tail.beginning()).usage
    assert found is not None
    assert (found.input_tokens, found.output_tokens) == (3, 2)


def test_end_of_the_upstream_fails_what_runs_and_that_of_the_client_does_not() -> None:
    for error, outcome in ((UpstreamTimeout("late"), "failed"), (None, "client_gone")):
        bench = Bench()
        bench.create("a")
        bench.create("b")
        bench.turns.end(error)
        assert bench.records == [(outcome, 200)] * 2
        assert bench.turns.is_idle


def _steer(bench: Bench, what: str, lane: str = "") -> None:
    bench.see(f"response.steer.{what}", lane, steer={"id": "steer_1", "previous_response_id": "resp_1"})


@pytest.mark.parametrize("last", ["response.incomplete", "response.completed"])
def test_what_follows_a_steered_response_has_the_slot_of_that(last: str) -> None:
    bench = Bench()
    bench.create("a")
    bench.see("response.created", "a")
    assert not bench.turns.pass_on([memoryview(b'{"type":"response.steer.accepted","stream_id":"a"}')])
    _steer(bench, "accepted", "a")
    bench.see(last, "a")
    assert (len(bench.records), bench.slots.in_flight, bench.turns.is_idle) == (1, 1, False)
    bench.see("response.created", "a")
    assert (bench.joined, bench.slots.in_flight) == (1, 1)
    bench.see("response.completed", "a")
    assert (len(bench.records), bench.slots.in_flight, bench.turns.is_idle) == (2, 0, True)


@pytest.mark.parametrize("what", ["pending", "failed", "create", "nothing", "end"])
def test_slot_kept_for_a_response_that_does_not_follow_is_given_back(what: str) -> None:
    bench = Bench()
    bench.create()
    bench.see("response.created")
    _steer(bench, "accepted")
    bench.see("response.completed")
    assert bench.slots.in_flight == 1
    if what == "create":
        bench.create()
        bench.see("response.created")
        bench.see("response.completed")
        assert bench.joined == 0
    elif what == "nothing":
        assert bench.turns.find_overdue(monotonic() + 60) is None
    elif what == "end":
        bench.turns.end(None)
    else:
        _steer(bench, what)
    assert (bench.slots.in_flight, bench.turns.is_idle) == (0, True)


def test_one_lane_that_hangs_fails_alone_and_ends_the_connection_when_the_others_are_done() -> None:
    bench = Bench(Timeouts(idle_s=20))
    for lane in "ab":
        bench.create(lane)
        bench.see("response.created", lane)
    assert bench.turns.find_overdue(monotonic()) is None
    assert bench.turns.pass_on([memoryview(b'{"type":"response.output_text.delta","stream_id":"b"}')])
    later = monotonic() + 30
    assert bench.turns.find_overdue(later) is None
    assert [(told["stream_id"], told["status"]) for told in bench.told] == [("a", 504)]
    # The upstream may still be at it.
    assert bench.slots.in_flight == 2
    bench.create("c")
    assert (bench.told[-1]["stream_id"], bench.told[-1]["status"], bench.dropped) == ("c", 504, ["UpstreamTimeout"])
    bench.see("response.completed", "b")
    assert bench.records == [("completed", 200)]
    overdue = bench.turns.find_overdue(later)
    assert isinstance(overdue, UpstreamTimeout)
    bench.turns.refuse(overdue)
    assert len(bench.told) == 2
    bench.turns.end(overdue)
    assert (bench.records[1:], bench.slots.in_flight) == ([("failed", 200)], 0)


def test_lane_that_hung_gives_its_slot_back_if_it_ends_after_all() -> None:
    bench = Bench(Timeouts(idle_s=20))
    bench.create("a")
    bench.create("b")
    bench.see("response.created", "a")
    bench.see("response.created", "b")
    assert bench.turns.find_overdue(monotonic()) is None
    assert bench.turns.pass_on([memoryview(b'{"type":"response.output_text.delta","stream_id":"b"}')])
    assert bench.turns.find_overdue(monotonic() + 30) is None
    bench.see("response.completed", "a")
    assert (bench.records, bench.slots.in_flight) == ([("failed", 200)], 1)
    assert isinstance(bench.ended[0].error, UpstreamTimeout)


def test_create_that_waits_when_the_connection_ends_is_recorded() -> None:
    for error, name in ((None, "ClientGone"), (UpstreamTimeout("late"), "UpstreamTimeout")):
        bench = Bench()
        for _ in range(2):
            bench.turns.take(json.dumps({"type": "response.create"}).encode(), b"frames")
        bench.turns.take(b'{"type": "response.steer"}', b"frames")
        bench.turns.end(error)
        gevent.sleep(0)
        assert (bench.sent, bench.dropped, bench.turns.is_idle) == ([], [name] * 2, True)
