"""Which calls are to be made: those of the input, without those that earlier runs have done or failed too often.

The input is read as a stream, once to check and count it before anything is paid, and once to make the calls.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from openai_gateway.collect.estimate import Estimator
from openai_gateway.collect.failures import NOT_HELD_AGAINST
from openai_gateway.collect.journal import read_entries, to_failures_path
from openai_gateway.collect.marks import DONE, Checksums, Marks
from openai_gateway.collect.rows import BadRow, Row, read_lines, to_row
from openai_gateway.collect.sums import Sums
from openai_gateway.wire.usage import read_answer

MOST_RETRIES: Final = 3
MOST_REPEATS: Final = 100_000
MOST_ROWS: Final = 100_000_000
# Each takes a byte or two of memory.
MOST_CALLS: Final = 100_000_000
_MOST_PROBLEMS: Final = 5


class BadInput(Exception):
    """The input can't be used; the message names its first bad lines."""


class Past:
    """What earlier runs left in the output: which calls are done, how often others failed, and what it adds up to."""

    def __init__(self) -> None:
        self.marks = Marks()
        self.answered = Checksums()
        self.failed = Checksums()
        self.sums = Sums()
        self.failures: Counter[str] = Counter()

    def read(self, output: Path, estimator: Estimator) -> Past:
        """Take in the files of an output, if they are there. Raises JournalError."""
        for entry in read_entries(output):
            if self.marks.finish(entry.task_index, entry.rollout_index):
                report = read_answer(bytes(entry.response))
                self.sums.add(report, estimator.to_cost_usd(report), entry.duration_s)
            self.answered.put(entry.task_index, entry.checksum)
        for entry in read_entries(to_failures_path(output)):
            self.failures[entry.failure_class or ""] += 1
            if entry.failure_class not in NOT_HELD_AGAINST:
                self._fail(entry.task_index, entry.rollout_index, entry.checksum)
        return self

    def mark(self, row: Row, rollout_index: int) -> int:
        """Return DONE, or how often a call has failed; what failed before the row was mended does not count."""
        mark = self.marks.get(row.task_index, rollout_index)
        return mark if mark == DONE or self.failed.get(row.task_index) == row.checksum else 0

    def _fail(self, task_index: int, rollout_index: int, checksum: int) -> None:
        if self.failed.get(task_index) not in (0, checksum):
            self.marks.forget_failures(task_index)
        self.failed.put(task_index, checksum)
        self.marks.fail(task_index, rollout_index)


class PlannedCall(msgspec.Struct, frozen=True):
    """One call to be made."""

    row: Row
    rollout_index: int

    @property
    def rollout_id(self) -> str:
        """What the gateway knows the call's rollout by."""
        return f"{self.row.task_index}-{self.rollout_index}"


class Survey(msgspec.Struct):
    """What a plan comes to: `calls` is all that is wanted, which is `done`, `given_up`, or `to_do`.

    Some of the latter `failed` before.

    Tokens and cost are of the calls to do, at most; `cost_usd` None is unknown. `unbounded` calls may answer with any
    length; `rows` counts the input's, and `first` is that of the first call to do.
    """

    rows: int = 0
    first: Row | None = None
    calls: int = 0
    done: int = 0
    given_up: int = 0
    to_do: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unbounded: int = 0
    cost_usd: float | None = 0.0


class Plan:
    """The calls for an input: each of its rows `num_repeats` times, its first `limit` rows only (None: all)."""

    def __init__(self, source: Path, num_repeats: int, limit: int | None, past: Past) -> None:
        self._source = source
        self._num_repeats = num_repeats
        self._limit = limit
        self._past = past

    def calls(self) -> Iterator[PlannedCall]:
        """Yield the calls to do, the repeats of a row after one another. Raises BadInput, OSError."""
        for row in self._rows():
            for rollout_index in self._rollouts(row):
                mark = self._past.mark(row, rollout_index)
                if mark <= MOST_RETRIES:
                    yield PlannedCall(row, rollout_index)

    def survey(self, estimator: Estimator) -> Survey:
        """Check every row and return what the calls come to. Raises BadInput, OSError."""
        most_rows = MOST_CALLS // self._num_repeats
        if sum(1 for _ in itertools.islice(self._lines(), most_rows + 1)) > most_rows:
            raise BadInput(
                f"has more than {most_rows:,} rows, which with {self._num_repeats:,} repeats are more than "
                f"{MOST_CALLS:,} calls; lower --num-repeats, or give a --limit"
            )
        survey = Survey()
        problems: list[str] = []
        seen = Marks()
        for number, text in self._lines():
            try:
                row = to_row(text, number, survey.rows)
                self._check(row, seen)
            except BadRow as problem:
                problems.append(f"line {number} {problem}")
                if len(problems) > _MOST_PROBLEMS:
                    break
            else:
                self._count(row, survey, estimator)
            survey.rows += 1
        if problems:
            more = ["..."] if len(problems) > _MOST_PROBLEMS else []
            raise BadInput("; ".join([*problems[:_MOST_PROBLEMS], *more]))
        if not survey.rows:
            raise BadInput("holds no rows")
        return survey

    def _count(self, row: Row, survey: Survey, estimator: Estimator) -> None:
        to_do = 0
        for rollout_index in self._rollouts(row):
            mark = self._past.mark(row, rollout_index)
            survey.done += mark == DONE
            survey.given_up += MOST_RETRIES < mark < DONE
            survey.failed += 0 < mark <= MOST_RETRIES
            to_do += mark <= MOST_RETRIES
        survey.calls += self._num_repeats
        survey.to_do += to_do
        survey.input_tokens += to_do * row.input_tokens
        survey.output_tokens += to_do * estimator.output_tokens(row)
        survey.unbounded += 0 if estimator.is_bounded(row) else to_do
        if to_do:
            survey.first = survey.first or row
            cost_usd = estimator.cost_usd(row)
            is_known = cost_usd is not None and survey.cost_usd is not None
            survey.cost_usd = (survey.cost_usd or 0.0) + to_do * (cost_usd or 0.0) if is_known else None

    def _check(self, row: Row, seen: Marks) -> None:
        for rollout_index in self._rollouts(row):
            if not seen.finish(row.task_index, rollout_index):
                raise BadRow(f"has the task index {row.task_index} of an earlier row; take _ng_task_index out")
        known = self._past.answered.get(row.task_index)
        if known and known != row.checksum:
            raise BadRow("asks something else than the row that the output has an answer to; give another --output")

    def _rows(self) -> Iterator[Row]:
        for position, (number, text) in enumerate(self._lines()):
            try:
                yield to_row(text, number, position)
            except BadRow as problem:
                raise BadInput(f"line {number} {problem}") from None

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        return itertools.islice(read_lines(self._source), self._limit)

    def _rollouts(self, row: Row) -> range:
        return range(row.first_rollout, row.first_rollout + self._num_repeats)
