"""Percentiles by nearest rank, and lines that go into a file whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openai_gateway.accounting.line_file import append_line, end_torn_line
from openai_gateway.accounting.tally import find_percentile


@pytest.mark.parametrize(
    ("counts", "percent", "expected"),
    [
        pytest.param([], 50, None, id="nothing"),
        pytest.param([(7, 1)], 1, 7, id="one value is every percentile"),
        pytest.param([(2, 1), (1, 1)], 50, 1, id="half of two is the smaller"),
        pytest.param([(1, 99), (9, 1)], 99, 1, id="99 of 100 are small"),
        pytest.param([(1, 98), (9, 2)], 99, 9, id="98 of 100 are not enough"),
        pytest.param([(3, 1), (2, 1), (1, 1)], 100, 3, id="all"),
    ],
)
def test_percentile_is_the_nearest_rank(counts: list[tuple[int, int]], percent: float, expected: int | None) -> None:
    assert find_percentile(counts, percent) == expected


@contextmanager
def _no_file_above(size: int) -> Iterator[None]:
    """Let this process write files of `size` bytes at most: what a full disk does to a write.

    For as short as can be: pytest keeps its own output in files.
    """
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_line_that_finds_no_room_leaves_nothing_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        append_line(fd, b"whole\n")
        with pytest.raises(OSError, match="No space left"), _no_file_above(64):
            append_line(fd, b"x" * 64 + b"\n")
        append_line(fd, b"another\n")
    finally:
        os.close(fd)
    assert path.read_bytes() == b"whole\nanother\n"


def test_torn_line_is_ended_once(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"whole\nto")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        end_torn_line(fd)
        end_torn_line(fd)
    finally:
        os.close(fd)
    assert path.read_bytes() == b"whole\nto\n"
