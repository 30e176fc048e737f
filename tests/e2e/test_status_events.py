"""The status page's events from real gunicorn: no calls, no slots, and all given back when the viewers leave."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from openai_gateway.page.feed import MOST_VIEWERS
from tests.support.processes import Gunicorn, eventually, run_gateway

VIEWERS = 12


class Viewer:
    """Reads the events of a gateway one by one."""

    def __init__(self, url: str) -> None:
        self.answer = requests.get(f"{url}/status/events", stream=True, timeout=60)
        self._lines = self.answer.iter_lines(chunk_size=None)

    def read(self) -> dict[str, Any]:
        line = next(line for line in self._lines if line.startswith(b"data: "))
        view: dict[str, Any] = json.loads(line[6:])
        return view

    def read_to_the_end(self) -> None:
        for _ in self._lines:
            pass


@pytest.fixture
def gateway(tmp_path: Path, simulator: Gunicorn) -> Iterator[Gunicorn]:
    with run_gateway(tmp_path, simulator.url, {"max_concurrent_requests": 1}) as running:
        yield running


def _tile(view: dict[str, Any], label: str) -> str:
    return next(f"{tile['value']} {tile['note']}" for tile in view["tiles"] if tile["label"] == label)


def test_viewers_are_no_calls_hold_no_slot_and_give_all_back(gateway: Gunicorn) -> None:
    gateway.inspect()
    before = gateway.inspect()
    with contextlib.ExitStack() as leaving:
        viewers = [Viewer(gateway.url) for _ in range(VIEWERS)]
        for viewer in viewers:
            leaving.callback(viewer.answer.close)
        first = [viewer.read() for viewer in viewers]
        assert {_tile(view, "In flight") for view in first} == {"0 of 1 slots"}
        assert {_tile(view, "Calls/s") for view in first} == {"0.0 no calls yet"}
        assert gateway.inspect()["in_flight"] == 0
        answer = requests.post(f"{gateway.url}/v1/responses", json={"input": "x"}, timeout=60)
        assert (answer.status_code, answer.headers["x-gateway-queue-ms"]) == (200, "0")
        # It keeps its connection, which is idle for up to 75 s.
        del answer
        for viewer in viewers:
            while _tile(view := viewer.read(), "Calls/s").endswith("no calls yet"):
                pass
            assert _tile(view, "Calls/s").endswith("1 in all")
            assert [row[1] for row in view["tables"]["recent"]] == [["200", "good"]]
        metrics = requests.get(f"{gateway.url}/metrics", timeout=60).text.splitlines()
        counts = [float(line.split()[-1]) for line in metrics if line.startswith("openai_gateway_calls_total{")]
        assert sum(counts) == 1
        assert gateway.inspect()["fds"] >= before["fds"] + VIEWERS

    def is_all_back() -> bool:
        now = gateway.inspect()
        return bool(now["fds"] <= before["fds"] + 1 and now["greenlets"] <= before["greenlets"] + 1)

    eventually(is_all_back)
    assert "Traceback" not in gateway.log()


def test_viewers_who_leave_at_once_free_their_places(gateway: Gunicorn) -> None:
    def is_let_in() -> bool:
        viewer = Viewer(gateway.url)
        viewer.answer.close()
        return viewer.answer.status_code == 200

    for _ in range(3 * MOST_VIEWERS):
        eventually(is_let_in)


def test_events_end_when_the_worker_drains_and_keep_it_from_nothing(gateway: Gunicorn) -> None:
    viewers = [Viewer(gateway.url) for _ in range(3)]
    for viewer in viewers:
        viewer.read()
    gateway.send_signal(signal.SIGTERM)
    for viewer in viewers:
        viewer.read_to_the_end()
    # Long before the 30 s of gunicorn's graceful_timeout.
    gateway.process.wait(60)


def test_events_go_on_over_a_reload(gateway: Gunicorn) -> None:
    viewer = Viewer(gateway.url)
    old = viewer.read()["tables"]["workers"][0][0]
    gateway.send_signal(signal.SIGHUP)
    viewer.read_to_the_end()
    eventually(lambda: Viewer(gateway.url).read()["tables"]["workers"][0][0] != old)
