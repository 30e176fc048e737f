"""Stopping and reloading gunicorn: no call of a steady flow is lost, streams end properly, a bad config is survived."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.certificates import make_certificates
from tests.support.processes import ROOT, Gunicorn, eventually, run_gateway, run_gunicorn, to_config, write_config
from tests.support.upstreams import (
    LAST_CHUNK,
    PATHS,
    STREAM_HEAD,
    Conversation,
    Request,
    ScriptedUpstream,
    answer_always,
    run_upstream,
    to_answer,
    to_chunk,
    to_event,
    to_request_body,
)


class Script:
    """An upstream's: answers calls at once, and streams on until the test sets `is_over`."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def __call__(self, talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if b'"stream"' not in request.body:
                talk.send(to_answer(b'{"ok": true}'))
                continue
            talk.send(STREAM_HEAD)
            talk.send(to_chunk(to_event("chat", "x")))
            while not self.is_over.wait(0.1):
                talk.send(to_chunk(to_event("chat", "x")))
            talk.send(to_chunk(b"data: [DONE]\n\n") + LAST_CHUNK)


@contextmanager
def _run_with_conf(folder: Path, *arguments: str) -> Iterator[Gunicorn]:
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": str(folder / "gateway.yaml")}
    conf = str(ROOT / "conf" / "gunicorn.conf.py")
    with run_gunicorn(
        "wsgi:app", folder, "-c", conf, "--pythonpath", str(ROOT), *arguments, environ=environ
    ) as running:
        yield running


# systemd hands a service its sockets from descriptor 3 on, and names the process that they are for.
_LIKE_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *sys.argv[2:]])
"""


@contextmanager
def _run_at_held_socket(folder: Path, listener: socket.socket) -> Iterator[Gunicorn]:
    """Run gunicorn as the shipped unit does; a TERM ends it and leaves the socket as it is."""
    log_path = folder / f"gunicorn-{time.monotonic_ns()}.log"
    arguments = ["-c", str(ROOT / "conf" / "gunicorn.conf.py"), "openai_gateway.wsgi:app"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _LIKE_SYSTEMD, str(listener.fileno()), *arguments],
            cwd=folder,
            env={**os.environ, "OPENAI_GATEWAY_CONFIG_PATHS": "gateway.yaml", "PYTHONPATH": str(ROOT)},
            pass_fds=[listener.fileno()],
            stdout=log,
            stderr=log,
        )
    try:
        yield Gunicorn(process, log_path)
    finally:
        process.terminate()
        assert process.wait(60) == 0


STOP_ENDS_IDLE_S = 0.9


class Flow:
    """A steady flow of calls, each over a new connection; what was answered is counted."""

    def __init__(self, url: str, callers: int, pause_s: float) -> None:
        self.sent = self.answered = 0
        self.failures: list[str] = []
        self._url, self._pause_s = url, pause_s
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call_on) for _ in range(callers)]

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(90)

    def _call_on(self) -> None:
        while not self._is_over.is_set():
            with self._lock:
                self.sent += 1
            problem = self._call()
            with self._lock:
                if problem:
                    self.failures.append(problem)
                else:
                    self.answered += 1
            time.sleep(self._pause_s)

    def _call(self) -> str:
        """Make one call; return what went wrong.

        A stop ends connections on which nothing has come for a second. On a busy machine this client may be one that
        is too late: it calls again, as any client would.
        """
        connection = http.client.HTTPConnection(self._url.removeprefix("http://"), timeout=60)
        held_up_s = 0.0
        try:
            connection.connect()
            connected = time.monotonic()
            connection.request("POST", PATHS["chat"], json.dumps(to_request_body("chat")))
            held_up_s = time.monotonic() - connected
            answer = connection.getresponse()
            answer.read()
            return "" if answer.status == 200 else str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            if held_up_s > STOP_ENDS_IDLE_S:
                return self._call()
            return f"{error!r}, sent {held_up_s} s after it was connected"
        finally:
            connection.close()


class Streams:
    """Streams open at the same time; what each ended with is kept."""

    def __init__(self, url: str, count: int) -> None:
        self.bodies: list[bytes] = []
        self._threads = [threading.Thread(target=self._read, args=(url,)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(90)

    def _read(self, url: str) -> None:
        body = to_request_body("chat", stream=True)
        try:
            self.bodies.append(requests.post(url + PATHS["chat"], json=body, timeout=90).content)
        except requests.RequestException as error:
            self.bodies.append(repr(error).encode())


def test_reload_under_load_loses_no_call_and_cuts_no_stream(tmp_path: Path) -> None:
    script = Script()
    with run_upstream(script) as upstream:
        (tmp_path / "gateway.yaml").write_text(to_config(upstream.url))
        with _run_with_conf(tmp_path, "--workers", "2") as gateway:
            streams = Streams(gateway.url, 50)
            with Flow(gateway.url, callers=20, pause_s=0.1) as flow:
                eventually(lambda: _count_streams(upstream) == 50 and flow.answered > 50)
                (tmp_path / "gateway.yaml").write_text(to_config(upstream.url, {"openai_model": "new-model"}))
                gateway.send_signal(signal.SIGHUP)
                # The workers of before the reload may answer, too, until they stop accepting.
                eventually(lambda: _are_new(upstream.requests[-100:]) or flow.failures)
            script.is_over.set()
            streams.join()
            print(f"\nsent {flow.sent}, answered {flow.answered}, lost {flow.failures}")
            assert (flow.failures, flow.answered) == ([], flow.sent)
            assert all(body.endswith(b"data: [DONE]\n\n") for body in streams.bodies)
            assert _are_new(upstream.requests[-100:])


# Starts as slowly as a busy machine has it: as long as there is a file.
_HELD_APP = """
import time
from pathlib import Path
while Path("hold").exists():
    time.sleep(0.02)
