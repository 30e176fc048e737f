"""`openai-gateway usage`: sums up usage logs, as a table, CSV or JSON.

See also: accounting.usage_summary (what is summed, and what counts as unknown).
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click

from openai_gateway.accounting.usage_summary import KEYS, UNKNOWN, Sum, Summary, sum_up
from openai_gateway.cli.exits import OK, CommandFailed
from openai_gateway.cli.screen import print_table
from openai_gateway.config.price_files import BadPrices, read_prices

_HEAD: Final = ("calls", "ok", "failed", "left", "retries", "input", "cached", "output", "reasoning", "cost USD")
_SPARE: Final = ("left", "retries", "reasoning", "cached", "failed")
_COLUMNS: Final = [field.name for field in dataclasses.fields(Sum)]


@click.command(name="usage")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--by", type=click.Choice(list(KEYS)), default="model", show_default=True, help="What to sum by.")
@click.option("--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option(
    "--price-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Price the calls anew by this table instead of the costs in the log.",
)
def usage_command(files: tuple[Path, ...], by: str, style: str, price_file: Path | None) -> int:
    """Sum up usage logs (the files that `usage_log` names; .gz ones too).

    Tokens and cost are those of the calls that reported their tokens and have a price; the others are counted as
    unknown, never as zero (where it is so of all calls: an empty field in CSV, null in JSON). A line that a crash
    left torn is skipped and told of.

    \b
    Examples:
      openai-gateway usage usage.jsonl
      openai-gateway usage usage.jsonl* --by hour
      openai-gateway usage usage.jsonl --by rollout --format csv > rollouts.csv
      openai-gateway usage usage.jsonl --price-file newer.yaml
    """
    return print_usage(files, by, style, price_file)


def print_usage(files: Sequence[Path], by: str, style: str, price_file: Path | None = None) -> int:
    """Print the sums of usage logs by one of KEYS as table, csv or json; return the exit code."""
    try:
        prices = None if price_file is None else read_prices(price_file)
    except BadPrices as error:
        raise CommandFailed(f"{price_file} {error}") from None
    try:
        summary = sum_up(itertools.chain.from_iterable(map(_read, files)), by, prices)
    except OSError as error:
        raise CommandFailed(f"can't read {error.filename or 'a file'}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise CommandFailed(f"can't read a .gz file: {error}") from None
    if not summary.total.calls:
        torn = "line is" if summary.torn_lines == 1 else "lines is"
        raise CommandFailed(f"no calls: none of the {summary.torn_lines} {torn} a usage log's")
    if summary.torn_lines:
        lines = "line that is no record" if summary.torn_lines == 1 else "lines that are no records"
        click.echo(f"skipped {summary.torn_lines} {lines}", err=True)
    if style == "json":
        click.echo(json.dumps(_to_json(summary, by), indent=2))
    elif style == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow([by, *_COLUMNS])
        writer.writerows([key, *dataclasses.astuple(found)] for key, found in sorted(summary.by_key.items()))
    else:
        _print_table(summary, by)
    return OK


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


def _print_table(summary: Summary, by: str) -> None:
    # The cost of a few calls is far below a cent.
    decimals = 6 if 0 < (summary.total.cost_usd or 0) < 0.01 else 4
    rows = [_to_row(key, found, decimals) for key, found in sorted(summary.by_key.items())]
    rows.append(_to_row("total", summary.total, decimals))
    print_table([by, *_HEAD], rows, is_last_total=True, spare=_SPARE)
    if count := summary.total.unknown_usage:
        calls = "1 call did" if count == 1 else f"{count:,} calls did"
        click.echo(f"{calls} not report tokens: not in these sums.")
    if count := summary.total.unknown_cost:
        calls = "1 call has" if count == 1 else f"{count:,} calls have"
        click.echo(f"{calls} no known price: not in the cost.")

    if count := summary.total.replayed:
        calls = "1 call was" if count == 1 else f"{count:,} calls were"
        saved = summary.total.saved_usd
        saving = "" if saved is None else f", which saved {saved:,.4f} USD"
        click.echo(f"{calls} answered from recordings{saving}.")


def _to_row(key: str, found: Sum, decimals: int) -> list[str]:
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
    cost = UNKNOWN if found.cost_usd is None else f"{found.cost_usd:,.{decimals}f}"
    return [_to_printable(key), *(UNKNOWN if count is None else f"{count:,}" for count in counts), cost]


def _to_printable(text: str) -> str:
    """Escape what a terminal would act on; the upstream makes up the names."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
