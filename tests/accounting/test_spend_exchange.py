"""Budgets of several hosts: the sum counts, nothing is lost or doubled if Redis forgets, no reservation leaks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.accounting.spend import NANO, Full, Limit, hash_name
from openai_gateway.accounting.spend_exchange import SpendPart
from openai_gateway.accounting.spend_file import SpendFile
from openai_gateway.limits.redis_link import Command

TEAM = Limit("team", 10 * NANO, "day", 5)
NIGHT = Limit("run night", 10 * NANO, is_run=True)


class Redis:
    """Hashes, as far as the exchange needs them; `lost` and nothing is written or said."""

    def __init__(self) -> None:
        self.hashes: dict[str, dict[bytes, bytes]] = {}
        self.clock = 1e9

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        return [self._do(*command) for command in commands]

    def _do(self, name: Any, key: Any, *words: Any) -> Any:
        if name == "HGETALL":
            return dict(self.hashes.get(key, {}))
        if name in ("HSET", "HSETNX"):
            fields, field = self.hashes.setdefault(key, {}), words[0].encode()
            if name == "HSET" or field not in fields:
                fields[field] = words[1]
        return 1


class Host:
    def __init__(self, folder: Path, redis: Redis) -> None:
        folder.mkdir(exist_ok=True)
        self.path = str(folder / "budgets")
        self.file = SpendFile(self.path)
        self.redis = redis
        self.begin()

    def begin(self) -> None:
        """As when another worker speaks for the host."""
        self.part = SpendPart(self.path, lambda: self.file, ["team"])

    def exchange(self) -> None:
        self.redis.clock += 0.25
        assert self.part.lead(time.monotonic())
        replies = self.redis.ask(self.part.make_commands(0.0, self.redis.clock))
        assert self.part.take(replies, 0.0, self.redis.clock) == []

    def spend(self, usd: float, limit: Limit = TEAM) -> None:
        self.file.reserve([limit], round(usd * NANO), time.time())
        self.file.settle([limit], round(usd * NANO), round(usd * NANO), time.time())

    def standing(self, limit: Limit = TEAM) -> tuple[float, float, float, int]:
        found = self.file.read([limit.name], time.time())[limit.name]
        return found.spent["day"] / NANO, found.spent["total"] / NANO, found.reserved / NANO, found.in_flight


def _hosts(folder: Path, count: int = 2) -> list[Host]:
    redis = Redis()
    return [Host(folder / f"host{number}", redis) for number in range(count)]


def _rounds(hosts: list[Host], count: int = 3) -> None:
    for _ in range(count):
        for host in hosts:
            host.exchange()


@pytest.mark.parametrize("limit", [TEAM, NIGHT], ids=["client", "run"])
def test_what_any_host_spends_counts_on_all(tmp_path: Path, limit: Limit) -> None:
    hosts = _hosts(tmp_path, 3)
    for number, host in enumerate(hosts):
        host.spend(number + 1.0, limit)
    _rounds(hosts)
    assert [host.standing(limit) for host in hosts] == [(6.0, 6.0, 0.0, 0)] * 3
    with pytest.raises(Full) as full:
        hosts[0].file.reserve([limit], round(4.5 * NANO), time.time())
    assert full.value.spend.spent["total"] == 6 * NANO


def test_what_is_reserved_and_in_flight_counts_on_all_hosts_until_it_is_settled(tmp_path: Path) -> None:
    one, other = _hosts(tmp_path)
    for _ in range(3):
        one.file.reserve([TEAM], NANO, time.time())
    _rounds([one, other])
    assert other.standing() == (0.0, 0.0, 3.0, 3)
    with pytest.raises(Full):
        other.file.reserve([TEAM], 8 * NANO, time.time())
    for _ in range(2):
        other.file.reserve([TEAM], NANO, time.time())
    with pytest.raises(Full) as full:
        other.file.reserve([TEAM], 0, time.time())
    assert full.value.is_busy
    for _ in range(3):
        one.file.settle([TEAM], NANO, NANO // 2, time.time())
    _rounds([one, other])
    assert other.standing() == (1.5, 1.5, 2.0, 2)


def test_redis_that_forgets_everything_loses_and_doubles_nothing(tmp_path: Path) -> None:
    hosts = _hosts(tmp_path)
    for round_ in range(6):
        for host in hosts:
            host.spend(0.5)
        _rounds(hosts, 2)
        if round_ % 2:
            hosts[0].redis.hashes.clear()
    _rounds(hosts)
    assert [host.standing()[1] for host in hosts] == [6.0, 6.0]


def test_money_of_a_host_that_has_ended_is_known_to_redis_again_after_it_forgot(tmp_path: Path) -> None:
    hosts = _hosts(tmp_path)
    hosts[0].spend(4.0)
    _rounds(hosts)
    hosts[0].redis.hashes.clear()
    _rounds(hosts[1:])
    third = Host(tmp_path / "third", hosts[0].redis)
    _rounds([third])
    assert third.standing()[1] == 4.0
    _rounds(hosts)
    assert [host.standing()[1] for host in hosts] == [4.0, 4.0]


def test_whoever_speaks_next_for_a_host_doubles_nothing(tmp_path: Path) -> None:
    hosts = _hosts(tmp_path)
    for host in hosts:
        host.spend(1.0)
    _rounds(hosts)
    hosts[0].begin()
    hosts[0].part._leadership = None
    hosts[0].spend(1.0)
    _rounds(hosts)
    assert [host.standing()[1] for host in hosts] == [3.0, 3.0]


def test_row_that_was_given_to_another_run_meanwhile_finds_its_money_in_redis(tmp_path: Path) -> None:
    hosts = _hosts(tmp_path)
    hosts[0].spend(2.0, NIGHT)
    _rounds(hosts)
    key = hash_name(NIGHT.name)
    row = hosts[0].file._seek(NIGHT.name)
    assert row is not None
    hosts[0].file._map[row : row + 16] = hash_name("run other")
    _rounds(hosts)
    hosts[0].file.reserve([NIGHT], 0, time.time())
    _rounds(hosts)
    assert hosts[0].standing(NIGHT)[1] == 2.0
    assert hosts[0].file.read_own([], time.time())[key].total == 2 * NANO


def test_reservation_of_a_host_that_has_ended_is_free_after_seconds(tmp_path: Path) -> None:
    one, other = _hosts(tmp_path)
    one.spend(1.0)
    one.file.reserve([TEAM], 5 * NANO, time.time())
    _rounds([one, other])
    assert other.standing() == (1.0, 1.0, 5.0, 1)
    one.redis.clock += 11
    _rounds([other])
    assert other.standing() == (1.0, 1.0, 0.0, 0)


def test_redis_away_keeps_the_others_money_and_forgets_their_calls(tmp_path: Path) -> None:
    """Money must hold; a bound on calls at a time would stop calls for nothing."""
    one, other = _hosts(tmp_path)
    one.spend(1.0)
    one.file.reserve([TEAM], 2 * NANO, time.time())
    _rounds([one, other])
    for _ in range(3):
        other.part.miss(0.0)
    assert other.standing() == (1.0, 1.0, 2.0, 0)
    _rounds([one, other])
    assert other.standing() == (1.0, 1.0, 2.0, 1)


def test_yesterdays_money_of_another_host_is_not_todays(tmp_path: Path) -> None:
    one, other = _hosts(tmp_path)
    one.spend(1.0)
    _rounds([one, other])
    tomorrow = time.time() + 86_400
    found = other.file.read(["team"], tomorrow)["team"]
    assert (found.spent["day"], found.spent["total"]) == (0, NANO)


def test_unreadable_word_of_a_host_is_passed_over(tmp_path: Path) -> None:
    one, other = _hosts(tmp_path)
    one.spend(1.0)
    _rounds([one, other])
    one.redis.hashes[f"openai-gateway:spend:{hash_name('team').hex()}"][b"third"] = b"\xc1"
    _rounds([one, other])
    assert other.standing()[1] == 1.0


def test_idle_clients_cost_one_command_a_round_and_at_most_a_hundred_of_them(tmp_path: Path) -> None:
    (one,) = _hosts(tmp_path, 1)
    for number in range(250):
        one.spend(0.01, Limit(f"client {number}"))
    _rounds([one], 6)
    assert len(one.part.make_commands(0.0, one.redis.clock)) <= 100
