"""Captures are written before answers end, wait for nobody for long, and what is missing is marked and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable

import gevent
import pytest

from openai_gateway.accounting import capturing
from openai_gateway.accounting.capturing import ServerCapturer
from openai_gateway.wire.call import CallRecord
from tests.support.records import to_record


class _Captures:
    """Keeps lines in a list; `fail` is called before each is."""

    def __init__(self, fail: Callable[[], None] = lambda: None) -> None:
        self.lines: list[bytes] = []
        self.incomplete: list[str] = []
        self.lost: list[str] = []
        self.threads: set[int] = set()
        self._fail = fail

    def to_line(self, record: CallRecord, request: bytes, answer: bytes | None, *, is_stream: bool) -> bytes:
        self.threads.add(threading.get_ident())
        return request

    def append(self, rollout_id: str, line: bytes) -> None:
        self._fail()
        self.lines.append(line)

    def mark_incomplete(self, rollout_id: str) -> None:
        self.incomplete.append(rollout_id)

    def count_lost(self, rollout_id: str, why: str) -> None:
        self.lost.append(why)


def _capture(capturer: ServerCapturer, request: bytes = b"{}") -> None:
    capturer.capture(to_record(rollout_id="r"), request, b"{}", is_stream=False)


def test_line_is_there_on_return_and_was_made_elsewhere() -> None:
    captures = _Captures()
    _capture(ServerCapturer(captures))
    assert (captures.lines, captures.lost, captures.incomplete) == ([b"{}"], [], [])
    assert threading.get_ident() not in captures.threads


def test_held_lock_is_tried_again() -> None:
    held = iter([BlockingIOError(), BlockingIOError(), None])

    def fail() -> None:
        error = next(held)
        if error is not None:
            raise error

    captures = _Captures(fail)
    _capture(ServerCapturer(captures))
    assert (captures.lines, captures.lost) == ([b"{}"], [])


@pytest.mark.parametrize(
    ("error", "why"),
    [
        pytest.param(OSError(28, "No space left on device"), "No space left on device", id="full disk"),
        pytest.param(BlockingIOError(), "another process holds its lock", id="lock held for good"),
        pytest.param(ValueError("odd"), "odd", id="anything else"),
    ],
)
def test_call_that_cant_be_captured_is_told(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capturing, "_LOCK_WAIT_S", 0.0)

    def fail() -> None:
        raise error

    captures = _Captures(fail)
    _capture(ServerCapturer(captures))
    assert (captures.lines, captures.lost, captures.incomplete) == ([], [why], ["r"])
    assert capfd.readouterr().err == "", "gevent has printed no traceback"


def test_disk_that_does_not_answer_holds_up_nobody_and_each_call_but_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "_WAIT_S", 0.5)
    answered = threading.Event()
    captures = _Captures(lambda: answered.wait(120) and None)
    capturer = ServerCapturer(captures)
    turns = 0

    def count_turns() -> None:
        nonlocal turns
        while True:
            gevent.sleep(0.01)
            turns += 1

    others = gevent.spawn(count_turns)
    _capture(capturer, b"late")
    assert turns > 0
    for _ in range(100):
        _capture(capturer)
    others.kill()
    assert captures.lost == ["the disk does not answer"] * 101
    answered.set()
    with gevent.Timeout(10):
        while captures.lines != [b"late"]:
            gevent.sleep(0.01)
    gevent.sleep(0.05)
    _capture(capturer, b"next")
    assert captures.lines == [b"late", b"next"]
