"""Hosts that share an upstream's limits use it as one would, count nothing twice, and go on without Redis."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from openai_gateway.limits.attempts import ConfiguredLimits, Tries
from openai_gateway.limits.host_ledger import GONE_S, HostLedger
from openai_gateway.limits.host_limiter import HostLimiter
from openai_gateway.limits.ledger import Ledger
from openai_gateway.limits.limits_file import Demand
from openai_gateway.limits.news import Amounts
from openai_gateway.wire.rate_limits import RateLimit, Refusal
from tests.limits.hosts import AHEAD_S, Redis, simulate_hosts
from tests.limits.simulation import Report, Upstream, simulate

RPM = Upstream(rpm=3000)
BLIND = Upstream(rpm=3000, headers="")
BOTH = Upstream(rpm=3000, tpm=4_200_000, burst_s=1)


# What several tests look at is simulated once.
_simulate = cache(simulate)
_simulate_hosts = cache(simulate_hosts)


def _fairness(report: Report) -> float:
    counts = list(report.per_caller.values())
    return float(sum(counts)) ** 2 / (len(counts) * sum(count**2 for count in counts))


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(RPM, id="requests"),
        pytest.param(replace(RPM, foreign=0.4), id="somebody else uses two fifths"),
        pytest.param(replace(RPM, refusals_charged=True), id="refusals are charged"),
        pytest.param(replace(RPM, changes=((10, 0.5), (20, 1.0))), id="halved and restored"),
    ],
)
def test_hosts_in_touch_use_a_limit_as_one_gateway_does(spec: Upstream, hosts: int) -> None:
    alone, (report, found) = _simulate(spec), _simulate_hosts(spec, hosts)
    assert report.failed == 0
    assert report.used >= 0.99
    assert report.refused_share <= 0.002
    assert _fairness(report) >= _fairness(alone) - 0.02
    assert all(abs(host.limiter.requests.share - 1 / hosts) < 0.15 for host in found)


def test_hosts_share_requests_and_tokens_in_bursts_of_a_second() -> None:
    """They hear of each other before the first answers tell what is left. Where they never do, some are refused."""
    alone, (report, _) = simulate(BOTH, gateways=4), simulate_hosts(BOTH, 4)
    assert report.refused_share <= 0.001
    assert alone.refused_share <= 0.02
    assert report.used >= 0.98


@pytest.mark.parametrize("hosts", [2, 4])
def test_what_other_hosts_charge_is_no_drain_by_unknown_users(hosts: int) -> None:
    _, found = _simulate_hosts(RPM, hosts)
    assert all(abs(host.limiter.requests.drain) < 4 for host in found)


def test_redis_away_for_ten_seconds_costs_nothing_of_the_limit() -> None:
    runs = [simulate_hosts(RPM, 4, Redis((10, 20)), seed=seed) for seed in range(3)]
    assert all(report.failed == 0 and report.used >= 0.99 for report, _ in runs)
    # Of one run, the last call of a moment decides.
    assert sum(report.refused_share for report, _ in runs) <= 3 * 0.002
    for host in (host for _, found in runs for host in found):
        assert abs(host.limiter.requests.share - 0.25) < 0.15
        assert abs(host.limiter.requests.drain) < 5


def test_redis_away_costs_nothing_of_requests_and_tokens_in_bursts_of_a_second() -> None:
    report, _ = simulate_hosts(BOTH, 4, Redis((10, 20)))
    assert report.refused_share <= 0.001
    assert report.used >= 0.98


def test_hosts_try_whether_more_calls_may_be_in_flight_one_after_the_other_also_without_redis() -> None:
    runs = [simulate_hosts(Upstream(in_flight=100, headers=""), 4, Redis((10, 20)), seed=seed)[0] for seed in range(3)]
    assert sum(report.refused for report in runs) <= 3 * 8
    assert all(report.used >= 0.97 for report in runs)


def test_redis_whose_clock_is_set_back_costs_nothing_of_the_limit() -> None:
    runs = [simulate_hosts(RPM, 4, Redis(set_back=(10, 300)), seed=seed) for seed in range(1, 6)]
    assert all(report.used >= 0.99 for report, _ in runs)
    assert sum(report.refused_share for report, _ in runs) / len(runs) <= 0.002
    for _, found in runs:
        assert all(abs(host.limiter.requests.share - 0.25) < 0.15 for host in found)
        assert all(abs(host.limiter.requests.drain) < 5 for host in found)


def test_host_that_is_the_first_back_at_an_emptied_redis_takes_the_others_for_drain_no_more() -> None:
    one, other = _two()
    drains: list[list[float]] = []
    for round_ in range(63):
        now = 0.25 + round_ * 0.25
        for side in (one, other):
            side.charge(10, now)
            side.refer(1000.0, now)
            if 20 <= round_ < 60:
                side.ledger.miss(side.limiter, now)
                side.said.clear()
            else:
                side.exchange(now + 0.01)
        drains.append([side.limiter.requests.drain for side in (one, other)])
    # Of 88 calls a second that flow in, 44 are the other's.
    assert min(drains[59]) > max(drains[19]) + 15
    assert drains[62] == pytest.approx(drains[19], abs=10)


def test_what_is_saved_up_is_spent_by_all_hosts_together_also_once_redis_is_away() -> None:
    """Where unused charge is given back, nobody can tell from what remains how much the others take."""
    one, other = _two()
    for round_ in range(1, 60):
        now = 0.25 * round_
        for side in (one, other):
            side.charge(20, now)
            # What both charge flows in, and this is more than the rate.
            side.refer(700.0, now)
            side.exchange(now + 0.01, waiting=5)
    before = [side.limiter.requests.share * side.limiter.requests.speed(now) for side in (one, other)]
    assert one.limiter.requests.drain < 0.0
    for side in (one, other):
        side.ledger.miss(side.limiter, now + 0.02)
    after = [side.limiter.requests.speed(now + 0.02) for side in (one, other)]
    assert after == pytest.approx(before, rel=0.15)


def test_host_that_sent_nothing_when_redis_went_gets_a_part_once_it_has_calls() -> None:
    one, other = _two()
    for round_ in range(1, 20):
        other.charge(20, 0.25 * round_)
        for side in (one, other):
            side.exchange(0.25 * round_ + 0.01)
    one.ledger.miss(one.limiter, 5.0)
    requests = one.limiter.requests
    for drain in (80.0, -80.0):
        requests.drain = drain
        assert requests.part == 0.25


def test_answers_to_what_was_sent_while_others_could_be_heard_tell_nothing_of_what_they_take_since() -> None:
    ledger = Ledger(1.0)
    under_way: list[tuple[float, float]] = []
    others = 0.0
    for step in range(1, 100):
        now = step / 10
        is_away = 40 <= step < 70
        if step in (40, 70):
            ledger.add_drain(40.0 if is_away else -40.0, now)
        if not is_away:
            others += 4.0
            ledger.hear(others, 40.0, now)
        ledger.take(1.0, now)
        under_way.append((now, ledger.spent))
        if len(under_way) > 20:
            # What flows in, this host takes a fifth of, and the others the rest.
            sent_at, spent = under_way.pop(0)
            ledger.refer(RateLimit(3000.0, 200.0, 1.0), 1.0, sent_at, spent)
            if step > 30:
                assert ledger.drain == pytest.approx(40.0 if is_away else 0.0, abs=4)
                assert ledger.level(now) == pytest.approx(200, abs=8)


def test_hosts_without_redis_take_each_other_for_other_users_of_the_key() -> None:
    report, found = simulate_hosts(RPM, 2, Redis((10, 1000)))
    assert report.used >= 0.99
    assert all(host.limiter.requests.share == 1.0 for host in found)
    assert all(15 < host.limiter.requests.drain < 35 for host in found)


def test_whoever_speaks_for_a_host_next_goes_on_where_the_one_before_was() -> None:
    report, found = simulate_hosts(RPM, 2, Redis(is_forgetful=True))
    assert report.used >= 0.99
    assert report.refused_share <= 0.002
    assert all(abs(host.limiter.requests.drain) < 4 for host in found)


def test_requests_per_minute_bounds_all_hosts_together() -> None:
    report, _ = simulate_hosts(Upstream(rpm=6000, headers=""), 2, told=ConfiguredLimits(1200, None))
    assert report.refused == 0
    assert 0.9 * 20 * 25 <= report.admitted <= 1.05 * 20 * 25 + 10


class _Side:
    """One host by hand: `charge` sends calls, `exchange` is a round."""

    def __init__(self, name: str, said: dict[str, bytes]) -> None:
        self.name, self.said = name, said
        self.limiter = HostLimiter(ConfiguredLimits(), 0.0)
        self.ledger = HostLedger(name, b"")

    def charge(self, calls: int, now: float) -> None:
        for _ in range(calls):
            self.limiter.start(100.0, 0, now)

    def refer(self, remaining: float, now: float) -> None:
        sent = self.limiter.start(100.0, 0, now)
        self.limiter.answer(sent, {"requests": RateLimit(6000.0, remaining, None)})

    def exchange(self, now: float, waiting: int = 0) -> bool:
        self.said[self.name] = self.ledger.to_news(self.limiter, waiting, now, now + AHEAD_S)
        is_of_use, _ = self.ledger.take(self.limiter, dict(self.said), Demand(0, 0, waiting), now, now + AHEAD_S)
        return is_of_use


def _two() -> tuple[_Side, _Side]:
    said: dict[str, bytes] = {}
    one, other = _Side("one", said), _Side("other", said)
    for side in (one, other):
        side.refer(1000.0, 0.0)
    for side in (one, other, one, other):
        side.exchange(0.1)
    return one, other


def test_charge_is_counted_once_however_often_it_is_said_and_whatever_redis_forgets() -> None:
    one, other = _two()
    now = 0.25
    for round_ in range(40):
        one.charge(5, now)
        one.exchange(now)
        if round_ % 7 == 3:
            one.said.clear()  # FLUSHALL
            one.exchange(now)
        other.exchange(now + 0.1)
        other.exchange(now + 0.1)
        now += 0.25
    one.exchange(now)
    other.exchange(now)
    one.exchange(now + 2.0)
    other.exchange(now + 2.0)
    assert other.limiter.others.requests == pytest.approx(200, abs=1)
    assert other.limiter.own == Amounts(1.0, 100.0)
    assert one.limiter.own.requests == 201
    assert one.limiter.others.requests == pytest.approx(0, abs=1)


def test_host_that_knows_nothing_learns_from_the_first_exchange() -> None:
    said: dict[str, bytes] = {}
    one, other = _Side("one", said), _Side("other", said)
    one.refer(500.0, 10.0)
    one.exchange(10.1)
    assert not other.limiter.is_bound
    assert other.exchange(10.2)
    assert other.limiter.is_bound
    assert other.limiter.requests.limit == 6000.0
    assert other.limiter.requests.level(10.2) == pytest.approx(one.limiter.requests.level(10.2), abs=2)


def test_host_without_calls_leaves_its_share_to_those_with_calls_waiting() -> None:
    one, other = _two()
    for round_ in range(1, 8):
        one.exchange(round_ * 0.25, waiting=30)
        other.exchange(round_ * 0.25)
    assert one.limiter.requests.share > 0.9
    one.exchange(2.0, waiting=30)
    other.exchange(2.0, waiting=10)
    one.exchange(2.25, waiting=30)
    assert one.limiter.requests.share == pytest.approx(0.75)
    assert other.limiter.requests.share == pytest.approx(0.25)


def test_share_of_a_host_that_has_ended_is_free_after_seconds() -> None:
    one, other = _two()
    other.exchange(0.2, waiting=10)
    one.exchange(0.3, waiting=10)
    assert one.limiter.requests.share == pytest.approx(0.5)
    one.exchange(0.4 + GONE_S, waiting=10)
    assert one.limiter.requests.share == 1.0
    assert one.ledger.others == 0, "/status tells how many share the limits"
    assert "other" in one.ledger._notes.heard, "it may come back, and is known then"


def test_host_that_was_started_anew_is_not_charged_for_what_it_did_before() -> None:
    one, other = _two()
    one.charge(50, 0.2)
    one.exchange(0.3)
    other.exchange(0.3)
    before = other.limiter.others.requests
    anew = _Side("one", one.said)
    anew.refer(900.0, 0.4)
    for side in (anew, other):
        side.exchange(0.5)
    anew.charge(10, 0.6)
    for side in (anew, other):
        side.exchange(0.7)
    assert other.limiter.others.requests == pytest.approx(before + 10, abs=2)


def test_news_that_cannot_be_read_are_forgotten() -> None:
    one, _ = _two()
    one.said["third"] = b"\xc1"
    _, forgotten = one.ledger.take(one.limiter, one.said, Demand(0, 0, 0), 1.0, 1.0 + AHEAD_S)
    assert forgotten == ["third"]


@pytest.mark.parametrize(("spec", "more"), [(Upstream(in_flight=100, headers=""), 3.0), (BLIND, 0.5)])
def test_what_one_host_is_refused_tells_the_others_before_they_are(spec: Upstream, more: float) -> None:
    alone = [_simulate(spec, seed=seed) for seed in range(4)]
    together = [_simulate_hosts(spec, 4, seed=seed)[0] for seed in range(4)]
    assert all(report.failed == 0 and report.used >= 0.97 for report in together)
    assert sum(report.refused for report in together) <= sum(report.refused for report in alone) + 4 * more


def _refuse(side: _Side, refusal: Refusal, calls: int, now: float) -> None:
    for _ in range(calls):
        side.limiter.refuse(side.limiter.start(100.0, 20, now), {}, refusal, Tries(), now)


def _three_that_call(calls: int) -> list[_Side]:
    said: dict[str, bytes] = {}
    sides = [_Side(name, said) for name in ("one", "other", "third")]
    for side in sides:
        side.charge(calls, 1.0)
    return sides


def test_rate_that_another_host_met_paces_a_host_that_met_none() -> None:
    one, other, third = _three_that_call(60)
    _refuse(one, Refusal(kind="requests"), 1, 1.5)
    for side in (one, other, third):
        side.exchange(1.5)
    assert third.limiter.blind.pace(1.5) == pytest.approx(one.limiter.blind.pace(1.5), rel=0.25)
    assert third.limiter.wait_s(0.0, 0, 1.5) == (pytest.approx(0.1, abs=0.05), "rate")
    assert all(side.limiter.is_doubted for side in (one, other, third)), "it may be that call's own affair"
    _refuse(other, Refusal(kind="requests"), 1, 1.7)
    for side in (other, one, third):
        side.exchange(1.7)
    assert not any(side.limiter.is_doubted for side in (one, other, third)), "but hardly that of two calls"


def test_two_hosts_that_were_refused_at_the_same_time_tell_the_third_of_a_rate() -> None:
    """Each doubted its own refusal for good, for it heard of the other's only after it."""
    one, other, third = _three_that_call(60)
    for side in (one, other):
        _refuse(side, Refusal(kind="requests"), 1, 1.5)
    for side in (one, other, third, one, other, third):
        side.exchange(1.51)
    assert third.limiter.blind.is_known
    assert not any(side.limiter.is_doubted for side in (one, other, third))


