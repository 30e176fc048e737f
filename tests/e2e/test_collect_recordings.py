"""`openai-gateway collect --recordings`: what was paid for once isn't paid for again, and no repeat gets another's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openai_gateway.cli.target import make_recorded_headers
from tests.e2e.test_collect import PRICED, _read, _run, _stats
from tests.support.processes import Gunicorn, run_simulator, write_config


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    with run_simulator(tmp_path_factory.mktemp("simulator"), {"latency_ms": 5}) as running:
        yield running


def _collect(folder: Path, *arguments: str, name: str = "o") -> dict[str, Any]:
    given = ("--config", "gateway.yaml", "--recordings", "kept", "--max-cost", "0.1", "--output", f"{name}.jsonl")
    ended = _run(folder, *given, *arguments)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads((folder / f"{name}_metrics.json").read_text())
    return found


def _answers(path: Path) -> dict[tuple[int, int], Any]:
    return {(row["_ng_task_index"], row["_ng_rollout_index"]): row["response"] for row in _read(path)}


def test_second_collection_has_the_same_answers_and_pays_nothing(tmp_path: Path, upstream: Gunicorn) -> None:
    config = write_config(tmp_path, upstream.url, PRICED)
    config.rename(tmp_path / "gateway.yaml")
    row = {"responses_create_params": {"input": "the same question", "max_output_tokens": 50}}
    (tmp_path / "p.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    before = _stats(upstream)["requests"]

    _collect(tmp_path, "--limit", "1")
    # Equal calls that come later, through another gateway, are others all the same.
    first = _collect(tmp_path, "--num-repeats", "2", "--resume")
    assert _stats(upstream)["requests"] == before + 4
    answers = _answers(tmp_path / "o.jsonl")
    assert len({answer["id"] for answer in answers.values()}) == len(answers) == 4

    second = _collect(tmp_path, "--num-repeats", "2", name="again")
    assert _stats(upstream)["requests"] == before + 4
    again = _answers(tmp_path / "again.jsonl")
    assert again == answers
    assert (first["cost_usd"] > 0, second["cost_usd"], second["tokens"]) == (True, 0, first["tokens"])

    third = _collect(tmp_path, "--num-repeats", "3", "--resume", name="again")
    assert _stats(upstream)["requests"] == before + 6
    assert third["cost_usd"] == pytest.approx(first["cost_usd"] / 2, rel=0.5)
    assert len({answer["id"] for answer in _answers(tmp_path / "again.jsonl").values()}) == 6


def test_answers_that_are_to_be_asked_again_are_not_taken_from_the_recordings(tmp_path: Path) -> None:
    plain = make_recorded_headers(tmp_path / "ö.jsonl", is_redo=False)
    assert list(plain) == ["x-gateway-run"]
    assert plain["x-gateway-run"].isascii()
    assert make_recorded_headers(tmp_path / "ö.jsonl", is_redo=True) == {**plain, "cache-control": "no-cache"}
