"""`openai-gateway collect` gone on with: other settings, edited inputs, gzip, parts, background calls."""

from __future__ import annotations

import gzip
import json
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.test_collect import COLLECT, ENVIRON, PRICED, _lines, _read, _run, _start, _stats, _write_rows
from tests.support.processes import Gunicorn, eventually, run_gateway, run_simulator
from tests.support.upstreams import Conversation, run_upstream, to_answer


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with run_simulator(tmp_path_factory.mktemp("simulator"), {"latency_ms": 20}) as running:
        yield running


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, upstream: Gunicorn) -> Iterator[tuple[str, ...]]:
    with run_gateway(tmp_path_factory.mktemp("gateway"), upstream.url, {**PRICED, "max_retries": 0}) as running:
        yield ("--base-url", f"{running.url}/v1", "--price-file", PRICED["price_file"])


def _merge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COLLECT[:3], "merge", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True, timeout=60, check=False)


def test_other_settings_are_refused_unless_they_are_to_be_mixed(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 4)
    assert _run(tmp_path, *target, "--limit", "2").returncode == 0
    other = (*target, "--resume", "--param", "temperature=0.5")
    ended = _run(tmp_path, *other)
    assert (ended.returncode, "(temperature set)" in ended.stderr, "--mix" in ended.stderr) == (2, True, True)
    assert _lines(tmp_path / "o.jsonl") == 2
    ended = _run(tmp_path, *other, "--mix")
    assert (ended.returncode, "mixes answers of different settings" in ended.stderr) == (0, True)
    asked = [row["responses_create_params"].get("temperature") for row in _read(tmp_path / "o.jsonl")]
    assert asked == [None, None, 0.5, 0.5]


def test_edited_input_is_gone_on_with_and_nothing_is_asked_twice(
    tmp_path: Path, upstream: Gunicorn, target: tuple[str, ...]
) -> None:
    _write_rows(tmp_path, 5)
    assert _run(tmp_path, *target, "--param", "metadata={a: b}", "--seeds").returncode == 0
    rows = _read(tmp_path / "p.jsonl")
    edited = [{"responses_create_params": {"input": "new"}}, rows[4], *rows[:3]]
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps(row, indent=None, separators=(", ", " : ")) + "\n" for row in edited)
    )
    requests.post(f"{upstream.url}/sim/reset", timeout=60)
    ended = _run(tmp_path, *target, "--param", "metadata={a: b}", "--seeds", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert "4 rows moved and found again, 1 new or changed, 1 answered row no longer there" in ended.stderr
    assert _stats(upstream)["requests"] == 1
    found = _read(tmp_path / "o.jsonl")
    assert len({row["_ng_task_index"] for row in found}) == 6


def test_gzip_is_read_and_written_and_resumed(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 6)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress((tmp_path / "p.jsonl").read_bytes()))
    command = (*target, "--input", "p.jsonl.gz", "--output", "o.jsonl.gz")
    assert _run(tmp_path, *command, "--limit", "3").returncode == 0
    assert _run(tmp_path, *command, "--resume").returncode == 0
    lines = [json.loads(line) for line in gzip.decompress((tmp_path / "o.jsonl.gz").read_bytes()).splitlines()]
    assert sorted(line["_ng_task_index"] for line in lines) == list(range(6))
    assert (tmp_path / "o_metrics.json").exists()


