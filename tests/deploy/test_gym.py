"""The gateway in the place of NeMo Gym's `openai_model` server: what Gym starts it with is what it serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import requests
import yaml

from openai_gateway.config import load_config
from tests.support.processes import ROOT, Gunicorn, eventually

GYM = ROOT / "conf" / "deploy" / "gym"
APP = GYM / "responses_api_models" / "openai_model" / "app.py"
# A gateway that says how it was called, and what it was handed.
STUB = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
config = sys.argv[sys.argv.index("--config") + 1]
found = {{"arguments": sys.argv[1:], "server": os.environ["OPENAI_GATEWAY_SERVER"], "config": Path(config).read_text()}}
print(json.dumps({{**found, "again": Path(config).read_text() == found["config"]}}))
"""


def _to_run() -> dict[str, Any]:
    """Return the merged config of a Gym run as Gym hands it to each server: hosts and ports chosen, variables not."""
    server = {
        "entrypoint": "app.py",
        "openai_base_url": "${policy_base_url}",
        "openai_api_key": "${policy_api_key}",
        "openai_model": "${policy_model_name}",
        "host": "127.0.0.1",
        "port": 12791,
    }
    judge = {**server, "openai_model": "the-judge", "port": 12385, "num_workers": 2}
    return {
        "policy_base_url": "http://127.0.0.1:1/v1",
        "policy_api_key": "sk-policy",
        "policy_model_name": "the-policy",
        "config_paths": ["somewhere.yaml"],
        "head_server": {"host": "127.0.0.1", "port": 11000},
        "policy_model": {"responses_api_models": {"openai_model": server}},
        "judge_model": {"responses_api_models": {"openai_model": judge}},
        "an_agent": {"responses_api_agents": {"simple_agent": {"entrypoint": "app.py", "port": 1}}},
    }


def _start(home: Path, name: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environ = {"NEMO_GYM_CONFIG_DICT": yaml.safe_dump({**_to_run(), **more}), "NEMO_GYM_CONFIG_PATH": name}
    return subprocess.run(
        [sys.executable, str(APP)],
        env={**os.environ, **environ, "OPENAI_GATEWAY_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_gateway_is_started_with_gyms_config_at_gyms_port(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "openai-gateway").write_text(STUB)
    (tmp_path / "bin" / "openai-gateway").chmod(0o755)
    for name, port, workers, model in (
        ("policy_model", 12791, 1, "the-policy"),
        ("judge_model", 12385, 2, "the-judge"),
    ):
        ended = _start(tmp_path, name)
        assert ended.returncode == 0, ended.stderr
        found = json.loads(ended.stdout)
        command, config, path, *rest = found["arguments"]
        assert (command, config) == ("serve", "--config")
        # Nothing with a key in it is left on a disk.
        assert path.startswith("/proc/self/fd/")
        assert found["again"]
        assert rest == ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
        (tmp_path / "run.yaml").write_text(found["config"])
        environ = {"OPENAI_GATEWAY_CONFIG_PATHS": "run.yaml", "OPENAI_GATEWAY_SERVER": found["server"]}
        served = load_config(environ, cwd=tmp_path)
        assert served.default_server == name
        assert served.servers[name].openai_model == model
        # A collection outlasts a limit of so many calls a minute.
        server = served.servers[name]
        assert (server.max_retries, server.retry_budget_s, server.retry_ratio) == (100, 3600, None)


def test_what_the_config_says_of_retries_stays(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "openai-gateway").write_text(STUB)
    (tmp_path / "bin" / "openai-gateway").chmod(0o755)
    run = _to_run()
    run["policy_model"]["responses_api_models"]["openai_model"].update(max_retries=3, retry_ratio=0.5)
    found = json.loads(_start(tmp_path, "policy_model", **run).stdout)
    (tmp_path / "run.yaml").write_text(found["config"])
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": "run.yaml", "OPENAI_GATEWAY_SERVER": "policy_model"}
    server = load_config(environ, cwd=tmp_path).servers["policy_model"]
    assert (server.max_retries, server.retry_budget_s, server.retry_ratio) == (3, 3600, 0.5)


def test_dry_run_of_gym_ends_without_a_gateway(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "openai-gateway").write_text(STUB)
    (tmp_path / "bin" / "openai-gateway").chmod(0o755)
    ended = _start(tmp_path, "policy_model", dry_run=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert _start(tmp_path / "nowhere", "policy_model", dry_run=True).returncode == 1


def test_gym_finds_server_and_config_where_it_looks_under_an_extra_root() -> None:
    folder = GYM / "responses_api_models" / "openai_model"
    assert {path.name for path in folder.iterdir()} >= {"app.py", "requirements.txt", "configs"}
    path = folder / "configs" / "openai_model.yaml"
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": str(path)}
    values = {"policy_base_url": "http://127.0.0.1:1/v1", "policy_api_key": "sk-1", "policy_model_name": "m"}
    served = load_config(environ, [f"++{key}={value}" for key, value in values.items()], cwd=GYM)
    assert (
        yaml.safe_load(path.read_text())["policy_model"]["responses_api_models"]["openai_model"]["entrypoint"]
        == "app.py"
    )
    assert served.servers["policy_model"].openai_model == "m"


def test_gateway_that_gym_starts_serves_the_server_named_and_reads_its_config_again(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    gateway = tmp_path / "bin" / "openai-gateway"
    gateway.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m openai_gateway.cli "$@"\n')
    gateway.chmod(0o755)
    run = _to_run()
    run["judge_model"]["responses_api_models"]["openai_model"]["port"] = 0
    environ = {"NEMO_GYM_CONFIG_DICT": yaml.safe_dump(run), "NEMO_GYM_CONFIG_PATH": "judge_model"}
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(APP)],
            cwd=tmp_path,
            env={**os.environ, **environ, "OPENAI_GATEWAY_HOME": str(tmp_path)},
            stdout=log,
            stderr=log,
        )
    try:
        running = Gunicorn(process, log_path)
        assert _get_models(running) == ["the-judge"]
        running.send_signal(signal.SIGHUP)
        eventually(lambda: running.log().count("Booting worker") == 4)
        assert _get_models(running) == ["the-judge"]
        assert "last good config" not in running.log()
    finally:
        process.terminate()
        assert process.wait(60) == 0


def _get_models(gateway: Gunicorn) -> list[str]:
    return [model["id"] for model in requests.get(f"{gateway.url}/v1/models", timeout=60).json()["data"]]


def test_gateway_that_is_not_there_is_named_with_the_cure(tmp_path: Path) -> None:
    ended = _start(tmp_path, "policy_model")
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("set OPENAI_GATEWAY_HOME to the virtual environment that has openai_gateway.")
    assert "sk-policy" not in ended.stdout + ended.stderr
