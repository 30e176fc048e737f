"""Runs gunicorn for a command: on a port of its own, waited for, and ended with the command; or in the command's place.

A server that a command starts for itself is waited for, and ends with the command even if that is killed. See also:
serve, demo, simulate, own_gateway (who runs servers), server.settings.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import IO, Final, NoReturn

GUNICORN: Final = (sys.executable, "-m", "gunicorn", "-w", "1", "--no-control-socket")
# The simulator knows nothing of ours.
_WORKERS: Final = {"openai_gateway.wsgi:app": "openai_gateway.server.worker.Worker"}
_LIMITS: Final = ("--worker-connections", "4096", "--graceful-timeout", "3")
_BACKLOG: Final = 4096
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


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, to be handed down so that no other program can take its port. Raises NotReady."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        is_about_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        cure = "give another port, or 0 for a free one" if is_about_port else "give an address of this machine"
        raise NotReady(f"can't listen on {host}:{port} ({why}); {cure}") from None


def find_url(listener: socket.socket) -> str:
    """Return the URL that a listening socket is reached at from this machine."""
    host, port, *_ = listener.getsockname()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def become_gunicorn(listener: socket.socket, environ: Mapping[str, str], *arguments: str) -> NoReturn:
    """Become gunicorn: its pid, signals and exit code are this command's.

    In this process: a new program would import once more what is loaded already, which doubles the time to start.
    """
    listener.set_inheritable(True)
    os.environ.clear()
    os.environ.update(environ)
    # What is in the buffer would be printed by each worker, too.
    sys.stdout.flush()
    _, _, module, *given = GUNICORN
    sys.argv = [module, *given, f"--bind=fd://{listener.fileno()}", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


@contextlib.contextmanager
def run_server(
    app: str, environ: Mapping[str, str], *, host: str = "127.0.0.1", port: int = 0, is_apart: bool = False
) -> Iterator[str]:
    """Serve `app` for the length of a `with` block and give its URL; port 0 takes a free one. Raises NotReady.

    `is_apart`: a terminal's Ctrl-C doesn't reach the server, but it ends even if this process is killed.
    """
    with listen(host, port) as listener, tempfile.TemporaryFile() as log:
        process = _start(app, environ, listener, log, is_apart=is_apart)
        try:
            _wait_until_ready(listener, process, log)
            yield find_url(listener)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_companion(app: str, environ: Mapping[str, str], listener: socket.socket) -> None:
    """Serve `app` until this process ends, however it ends, whatever program it has become by then. Raises NotReady."""
    with listener, tempfile.TemporaryFile() as log:
        _wait_until_ready(listener, _start(app, environ, listener, log, is_apart=True), log)


def _start(
    app: str, environ: Mapping[str, str], listener: socket.socket, log: IO[bytes], *, is_apart: bool
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *((sys.executable, "-c", _TIED, str(os.getpid())) if is_apart else ()),
            *(*GUNICORN, *_LIMITS, "-k", _WORKERS.get(app, "gevent"), "-b", f"fd://{listener.fileno()}", app),
        ],
        pass_fds=[listener.fileno()],
        env={**os.environ, **environ},
        stdout=log,
        stderr=log,
        start_new_session=is_apart,
    )


def _wait_until_ready(listener: socket.socket, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + _READY_S
    # http.client, for no proxy of the environment may come in between.
    host, port, *_ = listener.getsockname()
    connection = http.client.HTTPConnection(host, port, timeout=1)
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection.request("GET", "/")
            connection.getresponse()
            return
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        finally:
            connection.close()
    log.seek(0)
    raise NotReady(f"a server did not get ready; it wrote:\n{log.read().decode(errors='replace')}")
