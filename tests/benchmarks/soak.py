"""Runs a mixed load with faults and clients that leave, and prints what the worker holds over time.

    python -m tests.benchmarks.soak --seconds 600
    python -m tests.benchmarks.soak --streams 2000
    python -m tests.benchmarks.soak --queue 10000 --cap 50

Everything stays on 127.0.0.1 and stops by itself; the exit code is 1 if something was left behind.
"""

# ruff: noqa: E402 (nothing may be imported before the patching)
from gevent import monkey

monkey.patch_all()

import argparse
import contextlib
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
import requests
from gevent.pool import Pool

from tests.support.processes import Gunicorn, run_gateway, run_simulator

CALLERS = 64
KINDS: list[tuple[str, int, dict[str, str]]] = [
    # kind, weight, metadata
    ("plain", 40, {}),
    ("stream", 25, {"sim_event_gap_ms": "5"}),
    ("leave before the answer", 8, {"sim_latency_ms": "300"}),
    ("leave in the stream", 8, {"sim_event_gap_ms": "50"}),
    ("503 that passes", 6, {"sim_status": "503", "sim_times": "1", "sim_retry_after": "0.05"}),
    ("400", 4, {"sim_status": "400"}),
    ("dropped before headers", 2, {"sim_fault": "drop_before_headers", "sim_times": "1"}),
    ("dropped in the stream", 4, {"sim_fault": "drop_in_stream"}),
    ("html 502", 1, {"sim_fault": "html_502", "sim_times": "1"}),
    ("malformed", 2, {}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="length of the mixed load")
    parser.add_argument("--streams", type=int, default=0, help="instead: so many streams open at once")
    parser.add_argument("--queue", type=int, default=0, help="instead: so many calls at once on a cap")
    parser.add_argument("--cap", type=int, default=50, help="the cap for --queue")
    options = parser.parse_args()
    settings: dict[str, Any] = {"max_concurrent_requests": options.cap if options.queue else 4000, "retry_ratio": None}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        simulator = stack.enter_context(run_simulator(folder))
        gateway = stack.enter_context(run_gateway(folder, simulator.url, settings))
        if options.streams or options.queue:
            is_fine = run_burst(gateway, simulator, options.streams, options.queue)
        else:
            is_fine = run_mixed(gateway, options.seconds)
    sys.exit(0 if is_fine else 1)


def run_mixed(gateway: Gunicorn, seconds: int) -> bool:
    """Run the mixed load; tell whether what the worker holds stayed flat after the first fifth."""
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    callers = [gevent.spawn(call_on, gateway.url, deadline, seen, number) for number in range(CALLERS)]
    samples: list[dict[str, Any]] = []
    print(f"{'s':>5} {'rss MB':>7} {'fds':>5} {'greenlets':>9} {'in flight':>9} {'queued':>6} {'calls':>8}")
    started = time.monotonic()
    while time.monotonic() < deadline:
        gevent.sleep(min(10.0, seconds / 10))
        samples.append(sample(gateway, time.monotonic() - started, sum(seen.values())))
    gevent.joinall(callers, timeout=30)
    gevent.sleep(6)
    last = sample(gateway, time.monotonic() - started, sum(seen.values()))
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(seen.items())))
    early = samples[max(0, len(samples) // 5 - 1)]
    grown = samples[-1]["rss"] / early["rss"] - 1
    print(f"rss after warm-up {early['rss']:.1f} MB, at the end {samples[-1]['rss']:.1f} MB ({grown:+.1%})")
    print(f"after the load: in flight {last['in_flight']}, greenlets {last['greenlets']}, fds {last['fds']}")
    return grown < 0.1 and last["in_flight"] == 0 and last["greenlets"] <= 3 and "unexpected" not in seen


def run_burst(gateway: Gunicorn, simulator: Gunicorn, streams: int, queue: int) -> bool:
    """Open so many streams, or make so many calls on a cap, at once; tell whether all were answered."""
    count = streams or queue
    metadata = {"sim_event_gap_ms": "200", "sim_events": "40"} if streams else {"sim_latency_ms": "100"}
    body = {"input": "x", "stream": bool(streams), "metadata": metadata}
    seen: Counter[str] = Counter()

    def call() -> None:
        answer = requests.post(f"{gateway.url}/v1/responses", json=body, timeout=300)
        is_whole = not streams or b"response.completed" in answer.content
        seen[f"{answer.status_code}{'' if is_whole else ' cut'}"] += 1

    pool = Pool(count)
    started = time.monotonic()
    for _ in range(count):
        pool.spawn(call)
    peak = 0.0
    while not pool.join(timeout=2):
        peak = max(peak, sample(gateway, time.monotonic() - started, sum(seen.values()))["rss"])
    stats = requests.get(f"{simulator.url}/sim/stats", timeout=30).json()
    print(f"{dict(seen)}, peak at the upstream {stats['peak_in_flight']}, peak rss {peak:.0f} MB")
    return dict(seen) == {"200": count} and gateway.inspect()["in_flight"] == 0


def sample(gateway: Gunicorn, at_s: float, calls: int) -> dict[str, Any]:
    found = gateway.inspect()
    status = Path(f"/proc/{found['pid']}/status").read_text()
    found["rss"] = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    print(
        f"{at_s:5.0f} {found['rss']:7.1f} {found['fds']:5} {found['greenlets']:9} {found['in_flight']:9}"
        f" {found['queued']:6} {calls:8}",
        flush=True,
    )
    return found


def call_on(url: str, deadline: float, seen: Counter[str], number: int) -> None:
    choose = random.Random(number)
    session = requests.Session()
    while time.monotonic() < deadline:
        kind, _, metadata = choose.choices(KINDS, [weight for _, weight, _ in KINDS])[0]
        if "sim_times" in metadata:
            metadata = {**metadata, "sim_key": f"{number}-{choose.random()}"}
        api = choose.choice(["responses", "chat/completions"])
        try:
            seen[call_once(session, url, api, kind, metadata)] += 1
        except requests.RequestException as error:
            seen["unexpected"] += 1
            print(f"unexpected: {kind}: {error!r}", flush=True)


def call_once(session: requests.Session, url: str, api: str, kind: str, metadata: dict[str, str]) -> str:
    is_stream = "stream" in kind
    body = {"input": "x" * 500, "messages": [{"role": "user", "content": "x" * 500}], "metadata": metadata}
    if is_stream:
        body["stream"] = True
    if kind.startswith("leave"):
        leave(url, api, body, after_s=0.1)
        return kind
    data = b"{" if kind == "malformed" else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    answer = session.post(f"{url}/v1/{api}", data=data, headers=headers, timeout=60)
    expected = {"400": 400, "malformed": 400}.get(kind, 200)
    return kind if answer.status_code == expected else f"{kind} -> {answer.status_code}"


def leave(url: str, api: str, body: dict[str, Any], after_s: float) -> None:
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/{api} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(head.encode() + data)
        gevent.sleep(after_s)


if __name__ == "__main__":
    main()
