"""`openai-gateway collect` where calls have to wait: for a limit, and for an upstream that is away."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import requests

from tests.e2e.test_collect import COLLECT, ENVIRON, _lines, _stats, _write_rows
from tests.support.processes import eventually, run_command, run_gateway, run_simulator, write_config

SIMULATOR = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "--no-control-socket"]
APP = "openai_gateway.simulator.wsgi:app"


def _start(folder: Path, upstream_url: str, *arguments: str) -> subprocess.Popen[str]:
    config = write_config(folder, upstream_url, {"retry_budget_s": 600})
    command = [*COLLECT, "--config", str(config), *arguments]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(command, cwd=folder, env=ENVIRON, stdout=said, stderr=said, text=True)


def test_ctrl_c_sends_nothing_that_still_waits_for_a_limit(tmp_path: Path) -> None:
    settings = {"api_key": "sk-upstream-key", "in_flight": 2, "latency_ms": 1500}
    _write_rows(tmp_path, 60)
    with run_simulator(tmp_path, settings) as upstream:
        run = _start(tmp_path, upstream.url, "--concurrency", "40")
        eventually(lambda: _lines(tmp_path / "o.jsonl") >= 4)
        run.send_signal(signal.SIGINT)
        eventually(lambda: "no new calls" in (tmp_path / "said").read_text())
        sent = _stats(upstream)["requests"]
        assert run.wait(60) == 130
        stats = _stats(upstream)
        # One may have been on its way as the signal came; 36 waited.
        assert stats["requests"] <= sent + 2
        assert stats["aborted"] == 0
        assert _lines(tmp_path / "o.jsonl") == stats["by_status"]["200"]
        assert _lines(tmp_path / "o_failures.jsonl") == 0


def test_upstream_that_is_away_for_a_while_costs_no_row(tmp_path: Path) -> None:
    _write_rows(tmp_path, 60)
    environ = {"OPENAI_GATEWAY_SIMULATOR_OVERRIDES": json.dumps({"latency_ms": 100})}
    with run_command([*SIMULATOR, "-b", "127.0.0.1:0", APP], tmp_path, environ) as upstream:
        url = upstream.url
        run = _start(tmp_path, url, "--concurrency", "4")
        eventually(lambda: _lines(tmp_path / "o.jsonl") >= 8)
        upstream.stop(signal.SIGQUIT)
        done = _lines(tmp_path / "o.jsonl")
    eventually(lambda: "upstream away for" in (tmp_path / "said").read_text())
    assert run.poll() is None
    with run_command([*SIMULATOR, "-b", url.removeprefix("http://"), APP], tmp_path, environ) as upstream:
        assert run.wait(90) == 0
        sent = _stats(upstream)["requests"]
        # Only one asked at a time: none of them was lost or asked for twice.
        assert sent <= 60 - done + 4
        assert requests.get(f"{upstream.url}/sim/stats", timeout=60).json()["aborted"] == 0
    assert _lines(tmp_path / "o.jsonl") == 60
    assert _lines(tmp_path / "o_failures.jsonl") == 0
    assert re.search(r"60 of 60 done", (tmp_path / "said").read_text())


def test_queue_is_closed_by_an_operators_key_only(tmp_path: Path) -> None:
    (tmp_path / "clients.yaml").write_text("team: {key: gw-team}\n")
    keys = {"gateway_api_keys": ["gw-operator"], "clients_file": str(tmp_path / "clients.yaml")}
    with run_gateway(tmp_path, "http://127.0.0.1:9", keys) as gateway:

        def close(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return requests.delete(f"{gateway.url}/queue", headers=headers, timeout=60).status_code

        assert [close(key) for key in ("", "wrong", "gw-team", "gw-operator")] == [401, 401, 403, 204]
    with run_gateway(tmp_path, "http://127.0.0.1:9") as gateway:
        answer = requests.delete(f"{gateway.url}/queue", timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "operator_key_needed")
