"""Appends whole lines to a file: a line is one write to its end, and goes in as a whole or not at all.

Several processes may append to the same file (opened with O_APPEND): their lines don't mix, as each is one write.
What ends a process leaves whole lines and at most one torn last one, which whoever opens the file next has to end or
cut. See also: usage_log, capture (who appends).
"""

from __future__ import annotations

import errno
import os


def append_line(fd: int, line: bytes) -> None:
    """Write a line to the end of a file opened with O_APPEND, all of it or nothing. Raises OSError."""
    written = os.write(fd, line)
    if written == len(line):
        return
    # The disk is full. The piece is cut off, unless another process has appended a line behind it.
    end = os.lseek(fd, 0, os.SEEK_CUR)
    if os.fstat(fd).st_size == end:
        os.ftruncate(fd, end - written)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def end_torn_line(fd: int) -> None:
    """End a last line that a crash left without its end."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
