"""How values spread, and Gym's sums: true to what went in."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from openai_gateway.collect.gym_sums import write_gym_sums
from openai_gateway.collect.plots import draw_spread
from openai_gateway.collect.spread import Spread


def test_quantiles_are_true_to_within_a_step_and_bars_hold_every_value() -> None:
    draw = random.Random(1)
    values = [draw.lognormvariate(6, 2) for _ in range(5000)]
    spread = Spread()
    for value in values:
        spread.add(value)
    values.sort()
    for share in (0.1, 0.5, 0.95):
        assert spread.find_quantile(share) == pytest.approx(values[int(share * len(values))], rel=0.1)
    bars = spread.make_bars(36)
    assert len(bars) <= 36
    assert sum(bar.count for bar in bars) == len(values)
    for bar in bars:
        assert bar.count == sum(bar.low <= value < bar.high for value in values)


def test_nothing_and_zeros_are_drawn_without_harm() -> None:
    spread = Spread()
    assert "nothing to show" in draw_spread(spread, str)
    spread.add(0)
    assert spread.find_quantile(0.5) == 0
    assert "nothing to show" in draw_spread(spread, str)
    spread.add(3)
    assert "<svg" in draw_spread(spread, lambda value: f"{value:.0f}")


def test_sums_for_gym_are_by_agent_and_task(tmp_path: Path) -> None:
    def line(task: int, rollout: int, tokens: int, agent: str | None) -> str:
        fields = {"messages": [1], "_ng_task_index": task, "_ng_rollout_index": rollout, "score": 0.5 * rollout}
        fields["response"] = {"usage": {"output_tokens": tokens}}
        return json.dumps({**fields, **({"agent_ref": {"name": agent}} if agent else {})})

    output = tmp_path / "o.jsonl"
    output.write_text(
        "\n".join([line(0, 0, 10, "a"), line(0, 1, 20, "a"), line(1, 0, 60, "a"), line(2, 0, 5, "b")]) + "\n"
    )
    assert write_gym_sums(output) == tmp_path / "o_aggregate_metrics.json"
    first, second = json.loads((tmp_path / "o_aggregate_metrics.json").read_text())
    assert [first["agent_ref"]["name"], second["agent_ref"]["name"]] == ["a", "b"]
    assert first["agent_metrics"]["mean/output_tokens"] == 30
    assert first["agent_metrics"]["median/output_tokens"] == 20
    assert first["key_metrics"] == {"mean/output_tokens": 30, "mean/score": pytest.approx(1 / 6)}
    assert [group["max/output_tokens"] for group in first["group_level_metrics"]] == [20, 60]
    output.write_text(line(0, 0, 10, None) + "\n")
    assert write_gym_sums(output) is None
