"""Budgets under load: two workers, many calls at once, a killed worker, a restart; spent is what was allowed."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from openai_gateway.accounting.spend import NANO
from openai_gateway.accounting.spend_file import SpendFile
from openai_gateway.cli.main import main
from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.upstreams import Conversation, run_upstream

# 14 times what is assumed of an answer of which nothing is known; $0.29 each.
LONG = 14 * 2048
PRICES = "models: {the-model: {input: 1.0, output: 10.0}}\n"


class LongAnswers:
    """An upstream whose answers are as long as they may be, and wait for `go`."""

    def __init__(self) -> None:
        self.made = Counter[int]()
        self.go = threading.Event()
        self.go.set()

    def __call__(self, talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            tokens = min(json.loads(request.body).get("max_output_tokens", LONG), LONG)
            self.made[tokens] += 1
            self.go.wait(120)
            usage = {"input_tokens": 20, "output_tokens": tokens, "total_tokens": 20 + tokens}
            answer = {"id": "r", "object": "response", "status": "completed", "model": "the-model", "usage": usage}
            body = json.dumps(answer).encode()
            talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
            talk.send(body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prices.yaml").write_text(PRICES)
    clients = {name: {"key": f"gw-key-{name}", "budget_usd": 1, "per": "day"} for name in ("team", "other")}
    (tmp_path / "clients.yaml").write_text(json.dumps(clients))
    return tmp_path


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "price_file": str(folder / "prices.yaml"),
        "usage_log": str(folder / "usage.jsonl"),
        "clients_file": str(folder / "clients.yaml"),
        "max_retries": 0,
    }


def _ask(gateway: Gunicorn, name: str = "team", **params: Any) -> requests.Response:
    headers = {"authorization": f"Bearer gw-key-{name}"}
    return requests.post(f"{gateway.url}/v1/responses", json={"input": "x", **params}, headers=headers, timeout=60)


def _ask_many(gateway: Gunicorn, count: int, **params: Any) -> Iterator[tuple[int, str | None]]:
    def ask(number: int) -> tuple[int, str | None]:
        try:
            answer = _ask(gateway, **params)
        except requests.ConnectionError:
            return 0, None
        return answer.status_code, None if answer.ok else answer.json()["error"]["code"]

    with ThreadPoolExecutor(count) as threads:
        yield from threads.map(ask, range(count))


def _read(folder: Path, name: str = "team") -> tuple[float, float, int]:
    file = SpendFile(str(folder / ".usage.jsonl.budgets"))
    try:
        found = file.read([name], time.time())[name]
    finally:
        file.close()
    return found.spent["day"] / NANO, found.reserved / NANO, found.in_flight


def _logged(folder: Path) -> float:
    lines = (folder / "usage.jsonl").read_text().splitlines()
    return sum(json.loads(line)["charged_usd"] or 0.0 for line in lines)


def test_two_hundred_calls_at_once_spend_no_more_than_their_budget(folder: Path) -> None:
    upstream = LongAnswers()
    with run_upstream(upstream) as there, run_gateway(folder, there.url, _settings(folder), "-w", "2") as gateway:
        outcomes = Counter(_ask_many(gateway, 200, max_output_tokens=2000))
        assert set(outcomes) <= {(200, None), (429, "gateway_budget_exceeded")}
        spent, reserved, in_flight = _read(folder)
        assert (reserved, in_flight) == (0.0, 0)
        # 49 calls of $0.02 fit; whoever came while others were reserved for a little more was refused.
        assert 0.9 < spent <= 1.0
        assert spent == pytest.approx(0.02002 * outcomes[200, None], abs=0.001)
        eventually(lambda: _logged(folder) == pytest.approx(spent, abs=1e-6))
        refused = _ask(gateway, max_output_tokens=2000)
        assert refused.headers["x-should-retry"] == "false"
        assert "spent today" in refused.json()["error"]["message"]
        listed = CliRunner().invoke(
            main, ["clients", "list"], env={"OPENAI_GATEWAY_CONFIG_PATHS": str(folder / "gateway.yaml")}
        )
        assert re.search(rf"^team +\$1\.00 a day +\${spent:.4f} +\$0\.0000 ", listed.output, re.MULTILINE), (
            listed.output
        )
        metrics = requests.get(f"{gateway.url}/metrics", timeout=60).text
        assert 'openai_gateway_client_budget_usd{client="team",per="day"} 1.0' in metrics
        assert f'openai_gateway_client_spent_usd{{client="team"}} {spent!r}' in metrics
        assert 'openai_gateway_client_reserved_usd{client="team"} 0.0' in metrics
        # Another client has a budget of its own.
        assert _ask(gateway, "other", max_output_tokens=2000).ok
    with run_upstream(upstream) as there, run_gateway(folder, there.url, _settings(folder)) as gateway:
        assert _ask(gateway, max_output_tokens=2000).status_code == 429
        assert "budgets: team has spent" in gateway.log()


def test_calls_of_unknown_length_go_over_by_what_the_first_few_cost(folder: Path) -> None:
    upstream = LongAnswers()
    with run_upstream(upstream) as there, run_gateway(folder, there.url, _settings(folder), "-w", "2") as gateway:
        outcomes = Counter(_ask_many(gateway, 200))
        spent, reserved, in_flight = _read(folder)
        assert set(outcomes) <= {(200, None), (429, "gateway_budget_exceeded")}
        assert (reserved, in_flight) == (0.0, 0)
        # Four calls of $0.287 begin before anything is known: two of each worker.
        assert spent <= 1.0 + 4 * 0.287
        assert spent == pytest.approx(0.28674 * outcomes[200, None], abs=0.001)


def test_killed_worker_and_restart_neither_lose_nor_leak_money(folder: Path) -> None:
    upstream = LongAnswers()
    with run_upstream(upstream) as there, run_gateway(folder, there.url, _settings(folder), "-w", "2") as gateway:
        assert _ask(gateway, max_output_tokens=2000).ok
        upstream.go.clear()
        asking = threading.Thread(target=lambda: list(_ask_many(gateway, 40, max_output_tokens=2000)))
        asking.start()
        eventually(lambda: upstream.made[2000] == 41)
        assert _read(folder)[2] == 40
        killed = gateway.workers()[0]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: killed not in gateway.workers() and len(gateway.workers()) == 2)
        upstream.go.set()
        asking.join(60)
        spent, reserved, in_flight = _read(folder)
        assert (reserved, in_flight) == (0.0, 0)
        eventually(lambda: _logged(folder) == pytest.approx(spent, abs=1e-6))
        # What is left can be spent to the last call.
        fitting = next(number for number in itertools.count() if spent + 0.0202 * (number + 1) > 1.0)
        outcomes = Counter(
            itertools.chain.from_iterable(_ask_many(gateway, 1, max_output_tokens=2000) for _ in range(60))
        )
        assert outcomes[200, None] == pytest.approx(fitting, abs=1)
        assert _read(folder)[0] <= 1.0
        before = _read(folder)[0]
    with run_upstream(upstream) as there, run_gateway(folder, there.url, _settings(folder)) as gateway:
        assert _ask(gateway, max_output_tokens=2000).status_code == 429
        assert _read(folder)[0] == before
        assert "lost or moved" not in gateway.log()


def test_client_that_leaves_while_others_are_to_tell_what_calls_cost_holds_nothing(folder: Path) -> None:
    upstream = LongAnswers()
    with run_upstream(upstream) as there, run_gateway(folder, there.url, _settings(folder)) as gateway:
        upstream.go.clear()
        with ThreadPoolExecutor(2) as threads:
            first = [threads.submit(_ask, gateway) for _ in range(2)]
            eventually(lambda: upstream.made[LONG] == 2)
            headers = {"authorization": "Bearer gw-key-team"}
            with pytest.raises(requests.ReadTimeout):
                requests.post(f"{gateway.url}/v1/responses", json={"input": "x"}, headers=headers, timeout=0.5)
            log = folder / "usage.jsonl"
            eventually(lambda: log.exists() and json.loads(log.read_text())["outcome"] == "client_gone")
            assert _read(folder)[2] == 2
            upstream.go.set()
            assert [answer.result().status_code for answer in first] == [200, 200]
        assert upstream.made[LONG] == 2
        eventually(lambda: _read(folder)[1:] == (0.0, 0))


def test_run_is_held_to_the_budget_that_its_calls_name(folder: Path) -> None:
    upstream = LongAnswers()
    headers = {"x-gateway-run": "night", "x-gateway-run-budget-usd": "0.05"}
    with (
        run_upstream(upstream) as there,
        run_gateway(folder, there.url, {"price_file": str(folder / "prices.yaml")}) as gateway,
    ):

        def ask(**more: str) -> int:
            body = {"input": "x", "max_output_tokens": 2000}
            return requests.post(
                f"{gateway.url}/v1/responses", json=body, headers={**headers, **more}, timeout=60
            ).status_code

        assert [ask() for _ in range(4)] == [200, 200, 429, 429]
        assert ask(**{"x-gateway-run": "other"}) == 200
        assert ask(**{"x-gateway-run-budget-usd": "a lot"}) == 400


@pytest.mark.parametrize(("settings", "status"), [({}, 400), ({"unknown_cost": "allow"}, 200)], ids=["refuse", "allow"])
def test_budget_of_a_run_is_refused_for_a_model_without_a_price(
    folder: Path, settings: dict[str, str], status: int
) -> None:
    headers = {"x-gateway-run": "night", "x-gateway-run-budget-usd": "0.05"}
    with (
        run_upstream(LongAnswers()) as there,
        run_gateway(folder, there.url, {"openai_model": "no-price", **settings}) as gateway,
    ):
        body = {"input": "x", "max_output_tokens": 20}
        answer = requests.post(f"{gateway.url}/v1/responses", json=body, headers=headers, timeout=60)
        assert answer.status_code == status
        assert requests.post(f"{gateway.url}/v1/responses", json=body, timeout=60).status_code == 200
