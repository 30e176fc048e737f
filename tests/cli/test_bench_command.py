"""`openai-gateway bench`: counts what it was asked to call, times it, names failures, and says what is added."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result

from openai_gateway.cli.main import main
from tests.support.processes import ROOT, Gunicorn
from tests.support.upstreams import PATHS, Conversation, run_upstream, to_answer


def _bench(*arguments: str, **environ: str) -> Result:
    environ = {"OPENAI_API_KEY": "sk-upstream-key", **environ}
    return CliRunner(env=environ).invoke(main, ["bench", *arguments])


@pytest.mark.parametrize("api", ["responses", "chat"])
@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["whole", "streamed"])
def test_calls_are_counted_and_timed(simulator: Gunicorn, api: str, stream: list[str]) -> None:
    requests.post(f"{simulator.url}/sim/reset", timeout=60)
    result = _bench(f"{simulator.url}/v1", "--json", "--calls", "20", "--concurrency", "4", "--api", api, *stream)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["calls"], found["gateway"]["calls"], found["gateway"]["failed"]) == (20, 20, 0)
    latency, first = found["gateway"]["latency_ms"], found["gateway"]["first_token_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    assert (first is not None) == bool(stream)
    assert first is None or first["p50"] <= latency["p50"]
    assert found["calls_per_s"] > 0
    assert found["generator_cpu_share"] > 0
    by_path = requests.get(f"{simulator.url}/sim/stats", timeout=60).json()["by_path"]
    # One free request tells that somebody answers.
    assert by_path == {"GET /v1/models": 1, f"POST {PATHS[api]}": 20}
    assert "a real upstream charges" in result.stderr


def test_direct_calls_take_turns_and_give_what_is_added(simulator: Gunicorn) -> None:
    """The gateway is played by an upstream that takes its time."""
    seen: list[str] = []

    def slow(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if request.method == "POST":
                seen.append(request.headers["authorization"])
            threading.Event().wait(0.05)
            talk.send(to_answer(b'{"output": []}'))

    with run_upstream(slow) as gateway:
        arguments = [gateway.url, "--direct", simulator.url, "--calls", "10", "--concurrency", "1"]
        # Without a path, /v1 is meant.
        result = _bench(*arguments, OPENAI_API_KEY="sk-of-gateway", OPENAI_API_KEY_DIRECT="sk-upstream-key")
        assert result.exit_code == 0, result.output
        assert seen == ["Bearer sk-of-gateway"] * 10
        assert {request.target for request in gateway.requests} == {"/v1/models", "/v1/responses"}
    rows = {line[:13].strip(): line[13:].split() for line in result.stdout.splitlines()}
    assert rows[""] == ["gateway", "direct", "added"]
    assert rows["calls"] == ["10", "10"]
    mine, other, added = (float(text) for text in rows["latency p50"] if text != "ms")
    assert mine > 50
    assert added == pytest.approx(mine - other, abs=0.2)
    assert "20 calls in " in result.stdout
    assert "of the one core that it can use" in result.stdout


def test_failures_are_named_by_kind_and_are_exit_code_1(simulator: Gunicorn) -> None:
    result = _bench(simulator.url, "--calls", "1", OPENAI_API_KEY="sk-wrong")
    assert result.stderr.startswith("1 call of up to 64 output tokens")
    assert "\n1 call in " in result.stdout
    result = _bench(simulator.url, "--calls", "5", OPENAI_API_KEY="sk-wrong")
    assert result.exit_code == 1
    assert "failed, gateway: 5 x 401 invalid_api_key" in result.stdout

    def broken(talk: Conversation) -> None:
        talk.read_request()
        talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n")

    with run_upstream(broken) as upstream:
        result = _bench(upstream.url, "--calls", "3", "--stream")
        assert "failed, gateway: 3 x a stream that broke off" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["http://127.0.0.1:1/v1"], 1, "connection refused; nothing listens"),
        (["ftp://x"], 2, "no URL such as"),
        (["http://127.0.0.1:x"], 2, "no URL such as"),
        (["http://127.0.0.1:1", "--concurrency", "513"], 2, "513 is not in the range"),
    ],
)
def test_unusable_url_is_one_line(arguments: list[str], code: int, said: str) -> None:
    result = _bench(*arguments)
    assert (result.exit_code, said in result.stderr, len(result.stderr.splitlines())) == (code, True, 1)


def test_ctrl_c_ends_it_with_what_is_known_so_far() -> None:
    enough = threading.Event()
    done = itertools.count(1)

    def answer(talk: Conversation) -> Any:
        talk.read_request()
        while True:
            threading.Event().wait(0.01)
            talk.send(to_answer(b'{"output": []}'))
            if talk.read_request() is None:
                return
            # Who asks again over the same connection has got the answer before.
            if next(done) == 20:
                enough.set()

    with run_upstream(answer) as upstream:
        command = [sys.executable, "-m", "openai_gateway.cli", "bench", upstream.url, "--calls", "100000", "--json"]
        bench = subprocess.Popen(
            command, cwd=Path(ROOT), env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert enough.wait(60)
            bench.send_signal(signal.SIGINT)
            out, err = bench.communicate(timeout=60)
        finally:
            if bench.poll() is None:
                bench.kill()
                bench.communicate()
    assert bench.returncode == 130
    assert 19 <= json.loads(out)["calls"] < 100_000
    assert "stopped before all calls were made" in err
