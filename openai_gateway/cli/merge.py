"""`openai-gateway merge`: the outputs of many machines put into one, with a check that nothing is missing or doubled.

What a part is, is `collect.shards`'; putting together is `collect.merging`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from openai_gateway.cli.collection import say, write_metrics
from openai_gateway.cli.summary import to_merged, to_plural
from openai_gateway.cli.target import Refused, read_price_table
from openai_gateway.collect.entries import JournalError
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
def merge_command(parts: tuple[Path, ...], output: Path, **given: Any) -> None:
    """Put the outputs of `collect --shard` on many machines into one, and sum it up.

    Beside each part its _failures.jsonl and _settings.json are read. Answers that stand in two parts are taken once;
    what no part has an answer to is told, and so are parts that are missing. Nothing is changed in the parts.

    \b
    Examples:
      openai-gateway merge rollouts_shard-*.jsonl --output rollouts.jsonl --report rollouts.html

    Exit codes: 0 whole, 1 something is missing, 2 called wrongly.
    """
    try:
        merged = merge(parts, output, may_mix=given["mix"])
        estimator = Estimator(read_price_table(given["price_file"]), merged.settings.model, {})
        past = Past().read(output, estimator, merged.settings.unheeded)
        write_metrics(output, to_merged(merged, past))
        if given["report"] is not None:
            write_report(given["report"], output, estimator, given["group_by"])
    except JournalError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from None
    say(
        f"{to_plural(merged.answers, 'answer')} of {to_plural(len(parts), 'part')} in {output}; "
        f"missing {merged.missing:,}, doubled {merged.doubled:,}"
    )
    for note in merged.notes:
        say(note)
    raise SystemExit(1 if merged.missing or merged.is_incomplete else 0)
