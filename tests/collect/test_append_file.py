"""Lines that are paid for are kept whatever becomes of the file that they are written to."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from openai_gateway.collect.append_file import AppendFile
from openai_gateway.collect.entries import JournalError, read_entries


def _line(task: int) -> bytes:
    entry = {"messages": [f"question {task}"], "response": {"a": "b" * 50}}
    return json.dumps({**entry, "_ng_task_index": task, "_ng_rollout_index": 0}).encode() + b"\n"


def _tasks(path: Path) -> list[int]:
    return [entry.task_index for entry in read_entries(path)]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "runs" / "o.jsonl"


@contextlib.contextmanager
def _full_disk(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ: the write comes out short, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["o.jsonl", "o.jsonl.gz"])
def test_line_that_does_not_fit_on_the_disk_is_written_when_there_is_room(path: Path, name: str) -> None:
    file = AppendFile(path.with_name(name))
    file.append(_line(0))
    with _full_disk(file.size + 10):
        file.append(_line(1))
        assert file.error is not None
        assert "No space left" in str(file.error)
        assert file.path.stat().st_size == file.size
        assert _tasks(file.path) == [0]
    file.append(_line(2))
    assert file.error is None
    file.finish()
    file.close()
    assert _tasks(file.path) == [0, 1, 2]


@pytest.mark.parametrize("name", ["o.jsonl", "o.jsonl.gz"])
def test_lines_that_never_fit_are_written_beside_at_the_end(path: Path, name: str) -> None:
    file = AppendFile(path.with_name(name))
    for task in range(20):
        file.append(_line(task))
    with _full_disk(file.size):
        file.append(_line(20))
        file.append(_line(21))
        with pytest.raises(JournalError, match=r"2 lines that did not fit are in .*rescued"):
            file.finish()
    file.close()
    rescued = path.with_name(f"{name}.rescued")
    with file.path.open("ab") as whole:
        whole.write(rescued.read_bytes())
    assert _tasks(file.path) == list(range(22))


def test_output_that_is_removed_while_it_is_written_to_is_written_again(path: Path) -> None:
    file = AppendFile(path)
    file.check_place()
    file.append(_line(0))
    path.unlink()
    with pytest.raises(JournalError, match="removed while it was written to; what it held was written there again"):
        file.check_place()
    file.append(_line(1))
    file.check_place()
    file.close()
    assert _tasks(path) == [0, 1]


def test_output_whose_folder_is_removed_is_written_again(path: Path) -> None:
    file = AppendFile(path)
    file.append(_line(0))
    shutil.rmtree(path.parent)
    with pytest.raises(JournalError, match="written there again"):
        file.check_place()
    file.close()
    assert _tasks(path) == [0]


def test_output_whose_folder_can_not_be_made_again_is_written_to_another(path: Path) -> None:
    file = AppendFile(path)
    file.append(_line(0))
    shutil.rmtree(path.parent)
    path.parent.write_text("a file now")
    with pytest.raises(JournalError, match=r"what it held is in o\.jsonl\.rescued"):
        file.check_place()
    file.append(_line(1))
    file.check_place()
    file.close()
    assert _tasks(Path("o.jsonl.rescued")) == [0, 1]


def test_output_whose_folder_was_the_current_one_is_written_to_the_temporary_one(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(path.parent)
    file = AppendFile(Path("o.jsonl"))
    file.append(_line(0))
    shutil.rmtree(path.parent)
    with pytest.raises(JournalError, match=r"what it held is in .*/tmp/o\.jsonl\.rescued"):
        file.check_place()
    file.close()
    assert _tasks(tmp_path / "tmp" / "o.jsonl.rescued") == [0]


def test_output_that_is_replaced_while_it_is_written_to_is_kept_beside(path: Path) -> None:
    file = AppendFile(path)
    file.append(_line(0))
    path.unlink()
    path.write_text("another's")
    path.with_name("o.jsonl.rescued").write_text("of an earlier time")
    with pytest.raises(JournalError, match=r"o\.jsonl\.rescued-"):
        file.check_place()
    file.append(_line(1))
    file.close()
    assert path.read_text() == "another's"
    assert path.with_name("o.jsonl.rescued").read_text() == "of an earlier time"
    assert _tasks(path.with_name(f"o.jsonl.rescued-{os.getpid()}")) == [0, 1]


def test_packed_output_that_is_removed_stays_packed(path: Path) -> None:
    packed = path.with_name("o.jsonl.gz")
    file = AppendFile(packed)
    file.append(_line(0))
    packed.unlink()
    with pytest.raises(JournalError, match="removed"):
        file.check_place()
    file.append(_line(1))
    file.close()
    assert gzip.decompress(packed.read_bytes()) == _line(0) + _line(1)
