"""`openai-gateway collect`: the answers to a file of prompts, through a running gateway or one of its own.

The work is `openai_gateway.collect`'s; here are the options, the order of things, and how it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from openai_gateway.cli.gym_arguments import MOST_CONCURRENT, take_gym_options
from openai_gateway.cli.own_gateway import OwnGateway, to_server_url
from openai_gateway.cli.progress import ProgressView, to_estimate, to_reason, to_summary, to_too_dear
from openai_gateway.cli.servers import NotReady
from openai_gateway.collect.client import Gateway
from openai_gateway.collect.estimate import Budget, Estimator
from openai_gateway.collect.failures import Failure
from openai_gateway.collect.files import BadFiles, check_files
from openai_gateway.collect.journal import Journal, JournalError, to_failures_path, to_metrics_path
from openai_gateway.collect.plan import MOST_REPEATS, MOST_ROWS, BadInput, Past, Plan, Survey
from openai_gateway.collect.progress import COST, INTERRUPTED, Progress
from openai_gateway.collect.rows import CHAT, RESPONSES, to_max_output_tokens
from openai_gateway.collect.run import Run
from openai_gateway.config.base_url import BadBaseUrl, parse_base_url
from openai_gateway.config.prices import DEFAULT_PRICE_FILE, BadPrices, PriceTable, read_prices

KEY_VARIABLE: Final = "OPENAI_GATEWAY_API_KEY"
_DEFAULT_CONCURRENCY: Final = 64
_LARGE_BYTES: Final = 100 * 1024 * 1024
_INTERRUPTED_CODE: Final = 130
_path = click.Path(dir_okay=False, path_type=Path)


class _Refused(click.ClickException):
    """Called wrongly: nothing was done."""

    exit_code = 2


@dataclass(frozen=True)
class _Target:
    """Where calls go, a running gateway or one to be started; and what its calls are thought to cost."""

    running: Gateway | None
    own: OwnGateway | None
    estimator: Estimator

    @property
    def cap(self) -> int | None:
        """How many calls at a time the gateway makes, None if that is not known."""
        return self.own.server.max_concurrent_requests if self.own is not None else None

    @contextlib.contextmanager
    def open(self) -> Iterator[Gateway]:
        """Give the gateway, started if need be. Raises NotReady."""
        if self.own is None:
            assert self.running is not None
            yield self.running
            return
        for note in self.own.notes:
            click.echo(note, err=True)
        click.echo("Starting the gateway ...", err=True)
        # Closed first: a server that is ended waits for the connections of its clients.
        with self.own.run() as (url, key), contextlib.closing(Gateway(url, key)) as gateway:
            _greet(gateway)
            yield gateway


def _greet(gateway: Gateway, server: str | None = None) -> str | None:
    """Return the gateway's model, None if it has not exactly one; `server` has to be there if it is given."""
    found = gateway.greet()
    if isinstance(found, Failure):
        raise click.ClickException(f"{found.message}; {found.what_to_do}")
    if not gateway.knows_rollouts:
        if server is not None:
            raise click.ClickException(f"no gateway with a server {server!r} is there: see --base-url, --server")
        click.echo("note: no openai_gateway answers there; calls go out without rollout ids", err=True)
    return found[0] if len(found) == 1 else None


