"""The command line as people and scripts use it: help, versions, errors, the demo, the simulator."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import requests
from click.testing import CliRunner

from openai_gateway import __version__
from openai_gateway.cli.main import main

COMMAND = [sys.executable, "-m", "openai_gateway.cli"]


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["simulate", "-h"]])
def test_help_says_what_and_how(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    assert "openai-gateway demo" in result.output or "Examples:" in result.output


def test_version_is_the_packages() -> None:
    assert __version__ in CliRunner().invoke(main, ["--version"]).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command"),
        (["simulate", "--rpm", "0"], "--rpm"),
        (["simulate", "--config", "no-such-file.yaml"], "no-such-file.yaml"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_no_traceback(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, said in result.output) == (2, True)
    assert "Traceback" not in result.output


def test_bad_simulator_setting_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("settings") / "simulator.yaml"
    path.write_text("latencyms: 5\n")
    result = CliRunner().invoke(main, ["simulate", "--config", str(path)])
    assert (result.exit_code, "latencyms" in result.output) == (2, True)


def test_demo_once_shows_every_kind_and_ends_with_0() -> None:
    ended = subprocess.run([*COMMAND, "demo", "--once"], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for kind in ("Responses ", "Responses, streamed", "Chat ", "Chat, streamed", "Function call"):
        assert kind in ended.stdout
    assert "All went well." in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_serves_on_until_it_is_stopped_and_leaves_no_process(number: int) -> None:
    demo = subprocess.Popen([*COMMAND, "demo"], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    shown = ""
    while "Serving until" not in shown:
        line = demo.stdout.readline()
        assert line, shown
        shown += line
    url = shown.partition("Point a client at  ")[2].split()[0]
    assert requests.post(f"{url}/responses", json={"input": "x"}, timeout=10).ok
    demo.send_signal(number)
    assert demo.wait(20) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=2)


def test_simulate_serves_with_its_options() -> None:
    command = [*COMMAND, "simulate", "--port", "0", "--api-key", "k", "--fail", "503"]
    simulator = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert simulator.stderr is not None
    try:
        lines: list[str] = []
        while not any("Listening at" in line for line in lines):
            lines.append(simulator.stderr.readline())
        url = lines[-1].partition("Listening at: ")[2].split()[0]
        deadline = time.monotonic() + 10
        body = {"model": "m", "input": "x"}
        headers = {"authorization": "Bearer k"}
        while time.monotonic() < deadline:
            answer = requests.post(f"{url}/v1/responses", json=body, headers=headers, timeout=10)
            if answer.status_code == 503:
                break
        assert answer.status_code == 503
        assert requests.post(f"{url}/v1/responses", json=body, timeout=10).status_code == 401
    finally:
        simulator.terminate()
        simulator.wait(15)
        simulator.stderr.close()
