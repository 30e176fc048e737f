"""`openai-gateway collect`: the answers to a file of prompts, through a running gateway or one of its own.

Here are the options and how errors end it. See also: collection (the order of things).
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from openai_gateway.cli.collection import CollectionOptions, collect, estimate
from openai_gateway.cli.exits import CalledWrongly
from openai_gateway.cli.gym_arguments import MOST_CONCURRENT, parse_param, take_gym_options
from openai_gateway.cli.target import (
    Target,
    configure_own_gateway,
    find_running_gateway,
    make_recorded_headers,
    prepare_own_gateway,
)
from openai_gateway.collect.params import make_additions
from openai_gateway.collect.plan import MOST_REPEATS, MOST_ROWS, BadInput
from openai_gateway.collect.run_files import check_files, derive_shard_path
from openai_gateway.collect.shards import BadShard, Shard, parse_shard

_LARGE_BYTES: Final = 100 * 1024 * 1024
# Set by the gateway or by collecting whole answers.
_NO_PARAMS: Final = ("model", "stream", "stream_options")
_path = click.Path(dir_okay=False, path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _rows_options(command: _Command) -> _Command:
    """Add the options that say what is asked."""
    shard = "Take the K-th of N parts of the rows; auto: as Slurm or Kubernetes say. Put parts together by merge."
    param = "A parameter of all rows, which wins over theirs; may be repeated."
    agent = "The agent_ref of rows without one, for NeMo Gym's tools; no agent is run."
    repeats = click.IntRange(1, MOST_REPEATS)
    for option in reversed(
        (
            click.option("--input", "source", type=_path, help="File of prompts, a JSON object a line; may be .gz."),
            click.option("--output", type=_path, help="File that each answer is appended to, as a line; may be .gz."),
            click.option("--num-repeats", type=repeats, help="Answers for each row (default: 1)."),
            click.option("--limit", type=click.IntRange(1, MOST_ROWS), help="Take the first so many rows only."),
            click.option("--shard", metavar="K/N", help=shard),
            click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help=param),
            click.option("--seeds", is_flag=True, help="Give each repeat of a row a seed, its number."),
            click.option("--agent", metavar="NAME", help=agent),
        )
    ):
        command = option(command)
    return command


@click.command()
@_rows_options
@click.option(
    "--concurrency",
    type=click.IntRange(1, MOST_CONCURRENT),
    help="Calls at a time (default: the config's max_concurrent_requests, else 64).",
)
@click.option("--resume/--no-resume", default=None, help="Go on with an output that is there (default: refuse to).")
@click.option("--mix", is_flag=True, help="Let --resume go on with another model or other parameters.")
@click.option(
    "--redo", type=click.Choice(["incomplete"]), help="Ask again for answers that were cut off; they are kept beside."
)
@click.option("--dry-run", is_flag=True, help="Check the input, estimate tokens and cost, and end.")
@click.option(
    "--max-cost",
    type=click.FloatRange(0, min_open=True),
    metavar="USD",
    help="Stop before the output, earlier runs included, costs more.",
)
@click.option("--price-file", type=_path, help="Table of prices (default: the config's, else the package's).")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="How long an answer may take (the started gateway's first_byte_timeout_s).",
)
@click.option(
    "--recordings",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep answers in this folder, and take those that it has instead of paying for them again.",
)
@click.option("--report", type=_path, help="Write a report on the whole output, an HTML page.")
@click.option("--group-by", metavar="KEY", help="Sums for each value of this key of the rows, in the report.")
@click.option("--base-url", metavar="URL", help="A running gateway, ending in /v1 (default: start one).")
@click.option("--server", help="Which of the gateway's servers to call (default: the one at plain /v1).")
@click.option("--config", "configs", multiple=True, metavar="PATH", help="Config file of the gateway that is started.")
@click.argument("arguments", nargs=-1, metavar="[+KEY=VALUE]...")
def collect_command(arguments: tuple[str, ...], **given: Any) -> int:
    """Collect the answers to a file of prompts, with repeats; goes on after any interruption.

    A row's responses_create_params go to the Responses API as they are; chat_create_params, or else messages (with
    tools, temperature and the like beside them), to Chat Completions; lines for OpenAI's Batch API are taken, too. Each
    answer becomes one line of the output: the row, response, _ng_task_index (the row's number from 0) and
    _ng_rollout_index. Failures go to <output>_failures.jsonl; --resume tries them again, up to 3 times. Tool calls are
    recorded, not executed.

    \b
    Examples:
      openai-gateway collect --input prompts.jsonl --output rollouts.jsonl --dry-run
      openai-gateway collect --input prompts.jsonl --output rollouts.jsonl --num-repeats 4 --max-cost 20
      openai-gateway collect --input prompts.jsonl --output rollouts.jsonl --num-repeats 4 --max-cost 20 --resume
      openai-gateway collect --base-url http://127.0.0.1:8000/v1 --input prompts.jsonl --output rollouts.jsonl
      openai-gateway collect +input_jsonl_fpath=prompts.jsonl +output_jsonl_fpath=rollouts.jsonl +num_repeats=4

    Other +key=value and ++key=value arguments are config overrides for the gateway that is started. A running gateway
    that wants a key gets the environment's OPENAI_GATEWAY_API_KEY. Ctrl-C sends nothing that still waits, and lets
    the calls finish that the upstream works on; a second one cancels them.

    Exit codes: 0 all done, 1 not all (failed, or stopped by --max-cost), 2 called wrongly, 130 stopped by Ctrl-C.
    """
    overrides = _take_arguments(arguments, given)
    for name, option in (("source", "--input"), ("output", "--output")):
        if given[name] is None:
            raise click.UsageError(f"{option} is missing")
    if given["source"].is_file() and given["source"].stat().st_size > _LARGE_BYTES:
        click.echo(f"Checking {given['source']} ...", err=True)
    _raise_open_files()
    options = _read_options(given)
    check_files(options.source, options.output)
    target = _choose_target(given, overrides)
    try:
        return estimate(options, target) if given["dry_run"] else collect(options, target)
    except BadInput as error:
        raise CalledWrongly(f"{options.source}: {error}") from None


def _take_arguments(arguments: tuple[str, ...], given: dict[str, Any]) -> list[str]:
    """Put what is given in NeMo Gym's spelling into the options; return the other arguments."""
    params = dict(parse_param(text) for text in given["params"])
    given["params"] = None
    options, overrides = take_gym_options(arguments)
    for name, value in options.items():
        if name == "params":
            params = {**params, **value}
            continue
        if given[name] not in (None, False):
            raise click.UsageError(f"{name} is given twice, as an option and as +key=value")
        given[name] = Path(value) if name in ("source", "output") else value
    given["params"] = params
    if "agent" in options:
        click.echo("note: +agent_name names the rows' agent_ref; no agent is run here", err=True)
    return overrides


def _read_options(given: Mapping[str, Any]) -> CollectionOptions:
    refused = [name for name in given["params"] if name in _NO_PARAMS]
    if refused:
        raise click.UsageError(f"{refused[0]} is no parameter of rows: the gateway's model is asked, for whole answers")
    if given["redo"] is not None and not given["resume"]:
        raise click.UsageError("--redo needs --resume")
    if given["group_by"] is not None and given["report"] is None:
        raise click.UsageError("--group-by needs --report")
    shard = _to_shard(given["shard"])
    return CollectionOptions(
        source=given["source"],
        output=given["output"] if shard is None else derive_shard_path(given["output"], shard),
        num_repeats=given["num_repeats"] or 1,
        additions=make_additions(given["params"], has_seeds=bool(given["seeds"]), agent=given["agent"]),
        limit=given["limit"],
        shard=shard,
        concurrency=given["concurrency"],
        max_cost=given["max_cost"],
        may_resume=bool(given["resume"]),
        may_mix=given["mix"],
        is_redo=given["redo"] is not None,
        report=given["report"],
        group_by=given["group_by"],
    )


def _to_shard(text: str | None) -> Shard | None:
    try:
        return None if text is None else parse_shard(text, os.environ)
    except BadShard as error:
        raise click.UsageError(f"--shard {error}") from None


def _choose_target(given: Mapping[str, Any], overrides: list[str]) -> Target:
    if given["base_url"] is None:
        own = configure_own_gateway(given["configs"], overrides, given["server"], given["timeout"], given["recordings"])
        for key in own.unused:
            click.echo(f"note: +{key} does nothing here; parameters of all rows are given by --param", err=True)
        headers = {}
        if given["recordings"] is not None:
            headers = make_recorded_headers(given["output"], is_redo=given["redo"] is not None)
        return prepare_own_gateway(own, given["price_file"], headers)
    if given["configs"] or overrides:
        raise click.UsageError("--config and overrides are for a gateway that is started, not for that of --base-url")
    for name in ("timeout", "recordings"):
        if given[name] is not None:
            raise click.UsageError(f"--{name} is for a gateway that is started; that of --base-url has its own")
    return find_running_gateway(given["base_url"], given["server"], given["price_file"])


def _raise_open_files() -> None:
    """Allow as many open files as may be: each call holds one here and two in the gateway, which inherits this."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
