"""A file that whole lines are appended to, held by this process alone; nothing that is given to it is lost.

A line is one write to the end of the file, so whatever ends the run leaves whole lines and at most one torn last one.
In a `.gz` file each line is a gzip member of its own, so that this holds there, too; every gzip reader takes many
members for one file.

What can't be written, as on a full disk, is kept and tried again before the next line, and at the end written beside.
What the file held when it was removed or replaced is written again: its answers are paid for. See also: journal
(which lines), accounting.line_file (the same for files that several processes share).
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Final

from openai_gateway.accounting.line_file import append_line
from openai_gateway.collect.entries import Entry, JournalError, is_entry, is_json, read_entries_and_lines
from openai_gateway.collect.lines import is_gzip

_CHUNK_BYTES: Final = 1024 * 1024
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_GZIP: Final = zlib.MAX_WBITS | 16


class AppendFile:
    """Appends to the file at `path`; `error` is why the last line could not be written, None if it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        self._unwritten: deque[bytes] = deque()
        self._is_gzip = path.suffix == ".gz"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            self.size = os.fstat(self._fd).st_size
            if self.size and is_gzip(path) != self._is_gzip:
                raise JournalError(f"{path} is {'no' if self._is_gzip else 'a'} gzip file; give another --output")
        except BaseException:
            os.close(self._fd)
            raise

    def mend(self) -> int:
        """Cut off a torn last line, or end it if only its end of line is missing; return the bytes cut off."""
        if self._is_gzip:
            return self._mend_gzip()
        start = self._find_last_line()
        torn = os.pread(self._fd, self.size - start, start)
        if not torn:
            return 0
        # A power failure may leave zeros where what was written last had no time to reach the disk.
        kept = torn.rstrip(b"\0")
        if is_entry(kept):
            self._cut(start + len(kept))
            self.append(b"\n")
            return len(torn) - len(kept)
        # Nothing is cut from a file that somebody else may have written.
        if (kept and not kept.startswith(b"{")) or is_json(kept) or (start and not is_entry(self._read_first_line())):
            raise JournalError(f"{self.path} was not written by collect; give another --output")
        self._cut(start)
        return len(torn)

    def append(self, line: bytes) -> None:
        """Write a line to the end, all of it or nothing; one that can't be written is kept for `write_out`."""
        self._unwritten.append(self._wrap_line(line))
        self.write_out()

    def write_out(self) -> None:
        """Write the lines that could not be written before."""
        self.error = None
        try:
            while self._unwritten:
                append_line(self._fd, self._unwritten[0])
                self.size += len(self._unwritten.popleft())
        except OSError as error:
            self.error = OSError(error.errno, error.strerror, str(self.path))

    def finish(self) -> None:
        """Have all lines on a disk, those that still can't be written in another file. Raises JournalError, OSError."""
        self.write_out()
        if self._unwritten:
            beside = self._write_elsewhere(lambda file: file.writelines(self._unwritten), self._find_rescue_paths())
            raise JournalError(
                f"{self.error}; {len(self._unwritten):,} lines that did not fit are in {beside}: make room, append "
                f"them to {self.path}"
            )
        self.sync()

    def sync(self) -> None:
        """Have the disk keep what was written, should the machine fail."""
        os.fsync(self._fd)

    def check_place(self) -> None:
        """Raise JournalError if the file is no longer at its path; what it holds is written there again if it can be.

        Otherwise answers would be paid for that nobody can find.
        """
        held = os.fstat(self._fd)
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            what, places = "removed", [self.path, *self._find_rescue_paths()]
        else:
            if (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino):
                return
            what, places = "replaced", self._find_rescue_paths()
        with open(f"/proc/self/fd/{self._fd}", "rb") as old:
            place = self._write_elsewhere(lambda copy: shutil.copyfileobj(old, copy, _CHUNK_BYTES), places)
        self._turn_to(os.open(place, os.O_RDWR | os.O_APPEND))
        where = "was written there again" if place == self.path else f"is in {place}"
        path, self.path = self.path, place
        raise JournalError(f"{path} was {what} while it was written to; what it held {where}")

    def take_out(self, is_unwanted: Callable[[Entry], bool], taken: Path) -> int:
        """Move the lines that are not wanted any more to the end of another file; return how many."""
        part = self.path.with_name(f"{self.path.name}.part")
        count = 0
        with part.open("wb") as kept, taken.open("ab") as moved:
            for entry, line in read_entries_and_lines(self.path):
                if is_unwanted(entry):
                    moved.write(line)
                    count += 1
                else:
                    kept.write(self._wrap_line(line))
            for file in (moved, kept):
                file.flush()
                os.fsync(file.fileno())
        if count:
            part.replace(self.path)
            self._turn_to(os.open(self.path, os.O_RDWR | os.O_APPEND))
        else:
            part.unlink()
        return count

    def close(self) -> None:
        """Let the file go."""
        os.close(self._fd)

    def _wrap_line(self, line: bytes) -> bytes:
        return gzip.compress(line, mtime=0) if self._is_gzip else line

    def _turn_to(self, fd: int) -> None:
        """Go on with another open file."""
        try:
            os.dup2(fd, self._fd)
        finally:
            os.close(fd)
        self._lock()
        self.size = os.fstat(self._fd).st_size

    def _write_elsewhere(self, write: Callable[[IO[bytes]], object], places: Iterable[Path]) -> Path:
        """Write to the first of some new files that can be written whole; return which. Raises JournalError."""
        error: OSError | None = None
        for place in places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as file:
                    try:
                        write(file)
                        file.flush()
                        os.fsync(file.fileno())
                    except BaseException:
                        place.unlink()
                        raise
                return place
            except OSError as found:
                error = found
        raise JournalError(f"{self.path} can't be written to, and no other place was found for what is in it ({error})")

    def _find_rescue_paths(self) -> list[Path]:
        # The current folder may be the one that was removed: an absolute one is not asked for.
        folders = (self.path.parent, Path(), Path(tempfile.gettempdir()))
        names = (f"{self.path.name}.rescued", f"{self.path.name}.rescued-{os.getpid()}")
        return [folder / name for folder in folders for name in names]

    def _cut(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        self.size = size

    def _mend_gzip(self) -> int:
        end = self._find_end_of_members()
        cut = self.size - end
        if cut and not end:
            raise JournalError(f"{self.path} holds no whole answer; take it away, or give another --output")
        self._cut(end)
        return cut

    def _find_end_of_members(self) -> int:
        """Return where the last whole gzip member ends."""
        end = at = 0
        reader = zlib.decompressobj(_GZIP)
        try:
            while data := os.pread(self._fd, _CHUNK_BYTES, at):
                at += len(data)
                while data:
                    reader.decompress(data)
                    data = reader.unused_data
                    if reader.eof:
                        end = at - len(data)
                        reader = zlib.decompressobj(_GZIP)
        except zlib.error:
            pass
        return end

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"another run is writing to {self.path}; let it end, or give another --output") from None
        except OSError as error:
            # Some network file systems have no locks; the rest works there all the same.
            if error.errno not in _NO_LOCKS:
                raise

    def _read_first_line(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.readline()

    def _find_last_line(self) -> int:
        """Return where the bytes after the last end of line begin."""
        end = self.size
        while end > 0:
            start = max(0, end - _CHUNK_BYTES)
            at = os.pread(self._fd, end - start, start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
        return 0
