"""The limiter's word on single calls: how long one that was refused waits itself."""

from __future__ import annotations

import math

import pytest

from openai_gateway.limits.attempts import ConfiguredLimits, SentAttempt, Tries
from openai_gateway.limits.ledger import Ledger
from openai_gateway.limits.limiter import Limiter
from openai_gateway.wire.rate_limits import RateLimit, Refusal

ROOM = {"requests": RateLimit(3000.0, 2900.0, 2.0)}
LAST_ONE = {"requests": RateLimit(60.0, 1.0, 59.0)}
NO_ROOM = {"requests": RateLimit(60.0, 0.0, 60.0)}


@pytest.mark.parametrize("kind", ["requests", "in_flight", None])
@pytest.mark.parametrize("limits", [ROOM, {}], ids=["a ledger with room", "no ledger"])
@pytest.mark.parametrize("retry_after_s", [1.0, 2.0, 5.0])
def test_refused_call_keeps_its_own_retry_after_each_time(
    kind: str | None, limits: dict[str, RateLimit], retry_after_s: float
) -> None:
    limiter, now = Limiter(ConfiguredLimits(), 0.0), 100.0
    limiter.answer(limiter.start(1.0, 0, now), limits)
    refusal = Refusal(kind, retry_after_s)
    for tries in (Tries(), Tries(), Tries()):
        for _ in range(3):
            now += 0.1
            sent = limiter.start(1.0, 0, now)
            assert limiter.refuse(sent, limits, refusal, tries, now + 0.1) == retry_after_s
            now += 0.1 + retry_after_s


def test_refused_call_goes_as_soon_as_an_empty_ledger_fills_whatever_its_retry_after() -> None:
    limiter = Limiter(ConfiguredLimits(), 0.0)
    limiter.answer(limiter.start(1.0, 0, 100.0), LAST_ONE)
    sent = limiter.start(1.0, 0, 100.1)
    assert limiter.refuse(sent, NO_ROOM, Refusal("requests", 60.0), Tries(), 100.2) == 0.0
    assert 0.0 < limiter.wait_s(1.0, 1, 100.2)[0] < 5.0


def test_next_call_asks_what_is_left_when_those_under_way_cannot_tell() -> None:
    """Of two gateways one waited for seconds though the other left a full bucket: slow calls of before were running."""
    limiter = Limiter(ConfiguredLimits(), 0.0)
    limiter.start(1.0, 0, 100.0)
    sent = limiter.start(1.0, 1, 100.1)
    limiter.answer(sent, {"requests": RateLimit(3000.0, 0.0, 5.0)})
    limiter.requests.move_to_drain(49.0, 0.0)
    assert limiter.wait_s(1.0, 1, 100.2)[0] < 1.0
    limiter.start(1.0, 1, 101.2)
    assert limiter.wait_s(1.0, 2, 101.2)[0] > 2.0, "that one will tell"


@pytest.mark.parametrize("retry_after_s", [1e5, 1e308])
def test_no_upstream_can_have_all_calls_wait_for_ever(retry_after_s: float) -> None:
    limiter = Limiter(ConfiguredLimits(), 0.0)
    for now in (10.0, 10.5):
        sent = limiter.start(1.0, 0, now)
        limiter.refuse(sent, {}, Refusal(kind="requests", wait_s=retry_after_s), Tries(), now)
    assert limiter.wait_s(1.0, 0, 11.0)[0] <= 120


def test_upstream_that_tells_what_remains_and_never_of_how_much_is_believed() -> None:
    limiter = Limiter(ConfiguredLimits(), 0.0)
    for number, remaining in enumerate((59.0, 58.0, 59.0)):
        now = 10.0 + number
        sent = limiter.start(1.0, 0, now)
        told = {"requests": RateLimit(None, remaining, None)}
        limiter.refuse(sent, told, Refusal(kind="requests", wait_s=0.005), Tries(), now + 0.1)
        sent = limiter.start(1.0, 0, now + 0.2)
        limiter.answer(sent, told)
    assert limiter.wait_s(1.0, 0, 20.0)[0] < 1


def _send(limiter: Limiter, calls: int, calls_a_s: float, now: float) -> tuple[SentAttempt, float]:
    for _ in range(calls):
        now += 1 / calls_a_s
        sent = limiter.start(1.0, 0, now)
    return sent, now


