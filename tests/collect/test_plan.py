"""What is left to do after earlier runs, and what it may cost; a bad input is told before anything is paid."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.collect.estimate import ASSUMED_OUTPUT_TOKENS, Budget, Estimator
from openai_gateway.collect.marks import DONE, Checksums, Marks
from openai_gateway.collect.plan import MOST_REPEATS, MOST_RETRIES, BadInput, Past, Plan
from openai_gateway.config.prices import Price, PriceTable
from openai_gateway.wire.usage import Report, Usage

PRICES = PriceTable(models={"m": Price(input=1.0, output=10.0)})


def _estimator(bound: int | None = None) -> Estimator:
    return Estimator(PRICES, "m", {"chat": bound})


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    return path


def _rows(count: int) -> list[dict[str, Any]]:
    return [{"messages": [f"question {task}"]} for task in range(count)]


def _entry(task: int, rollout: int, **more: Any) -> dict[str, Any]:
    return {"messages": [f"question {task}"], "_ng_task_index": task, "_ng_rollout_index": rollout, **more}


def _calls(plan: Plan) -> list[tuple[int, int]]:
    return [(call.row.task_index, call.rollout_index) for call in plan.calls()]


def test_repeats_of_a_row_follow_one_another_and_the_limit_counts_rows(tmp_path: Path) -> None:
    plan = Plan(_write(tmp_path / "p.jsonl", _rows(5)), 2, 2, Past())
    assert _calls(plan) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    survey = plan.survey(_estimator())
    assert (survey.rows, survey.calls, survey.to_do) == (2, 4, 4)


def test_done_calls_are_left_out_and_failed_ones_tried_again_three_times(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    answer = {"response": {"usage": {"input_tokens": 10, "output_tokens": 5}, "status": "completed"}}
    _write(output, [_entry(0, 0, **answer), _entry(2, 1, **answer)])
    failed = [_entry(1, 0, _ng_failure_class="upstream_error")] * (MOST_RETRIES + 1)
    failed += [_entry(1, 1, _ng_failure_class="upstream_error")] * MOST_RETRIES
    # These say nothing about their calls.
    failed += [_entry(2, 0, _ng_failure_class="key_refused")] * 10
    failed += [_entry(2, 0, _ng_failure_class="upstream_unreachable")] * 10
    # Failed before it was done.
    failed += [_entry(0, 0, _ng_failure_class="timeout")] * 10
    _write(tmp_path / "o_failures.jsonl", failed)
    past = Past().read(output, _estimator())
    plan = Plan(_write(tmp_path / "p.jsonl", _rows(3)), 2, None, past)
    assert _calls(plan) == [(0, 1), (1, 1), (2, 0)]
    survey = plan.survey(_estimator())
    assert (survey.calls, survey.done, survey.given_up, survey.failed, survey.to_do) == (6, 2, 1, 1, 3)
    assert (past.sums.answers, past.sums.input_tokens, past.sums.output_tokens) == (2, 20, 10)
    assert past.sums.cost_usd == pytest.approx(2 * (10 * 1.0 + 5 * 10.0) / 1e6)


def test_more_repeats_and_more_rows_may_be_asked_for_later(tmp_path: Path) -> None:
    _write(tmp_path / "o.jsonl", [_entry(0, 0), _entry(1, 0)])
    past = Past().read(tmp_path / "o.jsonl", _estimator())
    plan = Plan(_write(tmp_path / "p.jsonl", _rows(3)), 2, None, past)
    assert _calls(plan) == [(0, 1), (1, 1), (2, 0), (2, 1)]


def test_output_of_another_input_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "o.jsonl", [_entry(1, 0)])
    past = Past().read(tmp_path / "o.jsonl", _estimator())
    source = _write(tmp_path / "p.jsonl", [{"messages": ["question 0"]}, {"messages": ["another"]}])
    with pytest.raises(BadInput, match="line 2 asks something else"):
        Plan(source, 1, None, past).survey(_estimator())


def test_row_that_failed_and_was_mended_is_tried_anew(tmp_path: Path) -> None:
    mended = [{"messages": ["question 0"]}, {"messages": ["mended"]}]
    failed = [_entry(task, 0, _ng_failure_class="invalid_request") for task in (0, 1)] * (MOST_RETRIES + 1)
    _write(tmp_path / "o_failures.jsonl", failed)
    source = _write(tmp_path / "p.jsonl", mended)
    plan = Plan(source, 1, None, Past().read(tmp_path / "o.jsonl", _estimator()))
    assert _calls(plan) == [(1, 0)]
    survey = plan.survey(_estimator())
    assert (survey.given_up, survey.failed, survey.to_do) == (1, 0, 1)
    again = {**_entry(1, 0, _ng_failure_class="timeout"), **mended[1]}
    for more, to_do in ((MOST_RETRIES, [(1, 0)]), (MOST_RETRIES + 1, [])):
        _write(tmp_path / "o_failures.jsonl", failed + [again] * more)
        assert _calls(Plan(source, 1, None, Past().read(tmp_path / "o.jsonl", _estimator()))) == to_do


def test_all_bad_rows_are_told_up_to_a_few(tmp_path: Path) -> None:
    source = tmp_path / "p.jsonl"
    source.write_text('{"messages": []}\nx\n\n{}\n' + "y\n" * 50)
    with pytest.raises(BadInput, match=r"line 2 .*; line 4 .*; line 5 .*; \.\.\.$"):
        Plan(source, 1, None, Past()).survey(_estimator())


def test_more_calls_than_memory_holds_are_refused_before_they_are_counted(tmp_path: Path) -> None:
    source = _write(tmp_path / "p.jsonl", _rows(1001))
    with pytest.raises(BadInput, match=r"more than 1,000 rows, .* 100,000,000 calls; lower --num-repeats"):
        Plan(source, MOST_REPEATS, None, Past()).survey(_estimator())
    assert Plan(source, MOST_REPEATS, 2, Past()).survey(_estimator()).calls == 2 * MOST_REPEATS


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_input_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(BadInput, match="holds no rows"):
        Plan(tmp_path / "p.jsonl", 1, None, Past()).survey(_estimator())


def test_two_rows_with_one_task_index_are_told(tmp_path: Path) -> None:
    source = _write(tmp_path / "p.jsonl", [{"messages": [1]}, {"messages": [2], "_ng_task_index": 0}])
    with pytest.raises(BadInput, match="line 2 has the task index 0"):
        Plan(source, 1, None, Past()).survey(_estimator())


@pytest.mark.parametrize(
    ("own", "of_config", "expected"), [(50, 70, 50), (None, 70, 70), (None, None, ASSUMED_OUTPUT_TOKENS)]
)
def test_estimate_takes_the_rows_bound_else_the_configs_else_an_assumption(
    tmp_path: Path, own: int | None, of_config: int | None, expected: int
) -> None:
    row = {"chat_create_params": {"messages": ["x" * 400], **({"max_tokens": own} if own else {})}}
    survey = Plan(_write(tmp_path / "p.jsonl", [row]), 3, None, Past()).survey(_estimator(of_config))
    assert survey.output_tokens == 3 * expected
    assert survey.unbounded == (3 if expected == ASSUMED_OUTPUT_TOKENS else 0)
    assert 300 < survey.input_tokens < 350
    assert survey.cost_usd == pytest.approx((survey.input_tokens + 10 * survey.output_tokens) / 1e6)


def test_unknown_price_makes_an_unknown_cost(tmp_path: Path) -> None:
    estimator = Estimator(PRICES, "another", {})
    survey = Plan(_write(tmp_path / "p.jsonl", _rows(2)), 1, None, Past()).survey(estimator)
    assert (survey.cost_usd, estimator.has_price) == (None, False)


def test_assumption_grows_with_the_longest_answer(tmp_path: Path) -> None:
    estimator = _estimator()
    row = next(iter(Plan(_write(tmp_path / "p.jsonl", _rows(1)), 1, None, Past()).calls())).row
    estimator.to_cost_usd(Report(Usage(1, 9000), model="m"))
    assert estimator.output_tokens(row) == 9000


def test_budget_counts_what_is_in_flight() -> None:
    budget = Budget(1.0, spent_usd=0.25)
    assert budget.may_take(0.75)
    budget.reserve(0.5)
    assert not budget.may_take(0.5)
    assert budget.may_take(0.25)
    budget.settle(0.5, 0.125)
    assert budget.may_take(0.5)
    assert not budget.may_take(0.75)
    assert Budget(None).may_take(1e9)


def test_marks_tell_calls_apart_and_count_failures() -> None:
    marks = Marks()
    assert marks.get(5, 0) == 0
    for _ in range(300):
        marks.fail(5, 1)
    assert (marks.get(5, 1), marks.get(5, 0), marks.get(5 + 512, 1)) == (254, 0, 0)
    assert marks.finish(5, 1)
    assert not marks.finish(5, 1)
    marks.fail(5, 1)
    assert marks.get(5, 1) == DONE


def test_a_million_calls_take_a_byte_each_and_their_tasks_four() -> None:
    marks, checksums = Marks(), Checksums()
    tracemalloc.start()
    for task in range(1_000_000):
        marks.finish(task, 0)
    of_marks = tracemalloc.get_traced_memory()[0]
    for task in range(0, 1_000_000, 100):
        checksums.put(task, 0xFFFFFFFF)
    of_both = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert of_marks < 2_000_000
    assert of_both < 7_000_000
    assert checksums.get(100) == 0xFFFFFFFF


def test_input_of_any_length_is_read_in_constant_memory(tmp_path: Path) -> None:
    source = tmp_path / "p.jsonl"
    line = json.dumps({"messages": ["x" * 400]}) + "\n"
    with source.open("w") as file:
        file.writelines(line for _ in range(30_000))
    plan = Plan(source, 1, None, Past())
    tracemalloc.start()
    assert plan.survey(_estimator()).to_do == 30_000
    assert sum(1 for _ in plan.calls()) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The file has 12 MB.
    assert peak < 3_000_000