@click.command()
@click.option("--input", "source", type=_path, help="File of prompts, a JSON object a line.")
@click.option("--output", type=_path, help="File that each answer is appended to, as a line.")
@click.option("--num-repeats", type=click.IntRange(1, MOST_REPEATS), help="Answers for each row (default: 1).")
@click.option(
    "--concurrency",
    type=click.IntRange(1, MOST_CONCURRENT),
    help=f"Calls at a time (default: the config's max_concurrent_requests, else {_DEFAULT_CONCURRENCY}).",
)
@click.option("--limit", type=click.IntRange(1, MOST_ROWS), help="Take the first so many rows only.")
@click.option("--resume/--no-resume", default=None, help="Go on with an output that is there (default: refuse to).")
@click.option("--dry-run", is_flag=True, help="Check the input, estimate tokens and cost, and end.")
@click.option(
    "--max-cost",
    type=click.FloatRange(0, min_open=True),
    metavar="USD",
    help="Stop before the output, earlier runs included, costs more.",
)
@click.option("--price-file", type=_path, help=f"Table of prices (default: the config's, else {DEFAULT_PRICE_FILE}).")
@click.option("--base-url", metavar="URL", help="A running gateway, ending in /v1 (default: start one).")
@click.option("--server", help="Which of the gateway's servers to call (default: the one at plain /v1).")
@click.option("--config", "configs", multiple=True, metavar="PATH", help="Config file of the gateway that is started.")
@click.argument("arguments", nargs=-1, metavar="[+KEY=VALUE]...")
def command(arguments: tuple[str, ...], **given: Any) -> None:
    """Collect the answers to a file of prompts, with repeats; goes on after any interruption.

    A row's responses_create_params go to the Responses API as they are; chat_create_params, or else messages (with
    tools, temperature and the like beside them), to Chat Completions. Each answer becomes one line of the output: the
    row, response, _ng_task_index (the row's number from 0) and _ng_rollout_index. Failures go to
    <output>_failures.jsonl; --resume tries them again, up to 3 times. Tool calls are recorded, not executed.

    \b
    Examples:
      openai-gateway collect --input prompts.jsonl --output rollouts.jsonl --dry-run
      openai-gateway collect --input prompts.jsonl --output rollouts.jsonl --num-repeats 4 --max-cost 20
      openai-gateway collect --input prompts.jsonl --output rollouts.jsonl --num-repeats 4 --max-cost 20 --resume
      openai-gateway collect --base-url http://127.0.0.1:8000/v1 --input prompts.jsonl --output rollouts.jsonl
      openai-gateway collect +input_jsonl_fpath=prompts.jsonl +output_jsonl_fpath=rollouts.jsonl +num_repeats=4

    Other +key=value and ++key=value arguments are config overrides for the gateway that is started. A running gateway
    that wants a key gets the environment's OPENAI_GATEWAY_API_KEY. Ctrl-C lets the calls in flight finish, a second
    one cancels them.

    Exit codes: 0 all done, 1 not all (failed, or stopped by --max-cost), 2 called wrongly, 130 stopped by Ctrl-C.
    """
    options, overrides = take_gym_options(arguments)
    for name, value in options.items():
        if given[name] is not None:
            raise click.UsageError(f"{name} is given twice, as an option and as +key=value")
        given[name] = Path(value) if name in ("source", "output") else value
    for name, option in (("source", "--input"), ("output", "--output")):
        if given[name] is None:
            raise click.UsageError(f"{option} is missing")
    if given["source"].is_file() and given["source"].stat().st_size > _LARGE_BYTES:
        click.echo(f"Checking {given['source']} ...", err=True)
    try:
        _raise_open_files()
        check_files(given["source"], given["output"])
        target = _to_target(given, overrides)
        code = _estimate(given, target) if given["dry_run"] else _collect(given, target)
    except (BadFiles, JournalError) as error:
        raise _Refused(str(error)) from None
    except BadInput as error:
        raise _Refused(f"{given['source']}: {error}") from None
    except NotReady as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from None
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        code = _INTERRUPTED_CODE
    raise SystemExit(code)


def _to_target(given: Mapping[str, Any], overrides: list[str]) -> _Target:
    if given["base_url"] is None:
        own = OwnGateway(given["configs"], overrides, given["server"])
        server = own.server
        bounds = {
            RESPONSES: to_max_output_tokens({**server.extra_body, **server.extra_body_responses}),
            CHAT: to_max_output_tokens({**server.extra_body, **server.extra_body_chat}),
        }
        prices = server.prices if given["price_file"] is None else _read_prices(given["price_file"])
        return _Target(None, own, Estimator(prices, server.openai_model, bounds))
    if given["configs"] or overrides:
        raise click.UsageError("--config and overrides are for a gateway that is started, not for that of --base-url")
    url = to_server_url(given["base_url"], given["server"])
    if not _is_base_url(url):
        raise click.UsageError("--base-url must look like http://127.0.0.1:8000/v1")
    gateway = Gateway(url, os.environ.get(KEY_VARIABLE, "").strip() or None)
    return _Target(gateway, None, Estimator(_read_prices(given["price_file"]), _greet(gateway, given["server"]), {}))


def _is_base_url(url: str) -> bool:
    try:
        return not parse_base_url(url).query
    except BadBaseUrl:
        return False


def _read_prices(path: Path | None) -> PriceTable:
    """Return the prices of a file, else of the usual one if it is there."""
    if path is None and not Path(DEFAULT_PRICE_FILE).is_file():
        return PriceTable()
    try:
        return read_prices(path or Path(DEFAULT_PRICE_FILE))
    except BadPrices as error:
        raise _Refused(f"{path or DEFAULT_PRICE_FILE} {error}") from None


