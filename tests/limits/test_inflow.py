"""What flows in of a limit, and who else takes of it: whoever is alone spends all at once, others do their part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openai_gateway.limits.ledger import Ledger
from openai_gateway.wire.rate_limits import RateLimit
from tests.limits.simulation import Upstream, simulate

RPM = Upstream(rpm=3000)
BOTH = Upstream(rpm=3000, tpm=4_200_000, burst_s=1)
LIMIT = 3000.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gateway_that_sees_nobody_else_spends_what_was_saved_up_in_seconds_and_to_the_last_calls(seed: int) -> None:
    report = simulate(RPM, seconds=6.0, seed=seed)
    assert report.refused == 0
    # 250 were saved up at the start, and 50 a second flow in; three seconds' spread left 35 of them.
    assert report.stored <= 20


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("spec", "gateways", "refused"),
    [
        pytest.param(RPM, 4, 0.002, id="requests"),
        pytest.param(replace(RPM, foreign=0.4), 4, 0.002, id="somebody else uses two fifths"),
        pytest.param(BOTH, 2, 0.01, id="bursts of a second, two gateways"),
        pytest.param(BOTH, 4, 0.02, id="bursts of a second"),
    ],
)
def test_gateways_that_do_not_know_of_each_other_use_a_limit_without_a_storm(
    spec: Upstream, gateways: int, refused: float, seed: int
) -> None:
    report = simulate(spec, gateways=gateways, seed=seed)
    assert report.failed == 0
    assert report.used >= 0.99
    assert report.refused_share <= refused


@pytest.mark.parametrize("gateways", [2, 4])
def test_gateways_that_do_not_know_of_each_other_find_their_parts_of_one_call_a_second(gateways: int) -> None:
    early, late = (simulate(Upstream(rpm=60), gateways=gateways, callers=20, seconds=seconds) for seconds in (60, 240))
    assert late.refused - early.refused <= 3
    assert late.used >= 0.95


def _refer(ledger: Ledger, remaining: float, at: float, *, is_refused: bool = False) -> None:
    ledger.take(1.0, at)
    ledger.refer(RateLimit(LIMIT, remaining, None), 1.0, at, ledger.spent, is_refused=is_refused)


def test_part_is_what_we_charge_of_all_that_is_charged() -> None:
    ledger = Ledger(1.0)
    _refer(ledger, 240.0, 0.0)
    assert ledger.part == 1.0
    for second in range(1, 40):
        for _ in range(19):
            ledger.take(1.0, float(second))
        # 50 flow in, of which we charge 20 and somebody else 30.
        _refer(ledger, 150.0, second + 0.5)
    assert ledger.drain == pytest.approx(30, abs=1)
    assert ledger.part == pytest.approx(0.4, abs=0.01)
    assert ledger.wrong < 1.0, "it is foreseen"


def test_refused_calls_are_no_inflow_whatever_order_they_are_heard_of_in() -> None:
    ledger = Ledger(1.0)
    _refer(ledger, 100.0, 0.0)
    sent = []
    for number in range(20):
        ledger.take(1.0, 1.0 + number / 1000)
        sent.append((1.0 + number / 1000, ledger.spent))
    for at, spent in (sent[-1], *sent[:-1]):
        ledger.refer(RateLimit(LIMIT, 150.0, None), 1.0, at, spent, is_refused=True)
    assert ledger.drain == pytest.approx(0, abs=3), "it was -7 before the others were heard of"


def test_calls_that_were_taken_back_leave_no_part_below_none() -> None:
    """More may be taken back between two answers than was charged: refusals that say nothing of what is left."""
    ledger = Ledger(1.0)
    ledger.refer(RateLimit(600.0, 590.0, None), 1.0, 0.0, 10.0)
    ledger.spent = 10.0
    for number in range(1, 6):
        ledger.give_back(5.0)
        ledger.take(1.0, number / 10)
        ledger.refer(RateLimit(600.0, 590.0 - number, None), 1.0, number / 10, ledger.spent)
    assert ledger.charged_per_s == 0.0


def test_bucket_that_was_full_is_no_sign_of_others() -> None:
    ledger = Ledger(1.0)
    for second in range(20):
        _refer(ledger, 249.0, float(second))
    assert ledger.drain == pytest.approx(0, abs=0.5)
    assert ledger.part > 0.9


@pytest.mark.parametrize(("hosts", "in_s"), [(1, 1.5), (2, 3.0)])
def test_what_is_saved_up_is_spent_sooner_where_charge_is_given_back_too(hosts: int, in_s: float) -> None:
    """Half of what is spent comes back as calls end: in three seconds each it took fifteen."""
    ledger = Ledger(1.0)
    _refer(ledger, 240.0, 0.0)
    ledger.hosts, ledger.drain, ledger.wrong = hosts, -40.0, 1.0
    kept = max(ledger.margin(0.0), ledger.kept_for_wrong)
    assert ledger.speed(0.0) == pytest.approx(90.0 + (ledger.level(0.0) - kept) / in_s)
