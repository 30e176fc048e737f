"""Runs gunicorn for a command: on a port of its own, waited for, and ended with the command.

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
# Has the kernel send SIGTERM when the parent ends, however it does (PR_SET_PDEATHSIG), and becomes the server.
_TIED: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
_READY_S: Final = 30.0
_STOP_S: Final = 10.0


class NotReady(Exception):
    """A server did not come up; the message holds what it wrote."""


def open_local_session() -> requests.Session:
    """Return a session for servers on this machine: no proxy or netrc of the environment comes in between."""
    session = requests.Session()
    session.trust_env = False
    return session


@contextlib.contextmanager
def run_server(
    app: str, environ: Mapping[str, str], *, host: str = "127.0.0.1", port: int = 0, is_apart: bool = False
) -> Iterator[str]:
    """Serve `app` for the length of a `with` block and give its URL; port 0 takes a free one. Raises NotReady.

    `is_apart`: a terminal's Ctrl-C doesn't reach the server, but it ends even if this process is killed.
    """
    # The listening socket is made here and handed down: no other program can take the port in between.
    with _listen(host, port) as listener, tempfile.TemporaryFile() as log:
        url = f"http://{host}:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [
                *((sys.executable, "-c", _TIED, str(os.getpid())) if is_apart else ()),
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
            start_new_session=is_apart,
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


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise NotReady(f"can't listen on {host}:{port} ({why}); give another port, or 0 for a free one") from None


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + _READY_S
    with open_local_session() as session:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                session.get(f"{url}/", timeout=1)
                return
            time.sleep(0.05)
    log.seek(0)
    raise NotReady(f"a server did not get ready; it wrote:\n{log.read().decode(errors='replace')}")
