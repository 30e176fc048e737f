"""The file that workers share: never above the cap, never stuck, and right again when workers are killed."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from openai_gateway.accounting.spend_file import SpendFile
from openai_gateway.limits import sharing
from openai_gateway.limits.attempts import Bounds, ConfiguredLimits, Tries
from openai_gateway.limits.blind import BlindRate
from openai_gateway.limits.doubts import Doubts
from openai_gateway.limits.held import HeldPace
from openai_gateway.limits.host_exchange import UpstreamPart
from openai_gateway.limits.ledger import Ledger
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.limits_file import COUNTS_WORD, LAYOUT, WORKER, LimitsFile
from openai_gateway.limits.order import Order, Rollout
from openai_gateway.limits.queue import Queue
from openai_gateway.limits.seen import SeenRate
from openai_gateway.limits.sharing import SharedLimits
from openai_gateway.limits.state import LEARNT, VALUES_FORMAT, Known, State
from openai_gateway.limits.window import Window
from openai_gateway.server.balance import Balance
from openai_gateway.wire.rate_limits import RateLimit, Refusal
from tests.support.processes import eventually

CAP = 8
_fork = multiprocessing.get_context("fork")


def _share(path: Path, cap: int | None = None, told: ConfiguredLimits | None = None) -> Queue:
    queue = Queue(Limiter(told or ConfiguredLimits(), time.monotonic()), Order(), Bounds(None, cap))
    queue.share(SharedLimits(path))
    return queue


def _hammer(path: Path, counts: Any, number: int) -> None:
    queue = _share(path, CAP, ConfiguredLimits(1e9, None, learns=False))
    all_admitted = []
    while True:
        admitted = queue.take_at_once(Rollout(0.0), 1.0, is_limited=True)
        if admitted is not None:
            all_admitted.append(admitted)
        # The cap is one of this host: what the file says must never be above it.
        assert queue._shared is not None
        counts[2 * number + 1] = max(counts[2 * number + 1], queue._shared.running(float("inf")))
        if all_admitted and (admitted is None or random.random() < 0.3):
            all_admitted.pop().release()
        counts[2 * number] += 2


def test_workers_killed_at_random_never_break_the_cap_or_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    # Decisions and the most in flight of each worker. Each writes its own: a kill leaves no lock taken.
    counts = _fork.RawArray("q", 2 * 12)
    workers: list[Any] = []

    def start(number: int) -> None:
        workers.append(_fork.Process(target=_hammer, args=(path, counts, number), daemon=True))
        workers[-1].start()

    try:
        for number in range(4):
            start(number)
        for number in range(4, 12):
            before = sum(counts[::2])
            eventually(lambda before=before: sum(counts[::2]) > before + 2000)
            victim = workers.pop(random.randrange(len(workers)))
            victim.kill()
            victim.join()
            start(number)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    assert max(counts[1::2]) == CAP
    queue = _share(path, CAP)
    all_admitted = [queue.take_at_once(Rollout(0.0), 1.0, is_limited=False) for _ in range(CAP + 1)]
    assert [admitted is not None for admitted in all_admitted] == [True] * CAP + [False]


def _hold(path: Path, count: int) -> None:
    queue = _share(path, CAP)
    held = [queue.take_at_once(Rollout(0.0), 1.0, is_limited=False) for _ in range(count)]
    assert all(held)
    signal.pause()


def test_permits_of_a_killed_worker_go_to_whoever_waits(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    queue = _share(path, CAP)
    holder = _fork.Process(target=_hold, args=(path, CAP), daemon=True)
    holder.start()
    eventually(lambda: queue._shared is not None and queue._shared.running(float("inf")) == CAP)
    assert queue.take_at_once(Rollout(0.0), 1.0, is_limited=False) is None
    holder.kill()
    holder.join()
    killed = time.monotonic()
    while queue.take_at_once(Rollout(0.0), 1.0, is_limited=False) is None:
        assert time.monotonic() - killed < 10
        time.sleep(0.01)


def test_what_one_worker_learns_all_know(tmp_path: Path) -> None:
    """And what one sends, the others take off what is left."""
    one, other = (_share(tmp_path / "limits") for _ in range(2))
    admitted = one.take_at_once(Rollout(0.0), 100.0, is_limited=True)
    assert admitted is not None
    assert admitted.sent is not None
    one.answer(admitted.sent, {"requests": RateLimit(600.0, 10.0, None)})
    other.limiter._is_bound = True  # it has seen a limit itself
    left = []
    for queue in (one, other, one, other):
        assert queue.take_at_once(Rollout(0.0), 100.0, is_limited=True) is not None or queue.reason == "rate"
        left.append(queue.limiter.requests.level(time.monotonic()))
        queue.limiter.requests.free_at = 0.0
    assert other.limiter.requests.limit == 600.0
    assert other.limiter.requests.spent == pytest.approx(one.limiter.requests.spent, abs=2)


def test_refusal_from_before_the_workers_shared_anything_keeps_its_retry_after(tmp_path: Path) -> None:
    one, other = (_share(tmp_path / "limits") for _ in range(2))
    early, admitted = (queue.take_at_once(Rollout(0.0), 1.0, is_limited=True) for queue in (other, one))
    assert early is not None
    assert early.sent is not None
    assert admitted is not None
    assert admitted.sent is not None
    one.answer(admitted.sent, {"requests": RateLimit(600.0, 500.0, None)})
    one.take_at_once(Rollout(0.0), 1.0, is_limited=True)
    other.answer(early.sent, {"requests": RateLimit(600.0, 500.0, None)})
    other.take_at_once(Rollout(0.0), 1.0, is_limited=True)
    assert early.sent.at < other._joined_at
    assert other.refuse(early.sent, {}, Refusal("requests", 2.0), Tries(), time.monotonic()) == 2.0


def test_file_of_nobody_is_forgotten_and_one_of_before_the_boot_too(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    holder = _fork.Process(target=_learn, args=(path,))
    holder.start()
    holder.join()
    assert holder.exitcode == 0
    assert not _knows(SharedLimits(path))
    with path.open("r+b") as file:
        file.write(b"gwlim-1\0some other boot")
    fresh = SharedLimits(path)
    assert fresh.running(float("inf")) == 0


def test_versions_with_other_layouts_have_files_of_their_own_and_speak_to_the_same_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one = sharing.derive_limits_path("http://a/v1", "key", "m")
    monkeypatch.setattr(sharing, "LAYOUT", sharing.LAYOUT + 1)
    other = sharing.derive_limits_path("http://a/v1", "key", "m")
    assert one != other
    parts = [UpstreamPart(path, ConfiguredLimits(), None, 0.0) for path in (one, other)]
    assert parts[0].name == parts[1].name
    assert all(part.lead(0.0) for part in parts), "who speaks for the one is not heard for the other"


def test_whoever_changes_what_the_file_holds_numbers_its_layout_anew() -> None:
    """Else, during an upgrade, each version takes what the other writes for damaged, and knows nothing."""
    parts = [State, Ledger, BlindRate, Window, HeldPace, SeenRate, Doubts]
    fields = [VALUES_FORMAT, *LEARNT, *(field for part in parts for field in part.__struct_fields__)]
    found = (LAYOUT, zlib.crc32(" ".join(fields).encode()))
    assert found == (14, 1970177539), "raise LAYOUT in limits_file, and write the new pair here"


@pytest.mark.parametrize("is_same", [True, False], ids=["asked for again", "beside the one asked for"])
def test_old_file_goes_only_when_no_worker_has_it_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_same: bool
) -> None:
    """What is written through a mapping leaves a file's time as it was: a gateway may run for longer than that says."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = "m" if is_same else "another"
    path = sharing.derive_limits_path("http://a/v1", "key", "m")
    holder = _fork.Process(target=_hold, args=(path, 1), daemon=True)
    holder.start()
    eventually(lambda: path.exists() and LimitsFile(path).demand(0.0).running == 1)
    os.utime(path, (1, 1))
    before = path.stat().st_ino
    sharing.derive_limits_path("http://a/v1", "key", model)
    assert path.stat().st_ino == before
    holder.kill()
    holder.join()
    sharing.derive_limits_path("http://a/v1", "key", "another")
    assert not path.exists()