def test_parts_that_were_killed_and_resumed_make_a_whole(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 60)
    arguments = (*target, "--num-repeats", "2", "--concurrency", "4", "--resume")
    runs = [_start(tmp_path, *arguments, "--shard", f"{number}/3") for number in (1, 2)]
    parts = [tmp_path / f"o_shard-{number}-of-3.jsonl" for number in (1, 2, 3)]
    eventually(lambda: _lines(parts[0]) >= 5)
    runs[0].kill()
    for run in runs:
        run.communicate(timeout=60)
    environ = {**ENVIRON, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    command = [*COLLECT, *arguments, "--shard", "auto"]
    assert (
        subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, timeout=60, check=False).returncode == 0
    )
    names = [path.name for path in parts]
    early = _merge(tmp_path, *names[1:], "--output", "early.jsonl")
    assert (early.returncode, "missing parts of 3: 1" in early.stdout) == (1, True)
    assert "missing 40, doubled 0" in early.stdout
    resumed = _run(tmp_path, *arguments, "--shard", "1/3")
    assert resumed.returncode == 0, resumed.stderr
    merged = _merge(tmp_path, *names, "--output", "whole.jsonl", "--report", "whole.html")
    assert (merged.returncode, "missing 0, doubled 0" in merged.stdout) == (0, True), merged.stdout + merged.stderr
    found = _read(tmp_path / "whole.jsonl")
    assert len(found) == 120
    for row in found:
        assert row["id"] == f"row {row['_ng_task_index']}"
    sums = json.loads((tmp_path / "whole_metrics.json").read_text())
    assert (sums["answers"], sums["calls"]["done"]) == (120, 120)
    # The whole is an output like any other.
    again = _run(tmp_path, *arguments, "--output", "whole.jsonl")
    assert "0 to do, 120 done" in again.stderr
    doubled = _merge(tmp_path, *names, names[0], "--output", "doubled.jsonl")
    assert (doubled.returncode, "doubled 40" in doubled.stdout) == (0, True)


def test_background_responses_are_waited_for(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 3, background=True, metadata={"sim_latency_ms": "1000"})
    ended = _run(tmp_path, *target)
    assert ended.returncode == 0, ended.stderr
    assert [row["response"]["status"] for row in _read(tmp_path / "o.jsonl")] == ["completed"] * 3


def test_background_responses_are_cancelled_when_the_run_is_and_count_as_perhaps_billed(
    tmp_path: Path, upstream: Gunicorn, target: tuple[str, ...]
) -> None:
    _write_rows(tmp_path, 2, background=True, max_output_tokens=1000, metadata={"sim_latency_ms": "600000"})
    requests.post(f"{upstream.url}/sim/reset", timeout=60)
    run = _start(tmp_path, *target)
    eventually(lambda: _stats(upstream)["requests"] >= 4)
    assert run.stderr is not None
    run.send_signal(signal.SIGINT)
    while "Ctrl-C again cancels" not in run.stderr.readline():
        pass
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    cancelled = [call for call in _stats(upstream)["by_path"].items() if call[0].endswith("/cancel")]
    assert sum(count for _, count in cancelled) == 2
    # A bound of 1,000 tokens at $2 a million for each, and the inputs.
    assert 0.004 < json.loads((tmp_path / "o_metrics.json").read_text())["perhaps_billed_usd"] < 0.0042
    assert "or were cancelled" in said
    assert [row["_ng_failure_class"] for row in _read(tmp_path / "o_failures.jsonl")] == ["cancelled"] * 2
    # The allowed cost of later runs sees them, and the rows are not blamed.
    again = _run(tmp_path, *target, "--resume", "--max-cost", "0.005")
    assert (again.returncode, "Stopped by --max-cost" in again.stderr) == (1, True)
    assert "2 to do, 0 done\n" in again.stderr


def test_background_response_that_is_lost_sight_of_counts_as_perhaps_billed(tmp_path: Path) -> None:
    started = {"id": "resp_1", "object": "response", "status": "in_progress", "background": True, "output": []}
    models = b'{"data": [{"id": "gpt-5-mini"}]}'

    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if request.target.endswith("/resp_1"):
                talk.send(to_answer(b'{"error": {"message": "unknown"}}', status="404 Not Found"))
            else:
                talk.send(to_answer(json.dumps(started).encode() if request.method == "POST" else models))

    with run_upstream(script) as gateway:
        _write_rows(tmp_path, 1, background=True, max_output_tokens=1000)
        ended = _run(tmp_path, "--base-url", f"{gateway.url}/v1", "--price-file", PRICED["price_file"])
    assert ended.returncode == 1
    assert 0.002 < json.loads((tmp_path / "o_metrics.json").read_text())["perhaps_billed_usd"] < 0.0021


