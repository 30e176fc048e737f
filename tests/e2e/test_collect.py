"""`openai-gateway collect` as a process: killed and resumed, stopped in order, stopped by what no call survives."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import ROOT, Gunicorn, eventually, run_gateway, run_simulator, write_config

COLLECT = [sys.executable, "-m", "openai_gateway.cli", "collect", "--input", "p.jsonl", "--output", "o.jsonl"]
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}
PRICED = {"openai_model": "gpt-5-mini", "price_file": str(ROOT / "conf" / "prices.yaml")}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    settings = {"api_key": "sk-upstream-key", "latency_ms": 40}
    with run_simulator(tmp_path_factory.mktemp("simulator"), settings) as running:
        yield running


@pytest.fixture(scope="module")
def running_gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Gunicorn) -> Iterator[Gunicorn]:
    with run_gateway(tmp_path_factory.mktemp("gateway"), upstream.url, {**PRICED, "max_retries": 0}) as running:
        yield running


def _write_rows(folder: Path, count: int, **params: Any) -> None:
    rows = (
        {"id": f"row {task}", "responses_create_params": {"input": f"question {task}", **params}}
        for task in range(count)
    )
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _start(folder: Path, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COLLECT, *arguments],
        cwd=folder,
        env=ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COLLECT, *arguments], cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=60, check=False
    )


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _stats(simulator: Gunicorn) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{simulator.url}/sim/stats", timeout=60).json()
    return found


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_run_that_is_killed_goes_on_with_nothing_lost_and_nothing_doubled(tmp_path: Path, upstream: Gunicorn) -> None:
    config = write_config(tmp_path, upstream.url)
    _write_rows(tmp_path, 150)
    requests.post(f"{upstream.url}/sim/reset", timeout=60)
    arguments = ("--config", str(config), "--num-repeats", "2", "--concurrency", "16", "--resume")
    for lines in (40, 140):
        run = _start(tmp_path, *arguments)
        eventually(lambda lines=lines: _lines(tmp_path / "o.jsonl") >= lines)
        (gateway,) = _children(run.pid)
        run.kill()
        run.communicate(timeout=60)
        eventually(lambda gateway=gateway: not _is_alive(gateway))
        # What a kill within a write leaves.
        with (tmp_path / "o.jsonl").open("ab") as file:
            file.write(b'{"id": "row 149", "responses_create_params": {"inp')
    ended = _run(tmp_path, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "cut off a torn last line" in ended.stderr
    found = _read(tmp_path / "o.jsonl")
    keys = Counter((row["_ng_task_index"], row["_ng_rollout_index"]) for row in found)
    assert set(keys) == {(task, rollout) for task in range(150) for rollout in range(2)}
    assert set(keys.values()) == {1}
    for row in found:
        assert row["id"] == f"row {row['_ng_task_index']}"
        assert f"question {row['_ng_task_index']}." in json.dumps(row["response"])
    # Only what was in flight at a kill was asked for twice.
    assert 300 <= _stats(upstream)["requests"] <= 300 + 2 * 16
    sums = json.loads((tmp_path / "o_metrics.json").read_text())
    assert (sums["answers"], sums["calls"]["done"], sums["finish_reasons"]) == (300, 300, {"completed": 300})
    assert sums["tokens"]["output"] == sum(row["response"]["usage"]["output_tokens"] for row in found)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_lets_calls_in_flight_finish(tmp_path: Path, upstream: Gunicorn, number: int) -> None:
    config = write_config(tmp_path, upstream.url)
    _write_rows(tmp_path, 400, metadata={"sim_latency_ms": "500"})
    requests.post(f"{upstream.url}/sim/reset", timeout=60)
    run = _start(tmp_path, "--config", str(config), "--concurrency", "8", start_new_session=True)
    eventually(lambda: _lines(tmp_path / "o.jsonl") >= 10)
    # As from a terminal, which asks everybody in the foreground.
    os.killpg(run.pid, number)
    said, complained = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "no new calls" in complained
    assert "--resume goes on" in complained
    stats = _stats(upstream)
    assert stats["aborted"] == 0
    assert 10 <= _lines(tmp_path / "o.jsonl") == stats["finished"] < 400
    assert f"{stats['finished']} of 400 done" in said


def test_second_ctrl_c_cancels_at_once(tmp_path: Path, upstream: Gunicorn) -> None:
    config = write_config(tmp_path, upstream.url, PRICED)
    _write_rows(tmp_path, 4, metadata={"sim_fault": "silence_before_headers"})
    run = _start(tmp_path, "--config", str(config))
    eventually(lambda: _stats(upstream)["in_flight"] == 4)
    run.send_signal(signal.SIGINT)
    assert run.stderr is not None
    while "Ctrl-C again cancels" not in run.stderr.readline():
        pass
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    # The upstream worked on them, so that they may be billed.
    assert (_lines(tmp_path / "o.jsonl"), _lines(tmp_path / "o_failures.jsonl")) == (0, 4)
    found = json.loads((tmp_path / "o_metrics.json").read_text())
    assert found["perhaps_billed_usd"] > 0
    assert found["this_run"]["failed"]["cancelled"]["calls"] == 4
    eventually(lambda: _stats(upstream)["in_flight"] == 0)


def test_refused_key_stops_the_run_and_is_held_against_no_call(tmp_path: Path, upstream: Gunicorn) -> None:
    config = write_config(tmp_path, upstream.url)
    _write_rows(tmp_path, 60)
    wrong = "++policy_model.responses_api_models.openai_model.openai_api_key=sk-a-wrong-key"
    ended = _run(tmp_path, "--config", str(config), "--concurrency", "4", wrong)
    assert ended.returncode == 1
    assert "set openai_api_key" in ended.stderr
    assert "sk-a-wrong-key" not in ended.stdout + ended.stderr
    assert _lines(tmp_path / "o_failures.jsonl") == 4
    ended = _run(tmp_path, "--config", str(config), "--resume")
    assert (ended.returncode, _lines(tmp_path / "o.jsonl")) == (0, 60)
    assert "60 to do, 0 done\n" in ended.stderr


def test_failed_call_is_tried_again_three_times(tmp_path: Path, running_gateway: Gunicorn) -> None:
    bad = {"responses_create_params": {"input": "x", "metadata": {"sim_status": "400"}}, "mine": 1}
    good = {"responses_create_params": {"input": "y"}}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(bad)}\n{json.dumps(good)}\n")
    target = ("--base-url", f"{running_gateway.url}/v1", "--resume")
    for failures in (1, 2, 3, 4, 4):
        ended = _run(tmp_path, *target)
        assert ended.returncode == 1
        assert _lines(tmp_path / "o_failures.jsonl") == failures
    assert "1 given up after 4 failures" in ended.stdout
    assert "take their lines out of o_failures.jsonl; --resume tries them again" in ended.stdout
    failed = _read(tmp_path / "o_failures.jsonl")[0]
    assert {name: failed[name] for name in ("mine", "_ng_task_index", "_ng_rollout_index", "_ng_failure_class")} == {
        "mine": 1,
        "_ng_task_index": 0,
        "_ng_rollout_index": 0,
        "_ng_failure_class": "invalid_request",
    }
    assert (failed["_ng_failure"]["status"], failed["_ng_failure"]["attempts"]) == (400, 1)
    assert failed["_ng_failure"]["what_to_do"]
    assert [row["_ng_task_index"] for row in _read(tmp_path / "o.jsonl")] == [1]
    # Both cures that are told work.
    (tmp_path / "o_failures.jsonl").write_text("")
    assert _run(tmp_path, *target).returncode == 1
    assert _lines(tmp_path / "o_failures.jsonl") == 1
    (tmp_path / "p.jsonl").write_text(f"{json.dumps({**good, 'mine': 1})}\n{json.dumps(good)}\n")
    assert _run(tmp_path, *target).returncode == 0
    assert [row["_ng_task_index"] for row in _read(tmp_path / "o.jsonl")] == [1, 0]


def test_run_in_which_all_calls_fail_stops(tmp_path: Path, running_gateway: Gunicorn) -> None:
    _write_rows(tmp_path, 300, metadata={"sim_status": "400"})
    ended = _run(tmp_path, "--base-url", f"{running_gateway.url}/v1", "--concurrency", "8")
    assert ended.returncode == 1
    assert "calls all failed" in ended.stderr
    assert 100 <= _lines(tmp_path / "o_failures.jsonl") <= 108


def test_both_apis_and_tool_calls_are_recorded(tmp_path: Path, running_gateway: Gunicorn) -> None:
    tool = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    rows = [
        {"messages": [{"role": "user", "content": "a"}], "user": {"of": "the task"}},
        {"chat_create_params": {"messages": [{"role": "user", "content": "b"}], "stream": True}},
        {"responses_create_params": {"input": "c", "tools": [tool]}},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = subprocess.run(
        [
            *COLLECT[:4],
            "--base-url",
            f"{running_gateway.url}/v1",
            "+input_jsonl_fpath=p.jsonl",
            "+output_jsonl_fpath=o.jsonl",
            "+num_repeats=2",
            "+limit=3",
            "+num_samples_in_parallel=2",
        ],
        cwd=tmp_path,
        env=ENVIRON,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = _read(tmp_path / "o.jsonl")
    assert len(found) == 6
    for row in found:
        response, task = row.pop("response"), row.pop("_ng_task_index")
        assert row.pop("_ng_rollout_index") in (0, 1)
        # Told where a call waited, which it may on a busy machine.
        assert row.pop("_ng_duration_s") >= row.pop("_ng_latency_s", 0)
        assert row == rows[task]
        if task == 2:
            assert response["output"][0]["type"] == "function_call"
        else:
            assert response["choices"][0]["message"]["content"]


def test_max_cost_is_not_gone_beyond(tmp_path: Path, running_gateway: Gunicorn) -> None:
    _write_rows(tmp_path, 300, max_output_tokens=100)
    prices = str(ROOT / "conf" / "prices.yaml")
    target = ("--base-url", f"{running_gateway.url}/v1", "--price-file", prices, "--max-cost", "0.005")
    ended = _run(tmp_path, *target)
    assert ended.returncode == 1
    assert "Stopped by --max-cost" in ended.stderr
    sums = json.loads((tmp_path / "o_metrics.json").read_text())
    assert 0.004 < sums["cost_usd"] <= 0.005
    # What earlier runs cost counts.
    assert _run(tmp_path, *target, "--resume").returncode == 1
    assert json.loads((tmp_path / "o_metrics.json").read_text())["cost_usd"] == sums["cost_usd"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "(2,048 output tokens assumed); raise --max-cost above that, or set max_output_tokens"),
        ({"max_output_tokens": 900}, "(900 output tokens); raise --max-cost above that, or lower max_output_tokens"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_max_cost_below_one_call_is_told_before_a_gateway_starts(
    tmp_path: Path, params: dict[str, Any], said: str, more: tuple[str, ...]
) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9", PRICED)
    _write_rows(tmp_path, 3, **params)
    ended = _run(tmp_path, "--config", str(config), "--max-cost", "0.00012", *more)
    assert ended.returncode == 2
    assert "stops before $0.00012" in ended.stdout + ended.stderr
    assert "one call may cost up to $0.00" in ended.stderr
    assert said in ended.stderr
    assert "Starting" not in ended.stderr


def test_max_cost_without_a_price_is_refused(tmp_path: Path, upstream: Gunicorn) -> None:
    _write_rows(tmp_path, 3)
    ended = _run(tmp_path, "--config", str(write_config(tmp_path, upstream.url)), "--max-cost", "1")
    assert (ended.returncode, "--price-file" in ended.stderr) == (2, True)
    assert not (tmp_path / "o.jsonl").exists()


def test_dry_run_estimates_and_neither_calls_nor_writes(tmp_path: Path) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9", {**PRICED, "extra_body": {"max_output_tokens": 1000}})
    _write_rows(tmp_path, 100)
    ended = _run(tmp_path, "--config", str(config), "--num-repeats", "3", "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "100 rows, 300 calls: 300 to do" in ended.stdout
    assert "at most 300,000 output tokens" in ended.stdout
    assert "at most about $0.60" in ended.stdout
    assert not list(tmp_path.glob("o*"))


def test_output_in_use_or_of_an_earlier_run_is_refused(tmp_path: Path, running_gateway: Gunicorn) -> None:
    _write_rows(tmp_path, 2)
    target = ("--base-url", f"{running_gateway.url}/v1")
    assert _run(tmp_path, *target).returncode == 0
    ended = _run(tmp_path, *target)
    assert (ended.returncode, "--resume" in ended.stderr) == (2, True)
    assert len(ended.stderr.splitlines()) == 1
    assert _lines(tmp_path / "o.jsonl") == 2


def test_bad_row_is_told_before_any_call(tmp_path: Path, running_gateway: Gunicorn) -> None:
    (tmp_path / "p.jsonl").write_text('{"responses_create_params": {"input": "x"}}\n{"prompt": "y"}\n')
    ended = _run(tmp_path, "--base-url", f"{running_gateway.url}/v1")
    assert (ended.returncode, "p.jsonl: line 2" in ended.stderr) == (2, True)
    assert _lines(tmp_path / "o.jsonl") == 0


def test_terminal_shows_a_bar_that_is_redrawn(tmp_path: Path, running_gateway: Gunicorn) -> None:
    _write_rows(tmp_path, 200)
    ours, theirs = pty.openpty()
    command = [*COLLECT, "--base-url", f"{running_gateway.url}/v1", "--concurrency", "8"]
    with subprocess.Popen(
        command, cwd=tmp_path, env={**ENVIRON, "COLUMNS": "120"}, stderr=theirs, stdout=theirs
    ) as run:
        os.close(theirs)
        shown = b""
        # A terminal whose last program has ended gives an error.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        assert run.wait(60) == 0
    drawn = [line for line in shown.decode().split("\r") if line.startswith("[")]
    assert len(drawn) > 2
    assert "calls/s" in drawn[-1]
    assert "200/200 100 %" in drawn[-1]
    assert any("ETA" in line for line in drawn)


def test_file_that_is_written_to_is_no_input(tmp_path: Path) -> None:
    _write_rows(tmp_path, 1)
    (tmp_path / "p.jsonl").rename(tmp_path / "o_failures.jsonl")
    command = [*COLLECT[:4], "--input", "o_failures.jsonl", "--output", "o.jsonl", "--resume"]
    ended = subprocess.run(command, cwd=tmp_path, env=ENVIRON, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "another --output" in ended.stderr) == (2, True)


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("127.0.0.1:8000/v1", 2, "must look like"),
        ("http://127.0.0.1:port/v1", 2, "must look like"),
        ("http://127.0.0.1:9/v1", 1, "ECONNREFUSED"),
        ("http://no-such-host.invalid/v1", 1, "no answer from http://no-such-host.invalid"),
    ],
)
def test_gateway_that_cant_be_reached_is_told_in_one_line(tmp_path: Path, url: str, code: int, said: str) -> None:
    _write_rows(tmp_path, 1)
    ended = _run(tmp_path, "--base-url", url)
    assert (ended.returncode, said in ended.stderr) == (code, True)
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "o.jsonl").exists()
