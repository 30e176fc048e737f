"""The command line as people and scripts use it: help, versions, errors, the demo, the simulator."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import requests
from click.testing import CliRunner

from openai_gateway import __version__
from openai_gateway.cli.main import main
from tests.support.processes import ROOT, eventually

COMMAND = [sys.executable, "-m", "openai_gateway.cli"]


@pytest.mark.parametrize("name", sorted(main.list_commands(click.Context(main))))
def test_help_of_each_command_says_what_and_teaches_by_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert CliRunner().invoke(main, [name, "-h"]).output == result.output
    what, _, examples = result.output.partition("xamples:")
    assert len(what.split()) > 10
    assert f"openai-gateway {name}" in examples
    assert result.output.count(f"openai-gateway {name}") >= 1
    # Examples that are wrapped can't be copied.
    assert max(len(line) for line in result.output.splitlines()) <= 120


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_and_a_way_to_begin(arguments: list[str]) -> None:
    output = CliRunner().invoke(main, arguments).output
    assert all(f"\n  {name} " in output for name in main.list_commands(click.Context(main)))
    assert "openai-gateway demo" in output


@pytest.mark.parametrize("arguments", [["--bad"], ["demo", "--bad"], ["nonsense"], ["bench"], ["serve", "nonsense"]])
def test_wrong_usage_is_one_line_that_says_where_help_is(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(" --help'")


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False)])
def test_errors_are_coloured_on_a_terminal_only_and_never_with_no_color(no_color: str, is_coloured: bool) -> None:
    ours, its = pty.openpty()
    environ = {**os.environ, "NO_COLOR": no_color}
    try:
        subprocess.run([*COMMAND, "nonsense"], stdin=its, stderr=its, env=environ, timeout=30, check=False)
        assert (b"\x1b[31mError:" in os.read(ours, 1000)) == is_coloured
    finally:
        os.close(ours)
        os.close(its)
    piped = subprocess.run([*COMMAND, "nonsense"], capture_output=True, env=environ, timeout=30, check=False)
    assert piped.stderr.startswith(b"Error:")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_printed(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_OPENAI_GATEWAY_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("openai-gateway c", {"check", "completion", "config"}),
        ("openai-gateway serve --wor", {"--workers"}),
        ("openai-gateway bench http://x --api ", {"responses", "chat"}),
    ],
)
def test_completion_knows_commands_options_and_choices(words: str, found: set[str]) -> None:
    given = words.split(" ")
    environ = {
        **os.environ,
        "_OPENAI_GATEWAY_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(given) - 1),
    }
    code = "from openai_gateway.cli.main import main; main(prog_name='openai-gateway')"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=30, check=True
    )
    assert found <= {line.partition(",")[2] for line in ended.stdout.splitlines()}


def test_version_is_the_packages() -> None:
    assert __version__ in CliRunner().invoke(main, ["--version"]).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command"),
        (["serv"], "did you mean 'serve'"),
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


def test_help_imports_no_library_of_the_servers() -> None:
    code = "import sys, openai_gateway.cli.main as m; m.main(['--help'], standalone_mode=False); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert not {"flask", "gevent", "requests", "omegaconf", "yaml"} & set(ended.stdout.splitlines()[-1].split())


def test_demo_is_kept_from_what_the_environment_holds_for_other_programs(tmp_path: Path) -> None:
    settings = tmp_path / "simulator.yaml"
    settings.write_text("status: 500\n")
    (tmp_path / "env.yaml").write_text("policy_model: {nonsense: 1}\n")
    proxy = "http://127.0.0.1:9"
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), proxy),
        "no_proxy": "",
        "NO_PROXY": "",
        "OPENAI_GATEWAY_SIMULATOR_CONFIG": str(settings),
        "OPENAI_GATEWAY_SERVER": "another",
    }
    command = [*COMMAND, "demo", "--once"]
    ended = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_demo_on_a_taken_port_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [*COMMAND, "demo", "--once", "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "another port" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@contextlib.contextmanager
def _demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo as the leader of a process group, as a shell in a terminal does."""
    demo = subprocess.Popen([*COMMAND, "demo", *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield demo
    finally:
        # Whatever is left of the group is this test's own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(demo.pid, signal.SIGKILL)
        demo.wait(5)
        assert demo.stdout is not None
        demo.stdout.close()


def _is_over(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def _read_until(demo: subprocess.Popen[str], wanted: str) -> str:
    assert demo.stdout is not None
    shown = ""
    while wanted not in shown:
        line = demo.stdout.readline()
        assert line, shown
        shown += line
    return shown


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM), (os.killpg, signal.SIGHUP)],
    ids=["Ctrl-C", "SIGTERM to the demo alone", "its terminal is closed"],
)
def test_demo_serves_on_until_it_is_stopped_and_leaves_no_process(
    send: Callable[[int, int], None], number: int
) -> None:
    with _demo() as demo:
        url = _read_until(demo, "Serving until").partition("Point a client at  ")[2].split()[0]
        assert requests.post(f"{url}/responses", json={"input": "x"}, timeout=10).ok
        send(demo.pid, number)
        assert demo.wait(25) == 0
        eventually(lambda: _is_over(demo.pid))


def test_demo_once_that_is_interrupted_has_not_gone_well() -> None:
    with _demo("--once") as demo:
        _read_until(demo, "gateway  ")
        demo.send_signal(signal.SIGINT)
        assert demo.wait(25) == 1
        eventually(lambda: _is_over(demo.pid))


def test_simulate_on_a_taken_port_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(main, ["simulate", "--port", str(taken.getsockname()[1])])
    assert (result.exit_code, "another port" in result.stderr, len(result.stderr.splitlines())) == (1, True, 1)


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
