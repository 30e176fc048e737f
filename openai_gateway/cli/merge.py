"""`openai-gateway merge`: the outputs of many machines put into one, with a check that nothing is missing or doubled.

See also: collect.shards (what a part is), collect.merging (how parts are put together).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from openai_gateway.cli.collection import print_line, write_metrics
from openai_gateway.cli.collection_summary import sum_up_merged, to_plural
from openai_gateway.cli.exits import FAILED, OK
from openai_gateway.cli.target import read_price_table
from openai_gateway.collect.estimate import Estimator
from openai_gateway.collect.merging import merge
from openai_gateway.collect.past import Past
from openai_gateway.collect.report import write_report

_path = click.Path(dir_okay=False, path_type=Path)
_MOST_SHOWN: Final = 5


@click.command("merge")
@click.argument("parts", nargs=-1, required=True, type=_path)
@click.option("--output", required=True, type=_path, help="File that is made of them; must not be there yet.")
@click.option("--mix", is_flag=True, help="Take parts that were collected with other models or parameters, too.")
@click.option("--report", type=_path, help="Write a report on it, an HTML page.")
@click.option("--group-by", metavar="KEY", help="Sums for each value of this key of the rows, in the report.")
@click.option("--price-file", type=_path, help="Table of prices (default: the usual one).")
def merge_command(parts: tuple[Path, ...], output: Path, **given: Any) -> int:
    """Put the outputs of `collect --shard` on many machines into one, and sum it up.

    Beside each part its _failures.jsonl and _settings.json are read. Answers that stand in two parts are taken once;
    what no part has an answer to is told, and so are parts that are missing. Nothing is changed in the parts.

    \b
    Examples:
      openai-gateway merge rollouts_shard-*.jsonl --output rollouts.jsonl --report rollouts.html

    Exit codes: 0 whole, 1 something is missing, 2 called wrongly.
    """
    return merge_parts(parts, output, **given)


def merge_parts(
    parts: Sequence[Path],
    output: Path,
    *,
    mix: bool,
    report: Path | None,
    group_by: str | None,
    price_file: Path | None,
) -> int:
    """Make one output of parts, its metrics and perhaps a report; return the exit code."""
    merged = merge(parts, output, may_mix=mix)
    estimator = Estimator(read_price_table(price_file), merged.settings.model, {})
    past = Past().read(output, estimator, merged.settings.unheeded)
    write_metrics(output, sum_up_merged(merged, past))
    if report is not None:
        write_report(report, output, estimator, group_by)
    print_line(
        f"{to_plural(merged.answers, 'answer')} of {to_plural(merged.parts, 'part')} in {output}; "
        f"missing {merged.missing:,}, doubled {merged.doubled:,}"
    )
    for note in merged.notes:
        print_line(note)
    return FAILED if merged.missing or merged.is_incomplete else OK
