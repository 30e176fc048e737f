"""The exchange with Redis: one line when it goes and when it is back, and one worker that speaks."""

from __future__ import annotations

import logging
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from openai_gateway.config.secret import Secret
from openai_gateway.limits.attempts import ConfiguredLimits, Tries
from openai_gateway.limits.host_exchange import UpstreamPart
from openai_gateway.limits.leadership import Leadership
from openai_gateway.limits.limits_file import TABLE_AT, WORKER
from openai_gateway.limits.news import Amounts, HostNews, RefusalNews
from openai_gateway.limits.redis_exchange import RedisExchange
from openai_gateway.limits.redis_link import Command, RedisAway, RedisLink
from openai_gateway.limits.sharing import SharedLimits
from openai_gateway.wire.rate_limits import Refusal
from tests.support.redis_server import needs_redis, run_redis


class _Link:
    """Answers `b"yes"` to each command, unless it is away."""

    def __init__(self) -> None:
        self.why = ""
        self.asked: list[Command] = []
        self.said: list[tuple[str, bytes]] = []
        self.heard: list[set[str]] = []

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        if self.why:
            raise RedisAway(self.why)
        self.asked += commands
        return [b"yes"] * len(commands)

    def clock(self) -> float:
        if self.why:
            raise RedisAway(self.why)
        return 1e9

    def close(self) -> None:
        pass

    def hear(self, channels: Iterable[str]) -> tuple[str, bytes] | None:
        self.heard.append(set(channels))
        if self.why:
            raise RedisAway(self.why)
        return self.said.pop() if self.said else None

    def stop_hearing(self) -> None:
        self.heard.append(set())


class _Part:
    def __init__(self, name: str) -> None:
        self.name = name
        self.channel = f"of {name}"
        self.period_s = 0.25
        self.is_listening = self.has_urgent = False
        self.heard: list[bytes] = []
        self.wake: Callable[[], None] = lambda: None
        self.leads = True
        self.took: list[list[Any]] = []
        self.missed = 0

    def lead(self, now: float) -> bool:
        return self.leads

    def is_urgent(self, now: float) -> bool:
        return self.has_urgent

    def hear(self, message: bytes, now: float, clock: float) -> None:
        self.heard.append(message)

    def make_commands(self, now: float, clock: float) -> list[Command]:
        return [("GET", self.name), ("GET", self.name)]

    def take(self, replies: list[Any], now: float, clock: float) -> list[Command]:
        self.took.append(replies)
        return [("DEL", self.name)]

    def miss(self, now: float) -> None:
        self.missed += 1


def test_each_part_gets_its_replies_and_says_more_the_next_time() -> None:
    link = _Link()
    exchange, parts = RedisExchange(link), [_Part("one"), _Part("two")]
    for part in parts:
        exchange.add(part)
    exchange.once()
    assert [part.took for part in parts] == [[[b"yes", b"yes"]]] * 2
    link.asked.clear()
    exchange.once()
    assert link.asked[:2] == [("DEL", "one"), ("DEL", "two")]


def test_redis_that_goes_and_comes_back_is_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    link, part = _Link(), _Part("one")
    exchange = RedisExchange(link)
    exchange.add(part)
    with caplog.at_level(logging.INFO):
        for why in ("", "refused", "refused", "no answer", "", ""):
            link.why = why
            exchange.once()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "Redis is away (refused)" in caplog.text
    assert part.missed == 3
    assert len(part.took) == 3


def test_part_may_ask_for_exchanges_more_often_for_itself() -> None:
    exchange, parts = RedisExchange(_Link()), [_Part("one"), _Part("two")]
    for part in parts:
        exchange.add(part)
    assert exchange.period_s == 0.25
    parts[1].period_s = 0.05
    assert exchange.period_s == 0.05
    for round_ in range(100):
        exchange.once(exchange.find_due(10.0 + 0.05 * round_))
    assert len(parts[1].took) == 100
    assert len(parts[0].took) == 20, "the other didn't ask for it"


