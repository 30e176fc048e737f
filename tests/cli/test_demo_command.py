"""`openai-gateway demo`: what it shows, how it is stopped, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import requests

from tests.support.processes import ROOT, eventually

COMMAND = [sys.executable, "-m", "openai_gateway.cli", "demo"]


@contextlib.contextmanager
def _demo(*arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo as the leader of a process group, as a shell in a terminal does."""
    demo = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
    )
    try:
        yield demo
    finally:
        # Whatever is left of the group is this test's own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(demo.pid, signal.SIGKILL)
        demo.wait(60)
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


def _hostile_environ(folder: Path) -> Mapping[str, str]:
    """What the environment may hold for other programs."""
    settings = folder / "simulator.yaml"
    settings.write_text("status: 500\n")
    proxy = "http://127.0.0.1:9"
    return {
        **dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), proxy),
        "no_proxy": "",
        "NO_PROXY": "",
        "OPENAI_GATEWAY_SIMULATOR_CONFIG": str(settings),
        "OPENAI_GATEWAY_SERVER": "another",
        "OPENAI_GATEWAY_OVERRIDES": '["++policy_model=nonsense"]',
    }


def test_what_the_gateway_is_for_is_shown_and_can_then_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env.yaml").write_text("policy_model: {nonsense: 1}\n")
    monkeypatch.chdir(tmp_path)
    with _demo(**_hostile_environ(tmp_path)) as demo:
        shown = _read_until(demo, "Serving until")
        for said in (
            "Responses  POST",
            "Responses, streamed  POST",
            "Chat  POST",
            "Chat, streamed  POST",
            "Function call  POST",
            "client   Authorization: Bearer any",
            "upstream Authorization: Bearer sk-demo-key-held-by-the-gateway",
            "the client got 200 after 3 attempts",
            "12 of 12 answered with 200; never more than 4",
            "the upstream call ended",
        ):
            assert said in shown, shown
        assert re.search(r" 20 calls, \d+ tokens in, \d+ out\n +ok \$0\.\d+", shown), shown
        assert "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= 80
        page = re.search(r"Look at it: +(\S+)/status", shown)
        assert page is not None
        assert requests.get(f"{page[1]}/status", timeout=60).ok
        assert requests.post(f"{page[1]}/v1/responses", json={"input": "x"}, timeout=60).ok
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(60) == 0
        eventually(lambda: _is_over(demo.pid))


def test_once_ends_by_itself_with_0_if_all_went_well() -> None:
    with _demo("--once") as demo:
        _read_until(demo, "All went well.")
        assert demo.wait(60) == 0
        eventually(lambda: _is_over(demo.pid))


@pytest.mark.parametrize(
    ("send", "number"),
    [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM), (os.killpg, signal.SIGHUP)],
    ids=["Ctrl-C", "SIGTERM to the demo alone", "its terminal is closed"],
)
def test_stopped_before_all_was_shown_has_not_gone_well_and_leaves_no_process(
    send: Callable[[int, int], None], number: int
) -> None:
    with _demo() as demo:
        _read_until(demo, "gateway  ")
        send(demo.pid, number)
        assert demo.wait(60) == 130
        eventually(lambda: _is_over(demo.pid))


def test_taken_port_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [*COMMAND, "--once", "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "another port" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
