"""Whether permits and charges are exact after any mixture of calls: leavers, refusals, errors, resets.

    python -m tests.benchmarks.mixed_calls [--sockets] [--calls 100000]

Two workers' queues in one process share a file; the upstream is a few counters beside them: no sockets here. Each call
is a greenlet that may be killed at any time. With `--sockets`: a real gateway, its clients and its upstream
(`mixed_sockets`). Printed: what became of the calls, what is still held (nothing), and charges as the upstream counted
them against those of the ledger (equal). Exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Final

import gevent
from gevent.pool import Pool

from openai_gateway.limits.attempts import Bounds, ConfiguredLimits, Tries
from openai_gateway.limits.limiter import Limiter
from openai_gateway.limits.order import Order, Place, Rollout
from openai_gateway.limits.queue import Queue
from openai_gateway.limits.sharing import SharedLimits
from openai_gateway.limits.slots import Admitted
from openai_gateway.wire.rate_limits import RateLimit, Refusal
from tests.benchmarks import mixed_sockets
from tests.support.ledgers import Accounts

CAP: Final = 24
AT_ONCE: Final = 100
TOKENS: Final = 10.0
# What the upstream allows: requests a minute, of which it holds a second's, and calls in flight.
_PER_MINUTE: Final = 90_000.0
_IN_FLIGHT: Final = 20


class Left(Accounts):
    """What is left when all calls are over, of which so many were refused."""

    refused: int


class Upstream:
    """Counts the calls that it took, and refuses those above its limits; of every other it tells what is left."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.charges = 0
        self.running = 0
        self._level = self._second = _PER_MINUTE / 60
        self._at = monotonic()

    def take(self) -> str | None:
        """Take a call, which has to leave; return the limit that it meets, None if none."""
        now = monotonic()
        self._level = min(self._second, self._level + (now - self._at) * self._second)
        self._at = now
        if self._draw.random() < 0.01:
            # Somebody else's burst.
            self._level = 0.0
        met = "in_flight" if self.running >= _IN_FLIGHT else "requests" if self._level < 1 else None
        if met is None:
            self.charges += 1
            self._level -= 1
            self.running += 1
        return met

    def leave(self) -> None:
        """End a call."""
        self.running -= 1

    def headers(self) -> dict[str, RateLimit]:
        """Return what an answer tells."""
        return {"requests": RateLimit(_PER_MINUTE, float(int(self._level)), None)}


class Mixture:
    """The calls."""

    def __init__(self, path: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.upstream = Upstream(self.draw)
        # Refused, but charged in the sum until what is left is told.
        self.unpaid = 0
        self.refused = 0
        self.queues = [self._to_queue(path) for _ in range(2)]
        self._rollouts = [Rollout(0.0) for _ in range(50)]

    def run(self, calls: int) -> Left:
        """Make so many calls, some of which are killed; return what is left of them."""
        pool = Pool(AT_ONCE)
        for _ in range(calls):
            call = pool.spawn(self.call, self.draw.choice(self.queues))
            if self.draw.random() < 0.2:
                gevent.spawn_later(self.draw.random() * 0.01, call.kill, block=False)
            if self.draw.random() < 0.02:
                gevent.sleep(0)
        pool.join()
        running = {f"in flight {n}": float(queue.slots.in_flight) for n, queue in enumerate(self.queues)}
        waiting = {f"waiting {n}": float(len(queue.waiting)) for n, queue in enumerate(self.queues)}
        # A look at the file, from which both know the same.
        self.queues[0].learn()
        for queue in self.queues:
            self._call_once(queue)
        shared = self.queues[0].slots.on_host
        assert shared is not None
        on_host = {"in flight on the host": float(shared.running(float("inf")))}
        limiter, charges = self.queues[1].limiter, self.upstream.charges + self.unpaid
        return Left(
            self.outcomes,
            {**running, **waiting, **on_host},
            {"requests": limiter.requests.spent, "tokens": limiter.tokens.spent},
            {"requests": float(charges), "tokens": TOKENS * charges},
            self.refused,
        )

    def call(self, queue: Queue) -> None:
        """Make one call as `relay` does, and count what becomes of it."""
        all_admitted: list[Admitted] = []
        outcome = "left while waiting"
        try:
            admitted = queue.take_at_once(self.draw.choice(self._rollouts), TOKENS, is_limited=True)
            place = Place(self.draw.choice(self._rollouts), TOKENS)
            all_admitted.append(admitted or queue.take(place))
            outcome = "left while running"
            outcome = self._attempt(queue, all_admitted, place)
        finally:
            for each in all_admitted:
                each.release()
            self.outcomes[outcome] += 1

    def _attempt(self, queue: Queue, all_admitted: list[Admitted], place: Place) -> str:
        tries = Tries()
        while True:
            sent = all_admitted[-1].sent
            assert sent is not None
            limit = self.upstream.take()
            limits = self.upstream.headers()
            if limit is None:
                try:
                    gevent.sleep(self.draw.random() * 0.01)
                finally:
                    self.upstream.leave()
                kind = self.draw.random()
                if kind < 0.8:
                    queue.answer(sent, limits)
                    return "answered"
                if kind < 0.9:
                    return "reset"
                # It failed, and is tried again with its slot: that is charged, too.
                all_admitted[-1].sent = queue.charge_again(sent)
                continue
            # Those that tell nothing take the charge back, the others' word of what is left lacks it.
            self.refused += 1
            told = limits if limit == "requests" else {}
            if told:
                self.unpaid += 1
            queue.refuse(sent, told, Refusal(limit, 0.001), tries, monotonic())
            all_admitted[-1].release()
            again = queue.take_again(place, monotonic() + 0.05)
            if again is None:
                return "gave up after a 429"
            all_admitted.append(again)

    def _call_once(self, queue: Queue) -> None:
        admitted = queue.take(Place(self._rollouts[0], TOKENS))
        assert admitted.sent is not None
        # One that is refused isn't told of: its charge stays.
        self.unpaid += self.upstream.take() is not None
        admitted.release()

    def _to_queue(self, path: Path) -> Queue:
        queue = Queue(Limiter(ConfiguredLimits(), monotonic()), Order(), Bounds(None, CAP))
        queue.share(SharedLimits(path))
        return queue


def run(calls: int, seed: int) -> Left:
    """Make so many calls with a file of their own."""
    with tempfile.TemporaryDirectory() as folder:
        return Mixture(Path(folder, "limits"), seed).run(calls)


def main() -> int:
    """Run, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sockets", action="store_true")
    given = parser.parse_args()
    if given.sockets:
        found = mixed_sockets.run(given.calls, given.seed)
        print(dict(found.outcomes), "upstream:", dict(found.kinds))
        print("held:", found.held)
        print("charged by the ledger:", found.charged, "counted:", found.counted)
        return int(not found.is_exact)
    left = run(given.calls, given.seed)
    print(dict(left.outcomes), "429s:", left.refused)
    print("held:", left.held)
    print("charged by the ledger:", left.charged, "counted:", left.counted)
    return int(not left.is_exact)


if __name__ == "__main__":
    sys.exit(main())