def test_part_with_something_urgent_is_exchanged_before_its_time() -> None:
    exchange, parts = RedisExchange(_Link()), [_Part("one"), _Part("two")]
    for part in parts:
        exchange.add(part)
    exchange.find_due(10.0)
    assert not exchange.find_due(10.001)
    parts[1].has_urgent = True
    assert exchange.find_due(10.001) == [parts[1]]


def test_what_is_said_in_a_channel_is_heard_by_the_part_that_listens_and_by_no_other() -> None:
    link = _Link()
    exchange, parts = RedisExchange(link), [_Part("one"), _Part("two"), _Part("three")]
    for part in parts:
        exchange.add(part)
    exchange.listen_once()
    parts[0].is_listening = parts[1].is_listening = True
    link.said = [("of two", b"news")]
    for why in ("", "", "refused", ""):
        link.why = why
        exchange.listen_once()
    assert [part.heard for part in parts] == [[], [b"news"], []]
    assert link.heard == [set(), *[{"of one", "of two"}] * 4]


def test_nothing_is_heard_any_more_once_redis_is_found_to_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over one connection nothing comes any more, over the other a last message."""
    link, part = _Link(), _Part("one")
    exchange = RedisExchange(link)
    exchange.add(part)
    part.is_listening = True

    def hear_late(channels: Iterable[str]) -> tuple[str, bytes]:
        part.is_listening = False
        return "of one", b"late news"

    monkeypatch.setattr(link, "hear", hear_late)
    exchange.listen_once()
    assert not part.heard


class _Times:
    """A connection to a Redis whose time is told; somebody else asks for it while this one is waited for."""

    def __init__(self, ask_meanwhile: Callable[[], float] | None) -> None:
        self.ask_meanwhile = ask_meanwhile
        self.told: list[float] = []

    def pipeline(self, *, transaction: bool) -> _Times:
        return self

    def execute_command(self, *words: Any) -> None:
        pass

    def execute(self, *, raise_on_error: bool) -> list[Any]:
        if self.ask_meanwhile is not None:
            self.told.append(self.ask_meanwhile())
        return [(1_000_000, 0)]

    def close(self) -> None:
        pass


def test_whoever_listens_knows_the_time_while_the_connection_that_asks_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = RedisLink(Secret("redis://127.0.0.1:1/0"))
    first, second = _Times(None), _Times(link.clock)
    monkeypatch.setattr(link, "_make_client", iter((first, second)).__next__)
    assert link.clock() == pytest.approx(1e6, abs=60)
    link.close()
    link.ask(())
    assert second.told == [pytest.approx(1e6, abs=60)]


class _CannotAsk(_Part):
    def make_commands(self, now: float, clock: float) -> list[Command]:
        raise PermissionError("as planned")


class _CannotTake(_Part):
    def take(self, replies: list[Any], now: float, clock: float) -> list[Command]:
        raise ValueError("an odd answer")


@pytest.mark.parametrize("broken", [_CannotAsk, _CannotTake])
def test_part_that_fails_goes_on_as_if_redis_were_away_and_holds_up_no_other(
    broken: type[_Part], caplog: pytest.LogCaptureFixture
) -> None:
    exchange, parts = RedisExchange(_Link()), [broken("budgets"), _Part("limits")]
    for part in parts:
        exchange.add(part)
    for _ in range(3):
        exchange.once()
    assert len(parts[1].took) == 3
    assert [part.missed for part in parts] == [3, 0]
    assert caplog.text.count("budgets can't be shared with other hosts") == 1


def test_what_another_worker_speaks_for_is_not_asked() -> None:
    link, part = _Link(), _Part("one")
    part.leads = False
    exchange = RedisExchange(link)
    exchange.add(part)
    exchange.once()
    assert not link.asked
    assert not part.took


def _lead_and_wait(path: Path, leads: Any) -> None:
    leadership = Leadership(path)
    while True:
        leads.value = 2 if leadership.confirm(time.monotonic()) else 1
        time.sleep(0.01)


def test_another_worker_leads_as_soon_as_the_first_has_ended(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    own, leads = Leadership(tmp_path / "leader"), fork.RawValue("i", 0)
    now = time.monotonic()
    other = fork.Process(target=_lead_and_wait, args=(tmp_path / "leader", leads), daemon=True)
    other.start()
    try:
        while leads.value == 0:
            assert time.monotonic() < now + 30
        assert leads.value == 2
        assert not own.confirm(time.monotonic())
        # One that stands still is replaced, too, after a while.
        assert own.confirm(time.monotonic() + 10)
        assert own.confirm(time.monotonic())
    finally:
        other.kill()
        other.join()
    assert own.confirm(time.monotonic())


@needs_redis
def test_frozen_redis_is_away_after_a_second_and_its_late_answer_goes_to_nobody(tmp_path: Path) -> None:
    with run_redis(tmp_path) as redis:
        link = RedisLink(Secret(redis.url))
        link.ask([("SET", "one", "1")])
        assert link.ask([("INFO", "clients")])[0]["connected_clients"] == 1, "another one is never used"
        redis.freeze()
        with pytest.raises(RedisAway, match="no answer within 1 s"):
            link.ask([("GET", "one")])
        redis.thaw()
        assert link.ask([("GET", "two"), ("GET", "one")]) == [None, b"1"]
        link.close()


@needs_redis
@pytest.mark.parametrize(
    ("password", "given", "why"),
    [("right-word", ":wrong-word@", "refuses the user"), ("right-word", "", "refuses the user"), ("", "", "refused")],
    ids=["wrong", "none", "no server"],
)
def test_why_redis_is_away_is_told_without_url_or_password(tmp_path: Path, password: str, given: str, why: str) -> None:
    with run_redis(tmp_path, password) as redis:
        if not password:
            redis.stop()
        link = RedisLink(Secret(f"redis://{given}127.0.0.1:{redis.port}/0"))
        with pytest.raises(RedisAway) as away:
            link.ask([("GET", "one")])
    assert why in str(away.value)
    assert "word" not in str(away.value).replace("password", "")
    assert str(redis.port) not in str(away.value)


def _part(path: Path, cap: int | None) -> tuple[SharedLimits, UpstreamPart]:
    # Another boot would be another host; here the file alone tells hosts apart.
    shared = SharedLimits(path, is_leased=True)
    return shared, UpstreamPart(path, ConfiguredLimits(), cap, time.monotonic())


@needs_redis
def test_host_that_stood_still_starts_nothing_before_it_has_asked_again(tmp_path: Path) -> None:
    shared, part = _part(tmp_path / "limits", 5)
    now = time.monotonic()
    assert shared.most(5, now) == 0, "nothing is known before the first exchange"
    assert part.lead(now)
    part.miss(now)
    assert shared.most(5, now + 1000) == 5, "Redis is away: what it has, it keeps"
    with run_redis(tmp_path) as redis:
        exchange = RedisExchange(RedisLink(Secret(redis.url)))
        exchange.add(part)
        shared.count(2)
        exchange.once()
        now = time.monotonic()
        assert shared.most(5, now) == 2, "what it uses is its own until others had time to say what they have"
        assert shared.most(5, now + 60) == 0


@needs_redis
def test_gateway_that_is_started_again_keeps_the_name_of_its_host_and_its_permits(tmp_path: Path) -> None:
    shared, part = _part(tmp_path / "limits", 5)
    assert part.lead(time.monotonic())
    part.miss(time.monotonic())
    host = shared.host
    # As if this worker had ended: its row is nobody's.
    shared._map[TABLE_AT : TABLE_AT + WORKER.size] = bytes(WORKER.size)
    again = SharedLimits(tmp_path / "limits", is_leased=True)
    assert again.host == host
    assert again.lease.permits == 5
    assert again.most(5, time.monotonic()) == 0, "others may have been given them meanwhile"


@needs_redis
def test_hosts_know_each_other_and_their_charges_before_any_has_met_a_limit(tmp_path: Path) -> None:
    with run_redis(tmp_path) as redis:
        hosts = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            shared, part = _part(tmp_path / name / "limits", None)
            shared.join(0)
            exchange = RedisExchange(RedisLink(Secret(redis.url)))
            exchange.add(part)
            hosts.append((shared, part, exchange))
        for _ in range(2):
            for shared, part, exchange in hosts:
                exchange.once()
                assert part.period_s == 0.25, "nobody calls"
                shared.begin()
                part._limiter.requests.spent += 7.0
                shared.end(part._limiter.to_known(is_whole=True))
        for shared, part, exchange in hosts:
            shared.count(1)
            exchange.once()
            assert part.period_s < 0.1, "they may meet a limit together"
            assert shared.link == (True, 2)
        # The seven that were told, and some by the other's rate, if this machine has stood still since.
        assert 7.0 <= hosts[0][1]._limiter.others.requests < 14.0


@needs_redis
@pytest.mark.parametrize("has_channels", [True, False])
def test_refusal_on_one_host_is_heard_by_another_at_once(tmp_path: Path, *, has_channels: bool) -> None:
    """Without a user that may say it, the other hears of it the next time that it asks."""
    with run_redis(tmp_path) as redis:
        if not has_channels:
            redis.ask("ACL", "SETUSER", "default", "-publish", "-subscribe")
        hosts = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            shared, part = _part(tmp_path / name / "limits", None)
            shared.join(0)
            shared.count(1)
            link = RedisLink(Secret(redis.url))
            exchange = RedisExchange(link)
            exchange.add(part)
            hosts.append((shared, part, exchange, link))
        for _ in range(2):
            for *_, exchange, _ in hosts:
                exchange.once()
        (one, part, exchange, _), (_, other, listening, link) = hosts
        assert part.is_listening
        assert other.is_listening
        listening.listen_once()
        now = time.monotonic()
        one.begin()
        for _ in range(2):
            part._limiter.refuse(part._limiter.start(1.0, 9, now), {}, Refusal(kind="requests"), Tries(), now)
        one.end(part._limiter.to_known(is_whole=True))
        assert exchange.find_due(now + 1.0) == [part]
        assert not exchange.find_due(now + 1.0)
        part.say_refused(now)
        assert exchange._woken.is_set(), "here it need not even be looked for"
        exchange.once(exchange.find_due(now + 1.0))
        assert not exchange.find_due(now + 1.0), "it is told once"
        if has_channels:
            listening.listen_once()
        else:
            with pytest.raises(RedisAway):
                link.hear([other.channel])
            listening.once()
        assert other._limiter._unexplained_elsewhere == pytest.approx(now, abs=0.1)
        link.stop_hearing()


def test_host_in_another_database_of_the_same_redis_is_not_heard(tmp_path: Path) -> None:
    shared, part = _part(tmp_path / "limits", None)
    shared.join(1)
    now, clock = time.monotonic(), 1e9
    assert part.lead(now)
    part.make_commands(now, clock)
    hosts = ["1" * 32, "2" * 32]
    news = [msgspec.msgpack.encode(HostNews(clock + age_s, 1, Amounts(), 0, {})) for age_s in (0.0, 0.1)]
    part.take([{hosts[0].encode(): news[0]}], now, clock)
    for host in hosts:
        part.hear(host.encode() + news[1], now, clock + 0.1)
    assert part._said == {hosts[0]: news[1]}


def test_what_was_heard_at_once_is_newer_than_the_reply_that_was_under_way(tmp_path: Path) -> None:
    """A rate that was heard of was forgotten again, for the reply told of none."""
    shared, part = _part(tmp_path / "limits", None)
    shared.join(1)
    now, clock, host = time.monotonic(), 1e9, b"1" * 32
    assert part.lead(now)
    part.make_commands(now, clock)
    refused = RefusalNews(math.inf, 5.0, 0.0, 0.0, is_doubted=True)
    before, after = (
        msgspec.msgpack.encode(HostNews(clock + age_s, 1, Amounts(), 0, {}, refused=of))
        for age_s, of in ((0.0, RefusalNews(math.inf, 5.0, math.inf)), (0.1, refused))
    )
    part.take([{host: before}], now, clock)
    part.make_commands(now, clock + 0.1)
    part.hear(host + after, now, clock + 0.1)
    assert part._limiter.blind.is_known
    part.take([{host: before}], now, clock + 0.1)
    assert part._limiter.blind.is_known
    part.make_commands(now, clock + 0.2)
    part.take([{host: before}], now, clock + 0.2)
    assert not part._limiter.blind.is_known, "later, what Redis says is newer"


@pytest.mark.parametrize(("hosts", "least", "most"), [(4, 200, 200), (100, 3, 8)])
def test_of_a_hundred_hosts_not_every_word_is_looked_at_with_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: int, least: int, most: int
) -> None:
    """That takes 4 ms: a storm of refusals everywhere would leave no time for calls."""
    shared, part = _part(tmp_path / "limits", None)
    shared.join(1)
    now, clock = time.monotonic(), 1e9
    assert part.lead(now)
    part.make_commands(now, clock)
    said = {b"%032d" % number: msgspec.msgpack.encode(HostNews(clock, 1, Amounts(), 0, {})) for number in range(hosts)}
    part.take([said], now, clock)
    assert part._ledger is not None
    takes: list[float] = []
    take = part._ledger.take

    def take_counted(*given: Any) -> Any:
        takes.append(given[3])
        return take(*given)

    monkeypatch.setattr(part._ledger, "take", take_counted)
    news = msgspec.msgpack.encode(HostNews(clock + 0.1, 1, Amounts(1.0), 0, {}))
    for number in range(200):
        part.hear(b"%032d" % (number % hosts) + news, now + number / 1000, clock + 0.1)
    assert least <= len(takes) <= most
    assert set(part._said.values()) == {news}, "with the next look all of it is known"


def test_nothing_is_urgent_while_nobody_can_tell_who_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange would try at once again, for ever, and nothing else would run."""
    _, part = _part(tmp_path / "limits", None)
    now = time.monotonic()
    assert part.lead(now)
    part.is_listening = True
    assert part.lead(now)
    part.say_refused(now)
    assert part.is_urgent(now)

    def fail(now: float) -> bool:
        raise OSError("no descriptor is free")

    monkeypatch.setattr(part._leadership, "confirm", fail)
    with pytest.raises(OSError, match="descriptor"):
        part.lead(now)
    assert not part.is_urgent(now)


