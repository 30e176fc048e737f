"""Budgets hold: what is reserved comes back or is settled, by one truth for all workers, and restarts lose nothing."""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.accounting import spend_file
from openai_gateway.accounting.budgets import BudgetReservation, Budgets, read_run_limit
from openai_gateway.accounting.estimates import ASSUMED_OUTPUT_TOKENS, Asked, measure_call
from openai_gateway.accounting.spend import NANO, Limit
from openai_gateway.accounting.spend_file import SpendFile
from openai_gateway.config import Secret, ServerConfig
from openai_gateway.config.clients import Client
from openai_gateway.config.prices import Price, PriceTable
from openai_gateway.errors import BudgetExceeded, ClientBusy, InvalidRequest
from openai_gateway.wire.api import Api
from openai_gateway.wire.envelope import to_raw
from openai_gateway.wire.usage import Usage
from tests.support.records import to_record

# A token costs $0.001, whichever it is.
SERVER = ServerConfig(
    "s", "http://u/v1", "m", openai_api_key=Secret("sk"), prices=PriceTable({"m": Price(input=1000.0, output=1000.0)})
)
DAY = 86_400


def _ask(output_tokens: int | None = 100, text_bytes: int = 0) -> Asked:
    return Asked(text_bytes, 0, output_tokens, None, False)


def _client(budget_usd: float | None = 1.0, **more: Any) -> Client:
    return Client("team", Secret("k"), budget_usd=budget_usd, **more)


def _spent(budgets: Budgets, per: str = "total") -> tuple[float, float, int]:
    found = budgets.read(["team"])["team"]
    return found.spent[per] / NANO, found.reserved / NANO, found.in_flight


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "budgets")


def test_call_is_refused_that_would_go_over_with_those_in_flight(path: str) -> None:
    budgets = Budgets(path)
    held = [budgets.reserve(SERVER, _client(), None, _ask()) for _ in range(10)]
    with pytest.raises(BudgetExceeded) as refused:
        budgets.reserve(SERVER, _client(), None, _ask())
    assert refused.value.should_retry is False
    assert (refused.value.status, refused.value.code) == (429, "gateway_budget_exceeded")
    for part in ("may cost $0.10", "$0.00 of $1.00 spent in all", "$1.00 reserved", "not renewed"):
        assert part in refused.value.message
    assert held[0].settle(to_record(cost_usd=0.04)) == 0.04
    assert _spent(budgets) == (0.04, pytest.approx(0.9), 9)
    with pytest.raises(BudgetExceeded):
        budgets.reserve(SERVER, _client(), None, _ask())
    held[1].settle(to_record(status=500, cost_usd=None))
    budgets.reserve(SERVER, _client(), None, _ask(60)).release()
    assert _spent(budgets) == (0.04, pytest.approx(0.8), 8)


@pytest.mark.parametrize(
    ("record", "charged"),
    [
        pytest.param({"cost_usd": 0.07}, 0.07, id="the reported cost"),
        pytest.param({"cost_usd": 0.5}, 0.5, id="more than was reserved"),
        pytest.param({"cost_usd": None, "usage": None}, 0.1, id="an answer without usage"),
        pytest.param({"cost_usd": None, "usage": None, "outcome": "client_gone", "status": None}, 0.1, id="left"),
        pytest.param({"cost_usd": None, "usage": None, "outcome": "failed"}, 0.1, id="a stream that broke"),
        pytest.param({"cost_usd": None, "usage": None, "status": 429}, 0.0, id="an error of the upstream"),
        pytest.param({"cost_usd": None, "status": None, "outcome": "client_gone", "attempts": 0}, 0.0, id="never made"),
        pytest.param({"cost_usd": 0.0, "is_replayed": True}, 0.0, id="a kept answer"),
        pytest.param(
            {"cost_usd": None, "usage": Usage(30, 40), "service_tier": "gold"}, 0.07, id="a tier without a price"
        ),
        pytest.param(None, 0.1, id="a call that could not be recorded"),
    ],
)
def test_call_is_charged(record: dict[str, Any] | None, charged: float) -> None:
    budgets = Budgets(None)
    reservation = budgets.reserve(SERVER, _client(), None, _ask())
    assert reservation.settle(None if record is None else to_record(**record)) == pytest.approx(charged)
    # Once is enough.
    assert reservation.settle(to_record(cost_usd=9.0)) == 0.0
    reservation.release()
    assert _spent(budgets) == (pytest.approx(charged), 0.0, 0)


def test_calls_at_a_time_are_bounded_over_all_workers(path: str) -> None:
    one, other = Budgets(path), Budgets(path)
    client = _client(None, max_concurrent_requests=2)
    first = one.reserve(SERVER, client, None, _ask())
    other.reserve(SERVER, client, None, _ask())
    with pytest.raises(ClientBusy) as refused:
        one.reserve(SERVER, client, None, _ask())
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
    first.release()
    other.reserve(SERVER, client, None, _ask())


