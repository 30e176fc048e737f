"""Several hosts that share an upstream through Redis, as gateways with folders for temporary files of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.gate import Gate, call_for_status
from tests.support.processes import Gunicorn, eventually, run_gateway
from tests.support.redis_server import RedisServer, needs_redis, run_redis
from tests.support.upstreams import Conversation, run_upstream

pytestmark = needs_redis
CAP = 6
KEY = "sk-upstream-key"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with run_redis(tmp_path, "pass-of-redis") as server:
        yield server


@contextlib.contextmanager
def _run_hosts(
    folder: Path, url: str, redis: RedisServer, count: int = 2, workers: int = 1, **settings: object
) -> Iterator[list[Gunicorn]]:
    with contextlib.ExitStack() as stack:
        hosts = []
        for number in range(count):
            own = folder / f"host{number}"
            (own / "tmp").mkdir(parents=True)
            given = {"limits_url": redis.url, **settings}
            environ = {"TMPDIR": str(own / "tmp")}
            gateway = run_gateway(own, url, given, "--workers", str(workers), environ=environ)
            hosts.append(stack.enter_context(gateway))
        yield hosts


def _metric(host: Gunicorn, name: str) -> float | None:
    text = requests.get(f"{host.url}/metrics", timeout=60).text
    found = re.search(rf'^openai_gateway_{name}{{server="policy_model"}} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else None


def _all_see(hosts: list[Gunicorn], count: int | None = None) -> None:
    eventually(lambda: all(_metric(host, "limits_redis_up") == 1 for host in hosts))
    if count is not None:
        eventually(lambda: all(_metric(host, "limits_hosts") == count for host in hosts))


def _submit(pool: ThreadPoolExecutor, hosts: list[Gunicorn], calls: int) -> list[Future[int]]:
    return [pool.submit(call_for_status, hosts[number % len(hosts)].url) for number in range(calls)]


@pytest.mark.parametrize(("count", "workers"), [(2, 1), (2, 2), (4, 1)])
def test_no_more_than_the_total_cap_run_on_all_hosts_together(
    tmp_path: Path, redis: RedisServer, count: int, workers: int
) -> None:
    gate = Gate()
    with (
        run_upstream(gate.script) as upstream,
        _run_hosts(tmp_path, upstream.url, redis, count, workers, max_concurrent_requests_total=CAP) as hosts,
        ThreadPoolExecutor(48) as pool,
    ):
        calls = _submit(pool, hosts, 48)
        eventually(lambda: gate.running == CAP)
        redis.ask("FLUSHALL")
        gate.is_open.set()
        assert [call.result() for call in calls] == [200] * 48
    assert gate.most == CAP


def test_idle_host_leaves_its_permits_to_the_one_that_waits(tmp_path: Path, redis: RedisServer) -> None:
    gate = Gate()
    with (
        run_upstream(gate.script) as upstream,
        _run_hosts(tmp_path, upstream.url, redis, max_concurrent_requests_total=CAP) as hosts,
        ThreadPoolExecutor(24) as pool,
    ):
        for host in hosts:
            calls = _submit(pool, [host], 12)
            eventually(lambda: gate.running == CAP)
            gate.is_open.set()
            assert [call.result() for call in calls] == [200] * 12
            gate.is_open.clear()
    assert gate.most == CAP


def test_redis_away_frozen_restarted_and_emptied_stops_no_call_and_breaks_no_cap(
    tmp_path: Path, redis: RedisServer
) -> None:
    gate = Gate()
    with (
        run_upstream(gate.script) as upstream,
        _run_hosts(tmp_path, upstream.url, redis, max_concurrent_requests_total=CAP) as hosts,
        ThreadPoolExecutor(24) as pool,
    ):
        # Each has calls waiting, and so a part of the permits.
        gate.is_open.set()
        is_over = threading.Event()
        statuses: list[int] = []

        def call_on(host: Gunicorn) -> None:
            while not is_over.is_set():
                statuses.append(call_for_status(host.url))

        callers = [pool.submit(call_on, hosts[number % 2]) for number in range(20)]
        eventually(lambda: gate.done > 50)

        def goes_on() -> None:
            done = gate.done
            eventually(lambda: gate.done > done + 60)

        for act, undo in ((redis.stop, redis.start), (redis.freeze, redis.thaw)):
            act()
            eventually(lambda: all(_metric(host, "limits_redis_up") == 0 for host in hosts))
            goes_on()
            undo()
            _all_see(hosts)
            goes_on()
        redis.ask("FLUSHALL")
        goes_on()
        is_over.set()
        for caller in callers:
            caller.result()
        logs = [host.log() for host in hosts]
    assert set(statuses) == {200}
    assert gate.most == CAP
    for log in logs:
        assert log.count("Redis is away") == 2
        assert log.count("Redis is back") == 2
        assert "pass-of-redis" not in log


def test_killed_leader_is_replaced_and_a_killed_host_gives_its_permits_up(tmp_path: Path, redis: RedisServer) -> None:
    gate = Gate()
    with (
        run_upstream(gate.script) as upstream,
        _run_hosts(tmp_path, upstream.url, redis, 2, 2, max_concurrent_requests_total=CAP) as hosts,
        ThreadPoolExecutor(60) as pool,
    ):
        one, other = hosts
        _all_see(hosts)
        eventually(lambda: len(one.workers()) == 2)
        lost = _submit(pool, [one], 12)
        eventually(lambda: gate.running == CAP)
        waiting = _submit(pool, [other], 12)
        for pid in [one.pid, *one.workers()]:
            os.kill(pid, signal.SIGKILL)
        assert [call.result() for call in lost] == [0] * 12
        # The upstream goes on with what it was asked before; its permits come free with the lease.
        gate.is_open.set()
        assert [call.result() for call in waiting] == [200] * 12
        done = len(waiting)
        leader = _leader(tmp_path / "host1" / "tmp")
        assert leader in other.workers()
        os.kill(leader, signal.SIGKILL)
        eventually(lambda: _leader(tmp_path / "host1" / "tmp") in set(other.workers()) - {leader})
        assert done == 12
        assert [call.result() for call in _submit(pool, [other], 12)].count(200) >= 10
    assert gate.most <= 2 * CAP


def _leader(folder: Path) -> int:
    (path,) = folder.glob("openai_gateway_limits.*/*.leader")
    return int.from_bytes(path.read_bytes()[8:12], "little")


def test_hosts_started_while_redis_is_away_serve_and_share_once_it_is_there(tmp_path: Path) -> None:
    gate = Gate()
    gate.is_open.set()
    redis = RedisServer(tmp_path)
    with (
        run_upstream(gate.script) as upstream,
        _run_hosts(tmp_path, upstream.url, redis, max_concurrent_requests_total=CAP) as hosts,
    ):
        assert [call_for_status(host.url) for host in hosts] == [200, 200]
        eventually(lambda: all(_metric(host, "limits_redis_up") == 0 for host in hosts))
        redis.start()
        try:
            _all_see(hosts)
            eventually(lambda: [call_for_status(host.url) for host in hosts] == [200, 200])
        finally:
            redis.stop()


def test_wrong_password_is_told_in_one_line_without_it(tmp_path: Path, redis: RedisServer) -> None:
    redis.password, right = "wrong-password", redis.password
    gate = Gate()
    gate.is_open.set()
    with run_upstream(gate.script) as upstream, _run_hosts(tmp_path, upstream.url, redis, 1) as hosts:
        assert call_for_status(hosts[0].url) == 200
        hosts[0].wait_for_log(r"Redis is away \(it refuses the user or password")
        time.sleep(1)
        log = hosts[0].log()
        page = requests.get(f"{hosts[0].url}/status", timeout=60).text
    redis.password = right
    assert log.count("Redis is away") == 1
    assert "wrong-password" not in log + page
    assert "Redis is away" in page


def test_nothing_in_redis_tells_the_key_or_the_upstream(tmp_path: Path, redis: RedisServer) -> None:
    def script(talk: Conversation) -> None:
        while talk.read_request() is not None:
            headers = "x-ratelimit-limit-requests: 6000\r\nx-ratelimit-remaining-requests: 5000\r\n"
            body = b"{}"
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{headers}content-length: {len(body)}\r\n\r\n"
            talk.send(head.encode() + body)

    with run_upstream(script) as upstream, _run_hosts(tmp_path, upstream.url, redis) as hosts:
        assert call_for_status(hosts[0].url) == 200
        call_for_status(hosts[0].url)
        # The other host has made no call, and knows the limit nevertheless.
        eventually(lambda: "learned_limit_per_minute" in requests.get(f"{hosts[1].url}/metrics", timeout=60).text)
        assert call_for_status(hosts[1].url) == 200
        _all_see(hosts, 2)
        names = redis.ask("KEYS", "*").decode()
        keys = re.findall(r"openai-gateway:\S+", names)
        texts = b"".join(redis.ask("HGETALL", key) for key in keys)
    assert keys
    assert all(re.fullmatch(r"openai-gateway:(limits|permits):[0-9a-f]{32}", key) for key in keys)
    assert KEY.encode() not in texts
    assert b"127.0.0.1" not in texts