def _estimate(given: Mapping[str, Any], target: _Target) -> int:
    """Tell what a run would come to."""
    may_resume = bool(given["resume"])
    past = Past().read(given["output"], target.estimator) if may_resume else Past()
    survey = _to_plan(given, past).survey(target.estimator)
    click.echo(to_estimate(survey, target.estimator.model, given["max_cost"]))
    if not may_resume and given["output"].is_file() and given["output"].stat().st_size:
        click.echo(f"note: {given['output']} holds an earlier run; go on with it by --resume, or give another --output")
    _may_begin(target.estimator, survey, Budget(given["max_cost"], past.sums.cost_usd), past)
    return 0


def _collect(given: Mapping[str, Any], target: _Target) -> int:
    if given["max_cost"] is not None and not target.estimator.has_price:
        raise _Refused(
            f"--max-cost needs a price, and there is none for {target.estimator.model or 'an unknown model'}; "
            f"name a table that has it with --price-file, in the form of the shipped {DEFAULT_PRICE_FILE}"
        )
    with Journal(given["output"], may_resume=bool(given["resume"])) as journal:
        if journal.cut_bytes:
            click.echo(f"cut off a torn last line of {journal.cut_bytes:,} bytes; its call is made again", err=True)
        past = Past().read(given["output"], target.estimator)
        plan = _to_plan(given, past)
        survey = plan.survey(target.estimator)
        click.echo(to_estimate(survey, target.estimator.model, given["max_cost"]), err=True)
        budget = Budget(given["max_cost"], past.sums.cost_usd)
        run = Run(journal, target.estimator, budget, Progress(past.sums, survey.to_do))
        if not _may_begin(target.estimator, survey, budget, past):
            run.progress.stopping = COST
        elif survey.to_do:
            with target.open() as gateway:
                _run(given, target.cap, gateway, survey, run, plan)
        return _finish(given, survey, run)


def _may_begin(estimator: Estimator, survey: Survey, budget: Budget, past: Past) -> bool:
    """Tell whether the first call's cost is allowed; one that alone is too dear is refused."""
    if survey.first is None or budget.may_take(estimator.cost_usd(survey.first) or 0.0):
        return True
    if not past.sums.cost_usd:
        raise _Refused(to_too_dear(survey.first, estimator))
    return False


def _to_plan(given: Mapping[str, Any], past: Past) -> Plan:
    return Plan(given["source"], given["num_repeats"] or 1, given["limit"], past)


def _run(given: Mapping[str, Any], cap: int | None, gateway: Gateway, survey: Survey, run: Run, plan: Plan) -> None:
    concurrency = given["concurrency"] or cap or _DEFAULT_CONCURRENCY
    if cap is not None and concurrency > cap:
        click.echo(f"--concurrency lowered to the config's max_concurrent_requests, {cap}", err=True)
        concurrency = cap
    view = ProgressView(run.progress, survey)
    run.go(gateway, plan, concurrency, view.show, view.tick_s)
    view.end()


def _finish(given: Mapping[str, Any], survey: Survey, run: Run) -> int:
    """Write and show the sums, say why not all is done, and return the exit code."""
    progress = run.progress
    done = survey.done + progress.answered
    found = {
        "calls": {"wanted": survey.calls, "done": done, "given_up": survey.given_up, "rows": survey.rows},
        **progress.sums.to_json(),
        "this_run": {
            "answers": progress.answered,
            "failures": progress.failed,
            "duration_s": round(progress.took_s, 3),
            "failed": {
                name: {
                    "calls": count,
                    "first_message": progress.examples[name].message,
                    "what_to_do": progress.examples[name].what_to_do,
                }
                for name, count in progress.errors.most_common()
            },
            "stopped_by": progress.stopping,
        },
    }
    path = to_metrics_path(given["output"])
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=2) + "\n")
    part.replace(path)
    click.echo(to_summary(found, to_failures_path(given["output"])))
    click.echo(f"files     {given['output']} and beside it {path.name}")
    reason = to_reason(run, given["max_cost"])
    if reason:
        click.echo(reason, err=True)
    if progress.stopping == INTERRUPTED:
        return _INTERRUPTED_CODE
    return 0 if done == survey.calls else 1


def _raise_open_files() -> None:
    """Allow as many open files as may be: each call holds one here and two in the gateway, which inherits this."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
