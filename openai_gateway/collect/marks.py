"""What is known of each call, in a byte: nothing, how often it failed, or done. And of each task, its checksum.

A million calls take a megabyte. See also: journal and entries (what the bytes are read from), past.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

DONE: Final = 255
_MOST_FAILURES: Final = 254
_PAGE: Final = 512


class Marks:
    """One byte for each (task, rollout); pages are made as they are needed, so that indices may have gaps."""

    def __init__(self) -> None:
        self._pages: dict[tuple[int, int], bytearray] = {}

    def get(self, task_index: int, rollout_index: int) -> int:
        """Return DONE, or how often the call has failed."""
        page = self._pages.get((rollout_index, task_index // _PAGE))
        return 0 if page is None else page[task_index % _PAGE]

    def finish(self, task_index: int, rollout_index: int) -> bool:
        """Mark a call as done; False if it was."""
        was = self.get(task_index, rollout_index)
        self._set(task_index, rollout_index, DONE)
        return was != DONE

    def fail(self, task_index: int, rollout_index: int) -> None:
        """Count a failure of a call, unless it is done."""
        was = self.get(task_index, rollout_index)
        if was < _MOST_FAILURES:
            self._set(task_index, rollout_index, was + 1)

    def forget_failures(self, task_index: int) -> None:
        """Take back the failures of a task's calls."""
        for (_, number), page in self._pages.items():
            if number == task_index // _PAGE and page[task_index % _PAGE] != DONE:
                page[task_index % _PAGE] = 0

    def _set(self, task_index: int, rollout_index: int, value: int) -> None:
        key = (rollout_index, task_index // _PAGE)
        page = self._pages.get(key)
        if page is None:
            page = self._pages[key] = bytearray(_PAGE)
        page[task_index % _PAGE] = value


class Checksums:
    """A checksum for each task of what it asked, so that what came of it is never taken for that of another input."""

    def __init__(self) -> None:
        self._pages: dict[int, array[int]] = {}

    def get(self, task_index: int) -> int:
        """Return a task's checksum, 0 if none is known."""
        page = self._pages.get(task_index // _PAGE)
        return 0 if page is None else page[task_index % _PAGE]

    def put(self, task_index: int, checksum: int) -> None:
        """Keep a task's checksum."""
        page = self._pages.get(task_index // _PAGE)
        if page is None:
            page = self._pages[task_index // _PAGE] = array("Q", bytes(8 * _PAGE))
        page[task_index % _PAGE] = checksum

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield each task index that has a checksum, with it."""
        for number, page in sorted(self._pages.items()):
            for offset, checksum in enumerate(page):
                if checksum:
                    yield number * _PAGE + offset, checksum