if Path("broken").exists():
    from openai_gateway.app import GatewayApp
    del GatewayApp.share_limits
from tests.support.inspected import app
"""
WORKER_CLASSES = ("gevent", "openai_gateway.server.worker.Worker")


_SETTINGS = ("-c", "python:openai_gateway.server.settings")


@contextmanager
def _run_held(folder: Path, upstream_url: str, *arguments: str) -> Iterator[Gunicorn]:
    """Run a gateway whose next workers don't get ready while there is a file `hold`, and can't if there is `broken`."""
    (folder / "held.py").write_text(_HELD_APP)
    environ = {"OPENAI_GATEWAY_CONFIG_PATHS": str(write_config(folder, upstream_url))}
    with run_gunicorn("held:app", folder, *arguments, environ=environ) as running:
        try:
            yield running
        finally:
            (folder / "hold").unlink(missing_ok=True)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
@pytest.mark.parametrize("workers", [1, 2])
def test_old_workers_accept_until_those_of_a_reload_do(worker_class: str, workers: int, tmp_path: Path) -> None:
    with (
        run_upstream(answer_always) as upstream,
        _run_held(tmp_path, upstream.url, "-k", worker_class, "-w", str(workers)) as gateway,
    ):
        eventually(lambda: len(gateway.workers()) == workers)
        eventually(lambda: len({gateway.inspect()["pid"] for _ in range(2 * workers)}) == workers)
        old = set(gateway.workers())
        (tmp_path / "hold").touch()
        gateway.send_signal(signal.SIGHUP)
        eventually(lambda: len(gateway.workers()) == 2 * workers)
        # Each over a new connection, and for longer than an old worker takes to stop.
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert requests.post(gateway.url + PATHS["chat"], json=to_request_body("chat"), timeout=60).ok
            assert gateway.inspect()["pid"] in old
        (tmp_path / "hold").unlink()
        eventually(lambda: not old & set(gateway.workers()))
        assert gateway.inspect()["pid"] not in old


def test_worker_that_is_recycled_accepts_until_the_next_one_does(tmp_path: Path) -> None:
    with (
        run_upstream(answer_always) as upstream,
        _run_held(tmp_path, upstream.url, "--max-requests", "5") as gateway,
    ):
        old = gateway.inspect()["pid"]
        (tmp_path / "hold").touch()
        assert {gateway.inspect()["pid"] for _ in range(20)} == {old}
        until = time.monotonic() + 2
        while time.monotonic() < until or len(gateway.workers()) < 2:
            assert gateway.inspect()["pid"] == old
        (tmp_path / "hold").unlink()
        eventually(lambda: old not in gateway.workers())


def _recycle(gateway: Gunicorn, session: requests.Session) -> int:
    """Call the worker that a session's connection leads to as often as it may be, and return its pid."""
    pid: int = session.get(f"{gateway.url}/__inspect", timeout=60).json()["pid"]
    while "Autorestarting" not in gateway.log():
        assert session.get(f"{gateway.url}/__inspect", timeout=60).json()["pid"] == pid
    return pid