def test_answers_that_were_cut_off_are_asked_for_again(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 3)
    rows = _read(tmp_path / "p.jsonl")
    rows[1]["responses_create_params"]["max_output_tokens"] = 1
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = _run(tmp_path, *target)
    assert ended.returncode == 0
    assert "1 answer (33 %) reached the bound on their length" in ended.stdout
    cost_usd = json.loads((tmp_path / "o_metrics.json").read_text())["cost_usd"]
    again = _run(tmp_path, *target, "--resume", "--redo", "incomplete", "--param", "max_output_tokens=1000")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("mixes answers of different settings") == 1
    found = _read(tmp_path / "o.jsonl")
    assert sorted(row["_ng_task_index"] for row in found) == [0, 1, 2]
    assert {row["response"]["status"] for row in found} == {"completed"}
    (replaced,) = _read(tmp_path / "o_replaced.jsonl")
    assert replaced["response"]["status"] == "incomplete"
    metrics = json.loads((tmp_path / "o_metrics.json").read_text())
    assert metrics["cost_usd"] > cost_usd
    assert 0 < metrics["replaced_usd"] < cost_usd
    assert again.stdout.count("of answers that --redo replaced") == 1


def test_output_that_is_removed_stops_the_run_and_is_written_again(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 2000)
    run = _start(tmp_path, *target, "--concurrency", "2")
    eventually(lambda: _lines(tmp_path / "o.jsonl") >= 5)
    (tmp_path / "o.jsonl").unlink()
    _said, complained = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "o.jsonl was removed while it was written to" in complained
    done = json.loads((tmp_path / "o_metrics.json").read_text())["calls"]["done"]
    assert _lines(tmp_path / "o.jsonl") == done >= 5


def test_output_that_is_removed_at_the_very_end_is_written_again(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 1, metadata={"sim_latency_ms": "1"})
    (tmp_path / "out").mkdir()
    rows = _read(tmp_path / "p.jsonl")
    rows.append({"responses_create_params": {"input": "late", "metadata": {"sim_latency_ms": "300"}}})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = _start(tmp_path, *target, "--output", "out/o.jsonl")
    eventually(lambda: _lines(tmp_path / "out" / "o.jsonl") == 1)
    shutil.rmtree(tmp_path / "out")
    _said, complained = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "out/o.jsonl was removed while it was written to" in complained
    assert _lines(tmp_path / "out" / "o.jsonl") == 2
    assert json.loads((tmp_path / "out" / "o_settings.json").read_text())["runs"]


def test_answers_that_no_disk_has_room_for_are_kept_beside(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 400, instructions="x" * 1000)
    limits = (20_000, 20_000)
    run = _start(
        tmp_path, *target, "--concurrency", "4", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    )
    _said, complained = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "No space left" in complained
    assert "that did not fit are in" in complained
    rescued = (tmp_path / "o.jsonl.rescued").read_bytes()
    with (tmp_path / "o.jsonl").open("ab") as file:
        file.write(rescued)
    assert _lines(tmp_path / "o.jsonl") == json.loads((tmp_path / "o_metrics.json").read_text())["calls"]["done"] > 4
    ended = _run(tmp_path, *target, "--resume")
    assert (ended.returncode, _lines(tmp_path / "o.jsonl")) == (0, 400)