def test_slow_down_holds_the_rate_and_lets_it_grow_by_half_in_15_minutes() -> None:
    limiter = Limiter(ConfiguredLimits(), 0.0)
    sent, now = _send(limiter, 500, 50.0, 100.0)
    assert limiter.refuse(sent, {}, Refusal("slow_down"), Tries(), now) == 0.5
    assert limiter.held.rate(now) == pytest.approx(50, rel=0.05)
    assert limiter.held.rate(now + 900) == pytest.approx(75, rel=0.05)
    for _ in range(20):
        limiter.refuse(sent, {}, Refusal("slow_down"), Tries(), now + 1)
    assert limiter.held.rate(now) == pytest.approx(50, rel=0.05), "refusals of what was under way lowered it again"
    assert not any((limiter.blind.is_known, limiter.requests.is_known, limiter.window.is_held))


def _ask_each_time_that_one_may(limiter: Limiter, now: float, until: float) -> list[float]:
    """Return when calls were sent to an upstream that tells all of them to slow down, 40 ms after."""
    callers, asked_at, under_way = [Tries() for _ in range(100)], list[float](), list[tuple[SentAttempt, Tries]]()
    while now < until:
        wait_s, _ = limiter.wait_s(1.0, len(under_way), now)
        if under_way and under_way[0][0].at + 0.04 <= now + wait_s:
            sent, tries = under_way.pop(0)
            now = max(now, sent.at + 0.04)
            limiter.refuse(sent, {}, Refusal("slow_down"), tries, now)
        elif wait_s > 0:
            now += wait_s
        else:
            under_way.append((limiter.start(1.0, len(under_way), now), callers[len(asked_at) % len(callers)]))
            asked_at.append(now)
    return asked_at


def test_upstream_that_tells_everybody_to_slow_down_is_asked_by_few_and_ever_more_rarely() -> None:
    """A hundred callers asked it seven times a second, for as long as it went on."""
    limiter = Limiter(ConfiguredLimits(), 0.0)
    sent, now = _send(limiter, 500, 50.0, 100.0)
    limiter.answer(sent, {})
    limiter.refuse(sent, {}, Refusal("slow_down"), Tries(), now)
    asked_at = _ask_each_time_that_one_may(limiter, now, now + 120.0)
    assert len(asked_at) < 15
    assert asked_at[-1] - asked_at[-2] > 20.0
    now = asked_at[-1] + 40.0
    limiter.start(1.0, 0, now)
    assert limiter.wait_s(1.0, 1, now)[0] > 0.5, "the next asked before one could be refused"
    limiter.start(1.0, 1, now + 1.1)
    assert limiter.wait_s(1.0, 2, now + 1.1)[0] < 0.05, "they waited for an answer, which may take minutes"
    assert limiter.held.rate(now) == pytest.approx(50, rel=0.1), "as few as asked, as few were let go ever after"


def test_slow_down_after_a_pause_holds_to_no_less_than_half_of_the_pace_before() -> None:
    limiter = Limiter(ConfiguredLimits(), 0.0)
    sent, now = _send(limiter, 500, 50.0, 100.0)
    limiter.refuse(sent, {}, Refusal("slow_down"), Tries(), now)
    sent, now = _send(limiter, 5, 1 / 10, now)
    limiter.answer(sent, {})
    sent, now = _send(limiter, 5, 50.0, now)
    limiter.refuse(sent, {}, Refusal("slow_down"), Tries(), now)
    assert limiter.held.rate(now) == pytest.approx(25, rel=0.05)


def test_slow_down_of_one_who_calls_now_and_then_does_not_stop_who_comes_next() -> None:
    """Held at a call in 50 seconds, and half as much again in 15 minutes, a run would take hours to begin."""
    limiter = Limiter(ConfiguredLimits(), 0.0)
    sent, now = _send(limiter, 5, 1 / 100, 100.0)
    limiter.refuse(sent, {}, Refusal("slow_down"), Tries(), now)
    assert limiter.held.rate(now) == pytest.approx(1.0, rel=0.05)


