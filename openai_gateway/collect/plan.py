"""Which calls are to be made: those of the input, without those that earlier runs have done or failed too often.

The input is read as a stream: to check and count it before anything is paid, to find its rows in the output if there
is one, and to make the calls. See also: rows (one row), past (what was done), matching (which index a row has), run
(who makes the calls).
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from openai_gateway.collect.estimate import Estimator
from openai_gateway.collect.lines import read_lines
from openai_gateway.collect.marks import DONE, Marks
from openai_gateway.collect.matching import Matches, match_rows
from openai_gateway.collect.params import NOTHING_ADDED, Additions
from openai_gateway.collect.past import Past
from openai_gateway.collect.questions import BadRow
from openai_gateway.collect.rows import AGENT_REF, ROLLOUT_INDEX, TASK_INDEX, Row, parse_row, to_line
from openai_gateway.collect.shards import Shard

MOST_RETRIES: Final = 3
MOST_REPEATS: Final = 100_000
MOST_ROWS: Final = 100_000_000
# Each takes a byte or two of memory.
MOST_CALLS: Final = 100_000_000
_MOST_PROBLEMS: Final = 5
_MOST_NOTES: Final = 20
_OTHER_NOTES: Final = "other models are named, or other columns are not sent"


class BadInput(Exception):
    """The input can't be used; the message names its first bad lines."""


class PlannedCall(msgspec.Struct, frozen=True):
    """One call to be made."""

    row: Row
    rollout_index: int

    @property
    def rollout_id(self) -> str:
        """What the gateway knows the call's rollout by."""
        return f"{self.row.task_index}-{self.rollout_index}"


class Survey(msgspec.Struct):
    """What a plan comes to.

    Rows: `rows` are those of this shard, `all_rows` of all shards; `first` is the row of the first call to do. `notes`
    has what is to be told of rows, and of how many.
    Calls: `calls` is how many are wanted in all. Each is `done`, `given_up` or `to_do`; of the calls to do, `failed`
    have failed before, and `unbounded` may be answered at any length.
    Cost: the tokens and `cost_usd` are the most that the calls to do may take; None is unknown. A single call may cost
    up to `excess_usd` more than that.
    """

    rows: int = 0
    all_rows: int = 0
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
    excess_usd: float = 0.0
    notes: Counter[str] = msgspec.field(default_factory=Counter)
    matches: Matches = msgspec.field(default_factory=Matches)
    has_own_indices: bool = False
    has_agents: bool = False
    has_pictures: bool = False


class Plan:
    """The calls for an input: each of its rows `num_repeats` times, its first `limit` rows only (None: all)."""

    def __init__(
        self,
        source: Path,
        num_repeats: int,
        limit: int | None,
        past: Past,
        additions: Additions = NOTHING_ADDED,
        shard: Shard | None = None,
    ) -> None:
        self._source = source
        self._num_repeats = num_repeats
        self._limit = limit
        self._past = past
        self._additions = additions
        self._shard = shard
        self._indices: array[int] | None = None
        self._matches: Matches | None = None

    def renew(self, past: Past) -> Plan:
        """Return the plan for an output that answers were taken out of: rows stay where they were found before."""
        plan = Plan(self._source, self._num_repeats, self._limit, past, self._additions, self._shard)
        plan._indices, plan._matches = self._indices, self._matches
        return plan

    def calls(self) -> Iterator[PlannedCall]:
        """Yield the calls to do, the repeats of a row after one another. Raises BadInput, OSError."""
        for row in self._rows():
            for rollout_index in self._rollouts(row):
                mark = self._past.mark(row, rollout_index)
                if mark <= MOST_RETRIES:
                    yield PlannedCall(row, rollout_index)

    def all_calls(self) -> Iterator[PlannedCall]:
        """Yield every call that is wanted, the done ones, too. Raises BadInput, OSError."""
        for row in self._rows():
            for rollout_index in self._rollouts(row):
                yield PlannedCall(row, rollout_index)

    def write_inputs(self, path: Path) -> None:
        """Write every call that is wanted as it is asked, as NeMo Gym's tools read them. Raises BadInput, OSError."""
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            for call in self.all_calls():
                where = {TASK_INDEX: call.row.task_index, ROLLOUT_INDEX: call.rollout_index}
                file.write(to_line(call.row.to_fields(call.rollout_index), where))
        part.replace(path)

    def survey(self, estimator: Estimator) -> Survey:
        """Check every row and return what the calls come to. Raises BadInput, OSError."""
        most_rows = MOST_CALLS // self._num_repeats
        count = sum(1 for _ in itertools.islice(self._lines(), most_rows + 1))
        if count > most_rows:
            raise BadInput(
                f"has more than {most_rows:,} rows, which with {self._num_repeats:,} repeats are more than "
                f"{MOST_CALLS:,} calls; lower --num-repeats, or give a --limit"
            )
        survey = Survey(all_rows=count)
        if self._past.answers and self._matches is None:
            self._matches = self._match()
        survey.matches = self._matches or Matches()
        problems: list[str] = []
        seen = Marks()
        for position, number, text in self._of_shard():
            try:
                row = self._parse_row(text, number, position)
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
        if not survey.all_rows:
            raise BadInput("holds no rows")
        return survey

    def _match(self) -> Matches:
        """Find the input's rows in the output."""
        asked = array("Q")
        for number, (line, text) in enumerate(self._lines()):
            if self._shard is not None and not self._shard.has_position(number):
                asked.append(0)
                continue
            try:
                row = parse_row(text, line, number, self._additions)
            except BadRow:
                asked.append(0)
            else:
                if TASK_INDEX in row.fields:
                    # Rows that bring their indices stay where those say.
                    return Matches()
                asked.append(row.checksum)
        matches = match_rows(asked, self._past.answered)
        if not matches.found:
            raise BadInput("asks nothing that the output has an answer to; give another --output")
        if self._shard is not None and (matches.moved or matches.new):
            raise BadInput(
                "was edited since the output was begun, so that its rows are of other shards now; merge what there is "
                "and go on without --shard"
            )
        self._indices = matches.indices
        return matches

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
        survey.unbounded += to_do if estimator.find_bound(row) is None else 0
        survey.has_own_indices = survey.has_own_indices or TASK_INDEX in row.fields
        survey.has_pictures = survey.has_pictures or row.has_pictures
        survey.has_agents = survey.has_agents or AGENT_REF in row.fields
        for note in row.notes:
            survey.notes[note if note in survey.notes or len(survey.notes) < _MOST_NOTES else _OTHER_NOTES] += 1
        if to_do:
            survey.first = survey.first or row
            survey.excess_usd = max(survey.excess_usd, estimator.excess_usd(row))
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
        for position, number, text in self._of_shard():
            try:
                yield self._parse_row(text, number, position)
            except BadRow as problem:
                raise BadInput(f"line {number} {problem}") from None

    def _parse_row(self, text: bytes, number: int, position: int) -> Row:
        index = position if self._indices is None else self._indices[position]
        return parse_row(text, number, index, self._additions)

    def _of_shard(self) -> Iterator[tuple[int, int, bytes]]:
        for position, (number, text) in enumerate(self._lines()):
            if self._shard is None or self._shard.has_position(position):
                yield position, number, text

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        return itertools.islice(read_lines(self._source), self._limit)

    def _rollouts(self, row: Row) -> range:
        return range(row.first_rollout, row.first_rollout + self._num_repeats)
