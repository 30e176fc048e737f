"""Real gunicorn with a gevent worker, started for a test, waited for, and ended by pid.

Ports are chosen by the kernel and read from gunicorn's log, so that tests don't race for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
import yaml

ROOT = Path(__file__).parents[2]
READY_S = 60.0  # against hangs only: a start takes a second, on a busy machine twenty


class Gunicorn:
    """A running gunicorn; `url` is where it listens, `log()` what it and its workers wrote."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log_path = log_path
        self.url = self._wait_until_ready()

    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def inspect(self) -> dict[str, Any]:
        """Return what is held in the worker: slots, greenlets, file descriptors."""
        found: dict[str, Any] = requests.get(f"{self.url}/__inspect", timeout=60).json()
        return found

    def wait_for_log(self, pattern: str, timeout_s: float = READY_S) -> re.Match[str]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log())
            if found:
                return found
            if self.process.poll() is not None:
                raise AssertionError(f"gunicorn ended with {self.process.returncode}:\n{self.log()}")
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} did not appear in the log:\n{self.log()}")

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                for pid in [*self.workers(), self.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.wait(60)
                raise AssertionError(f"gunicorn did not stop within {timeout_s} s:\n{self.log()}") from None
        return self.process.returncode

    def _wait_until_ready(self) -> str:
        url = self.wait_for_log(r"Listening at: (https?://[\d.]+:\d+)")[1]
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                requests.get(url + "/", timeout=2)
            except requests.exceptions.SSLError:
                return url
            except requests.RequestException:
                pass
            else:
                return url
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"gunicorn did not get ready:\n{self.log()}")


@contextlib.contextmanager
def run_gunicorn(
    app: str, folder: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> Iterator[Gunicorn]:
    """Run `app` in `folder` for the length of a `with` block."""
    command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", "127.0.0.1:0", "--no-control-socket"]
    with run_command([*command, *arguments, app], folder, environ) as running:
        yield running


@contextlib.contextmanager
def run_command(command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None) -> Iterator[Gunicorn]:
    """Run a command that becomes a gunicorn master for the length of a `with` block."""
    log_path = folder / f"gunicorn-{time.monotonic_ns()}.log"
    full_environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environ or {})}
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=full_environ, stdout=log, stderr=log)
    running: Gunicorn | None = None
    try:
        running = Gunicorn(process, log_path)
        yield running
    finally:
        if running is not None:
            running.stop(signal.SIGQUIT)
        elif process.poll() is None:
            process.kill()
            process.wait(60)


def write_config(folder: Path, upstream_url: str, settings: Mapping[str, Any] | None = None) -> Path:
    """Write a config with one server, `policy_model`, and return its path."""
    path = folder / "gateway.yaml"
    path.write_text(to_config(upstream_url, settings))
    return path


def to_config(upstream_url: str, settings: Mapping[str, Any] | None = None) -> str:
    """Return the YAML of a config with one server, `policy_model`."""
    server = {
        "entrypoint": "app.py",
        "openai_base_url": f"{upstream_url}/v1",
        "openai_api_key": "sk-upstream-key",
        "openai_model": "the-model",
        # A test's upstream that refuses calls does so for good.
        "retry_budget_s": 2,
        **(settings or {}),
    }
    return yaml.safe_dump({"policy_model": {"responses_api_models": {"openai_model": server}}})


@contextlib.contextmanager
def run_gateway(
    folder: Path,
    upstream_url: str,
    settings: Mapping[str, Any] | None = None,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Gunicorn]:
    """Run the gateway in front of `upstream_url`, with an extra `/__inspect` for `Gunicorn.inspect`."""
    config = write_config(folder, upstream_url, settings)
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": str(config), **(environ or {})}
    # The worker class of our settings, which starts faster than `-k gevent`.
    arguments = ("-k", "openai_gateway.server.worker.Worker", *arguments)
    with run_gunicorn("tests.support.inspected:app", folder, *arguments, environ=environ) as running:
        yield running


@contextlib.contextmanager
def run_simulator(folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[Gunicorn]:
    """Run the built-in simulator."""
    environ = {"OPENAI_GATEWAY_SIMULATOR_OVERRIDES": json.dumps(dict(settings or {}))}
    # gunicorn bounds the wait for a new connection's first request by this, too: at its default of 2 s a worker that a
    # busy machine held up for longer closed connections whose requests it had not read yet.
    with run_gunicorn("openai_gateway.simulator.wsgi:app", folder, "--keep-alive", "75", environ=environ) as running:
        yield running


def eventually(check: Any, timeout_s: float = READY_S) -> None:
    """Wait until `check()` is true; fail if it doesn't become so."""
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not become true within {timeout_s} s")
        time.sleep(0.01)
