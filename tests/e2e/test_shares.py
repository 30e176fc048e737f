"""Clients that wait for a limit go by their shares, however many calls each of them has waiting."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest
import requests

from tests.support.processes import Gunicorn, eventually, run_gateway, run_simulator

GREEDY, MODEST = 60, 5
COUNTED = 120


def _call(gateway: Gunicorn, name: str, done: Counter[str], is_over: threading.Event) -> None:
    session = requests.Session()
    while not is_over.is_set():
        body = {"input": "x", "max_output_tokens": 20}
        headers = {"authorization": f"Bearer gw-{name}"}
        assert session.post(f"{gateway.url}/v1/responses", json=body, headers=headers, timeout=60).status_code == 200
        done[name] += 1


@pytest.mark.parametrize(("share", "expected"), [(1, 0.5), (3, 0.25)], ids=["1:1", "3:1"])
def test_modest_client_gets_its_share_beside_a_greedy_one(tmp_path: Path, share: int, expected: float) -> None:
    clients = {"greedy": {"key": "gw-greedy", "share": share}, "modest": {"key": "gw-modest"}}
    (tmp_path / "clients.yaml").write_text(json.dumps(clients))
    settings = {"clients_file": str(tmp_path / "clients.yaml"), "retry_budget_s": 60}
    with (
        run_simulator(tmp_path, {"rpm": 900, "burst_s": 1, "latency_ms": 20}) as upstream,
        run_gateway(tmp_path, upstream.url, settings) as gateway,
    ):
        done, is_over = Counter[str](), threading.Event()
        names = ["greedy"] * GREEDY + ["modest"] * MODEST
        callers = [threading.Thread(target=_call, args=(gateway, name, done, is_over)) for name in names]
        for caller in callers:
            caller.start()
        # Until all wait, who came first counts.
        eventually(lambda: done.total() >= 40)
        before = done.copy()
        eventually(lambda: done.total() >= before.total() + COUNTED)
        got = done - before
        is_over.set()
        for caller in callers:
            caller.join(60)
        assert got["modest"] / got.total() == pytest.approx(expected, abs=0.1)
