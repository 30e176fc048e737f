"""What earlier runs left in an output: which calls are done, how often others failed, and what it adds up to.

See also: matching (which row of the input a task is now).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Final

from openai_gateway.collect.entries import Entry, read_entries
from openai_gateway.collect.estimate import Estimator
from openai_gateway.collect.failures import NOT_HELD_AGAINST
from openai_gateway.collect.marks import DONE, Checksums, Marks
from openai_gateway.collect.rows import Row
from openai_gateway.collect.run_files import derive_failures_path, derive_replaced_path
from openai_gateway.collect.sums import Sums
from openai_gateway.wire.input_tokens import count_input_tokens
from openai_gateway.wire.usage import read_answer

# If nothing was ever answered and so many rows failed, it is not the rows that are at fault.
_LEAST_TO_BLAME_OTHERS: Final = 8


class Past:
    """Empty until `read`."""

    def __init__(self) -> None:
        self.marks = Marks()
        self.answered = Checksums()
        self.failed = Checksums()
        self.sums = Sums()
        self.failures: Counter[str] = Counter()
        self.answers = 0

    def read(self, output: Path, estimator: Estimator, unheeded: Collection[str] = ()) -> Past:
        """Take in the files of an output, if they are there; `unheeded` names parameters that rows don't ask for.

        Raises JournalError.
        """
        for entry in read_entries(output):
            if self.marks.finish(entry.task_index, entry.rollout_index):
                self._add(entry, estimator)
            self.answered.put(entry.task_index, entry.compute_checksum(unheeded))
        for entry in read_entries(derive_replaced_path(output)):
            self.sums.replaced_usd += _find_spent_usd(entry, estimator)
        failed_tasks = 0
        for entry in read_entries(derive_failures_path(output)):
            self.failures[entry.failure_class or ""] += 1
            self.sums.perhaps_billed_usd += entry.failure.perhaps_billed_usd or 0.0
            if entry.failure_class not in NOT_HELD_AGAINST:
                checksum = entry.compute_checksum(unheeded)
                failed_tasks += not self.failed.get(entry.task_index)
                self._fail(entry.task_index, entry.rollout_index, checksum)
        if not self.answers and failed_tasks >= _LEAST_TO_BLAME_OTHERS:
            self.failed = Checksums()
            self.marks = Marks()
        return self

    def mark(self, row: Row, rollout_index: int) -> int:
        """Return DONE, or how often a call has failed; what failed before the row was mended does not count."""
        mark = self.marks.get(row.task_index, rollout_index)
        return mark if mark == DONE or self.failed.get(row.task_index) == row.checksum else 0

    def _add(self, entry: Entry, estimator: Estimator) -> None:
        self.answers += 1
        report = read_answer(bytes(entry.response))
        cost_usd = 0.0 if entry.is_replayed else estimator.compute_cost_usd(report)
        estimator.learn_pictures(bytes(entry.asked), report.usage)
        self.sums.add(report, cost_usd, entry.duration_s, entry.latency_s)
        self.sums.perhaps_billed_usd += entry.perhaps_billed_usd
        if cost_usd is None:
            self.sums.estimated_usd += estimator.guess_usd(
                report, count_input_tokens(bytes(entry.asked))[0], entry.max_output_tokens
            )

    def _fail(self, task_index: int, rollout_index: int, checksum: int) -> None:
        if self.failed.get(task_index) not in (0, checksum):
            self.marks.forget_failures(task_index)
        self.failed.put(task_index, checksum)
        self.marks.fail(task_index, rollout_index)


def _find_spent_usd(entry: Entry, estimator: Estimator) -> float:
    if entry.is_replayed:
        return entry.perhaps_billed_usd
    report = read_answer(bytes(entry.response))
    cost_usd = estimator.compute_cost_usd(report)
    if cost_usd is None:
        cost_usd = estimator.guess_usd(report, count_input_tokens(bytes(entry.asked))[0], entry.max_output_tokens)
    return cost_usd + entry.perhaps_billed_usd
