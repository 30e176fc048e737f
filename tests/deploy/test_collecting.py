"""The jobs for collecting on many machines do what they say, with the commands that stand in them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.support.processes import ROOT, Gunicorn, eventually, run_gateway, run_simulator

SCRIPT = ROOT / "conf" / "deploy" / "slurm" / "collect.sbatch"
JOB = yaml.safe_load((ROOT / "conf" / "deploy" / "kubernetes" / "jobs" / "collect.yaml").read_text())
COLLECT = [sys.executable, "-m", "openai_gateway.cli"]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with run_simulator(tmp_path_factory.mktemp("simulator")) as running:
        yield running


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, upstream: Gunicorn) -> Iterator[str]:
    with run_gateway(tmp_path_factory.mktemp("gateway"), upstream.url) as running:
        yield f"{running.url}/v1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with prompts, and with programs that stand in for the gateway's environment and for Slurm."""
    rows = ({"responses_create_params": {"input": f"question {task}"}} for task in range(8))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("openai-gateway", f'PYTHONPATH={ROOT} exec {sys.executable} -m openai_gateway.cli "$@"'),
        ("scontrol", f'echo "$@" >> {tmp_path}/requeued'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def _start_task(folder: Path, number: int, url: str) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "OPENAI_GATEWAY_HOME": str(folder),
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": str(number),
        "SLURM_ARRAY_TASK_COUNT": "2",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_STEP": "1",
    }
    arguments = ["--input", "prompts.jsonl", "--output", "o.jsonl", "--base-url", url]
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_tasks_of_a_slurm_array_collect_their_parts(folder: Path, url: str) -> None:
    for number in (1, 2):
        task = _start_task(folder, number, url)
        _, complained = task.communicate(timeout=60)
        assert task.returncode == 0, complained
    found = [row["_ng_task_index"] for number in (1, 2) for row in _lines(folder / f"o_shard-{number}-of-2.jsonl")]
    assert sorted(found) == list(range(8))
    assert not (folder / "requeued").exists()


def test_slurm_task_that_is_ended_lets_calls_finish_and_is_queued_again(
    folder: Path, upstream: Gunicorn, url: str
) -> None:
    rows = _lines(folder / "prompts.jsonl")
    for row in rows:
        row["responses_create_params"]["metadata"] = {"sim_latency_ms": "1500"}
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = _start_task(folder, 1, url)
    eventually(lambda: requests.get(f"{upstream.url}/sim/stats", timeout=60).json()["in_flight"] == 4)
    # As `--signal=B:TERM` does: to the shell alone.
    task.send_signal(signal.SIGTERM)
    task.communicate(timeout=60)
    assert task.returncode == 130
    assert len(_lines(folder / "o_shard-1-of-2.jsonl")) == 4
    assert (folder / "requeued").read_text() == "requeue 77_1\n"


def test_slurm_script_is_bash_and_asks_for_what_it_needs() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    asked = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=B:TERM@900" in asked
    assert "#SBATCH --requeue" in asked
    assert "#SBATCH --open-mode=append" in asked


def test_pods_of_a_kubernetes_job_collect_their_parts(folder: Path, url: str) -> None:
    spec = JOB["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environ = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    assert spec["completionMode"] == "Indexed"
    assert int(environ["JOB_COMPLETIONS"]) == spec["completions"] == spec["maxFailedIndexes"]
    command = [part.replace("/data/", "").replace("http://openai-gateway/v1", url) for part in container["command"]]
    assert command[0] == "openai-gateway"
    for index in ("0", str(spec["completions"] - 1), "7"):
        ended = subprocess.run(
            [*COLLECT, *command[1:]],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ, "JOB_COMPLETION_INDEX": index},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
    found = _lines(folder / "rollouts_shard-1-of-16.jsonl")
    assert [row["_ng_task_index"] for row in found] == [0] * 4
    assert [row["_ng_task_index"] for row in _lines(folder / "rollouts_shard-8-of-16.jsonl")] == [7] * 4
    # More parts than rows: some have nothing to do.
    assert (folder / "rollouts_shard-16-of-16.jsonl").read_text() == ""


def test_kubernetes_job_is_well_made() -> None:
    pod = JOB["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (JOB["apiVersion"], JOB["kind"]) == ("batch/v1", "Job")
    # What podFailurePolicy needs.
    assert pod["restartPolicy"] == "Never"
    assert JOB["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["securityContext"]["runAsNonRoot"]
