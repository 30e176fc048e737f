"""Puts the outputs of a run's parts into one, whole lines as they are, and finds what is missing or doubled.

Which part has which rows is told by the settings beside each output. See also: collection_settings, cli.merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from openai_gateway.collect.append_file import AppendFile
from openai_gateway.collect.collection_settings import (
    CollectionSettings,
    find_differences,
    read_settings,
    write_settings,
)
from openai_gateway.collect.entries import JournalError, read_entries_and_lines
from openai_gateway.collect.journal import Journal
from openai_gateway.collect.marks import Marks
from openai_gateway.collect.run_files import derive_failures_path, derive_inputs_path, derive_replaced_path
from openai_gateway.collect.shards import parse_shard

_MOST_SHOWN: Final = 5


class MergeResult(msgspec.Struct):
    """What parts came to: `missing` calls have no answer in any part, `doubled` have one in two.

    `wanted` is None if the parts don't tell how many calls there should be.
    """

    settings: CollectionSettings
    parts: int = 0
    answers: int = 0
    missing: int = 0
    doubled: int = 0
    wanted: int | None = None
    is_incomplete: bool = False
    notes: list[str] = []


def merge(parts: Sequence[Path], output: Path, *, may_mix: bool) -> MergeResult:
    """Make an output of parts. Raises JournalError, OSError."""
    parts = _leave_out_companions(parts)
    runs = [_read_last_settings(part) for part in parts]
    known = [each for each in runs if each is not None]
    for each in known[1:]:
        differences = find_differences(known[0], each)
        if differences and not may_mix:
            raise JournalError(f"the parts were collected with other settings ({', '.join(differences)}); see --mix")
    merged = MergeResult(known[-1] if known else CollectionSettings(), len(parts))
    for path in (output, derive_failures_path(output)):
        if path.exists() and path.stat().st_size:
            raise JournalError(f"{path} is there already; take it away, or give another --output")
    marks = Marks()
    with Journal(output, may_resume=False) as journal:
        for part in parts:
            for entry, line in read_entries_and_lines(part):
                if marks.finish(entry.task_index, entry.rollout_index):
                    _append(journal.answers, line)
                    merged.answers += 1
                else:
                    merged.doubled += 1
            for _, line in read_entries_and_lines(derive_failures_path(part)):
                _append(journal.failures, line)
        journal.sync()
    _find_missing(merged, runs, marks)
    if known:
        rows = max(each.rows for each in known)
        write_settings(output, [msgspec.structs.replace(merged.settings, shard=None, rows=rows)])
    return merged


def _leave_out_companions(parts: Sequence[Path]) -> list[Path]:
    """Return the parts without the files that a run writes beside each: `rollouts_shard-*.jsonl` names these, too."""
    beside = {
        to_path(part) for part in parts for to_path in (derive_failures_path, derive_replaced_path, derive_inputs_path)
    }
    return [part for part in parts if part not in beside]


def _read_last_settings(part: Path) -> CollectionSettings | None:
    if not part.is_file():
        raise JournalError(f"there is no file {part}")
    runs = read_settings(part)
    return runs[-1] if runs else None


def _find_missing(merged: MergeResult, runs: Sequence[CollectionSettings | None], marks: Marks) -> None:
    if any(each is None or each.has_own_indices for each in runs):
        merged.notes.append("how many answers there should be is not known: rows bring their own indices, or a part "
                            "lacks its _settings.json")  # fmt: skip
        return
    known = [each for each in runs if each is not None]
    sizes = {(each.rows, each.repeats) for each in known}
    if len(sizes) > 1:
        merged.is_incomplete = True
        merged.notes.append("the parts are of inputs of different lengths, or with other repeats")
    rows, repeats = max(sizes)
    merged.wanted = rows * repeats
    shards = [parse_shard(each.shard, {}) for each in known if each.shard is not None]
    count = max((shard.count for shard in shards), default=1)
    away = sorted(set(range(1, count + 1)) - {shard.number for shard in shards}) if len(shards) == len(known) else []
    if away:
        merged.notes.append(f"missing parts of {count}: {', '.join(map(str, away[:20]))}")
    shown: list[str] = []
    for rollout in range(repeats):
        for task in range(rows):
            if not marks.get(task, rollout):
                merged.missing += 1
                if len(shown) < _MOST_SHOWN:
                    shown.append(f"row {task}, repeat {rollout}")
    if shown:
        more = " ..." if merged.missing > len(shown) else ""
        merged.notes.append(f"missing: {'; '.join(shown)}{more}: resume their parts, then merge them anew")


def _append(file: AppendFile, line: bytes) -> None:
    file.append(line if line.endswith(b"\n") else line + b"\n")
    if file.error is not None:
        raise file.error
