"""`openai-gateway usage`: sums up usage logs, as a table, CSV or JSON.

What is summed is `accounting.summary`'s.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from openai_gateway.accounting.summary import KEYS, UNKNOWN, Sum, Summary, sum_up

_COLUMNS: Final = [field.name for field in dataclasses.fields(Sum)]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--by", type=click.Choice(list(KEYS)), default="model", show_default=True, help="What to sum by.")
@click.option("--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def command(files: tuple[Path, ...], by: str, style: str) -> None:
    """Sum up usage logs (the files that `usage_log` names; .gz ones too).

    Tokens and cost are those of the calls that reported their tokens and have a price; the others are counted as
    unknown, never as zero (where it is so of all calls: an empty field in CSV, null in JSON). A line that a crash
    left torn is skipped and told of.

    \b
    Examples:
      openai-gateway usage usage.jsonl
      openai-gateway usage usage.jsonl* --by hour
      openai-gateway usage usage.jsonl --by rollout --format csv > rollouts.csv
    """
    try:
        summary = sum_up(itertools.chain.from_iterable(map(_read, files)), by)
    except OSError as error:
        raise click.ClickException(f"can't read {error.filename or 'a file'}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise click.ClickException(f"can't read a .gz file: {error}") from None
    if not summary.total.calls:
        raise click.ClickException(f"no calls: none of the {summary.torn_lines} lines is a usage log's")
    if summary.torn_lines:
        click.echo(f"skipped {summary.torn_lines} lines that are no records", err=True)
    if style == "json":
        click.echo(json.dumps(_to_json(summary, by), indent=2))
    elif style == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow([by, *_COLUMNS])
        writer.writerows([key, *dataclasses.astuple(found)] for key, found in sorted(summary.by_key.items()))
    else:
        click.echo(_to_table(summary, by))


def _read(path: Path) -> Iterable[bytes]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        yield from file


def _to_json(summary: Summary, by: str) -> dict[str, object]:
    return {
        "by": by,
        "sums": {key: dataclasses.asdict(found) for key, found in sorted(summary.by_key.items())},
        "total": dataclasses.asdict(summary.total),
        "torn_lines": summary.torn_lines,
    }


def _to_table(summary: Summary, by: str) -> str:
    head = [by, "calls", "ok", "failed", "left", "retries", "input", "cached", "output", "reasoning", "cost USD"]
    rows = [_to_row(key, found) for key, found in sorted(summary.by_key.items())]
    rows.append(_to_row("total", summary.total))
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [_to_line(row, widths) for row in [head, *rows]]
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-1, lines[1])
    unknown = summary.total
    if unknown.unknown_usage:
        lines.append(f"{unknown.unknown_usage:,} calls did not report their tokens: not in these sums.")
    if unknown.unknown_cost:
        lines.append(f"{unknown.unknown_cost:,} calls have no known price: not in the cost.")
    return "\n".join(lines)


def _to_line(row: list[str], widths: list[int]) -> str:
    first, *others = (
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


def _to_row(key: str, found: Sum) -> list[str]:
    counts: tuple[int | None, ...] = (
        found.calls,
        found.completed,
        found.failed,
        found.client_gone,
        found.retries,
        found.input_tokens,
        found.cached_tokens,
        found.output_tokens,
        found.reasoning_tokens,
    )
    cost = UNKNOWN if found.cost_usd is None else f"{found.cost_usd:,.4f}"
    return [_to_printable(key), *(UNKNOWN if count is None else f"{count:,}" for count in counts), cost]


def _to_printable(text: str) -> str:
    """Escape what a terminal would act on; the upstream makes up the names."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
