"""Files that a run can't read or write are refused before anything is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openai_gateway.collect.run_files import BadFiles, check_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "p.jsonl"
    path.write_text("{}\n")
    return path


@pytest.mark.parametrize("path", ["/dev/full", "/dev/null"])
def test_device_is_no_output(source: Path, path: str) -> None:
    with pytest.raises(BadFiles, match=f"{path} is no regular file"):
        check_files(source, Path(path))


@pytest.mark.parametrize("name", ["o.jsonl", "o_failures.jsonl", "o_aggregate_metrics.json"])
def test_pipe_or_folder_is_no_output(source: Path, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(BadFiles, match=f"{name} is no regular file"):
        check_files(source, tmp_path / "o.jsonl")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(BadFiles, match=f"{name} is no regular file"):
        check_files(source, tmp_path / "o.jsonl")


def test_pipe_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFiles, match="--input must be a regular file"):
        check_files(tmp_path / "pipe", tmp_path / "o.jsonl")
    with pytest.raises(BadFiles, match="there is no file"):
        check_files(tmp_path / "missing", tmp_path / "o.jsonl")


def test_missing_folder_is_told_and_not_made(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadFiles, match="there is no folder"):
        check_files(source, tmp_path / "new" / "o.jsonl")
    assert not (tmp_path / "new").exists()


def test_output_that_is_there_or_not_yet_is_taken(source: Path, tmp_path: Path) -> None:
    check_files(source, tmp_path / "o.jsonl")
    (tmp_path / "o.jsonl").touch()
    check_files(source, tmp_path / "o.jsonl")
