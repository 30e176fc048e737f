"""Named clients at a running gateway: who is let in, and whose calls the record says they were."""

from __future__ import annotations

import json
import time
from pathlib import Path

import requests
from click.testing import CliRunner

from openai_gateway.cli.main import main
from tests.support.processes import Gunicorn, eventually, run_gateway, run_simulator


def _ask(gateway: Gunicorn, key: str, server: str = "") -> tuple[int, str | None]:
    answer = requests.post(
        f"{gateway.url}{server}/v1/responses",
        json={"input": "x"},
        headers={"authorization": f"Bearer {key}"},
        timeout=60,
    )
    return answer.status_code, None if answer.ok else answer.json()["error"]["code"]


def test_clients_are_let_in_by_name_and_put_out_within_a_second(tmp_path: Path) -> None:
    clients, log = tmp_path / "clients.yaml", tmp_path / "usage.jsonl"
    clients.write_text("one: {key: gw-key-one}\ntwo: {key: gw-key-two}\n")
    settings = {"clients_file": str(clients), "usage_log": str(log), "gateway_api_keys": ["gw-operator"]}
    with run_simulator(tmp_path) as simulator, run_gateway(tmp_path, simulator.url, settings) as gateway:
        assert [_ask(gateway, f"gw-key-{name}") for name in ("one", "two", "six")] == [
            (200, None), (200, None), (401, "invalid_api_key"),
        ]  # fmt: skip
        assert _ask(gateway, "gw-operator") == (200, None)
        # Renamed into its place, as secrets are.
        new = tmp_path / "new"
        new.write_text("two: {key: gw-key-two}\n")
        new.rename(clients)
        time.sleep(1.1)
        assert _ask(gateway, "gw-key-one") == (401, "invalid_api_key")
        assert _ask(gateway, "gw-key-two") == (200, None)
        eventually(lambda: len(log.read_text().splitlines()) == 4)
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert [record["client"] for record in records] == ["one", "two", None, "two"]
        metrics = requests.get(f"{gateway.url}/metrics", timeout=60).text
        # Of those that the file names now.
        assert 'openai_gateway_client_calls_total{client="two"} 2.0' in metrics
        assert 'client="one"' not in metrics
        assert "openai_gateway_key_file_problems 0.0" in metrics
        clients.write_text("two: {key: }")
        time.sleep(1.1)
        assert "openai_gateway_key_file_problems 1.0" in requests.get(f"{gateway.url}/metrics", timeout=60).text
        assert _ask(gateway, "gw-key-two") == (200, None)
        page = requests.get(f"{gateway.url}/status", headers={"authorization": "Bearer gw-operator"}, timeout=60).text
        assert "clients.yaml can&#39;t be used: two: one of key and key_sha256 is wanted" in page
        refused = requests.get(f"{gateway.url}/status", headers={"authorization": "Bearer gw-key-two"}, timeout=60)
        assert refused.status_code == 401
        assert "gw-key" not in gateway.log() + log.read_text() + metrics + page
    summed = CliRunner().invoke(main, ["usage", str(log), "--by", "client", "--format", "json"])
    assert {name: found["calls"] for name, found in json.loads(summed.output)["sums"].items()} == {
        "-": 1, "one": 1, "two": 3,
    }  # fmt: skip
