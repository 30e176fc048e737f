"""The command line as people and scripts use it: help, versions, errors, exit codes, completion, the simulator."""

from __future__ import annotations

import importlib
import os
import pty
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import requests
from click.testing import CliRunner

from openai_gateway import __version__
from openai_gateway.cli import exits
from openai_gateway.cli.main import main
from openai_gateway.config import ConfigError

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
        subprocess.run([*COMMAND, "nonsense"], stdin=its, stderr=its, env=environ, timeout=60, check=False)
        assert (b"\x1b[31mError:" in os.read(ours, 1000)) == is_coloured
    finally:
        os.close(ours)
        os.close(its)
    piped = subprocess.run([*COMMAND, "nonsense"], capture_output=True, env=environ, timeout=60, check=False)
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
        ("openai-gateway docs trouble", {"troubleshooting"}),
    ],
)
def test_completion_knows_commands_options_and_choices(
    words: str, found: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_OPENAI_GATEWAY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit) as ended:
        main(prog_name="openai-gateway")
    assert ended.value.code == 0
    assert found <= {line.partition(",")[2] for line in capsys.readouterr().out.splitlines()}


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


def test_help_imports_no_library_of_the_servers() -> None:
    code = "import sys, openai_gateway.cli.main as m; m.main(['--help'], standalone_mode=False); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"flask", "gevent", "requests", "omegaconf", "yaml", "rich"} & set(ended.stdout.splitlines()[-1].split())


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
            answer = requests.post(f"{url}/v1/responses", json=body, headers=headers, timeout=60)
            if answer.status_code == 503:
                break
        assert answer.status_code == 503
        assert requests.post(f"{url}/v1/responses", json=body, timeout=60).status_code == 401
    finally:
        simulator.terminate()
        simulator.wait(60)
        simulator.stderr.close()


@pytest.mark.parametrize("name", exits.CODES)
def test_every_error_that_has_an_exit_code_exists(name: str) -> None:
    module, _, error = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), error), BaseException)


def test_exit_code_and_message_of_what_ends_a_command() -> None:
    class Unforeseen(Exception):
        pass

    missing = FileNotFoundError(2, "No such file or directory", "x.yaml")
    ends = [
        (ConfigError([]), 2),
        (exits.CalledWrongly("x"), 2),
        (exits.CommandFailed("x"), 1),
        (missing, 1),
        (KeyboardInterrupt(), 130),
        (Unforeseen(), None),
    ]
    assert [exits.find_exit_code(error) for error, _ in ends] == [code for _, code in ends]
    assert exits.describe_error(missing) == "x.yaml: No such file or directory"


def test_reader_that_has_gone_is_no_traceback(tmp_path: Path) -> None:
    command = f"{shlex.join([*COMMAND, 'docs', 'configuration'])} | true"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stderr, ended.returncode) == ("", 0)


@pytest.mark.parametrize("command", ["serve", "check", "config"])
def test_in_an_empty_folder_a_newcomer_is_told_how_to_begin(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unset = ("CONFIG_PATHS", "ENV_YAML", "OVERRIDES", "SERVER")
    result = CliRunner(env={f"OPENAI_GATEWAY_{name}": None for name in unset}).invoke(main, [command])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 2)
    assert "'openai-gateway init' asks for them" in result.stderr
