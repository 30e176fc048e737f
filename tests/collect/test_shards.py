"""Which part of the rows a machine takes: as it is told, or as Slurm and Kubernetes say."""

from __future__ import annotations

from pathlib import Path

import pytest

from openai_gateway.collect.run_files import derive_shard_path
from openai_gateway.collect.shards import BadShard, Shard, parse_shard


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("3/16", {}, Shard(3, 16)),
        ("1/1", {}, Shard(1, 1)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4"}, Shard(1, 4)),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3",
             "SLURM_ARRAY_TASK_STEP": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
            Shard(4, 4),
        ),
        ("auto", {"SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, Shard(6, 8)),
        ("auto", {"JOB_COMPLETION_INDEX": "15", "JOB_COMPLETIONS": "16"}, Shard(16, 16)),
    ],
    ids=["given", "all", "Slurm array", "Slurm array from 3 by 2", "Slurm tasks", "Kubernetes"],
)  # fmt: skip
def test_shard_is_found(text: str, environ: dict[str, str], expected: Shard) -> None:
    assert parse_shard(text, environ) == expected


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("0/4", {}, "counts from 1"),
        ("5/4", {}, "counts from 1"),
        ("x", {}, "must look like 3/16"),
        ("auto", {}, "finds neither SLURM_ARRAY_TASK_ID"),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}, "needs JOB_COMPLETIONS"),
        ("auto", {"JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "many"}, "'many'"),
    ],
)
def test_shard_that_can_not_be_says_why(text: str, environ: dict[str, str], said: str) -> None:
    with pytest.raises(BadShard, match=said):
        parse_shard(text, environ)


@pytest.mark.parametrize(
    ("output", "expected"),
    [("a/o.jsonl", "a/o_shard-3-of-16.jsonl"), ("o.x.jsonl.gz", "o.x_shard-3-of-16.jsonl.gz")],
)
def test_output_of_a_shard_tells_which_it_is(output: str, expected: str) -> None:
    assert derive_shard_path(Path(output), Shard(3, 16)) == Path(expected)