def test_recycled_worker_is_replaced_and_no_other(tmp_path: Path) -> None:
    """Told to run one worker less, gunicorn's master ends the oldest, not the one that has asked for another."""
    with (
        run_upstream(answer_always) as upstream,
        _run_held(tmp_path, upstream.url, *_SETTINGS, "-w", "2", "--max-requests", "200") as gateway,
        ExitStack() as stack,
    ):
        eventually(lambda: len({gateway.inspect()["pid"] for _ in range(4)}) == 2)
        older, younger = map(int, re.findall(r"Booting worker with pid: (\d+)", gateway.log()))
        session = stack.enter_context(requests.Session())
        while session.get(f"{gateway.url}/__inspect", timeout=60).json()["pid"] != younger:
            session = stack.enter_context(requests.Session())
        assert _recycle(gateway, session) == younger
        eventually(lambda: younger not in gateway.workers() and len(gateway.workers()) == 2)
        # For longer than the master takes to end one that is too many.
        time.sleep(3)
        assert older in gateway.workers()


def test_reload_while_a_recycled_worker_ends_its_last_call_leaves_as_many_workers(tmp_path: Path) -> None:
    script = Script()
    body = to_request_body("chat", stream=True)
    with (
        run_upstream(script) as upstream,
        _run_held(tmp_path, upstream.url, *_SETTINGS, "-w", "2", "--max-requests", "200") as gateway,
        requests.Session() as session,
    ):
        eventually(lambda: len({gateway.inspect()["pid"] for _ in range(4)}) == 2)
        (tmp_path / "hold").touch()
        recycled = _recycle(gateway, session)
        with session.post(gateway.url + PATHS["chat"], json=body, stream=True, timeout=60) as answer:
            eventually(lambda: len(gateway.workers()) == 3)
            (tmp_path / "hold").unlink()
            old = set(gateway.workers())
            gateway.send_signal(signal.SIGHUP)
            eventually(lambda: old & set(gateway.workers()) == {recycled})
            script.is_over.set()
            assert answer.content.endswith(b"data: [DONE]\n\n")
        eventually(lambda: recycled not in gateway.workers())
        time.sleep(3)
        assert len(gateway.workers()) == 2


def test_stop_drains_at_once_although_another_worker_is_about_to_serve(tmp_path: Path) -> None:
    with (
        run_upstream(answer_always) as upstream,
        _run_held(tmp_path, upstream.url, "--graceful-timeout", "200") as gateway,
        requests.Session() as session,
    ):
        assert session.get(f"{gateway.url}/healthz", timeout=60).ok
        (tmp_path / "hold").touch()
        gateway.send_signal(signal.SIGTTIN)
        eventually(lambda: len(gateway.workers()) == 2)
        gateway.send_signal(signal.SIGTERM)
        eventually(lambda: session.get(f"{gateway.url}/healthz", timeout=60).headers.get("Connection") == "close")
        (tmp_path / "hold").unlink()
        assert gateway.process.wait(60) == 0


