"""Parts are named by a pattern that the files beside them match, too: these are no parts, and failures no answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openai_gateway.collect.collection_settings import CollectionSettings, write_settings
from openai_gateway.collect.entries import JournalError
from openai_gateway.collect.merging import merge
from openai_gateway.collect.run_files import derive_failures_path, derive_replaced_path


def _write(path: Path, *tasks: int) -> None:
    row = {"responses_create_params": {}, "response": {}, "_ng_rollout_index": 0}
    lines = [json.dumps({**row, "_ng_task_index": task}) for task in tasks]
    path.write_text("".join(f"{line}\n" for line in lines))


def test_files_beside_the_parts_are_no_parts(tmp_path: Path) -> None:
    for number, answered, failed in ((1, 0, 3), (2, 1, 4)):
        part = tmp_path / f"o_shard-{number}-of-3.jsonl"
        _write(part, answered)
        _write(derive_failures_path(part), failed)
        _write(derive_replaced_path(part), answered)
        write_settings(part, [CollectionSettings(rows=6, shard=f"{number}/3")])
    output = tmp_path / "o.jsonl"
    merged = merge(sorted(tmp_path.glob("o_shard-*.jsonl")), output, may_mix=False)
    assert (merged.parts, merged.answers, merged.missing, merged.doubled) == (2, 2, 4, 0)
    assert "missing parts of 3: 3" in merged.notes
    assert len(output.read_text().splitlines()) == 2


def test_merging_twice_names_what_to_do_with_the_first_outcome(tmp_path: Path) -> None:
    part, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    _write(part, 0)
    merge([part], output, may_mix=False)
    with pytest.raises(JournalError, match=r"o\.jsonl is there already; take it away"):
        merge([part], output, may_mix=False)
    output.unlink()
    assert merge([part], output, may_mix=False).answers == 1