def test_pace_that_was_held_long_ago_holds_up_nobody() -> None:
    """After 18 days of growing the number was too large for a float, and each call ended in an error."""
    limiter = Limiter(ConfiguredLimits(), 0.0)
    sent, now = _send(limiter, 500, 50.0, 100.0)
    limiter.refuse(sent, {}, Refusal("slow_down"), Tries(), now)
    now += 30 * 86_400.0
    limiter.start(1.0, 0, now)
    assert limiter.wait_s(1.0, 1, now)[0] < 0.001


def test_first_refusal_that_names_requests_paces_all_and_is_forgotten_if_only_that_call_is_refused_again() -> None:
    limiter, tries = Limiter(ConfiguredLimits(), 0.0), Tries()
    sent, now = _send(limiter, 100, 50.0, 100.0)
    assert limiter.refuse(sent, {}, Refusal("requests"), tries, now) == 0.5
    assert limiter.wait_s(1.0, 20, now)[1] == "rate"
    _, now = _send(limiter, 10, 20.0, now)
    sent = limiter.start(1.0, 20, now)
    assert limiter.refuse(sent, {}, Refusal("requests"), tries, now) == 1.0
    assert limiter.wait_s(1.0, 10, now) == (0.0, "")
    _, now = _send(limiter, 10, 20.0, now)
    assert limiter.refuse(limiter.start(1.0, 20, now), {}, Refusal("requests"), tries, now) is None


def test_first_refusal_that_names_nothing_holds_up_nobody_else() -> None:
    limiter = Limiter(ConfiguredLimits(), 0.0)
    sent, now = _send(limiter, 100, 50.0, 100.0)
    limiter.refuse(sent, {}, Refusal(None), Tries(), now)
    assert limiter.wait_s(1.0, 1, now) == (0.0, "")


def test_rate_that_another_call_vouches_for_is_not_forgotten_nor_one_call_given_up_at_once() -> None:
    limiter, tries = Limiter(ConfiguredLimits(), 0.0), Tries()
    sent, now = _send(limiter, 100, 50.0, 100.0)
    limiter.refuse(sent, {}, Refusal("requests"), tries, now)
    for _ in range(2):
        _, now = _send(limiter, 10, 20.0, now)
        other = Tries()
        limiter.refuse(limiter.start(1.0, 20, now), {}, Refusal("requests"), other, now)
        _, now = _send(limiter, 10, 20.0, now)
        limiter.vouch(other, now)
        assert limiter.refuse(limiter.start(1.0, 20, now), {}, Refusal("requests"), tries, now) is not None
    assert limiter.blind.is_known


def test_call_that_is_refused_again_after_its_process_joined_others_vouches_for_no_limit() -> None:
    limiter, tries = Limiter(ConfiguredLimits(), 0.0), Tries()
    sent, now = _send(limiter, 10, 20.0, 100.0)
    limiter.refuse(sent, {}, Refusal(None), tries, now)
    sent, tries.again_at = limiter.start(1.0, 9, now), now
    limiter.refuse_earlier(sent, 9, Refusal(None), tries, now)
    _, now = _send(limiter, 20, 20.0, now)
    limiter.refuse(limiter.start(1.0, 9, now), {}, Refusal(None), Tries(), now)
    assert limiter.doubts.vouched == 0


def test_pause_that_several_calls_asked_for_ends_once_that_is_found_to_be_their_own_affair() -> None:
    """With Retry-After: 20, all stood still twice as long."""
    limiter, disliked = Limiter(ConfiguredLimits(), 0.0), [Tries() for _ in range(3)]
    _, now = _send(limiter, 100, 20.0, 100.0)
    for tries in disliked:
        limiter.refuse(limiter.start(1.0, 20, now), {}, Refusal(None, 20.0), tries, now)
        _, now = _send(limiter, 12, 20.0, now)
    assert limiter.wait_s(1.0, 1, now)[1] == "pause"
    now += 20.0
    for tries in disliked:
        limiter.refuse(limiter.start(1.0, 20, now), {}, Refusal(None, 20.0), tries, now)
    assert limiter.wait_s(1.0, 1, now) == (0.0, "")