def test_bad_config_at_a_reload_leaves_the_old_workers_serving_until_it_is_mended(tmp_path: Path) -> None:
    """Without the gateway's settings the master knows no config: each new worker reads it, and finds it bad."""
    with (
        run_upstream(answer_always) as upstream,
        _run_held(tmp_path, upstream.url, "-w", "2") as gateway,
    ):
        eventually(lambda: len(gateway.workers()) == 2)
        old = set(gateway.workers())
        eventually(lambda: {gateway.inspect()["pid"] for _ in range(4)} == old)
        write_config(tmp_path, upstream.url, {"max_retrys": 1})
        gateway.send_signal(signal.SIGHUP)
        eventually(lambda: gateway.log().count("did you mean max_retries") == 2)
        assert gateway.log().count("The workers of before serve on.") == 2
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert gateway.inspect()["pid"] in old
        assert len(gateway.workers()) == 4
        write_config(tmp_path, upstream.url, {"openai_model": "new-model"})
        gateway.send_signal(signal.SIGHUP)
        eventually(lambda: not old & set(gateway.workers()) and len(gateway.workers()) == 2)
        assert requests.post(gateway.url + PATHS["chat"], json=to_request_body("chat"), timeout=60).ok
        assert b'"new-model"' in upstream.requests[-1].body


def test_worker_that_can_not_serve_leaves_when_the_next_reload_comes(tmp_path: Path) -> None:
    """However far it got: this one had told the others already that it would have connections."""
    with (
        run_upstream(answer_always) as upstream,
        _run_held(tmp_path, upstream.url, *_SETTINGS, "-w", "2") as gateway,
    ):
        eventually(lambda: len({gateway.inspect()["pid"] for _ in range(4)}) == 2)
        (tmp_path / "broken").touch()
        gateway.send_signal(signal.SIGHUP)
        eventually(lambda: gateway.log().count("The workers of before serve on.") == 2)
        before = set(gateway.workers())
        assert len(before) == 4
        (tmp_path / "broken").unlink()
        gateway.send_signal(signal.SIGHUP)
        eventually(lambda: not before & set(gateway.workers()) and len(gateway.workers()) == 2)


