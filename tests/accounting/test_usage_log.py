"""The usage log: whole lines only, whatever happens to the file; and its sums."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import gzip
import io
import json
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from openai_gateway.accounting.usage_log import UsageLog
from openai_gateway.cli.main import main
from openai_gateway.wire.call import CallRecord
from openai_gateway.wire.usage import Usage
from tests.support.records import to_record


def _records(path: Path) -> list[CallRecord]:
    return [msgspec.json.decode(line, type=CallRecord) for line in path.read_bytes().splitlines()]


def test_line_is_the_record(tmp_path: Path) -> None:
    record = to_record(rollout_id="1-2", retries=("429",), client_request_id='a"b\n')
    UsageLog(str(tmp_path / "u.jsonl")).observe(record)
    assert _records(tmp_path / "u.jsonl") == [record]


def test_calls_without_a_valid_key_leave_no_line_and_those_that_the_upstream_refuses_do(tmp_path: Path) -> None:
    """Anybody could fill the disk with them: 33 MB for 100,000."""
    log = UsageLog(str(tmp_path / "u.jsonl"))
    refused = to_record(status=401, outcome="failed", error_code="invalid_api_key", attempts=0)
    by_upstream = to_record(status=401, error_code="invalid_api_key", attempts=1)
    by_breaker = to_record(status=401, outcome="failed", error_code="upstream_key_refused", attempts=0)
    for record in (refused, by_upstream, by_breaker):
        log.observe(record)
    assert _records(tmp_path / "u.jsonl") == [by_upstream, by_breaker]


def test_torn_last_line_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    path.write_bytes(b'{"time": 1, "ser')
    UsageLog(str(path)).observe(to_record())
    torn, whole = path.read_bytes().splitlines()
    assert torn == b'{"time": 1, "ser'
    assert msgspec.json.decode(whole, type=CallRecord) == to_record()


def test_moved_file_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_gateway.accounting.usage_log._CHECK_S", 0.0)
    path = tmp_path / "u.jsonl"
    usage_log = UsageLog(str(path))
    usage_log.observe(to_record(request_id="1"))
    path.rename(tmp_path / "u.jsonl.1")
    usage_log.observe(to_record(request_id="2"))
    assert [record.request_id for record in _records(path)] == ["2"]
    path.unlink()
    usage_log.observe(to_record(request_id="3"))
    assert [record.request_id for record in _records(path)] == ["3"]


def test_large_file_is_rotated_once_by_whoever_sees_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_gateway.accounting.usage_log._CHECK_S", 0.0)
    path = tmp_path / "u.jsonl"
    usage_logs = [UsageLog(str(path), most_bytes=3000) for _ in range(2)]
    for number in range(40):
        usage_logs[number % 2].observe(to_record(request_id=str(number)))
    files = sorted(tmp_path.iterdir())
    assert 2 <= len(files) < 15
    assert sorted(int(record.request_id) for file in files for record in _records(file)) == list(range(40))


def test_symbolic_link_is_never_rotated_nor_what_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("openai_gateway.accounting.usage_log._CHECK_S", 0.0)
    (tmp_path / "disk").mkdir()
    path = tmp_path / "u.jsonl"
    path.symlink_to(tmp_path / "disk" / "u.jsonl")
    usage_log = UsageLog(str(path), most_bytes=1000)
    for number in range(5):
        usage_log.observe(to_record(request_id=str(number)))
    assert path.is_symlink()
    assert [file.name for file in (tmp_path / "disk").iterdir()] == ["u.jsonl"]
    assert len(_records(path)) == 5
    assert len([line for line in caplog.records if "symbolic link" in line.getMessage()]) == 1


def test_file_whose_lock_is_held_is_rotated_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_gateway.accounting.usage_log._CHECK_S", 0.0)
    path = tmp_path / "u.jsonl"
    usage_log = UsageLog(str(path), most_bytes=10)
    usage_log.observe(to_record())
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        usage_log.observe(to_record())
    assert len(list(tmp_path.iterdir())) == 1
    usage_log.observe(to_record())
    assert len(list(tmp_path.iterdir())) == 2


def test_lost_calls_are_counted_and_told_once_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "later"
    usage_log = UsageLog(str(folder / "u.jsonl"))
    for _ in range(3):
        usage_log.observe(to_record())
    assert usage_log.lost == 3
    folder.mkdir()
    usage_log.observe(to_record())
    usage_log.observe(to_record())
    told = [line.getMessage() for line in caplog.records]
    assert (len(told), usage_log.lost) == (2, 3)
    assert told[1] == f"the usage log {folder / 'u.jsonl'} is written again; it lacks 3 calls"


def test_file_that_cant_be_written_costs_a_warning_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    usage_log = UsageLog(str(tmp_path / "no" / "u.jsonl"))
    with caplog.at_level(logging.ERROR):
        usage_log.observe(to_record())
        usage_log.observe(to_record())
    assert len(caplog.records) == 1
    assert "usage log" in caplog.text


def test_full_disk_costs_the_line_and_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "u.jsonl"
    usage_log = UsageLog(str(path))
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10] if len(data) > 10 else data))
    usage_log.observe(to_record())
    monkeypatch.undo()
    usage_log.observe(to_record(request_id="next"))
    assert msgspec.json.decode(path.read_bytes().splitlines()[-1], type=CallRecord).request_id == "next"


@contextlib.contextmanager
def _most_file_bytes(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_every_other_line_of_every_worker_whole(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    first, second = UsageLog(str(path)), UsageLog(str(path))
    first.observe(to_record(request_id="1"))
    second.observe(to_record(request_id="2"))
    with _most_file_bytes(path.stat().st_size + 10):
        first.observe(to_record(request_id="lost"))
    second.observe(to_record(request_id="3"))
    first.observe(to_record(request_id="4"))
    assert [record.request_id for record in _records(path)] == ["1", "2", "3", "4"]


def test_line_left_open_is_ended_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "u.jsonl"
    usage_log = UsageLog(str(path))
    usage_log.observe(to_record(request_id="1"))

    def fail(fd: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", fail)
    with _most_file_bytes(path.stat().st_size + 10):
        usage_log.observe(to_record(request_id="lost"))
    usage_log.observe(to_record(request_id="2"))
    lines = path.read_bytes().splitlines()
    assert len(lines[1]) == 10
    assert [msgspec.json.decode(line, type=CallRecord).request_id for line in (lines[0], lines[2])] == ["1", "2"]


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_log_that_is_no_regular_file_costs_a_warning(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "u.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    usage_log = UsageLog(str(path))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        usage_log.observe(to_record())
    assert len(caplog.records) == 1
    assert "no regular file" in caplog.text
    assert len(os.listdir("/proc/self/fd")) == before


LINES = [
    to_record(model="a", rollout_id="1-0"),
    to_record(model="a", rollout_id="1-1", retries=("429", "500"), time=1_700_003_600.0),
    to_record(model="b", usage=None, cost_usd=None, outcome="client_gone", status=None),
    to_record(model="b", cost_usd=None),
    to_record(model=None, usage=None, cost_usd=None, is_metered=False, outcome="failed", status=502),
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "u.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in LINES) + b'{"torn\n')
    return path


def _run(*arguments: str) -> str:
    ended = CliRunner().invoke(main, ["usage", *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_cost_of_a_few_calls_is_shown_in_millionths(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    path.write_bytes(msgspec.json.encode(to_record(model="a", cost_usd=0.000049)) + b"\n")
    assert _run(str(path)).splitlines()[-1].split()[-1] == "0.000049"


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("model", {"a": 2, "b": 2, "unknown": 1}),
        ("rollout", {"1-0": 1, "1-1": 1, "-": 3}),
        ("hour", {"2023-11-14T22:00Z": 4, "2023-11-14T23:00Z": 1}),
        ("status", {"200": 3, "client_gone": 1, "502": 1}),
        ("server", {"policy_model": 5}),
        ("api", {"responses": 5}),
    ],
)
def test_sums_by(log: Path, by: str, keys: dict[str, int]) -> None:
    output = _run(str(log), "--by", by, "--format", "json")
    found = json.loads(output[output.index("{\n") :])
    assert {key: value["calls"] for key, value in found["sums"].items()} == keys
    total = found["total"]
    assert (total["calls"], total["completed"], total["failed"], total["client_gone"]) == (5, 3, 1, 1)
    assert (total["input_tokens"], total["unknown_usage"], total["unknown_cost"]) == (300, 1, 2)
    assert total["cost_usd"] == pytest.approx(0.5)
    assert found["torn_lines"] == 1


def test_table_says_what_is_unknown_and_reads_compressed_files(log: Path) -> None:
    packed = log.with_suffix(".gz")
    packed.write_bytes(gzip.compress(log.read_bytes()))
    table = _run(str(log), str(packed))
    assert "skipped 2 lines" in table
    assert "calls have no known price" in table
    lines = {line.split()[0]: line.split() for line in table.splitlines() if line.strip()}
    assert lines["total"][1] == "10"
    assert lines["b"][-1] == "unknown"


def test_csv_has_a_row_for_each_key(log: Path) -> None:
    output = _run(str(log), "--by", "rollout", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(output[output.index("rollout,") :])))
    assert [row["rollout"] for row in rows] == ["-", "1-0", "1-1"]
    assert rows[2]["retries"] == "2"


def test_missing_file_is_one_line_with_code_2() -> None:
    ended = CliRunner().invoke(main, ["usage", "nowhere.jsonl"])
    assert ended.exit_code == 2
    assert "nowhere.jsonl" in ended.output


UNKNOWN_LINES = [
    to_record(model="none", usage=None, cost_usd=None),
    to_record(model="none", usage=None, cost_usd=None, outcome="failed"),
    to_record(model="none", usage=None, cost_usd=None, outcome="client_gone", status=None, is_metered=False),
    to_record(
        model="none", usage=None, cost_usd=None, outcome="client_gone", status=None, is_metered=False, attempts=0
    ),
    to_record(model="unpriced", cost_usd=None, usage=Usage(0, 7)),
    to_record(model="free", cost_usd=0.0),
]


def _write(path: Path, records: list[CallRecord]) -> str:
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    return str(path)


def test_what_no_call_told_is_null_and_empty_and_unknown_never_zero(tmp_path: Path) -> None:
    log = _write(tmp_path / "u.jsonl", UNKNOWN_LINES)
    sums = json.loads(_run(log, "--format", "json"))["sums"]
    none, unpriced, free = sums["none"], sums["unpriced"], sums["free"]
    tokens = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    assert [none[name] for name in tokens] == [None] * 4
    assert (none["cost_usd"], none["unknown_usage"], none["unknown_cost"]) == (None, 3, 3)
    assert [unpriced[name] for name in tokens] == [0, None, 7, None]
    assert (unpriced["cost_usd"], unpriced["unknown_usage"], unpriced["unknown_cost"]) == (None, 0, 1)
    assert (free["cost_usd"], free["unknown_cost"]) == (0.0, 0)
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(_run(log, "--format", "csv")))}
    assert (rows["none"]["input_tokens"], rows["none"]["cost_usd"]) == ("", "")
    assert (rows["unpriced"]["input_tokens"], rows["free"]["cost_usd"]) == ("0", "0.0")
    table = {line.split()[0]: line.split() for line in _run(log).splitlines() if line.strip()}
    assert table["none"][-5:] == ["unknown"] * 5
    assert table["free"][-1] == "0.0000"


def test_lines_that_break_a_reader_are_torn_ones(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    _write(path, [to_record(), to_record(time=1e300)])
    with path.open("ab") as file:
        file.write(b"[" * 100_000 + b"]" * 100_000 + b"\n" + b'{"time": 1, "x": ' + b"[" * 100_000 + b'\n{"\xff": 1}\n')
    output = _run(str(path), "--by", "hour", "--format", "json")
    found = json.loads(output[output.index("{\n") :])
    assert (found["total"]["calls"], found["torn_lines"]) == (1, 4)


@pytest.mark.parametrize("content", [b"", b"\n", b"PK\x03\x04\n[]\n{}\n"])
def test_file_without_any_record_is_one_line_with_code_1(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "u.jsonl").write_bytes(content)
    ended = CliRunner().invoke(main, ["usage", str(tmp_path / "u.jsonl")])
    assert ended.exit_code == 1
    assert len(ended.output.splitlines()) == 1
    assert "no calls" in ended.output


def test_cut_gz_file_is_one_line_with_code_1(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl.gz"
    path.write_bytes(gzip.compress(msgspec.json.encode(to_record()) + b"\n")[:-12])
    ended = CliRunner().invoke(main, ["usage", str(path)])
    assert ended.exit_code == 1
    assert len(ended.output.splitlines()) == 1


def test_table_escapes_what_a_terminal_would_act_on(tmp_path: Path) -> None:
    table = _run(_write(tmp_path / "u.jsonl", [to_record(model="\x1b[2Jm\nx é")]))
    assert "\\x1b[2Jm\\nx é" in table
    assert "\x1b" not in table