def test_rush_does_not_begin_with_a_refusal_though_its_headers_say_that_much_is_left() -> None:
    limiter = Limiter(ConfiguredLimits(), 0.0)
    limiter.refuse(limiter.start(1.0, 0, 100.0), ROOM, Refusal("requests"), Tries(), 100.1)
    assert not limiter.window.is_open
    limiter.answer(limiter.start(1.0, 0, 100.2), ROOM)
    assert limiter.window.is_open


@pytest.mark.parametrize("kind", ["requests", None])
def test_retry_after_of_minutes_is_kept_by_its_call(kind: str | None) -> None:
    limiter = Limiter(ConfiguredLimits(), 0.0)
    sent, now = _send(limiter, 1, 1.0, 100.0)
    assert limiter.refuse(sent, {}, Refusal(kind, 300.0), Tries(), now) == 300.0


def test_call_above_the_whole_limit_goes_at_once_and_holds_up_nobody() -> None:
    """The upstream refuses it, or we take it for larger than it is."""
    limiter, now = Limiter(ConfiguredLimits(), 0.0), 100.0
    for left in (29_000.0, 2_000.0):
        limiter.answer(limiter.start(1000.0, 0, now), {"tokens": RateLimit(30_000.0, left, None)})
        now += 1.0
    assert limiter.wait_s(20_000.0, 1, now)[0] > 5
    assert limiter.wait_s(45_000.0, 1, now)[0] < 2
    before = limiter.tokens.level(now)
    sent = limiter.start(45_000.0, 1, now)
    assert limiter.tokens.level(now) == before
    assert limiter.refuse(sent, {}, Refusal("tokens", None, 30_000, None, 45_000, True), Tries(), now) is None


def test_refusals_of_calls_that_were_under_way_together_correct_the_estimate_of_tokens_once() -> None:
    """Forty took a call for 36,000 times as large as it was, and each of them twice as large is the worst."""
    limiter, now = Limiter(ConfiguredLimits(), 0.0), 100.0
    limiter.answer(limiter.start(1000.0, 0, now), {"tokens": RateLimit(60_000.0, 59_000.0, None)})
    all_sent = [limiter.start(1000.0, running, now + 1) for running in range(40)]
    told = {"tokens": RateLimit(60_000.0, 500.0, None)}
    for sent in all_sent:
        limiter.refuse(sent, told, Refusal("tokens", None, 60_000.0, 59_500.0, 1300.0), Tries(), now + 2)
    assert limiter.token_factor == pytest.approx(1.3)
    sent = limiter.start(1300.0, 0, now + 3)
    tries = Tries(token_factor=1.3)
    limiter.refuse(sent, told, Refusal("tokens", None, 60_000.0, 59_500.0, 1560.0), tries, now + 4)
    assert limiter.token_factor == pytest.approx(1.3 * 1.2)


def test_what_little_is_left_of_a_window_holds_up_no_call_of_the_next_one() -> None:
    """A call that is tried again is sent though little is left; at that pace the next one would go 44 hours later."""
    limiter, spent = Limiter(ConfiguredLimits(), 0.0), 0.0
    for now in (0.0, 2.5, 5.0):
        spent += 1000.0
        told = {"tokens": RateLimit(60_000.0, 60_000.0 - spent, 60.0 - now)}
        limiter.answer(limiter.start(1000.0, 0, now), told)
    assert limiter.tokens.window_ends_at == 60.0
    told = {"tokens": RateLimit(60_000.0, 4010.0, 40.0)}
    limiter.answer(limiter.start(1000.0, 0, 20.0), told)
    limiter.start(4000.0, 0, 20.1)
    assert limiter.wait_s(1000.0, 1, 61.0)[0] == 0.0


def test_upstream_that_tells_only_what_remains_is_asked_at_no_pace_once_some_does() -> None:
    limiter, now = Limiter(ConfiguredLimits(), 0.0), 100.0
    for remaining in (1.0, 1000.0):
        sent = limiter.start(1.0, 0, now)
        limiter.start(1.0, 1, now)
        limiter.answer(sent, {"requests": RateLimit(None, remaining, None)})
        now += 2.0
    assert limiter.wait_s(1.0, 1, now - 1.9)[0] == 0.0


