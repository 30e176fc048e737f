"""Runs gunicorn for a command: on a port that the kernel chose, waited for, and ended with the command.

What is served is the command's choice.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import IO, Final

import requests

GUNICORN: Final = (sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "--no-control-socket")
_READY_S: Final = 30.0
_STOP_S: Final = 10.0


class NotReady(Exception):
    """A server did not come up; the message holds what it wrote."""


@contextlib.contextmanager
def run_server(app: str, environ: Mapping[str, str], *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve `app` for the length of a `with` block and give its URL. Raises NotReady, OSError if the port is taken."""
    # The listening socket is made here and handed down: no other program can take the port in between.
    with socket.create_server((host, port)) as listener, tempfile.TemporaryFile() as log:
        url = f"http://{host}:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [
                *GUNICORN,
                "--worker-connections",
                "4096",
                "--graceful-timeout",
                "3",
                "-b",
                f"fd://{listener.fileno()}",
                app,
            ],
            pass_fds=[listener.fileno()],
            env={**os.environ, **environ},
            stdout=log,
            stderr=log,
        )
        try:
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            requests.get(f"{url}/", timeout=1)
            return
        time.sleep(0.05)
    log.seek(0)
    raise NotReady(f"a server did not get ready; it wrote:\n{log.read().decode(errors='replace')}")