def test_worker_that_found_the_config_bad_ends_gunicorn_with_the_last_that_served(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream, _run_held(tmp_path, upstream.url) as gateway:
        (old,) = gateway.workers()
        write_config(tmp_path, upstream.url, {"max_retrys": 1})
        gateway.send_signal(signal.SIGHUP)
        gateway.wait_for_log("The workers of before serve on.")
        os.kill(old, signal.SIGKILL)
        assert gateway.process.wait(60) == 4


def _are_new(requests: list[Request]) -> bool:
    return all(b'"new-model"' in request.body for request in requests)


def _count_streams(upstream: ScriptedUpstream) -> int:
    return sum(b'"stream"' in request.body for request in upstream.requests)


def test_restart_at_a_socket_that_systemd_holds_refuses_no_call(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream, socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        (tmp_path / "gateway.yaml").write_text(to_config(upstream.url))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with ExitStack() as last, Flow(url, callers=10, pause_s=0.02) as flow:
            with _run_at_held_socket(tmp_path, listener) as gateway:
                assert gateway.url == url
                eventually(lambda: flow.answered > 50)
            last.enter_context(_run_at_held_socket(tmp_path, listener))
            seen = flow.answered
            eventually(lambda: flow.answered > seen + 50)
        assert (flow.failures, flow.answered) == ([], flow.sent)


def test_master_attends_to_workers_and_signals_while_old_workers_end_their_calls(tmp_path: Path) -> None:
    """gunicorn's own waits for them within its reload, for up to the graceful timeout."""
    script = Script()
    with run_upstream(script) as upstream:
        (tmp_path / "gateway.yaml").write_text(to_config(upstream.url))
        with _run_with_conf(tmp_path, "--graceful-timeout", "200") as gateway:
            streams = Streams(gateway.url, 1)
            eventually(lambda: _count_streams(upstream) == 1)
            gone = set(gateway.workers())
            for _ in range(2):
                gateway.send_signal(signal.SIGHUP)
                for _ in range(2):
                    eventually(lambda: not set(gateway.workers()) <= gone)
                    (new,) = set(gateway.workers()) - gone
                    gone.add(new)
                    os.kill(new, signal.SIGKILL)
                eventually(lambda: not set(gateway.workers()) <= gone)
                gone.update(gateway.workers())
            gateway.send_signal(signal.SIGTERM)
            eventually(lambda: not _accepts(gateway.url))
            script.is_over.set()
            assert gateway.process.wait(60) == 0
            streams.join()
            assert [body.endswith(b"data: [DONE]\n\n") for body in streams.bodies] == [True]


def test_bad_new_config_is_reported_and_the_last_good_one_serves_on(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream:
        (tmp_path / "gateway.yaml").write_text(to_config(upstream.url))
        with _run_with_conf(tmp_path) as gateway:
            (tmp_path / "gateway.yaml").write_text(to_config(upstream.url, {"max_retrys": 1}))
            gateway.send_signal(signal.SIGHUP)
            gateway.wait_for_log("did you mean max_retries")
            eventually(lambda: gateway.log().count("Booting worker") == 2)
            for _ in range(20):
                assert requests.post(gateway.url + PATHS["chat"], json=to_request_body("chat"), timeout=60).ok


def test_stop_waits_for_calls_in_flight_then_ends_streams_with_an_error_event(tmp_path: Path) -> None:
    script = Script()
    with run_upstream(script) as upstream:
        (tmp_path / "gateway.yaml").write_text(to_config(upstream.url))
        with _run_with_conf(tmp_path, "--graceful-timeout", "60") as gateway:
            streams = Streams(gateway.url, 5)
            eventually(lambda: _count_streams(upstream) == 5)
            gateway.send_signal(signal.SIGTERM)
            eventually(lambda: not _accepts(gateway.url))
            assert gateway.process.poll() is None
            script.is_over.set()
            assert gateway.process.wait(60) == 0
            streams.join()
            assert all(body.endswith(b"data: [DONE]\n\n") for body in streams.bodies)
        upstream.requests.clear()
        script.is_over.clear()
        with _run_with_conf(tmp_path, "--graceful-timeout", "5") as gateway:
            streams = Streams(gateway.url, 5)
            eventually(lambda: _count_streams(upstream) == 5)
            gateway.stop()
            streams.join()
            assert all(b'data: {"error": {"message": "The gateway is shutting down' in body for body in streams.bodies)


def test_reader_of_the_log_that_has_stopped_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with run_upstream(answer_always) as upstream, socket.create_server(("127.0.0.1", 0)) as listener:
        (tmp_path / "gateway.yaml").write_text(to_config(upstream.url))
        conf = str(ROOT / "conf" / "gunicorn.conf.py")
        process = subprocess.Popen(
            [sys.executable, "-c", _LIKE_SYSTEMD, str(listener.fileno()), "-c", conf, "openai_gateway.wsgi:app"],
            cwd=tmp_path,
            env={**os.environ, "OPENAI_GATEWAY_CONFIG_PATHS": "gateway.yaml", "PYTHONPATH": str(ROOT)},
            pass_fds=[listener.fileno()],
            stdout=write_end,
            stderr=write_end,
        )
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            assert requests.get(f"{url}/healthz", timeout=60).ok
            while select.select([], [write_end], [], 0)[1]:
                os.write(write_end, b"x" * select.PIPE_BUF)
            assert requests.post(url + PATHS["chat"], json={}, timeout=60).status_code == 400, (
                "which is a line of the log"
            )
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait(60)
            os.close(read_end)
            os.close(write_end)


def _accepts(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


def test_killed_worker_takes_only_its_own_calls(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream, run_gateway(tmp_path, upstream.url) as gateway:
        killed = gateway.inspect()["pid"]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: killed not in gateway.workers() and len(gateway.workers()) == 1)
        # The socket is the master's: a call that comes while there is no worker waits there.
        assert requests.post(gateway.url + PATHS["chat"], json=to_request_body("chat"), timeout=60).ok


def test_recycling_workers_loses_nothing(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream:
        (tmp_path / "gateway.yaml").write_text(to_config(upstream.url))
        with _run_with_conf(tmp_path, "--workers", "2", "--max-requests", "100", "--graceful-timeout", "30") as gateway:
            with Flow(gateway.url, callers=10, pause_s=0.01) as flow:
                eventually(lambda: gateway.log().count("Booting worker") > 5 or flow.failures, timeout_s=90)
            assert (flow.failures, flow.answered) == ([], flow.sent)


def test_idle_connections_hold_up_no_stop_and_get_no_unasked_answer(tmp_path: Path) -> None:
    def answer_after_a_second(talk: Conversation) -> None:
        while talk.read_request() is not None:
            time.sleep(1)
            talk.send(to_answer(b'{"ok": true}'))

    request = b'POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 14\r\n\r\n{"input": "x"}'
    with run_upstream(answer_after_a_second) as upstream:
        (tmp_path / "gateway.yaml").write_text(to_config(upstream.url))
        with _run_with_conf(tmp_path) as gateway, ExitStack() as stack:
            address = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
            busy, *idle = (stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(6))
            for connection in (busy, *idle):
                connection.sendall(request)
            for connection in (busy, *idle):
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            busy.sendall(request)
            eventually(lambda: len(upstream.requests) == 7)
            gateway.send_signal(signal.SIGTERM)
            answer = busy.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"Connection: close\r\n" in answer
            assert [connection.recv(65536) for connection in (busy, *idle)] == [b""] * 6
            # Not the 20 s that an idle connection may be kept for.
            gateway.process.wait(60)


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_stop_does_not_wait_for_the_rest_of_a_head(is_tls: bool, tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    arguments = ["--certfile", str(made.server), "--keyfile", str(made.server_key)] if is_tls else []
    start = b"\x16\x03\x01\x02\x00\x01" if is_tls else b"POST /v1/responses HTTP/1.1\r\nHost: a\r\n"
    (tmp_path / "gateway.yaml").write_text(to_config("http://127.0.0.1:9"))
    with _run_with_conf(tmp_path, "--graceful-timeout", "15", *arguments) as gateway:
        address = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=60) as client:
            client.sendall(start)
            # So that most likely it has been accepted; if not, the test shows less.
            time.sleep(1)
            gateway.send_signal(signal.SIGTERM)
            assert client.recv(65536) == b""
            assert gateway.process.wait(60) == 0
        assert "Worker exiting" in gateway.log(), "it was killed"


def test_bad_config_ends_the_start_with_one_message_that_names_all_mistakes(tmp_path: Path) -> None:
    settings = {"max_retrys": 1, "connect_timeout_s": -1, "openai_base_url": "ftp://x", "openai_api_key": "sk-secret"}
    (tmp_path / "gateway.yaml").write_text(to_config("http://x", settings))
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "conf" / "gunicorn.conf.py"), "-b", "127.0.0.1:0"]
    ended = subprocess.run(
        [*command, "--pythonpath", str(ROOT), "wsgi:app"],
        cwd=tmp_path,
        env={"OPENAI_GATEWAY_CONFIG_PATHS": "gateway.yaml", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "3 problems" in ended.stderr
    for name in ("max_retrys", "connect_timeout_s", "openai_base_url"):
        assert ended.stderr.count(f"gateway.yaml: policy_model.responses_api_models.openai_model.{name}: ") == 1
    assert "Traceback" not in ended.stderr
    assert "sk-secret" not in ended.stderr


def test_shipped_config_with_env_yaml_serves_as_nemo_gym_has_it(tmp_path: Path) -> None:
    with run_upstream(answer_always) as upstream:
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "openai_model.yaml").write_text((ROOT / "conf" / "openai_model.yaml").read_text())
        values = {"policy_base_url": f"{upstream.url}/v1", "policy_api_key": "sk-x", "policy_model_name": "gym"}
        (tmp_path / "env.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
        with run_gunicorn("wsgi:app", tmp_path, "--pythonpath", str(ROOT)) as gateway:
            host = gateway.url.removeprefix("http://")
            connection = http.client.HTTPConnection(host, timeout=60)
            connection.request("POST", "/v1/responses", b'{"input": "x"}', {"content-type": "application/json"})
            assert connection.getresponse().status == 200
            connection.close()
        assert json.loads(upstream.requests[0].body) == {"input": "x", "model": "gym"}
        assert upstream.requests[0].headers["authorization"] == "Bearer sk-x"
