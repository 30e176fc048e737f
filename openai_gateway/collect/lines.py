"""Reads a file a line at a time, plain or gzip, one line in memory.

See also: rows and journal (what a line means).
"""

from __future__ import annotations

import errno
import gzip
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 1024 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"


def is_gzip(path: Path) -> bool:
    """Tell whether a file holds gzip, by its first bytes; an empty or missing one by its name."""
    try:
        with path.open("rb") as file:
            begin = file.read(2)
    except FileNotFoundError:
        begin = b""
    return begin == _GZIP_MAGIC if begin else path.suffix == ".gz"


def read_raw_lines(path: Path) -> Iterator[bytes]:
    """Yield each line with its end, as it stands. Raises OSError, also for a gzip file that is broken or cut off."""
    is_packed = is_gzip(path)
    with path.open("rb", buffering=_CHUNK_BYTES) as held, gzip.open(held) if is_packed else nullcontext(held) as file:
        try:
            yield from file
        except (EOFError, zlib.error) as error:
            raise OSError(errno.EIO, f"is a broken gzip file ({error})", str(path)) from None


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line that is not blank, stripped, with its number from 1; a byte order mark is no part of it."""
    for number, line in enumerate(read_raw_lines(path), 1):
        # Files that were put together have one in their middle, too, and two after an empty one.
        while line.startswith(_BOM):
            line = line.removeprefix(_BOM)
        stripped = line.strip()
        if stripped:
            yield number, stripped
