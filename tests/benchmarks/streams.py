"""Many streams, or many idle connections, through one worker: its memory, its share of a core, and how late events are.

    python -m tests.benchmarks.streams --streams 9000 --per-second 2 --seconds 20
    python -m tests.benchmarks.streams --idle 10000

Upstream and clients are a process each, without threads; everything stays on 127.0.0.1 and stops by itself. Each stream
takes two of the worker's file descriptors, and one of either process here: see `ulimit -n`. The exit code is 1 if a
stream did not come whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import select
import socket
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from tests.support.processes import run_gunicorn, write_config
from tests.support.upstreams import LAST_CHUNK, STREAM_HEAD, to_answer, to_chunk, to_event, to_request_body

_EVENT = to_chunk(to_event("chat", "token"))
_END = to_chunk(b"data: [DONE]\n\n") + LAST_CHUNK
_ANSWER = to_answer(json.dumps({"id": "c", "choices": [{"message": {"content": "word " * 200}}]}).encode())
_BUSY = 64
_SETTLE_S = 5.0


def serve(listener: socket.socket, per_second: float) -> None:
    """Answer everything: a stream with an event each 1 / `per_second` s, as many as it asks for; the rest whole."""
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    talks: dict[int, socket.socket] = {}
    due: deque[tuple[float, int, int]] = deque()
    while True:
        wait_s = max(0.0, due[0][0] - time.monotonic()) if due else 1.0
        for fd, _ in poll.poll(wait_s):
            if fd == listener.fileno():
                talk, _ = listener.accept()
                talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                talks[talk.fileno()] = talk
                poll.register(talk, select.EPOLLIN)
                continue
            try:
                request = talks[fd].recv(65536)
            except ConnectionResetError:
                request = b""
            if not request:
                talks.pop(fd).close()
            elif b'"stream"' in request:
                talks[fd].sendall(STREAM_HEAD)
                count = int(request.rpartition(b'"n":')[2].partition(b"}")[0])
                due.append((time.monotonic() + 1 / per_second, fd, count))
            else:
                talks[fd].sendall(_ANSWER)
        now = time.monotonic()
        while due and due[0][0] <= now:
            at, fd, left = due.popleft()
            if fd not in talks:
                continue
            talks[fd].sendall(_EVENT if left else _END)
            if left:
                due.append((at + 1 / per_second, fd, left - 1))


def to_post(body: dict[str, Any]) -> bytes:
    """Return a POST as it goes over the wire."""
    encoded = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {len(encoded)}", "", ""]).encode() + encoded


class Worker:
    """The gateway's worker, as the kernel sees it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu_s(self) -> float:
        """Return the time on the processor so far."""
        return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[0]) / 1e9

    def resident_kb(self) -> int:
        """Return the memory that is resident."""
        return int(Path(f"/proc/{self._pid}/status").read_text().partition("VmRSS:")[2].split()[0])


