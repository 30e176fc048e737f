"""What is read from segments is what was written, or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openai_gateway.recordings.index import Index
from openai_gateway.recordings.kept import KeptAnswer, from_payload, to_payload
from openai_gateway.recordings.key import NOBODY
from openai_gateway.recordings.segments import HEADER_BYTES, SegmentWriter, find_segments, prune, scan

KEY = bytes(range(32))


def _bodies(index: Index, key: bytes) -> list[bytes | None]:
    return [index.read(place, entry) for place, entry in index.find(key)]


@settings(max_examples=60, deadline=None)
@given(payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=4), data=st.data())
def test_writer_killed_at_any_byte_loses_only_the_record_in_flight(payloads: list[bytes], data: st.DataObject) -> None:
    folder = Path(tempfile.mkdtemp())
    writer = SegmentWriter(folder)
    for payload in payloads:
        writer.append(KEY, NOBODY, payload)
    writer.close()
    (path,) = find_segments(folder)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    ends = [sum(HEADER_BYTES + len(payload) for payload in payloads[: n + 1]) for n in range(len(payloads))]
    index = Index(folder)
    index.refresh()
    assert _bodies(index, KEY) == payloads[: sum(end <= cut for end in ends)]
    index.close()
    path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("at", [0, 5, 20, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 3])
def test_damaged_byte_is_never_served(at: int, tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    writer.append(KEY, NOBODY, b"payload")
    writer.close()
    (path,) = find_segments(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 0x10
    path.write_bytes(damaged)
    index = Index(tmp_path)
    index.refresh()
    assert _bodies(index, KEY) in ([], [None])
    assert len(index) == 0 or _bodies(index, KEY) == [None]


def test_index_takes_in_what_other_writers_add_and_forgets_what_is_removed(tmp_path: Path) -> None:
    index, one, two = Index(tmp_path), SegmentWriter(tmp_path), SegmentWriter(tmp_path)
    one.append(KEY, NOBODY, b"1")
    index.refresh()
    two.append(KEY, NOBODY, b"2")
    one.append(KEY, NOBODY, b"3")
    index.refresh()
    assert (len(index), _bodies(index, KEY)) == (3, [b"1", b"2", b"3"])
    assert two.path is not None
    two.path.unlink()
    index.refresh()
    assert _bodies(index, KEY) == [b"1", b"3"]
    # Its segment is gone: it begins another rather than write where nobody reads.
    two.append(KEY, NOBODY, b"4")
    index.refresh()
    assert _bodies(index, KEY) == [b"1", b"3", b"4"]


def test_full_disk_leaves_no_piece_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(tmp_path)
    writer.append(KEY, NOBODY, b"1")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:50]))
    with pytest.raises(OSError, match="full"):
        writer.append(KEY, NOBODY, b"2")
    monkeypatch.undo()
    writer.append(KEY, NOBODY, b"3")
    index = Index(tmp_path)
    index.refresh()
    assert _bodies(index, KEY) == [b"1", b"3"]


def test_prune_removes_the_oldest_but_none_that_is_written_to(tmp_path: Path) -> None:
    writers = [SegmentWriter(tmp_path) for _ in range(3)]
    for writer in writers:
        writer.append(KEY, NOBODY, bytes(1000))
    writers[0].close()
    writers[2].close()
    first, second, third = find_segments(tmp_path)
    assert prune(tmp_path, 1500, None) == [first, third]
    assert find_segments(tmp_path) == [second]
    writers[1].close()
    os.utime(second, (0, 0))
    assert prune(tmp_path, None, 60.0) == [second]


def test_files_are_the_owners_only(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    writer.append(KEY, NOBODY, b"1")
    assert writer.path is not None
    assert writer.path.stat().st_mode & 0o777 == 0o600


def test_answer_comes_back_with_the_borders_of_its_pieces() -> None:
    answer = KeptAnswer("/responses", 200, "OK", [("x-a", "b")], [3, 4], [5, 700], "m", body=b"ab\n\ncde")
    back = from_payload(to_payload(answer))
    assert back == answer
    assert back.to_pieces() == [b"ab\n", b"\ncde"]
    assert from_payload(zlib.compress(b"{}\nx")) is None
    assert from_payload(b"no zlib") is None


def test_scan_ends_at_what_is_no_record(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path)
    writer.append(KEY, NOBODY, b"1")
    assert writer.path is not None
    with writer.path.open("ab") as file:
        file.write(bytes(500))
    assert [entry.payload_bytes for _, entry in scan(writer.path, 0)] == [1]


def test_script_in_the_documentation_reads_a_folder(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "openai_gateway" / "docs" / "recordings.md").read_text()
    script = page.rpartition("```python\n")[2].partition("```")[0]
    writer = SegmentWriter(tmp_path)
    for body in (b"{}", b"abc"):
        writer.append(KEY, NOBODY, to_payload(KeptAnswer("/responses", 200, "OK", [], body=body)))
    writer.close()
    (path,) = find_segments(tmp_path)
    path.write_bytes(path.read_bytes() + b"GWR1torn")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(line[0], line[2:]) for line in lines] == [(KEY.hex()[:16], ["200", "2"]), (KEY.hex()[:16], ["200", "3"])]