def _learn(path: Path) -> None:
    queue = _share(path, None, ConfiguredLimits(60.0, None))
    assert queue.take_at_once(Rollout(0.0), 1.0, is_limited=True) is not None
    assert _knows(SharedLimits(path))


def _knows(shared: SharedLimits) -> bool:
    state = shared.begin()
    shared.end(None)
    return state is not None


def test_older_rollout_goes_first_also_once_earlier_workers_have_ended(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    earlier = _fork.Process(target=_hold, args=(path, 1), daemon=True)
    earlier.start()
    watcher = SharedLimits(tmp_path / "limits")
    eventually(lambda: watcher.demand(time.monotonic()).running == 1)
    one, other = SharedLimits(path), SharedLimits(path)
    earlier.kill()
    earlier.join()
    assert watcher.demand(time.monotonic()).running == 0
    now = time.monotonic()
    one.say_head(1.0, now, "rate", 1)
    assert other.has_elder(2.0, now)
    assert not other.has_elder(0.5, now)
    assert not one.has_elder(2.0, now)


def test_call_lets_an_older_rollout_of_another_worker_go_first_for_as_long_as_that_waits(tmp_path: Path) -> None:
    queue, other = _share(tmp_path / "limits", CAP), SharedLimits(tmp_path / "limits")
    begun = time.monotonic()
    # Longer than a call of many tokens waits for them to flow in.
    while time.monotonic() < begun + 0.3:
        other.say_head(-1.0, time.monotonic(), "tokens", 1)
        assert not _may_go(queue)
        assert queue.reason == "rate"
    # It says so no more.
    eventually(lambda: _may_go(queue))


def test_workers_keep_their_rows_while_nobody_has_a_descriptor_free(tmp_path: Path) -> None:
    shared, (soft, hard) = SharedLimits(tmp_path / "limits"), resource.getrlimit(resource.RLIMIT_NOFILE)
    shared.join(3)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        running = shared.running(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert running == 3


def test_one_decision_costs_microseconds(tmp_path: Path) -> None:
    """A bound that only a mistake breaks: some 11 us are measured, the rest is for a busy machine."""
    one, other = (_share(tmp_path / "limits", None, ConfiguredLimits(1e9, None)) for _ in range(2))
    began = time.process_time()
    for _ in range(500):
        for queue in (one, other):
            admitted = queue.take_at_once(Rollout(0.0), 1.0, is_limited=True)
            if admitted is not None:
                admitted.release()
    assert (time.process_time() - began) / 1000 < 500e-6


def test_damaged_state_is_nothing_known(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    one, other = SharedLimits(path), SharedLimits(path)
    one.begin()
    one.end(Limiter(ConfiguredLimits(60.0), 0.0).to_known(is_whole=True))
    damaged = bytearray(path.read_bytes())
    # What was learnt stands last in the file.
    end = len(damaged.rstrip(b"\0"))
    damaged[end - 12 : end] = b"\xc1" * 12
    with path.open("r+b") as file:
        file.write(damaged)
    assert other.begin() is None
    learnt = Limiter(ConfiguredLimits(), 0.0)
    learnt.pause_until = 4.5
    other.end(learnt.to_known(is_whole=True))
    found = one.begin()
    one.end(None)
    assert found is not None
    learnt.pause_until = 0.0
    learnt.take(found)
    assert learnt.pause_until == 4.5


@pytest.mark.parametrize("kind", ["requests and tokens", "blind", "slow_down"])
def test_what_is_handed_on_of_a_call_is_all_that_it_changes(kind: str) -> None:
    one, other = (Limiter(ConfiguredLimits(), 0.0) for _ in range(2))
    sent = one.start(10.0, 0, 1.0)
    if kind == "requests and tokens":
        one.answer(sent, {name: RateLimit(600.0, 500.0, None) for name in ("requests", "tokens")})
    elif kind == "blind":
        tries = [Tries() for _ in range(12)]
        for each in tries:
            one.refuse(one.start(10.0, 0, 1.1), {}, Refusal("requests", None), each, 1.2)
        assert one.blind.is_known
    else:
        one.refuse(sent, {}, Refusal("slow_down", None), Tries(), 1.2)
    one.start(10.0, 1, 2.0)
    _hand_on(one, other)
    whole = 0
    for number in range(15):
        # After a minute the buckets are full again.
        one.wait_s(10.0, 1, 61.0 + number)
        sent = one.start(10.0, 1, 61.0 + number)
        whole += _hand_on(one, other)
        if number % 3 == 0:
            one.answer(sent, {"requests": RateLimit(600.0, 400.0 - number, None)})
            whole += _hand_on(one, other)
    assert whole < 10, "of 20 times"


def _hand_on(one: Limiter, other: Limiter) -> bool:
    """Hand on what is to be; return whether that was all."""
    encode = msgspec.msgpack.encode
    known = one.to_known(is_whole=False)
    other.take(msgspec.msgpack.decode(encode(known), type=Known))
    assert encode(other.to_known(is_whole=True)) == encode(one.to_known(is_whole=True))
    return known[1] is not None


def test_bounds_that_differ_are_kept_apart_and_passed_on(tmp_path: Path) -> None:
    """Two servers of one upstream may have their own bounds; and after a reload, there are new ones."""
    slow, fast, free = (
        _share(tmp_path / "limits", None, ConfiguredLimits(bound, None, False)) for bound in (60.0, 600.0, None)
    )
    assert [_may_go(queue) for queue in (slow, fast, free)] == [True] * 3
    assert _may_go(fast), "what is sent late is made up for"
    assert all(_may_go(free) for _ in range(20))
    assert not _may_go(slow)
    assert not _may_go(_share(tmp_path / "limits", None, ConfiguredLimits(60.0, None, False)))


def _may_go(queue: Queue) -> bool:
    return queue.take_at_once(Rollout(0.0), 1.0, is_limited=True) is not None


def test_failure_while_the_file_is_locked_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    queue = _share(path, CAP)
    assert queue._shared is not None
    queue._shared.running = _fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="as planned"):
        queue.take_at_once(Rollout(0.0), 1.0, is_limited=True)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_failure_to_hand_on_what_is_known_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    queue, part = _share(path, CAP), UpstreamPart(path, ConfiguredLimits(), None, 0.0)
    other = SharedLimits(path)
    other.begin()
    other.end(Limiter(ConfiguredLimits(), 0.0).to_known(is_whole=True))
    queue.limiter.to_known = part._limiter.take = _fail  # type: ignore[assignment, method-assign]
    with pytest.raises(ValueError, match="as planned"):
        queue.take_at_once(Rollout(0.0), 1.0, is_limited=True)
    assert part.lead(1.0)
    with pytest.raises(ValueError, match="as planned"):
        part.make_commands(1.0, 1.0)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _fail(*_: object, **__: object) -> int:
    raise ValueError("as planned")


def test_worker_that_is_killed_while_it_takes_out_another_leaves_no_calls_behind(tmp_path: Path) -> None:
    """Of a row that is nobody's, nobody ever took the calls off."""
    path = tmp_path / "limits"
    one, dead = SharedLimits(path), SharedLimits(path)
    dead.count(5)
    WORKER.pack_into(dead._map, dead._find_offset(dead._row), 1, 2**22 + 1, 0.0, 0.0, 0, 0)
    words, one._words = one._words, _Killed()  # type: ignore[assignment]
    one._words.words = words  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        one._drop_dead()
    one._words = words
    assert one._drop_dead() == 0


class _Killed:
    """Words of the file, as a worker has them that is killed as it writes the first."""

    words: Any

    def __getitem__(self, word: Any) -> Any:
        return self.words[word]

    def __setitem__(self, word: int, value: int) -> None:
        raise KeyboardInterrupt


def test_disk_that_is_full_has_each_worker_go_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be written through a mapping ends the process (SIGBUS), and the one after it, too."""

    def fail(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            SharedLimits(tmp_path / "limits")
        with pytest.raises(OSError, match="No space"):
            Balance(tmp_path / "balance", 0)
    begun = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            SpendFile(str(tmp_path / "budgets"))
    # Fewer, if what earlier tests have left is collected meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= begun


def test_row_that_is_taken_anew_begins_without_calls(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    one = SharedLimits(path)
    one._words[COUNTS_WORD + 1] = 5
    SharedLimits(path)
    assert one.count_all() == 0
