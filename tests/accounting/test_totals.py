"""The totals: what calls add up to, over workers that live and workers that have ended; as metrics and for the page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from openai_gateway.accounting import shared_files as shared_files_module
from openai_gateway.accounting.aggregate import Aggregate
from openai_gateway.accounting.metrics import render
from openai_gateway.accounting.shared_files import SharedFiles, make_folder_name, open_shared_files, remove_dead
from openai_gateway.accounting.snapshot import Snapshots, merge_states
from openai_gateway.accounting.spans import STEP_S, compute_percentile_ms, sum_up_spans
from openai_gateway.accounting.tally import to_milliseconds, to_step
from openai_gateway.accounting.totals import (
    BOUNDS_S,
    KEPT_CALLS,
    KEPT_MINUTES,
    KEPT_SECONDS,
    Consumption,
    Histogram,
    Second,
    ServerState,
    Totals,
)
from openai_gateway.wire.rate_limits import Attempts, LearnedLimit, RateLimit
from tests.support.records import to_record

STATE = ServerState(
    model="m",
    base_url="http://u/v1",
    in_flight=3,
    queued=2,
    cap=8,
    rate_limits={"requests": RateLimit(100.0, 99.0, 0.5)},
    limits_at=1.0,
)


@pytest.fixture(autouse=True)
def no_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave publishing to the tests: rounds would go on after them, in folders that are gone."""
    monkeypatch.setattr(Snapshots, "_publish_on", lambda snapshots: None)


@pytest.fixture
def aggregate() -> Aggregate:
    return Aggregate({"policy_model": "m"}, lambda: {"policy_model": STATE})


def test_histogram_counts_each_value_under_its_bound() -> None:
    histogram = Histogram()
    for value in (0.0, 0.01, 0.011, 1800.0, 1800.1):
        histogram.observe(value)
    assert (histogram.counts[0], histogram.counts[1]) == (2, 1)
    assert histogram.counts[-2:] == [1, 1]
    assert len(histogram.counts) == len(BOUNDS_S) + 1


@pytest.mark.parametrize("seconds", [0.0, 0.0005, 0.004, 0.25, 3.0, 1800.0])
def test_step_of_a_latency_is_near_it(seconds: float) -> None:
    assert to_milliseconds(to_step(seconds)) == pytest.approx(seconds * 1000, rel=0.1, abs=0.2)


def test_percentile() -> None:
    counts = {to_step(0.1): 98, to_step(2.0): 2}
    assert compute_percentile_ms(counts, 50) == pytest.approx(100, rel=0.1)
    assert compute_percentile_ms(counts, 99) == pytest.approx(2000, rel=0.1)
    assert compute_percentile_ms({}, 50) is None


def test_spans_add_up_and_begin_at_round_times() -> None:
    early = Second(1018, calls=98, errors=1, cost_usd=0.5, in_flight=9, durations={to_step(0.1): 98})
    late = Second(1019, calls=2, input_tokens=7, in_flight=4, durations={to_step(2.0): 2})
    seconds = [Second(900, calls=1), early, late, Second(1020, calls=5), Second(1030, calls=9)]
    spans = sum_up_spans(seconds, 1023, length_s=60, step_s=10)
    assert [span["t"] for span in spans] == [970, 980, 990, 1000, 1010, 1020]
    assert [span["calls"] for span in spans] == [0, 0, 0, 0, 100, 5]
    full = spans[4]
    assert (full["errors"], full["cost_usd"], full["input_tokens"], full["in_flight"]) == (1, 0.5, 7, 9)
    assert full["p50_ms"] == pytest.approx(100, rel=0.1)
    assert full["p99_ms"] == pytest.approx(2000, rel=0.1)
    assert (spans[0]["p50_ms"], full["first_byte_p50_ms"]) == (None, None)


def test_seconds_of_several_workers_add_up_and_stay_their_own() -> None:
    mine, theirs = Totals(1, 5.0), Totals(2, 4.0)
    mine.seconds = [Second(10, calls=1, durations={3: 1}), Second(11, calls=2)]
    theirs.seconds = [Second(10, calls=4, durations={3: 2, 4: 1}), Second(12, calls=8)]
    total = Totals(0, 9.0)
    for totals in (mine, theirs):
        total.add(totals)
    assert [(second.t, second.calls) for second in total.seconds] == [(10, 5), (11, 2), (12, 8)]
    assert (total.seconds[0].durations, total.started) == ({3: 3, 4: 1}, 4.0)
    assert (mine.seconds[0].durations, theirs.seconds[0].durations) == ({3: 1}, {3: 2, 4: 1})