def test_budget_is_renewed_with_its_period(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1_772_323_200.0]  # 2026-03-01
    monkeypatch.setattr("openai_gateway.accounting.budgets.time.time", lambda: now_s[0])
    budgets = Budgets(None)
    spend = {per: _client(0.1, per=per) for per in ("day", "month", "total")}
    budgets.reserve(SERVER, spend["day"], None, _ask()).settle(to_record(cost_usd=0.1))
    for per, said in (("day", "at 2026-03-02T00:00Z"), ("month", "at 2026-04-01T00:00Z"), ("total", "not renewed")):
        with pytest.raises(BudgetExceeded, match=said):
            budgets.reserve(SERVER, spend[per], None, _ask())
    late = budgets.reserve(SERVER, _client(9.0), None, _ask())
    now_s[0] += DAY
    # It came yesterday: today's budget is whole.
    late.settle(to_record(cost_usd=0.1))
    budgets.reserve(SERVER, spend["day"], None, _ask()).release()
    with pytest.raises(BudgetExceeded):
        budgets.reserve(SERVER, spend["month"], None, _ask())
    now_s[0] += 31 * DAY
    budgets.reserve(SERVER, spend["month"], None, _ask()).release()
    assert _spent(budgets)[0] == pytest.approx(0.2)


def test_output_is_taken_to_be_as_long_as_the_clients_last_ones_unless_it_is_bounded() -> None:
    budgets = Budgets(None)

    def reserved(asked: Asked) -> float:
        held = budgets.reserve(SERVER, _client(1e6), None, asked)
        found = _spent(budgets)[1]
        held.release()
        return round(found * 1000)

    assert reserved(_ask(None)) == ASSUMED_OUTPUT_TOKENS
    assert reserved(_ask(7, text_bytes=1000)) == 507
    for _ in range(100):
        held = budgets.reserve(SERVER, _client(1e6), None, _ask(None, 1000))
        held.settle(to_record(usage=Usage(300, 30_000), cost_usd=30.3))
    assert reserved(_ask(None)) == 30_000
    assert reserved(_ask(7, text_bytes=1000)) == 7 + 375


@pytest.mark.parametrize(
    ("api", "values", "defaults", "output", "refers"),
    [
        (Api.RESPONSES, {"max_output_tokens": 50}, {}, 50, False),
        (Api.RESPONSES, {"previous_response_id": "r"}, {"max_output_tokens": 9}, 9, True),
        (Api.RESPONSES, {"max_output_tokens": None, "prompt": None}, {"max_output_tokens": 9}, None, False),
        (Api.CHAT, {"max_tokens": 50, "n": 3}, {}, 150, False),
        (Api.CHAT, {"max_completion_tokens": 5, "max_tokens": 50}, {}, 5, False),
        (Api.CHAT, {}, {}, None, False),
    ],
)
def test_what_is_asked_bounds_the_output(
    api: Api, values: dict[str, Any], defaults: dict[str, Any], output: int | None, refers: bool
) -> None:
    asked = measure_call(api, b"x" * 40, to_raw(values), to_raw(defaults))
    assert (asked.output_tokens, asked.refers, asked.text_bytes) == (output, refers, 40)


def test_run_has_a_budget_of_its_own_beside_its_clients() -> None:
    budgets, client = Budgets(None), _client(10.0)
    environ = {"HTTP_X_GATEWAY_RUN": "r1", "HTTP_X_GATEWAY_RUN_BUDGET_USD": "0.15"}
    run = read_run_limit(environ, client)
    budgets.reserve(SERVER, client, run, _ask()).settle(to_record(cost_usd=0.1))
    with pytest.raises(BudgetExceeded, match="budget of run r1 of team"):
        budgets.reserve(SERVER, client, run, _ask())
    assert _spent(budgets) == (0.1, 0.0, 0)
    budgets.reserve(SERVER, client, read_run_limit({**environ, "HTTP_X_GATEWAY_RUN": "r2"}, client), _ask())
    budgets.reserve(SERVER, None, read_run_limit(environ, None), _ask())
    assert read_run_limit({"HTTP_X_GATEWAY_RUN": "r1"}, client) is None
    for wrong in ("x", "-1", "nan", "1e99"):
        with pytest.raises(InvalidRequest):
            read_run_limit({**environ, "HTTP_X_GATEWAY_RUN_BUDGET_USD": wrong}, client)
    with pytest.raises(InvalidRequest, match="needs x-gateway-run"):
        read_run_limit({"HTTP_X_GATEWAY_RUN_BUDGET_USD": "1"}, client)