@needs_redis
def test_listening_goes_on_after_redis_was_away(tmp_path: Path) -> None:
    with run_redis(tmp_path) as redis:
        link = RedisLink(Secret(redis.url))
        assert link.hear(["one"]) is None
        redis.ask("PUBLISH", "one", "first")
        assert link.hear(["one"]) == ("one", b"first")
        redis.stop()
        with pytest.raises(RedisAway):
            link.hear(["one"])
        redis.start()
        assert link.hear(["one", "two"]) is None
        redis.ask("PUBLISH", "two", "second")
        assert link.hear(["one", "two"]) == ("two", b"second")
        assert link.ask([("INFO", "clients")])[0]["connected_clients"] == 2
        link.stop_hearing()
        link.close()


def test_the_more_hosts_redis_has_to_tell_of_the_rarer_it_is_asked(tmp_path: Path) -> None:
    """What each is told grows by the hosts, and what each of these has counted: a hundred hosts, 50 times a second."""
    shared, part = _part(tmp_path / "limits", None)
    shared.join(0)
    shared.count(1)
    periods = []
    for hosts in (0, 1, 8, 30, 100, 300):
        now, clock = time.monotonic(), 1e9
        assert part.lead(now)
        part.make_commands(now, clock)
        # Those that have ended are told, too, until they are taken out.
        told_at = [clock - (60 if number else 0) for number in range(hosts)]
        news = [msgspec.msgpack.encode(HostNews(at, 1, Amounts(), 0, {})) for at in told_at]
        part.take([{f"h{number}".encode(): text for number, text in enumerate(news)}], now, clock)
        periods.append(part.period_s)
    assert periods[:3] == [0.25, 0.02, 0.02], "with nobody else, no limit is met together"
    assert periods[3:] == [pytest.approx(0.075), 0.25, 0.25]
