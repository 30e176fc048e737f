"""`openai-gateway recordings`: what is kept is listed, shown, pruned, and taken elsewhere without a loss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from openai_gateway.recordings.index import Index
from openai_gateway.recordings.kept import KeptAnswer, to_payload
from openai_gateway.recordings.key import NOBODY
from openai_gateway.recordings.segments import SegmentWriter
from openai_gateway.recordings.transfer import read_all
from openai_gateway.wire.usage import Usage

KEY = bytes(range(32))


def _run(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "openai_gateway.cli", "recordings", *arguments]
    return subprocess.run(command, input=given, capture_output=True, timeout=60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kept = tmp_path / "kept"
    kept.mkdir()
    writer = SegmentWriter(kept)
    usage = Usage(3, 5)
    writer.append(
        KEY, NOBODY, to_payload(KeptAnswer("/responses", 200, "OK", [], body=b'{"a":1}', model="m", usage=usage))
    )
    stream = KeptAnswer(
        "/chat/completions", 200, "OK", [("content-type", "text/event-stream")], [2, 1], [1, 9], body=b"\xff\n\n"
    )
    writer.append(KEY[::-1], NOBODY, to_payload(stream))
    writer.close()
    return kept


def test_list_and_show_tell_what_is_kept(folder: Path) -> None:
    lines = _run("list", str(folder)).stdout.decode().splitlines()
    assert len(lines) == 2  # what a program reads; the head goes to stderr
    assert lines[0].startswith("0001020304050607")
    assert "3+5" in lines[0]
    assert _run("show", str(folder), "000102").stdout == b'{"a":1}\n'
    missing = _run("show", str(folder), "abc")
    assert (missing.returncode, missing.stderr) == (1, b"no answer is kept under abc\n")


def test_export_and_import_lose_nothing_and_double_nothing(folder: Path, tmp_path: Path) -> None:
    lines = _run("export", str(folder)).stdout
    assert [json.loads(line)["key"] for line in lines.splitlines()] == [KEY.hex(), KEY[::-1].hex()]
    other = tmp_path / "other"
    for expected in (b"took in 2 answers; 0 were", b"took in 0 answers; 2 were"):
        assert expected in _run("import", str(other), "-", given=lines).stderr
    there, here = Index(other), Index(folder)
    there.refresh()
    here.refresh()
    assert [(entry.key, entry.time, answer) for entry, answer in read_all(there)] == [
        (entry.key, entry.time, answer) for entry, answer in read_all(here)
    ]


def test_line_that_is_no_answer_is_refused_with_its_number(tmp_path: Path) -> None:
    refused = _run("import", str(tmp_path / "new"), "-", given=b"{}\n")
    assert refused.returncode == 1
    assert refused.stderr.startswith(b"line 1 is no kept answer")


def test_prune_wants_a_bound_and_keeps_to_it(folder: Path) -> None:
    assert _run("prune", str(folder)).returncode == 2
    assert _run("prune", str(folder), "--max-bytes", "0").stdout == b"removed 1 of 1 files\n"
    assert _run("list", str(folder)).stderr == b"0 answers\n"
