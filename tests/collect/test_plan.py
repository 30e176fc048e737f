"""What is left to do after earlier runs, and what it may cost; a bad input is told before anything is paid."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.collect.budget import Budget
from openai_gateway.collect.estimate import ASSUMED_OUTPUT_TOKENS, Claim, Estimator
from openai_gateway.collect.marks import DONE, Checksums, Marks
from openai_gateway.collect.past import Past
from openai_gateway.collect.plan import MOST_REPEATS, MOST_RETRIES, BadInput, Plan, Survey
from openai_gateway.collect.shards import Shard
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
    with pytest.raises(BadInput, match="asks nothing that the output has an answer to"):
        Plan(source, 1, None, past).survey(_estimator())


def _plan_after(tmp_path: Path, answered: list[int], rows: list[dict[str, Any]], **more: Any) -> tuple[Plan, Survey]:
    """Return the plan for rows and an output that has answers to the questions of some numbers."""
    _write(tmp_path / "o.jsonl", [_entry(task, 0) for task in answered])
    past = Past().read(tmp_path / "o.jsonl", _estimator())
    plan = Plan(_write(tmp_path / "p.jsonl", rows), 1, None, past, **more)
    return plan, plan.survey(_estimator())


@pytest.mark.parametrize(
    ("edit", "to_do", "moved", "new", "orphans"),
    [
        pytest.param(lambda rows: [{"messages": ["first"]}, *rows], [6], 6, 1, 0, id="a row put in at the top"),
        pytest.param(lambda rows: [*rows, {"messages": ["last"]}], [6], 0, 0, 0, id="a row put in at the end"),
        pytest.param(lambda rows: rows[1:], [], 5, 0, 1, id="a row taken out"),
        pytest.param(lambda rows: rows[::-1], [], 6, 0, 0, id="rows turned round"),
        pytest.param(lambda rows: [{"messages": ["new"]}, *rows[1:]], [6], 0, 1, 1, id="a row changed"),
        pytest.param(lambda rows: [rows[0], rows[0], *rows[1:]], [6], 5, 1, 0, id="a row doubled"),
    ],
)
def test_rows_keep_their_answers_wherever_they_stand_now(
    tmp_path: Path, edit: Any, to_do: list[int], moved: int, new: int, orphans: int
) -> None:
    plan, survey = _plan_after(tmp_path, list(range(6)), edit(_rows(6)))
    assert [task for task, _ in _calls(plan)] == to_do
    found = survey.matches
    assert (found.moved, found.new, found.orphans) == (moved, new, orphans)
    asked: dict[bytes, int] = {}
    for call in plan.all_calls():
        asked.setdefault(bytes(call.row.fields["messages"]), call.row.task_index)
    for task in range(6):
        assert asked.get(b'["question %d"]' % task, task) == task


def test_row_that_moved_while_few_were_answered_is_not_asked_again(tmp_path: Path) -> None:
    plan, _ = _plan_after(tmp_path, [5], _rows(6)[1:])
    assert [task for task, _ in _calls(plan)] == [0, 1, 2, 3]
    plan, _ = _plan_after(tmp_path, [5], [{"messages": ["new"]}, *_rows(6)])
    calls = _calls(plan)
    assert len(calls) == len(set(calls)) == 6
    assert (5, 0) not in calls


def test_equal_json_is_the_same_question(tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text(
        '{"chat_create_params": {"messages": ["caf\\u00e9"],  "n": 1}, "_ng_task_index": 0, "_ng_rollout_index": 0}\n'
    )
    past = Past().read(tmp_path / "o.jsonl", _estimator())
    source = _write(tmp_path / "p.jsonl", [{"chat_create_params": {"n": 1, "messages": ["caf\u00e9"]}}])
    assert _calls(Plan(source, 1, None, past)) == []


def test_shards_together_make_each_call_once_with_its_own_index(tmp_path: Path) -> None:
    source = _write(tmp_path / "p.jsonl", _rows(10))
    plans = [Plan(source, 2, None, Past(), shard=Shard(number, 3)) for number in (1, 2, 3)]
    found = [call for plan in plans for call in _calls(plan)]
    assert sorted(found) == [(task, rollout) for task in range(10) for rollout in range(2)]
    assert {task % 3 for task, _ in _calls(plans[1])} == {1}
    assert [plan.survey(_estimator()).rows for plan in plans] == [4, 3, 3]
    assert plans[0].survey(_estimator()).all_rows == 10


def test_shard_of_an_input_that_was_edited_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="of other shards now"):
        _plan_after(tmp_path, [0, 2, 4], [*_rows(2), {"messages": ["new"]}, *_rows(6)[2:]], shard=Shard(1, 2))


def test_nothing_is_held_against_rows_of_which_none_was_ever_answered(tmp_path: Path) -> None:
    failed = [_entry(task, 0, _ng_failure_class="invalid_request") for task in range(10)] * 5
    _write(tmp_path / "o_failures.jsonl", failed)
    source = _write(tmp_path / "p.jsonl", _rows(10))
    assert len(_calls(Plan(source, 1, None, Past().read(tmp_path / "o.jsonl", _estimator())))) == 10
    _write(tmp_path / "o.jsonl", [_entry(0, 0)])
    assert _calls(Plan(source, 1, None, Past().read(tmp_path / "o.jsonl", _estimator()))) == []


def test_unknown_costs_and_what_is_perhaps_billed_count_as_spent(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1000}
    answers: list[dict[str, Any]] = [{"model": "without a price", "usage": usage}, {"choices": []}]
    _write(tmp_path / "o.jsonl", [_entry(task, 0, response=answer) for task, answer in enumerate(answers)])
    lost = {"perhaps_billed_usd": 0.25}
    _write(tmp_path / "o_failures.jsonl", [_entry(3, 0, _ng_failure_class="timeout", _ng_failure=lost)])
    past = Past().read(tmp_path / "o.jsonl", _estimator())
    assert past.sums.cost_usd == 0
    assert past.sums.perhaps_billed_usd == 0.25
    # The first at the price of the model that was asked, the second as long as the answers so far.
    assert past.sums.estimated_usd == pytest.approx(2 * (10 + 10 * 1000) / 1e6, rel=0.1)
    assert past.sums.spent_usd == past.sums.estimated_usd + 0.25


def test_earlier_answer_that_does_not_tell_its_length_is_thought_no_longer_than_its_bound(tmp_path: Path) -> None:
    asked = {"chat_create_params": {"messages": ["x"], "max_tokens": 50}, "_ng_task_index": 0, "_ng_rollout_index": 0}
    _write(tmp_path / "o.jsonl", [{**asked, "response": {"choices": []}}])
    past = Past().read(tmp_path / "o.jsonl", _estimator())
    assert past.sums.estimated_usd == pytest.approx(10 * 50 / 1e6, rel=0.1)


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


def test_few_answers_are_expected_to_be_as_long_as_the_longest(tmp_path: Path) -> None:
    estimator = _estimator()
    row = next(iter(Plan(_write(tmp_path / "p.jsonl", _rows(1)), 1, None, Past()).calls())).row
    estimator.compute_cost_usd(Report(Usage(1, 9000), model="m"))
    assert 9000 <= estimator.output_tokens(row) <= 9000 * 1.1


def test_many_answers_are_expected_as_95_percent_of_those_to_inputs_of_the_same_size_are(tmp_path: Path) -> None:
    estimator = _estimator()
    row = next(iter(Plan(_write(tmp_path / "p.jsonl", _rows(1)), 1, None, Past()).calls())).row
    for number in range(100):
        estimator.compute_cost_usd(Report(Usage(row.input_tokens, 50_000 if number < 4 else 100), model="m"))
        estimator.compute_cost_usd(Report(Usage(1_000_000, 90_000), model="m"))
    assert 100 <= estimator.output_tokens(row) <= 110
    for _ in range(10):
        estimator.compute_cost_usd(Report(Usage(row.input_tokens, 50_000), model="m"))
    assert estimator.output_tokens(row) >= 50_000


def test_answer_that_does_not_tell_its_length_is_thought_no_longer_than_its_bound() -> None:
    estimator = _estimator()
    without_usage = Report(None, model="m")
    assert estimator.guess_usd(without_usage, 100, 50) == pytest.approx((100 + 10 * 50) / 1e6)
    assert estimator.guess_usd(without_usage, 100, None) == pytest.approx((100 + 10 * ASSUMED_OUTPUT_TOKENS) / 1e6)


def test_budget_counts_what_is_in_flight() -> None:
    budget = Budget(1.0, _estimator(), spent_usd=0.25)
    assert budget.may_take(Claim(0.75))
    budget.reserve(Claim(0.5))
    assert not budget.may_take(Claim(0.5))
    assert budget.may_take(Claim(0.25))
    budget.settle(Claim(0.5), 0.125)
    assert budget.may_take(Claim(0.5))
    assert not budget.may_take(Claim(0.75))
    assert Budget(None, _estimator()).may_take(Claim(1e9))


def test_what_is_set_aside_for_unbounded_calls_follows_the_answers() -> None:
    estimator = _estimator()
    budget = Budget(1.0, estimator)
    claim = Claim(0.0, usd_per_token=1e-5, size=4)
    assert budget.knows_enough(claim)
    budget.reserve(claim)
    assert not budget.knows_enough(claim), "another one began before any answer told what a call costs"
    assert budget.sum_up_reserved_usd() == pytest.approx(ASSUMED_OUTPUT_TOKENS * 1e-5)
    cost_usd = estimator.compute_cost_usd(Report(Usage(10, 60_000), model="m"))
    assert cost_usd is not None
    budget.settle(claim, cost_usd)
    assert budget.knows_enough(claim)
    budget.reserve(claim)
    assert budget.sum_up_reserved_usd() >= 0.6
    assert budget.knows_enough(claim)
    assert not budget.may_take(claim)


@pytest.mark.parametrize("bound", [100, None])
def test_what_is_set_aside_for_calls_with_pictures_follows_the_answers(tmp_path: Path, bound: int | None) -> None:
    """Of pictures that grow from one to the next, those in flight were counted as what was known when they began."""
    picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    row = {"messages": [{"role": "user", "content": [picture]}]}
    call = next(iter(Plan(_write(tmp_path / "p.jsonl", [row]), 1, None, Past()).calls()))
    estimator = _estimator(bound)
    budget, claim = Budget(1.0, estimator), estimator.make_claim(call.row)
    budget.reserve(claim)
    assert not budget.knows_enough(claim)
    # Of the input alone: what answers are long is another matter.
    answer_usd = 10 * (bound or ASSUMED_OUTPUT_TOKENS) / 1e6
    first_usd = budget.sum_up_reserved_usd() - answer_usd
    assert first_usd == pytest.approx(call.row.input_tokens / 1e6)
    estimator.learn_pictures(call.row.body, Usage(50 * call.row.input_tokens, 10))
    assert budget.knows_enough(claim) == (bound is not None)
    assert budget.sum_up_reserved_usd() - answer_usd == pytest.approx(50 * first_usd, rel=0.01)
    assert not budget.may_take(Claim(1.0 - 40 * first_usd - answer_usd))
    again = estimator.make_claim(call.row)
    assert again.pictures_usd == pytest.approx(claim.pictures_usd, rel=0.01), "multiplied twice"
    budget.settle(claim, 0.0)
    assert budget.sum_up_reserved_usd() == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("tier", "is_known"), [(None, True), ("default", True), ("flex", True), ("a tier without a price", False)]
)
def test_tier_that_a_row_asks_for_makes_its_price(tmp_path: Path, tier: str | None, is_known: bool) -> None:
    prices = PriceTable(models=PRICES.models, service_tiers={"flex": 0.5})
    row = {"chat_create_params": {"messages": ["x"], "max_tokens": 100, **({"service_tier": tier} if tier else {})}}
    survey = Plan(_write(tmp_path / "p.jsonl", [row]), 1, None, Past()).survey(Estimator(prices, "m", {}))
    assert (survey.cost_usd is not None) == is_known
    if tier == "flex":
        assert survey.cost_usd == pytest.approx((survey.input_tokens + 10 * 100) / 2 / 1e6)


def test_tier_that_the_config_sets_makes_the_price_of_all_rows(tmp_path: Path) -> None:
    source = _write(tmp_path / "p.jsonl", _rows(1))
    estimator = Estimator(PRICES, "m", {}, {"chat": "a tier without a price"})
    assert Plan(source, 1, None, Past()).survey(estimator).cost_usd is None


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


def test_calls_take_a_byte_each_and_their_tasks_eight() -> None:
    marks, checksums = Marks(), Checksums()
    tracemalloc.start()
    for task in range(200_000):
        marks.finish(task, 0)
    of_marks = tracemalloc.get_traced_memory()[0]
    for task in range(0, 200_000, 100):
        checksums.put(task, 0xFFFFFFFF)
    of_both = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert of_marks < 400_000
    assert of_both < 2_200_000
    assert checksums.get(100) == 0xFFFFFFFF


def test_input_of_any_length_is_read_in_constant_memory(tmp_path: Path) -> None:
    source = tmp_path / "p.jsonl"
    line = json.dumps({"messages": ["x" * 2000]}) + "\n"
    with source.open("w") as file:
        file.writelines(line for _ in range(6000))
    plan = Plan(source, 1, None, Past())
    tracemalloc.start()
    assert plan.survey(_estimator()).to_do == 6000
    assert sum(1 for _ in plan.calls()) == 6000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The file has 12 MB; whoever kept 70 bytes of each row would be above.
    assert peak < 1_500_000


def test_rows_that_ask_the_same_take_its_answers_in_order(tmp_path: Path) -> None:
    same = {"messages": ["the same"]}
    output = [{**same, "_ng_task_index": task, "_ng_rollout_index": 0} for task in (1, 2, 3)]
    _write(tmp_path / "o.jsonl", output)
    past = Past().read(tmp_path / "o.jsonl", _estimator())
    plan = Plan(
        _write(tmp_path / "p.jsonl", [same, {"messages": ["new"]}, same, {"messages": ["newer"]}, same]), 1, None, past
    )
    survey = plan.survey(_estimator())
    assert (survey.done, survey.to_do) == (3, 2)
    asked = [(bytes(call.row.fields["messages"]), call.row.task_index) for call in plan.all_calls()]
    assert [index for text, index in asked if text == b'["the same"]'] == [1, 2, 3]
    assert sorted(index for _, index in asked) == [0, 1, 2, 3, 4]