def _reserve_and_die(path: str, count: int) -> None:
    budgets = Budgets(path)
    for _ in range(count):
        budgets.reserve(SERVER, _client(), None, _ask())
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_worker_had_reserved_is_free_again(path: str) -> None:
    budgets = Budgets(path)
    kept = budgets.reserve(SERVER, _client(), None, _ask(300))
    worker = multiprocessing.get_context("spawn").Process(target=_reserve_and_die, args=(path, 7))
    worker.start()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    # All but what lives: seen by whoever would be refused, without a restart.
    budgets.reserve(SERVER, _client(), None, _ask(700))
    assert _spent(budgets) == (0.0, pytest.approx(1.0), 2)
    kept.release()


def test_mixed_calls_of_two_workers_end_with_nothing_reserved_and_the_sum_settled(path: str) -> None:
    chance, workers, settled, refused = random.Random(4), (Budgets(path), Budgets(path)), 0.0, 0
    held: list[tuple[BudgetReservation, int]] = []
    for _ in range(3000):
        while len(held) > chance.randrange(40):
            call, tokens = held.pop(chance.randrange(len(held)))
            # No more than was set aside, as with a bound on the output.
            cost = chance.random() * tokens / 1000
            ends: list[dict[str, Any]] = [{"cost_usd": cost}, {"status": 500}, {"attempts": 0}, {"usage": None}]
            settled += call.settle(to_record(**{"cost_usd": None, **chance.choice(ends)}))
        tokens = chance.randrange(900)
        try:
            held.append((chance.choice(workers).reserve(SERVER, _client(40.0), None, _ask(tokens)), tokens))
        except BudgetExceeded:
            refused += 1
    assert refused
    for call, _ in held:
        call.release()
    for budgets in workers:
        assert _spent(budgets) == (pytest.approx(settled, abs=1e-5), 0.0, 0)
    assert settled <= 40.0


@contextlib.contextmanager
def _restarted(path: str, log: Path) -> Iterator[Budgets]:
    budgets = Budgets(path, [str(log)], ["team"])
    yield budgets
    budgets.close()


def _line(cost: float, at: float) -> str:
    return json.dumps({"time": at, "client": "team", "charged_usd": cost}, separators=(",", ":")) + "\n"


def test_restart_finds_what_was_spent_in_the_log_and_its_rotated_parts(tmp_path: Path, path: str) -> None:
    log, now = tmp_path / "usage.jsonl", time.time()
    log.write_text(_line(0.25, now) + '{"client":"team", torn\n' + _line(0.25, now - 40 * DAY))
    (tmp_path / "usage.jsonl.1").write_text(_line(0.125, now))
    (tmp_path / "usage.jsonl-20261126.gz").write_bytes(gzip.compress(_line(0.0625, now).encode()))
    with _restarted(path, log) as budgets:
        assert _spent(budgets) == (0.6875, 0.0, 0)
        assert _spent(budgets, "month")[0] == 0.4375
        budgets.reserve(SERVER, _client(), None, _ask()).settle(to_record(cost_usd=0.1))
    with log.open("a") as file:
        file.write(_line(0.1, now))
    with _restarted(path, log) as budgets:
        assert _spent(budgets)[0] == pytest.approx(0.7875)


def test_lost_log_is_told_and_what_was_spent_stays(tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "usage.jsonl"
    with _restarted(path, log) as budgets:
        budgets.reserve(SERVER, _client(), None, _ask()).settle(to_record(cost_usd=0.5))
    assert not caplog.records
    with _restarted(path, log) as budgets:
        assert _spent(budgets)[0] == 0.5
    assert "tells of $0.00 of the $0.50 that team spent" in caplog.text
    log.write_text(_line(0.3, time.time()))
    with _restarted(path, log) as budgets:
        assert _spent(budgets)[0] == 0.5
    assert "tells of $0.30 of the $0.50" in caplog.text


def test_old_runs_make_room_for_new_ones_and_clients_keep_theirs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spend_file, "_MOST_ROWS", 3)
    file = SpendFile(path)
    client = Limit("team", NANO)
    file.reserve([client], 5, 0.0)
    for number in range(5):
        run = Limit(f"run {number}", NANO, is_run=True)
        file.reserve([run], 5, 0.0)
        file.settle([run], 5, 7, 0.0)
    assert set(file.read(["team", "run 0", "run 4"], 0.0)) == {"team", "run 4"}
    assert file.read(["team"], 0.0)["team"].reserved == 5


def test_sums_beyond_all_measure_are_kept_as_the_most(path: str) -> None:
    file, limit = SpendFile(path), Limit("mad")
    for _ in range(3):
        file.reserve([limit], 10**24, time.time())
    file.settle([limit], 0, 10**24, time.time())
    spend = file.read(["mad"], time.time())["mad"]
    assert (spend.reserved, spend.spent["total"], spend.in_flight) == (1 << 60, 1 << 60, 2)
    file.close()
