"""`openai-gateway serve` as a person starts it: what it prints, serves, takes as overrides, and leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from click.testing import CliRunner

from openai_gateway.cli.main import main
from openai_gateway.processes import start_of
from tests.support.processes import ROOT, eventually, to_config
from tests.support.upstreams import PATHS, answer_always, run_upstream

COMMAND = [sys.executable, "-m", "openai_gateway.cli", "serve"]
NAMES = ("CONFIG_PATHS", "OVERRIDES", "ENV_YAML", "SERVER", "SIMULATOR_CONFIG", "SIMULATOR_OVERRIDES")
PREFIX = "++policy_model.responses_api_models.openai_model"


def _environ(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key.removeprefix("OPENAI_GATEWAY_") not in NAMES}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}


class Serving:
    """A running `serve`; `shown()` is what it and its gunicorn wrote."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.url = self.wait_for(r"Listening at: (\S+)")[1]
        eventually(self._answers)

    def shown(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        eventually(lambda: re.search(pattern, self.shown()) or self.process.poll() is not None)
        found = re.search(pattern, self.shown())
        assert found, self.shown()
        return found

    def _answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/", timeout=2).ok
        assert self.process.poll() is None, self.shown()
        return False


@contextlib.contextmanager
def _serve(folder: Path, *arguments: str) -> Iterator[Serving]:
    log = folder / f"serve-{time.monotonic_ns()}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, "--port", "0", *arguments], cwd=folder, env=_environ(folder), stdout=file, stderr=file
        )
    try:
        yield Serving(process, log)
    finally:
        process.send_signal(signal.SIGQUIT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)


def _fail(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=_environ(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_simulator_takes_the_place_of_whatever_a_config_lacks_or_names_and_ends_with_it(tmp_path: Path) -> None:
    """Old names, a key file, references that nothing sets, several servers: no paid endpoint is called."""
    servers = {
        "policy_model": {"base_url": "http://127.0.0.1:9/v1", "api_key": "${policy_api_key}", "model": "old-style"},
        "judge_model": {
            "openai_base_url": "${judge_base_url}",
            "openai_api_key_file": "no-such-file",
            "openai_model": "${judge_model_name}",
            "openai_default_headers": {"api-key": "${judge_api_key}"},
        },
    }
    tree = {name: {"responses_api_models": {"openai_model": settings}} for name, settings in servers.items()}
    (tmp_path / "both.yaml").write_text(json.dumps(tree))
    with _serve(tmp_path, "--config", "both.yaml", "--simulate", "--workers", "2") as serving:
        for path, model in (("/v1/responses", "old-style"), ("/judge_model/v1/responses", "simulated-model")):
            answer = requests.post(f"{serving.url}{path}", json={"input": "x"}, timeout=60)
            assert (answer.status_code, answer.json()["model"]) == (200, model)
        assert serving.shown().count("(the simulator)") == 2
        assert f"serves    {serving.url}/v1  and  {serving.url}/policy_model/v1" in serving.shown()
        assert f"serves    {serving.url}/judge_model/v1" in serving.shown()
        assert f"status: {serving.url}/status" in serving.shown()
        assert serving.shown().count("keys      none asked for") == 2
        simulator = serving.wait_for(r"upstream +(\S+)/v1  \(the simulator\)")[1]
        assert requests.get(f"{simulator}/sim/stats", timeout=60).ok
        # However it ends: no chance to tidy up is given here.
        serving.process.kill()
        port = int(simulator.rpartition(":")[2])
        eventually(lambda: not _is_listening(port))


def test_gym_overrides_reach_the_workers_and_survive_a_reload_and_stopping_leaves_no_folder(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream:
        (tmp_path / "a.yaml").write_text(to_config("http://127.0.0.1:9"))
        (tmp_path / "b.yaml").write_text(to_config(upstream.url, {"gateway_api_keys": ["a-key"]}))
        overrides = [
            "+config_paths=[a.yaml,b.yaml]",
            f"{PREFIX}.max_concurrent_requests=8",
            f"{PREFIX}.max_concurrent_requests_total=4",
            f"{PREFIX}.openai_model=o",
        ]
        with _serve(tmp_path, *overrides) as serving:
            assert re.search(
                r"model +o\n +upstream +\S+\n +cap +8 calls at once; 4 calls at once over all workers\n",
                serving.shown(),
            )
            servers = requests.get(f"{serving.url}/readyz", timeout=60).json()["servers"]
            assert servers["policy_model"]["max_concurrent_requests"] == 8
            (tmp_path / "b.yaml").write_text(to_config(upstream.url, {"extra_body": {"seed": 1}}))
            serving.process.send_signal(signal.SIGHUP)
            eventually(lambda: serving.shown().count("Booting worker") == 2)

            def is_reloaded() -> bool:
                # Until then a key is asked for.
                if not requests.post(serving.url + PATHS["chat"], json={"messages": []}, timeout=60).ok:
                    return False
                body = json.loads(upstream.requests[-1].body)
                assert body["model"] == "o"
                return body.get("seed") == 1

            eventually(is_reloaded)
            assert "keys      asked for" in serving.shown()
            folders = [folder.name.split(".")[2].partition("-") for folder in tmp_path.glob("openai_gateway.*")]
            assert [pid for _, _, pid in folders] == [str(serving.process.pid)]
            serving.process.terminate()
            assert serving.process.wait(60) == 0
            assert not list(tmp_path.glob("openai_gateway.*"))
        assert "sk-upstream-key" not in serving.shown()


def test_usr2_starts_another_gateway_at_the_same_socket_which_outlives_the_first(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream:
        (tmp_path / "a.yaml").write_text(to_config(upstream.url))
        with _serve(tmp_path, "--config", "a.yaml") as serving:
            (tmp_path / "a.yaml").write_text(to_config(upstream.url, {"openai_model": "of-the-second"}))
            serving.process.send_signal(signal.SIGUSR2)
            start = r"\[(\d+)\] \[INFO\] Starting gunicorn"
            second = int(serving.wait_for(rf"{start}[\s\S]+{start}")[2])
            try:
                eventually(lambda: serving.shown().count("Booting worker") == 2)
                serving.process.terminate()
                assert serving.process.wait(60) == 0
                assert requests.post(serving.url + PATHS["chat"], json={"messages": []}, timeout=60).ok
                assert b'"of-the-second"' in upstream.requests[-1].body
            finally:
                os.kill(second, signal.SIGTERM)
                eventually(lambda: not start_of(second))
        assert not list(tmp_path.glob("openai_gateway.*"))


def test_bad_config_is_exit_code_2_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(to_config("http://x", {"max_retrys": 1}))
    ended = _fail(tmp_path, "--config", "bad.yaml")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "did you mean max_retries" in ended.stderr
    run = CliRunner().invoke
    assert run(main, ["serve", "--config", str(tmp_path / "no-such.yaml"), "--simulate"]).exit_code == 2
    result = run(main, ["serve", "policy.yaml"])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "0123456789" not in run(main, ["serve", "sk-proj-0123456789"]).stderr


def test_taken_port_is_one_line_with_the_cure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = _fail(tmp_path, "--simulate", "--port", str(taken.getsockname()[1]))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert "give another port" in ended.stderr
