"""What a worker that is alone has learnt of a limit is its successor's from the start, and both keep to it together."""

from __future__ import annotations

import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.gate import call_for_status
from tests.support.processes import eventually, run_gateway
from tests.support.upstreams import Conversation, run_upstream, to_answer

LIMIT = 10
TOO_MANY = to_answer(b'{"error": {"message": "Too many calls in flight."}}', status="429 Too Many Requests")


class Limited:
    """An upstream that takes so many calls at a time, and answers none of them until it is open."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = self.refused = 0
        self.is_open = threading.Event()

    def script(self, talk: Conversation) -> None:
        while talk.read_request() is not None:
            with self.lock:
                is_taken = self.running < LIMIT
                self.running += is_taken
                self.refused += not is_taken
            if is_taken:
                self.is_open.wait(120)
                with self.lock:
                    self.running -= 1
            talk.send(to_answer(b"{}") if is_taken else TOO_MANY)


@pytest.mark.parametrize(
    "arguments", [pytest.param([], id="reload"), pytest.param(["--max-requests", "100"], id="max_requests")]
)
def test_successor_of_a_single_worker_begins_with_what_it_has_learnt(tmp_path: Path, arguments: list[str]) -> None:
    limited = Limited()
    with (
        run_upstream(limited.script) as upstream,
        run_gateway(tmp_path, upstream.url, {"retry_budget_s": 120}, *arguments) as gateway,
        ThreadPoolExecutor(4 * LIMIT) as pool,
    ):

        def sum_up(metric: str) -> float:
            """Return the sum of a metric of all workers, whatever its labels."""
            text = requests.get(f"{gateway.url}/metrics", timeout=60).text
            return sum(map(float, re.findall(rf"^openai_gateway_{metric}{{.*}} (.+)$", text, re.MULTILINE)))

        # One more is tried from time to time.
        learnt = ([LIMIT], [LIMIT + 1])
        old = gateway.inspect()["pid"]
        calls = [pool.submit(call_for_status, gateway.url) for _ in range(2 * LIMIT)]
        try:
            eventually(lambda: limited.running == LIMIT == sum_up("learned_limit_in_flight"))
            if not arguments:
                gateway.send_signal(signal.SIGHUP)
            # Before its first call.
            eventually(lambda: (new := gateway.inspect())["pid"] != old and new["most_in_flight"] in learnt)
            refused = limited.refused
            calls += [pool.submit(call_for_status, gateway.url) for _ in range(2 * LIMIT)]
            eventually(lambda: sum_up("calls_waiting") == 3 * LIMIT)
            assert limited.refused - refused <= 3
        finally:
            limited.is_open.set()
        assert {call.result() for call in calls} == {200}