def test_snapshot_shows_calls_tokens_cost_and_state(aggregate: Aggregate) -> None:
    aggregate.observe(to_record())
    aggregate.observe(
        to_record(usage=None, cost_usd=None, status=429, error_code=None, is_metered=False, retries=("429",))
    )
    aggregate.observe(to_record(outcome="client_gone", status=None, usage=None, cost_usd=None, first_byte_s=None))
    aggregate.look()
    for second in aggregate.totals.seconds:
        second.t -= STEP_S
    snapshot = Snapshots(aggregate).snapshot()
    server = snapshot["servers"][0]
    assert (server["calls"], server["failed"], server["client_gone"], server["retries"]) == (3, 1, 1, 1)
    assert (server["in_flight"], server["queued"], server["cap"]) == (3, 2, 8)
    assert (server["input_tokens"], server["cost_usd"], server["calls_without_usage"]) == (100, 0.25, 1)
    assert server["rate_limits"] == {"requests": {"limit": 100.0, "remaining": 99.0, "reset_s": 0.5}}
    series = snapshot["series"]
    assert {len(values) for values in series.values()} == {KEPT_SECONDS // STEP_S}
    assert sum(series["calls"]) == 3
    assert sum(series["errors"]) == 1
    assert max(series["in_flight"]) == 3
    assert [call["status"] for call in snapshot["recent"]] == [None, 429, 200]
    assert [call["status"] for call in snapshot["errors"]] == [429]
    assert msgspec.json.encode(snapshot)


def test_unknown_cost_is_not_zero(aggregate: Aggregate) -> None:
    aggregate.observe(to_record(cost_usd=None))
    assert Snapshots(aggregate).snapshot()["servers"][0]["cost_usd"] is None
    assert b"cost_usd_total{" not in render(Snapshots(aggregate), "")[0]


def test_past_is_bounded(aggregate: Aggregate, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(KEPT_SECONDS + 100):
        monkeypatch.setattr(time, "time", lambda number=number: 1e9 + number)
        aggregate.observe(to_record(model=f"model-{number}", status=500))
    totals = aggregate.totals
    assert (len(totals.seconds), len(totals.recent), len(totals.errors)) == (KEPT_SECONDS, KEPT_CALLS, KEPT_CALLS)
    assert len(totals.consumption) <= 201
    assert sum(used.input_tokens for used in totals.consumption.values()) == 100 * (KEPT_SECONDS + 100)


def test_metrics_are_what_prometheus_can_read(aggregate: Aggregate) -> None:
    aggregate.observe(to_record())
    body, content_type = render(Snapshots(aggregate), "text/plain")
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    (call,) = families["openai_gateway_calls"].samples
    labels = {"server": "policy_model", "api": "responses", "status": "2xx", "outcome": "completed", "code": ""}
    assert call.labels == labels
    tokens = {sample.labels["kind"]: sample.value for sample in families["openai_gateway_tokens"].samples}
    assert tokens == {"input": 100, "cached": 40, "output": 50, "reasoning": 10}
    assert all(family.documentation for family in families.values())
    duration = families["openai_gateway_call_duration_seconds"].samples
    assert [sample.value for sample in duration if sample.labels.get("le") == "+Inf"] == [1]
    assert b"# EOF" in render(Snapshots(aggregate), "application/openmetrics-text; version=1.0.0")[0]


def test_states_of_workers_are_put_together() -> None:
    later = ServerState("m", "u", in_flight=1, cap=8, is_breaker_open=True, rate_limits={}, limits_at=2.0)
    totals = [Totals(1, 0.0, states={"s": STATE}), Totals(2, 0.0, states={"s": later})]
    state = merge_states(totals)["s"]
    assert (state.in_flight, state.queued, state.cap, state.is_breaker_open) == (4, 2, 16, True)
    assert state.rate_limits == {}


def test_limits_that_workers_share_are_put_together_by_what_both_sent() -> None:
    busy = LearnedLimit(600.0, 5.0, 60.0, "openai", 6.0, (400.0, 4000.0), (540.0, 5000.0))
    idle = LearnedLimit(300.0, 300.0, 0.0, "openai", 3.0, (86.0, 500.0), (270.0, 9000.0))
    states = [
        ServerState("m", "u", queued=2, queue_reason="rate", learned_limits={"requests": busy}, most_in_flight=8.0),
        ServerState("m", "u", queued=1, learned_limits={"requests": idle}, attempts=Attempts((10, 10), (1, 2))),
    ]
    state = merge_states([Totals(number, 0.0, states={"s": each}) for number, each in enumerate(states)])["s"]
    found = state.learned_limits["requests"]
    assert (found.per_minute, found.free, found.margin) == (600.0, 5.0, 6.0)
    assert found.used_shares() == (0.9, 0.5)
    assert (state.waiting, state.most_in_flight) == ({"rate": 2, "slot": 1}, 8.0)
    assert state.attempts.refused_shares() == (0.1, 0.2)


def test_metrics_tell_of_limits_that_were_found_out() -> None:
    found = LearnedLimit(600.0, 5.0, 60.0, "openai", 6.0, (270.0, 0.0), (540.0, 0.0))
    state = ServerState(
        "m", "u", queued=2, queue_reason="rate", learned_limits={"requests": found}, attempts=Attempts((50, 0), (1, 0))
    )
    snapshots = Snapshots(Aggregate({"s": "m"}, lambda: {"s": state}))
    text = render(snapshots, "")[0].decode()
    of_limit = 'kind="requests",server="s"'
    for line in (
        f"learned_limit_margin{{{of_limit}}} 6.0",
        f'learned_limit_dialect{{dialect="openai",{of_limit}}} 1.0',
        f'learned_limit_used_ratio{{{of_limit},window="1m"}} 0.5',
        'refused_ratio{server="s",window="1m"} 0.02',
        'calls_waiting{reason="rate",server="s"} 2.0',
    ):
        assert f"openai_gateway_{line}\n" in text
    # Of what nothing was let in, nothing is said.
    assert 'window="1h"' not in text


def _add_worker(folder: Path, pid: int, calls: int) -> None:
    aggregate = Aggregate({"policy_model": "m"}, lambda: {"policy_model": STATE})
    for _ in range(calls):
        aggregate.observe(to_record())
    aggregate.look()
    aggregate.totals.pid = pid
    (folder / str(pid)).write_bytes(msgspec.msgpack.encode(aggregate.totals))


def test_ended_workers_keep_their_sums_but_not_their_state(tmp_path: Path, aggregate: Aggregate) -> None:
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ended = subprocess.run(["true"], check=True)
    assert ended.returncode == 0
    try:
        _add_worker(tmp_path, living.pid, 2)
        _add_worker(tmp_path, 2**22 + 1, 5)
        (tmp_path / "123.new").write_bytes(b"half")
        (tmp_path / str(2**22 + 2)).write_bytes(b"garbage")
        snapshots = Snapshots(aggregate)
        snapshots.share(SharedFiles(tmp_path, os.getpid()))
        aggregate.observe(to_record())
        for _ in range(2):
            snapshot = snapshots.snapshot()
            assert snapshot["servers"][0]["calls"] == 8
            assert snapshot["servers"][0]["in_flight"] == 6
            assert {worker["pid"] for worker in snapshot["workers"]} == {os.getpid(), living.pid}
            SharedFiles(tmp_path, os.getpid()).tidy()
        assert not (tmp_path / str(2**22 + 1)).exists()
    finally:
        living.communicate(b"\n")


def test_folder_of_a_master_that_ended_is_removed(tmp_path: Path) -> None:
    own = tmp_path / make_folder_name(os.getpid())
    start = own.name.rpartition("-")[0]
    dead, reused = tmp_path / f"{start}-{2**22 + 1}.77", tmp_path / f"{start}-{os.getpid()}.77"
    for folder in (own, dead, reused):
        folder.mkdir()
    remove_dead(tmp_path)
    assert (own.exists(), dead.exists(), reused.exists()) == (True, False, False)
    remove_dead(tmp_path, also=os.getpid())
    assert not own.exists()


def test_folder_of_a_master_in_another_container_stays_while_it_is_held_or_new(tmp_path: Path) -> None:
    held, new, left = (tmp_path / f"openai_gateway.{os.getuid()}.1-{pid}.77" for pid in (5, 6, 7))
    files = SharedFiles(held, 5)
    files.make_folder()
    for folder in (new, left):
        folder.mkdir()
    for folder in (held, left):
        os.utime(folder, (1.0, 1.0))
    remove_dead(tmp_path)
    assert (held.exists(), new.exists(), left.exists()) == (True, True, False)


def test_folder_that_was_removed_is_made_anew(
    tmp_path: Path, aggregate: Aggregate, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    files = SharedFiles(folder, os.getpid())
    files.make_folder()
    snapshots = Snapshots(aggregate)
    snapshots.share(files)
    aggregate.observe(to_record())
    shutil.rmtree(folder)
    assert snapshots.snapshot()["servers"][0]["calls"] == 1
    snapshots.publish()
    assert files.is_written()
    assert snapshots.snapshot()["servers"][0]["calls"] == 1
    assert caplog.text.count("was removed") == 1


def test_error_codes_are_a_label_and_bounded(aggregate: Aggregate) -> None:
    for number in range(500):
        aggregate.observe(to_record(status=400, error_code=f"code-{number}"))
    aggregate.observe(to_record())
    families = {
        family.name: family for family in text_string_to_metric_families(render(Snapshots(aggregate), "")[0].decode())
    }
    calls = {sample.labels["code"]: sample.value for sample in families["openai_gateway_calls"].samples}
    assert (calls[""], calls["code-0"], calls["other"], sum(calls.values())) == (1, 1, 401, 501)


def test_first_byte_of_an_error_is_no_first_token(aggregate: Aggregate) -> None:
    aggregate.observe(to_record(first_byte_s=2.0))
    aggregate.observe(to_record(first_byte_s=0.001, status=500))
    assert Snapshots(aggregate).snapshot()["last_minute"]["first_byte_p50_ms"] == pytest.approx(2000, rel=0.1)


def test_lost_records_are_shown_and_add_up(aggregate: Aggregate) -> None:
    lost = {"usage_log": 2, "captures": 0}
    snapshots = Snapshots(Aggregate({"policy_model": "m"}, lambda: {"policy_model": STATE}, lambda: dict(lost)))
    assert b'openai_gateway_lost_records_total{where="usage_log"} 2.0' in render(snapshots, "")[0]
    total, other = Totals(1, 0.0, lost=dict(lost)), Totals(2, 0.0, lost={"usage_log": 3})
    total.add(other)
    assert total.lost == {"usage_log": 5, "captures": 0}


def test_past_beyond_the_last_seconds_is_kept_by_the_minute(
    aggregate: Aggregate, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = 1_000_000_020
    for number in range(2 * 3600):
        monkeypatch.setattr(time, "time", lambda number=number: begin + number)
        aggregate.observe(to_record())
    minutes, seconds = aggregate.totals.minutes, aggregate.totals.seconds
    assert len(minutes) == KEPT_MINUTES
    assert {minute.calls for minute in minutes} == {60}
    assert seconds[0].t == minutes[-1].t + 60


def test_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_files_module.tempfile, "gettempdir", lambda: str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / make_folder_name(os.getpid())).symlink_to(elsewhere)
    assert open_shared_files(os.getpid()) is None
    assert list(elsewhere.iterdir()) == []


def test_round_that_fails_is_logged_once_and_the_next_ones_go_on(
    aggregate: Aggregate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots = Snapshots(aggregate)
    files = SharedFiles(tmp_path, os.getpid())
    own = tmp_path / str(os.getpid())
    snapshots.share(files)
    own.unlink()
    aggregate.observe(to_record())
    aggregate.totals.consumption["policy_model", "m-1"] = Consumption(input_tokens=2**70)
    snapshots.publish()
    snapshots.publish()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert not own.exists()
    aggregate.totals.consumption.clear()
    snapshots.publish()
    assert own.exists()
    aggregate.totals.consumption["policy_model", "m-1"] = Consumption(input_tokens=2**70)
    aggregate.observe(to_record())
    snapshots.publish()
    assert len(caplog.records) == 2


def test_resident_bytes_stay_when_they_cant_be_read(aggregate: Aggregate, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(24, "Too many open files")

    aggregate.look()
    before = aggregate.totals.resident_bytes
    assert before > 0
    monkeypatch.setattr("openai_gateway.accounting.aggregate._resident_bytes", fail)
    assert aggregate.look() == {"policy_model": STATE}
    assert aggregate.totals.resident_bytes == before


def test_replayed_calls_count_as_saved_and_not_as_used(aggregate: Aggregate) -> None:
    aggregate.observe(to_record(is_replayed=True, cost_usd=0.0, saved_usd=0.25))
    total, _ = Snapshots(aggregate).total()
    assert (total.saved["policy_model"].calls, total.saved["policy_model"].usd) == (1, 0.25)
    assert not total.consumption
    text = render(Snapshots(aggregate), "text/plain")[0].decode()
    assert 'openai_gateway_replayed_calls_total{server="policy_model"} 1.0' in text
    assert 'openai_gateway_saved_usd_total{server="policy_model"} 0.25' in text
    other = Totals(2, 0.0)
    other.add(total)
    other.add(total)
    assert other.saved["policy_model"].calls == 2
