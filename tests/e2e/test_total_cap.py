"""`max_concurrent_requests_total` through the real stack: exact over workers, killed workers and reloads."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from tests.support.processes import eventually, run_gateway
from tests.support.upstreams import PATHS, Conversation, run_upstream, to_answer, to_request_body

CAP = 6


class Gate:
    """Counts calls in flight at the upstream; holds each until `open`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = self.most = self.done = 0
        self.is_open = threading.Event()

    def script(self, talk: Conversation) -> None:
        while talk.read_request() is not None:
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            self.is_open.wait(0.05 if self.is_open.is_set() else 30)
            with self.lock:
                self.running -= 1
                self.done += 1
            talk.send(to_answer(b"{}"))


def _call(url: str) -> int:
    try:
        return requests.post(url + PATHS["responses"], json=to_request_body("responses"), timeout=60).status_code
    except requests.RequestException:
        return 0


def _workers(master: int) -> list[int]:
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return [int(child) for child in children]


def _run(tmp_path: Path, act: Callable[[int], None]) -> tuple[Gate, list[int]]:
    gate = Gate()
    with (
        run_upstream(gate.script) as upstream,
        run_gateway(tmp_path, upstream.url, {"max_concurrent_requests_total": CAP}, "--workers", "2") as gateway,
        ThreadPoolExecutor(40) as pool,
    ):
        eventually(lambda: len(_workers(gateway.process.pid)) == 2)
        calls = [pool.submit(_call, gateway.url) for _ in range(40)]
        eventually(lambda: gate.running == CAP, 20)
        act(gateway.process.pid)
        gate.is_open.set()
        statuses = [call.result() for call in calls]
    return gate, statuses


def test_no_more_than_the_total_cap_run_in_all_workers_together(tmp_path: Path) -> None:
    gate, statuses = _run(tmp_path, lambda master: None)
    assert gate.most == CAP
    assert statuses == [200] * 40


def test_permits_of_a_killed_worker_are_handed_to_those_who_wait(tmp_path: Path) -> None:
    def kill_one(master: int) -> None:
        os.kill(_workers(master)[0], signal.SIGKILL)

    gate, statuses = _run(tmp_path, kill_one)
    # The upstream goes on with what it was asked before; the others' calls all get through.
    assert gate.most <= 2 * CAP
    assert statuses.count(200) >= 40 - statuses.count(0)
    assert set(statuses) <= {0, 200}


def test_old_and_new_workers_of_a_reload_stay_below_the_total_cap_together(tmp_path: Path) -> None:
    def reload(master: int) -> None:
        before = set(_workers(master))
        os.kill(master, signal.SIGHUP)
        eventually(lambda: len(set(_workers(master)) - before) == 2, 20)

    gate, statuses = _run(tmp_path, reload)
    assert gate.most == CAP
    assert set(statuses) <= {0, 200}
    assert statuses.count(200) >= CAP
