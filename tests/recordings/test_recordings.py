"""What becomes of a call where answers are kept: served, joined to one under way, made, or refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from openai_gateway.errors import NoRecording
from openai_gateway.recordings.kept import KeptAnswer
from openai_gateway.recordings.recordings import JOIN, RECORD, REPLAY, REUSE, Bypass, Flight, Hit, Recordings, Shared
from openai_gateway.recordings.runs import RunNotes
from openai_gateway.recordings.segments import find_segments
from openai_gateway.recordings.store import Store

BODY = b'{"model":"m","input":"x"}'


def to_answer(body: bytes = b"{}") -> KeptAnswer:
    return KeptAnswer("/responses", 200, "OK", [("content-type", "application/json")], body=body)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "kept")
    store.open()
    yield store
    store.close()


def begin(recordings: Recordings, rollout: str | None = None, **headers: str) -> Any:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return recordings.begin("/responses", BODY, given, rollout, is_stateful=False)


def _record(recordings: Recordings, body: bytes, rollout: str | None = None) -> None:
    flight = begin(recordings, rollout)
    assert isinstance(flight, Flight)
    flight.land(to_answer(body), is_had=True)


def test_second_run_gets_what_the_first_paid_for_and_no_more(store: Store) -> None:
    recordings = Recordings(store, REUSE, "http://u/v1", "boot")
    for number in range(3):
        _record(recordings, b"%d" % number)
    again = [begin(recordings, x_gateway_run="second") for _ in range(3)]
    assert [hit.answer.body for hit in again] == [b"0", b"1", b"2"]
    assert isinstance(begin(recordings, x_gateway_run="second"), Flight)


def test_answers_are_handed_out_in_the_order_their_calls_began(tmp_path: Path) -> None:
    # Two workers keep what they have answered at moments of their own.
    workers = [Store(tmp_path / "kept") for _ in range(2)]
    recordings = [Recordings(store, REUSE, "http://u/v1", "boot") for store in workers]
    for store in workers:
        store.open()
    flights = [begin(each) for each in recordings]
    for number in (1, 0):
        flights[number].land(to_answer(b"%d" % number), is_had=True)
    assert [begin(recordings[0], x_gateway_run="second").answer.body for _ in range(2)] == [b"0", b"1"]


def test_replay_makes_no_call(store: Store) -> None:
    _record(Recordings(store, RECORD, "http://u/v1", "boot"), b"1")
    replay = Recordings(store, REPLAY, "http://u/v1", "later")
    assert begin(replay).answer.body == b"1"
    with pytest.raises(NoRecording, match="recordings: replay") as caught:
        begin(replay)
    assert (caught.value.status, caught.value.code, caught.value.should_retry) == (504, "gateway_no_recording", False)


def test_record_serves_nothing(store: Store) -> None:
    recordings = Recordings(store, RECORD, "http://u/v1", "boot")
    _record(recordings, b"1")
    assert isinstance(begin(recordings, x_gateway_run="second"), Flight)


def test_cache_control_is_followed(store: Store) -> None:
    recordings = Recordings(store, REUSE, "http://u/v1", "boot")
    _record(recordings, b"1")

    def ask(directive: str, run: str) -> Any:
        return begin(recordings, cache_control=directive, x_gateway_run=run)

    assert isinstance(ask("only-if-cached", "a"), Hit)
    with pytest.raises(NoRecording, match="only-if-cached"):
        ask("only-if-cached", "a")
    assert isinstance(ask("max-age=3600", "b"), Hit)
    flight = ask("max-age=0", "c")
    assert isinstance(flight, Flight)
    assert ask("no-store", "d") == Bypass("request")
    flight = ask("no-cache", "e")
    assert isinstance(flight, Flight)
    assert flight.why == "request"


def test_call_that_leaves_something_upstream_passes_by(store: Store) -> None:
    for is_kept, expected in ((False, Bypass), (True, Flight)):
        recordings = Recordings(store, REUSE, "http://u/v1", "boot", is_stateful_kept=is_kept)
        assert isinstance(recordings.begin("/responses", BODY, {}, None, is_stateful=True), expected)
    with pytest.raises(NoRecording):
        Recordings(store, REPLAY, "http://u/v1", "boot").begin("/responses", BODY, {}, None, is_stateful=True)


@pytest.mark.parametrize("mode", [REUSE, RECORD, JOIN])
def test_fifty_equal_calls_are_one_call_and_fifty_answers(mode: str, store: Store) -> None:
    recordings = Recordings(store, mode, "http://u/v1", "boot")
    flight = begin(recordings, "r1")
    others = [gevent.spawn(begin, recordings, "r1") for _ in range(49)]
    gevent.sleep(0)
    assert flight.is_awaited()
    # Its own client leaves: the answer is for those who wait.
    flight.land(to_answer(b"1"), is_had=False)
    gevent.joinall(others, timeout=60)
    assert [(other.value.answer.body, other.value.is_joined) for other in others] == [(b"1", True)] * 49
    assert recordings.flights == {}
    assert (mode == JOIN) is (find_segments(store.folder) == [])


def test_error_of_a_call_under_way_is_shared_and_not_kept(store: Store) -> None:
    recordings = Recordings(store, REUSE, "http://u/v1", "boot")
    flight = begin(recordings, "r1")
    other = gevent.spawn(begin, recordings, "r1")
    gevent.sleep(0)
    flight.fail("error")
    flight.fail("once is enough")
    assert other.get(timeout=60) == Shared("error")
    assert isinstance(begin(recordings, "r1"), Flight)


def test_call_whose_client_left_is_made_by_who_waits(store: Store) -> None:
    recordings = Recordings(store, REUSE, "http://u/v1", "boot")
    flight = begin(recordings, "r1")
    others = [gevent.spawn(begin, recordings, "r1") for _ in range(3)]
    gevent.sleep(0)
    flight.fail()
    gevent.sleep(0.01)
    (second,) = recordings.flights.values()
    second.land(to_answer(b"2"), is_had=True)
    gevent.joinall(others, timeout=60)
    assert sorted(type(other.value).__name__ for other in others) == ["Flight", "Hit", "Hit"]


def test_waiting_client_that_leaves_is_counted_off(store: Store) -> None:
    recordings = Recordings(store, REUSE, "http://u/v1", "boot")
    flight = begin(recordings, "r1")
    other = gevent.spawn(begin, recordings, "r1")
    gevent.sleep(0)
    other.kill()
    assert not flight.is_awaited()


def test_workers_join_each_others_calls(tmp_path: Path) -> None:
    here, there = (Store(tmp_path / "kept") for _ in range(2))
    here.open()
    there.open()
    flight = begin(Recordings(here, REUSE, "http://u/v1", "boot"), "r1")
    other = gevent.spawn(begin, Recordings(there, REUSE, "http://u/v1", "boot"), "r1")
    gevent.sleep(0.01)
    flight.land(to_answer(b"1"), is_had=True)
    hit = other.get(timeout=60)
    assert (hit.answer.body, hit.is_joined) == (b"1", True)


def test_damaged_answer_is_passed_over(store: Store) -> None:
    recordings = Recordings(store, REUSE, "http://u/v1", "boot")
    _record(recordings, b"1")
    _record(recordings, b"2")
    (path,) = find_segments(store.folder)
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    assert begin(recordings, x_gateway_run="second").answer.body == b"2"


def test_full_disk_loses_the_recording_not_the_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = Recordings(store, REUSE, "http://u/v1", "boot")
    flight = begin(recordings, "r1")
    other = gevent.spawn(begin, recordings, "r1")
    gevent.sleep(0)
    monkeypatch.setattr("openai_gateway.recordings.segments.os.open", _fail)
    flight.land(to_answer(b"1"), is_had=True)
    assert other.get(timeout=60).answer.body == b"1"
    assert store.lost == 1


def _fail(*_: Any, **__: Any) -> int:
    raise OSError(28, "No space left on device")


def test_folder_that_cant_be_written_to_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "kept")
    store.open()
    _record(Recordings(store, RECORD, "http://u/v1", "boot"), b"1")
    monkeypatch.setattr("openai_gateway.recordings.store.os.access", lambda *_: False)
    monkeypatch.setattr("openai_gateway.recordings.store.tempfile.gettempdir", lambda: str(tmp_path))
    replay = Recordings(Store(tmp_path / "kept"), REPLAY, "http://u/v1", "boot")
    replay.store.open()
    assert begin(replay).answer.body == b"1"
    assert list(tmp_path.glob("openai_gateway-runs.*/*.run"))


def test_flight_of_a_run_outlasts_any_number_of_other_runs(store: Store) -> None:
    recordings = Recordings(store, REUSE, "http://u/v1", "boot")
    flight = begin(recordings, "a", x_gateway_run="slow")
    for number in range(100):
        begin(recordings, "a", x_gateway_run=f"run {number}").fail()
    # What now has the number of a file that was closed is nobody's run.
    others = [(store.folder / f"other {number}").open("w+b", buffering=0) for number in range(100)]
    for other in others:
        other.write(b"x" * 99)
    flight.land(to_answer(b"1"), is_had=True)
    assert {os.fstat(other.fileno()).st_size for other in others} == {99}
    assert begin(recordings, "a", x_gateway_run="slow").answer.body == b"1"
    for other in others:
        other.close()


def test_same_call_of_another_run_is_a_flight_of_its_own(store: Store) -> None:
    recordings = Recordings(store, RECORD, "http://u/v1", "boot")
    first, second = (begin(recordings, "a", x_gateway_run=name) for name in ("one", "two"))
    waiting = gevent.spawn(begin, recordings, "a", x_gateway_run="one")
    gevent.sleep(0)
    second.land(to_answer(b"2"), is_had=True)
    first.land(to_answer(b"1"), is_had=True)
    assert waiting.get(timeout=60).answer.body == b"1"


def test_flight_whose_end_cannot_be_noted_lets_those_go_who_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = Recordings(store, RECORD, "http://u/v1", "boot")
    flight = begin(recordings, "a")
    waiting = gevent.spawn(begin, recordings, "a")
    gevent.sleep(0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: 0)
        flight.fail()
    again = waiting.get(timeout=60)
    assert isinstance(again, Flight)
    again.fail()
    assert recordings.flights == {}


def test_folder_that_is_named_like_a_segment_costs_the_answers_nothing(store: Store) -> None:
    _record(Recordings(store, RECORD, "http://u/v1", "boot"), b"1")
    (store.folder / "0.segment").mkdir()
    (store.folder / "0.segment" / "x").touch()
    assert begin(Recordings(store, REPLAY, "http://u/v1", "later")).answer.body == b"1"


def test_answer_is_its_askers_before_another_can_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = Store(tmp_path / "kept"), Store(tmp_path / "kept")
    here.open()
    there.open()
    other = Recordings(there, REUSE, "http://u/v1", "boot")
    flight = begin(Recordings(here, REUSE, "http://u/v1", "boot"), "r1")
    land, seen = RunNotes.land, []

    def look_first(run: RunNotes, *arguments: Any) -> None:
        # The answer lies on the disk by now.
        seen.append(begin(other, "r2"))
        land(run, *arguments)

    monkeypatch.setattr(RunNotes, "land", look_first)
    flight.land(to_answer(b"1"), is_had=True)
    assert [type(found) for found in seen] == [Flight]
