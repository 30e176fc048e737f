"""Which part of the rows one of many machines takes: every n-th, so that rows keep their indices.

`auto` asks Slurm's or Kubernetes' own variables. See also: plan (who leaves rows out), merging (which puts parts
together).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

AUTO: Final = "auto"
_MOST_SHARDS: Final = 100_000
_SHARD: Final = re.compile(r"(\d{1,6})/(\d{1,6})")


class BadShard(Exception):
    """A shard can't be what it is given as; the message says why."""


class Shard(msgspec.Struct, frozen=True):
    """One of `count` parts, `number` counts from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has_position(self, position: int) -> bool:
        """Tell whether the row at a position, from 0, is of this part."""
        return position % self.count == self.number - 1


def parse_shard(text: str, environ: Mapping[str, str]) -> Shard:
    """Return the shard that `3/16` or `auto` means. Raises BadShard."""
    if text == AUTO:
        return _check_shard(*_find(environ))
    found = _SHARD.fullmatch(text)
    if found is None:
        raise BadShard(f"must look like 3/16, or be {AUTO}")
    return _check_shard(int(found[1]), int(found[2]))


def _find(environ: Mapping[str, str]) -> tuple[int, int]:
    def get(name: str, default: int | None = None) -> int:
        text = environ.get(name, "")
        if text.isdigit():
            return int(text)
        if default is not None:
            return default
        raise BadShard(f"{AUTO} needs a number in {name}; it is {text!r}" if text else f"{AUTO} needs {name}, too")

    if "JOB_COMPLETION_INDEX" in environ:
        # Kubernetes tells an indexed job's pods their index only; the manifest says how many there are.
        return get("JOB_COMPLETION_INDEX") + 1, get("JOB_COMPLETIONS")
    if "SLURM_ARRAY_TASK_ID" in environ:
        first, step = get("SLURM_ARRAY_TASK_MIN", 0), get("SLURM_ARRAY_TASK_STEP", 1) or 1
        return (get("SLURM_ARRAY_TASK_ID") - first) // step + 1, get("SLURM_ARRAY_TASK_COUNT")
    if "SLURM_PROCID" in environ:
        return get("SLURM_PROCID") + 1, get("SLURM_NTASKS")
    raise BadShard(
        f"{AUTO} finds neither SLURM_ARRAY_TASK_ID, SLURM_PROCID nor JOB_COMPLETION_INDEX; give a part such as 3/16"
    )


def _check_shard(number: int, count: int) -> Shard:
    if not 1 <= number <= count <= _MOST_SHARDS:
        raise BadShard(f"{number}/{count} is no part: the first number counts from 1 to the second")
    return Shard(number, count)
