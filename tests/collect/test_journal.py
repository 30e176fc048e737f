"""The output's files: whole lines whatever happens, one writer, and nobody else's file is touched."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from openai_gateway.collect.entries import JournalError, read_entries
from openai_gateway.collect.journal import Journal
from openai_gateway.collect.run_files import derive_failures_path


def _line(task: int, rollout: int = 0) -> bytes:
    entry = {"messages": [f"question {task}"], "response": {"a": "b" * 50}}
    return json.dumps({**entry, "_ng_task_index": task, "_ng_rollout_index": rollout}).encode() + b"\n"


def _tasks(path: Path) -> list[int]:
    return [entry.task_index for entry in read_entries(path)]


def test_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    whole, last = _line(0), _line(1)
    for length in range(1, len(last) - 1):
        path.write_bytes(whole + last[:length])
        assert _tasks(path) == [0]
        with Journal(path, may_resume=True) as journal:
            assert journal.cut_bytes == length
            journal.answers.append(_line(2))
        assert path.read_bytes() == whole + _line(2)


def test_torn_only_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_bytes(_line(0)[:20])
    with Journal(path, may_resume=True) as journal:
        assert journal.cut_bytes == 20
    assert path.read_bytes() == b""


def test_last_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_bytes(_line(0)[:-1])
    with Journal(path, may_resume=True) as journal:
        journal.answers.append(_line(1))
    assert path.read_bytes() == _line(0) + _line(1)


@pytest.mark.parametrize("torn", [b"", _line(1)[:20], _line(1)[:-1]], ids=["none", "a part", "all but its end"])
def test_zeros_that_a_power_failure_left_are_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "o.jsonl"
    kept = _line(1) if torn == _line(1)[:-1] else b""
    for whole in (b"", _line(0)):
        path.write_bytes(whole + torn + bytes(4096))
        with Journal(path, may_resume=True) as journal:
            assert journal.cut_bytes == 4096 + (0 if kept else len(torn))
            journal.answers.append(_line(2))
        assert path.read_bytes() == whole + kept + _line(2)


@pytest.mark.parametrize(
    "content",
    [b'{"prompt": 1}', b'{"prompt": 1}\n{"prom', b"important notes", b"notes" + bytes(9), b'{"prompt": 1}\nnotes'],
    ids=["a JSON file", "torn JSON lines of another kind", "a text", "a text and zeros", "a text at the end"],
)
def test_file_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="not written by collect"), Journal(path, may_resume=True):
        pass
    assert path.read_bytes() == content


def test_line_in_the_middle_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_bytes(_line(0) + b"{}\n" + _line(1))
    with pytest.raises(JournalError, match="line 2"):
        list(read_entries(path))


@pytest.mark.parametrize("name", ["o.jsonl", "o_failures.jsonl"])
def test_earlier_run_is_never_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(_line(0))
    with pytest.raises(JournalError, match="--resume"), Journal(tmp_path / "o.jsonl", may_resume=False):
        pass
    assert (tmp_path / name).read_bytes() == _line(0)


def test_second_writer_is_refused(tmp_path: Path) -> None:
    second = Journal(tmp_path / "o.jsonl", may_resume=True)
    with Journal(tmp_path / "o.jsonl", may_resume=True), pytest.raises(JournalError, match="another run"):
        second.__enter__()
    with Journal(tmp_path / "o.jsonl", may_resume=True):
        pass


def test_checksum_is_that_of_the_question_whichever_form_it_has(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    where = '"_ng_task_index":0,"_ng_rollout_index":0'
    path.write_text(
        f'{{"messages":[1],{where}}}\n{{"chat_create_params":[1],{where}}}\n{{"responses_create_params":[2],{where}}}\n'
    )
    first, second, third = (entry.compute_checksum() for entry in read_entries(path))
    assert first == second != third


def test_failures_are_beside_the_output() -> None:
    assert derive_failures_path(Path("a/b.c.jsonl")) == Path("a/b.c_failures.jsonl")


def test_gzip_output_is_compressed_appended_to_and_mended_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl.gz"
    with Journal(path, may_resume=True) as journal:
        journal.answers.append(_line(0))
        journal.answers.append(_line(1))
    whole = path.read_bytes()
    with Journal(path, may_resume=True) as journal:
        journal.answers.append(_line(2))
    last = path.read_bytes()[len(whole) :]
    assert gzip.decompress(whole + last) == _line(0) + _line(1) + _line(2)
    for torn in (*(last[:length] for length in range(1, len(last), 7)), bytes(512), last[:9] + bytes(100)):
        path.write_bytes(whole + torn)
        with Journal(path, may_resume=True) as journal:
            assert journal.cut_bytes == len(torn)
            assert _tasks(path) == [0, 1]
            journal.answers.append(_line(3))
        assert _tasks(path) == [0, 1, 3]
    assert (tmp_path / "o_failures.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("o.jsonl", gzip.compress(_line(0))), ("o.jsonl.gz", _line(0)), ("o.jsonl.gz", b"\x1f\x8b")]
)
def test_gzip_where_none_is_meant_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JournalError, match="another --output"), Journal(tmp_path / name, may_resume=True):
        pass
    assert (tmp_path / name).read_bytes() == content