def test_configured_bound_is_not_charged_with_what_was_never_sent() -> None:
    limiter = Limiter(ConfiguredLimits(60.0, 60_000.0), 0.0)
    levels = [limiter._told[0][0].level(10.0), limiter._told[1][0].level(10.0)]
    limiter.cancel(limiter.start(100.0, 0, 10.0))
    assert [limiter._told[0][0].level(10.0), limiter._told[1][0].level(10.0)] == levels


def test_limit_a_day_is_told_from_one_a_minute_by_its_resets() -> None:
    """Groq's: a few calls a minute, once two answers agree."""
    limiter, now = Limiter(ConfiguredLimits(), 0.0), 100.0
    for used in (30, 31):
        told = RateLimit(14_400.0, 14_400.0 - used, used * 86_400 / 14_400)
        limiter.answer(limiter.start(1.0, 0, now), {"requests": told})
        now += 1.0
    assert limiter.requests.rate * 86_400 == pytest.approx(14_400)


@pytest.mark.parametrize(("limit", "calls_a_s"), [(3000.0, 60.0), (60_000.0, 1500.0), (60.0, 2.0)])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole seconds", "exact"])
def test_window_of_a_minute_is_not_taken_for_an_hours_limit(limit: float, calls_a_s: float, is_whole: bool) -> None:
    """As it begins, what is used and its end agree for a moment with a bucket that takes an hour to fill."""
    ledger, sent = Ledger(1.0), 0
    for number in range(int(150 * calls_a_s)):
        now = 1000.0 + number / calls_a_s
        sent = sent + 1 if (now - 1000.0) % 60.0 > 1 / calls_a_s else 1
        if sent < limit:
            reset_s = 60.0 - (now - 1000.0) % 60.0
            ledger.take(1.0, now)
            ledger.refer(
                RateLimit(limit, limit - sent, math.ceil(reset_s) if is_whole else reset_s), 1.0, now, ledger.spent
            )
        assert ledger.period_s == 60.0


def test_limit_that_was_taken_for_an_hours_is_a_minutes_again_once_resets_say_so() -> None:
    ledger = Ledger(1.0)
    ledger.period_s = 3600.0
    for number in range(4):
        ledger.refer(RateLimit(600.0, 599.0 - number, (1 + number) / 10), 1.0, 100.0 + number, ledger.spent)
    assert ledger.rate == 10.0


def test_limit_that_rises_leaves_no_call_to_wait_at_the_pace_of_before() -> None:
    ledger = Ledger(1.0)
    ledger.refer(RateLimit(600.0, 10.0, None), 1.0, 100.0, 0.0)
    ledger.take(100.0, 101.0)
    assert ledger.wait_s(1.0, 101.0) > 40.0
    ledger.refer(RateLimit(600_000.0, 300_000.0, None), 100.0, 101.0, ledger.spent)
    assert ledger.wait_s(1.0, 101.5) == 0.0


def test_refusals_of_calls_that_were_sent_alone_do_not_cut_what_two_workers_may_have_in_flight() -> None:
    """A worker that joins brings its own calls in flight; the first one's knew nothing of them."""
    limiter, refused = Limiter(ConfiguredLimits(), 0.0), Refusal("in_flight")
    limiter.window.open()
    early = [limiter.start(1.0, running, 10.0 + running / 1000) for running in range(50)]
    limiter.refuse(early[-2], {}, refused, Tries(), 10.1)
    limiter.join(limiter.to_known(is_whole=True), 50, 10.2)
    assert limiter.window.most == 98
    limiter.refuse(early[-1], {}, refused, Tries(), 10.3)
    assert limiter.window.most == 98


def test_upstream_that_refuses_all_without_a_word_is_asked_ever_more_rarely() -> None:
    limiter, now = Limiter(ConfiguredLimits(), 0.0), 100.0
    callers = [Tries() for _ in range(30)]
    asked_at: list[float] = []
    while now < 160.0:
        wait_s, _ = limiter.wait_s(1.0, 0, now)
        if wait_s > 0:
            now += wait_s
            continue
        tries = callers[len(asked_at) % len(callers)]
        sent = limiter.start(1.0, 0, now)
        asked_at.append(now)
        now += 0.04
        limiter.refuse(sent, {}, Refusal(None), tries, now)
    assert len(asked_at) < 40
    assert asked_at[-1] - asked_at[-2] > 5.0