def test_redo_takes_only_what_it_asks_again(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 3, max_output_tokens=1)
    assert _run(tmp_path, *target).returncode == 0
    before = (tmp_path / "o.jsonl").read_bytes()
    (tmp_path / "other.jsonl").write_text('{"messages": [{"role": "user", "content": "another"}]}\n')
    ended = _run(tmp_path, *target, "--input", "other.jsonl", "--resume", "--redo", "incomplete")
    assert (ended.returncode, "give another --output" in ended.stderr) == (2, True)
    assert (tmp_path / "o.jsonl").read_bytes() == before
    ended = _run(tmp_path, *target, "--limit", "1", "--resume", "--redo", "incomplete")
    assert "1 answer cut off before: asked for again" in ended.stderr
    assert len(_read(tmp_path / "o_replaced.jsonl")) == 1
    assert sorted(row["_ng_task_index"] for row in _read(tmp_path / "o.jsonl")) == [0, 1, 2]


def test_summary_that_nobody_reads_fails_no_run(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 2)
    run = _start(tmp_path, *target)
    assert run.stdout is not None
    run.stdout.close()
    assert run.stderr is not None
    complained = run.stderr.read()
    assert run.wait(60) == 0, complained
    assert "Error" not in complained


class _Page(HTMLParser):
    """What a report holds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_is_one_page_with_plots_failures_and_groups(tmp_path: Path, target: tuple[str, ...]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "meta": {"subject": "<maths>" if task % 2 else "law"},
            "responses_create_params": {"input": f"question {task}"},
        }
        for task in range(10)
    ]
    rows[3]["responses_create_params"]["metadata"] = {"sim_status": "400"}
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = _run(tmp_path, *target, "--report", "out.html", "--group-by", "meta.subject")
    assert ended.returncode == 1
    text = (tmp_path / "out.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.tags.count("svg") == 6
    assert page.links == []
    assert "script" not in page.tags
    assert "maths" not in page.tags
    for said in ("Output tokens", "Cost of an answer", "Latency", "Finish reasons", "completed", "invalid_request"):
        assert said in page.text
    assert "By meta.subject" in page.text
    assert "<maths>" in page.text
    assert "question 3" in page.text


def test_nemo_gyms_tools_find_what_they_read(tmp_path: Path, target: tuple[str, ...]) -> None:
    _write_rows(tmp_path, 3)
    command = [
        *COLLECT[:4],
        *target,
        "+agent_name=simple_agent",
        "+input_jsonl_fpath=p.jsonl",
        "+output_jsonl_fpath=o.jsonl",
        "+num_repeats=2",
        "+num_repeats_add_seed=true",
        "+responses_create_params={temperature: 0.5}",
        "+concurrency=2",
    ]
    ended = subprocess.run(command, cwd=tmp_path, env=ENVIRON, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "no agent is run here" in ended.stderr
    inputs, outputs = _read(tmp_path / "o_materialized_inputs.jsonl"), _read(tmp_path / "o.jsonl")
    keys = [[(row["_ng_task_index"], row["_ng_rollout_index"]) for row in rows] for rows in (inputs, outputs)]
    assert keys[0] == [(task, rollout) for task in range(3) for rollout in range(2)]
    assert sorted(keys[1]) == keys[0]
    for row in (*inputs, *outputs):
        assert row["agent_ref"] == {"name": "simple_agent"}
        assert row["responses_create_params"]["temperature"] == 0.5
        extra = json.loads(row["responses_create_params"]["metadata"]["extra_body"])
        assert extra == {"seed": row["_ng_rollout_index"]}
    (sums,) = json.loads((tmp_path / "o_aggregate_metrics.json").read_text())
    assert sums["agent_ref"] == {"name": "simple_agent"}
    assert sums["key_metrics"]["mean/output_tokens"] == sums["agent_metrics"]["mean/output_tokens"] > 0
    assert [group["_ng_task_index"] for group in sums["group_level_metrics"]] == [0, 1, 2]
    dry = [*command, "+dry_run=true", "+resume_from_cache=true"]
    ended = subprocess.run(dry, cwd=tmp_path, env=ENVIRON, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "6 calls: 0 to do" in ended.stdout) == (0, True)
