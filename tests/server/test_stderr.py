"""Nobody who reads the log, or has stopped reading it, holds up who writes it; what is lost is counted and said."""

from __future__ import annotations

import os
import re
import select

import pytest

from openai_gateway.accounting.log import lost_lines
from openai_gateway.server.stderr import DroppingStream, QueuedStream


@pytest.fixture
def pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    return read_end, write_end


def test_lines_come_whole_and_in_order(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    stream = QueuedStream(write_end)
    for number in range(100):
        stream.write(f"line {number} \udc80\n")
    stream.drain()
    os.close(write_end)
    with os.fdopen(read_end) as reader:
        assert reader.read() == "".join(f"line {number} \\udc80\n" for number in range(100))


def test_reader_that_stopped_holds_nobody_up_and_is_told_what_it_missed(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    stream = QueuedStream(write_end, max_writes=50)
    before = lost_lines.count
    # Far more than a pipe takes: a writer that waited would never get past this loop.
    for number in range(1000):
        stream.write(f"{number} {'x' * 1000}\n")
    lost = lost_lines.count - before
    assert lost >= 800
    with os.fdopen(read_end) as reader:
        whole = said = 0
        while whole + said < 1000:
            line = reader.readline()
            found = re.search(r"(\d+) lines of the log were lost before this one", line)
            if found is not None:
                said += int(found[1])
            else:
                assert re.fullmatch(r"\d+ x{1000}\n", line)
                whole += 1
    assert said == lost
    os.close(write_end)


def test_stream_without_a_thread_drops_what_the_reader_does_not_take(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    stream = DroppingStream(write_end)
    stream.write("the first line \udc80\n")
    for _ in range(100):
        stream.write("x" * 10_000 + "\n")
    assert os.read(read_end, 100).startswith(b"the first line \\udc80\n")
    while os.get_blocking(read_end) and select.select([read_end], [], [], 0)[0]:
        os.read(read_end, 65536)
    stream.write("the last line\n")
    os.close(write_end)
    with os.fdopen(read_end) as reader:
        assert reader.read() == "the last line\n"
