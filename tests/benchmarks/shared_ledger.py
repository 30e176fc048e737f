"""Whether the file that workers share stands a million operations, with a worker killed every second.

    python -m tests.benchmarks.shared_ledger [--operations 1000000] [--workers 4]

Each worker takes permits and gives them back, charges the ledger, learns from answers and refusals. Printed: how many
operations and kills, the longest standstill, the most in flight at once (never above the cap), what was charged against
what the rate allows, and what one decision costs. Exit 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from openai_gateway.limits.attempts import Bounds, ConfiguredLimits, Tries
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.order import Order, Rollout
from openai_gateway.limits.queue import Queue
from openai_gateway.limits.sharing import SharedLimits
from openai_gateway.limits.slots import Admitted
from openai_gateway.wire.rate_limits import RateLimit, Refusal

CAP: Final = 8
PER_MINUTE: Final = 60_000.0
TOLD: Final = ConfiguredLimits(PER_MINUTE, None, learns=False)
# Far away; the time to full is that of a bucket.
LIMITS: Final = {kind: RateLimit(6e9, 5e9, 10.0) for kind in ("requests", "tokens")}
_ROUNDS: Final = 10
ROLLOUT: Final = Rollout(0.0)
REFUSED: Final = Refusal("requests", 0.0)
FIELDS: Final = ("operations", "most in flight", "charged")
_fork = multiprocessing.get_context("fork")


def _share(path: Path, told: ConfiguredLimits, cap: int | None = None) -> Queue:
    """Return a queue as a worker has it."""
    queue = _make_queue(told, cap)
    queue.share(SharedLimits(path))
    return queue


def _make_queue(told: ConfiguredLimits, cap: int | None = None) -> Queue:
    return Queue(Limiter(told, time.monotonic()), Order(), Bounds(None, cap))


def work(path: Path, counts: Any, row: int) -> None:
    """Do one operation after the other until killed; `counts` has a row of FIELDS for each worker."""
    queue, draw, all_admitted = _share(path, TOLD, CAP), random.Random(), list[Admitted]()
    at = row * len(FIELDS)
    while True:
        admitted = queue.take_at_once(ROLLOUT, 1.0, is_limited=True)
        if admitted is not None:
            all_admitted.append(admitted)
            counts[at + 2] += 1
            assert admitted.sent is not None
            kind = draw.random()
            if kind < 0.2:
                queue.answer(admitted.sent, {})
            elif kind < 0.3:
                queue.refuse(admitted.sent, {}, REFUSED, Tries(), time.monotonic())
        assert queue.slots.on_host is not None
        counts[at + 1] = max(counts[at + 1], queue.slots.on_host.running(float("inf")))
        if all_admitted and (admitted is None or draw.random() < 0.3):
            all_admitted.pop().release()
        counts[at] += 2


def hammer(path: Path, operations: int, workers: int) -> dict[str, float]:
    """Have workers do so many operations, with one killed every second; return what came of it."""
    most_workers = workers + 2 + operations // 1000
    counts = _fork.RawArray("q", len(FIELDS) * most_workers)
    began = last_at = time.monotonic()
    running: list[Any] = []
    started, kills, last, standstill_s, killed_at = 0, 0, 0, 0.0, began
    try:
        while last < operations:
            while len(running) < workers:
                running.append(_fork.Process(target=work, args=(path, counts, started), daemon=True))
                running[-1].start()
                started += 1
            time.sleep(0.01)
            now = time.monotonic()
            done = sum(counts[:: len(FIELDS)])
            standstill_s = max(standstill_s, now - last_at)
            if done > last:
                last, last_at = done, now
            if now - last_at > 10 or started >= most_workers:
                break
            if now - killed_at >= 1:
                victim = running.pop(random.randrange(len(running)))
                victim.kill()
                victim.join()
                kills, killed_at = kills + 1, now
    finally:
        for worker in running:
            worker.kill()
            worker.join()
    took_s = time.monotonic() - began
    charged = sum(counts[2 :: len(FIELDS)])
    # Five seconds of a told limit are what is saved up at most; a kill within a decision loses its charge.
    allowed = PER_MINUTE / 60 * (took_s + 5) + kills
    return {
        "operations": last,
        "seconds": took_s,
        "kills": kills,
        "longest standstill, s": standstill_s,
        "most in flight": max(counts[1 :: len(FIELDS)]),
        "charged / allowed": charged / allowed,
    }


def costs_us(folder: Path, calls: int) -> dict[str, float]:
    """Return what a call's decisions cost, in microseconds of this process: the least of several rounds.

    Admission, answer and release, with limits that are far away: by one worker, or two that take turns at the file.
    """
    alone = [_make_queue(ConfiguredLimits())]
    turns = [_share(folder / name, ConfiguredLimits()) for name in ("turns", "turns")]
    _make_calls(alone + turns[:1], 1, LIMITS)
    free = [_make_queue(ConfiguredLimits())]
    free[0].limiter.window.open()
    return {
        "one worker, no limit known": _measure_us(free, calls, {}),
        "one worker, limits known": _measure_us(alone, calls, {}),
        "one worker, each answer tells": _measure_us(alone, calls, LIMITS),
        "two workers": _measure_us(turns, calls, {}),
        "two workers, each answer tells": _measure_us(turns, calls, LIMITS),
    }


def _measure_us(queues: list[Queue], calls: int, limits: dict[str, RateLimit]) -> float:
    took_s = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        _make_calls(queues, calls // _ROUNDS // len(queues), limits)
        took_s.append(time.process_time() - began)
    return min(took_s) / calls * _ROUNDS * 1e6


def _make_calls(queues: list[Queue], turns: int, limits: dict[str, RateLimit]) -> None:
    for _ in range(turns):
        for queue in queues:
            admitted = queue.take_at_once(ROLLOUT, 1.0, is_limited=True)
            assert admitted is not None
            assert admitted.sent is not None
            queue.answer(admitted.sent, limits)
            admitted.release()


def main() -> int:
    """Run, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = hammer(Path(folder, "hammer"), given.operations, given.workers)
        costs = costs_us(Path(folder), 20_000)
    for name, value in found.items():
        print(f"{name}: {value:,.3f}".rstrip("0").rstrip("."))
    for name, cost_us in costs.items():
        print(f"a call's decisions, us: {name}: {cost_us:.1f}")
    is_whole = found["operations"] >= given.operations
    return int(not is_whole or found["most in flight"] > CAP or found["charged / allowed"] > 1)


if __name__ == "__main__":
    sys.exit(main())
