"""`openai-gateway recordings`: looks at a folder of kept answers, tidies it, and takes it elsewhere.

See also: recordings (what is kept, for whom, and in which form).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

import click

from openai_gateway.cli.exits import FAILED, OK
from openai_gateway.recordings.index import Index
from openai_gateway.recordings.segments import SegmentWriter, find_segments, prune
from openai_gateway.recordings.transfer import BadLine, read_all, take_in, to_line

_folder = click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
_SHOWN_DIGITS = 16
_LISTED = f"{'key':{_SHOWN_DIGITS}}  {'recorded (UTC)':19}  status, path, model, tokens in+out, cost, size"


@click.group(name="recordings")
def recordings_command() -> None:
    """Look at kept answers, remove old ones, take them elsewhere.

    FOLDER is what recordings_dir names. A KEY may be shortened to its first digits.

    \b
    Examples:
      openai-gateway recordings list kept
      openai-gateway recordings show kept 3fa9
      openai-gateway recordings prune kept --max-age-days 30
      openai-gateway recordings export kept > kept.jsonl
      openai-gateway recordings import other kept.jsonl
    """


@recordings_command.command(name="list")
@_folder
def _list(folder: Path) -> int:
    """List kept answers: key, time, model, tokens, cost, bytes."""
    return list_answers(folder)


@recordings_command.command(name="show")
@_folder
@click.argument("key")
def _show(folder: Path, key: str) -> int:
    """Print the bodies kept under KEY, first recorded first."""
    return show_answers(folder, key.lower())


@recordings_command.command(name="prune")
@_folder
@click.option("--max-bytes", type=click.IntRange(0), help="Remove the oldest files beyond this size.")
@click.option("--max-age-days", type=click.FloatRange(0), help="Remove files whose last answer is older.")
def _prune(folder: Path, max_bytes: int | None, max_age_days: float | None) -> None:
    """Remove old answers, whole files at a time.

    A file that a gateway is writing to stays.
    """
    if max_bytes is None and max_age_days is None:
        raise click.UsageError("give --max-bytes or --max-age-days")
    removed = prune(folder, max_bytes, None if max_age_days is None else max_age_days * 86_400)
    click.echo(f"removed {len(removed)} of {len(removed) + len(find_segments(folder))} files")


@recordings_command.command(name="export")
@_folder
def _export(folder: Path) -> None:
    """Print every answer as a line of JSON."""
    for entry, answer in read_all(_open(folder)):
        sys.stdout.buffer.write(to_line(entry, answer) + b"\n")


@recordings_command.command(name="import")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("file", type=click.File("rb"))
def _import(folder: Path, file: BinaryIO) -> int:
    """Keep the answers of an exported FILE in FOLDER.

    - is standard input. Answers that are there already stay. For `serve --replay FOLDER`, copy replay.yaml there, too,
    from the folder that was recorded.
    """
    return import_answers(folder, file)


def list_answers(folder: Path) -> int:
    """Print a line for each answer; return the exit code."""
    count = 0
    for entry, answer in read_all(_open(folder)):
        if not count:
            click.echo(_LISTED, err=True)
        count += 1
        when = datetime.fromtimestamp(entry.time, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        tokens = "-" if answer.usage is None else f"{answer.usage.input_tokens}+{answer.usage.output_tokens}"
        cost = "-" if answer.cost_usd is None else f"${answer.cost_usd:.6f}"
        key = entry.key.hex()[:_SHOWN_DIGITS]
        model = answer.model or "-"
        click.echo(f"{key}  {when}  {answer.status}  {answer.path}  {model}  {tokens}  {cost}  {len(answer.body)} B")
    click.echo("1 answer" if count == 1 else f"{count} answers", err=True)
    return OK


def show_answers(folder: Path, key: str) -> int:
    """Print the bodies under a key; return the exit code, 1 if there are none."""
    count = 0
    for _, answer in read_all(_open(folder), key):
        count += 1
        sys.stdout.buffer.write(answer.body.rstrip(b"\n") + b"\n")
    if not count:
        click.echo(f"no answer is kept under {key}", err=True)
    return OK if count else FAILED


def import_answers(folder: Path, lines: Iterable[bytes]) -> int:
    """Keep the answers in some lines; return the exit code, 1 if one is no answer (those before it are kept)."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    index, writer = _open(folder), SegmentWriter(folder)
    taken = there = 0
    for number, line in enumerate(lines, 1):
        try:
            if take_in(line, writer, index):
                taken += 1
            else:
                there += 1
        except BadLine as error:
            click.echo(f"line {number} is no kept answer: {error}; {taken} before it were taken in", err=True)
            return FAILED
    click.echo(f"took in {taken} {'answer' if taken == 1 else 'answers'}; {there} were there already", err=True)
    return OK


def _open(folder: Path) -> Index:
    index = Index(folder)
    index.refresh()
    return index