def test_hosts_that_call_little_take_one_refusal_elsewhere_for_that_calls_own_affair() -> None:
    one, other, third = _three_that_call(5)
    _refuse(one, Refusal(kind="requests"), 1, 1.5)
    for side in (one, other, third):
        side.exchange(1.5)
    assert not any(side.limiter.blind.is_known for side in (one, other, third))


def test_rate_that_was_guessed_from_what_is_a_call_of_another_hosts_own_affair_is_forgotten_again() -> None:
    one, other, third = _three_that_call(60)
    tries = Tries()
    for now in (1.5, 2.5, 3.5):
        one.charge(3, now)
        sent = one.limiter.start(100.0, 20, now + 0.1)
        one.limiter.refuse(sent, {}, Refusal(kind="requests"), tries, now + 0.2)
        for side in (one, other, third):
            side.exchange(now + 0.2)
        is_met = now == 1.5
        assert [side.limiter.blind.is_known for side in (one, other, third)] == [is_met] * 3
    assert [side.limiter.wait_s(0.0, 0, 3.7)[0] for side in (one, other, third)] == [0.0] * 3


def test_refusal_elsewhere_that_may_be_that_calls_own_affair_tells_a_host_that_knows_the_rate_nothing() -> None:
    one, other, _ = _three_that_call(60)
    _refuse(other, Refusal(kind="requests"), 2, 1.5)
    rate = other.limiter.blind.rate
    one.charge(60, 9.0)
    _refuse(one, Refusal(kind="requests"), 1, 10.0)
    assert one.limiter.is_doubted
    one.exchange(10.0)
    other.exchange(10.0)
    assert other.limiter.blind.rate == rate
    assert other.limiter.blind.refused_at == 1.5


