"""One budget over two hosts that share it through Redis: spent is the sum, whatever becomes of Redis or a host."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.redis_server import RedisServer, needs_redis, run_redis
from tests.support.upstreams import Conversation, run_upstream

pytestmark = needs_redis
CALL_USD = 0.02002


def _answer(talk: Conversation) -> None:
    while talk.read_request() is not None:
        time.sleep(0.2)
        usage = {"input_tokens": 20, "output_tokens": 2000, "total_tokens": 2020}
        answer = {"id": "r", "object": "response", "status": "completed", "model": "the-model", "usage": usage}
        body = json.dumps(answer).encode()
        talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


@contextlib.contextmanager
def _run_host(folder: Path, url: str, redis: RedisServer, workers: int = 1) -> Iterator[Gunicorn]:
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    (folder / "prices.yaml").write_text("models: {the-model: {input: 1.0, output: 10.0}}\n")
    (folder / "clients.yaml").write_text(json.dumps({"team": {"key": "gw-key-team", "budget_usd": 1, "per": "day"}}))
    settings = {
        "limits_url": redis.url,
        "price_file": str(folder / "prices.yaml"),
        "usage_log": str(folder / "usage.jsonl"),
        "clients_file": str(folder / "clients.yaml"),
        "max_retries": 0,
    }
    environ = {"TMPDIR": str(folder / "tmp")}
    with run_gateway(folder, url, settings, "--workers", str(workers), environ=environ) as running:
        yield running


def _ask(host: Gunicorn, **headers: str) -> int:
    given = {"authorization": "Bearer gw-key-team", **headers}
    body = {"input": "x", "max_output_tokens": 2000}
    return requests.post(f"{host.url}/v1/responses", json=body, headers=given, timeout=60).status_code


def _spent(host: Gunicorn) -> float:
    text = requests.get(f"{host.url}/metrics", timeout=60).text
    found = re.search(r'^openai_gateway_client_spent_usd\{client="team"\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _logged(folder: Path) -> float:
    lines = (folder / "usage.jsonl").read_text().splitlines()
    return sum(json.loads(line)["charged_usd"] or 0.0 for line in lines)


@pytest.mark.parametrize("workers", [1, 2])
def test_budget_is_that_of_both_hosts_and_outlives_redis_and_a_killed_host(tmp_path: Path, workers: int) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    with run_upstream(_answer) as upstream, run_redis(tmp_path) as redis, contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(_run_host(folder, upstream.url, redis, workers)) for folder in folders]
        made = [0, 0]
        lock = threading.Lock()

        def spend(number: int) -> None:
            while _ask(hosts[number % 2]) == 200:
                with lock:
                    made[number % 2] += 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(spend, range(4)))
        total = sum(made) * CALL_USD
        eventually(lambda: all(abs(_spent(host) - total) < 1e-6 for host in hosts))
        eventually(lambda: abs(sum(map(_logged, folders)) - total) < 1e-6)
        # Each had its part, and beyond the dollar is what was admitted between two rounds.
        assert min(made) > 5
        assert 0.9 < total < 1.6
        redis.ask("FLUSHALL")
        time.sleep(1)
        assert [_spent(host) for host in hosts] == pytest.approx([total] * 2)
        for pid in [hosts[0].pid, *hosts[0].workers()]:
            os.kill(pid, signal.SIGKILL)
        with _run_host(folders[0], upstream.url, redis, workers) as again:
            eventually(lambda: abs(_spent(again) - total) < 1e-6)
            assert [_ask(again), _ask(hosts[1])] == [429, 429]


def test_run_is_held_to_its_budget_on_all_hosts(tmp_path: Path) -> None:
    run = {"x-gateway-run": "night", "x-gateway-run-budget-usd": "0.05"}
    with run_upstream(_answer) as upstream, run_redis(tmp_path) as redis, contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(_run_host(tmp_path / name, upstream.url, redis)) for name in ("one", "other"))
        assert [_ask(one, **run) for _ in range(2)] == [200, 200]
        # Its first call there makes the run known; what it has spent is, a moment later.
        _ask(other, **run)
        eventually(lambda: _ask(other, **run) == 429)
        assert _ask(one, **run) == 429
        assert _ask(other) == 200