class Streams:
    """Clients of so many streams: each notes when its events came."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._poll = select.epoll()
        self._talks: dict[int, socket.socket] = {}
        self._came: dict[int, float] = {}
        self._counts: dict[int, int] = {}
        self.gaps: list[float] = []
        self.whole = 0

    def open(self, count: int, request: bytes) -> None:
        """Begin so many, and read meanwhile what comes."""
        for number in range(count):
            talk = socket.create_connection(self._address)
            talk.sendall(request)
            talk.setblocking(False)
            self._talks[talk.fileno()] = talk
            self._poll.register(talk, select.EPOLLIN)
            if number % 20 == 0:
                self.read(0.0)

    def read(self, seconds: float) -> None:
        """Read for so long, or until all have ended."""
        until = time.monotonic() + seconds
        while True:
            for fd, _ in self._poll.poll(max(0.0, until - time.monotonic())):
                self._take(fd)
            if time.monotonic() >= until or not self._talks:
                return

    def _take(self, fd: int) -> None:
        received = self._talks[fd].recv(65536)
        now = time.monotonic()
        events = received.count(b"data: {")
        if events:
            if fd in self._came:
                self.gaps.append(now - self._came[fd])
            self._came[fd] = now
        if not received or b"data: [DONE]" in received:
            self.whole += bool(received)
            self._poll.unregister(fd)
            self._talks.pop(fd).close()


def measure_streams(worker: Worker, address: tuple[str, int], count: int, per_second: float, seconds: float) -> bool:
    """Print what so many streams cost; tell whether all came whole."""
    warm = Streams(address)
    warm.open(50, to_post({**to_request_body("chat", stream=True), "n": 3}))
    warm.read(30)
    before_kb = worker.resident_kb()
    streams = Streams(address)
    began = time.monotonic()
    # Enough for the opening, which takes longest on a slow machine, and the window.
    events = int((seconds + count / 400 + 2 * _SETTLE_S) * per_second)
    streams.open(count, to_post({**to_request_body("chat", stream=True), "n": events}))
    opened_s = time.monotonic() - began
    streams.read(_SETTLE_S)
    streams.gaps.clear()
    cpu_s, start = worker.cpu_s(), time.monotonic()
    streams.read(seconds)
    span_s = time.monotonic() - start
    share = (worker.cpu_s() - cpu_s) / span_s
    gaps_ms = [gap * 1000 for gap in sorted(streams.gaps)]
    each_kb = (worker.resident_kb() - before_kb) / count
    streams.read(events / per_second + 60)
    print(
        f"{count} streams, opened in {opened_s:.1f} s: {each_kb:.1f} KB each;"
        f" {len(gaps_ms) / span_s:.0f} events/s with {share:.0%} of a core;"
        f" gap p50 {gaps_ms[len(gaps_ms) // 2]:.0f} ms, p99 {gaps_ms[len(gaps_ms) * 99 // 100]:.0f} ms"
        f" of {1000 / per_second:.0f}; {streams.whole} came whole"
    )
    return streams.whole == count


def measure_idle(worker: Worker, address: tuple[str, int], count: int, seconds: float) -> bool:
    """Print what calls on a few busy connections cost without and with so many idle ones, in turns."""
    request = to_post(to_request_body("chat"))
    costs: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(3):
        costs["without"].append(_cost_us(worker, address, request, seconds))
        idle = []
        for _ in range(count):
            talk = socket.create_connection(address)
            talk.sendall(request)
            idle.append(talk)
        for talk in idle:
            talk.recv(65536)
        costs["with"].append(_cost_us(worker, address, request, seconds))
        for talk in idle:
            talk.close()
        time.sleep(1.0)
    without, with_idle = (statistics.median(costs[kind]) for kind in ("without", "with"))
    print(f"a call on {_BUSY} busy connections: {without:.1f} us, beside {count} idle ones {with_idle:.1f} us")
    return True


def _cost_us(worker: Worker, address: tuple[str, int], request: bytes, seconds: float) -> float:
    poll, talks, calls = select.epoll(), {}, 0
    for _ in range(_BUSY):
        talk = socket.create_connection(address)
        talk.sendall(request)
        talks[talk.fileno()] = talk
        poll.register(talk, select.EPOLLIN)
    cpu_s, until = worker.cpu_s(), time.monotonic() + seconds
    while time.monotonic() < until:
        for fd, _ in poll.poll():
            talks[fd].recv(65536)
            talks[fd].sendall(request)
            calls += 1
    spent_s = worker.cpu_s() - cpu_s
    for talk in talks.values():
        talk.close()
    return spent_s / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=9000)
    parser.add_argument("--per-second", type=float, default=2.0, help="events of each stream")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each measurement")
    parser.add_argument("--idle", type=int, default=0, help="instead: so many idle connections beside 64 busy ones")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    upstream = multiprocessing.Process(target=serve, args=(listener, options.per_second), daemon=True)
    upstream.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environ = {"OPENAI_GATEWAY_CONFIG_PATHS": str(write_config(folder, url))}
        # The app itself, without what the tests put around it: its frames would take another page a stream.
        gateway = stack.enter_context(run_gunicorn("openai_gateway.wsgi:app", folder, environ=environ))
        worker = Worker(gateway.workers()[0])
        if len(cores := sorted(os.sched_getaffinity(0))) > 1:
            # The worker has one for itself.
            os.sched_setaffinity(gateway.workers()[0], cores[:1])
            for pid in (0, upstream.pid or 0):
                os.sched_setaffinity(pid, cores[1:])
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        address = (host, int(port))
        if options.idle:
            is_good = measure_idle(worker, address, options.idle, options.seconds)
        else:
            is_good = measure_streams(worker, address, options.streams, options.per_second, options.seconds)
    upstream.terminate()
    raise SystemExit(0 if is_good else 1)


if __name__ == "__main__":
    main()
