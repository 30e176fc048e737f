"""The two files of a run, answers and failures: locked, mended, read, and appended to a whole line at a time.

A line is one write to the end of the file, so whatever ends the run leaves whole lines and at most one torn last one.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from openai_gateway.accounting.line_file import append_line
from openai_gateway.collect.rows import (
    DURATION,
    FAILURE_CLASS,
    QUESTIONS,
    ROLLOUT_INDEX,
    TASK_INDEX,
    BadRow,
    to_checksum,
    to_question,
)

_CHUNK_BYTES: Final = 1024 * 1024
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class JournalError(Exception):
    """The output can't be used as it is; the message says what to do."""


class Entry(msgspec.Struct, rename={"task_index": TASK_INDEX, "rollout_index": ROLLOUT_INDEX, "duration_s": DURATION}):
    """One line of either file, as far as it is looked at again; `failure_class` None is an answer."""

    task_index: int
    rollout_index: int
    response: msgspec.Raw = msgspec.Raw(b"")
    duration_s: float | None = None
    responses_create_params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    chat_create_params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    failure_class: str | None = msgspec.field(default=None, name=FAILURE_CLASS)

    @property
    def fields(self) -> dict[str, msgspec.Raw]:
        """The fields that may hold what is asked, those that are there."""
        given = {name: getattr(self, name) for name in QUESTIONS}
        return {name: value for name, value in given.items() if value is not msgspec.UNSET}

    @property
    def checksum(self) -> int:
        """The checksum of what was asked, as of the input's row."""
        fields = self.fields
        return to_checksum(fields[to_question(fields)])


_decoder = msgspec.json.Decoder(Entry)
_NOT_OURS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def to_failures_path(output: Path) -> Path:
    """Return where the failures of an output go."""
    return output.with_name(f"{output.stem}_failures.jsonl")


def to_metrics_path(output: Path) -> Path:
    """Return where the sums over an output go."""
    return output.with_name(f"{output.stem}_aggregate_metrics.json")


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file, none if it isn't there; a torn last line is left out. Raises JournalError."""
    if not path.exists():
        return
    with path.open("rb", buffering=_CHUNK_BYTES) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                entry = _decoder.decode(line)
                to_question(entry.fields)
            except (*_NOT_OURS, BadRow):
                if not line.endswith(b"\n"):
                    return
                raise JournalError(
                    f"{path}, line {number} was not written by collect; give another --output, or take the line out"
                ) from None
            yield entry


class AppendFile:
    """A file that whole lines are appended to; held by this process alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            self.size = os.fstat(self._fd).st_size
        except BaseException:
            os.close(self._fd)
            raise

    def mend(self) -> int:
        """Cut off a torn last line, or end it if only its end of line is missing; return the bytes cut off."""
        start = self._find_last_line()
        torn = os.pread(self._fd, self.size - start, start)
        if not torn:
            return 0
        # A power failure may leave zeros where what was written last had no time to reach the disk.
        kept = torn.rstrip(b"\0")
        if _is_entry(kept):
            os.ftruncate(self._fd, start + len(kept))
            self.size = start + len(kept)
            self.append(b"\n")
            return len(torn) - len(kept)
        # Nothing is cut from a file that somebody else may have written.
        if (kept and not kept.startswith(b"{")) or _is_json(kept) or (start and not _is_entry(self._read_first_line())):
            raise JournalError(f"{self.path} was not written by collect; give another --output")
        os.ftruncate(self._fd, start)
        self.size = start
        return len(torn)

    def append(self, line: bytes) -> None:
        """Write a line to the end, all of it or nothing. Raises OSError."""
        append_line(self._fd, line)
        self.size += len(line)

    def sync(self) -> None:
        """Have the disk keep what was written, should the machine fail."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._fd)

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


class Journal:
    """The answers and failures of one run. Raises JournalError, OSError on entering."""

    def __init__(self, output: Path, *, may_resume: bool) -> None:
        self._output = output
        self._may_resume = may_resume

    def __enter__(self) -> Journal:
        self.answers = AppendFile(self._output)
        try:
            self.failures = AppendFile(to_failures_path(self._output))
        except BaseException:
            self.answers.close()
            raise
        try:
            for file in (self.answers, self.failures):
                if file.size and not self._may_resume:
                    raise JournalError(
                        f"{file.path} holds an earlier run; go on with it by --resume, or give another --output"
                    )
            self.cut_bytes = sum(file.mend() for file in (self.answers, self.failures))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self.close()

    def sync(self) -> None:
        """Have the disk keep what was written, should the machine fail."""
        self.answers.sync()
        self.failures.sync()

    def close(self) -> None:
        """Let both files go."""
        self.answers.close()
        self.failures.close()


def _is_entry(line: bytes) -> bool:
    try:
        _decoder.decode(line)
    except _NOT_OURS:
        return False
    return True


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except _NOT_OURS:
        return False
    return True
