"""The lines of a run's two files, as far as they are looked at again: what was asked, and what came of it.

See also: journal (which writes them), past (what they come to).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import msgspec

from openai_gateway.collect.lines import is_gzip, read_raw_lines
from openai_gateway.collect.params import decode_params, read_max_output_tokens
from openai_gateway.collect.questions import QUESTIONS, BadRow, compute_checksum, find_question
from openai_gateway.collect.rows import (
    DURATION,
    FAILURE,
    FAILURE_CLASS,
    LATENCY,
    PERHAPS_BILLED,
    REPLAYED,
    ROLLOUT_INDEX,
    TASK_INDEX,
)


class JournalError(Exception):
    """The output can't be used as it is; the message says what to do."""


class _Lost(msgspec.Struct):
    perhaps_billed_usd: float | None = None
    message: str | None = None
    what_to_do: str | None = None


_NAMES: Final = {
    "task_index": TASK_INDEX,
    "rollout_index": ROLLOUT_INDEX,
    "duration_s": DURATION,
    "latency_s": LATENCY,
    "is_replayed": REPLAYED,
    "perhaps_billed_usd": PERHAPS_BILLED,
}


class Entry(msgspec.Struct, rename=_NAMES):
    """One line of either file, as far as it is looked at again; `failure_class` None is an answer."""

    task_index: int
    rollout_index: int
    response: msgspec.Raw = msgspec.Raw(b"")
    duration_s: float | None = None
    latency_s: float | None = None
    is_replayed: bool = False
    perhaps_billed_usd: float = 0.0
    responses_create_params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    chat_create_params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    custom_id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    failure_class: str | None = msgspec.field(default=None, name=FAILURE_CLASS)
    failure: _Lost = msgspec.field(default_factory=_Lost, name=FAILURE)

    @property
    def fields(self) -> dict[str, msgspec.Raw]:
        """The fields that may hold what is asked, those that are there."""
        given = {name: getattr(self, name) for name in (*QUESTIONS, "custom_id")}
        return {name: value for name, value in given.items() if value is not msgspec.UNSET}

    @property
    def asked(self) -> msgspec.Raw:
        """What was asked."""
        fields = self.fields
        return fields[find_question(fields)]

    @property
    def max_output_tokens(self) -> int | None:
        """The bound on its answer that was asked for, None if there was none."""
        try:
            return read_max_output_tokens(decode_params(self.asked, "asked"))
        except BadRow:
            # A bare list of messages.
            return None

    def compute_checksum(self, unheeded: Collection[str] = ()) -> int:
        """Return the checksum of what was asked, as of the input's row."""
        return compute_checksum(self.asked, unheeded)


_decoder = msgspec.json.Decoder(Entry)
_NOT_OURS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file, none if it isn't there; a torn last line is left out. Raises JournalError."""
    for entry, _ in read_entries_and_lines(path):
        yield entry


def read_entries_and_lines(path: Path) -> Iterator[tuple[Entry, bytes]]:
    """Yield the entries of a file with their lines. Raises JournalError."""
    if not path.exists():
        return
    for number, line in enumerate(_read_whole_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = _decoder.decode(line)
            find_question(entry.fields)
        except (*_NOT_OURS, BadRow):
            if not line.endswith(b"\n"):
                return
            raise JournalError(
                f"{path}, line {number} was not written by collect; give another --output, or take the line out"
            ) from None
        yield entry, line


def _read_whole_lines(path: Path) -> Iterator[bytes]:
    try:
        yield from read_raw_lines(path)
    except (OSError, EOFError):
        # A torn last member of a gzip file; `mend` cuts it off.
        if not is_gzip(path):
            raise


def is_entry(line: bytes) -> bool:
    """Tell whether a line is one that a run wrote."""
    try:
        _decoder.decode(line)
    except _NOT_OURS:
        return False
    return True


def is_json(text: bytes) -> bool:
    """Tell whether a text is JSON."""
    try:
        msgspec.json.decode(text)
    except _NOT_OURS:
        return False
    return True
