"""`max_concurrent_requests_total` through the real stack: exact over workers, killed workers and reloads."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.gate import Gate, call_for_status
from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.upstreams import run_upstream

CAP = 6


def _run(tmp_path: Path, act: Callable[[Gunicorn], None]) -> tuple[Gate, list[int]]:
    gate = Gate()
    with (
        run_upstream(gate.script) as upstream,
        run_gateway(tmp_path, upstream.url, {"max_concurrent_requests_total": CAP}, "--workers", "2") as gateway,
        ThreadPoolExecutor(40) as pool,
    ):
        eventually(lambda: len(gateway.workers()) == 2)
        calls = [pool.submit(call_for_status, gateway.url) for _ in range(40)]
        eventually(lambda: gate.running == CAP)
        act(gateway)
        gate.is_open.set()
        statuses = [call.result() for call in calls]
    return gate, statuses


def test_no_more_than_the_total_cap_run_in_all_workers_together(tmp_path: Path) -> None:
    gate, statuses = _run(tmp_path, lambda gateway: None)
    assert gate.most == CAP
    assert statuses == [200] * 40


def test_permits_of_a_killed_worker_are_handed_to_those_who_wait(tmp_path: Path) -> None:
    def kill_one(gateway: Gunicorn) -> None:
        os.kill(gateway.workers()[0], signal.SIGKILL)

    gate, statuses = _run(tmp_path, kill_one)
    # The upstream goes on with what it was asked before; the others' calls all get through.
    assert gate.most <= 2 * CAP
    assert statuses.count(200) >= 40 - statuses.count(0)
    assert set(statuses) <= {0, 200}


def test_old_and_new_workers_of_a_reload_stay_below_the_total_cap_together(tmp_path: Path) -> None:
    def reload(gateway: Gunicorn) -> None:
        before = set(gateway.workers())
        gateway.send_signal(signal.SIGHUP)
        eventually(lambda: len(set(gateway.workers()) - before) == 2)

    gate, statuses = _run(tmp_path, reload)
    assert gate.most == CAP
    assert set(statuses) <= {0, 200}
    assert statuses.count(200) >= CAP
