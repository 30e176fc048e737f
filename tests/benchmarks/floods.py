"""Makes honest calls beside every flood that a client without a key can make, and prints what became of the honest.

    python -m tests.benchmarks.floods --seconds 60 --workers 2

Two phases, the same honest calls in both: without floods, and with all of them at once, from a process of its own that
yields the cores to the others. Meanwhile the name of another server's upstream hangs, and nobody reads the gateway's
log. Everything stays on 127.0.0.1 and stops by itself; the exit code is 1 if an honest call was lost, if something was
left behind, or if the gateway did not stop in time.
"""

# ruff: noqa: E402 (nothing may be imported before the patching)
from gevent import monkey

monkey.patch_all()

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import requests
import yaml
from gevent.pool import Pool

from openai_gateway.transport.watch import has_left
from tests.support.processes import ROOT, Gunicorn, run_simulator, to_config

KEY, OTHER_KEY = "gw-honest-0123456789", "gw-other-0123456789"
CALLS_PER_S = 40
SENDERS = 2
# Of each kind that only waits, so many connections at once.
WAITING = 20
STOP_S = 30.0
_BODY = b'{"model": "m", "messages": []}'
# In the place of a name server that does not answer.
_HANGING_NAMES = """
import _socket, time
find, sleep = _socket.getaddrinfo, time.sleep
def hang(host, *rest, **named):
    if host in ("hangs.test", b"hangs.test"):
        sleep(20)
        raise _socket.gaierror(-3, "Temporary failure in name resolution")
    return find(host, *rest, **named)
_socket.getaddrinfo = hang
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="length of the floods")
    parser.add_argument("--workers", type=int, default=2, help="the gateway's workers")
    parser.add_argument("--flood", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--only", metavar="KIND", help="this flood alone")
    options = parser.parse_args()
    if options.flood:
        flood(options.flood, options.seconds, options.only)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with run_simulator(folder) as simulator, run_unread(folder, simulator.url, options.workers) as gateway:
            is_fine = run(gateway, options)
    sys.exit(0 if is_fine else 1)


def run(gateway: Gunicorn, options: argparse.Namespace) -> bool:
    """Run both phases; tell whether all is as it should be."""
    print(f"{'':16}{'calls':>7}{'lost':>6}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    call_honestly(gateway.url, 2)
    lost = report("without floods", call_honestly(gateway.url, max(5, options.seconds // 4)))
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.floods",
        "--flood",
        gateway.url,
        "--seconds",
        str(options.seconds),
    ]
    command += ["--only", options.only] if options.only else []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as flooder:
        gevent.sleep(2)
        lost += report("with floods", call_honestly(gateway.url, options.seconds - 2))
        sent, _ = flooder.communicate()
    for kind, counts in json.loads(sent).items():
        print(f"  {kind}: {counts}")
    gevent.sleep(3)
    left = requests.get(f"{gateway.url}/metrics", timeout=30).text
    held = [
        line for line in left.splitlines() if line.startswith("openai_gateway_in_flight") and not line.endswith(" 0.0")
    ]
    began = time.monotonic()
    gateway.stop(timeout_s=STOP_S)
    print(f"held afterwards: {held or 'nothing'}; stopped in {time.monotonic() - began:.1f} s")
    return not lost and not held


@contextlib.contextmanager
def run_unread(folder: Path, upstream_url: str, workers: int) -> Iterator[Gunicorn]:
    """Run a gateway whose log is read until it serves, and not after that."""
    (folder / "sitecustomize.py").write_text(_HANGING_NAMES)
    settings = {"gateway_api_keys": [KEY], "client_timeout_s": 30}
    config = yaml.safe_load(to_config(upstream_url, settings))
    hanging = {"gateway_api_keys": [OTHER_KEY], "max_retries": 0}
    config["hanging"] = yaml.safe_load(to_config("http://hangs.test:9", hanging))["policy_model"]
    (folder / "gateway.yaml").write_text(yaml.safe_dump(config))
    environ = {
        **os.environ,
        "OPENAI_GATEWAY_CONFIG_PATHS": str(folder / "gateway.yaml"),
        "PYTHONPATH": f"{folder}:{ROOT}",
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-m", "gunicorn", "-c", "python:openai_gateway.server.settings"]
    command += [
        "-w",
        str(workers),
        "-b",
        "127.0.0.1:0",
        "--graceful-timeout",
        str(int(STOP_S) - 10),
        "openai_gateway.wsgi:app",
    ]
    reader, writer = os.pipe()
    process = subprocess.Popen(command, cwd=folder, env=environ, stdout=writer, stderr=writer)
    log_path, is_up = folder / "log", threading.Event()
    log_path.touch()

    def read_until_up() -> None:
        with log_path.open("ab", buffering=0) as log:
            while not is_up.is_set():
                log.write(gevent.os.tp_read(reader, 4096))

    gevent.spawn(read_until_up)
    try:
        running = Gunicorn(process, log_path)
        is_up.set()
        yield running
    finally:
        process.kill() if process.poll() is None else None
        process.wait(10)


def call_honestly(url: str, seconds: float) -> list[float | None]:
    """Make so many calls a second, whole and streamed, over both APIs; return what each took, None if it was lost."""
    took: list[float | None] = []
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=200))

    def call(number: int, due: float) -> None:
        path = ("chat/completions", "responses")[number % 2]
        is_stream = number % 4 > 1
        body = {"messages": [{"role": "user", "content": "hello"}], "input": "hello", "stream": is_stream}
        body["metadata"] = {"sim_event_gap_ms": "1"}
        del body[("input", "messages")[number % 2]]
        last = (b"[DONE]", b"response.completed")[number % 2] if is_stream else b"hello"
        try:
            answer = session.post(f"{url}/v1/{path}", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=30)
            is_whole = answer.status_code == 200 and last in answer.content
            why = f"{answer.status_code} {answer.content[-200:]!r}"
        except requests.RequestException as error:
            is_whole, why = False, repr(error)
        took.append(time.monotonic() - due if is_whole else None)
        if not is_whole:
            print(f"lost: {path}: {why}", flush=True)

    pool, began = Pool(), time.monotonic()
    for number in range(int(seconds * CALLS_PER_S)):
        due = began + number / CALLS_PER_S
        gevent.sleep(max(0.0, due - time.monotonic()))
        pool.spawn(call, number, due)
    pool.join(60)
    took += [None] * len(pool)
    return took


def report(phase: str, took: list[float | None]) -> int:
    """Print a line; return how many calls were lost."""
    times = sorted(seconds for seconds in took if seconds is not None) or [0.0]
    lost = took.count(None)
    figures = [times[len(times) // 2], times[int(len(times) * 0.99)], times[-1]]
    print(f"{phase:16}{len(took):7}{lost:6}" + "".join(f"{seconds * 1000:9.1f}" for seconds in figures), flush=True)
    return lost


def _head(target: str = "POST /v1/chat/completions", *lines: str) -> bytes:
    return "\r\n".join([f"{target} HTTP/1.1", "host: x", "content-type: application/json", *lines, "", ""]).encode()


_ENDLESS = "content-length: 1000000000000"
_CHUNKED = "transfer-encoding: chunked"
_HANDSHAKE = (
    "connection: upgrade",
    "upgrade: websocket",
    "sec-websocket-version: 13",
    "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
)
_KEY = f"authorization: Bearer {KEY}"
_OTHER_KEY = f"authorization: Bearer {OTHER_KEY}"
_WHOLE = _head("POST /v1/chat/completions", f"content-length: {len(_BODY)}") + _BODY

# What is sent first on a connection, and then again and again until it is closed.
SENT_ON: dict[str, tuple[bytes, bytes]] = {
    "bodies after a 401": (_head("POST /v1/responses", _ENDLESS), b"x" * 65536),
    "bodies after a 404": (_head("POST /nothing", _ENDLESS), b"x" * 65536),
    "bodies of a GET": (_head("GET /healthz", _ENDLESS), b"x" * 65536),
    "chunks after a 401": (_head("POST /v1/responses", _CHUNKED), b"1000\r\n" + b"x" * 4096 + b"\r\n"),
    "chunks of one byte": (_head("POST /v1/responses", _CHUNKED), b"1\r\nx\r\n" * 4000),
    "trailers": (_head("POST /v1/responses", _CHUNKED) + b"0\r\n", b"a: b\r\n" * 4000),
    "heads without end": (b"GET / HTTP/1.1\r\n", b"a: " + b"b" * 4000 + b"\r\n"),
    "request lines without end": (b"GET /", b"x" * 16384),
    "heads byte by byte": (b"GET /healthz HTTP/1.1\r\na: ", b"b"),
    "bodies byte by byte, with a key": (_head("POST /v1/responses", _KEY, _ENDLESS), b" "),
    "doubled slashes": (b"", _head("GET //v1//responses") * 50),
    "malformed heads": (b"", b"GET /healthz HTTP/1.1\r\na b: c\r\n\r\n"),
    "requests without a key": (b"", _WHOLE * 50),
    "preflights": (
        b"",
        _head("OPTIONS /v1/responses", "origin: http://a.test", "access-control-request-method: POST") * 50,
    ),
    "handshakes": (b"", _head("GET /v1/responses", *_HANDSHAKE) * 50),
    "bytes that are no HTTP": (b"", bytes(range(256)) * 64),
    "is it ready upstream?": (b"", _head("GET /readyz?upstream=1") * 10),
}
# What is sent on a connection on which nothing happens then: nothing more is sent, and no answer is read.
LEFT_WAITING: dict[str, bytes] = {
    "nothing sent": b"",
    "heads that stop": b"POST /v1/responses HTTP/1.1\r\nhost: x\r\n",
    "bodies that stop, with a key": _head("POST /v1/responses", _KEY, "content-length: 10") + b"{",
    "bodies that stop after a 401": _head("POST /v1/responses", "content-length: 10") + b"{",
    "100-continue, and nothing": _head("POST /v1/responses", _KEY, "content-length: 10", "expect: 100-continue"),
    "metrics that nobody reads": _head("GET /metrics") * 400,
    "errors that nobody reads": _WHOLE * 4000,
    "calls to a name that hangs": _head(
        "POST /hanging/v1/chat/completions", _OTHER_KEY, f"content-length: {len(_BODY)}"
    )
    + _BODY,
}


def flood(url: str, seconds: float, only: str | None) -> None:
    """Send every flood at once for so long; print what was sent as JSON."""
    os.nice(10)
    host, _, port = url.removeprefix("http://").partition(":")
    address, deadline = (host, int(port)), time.monotonic() + seconds
    seen: dict[str, Counter[str]] = {}

    def begin(kind: str, times: int, act: Callable[[Counter[str]], None]) -> None:
        if only in (None, kind):
            seen[kind] = Counter()
            for _ in range(times):
                gevent.spawn(repeat, act, seen[kind], deadline)

    for kind, (first, again) in SENT_ON.items():
        begin(kind, SENDERS, lambda counts, first=first, again=again: send_on(address, first, again, counts, deadline))
    for kind, sent in LEFT_WAITING.items():
        begin(kind, WAITING, lambda counts, sent=sent: wait(address, sent, counts, deadline))
    begin("connections that come and go", SENDERS, lambda counts: come_and_go(address, counts))
    gevent.sleep(seconds + 1)
    print(json.dumps(seen))


def repeat(act: Callable[[Counter[str]], None], counts: Counter[str], deadline: float) -> None:
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            act(counts)
        gevent.sleep(0)


def send_on(address: tuple[str, int], first: bytes, again: bytes, counts: Counter[str], deadline: float) -> None:
    with socket.create_connection(address, timeout=10) as sock:
        counts["connections"] += 1
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = gevent.spawn(read_on, sock)
        try:
            sock.sendall(first)
            while time.monotonic() < deadline and not reader.dead:
                sock.sendall(again)
                counts["bytes"] += len(again)
                gevent.sleep(0)
        finally:
            reader.kill()


def read_on(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


def wait(address: tuple[str, int], sent: bytes, counts: Counter[str], deadline: float) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        sock.connect(address)
        counts["connections"] += 1
        with contextlib.suppress(TimeoutError):
            sock.sendall(sent)
        while time.monotonic() < deadline and not has_left(sock.fileno()):
            gevent.sleep(0.5)


def come_and_go(address: tuple[str, int], counts: Counter[str]) -> None:
    socket.create_connection(address, timeout=10).close()
    counts["connections"] += 1


if __name__ == "__main__":
    main()
