"""Who gets which kept answer: k equal calls are k answers, a second run gets the same, one flight per key and asker."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from openai_gateway.recordings.key import NOBODY, compute_asker, compute_key, is_named, make_unnamed_asker
from openai_gateway.recordings.runs import Candidate, Fly, Join, RunNotes, Serve

KEY = b"k" * 32
A, B = compute_asker(None, "a"), compute_asker(None, "b")
assert A is not None
assert B is not None


def _answer(number: int, asker: bytes = NOBODY) -> Candidate:
    return Candidate(number.to_bytes(8, "big"), asker)


def test_equal_calls_of_one_run_get_different_answers_and_a_second_run_the_same(tmp_path: Path) -> None:
    there = [_answer(n) for n in range(3)]
    for name in ("first", "second"):
        run = RunNotes(tmp_path, name)
        assert [run.decide(KEY, None, there) for _ in there] == [Serve(each.id) for each in there]
        assert isinstance(run.decide(KEY, None, there), Fly)


def test_asker_that_asks_again_gets_its_own_answer_again(tmp_path: Path) -> None:
    run, there = RunNotes(tmp_path, "r"), [_answer(1), _answer(2)]
    first = run.decide(KEY, A, there)
    assert run.decide(KEY, B, there) == Serve(there[1].id)
    assert run.decide(KEY, A, there) == first == Serve(there[0].id)


def test_new_asker_gets_what_was_recorded_for_it(tmp_path: Path) -> None:
    there = [_answer(1), _answer(2, A), _answer(3, B)]
    run = RunNotes(tmp_path, "r")
    assert run.decide(KEY, B, there) == Serve(there[2].id)
    assert run.decide(KEY, A, there) == Serve(there[1].id)
    assert run.decide(KEY, None, there) == Serve(there[0].id)


def test_same_asker_joins_the_call_under_way_and_another_makes_its_own(tmp_path: Path) -> None:
    run = RunNotes(tmp_path, "r")
    assert run.decide(KEY, A, []) == Fly(A)
    assert run.decide(KEY, A, []) == Join(A)
    assert run.decide(KEY, B, []) == Fly(B)


def test_resent_call_joins_one_that_cant_be_told_from_it(tmp_path: Path) -> None:
    run = RunNotes(tmp_path, "r")
    flight = run.decide(KEY, None, [])
    assert isinstance(flight, Fly)
    assert isinstance(run.decide(KEY, None, []), Fly)
    assert isinstance(run.decide(KEY, None, [], is_resent=True), Join)
    assert isinstance(run.decide(b"o" * 32, None, [], is_resent=True), Fly)
    # One that has a name is somebody else's.
    run.decide(b"p" * 32, A, [])
    assert isinstance(run.decide(b"p" * 32, None, [], is_resent=True), Fly)


def test_answer_that_its_client_did_not_get_is_there_for_the_next(tmp_path: Path) -> None:
    run = RunNotes(tmp_path, "r")
    for is_had, second in ((False, Serve), (True, Fly)):
        key = bytes([is_had]) * 32
        flight = run.decide(key, None, [])
        assert isinstance(flight, Fly)
        if is_had:
            run.claim(key, flight.asker, _answer(1).id)
        run.land(key, flight.asker, _answer(1).id)
        assert isinstance(run.decide(key, None, [_answer(1)]), second)


def test_call_that_may_not_be_made_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    run = RunNotes(tmp_path, "r")
    assert run.decide(KEY, A, [], may_call=False) is None
    assert run.decide(KEY, A, []) == Fly(A)


def test_failed_flight_is_made_anew(tmp_path: Path) -> None:
    run = RunNotes(tmp_path, "r")
    run.decide(KEY, A, [])
    assert run.look(KEY, A) is True
    run.fail(KEY, A)
    assert run.look(KEY, A) is None
    assert run.decide(KEY, A, []) == Fly(A)


def _fly_and_wait(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    RunNotes(folder, "r").decide(KEY, A, [])
    ready.set()
    signal.pause()


def test_flight_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_fly_and_wait, args=(tmp_path, ready))
    other.start()
    assert ready.wait(60)
    run = RunNotes(tmp_path, "r")
    assert run.decide(KEY, A, []) == Join(A)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join(60)
    assert run.look(KEY, A) is None
    assert run.decide(KEY, A, []) == Fly(A)


def test_processes_agree_on_who_has_had_what(tmp_path: Path) -> None:
    here, there = RunNotes(tmp_path, "r"), RunNotes(tmp_path, "r")
    answers = [_answer(1), _answer(2)]
    assert here.decide(KEY, A, answers) == Serve(answers[0].id)
    assert there.decide(KEY, B, answers) == Serve(answers[1].id)
    assert here.decide(KEY, B, answers) == Serve(answers[1].id)
    here.decide(b"x" * 32, A, [])
    here.land(b"x" * 32, A, _answer(9).id)
    assert there.look(b"x" * 32, A) == _answer(9).id


@pytest.mark.parametrize("piece", range(1, 56, 9))
def test_torn_note_is_passed_over(piece: int, tmp_path: Path) -> None:
    run = RunNotes(tmp_path, "r")
    run.decide(KEY, A, [_answer(1)])
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(bytes(piece))
    assert RunNotes(tmp_path, "r").decide(KEY, A, [_answer(1)]) == Serve(_answer(1).id)
    assert run.decide(KEY, B, [_answer(1), _answer(2)]) == Serve(_answer(2).id)


def test_key_is_the_whole_call_whatever_the_order_of_its_keys() -> None:
    def key(body: bytes, base: str = "http://u/v1", target: str = "/responses") -> bytes:
        return compute_key(base, target, body, {})

    assert key(b'{"a":1,"b":{"y":1,"x":2}}') == key(b'{"b":{"y":1,"x":2},"a":1}')
    others = [
        key(b'{"a":1}'),
        key(b'{"a":1.0}'),
        key(b'{"a":1,"temperature":0}'),
        key(b'{"a":1}', base="http://other/v1"),
        key(b'{"a":1}', target="/chat/completions"),
        key(b'{"a":{"y":1,"x":2}}'),
        key(b'{"a":{"x":2,"y":1}}'),
        compute_key("http://u/v1", "/responses", b'{"a":1}', {"x-h": "1"}, ["x-h"]),
    ]
    assert len(set(others)) == len(others)


def test_askers_are_told_apart_by_repeat_else_by_rollout() -> None:
    assert compute_asker(None, None) is None
    assert compute_asker("1", "a") == compute_asker("1", "b") != compute_asker("2", "a")
    assert compute_asker(None, "1") != compute_asker("1", None)
    assert is_named(A)
    assert not is_named(make_unnamed_asker())