def test_calls_in_flight_of_a_host_are_held_once_another_met_their_limit() -> None:
    said: dict[str, bytes] = {}
    one, other = _Side("one", said), _Side("other", said)
    other.limiter.window.most = 30.0
    _refuse(one, Refusal(kind="in_flight"), 1, 1.0)
    one.exchange(1.0)
    other.ledger.take(other.limiter, said, Demand(17, 0, 5), 1.1, 1.1 + AHEAD_S)
    assert (other.limiter.window.is_held, other.limiter.window.most) == (True, 17.0)


def test_host_that_knows_of_others_before_any_limit_begins_with_its_part() -> None:
    said: dict[str, bytes] = {}
    sides = [_Side(name, said) for name in ("one", "other", "third")]
    for now in (0.1, 0.2):
        for side in sides:
            side.charge(10, now)
            side.exchange(now, waiting=40)
    sides[0].exchange(0.25, waiting=40)
    sides[0].refer(900.0, 0.3)
    requests = sides[0].limiter.requests
    assert requests.share == pytest.approx(1 / 3)
    assert requests.level(0.3) == pytest.approx(900.0, abs=5)
    sides[1].charge(10, 0.3)
    for side in sides[1:], sides[:1]:
        side[0].exchange(0.35)
    assert requests.level(0.35) == pytest.approx(895.0, abs=5), "what others have sent is charged, too"


def test_host_that_has_ended_has_no_share_either_when_the_clock_of_redis_is_set_back() -> None:
    """What it said last seemed new for as long as the clock was behind: an hour, say, at another Redis."""
    one, other = _two()
    other.exchange(0.2, waiting=30)
    one.exchange(0.3, waiting=30)
    assert one.limiter.requests.share == pytest.approx(0.5)
    for round_ in range(40):
        now = 0.5 + 0.25 * round_
        clock = now + AHEAD_S - 300.0
        one.said["one"] = one.ledger.to_news(one.limiter, 30, now, clock)
        one.ledger.take(one.limiter, one.said, Demand(0, 0, 30), now, clock)
    assert one.limiter.requests.share == pytest.approx(1.0)
