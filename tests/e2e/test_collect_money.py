"""`openai-gateway collect` against upstreams that cost more than was thought: what is spent stays within bounds."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from tests.e2e.test_collect import PRICED, _lines, _read, _run, _write_rows
from tests.support.processes import write_config
from tests.support.upstreams import Conversation, Script, run_upstream, to_answer


def _response(output_tokens: int, **more: Any) -> bytes:
    usage = {"input_tokens": 20, "output_tokens": output_tokens, "total_tokens": 20 + output_tokens}
    text = [{"type": "output_text", "text": "ok"}]
    output = [{"type": "message", "role": "assistant", "content": text}]
    answer = {
        "id": "r",
        "object": "response",
        "status": "completed",
        "model": "gpt-5",
        "output": output,
        "usage": usage,
    }
    return json.dumps({**answer, **more}).encode()


def _answer_with(body: bytes, most_at_a_time: list[int]) -> Script:
    """Return a script that answers each POST after a moment, and keeps in the list how many there were at a time."""
    lock, under_way = threading.Lock(), [0]

    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if request.method != "POST":
                talk.send(to_answer(b'{"data": []}'))
                continue
            with lock:
                under_way[0] += 1
                most_at_a_time[0] = max(most_at_a_time[0], under_way[0])
            time.sleep(0.1)
            with lock:
                under_way[0] -= 1
            talk.send(to_answer(body))

    return script


def _metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "o_metrics.json").read_text())
    return found


def test_max_cost_holds_for_answers_without_a_bound_over_several_runs(tmp_path: Path) -> None:
    most = [0]
    with run_upstream(_answer_with(_response(30_000), most)) as upstream:
        config = str(write_config(tmp_path, upstream.url, {**PRICED, "openai_model": "gpt-5"}))
        _write_rows(tmp_path, 100)
        first = _run(tmp_path, "--config", config, "--max-cost", "1")
        assert first.returncode == 1
        assert "Stopped by --max-cost" in first.stderr
        assert "calls in flight may exceed it" in first.stderr
        # An answer costs $0.30, of which nobody knew: few began before the first ones told.
        assert most[0] <= 3
        assert 0.6 <= _metrics(tmp_path)["cost_usd"] <= 1
        again = _run(tmp_path, "--config", config, "--max-cost", "1", "--resume")
        assert again.returncode == 1
        assert _metrics(tmp_path)["cost_usd"] <= 1


def test_max_cost_counts_answers_of_unknown_cost_as_estimated_and_says_so(tmp_path: Path) -> None:
    body = _response(30_000, model="a model without a price")
    with run_upstream(_answer_with(body, [0])) as upstream:
        config = str(write_config(tmp_path, upstream.url, {**PRICED, "openai_model": "gpt-5"}))
        _write_rows(tmp_path, 100)
        for more in ((), ("--resume",), ("--resume",)):
            ended = _run(tmp_path, "--config", config, "--max-cost", "1", *more)
            assert ended.returncode == 1
        assert "estimated, of answers of unknown cost" in ended.stdout
        found = _metrics(tmp_path)
        assert found["cost_usd"] is None
        assert 0.6 <= found["estimated_usd"] <= 1.1
        assert _lines(tmp_path / "o.jsonl") <= 3


def test_calls_that_time_out_are_made_twice_and_count_as_perhaps_billed(tmp_path: Path) -> None:
    calls = []

    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if request.method == "POST":
                calls.append(request)
                talk.wait_until_closed()
                return
            talk.send(to_answer(b'{"data": []}'))

    with run_upstream(script) as upstream:
        config = str(write_config(tmp_path, upstream.url, PRICED))
        _write_rows(tmp_path, 2, max_output_tokens=1000)
        ended = _run(tmp_path, "--config", config, "--timeout", "0.5", "--max-cost", "0.0085")
    assert ended.returncode == 1
    assert len(calls) == 4
    failures = _read(tmp_path / "o_failures.jsonl")
    assert [failure["_ng_failure_class"] for failure in failures] == ["timeout", "timeout"]
    found = _metrics(tmp_path)
    # Twice a bound of 1,000 tokens at $2 a million, for each of two rows.
    assert 0.008 < found["perhaps_billed_usd"] < 0.0085
    assert "perhaps billed, of calls that timed out" in ended.stdout
    assert found["this_run"]["retries"] == {"upstream_timeout": 2}
    # The allowed cost sees them: nothing more is begun.
    again = _run(tmp_path, "--config", config, "--timeout", "0.5", "--max-cost", "0.0085", "--resume")
    assert "Stopped by --max-cost" in again.stderr
    assert len(calls) == 4


def test_call_whose_gateway_ended_before_it_answered_is_sent_again_and_counts_as_perhaps_billed(tmp_path: Path) -> None:
    lost = iter([True])

    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if request.method == "POST" and next(lost, False):
                return
            is_call = request.method == "POST"
            talk.send(to_answer(_response(10) if is_call else b'{"data": [{"id": "gpt-5-mini"}]}'))

    with run_upstream(script) as gateway:
        _write_rows(tmp_path, 1, max_output_tokens=1000)
        ended = _run(tmp_path, "--base-url", f"{gateway.url}/v1", "--price-file", PRICED["price_file"])
        assert ended.returncode == 0, ended.stderr
        assert sum(request.method == "POST" for request in gateway.requests) == 2
    # A bound of 1,000 tokens at $2 a million, and the input.
    assert 0.002 < _metrics(tmp_path)["perhaps_billed_usd"] < 0.0021


def test_attempts_that_timed_out_before_an_answer_came_still_count_in_later_runs(tmp_path: Path) -> None:
    calls = []

    def script(talk: Conversation) -> None:
        while (request := talk.read_request()) is not None:
            if request.method == "POST":
                calls.append(request)
                if len(calls) == 1:
                    talk.wait_until_closed()
                    return
                talk.send(to_answer(_response(10, model="gpt-5-mini")))
                continue
            talk.send(to_answer(b'{"data": []}'))

    with run_upstream(script) as upstream:
        config = str(write_config(tmp_path, upstream.url, PRICED))
        _write_rows(tmp_path, 2, max_output_tokens=1000)
        first = _run(tmp_path, "--config", config, "--timeout", "1", "--max-cost", "0.005", "--limit", "1")
        assert first.returncode == 0, first.stderr
        lost_usd = _metrics(tmp_path)["perhaps_billed_usd"]
        assert 0.002 < lost_usd < 0.0025
        (row,) = _read(tmp_path / "o.jsonl")
        assert row["_ng_perhaps_billed_usd"] == lost_usd
        again = _run(tmp_path, "--config", config, "--timeout", "1", "--max-cost", "0.004", "--resume")
    assert again.returncode == 1
    assert "Stopped by --max-cost" in again.stderr
    assert _metrics(tmp_path)["perhaps_billed_usd"] == lost_usd
    assert len(calls) == 2


def test_bounded_rows_say_beforehand_what_they_cost_at_most(tmp_path: Path) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9", PRICED)
    _write_rows(tmp_path, 100, max_output_tokens=1000, instructions="x" * 4000)
    told = _run(tmp_path, "--config", str(config), "--max-cost", "0.1", "--dry-run").stdout
    assert "stops before $0.1000, at most $0.1" in told
    assert float(told.rpartition("at most $")[2].split()[0]) > 0.1


def test_pictures_are_told_to_be_counted_at_a_guess(tmp_path: Path) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9", PRICED)
    picture = {"type": "input_image", "image_url": f"data:image/png;base64,{'A' * 4000}"}
    row = {"responses_create_params": {"input": [{"role": "user", "content": [picture]}], "max_output_tokens": 100}}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    told = _run(tmp_path, "--config", str(config), "--max-cost", "0.1", "--dry-run").stdout
    assert "(4 bytes each, each picture 1,200)" in told
    assert "if each byte is a token and each picture 1,200" in told


def test_max_cost_holds_for_pictures_that_cost_far_more_than_assumed(tmp_path: Path) -> None:
    most = [0]
    usage = {"input_tokens": 37_000, "output_tokens": 20, "total_tokens": 37_020}
    picture = {"type": "input_image", "image_url": "https://example.org/a.png"}
    row = {"responses_create_params": {"input": [{"role": "user", "content": [picture]}], "max_output_tokens": 100}}
    (tmp_path / "p.jsonl").write_text((json.dumps(row) + "\n") * 100)
    with run_upstream(_answer_with(_response(20, model="gpt-5-mini", usage=usage), most)) as upstream:
        config = str(write_config(tmp_path, upstream.url, PRICED))
        for more in ((), ("--resume",)):
            ended = _run(tmp_path, "--config", config, "--max-cost", "0.1", *more)
            assert (ended.returncode, "Stopped by --max-cost" in ended.stderr) == (1, True)
            # 37,000 tokens at $0.25 a million each, of which 1,200 were assumed until the first answer told.
            assert 0.08 <= _metrics(tmp_path)["cost_usd"] <= 0.1


def test_call_that_waited_for_what_pictures_cost_begins_only_if_that_leaves_room(tmp_path: Path) -> None:
    usage = {"input_tokens": 37_000, "output_tokens": 20, "total_tokens": 37_020}
    picture = {"type": "input_image", "image_url": "https://example.org/a.png"}
    row = {"responses_create_params": {"input": [{"role": "user", "content": [picture]}], "max_output_tokens": 100}}
    (tmp_path / "p.jsonl").write_text((json.dumps(row) + "\n") * 4)
    with run_upstream(_answer_with(_response(20, model="gpt-5-mini", usage=usage), [0])) as upstream:
        config = str(write_config(tmp_path, upstream.url, PRICED))
        # One such call costs $0.0093, and was thought to cost $0.0005.
        assert _run(tmp_path, "--config", config, "--max-cost", "0.012").returncode == 1
    assert len(upstream.requests) == 1


def test_tier_without_a_price_is_refused_with_max_cost(tmp_path: Path) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9", PRICED)
    _write_rows(tmp_path, 2, service_tier="express")
    ended = _run(tmp_path, "--config", str(config), "--max-cost", "1")
    assert (ended.returncode, "service tier 'express'" in ended.stderr) == (2, True)
