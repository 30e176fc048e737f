"""The gateway before upstreams that tell of their limits in different ways: no call fails, hardly any is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from openai_gateway.simulator.settings import DIALECTS
from tests.support.processes import eventually, run_gateway, run_simulator

CALLS = 150
BUSY = {"rpm": 1500, "burst_s": 1, "latency_ms": 50}


def call(url: str, number: int) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": f"call {number}"}]}
    return requests.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code


@pytest.mark.parametrize(
    ("settings", "most_refused"),
    [
        # Where no header tells it, the limit is found by meeting it.
        *(
            pytest.param({**BUSY, "dialect": dialect}, CALLS if dialect in ("gemini", "none") else 30, id=dialect)
            for dialect in DIALECTS
        ),
        pytest.param({"in_flight": 10, "latency_ms": 100}, 60, id="calls in flight"),
        pytest.param({**BUSY, "burst_s": 60, "window_s": 1}, 60, id="hidden window"),
        pytest.param(
            {"tpm": 120_000, "burst_s": 1, "output_tokens_charged": 100, "unused_given_back": True, "latency_ms": 50},
            60,
            id="tokens given back",
        ),
    ],
)
def test_all_calls_are_answered_and_few_refused(tmp_path: Path, settings: dict[str, Any], most_refused: int) -> None:
    with (
        run_simulator(tmp_path, settings) as upstream,
        run_gateway(tmp_path, upstream.url, {"retry_budget_s": 60}) as gateway,
        ThreadPoolExecutor(40) as callers,
    ):
        statuses = list(callers.map(lambda number: call(gateway.url, number), range(CALLS)))
        assert statuses == [200] * CALLS
        stats = requests.get(f"{upstream.url}/sim/stats", timeout=60).json()
        assert stats["by_status"].get("429", 0) <= most_refused
        eventually(lambda: gateway.inspect()["in_flight"] == 0)
