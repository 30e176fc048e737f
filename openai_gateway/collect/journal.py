"""The two files of a run, answers and failures.

See also: append_file (how lines are written), entries (what reads them).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from openai_gateway.collect.append_file import AppendFile
from openai_gateway.collect.entries import JournalError
from openai_gateway.collect.run_files import derive_failures_path


class Journal:
    """The answers and failures of one run. Raises JournalError, OSError on entering."""

    def __init__(self, output: Path, *, may_resume: bool) -> None:
        self._output = output
        self._may_resume = may_resume

    def __enter__(self) -> Journal:
        self.answers = AppendFile(self._output)
        try:
            self.failures = AppendFile(derive_failures_path(self._output))
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

    @property
    def error(self) -> OSError | None:
        """Why a line could not be written yet, None if all are."""
        return self.answers.error or self.failures.error

    def look(self) -> None:
        """Write what could not be written before; raise JournalError if a file is no longer at its path."""
        for file in (self.answers, self.failures):
            file.write_out()
        _do_all(self.answers.check_place, self.failures.check_place)

    def finish(self) -> None:
        """Have a disk keep all that was given, wherever that is possible. Raises JournalError with what was not."""
        files = (self.answers, self.failures)
        _do_all(*(file.check_place for file in files), *(file.finish for file in files))

    def sync(self) -> None:
        """Have the disk keep what was written, should the machine fail."""
        self.answers.sync()
        self.failures.sync()

    def close(self) -> None:
        """Let both files go."""
        self.answers.close()
        self.failures.close()


def _do_all(*steps: Callable[[], None]) -> None:
    """Do each step, whatever becomes of the others; raise JournalError with what they say."""
    problems = []
    for step in steps:
        try:
            step()
        except (JournalError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise JournalError("; ".join(problems))
