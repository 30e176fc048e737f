"""Permits of hosts against a real Redis: never more than the cap in all, and given to who needs them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from openai_gateway.config.secret import Secret
from openai_gateway.limits import permits as permits_module
from openai_gateway.limits.permits import Permits
from openai_gateway.limits.redis_link import RedisAway, RedisLink
from tests.support.redis_server import RedisServer, needs_redis, run_redis

pytestmark = needs_redis
GRACE_S = 0.15


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(autouse=True)
def _fresh(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    redis.ask("FLUSHALL")
    monkeypatch.setattr(permits_module, "_GRACE_S", GRACE_S)


class Host:
    """What a host has in flight and waiting; `ask` is a round of its exchange."""

    def __init__(self, name: str, link: RedisLink, cap: int) -> None:
        self.name, self.link = name, link
        self.rules = Permits(cap)
        self.permits = self.running = self.waiting = 0

    def ask(self, *, is_reply_lost: bool = False) -> None:
        self.permits = self.rules.count_kept(self.permits, self.running, self.waiting)
        demand = self.running + self.waiting
        now = time.monotonic()
        command = self.rules.make_command("table", self.name, self.permits, demand, self.link.clock())
        reply = self.link.ask([command])[0]
        if not is_reply_lost:
            self.permits, _ = self.rules.take(reply, now)
        time.sleep(0.002)  # Redis tells requests apart by the millisecond.

    def work(self) -> None:
        """Start what may be started."""
        started = max(0, min(self.waiting, self.permits - self.running))
        self.waiting -= started
        self.running += started


def _hosts(redis: RedisServer, count: int, cap: int) -> list[Host]:
    return [Host(f"h{number}", RedisLink(Secret(redis.url)), cap) for number in range(count)]


def _settle(hosts: list[Host], rounds: int = 4) -> None:
    for _ in range(rounds):
        for host in hosts:
            host.ask()
            host.work()


@pytest.mark.parametrize("seed", range(4))
def test_sum_of_what_hosts_may_run_never_exceeds_the_cap_whatever_gets_lost(redis: RedisServer, seed: int) -> None:
    draw = random.Random(seed)
    cap = draw.choice([1, 3, 10, 50])
    hosts = _hosts(redis, draw.choice([2, 4]), cap)
    most = 0
    for step in range(400):
        host = draw.choice(hosts)
        host.waiting = draw.choice([0, 0, 1, 5, 3 * cap])
        host.running -= min(host.running, draw.choice([0, 0, 1, 2]))
        host.ask(is_reply_lost=draw.random() < 0.1)
        host.work()
        if step in (150, 300):
            redis.ask("FLUSHALL")
            # All are in touch: each says what it has before anything is given away.
            for each in hosts:
                each.ask(is_reply_lost=draw.random() < 0.5)
        if step == 100:
            time.sleep(1.2 * GRACE_S)
        assert sum(each.running for each in hosts) <= cap
        assert sum(each.permits for each in hosts) <= cap
        most = max(most, sum(each.running for each in hosts))
    assert most == cap, "never was the cap used"


def test_redis_that_forgot_gives_nothing_away_before_hosts_had_time_to_say_what_they_have(redis: RedisServer) -> None:
    one, other = _hosts(redis, 2, 10)
    one.ask()
    time.sleep(1.2 * GRACE_S)
    one.waiting = 10
    _settle([one])
    assert one.running == 10
    redis.ask("FLUSHALL")
    other.waiting = 10
    other.ask()
    assert other.permits == 0
    one.ask()
    time.sleep(1.2 * GRACE_S)
    other.ask()
    assert other.permits == 0
    assert one.permits == 10


def test_redis_that_was_started_again_does_not_believe_what_it_had_kept(redis: RedisServer) -> None:
    """As one that had saved its memory long before: its hosts have other permits by now."""
    one, other = _hosts(redis, 2, 10)
    one.ask()
    time.sleep(1.2 * GRACE_S)
    one.waiting = 10
    _settle([one])
    redis.ask("HSET", "table", "run", "another-run")
    redis.ask("HDEL", "table", one.name)
    other.waiting = 10
    other.ask()
    assert other.permits == 0


def test_idle_host_gives_its_permits_to_the_one_that_waits(redis: RedisServer) -> None:
    one, other = _hosts(redis, 2, 10)
    one.ask()
    time.sleep(1.2 * GRACE_S)
    one.waiting = 30
    _settle([one, other])
    assert one.running == 10
    one.running = one.waiting = 0
    other.waiting = 30
    # One round to hear of it, one to give back, one to get.
    _settle([other, one, other])
    assert other.running == 10
    assert one.permits == 0


def test_permits_are_divided_by_demand(redis: RedisServer) -> None:
    one, other = _hosts(redis, 2, 12)
    for host, waiting in ((one, 60), (other, 30)):
        host.waiting = waiting
        host.ask()
    time.sleep(1.2 * GRACE_S)
    _settle([one, other])
    assert (one.permits, other.permits) == (8, 4)


def test_permits_that_nobody_needs_are_divided_so_that_a_call_finds_one(redis: RedisServer) -> None:
    one, other = _hosts(redis, 2, 12)
    for host in (one, other):
        host.ask()
    time.sleep(1.2 * GRACE_S)
    one.waiting = 2
    _settle([one, other])
    assert (one.permits, other.permits) == (7, 5)


def test_single_permit_goes_round(redis: RedisServer) -> None:
    hosts = _hosts(redis, 3, 1)
    for host in hosts:
        host.waiting = 100
        host.ask()
    had: set[str] = set()
    deadline = time.monotonic() + 30
    while len(had) < 3 and time.monotonic() < deadline:
        for host in hosts:
            host.ask()
            host.work()
            assert sum(each.running for each in hosts) <= 1
            if host.running:
                had.add(host.name)
                host.running = 0
    assert len(had) == 3


def test_lease_of_a_host_that_has_ended_is_free_after_its_time(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permits_module, "LEASE_S", 4.0)
    one, other = _hosts(redis, 2, 10)
    one.ask()
    time.sleep(1.2 * GRACE_S)
    one.waiting = 10
    _settle([one])
    other.waiting = 10
    other.ask()
    assert other.permits == 0
    time.sleep(4.1)
    _settle([other])
    assert other.running == 10


def test_request_that_comes_after_a_later_one_is_refused(redis: RedisServer) -> None:
    (one,) = _hosts(redis, 1, 10)
    earlier = one.rules.make_command("table", one.name, 0, 0, one.link.clock())
    one.ask()
    with pytest.raises(RedisAway, match="STALE"):
        one.link.ask([earlier])


def test_clock_that_is_set_back_holds_up_permits_no_longer_than_a_new_redis(redis: RedisServer) -> None:
    (host,) = _hosts(redis, 1, 10)
    host.ask()
    ahead_ms = int((host.link.clock() + 3600) * 1000)
    host.link.ask([("HSET", "table", "born", ahead_ms)])
    host.waiting = 5
    _settle([host])
    time.sleep(GRACE_S + 0.05)
    _settle([host])
    assert host.running == 5
