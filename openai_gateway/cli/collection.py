"""What `collect` does, in its order: survey the rows, tell what they come to, make the calls, and sum up.

See also: cli.collect (options, and how errors end the command), collect (the room of each step's work).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from openai_gateway.cli import exits
from openai_gateway.cli.collection_summary import (
    describe_estimate,
    describe_stop,
    describe_sums,
    describe_too_dear,
    sum_up_run,
    to_plural,
)
from openai_gateway.cli.exits import CalledWrongly
from openai_gateway.cli.progress_line import ProgressView
from openai_gateway.cli.target import Target
from openai_gateway.collect.budget import Budget
from openai_gateway.collect.client import Gateway
from openai_gateway.collect.collection_settings import (
    CollectionSettings,
    add_run,
    find_differences,
    read_settings,
    write_settings,
)
from openai_gateway.collect.entries import Entry, JournalError
from openai_gateway.collect.gym_sums import write_gym_sums
from openai_gateway.collect.journal import Journal
from openai_gateway.collect.marks import DONE, Marks
from openai_gateway.collect.params import Additions
from openai_gateway.collect.past import Past
from openai_gateway.collect.plan import Plan, Survey
from openai_gateway.collect.report import write_report
from openai_gateway.collect.run import Run
from openai_gateway.collect.run_files import (
    derive_failures_path,
    derive_inputs_path,
    derive_metrics_path,
    derive_replaced_path,
    derive_settings_path,
)
from openai_gateway.collect.run_progress import COST, INTERRUPTED, RunProgress
from openai_gateway.collect.shards import Shard
from openai_gateway.collect.sums import CUT_OFF
from openai_gateway.wire.usage import read_answer

_DEFAULT_CONCURRENCY: Final = 64


@dataclass(frozen=True)
class CollectionOptions:
    """What is to be collected, from which rows, and within which bounds."""

    source: Path
    output: Path
    num_repeats: int
    additions: Additions
    limit: int | None = None
    shard: Shard | None = None
    concurrency: int | None = None
    max_cost: float | None = None
    may_resume: bool = False
    may_mix: bool = False
    is_redo: bool = False
    report: Path | None = None
    group_by: str | None = None


def estimate(options: CollectionOptions, target: Target) -> int:
    """Tell what a run would come to; return the exit code."""
    past = _read_past(options, target)
    survey = _make_plan(options, past).survey(target.estimator)
    click.echo(describe_estimate(survey, target.estimator, options.max_cost, _choose_concurrency(options, target)))
    if not options.may_resume and options.output.is_file() and options.output.stat().st_size:
        click.echo(f"note: {options.output} holds an earlier run; go on with it by --resume, or give another --output")
    _may_begin(target, survey, Budget(options.max_cost, target.estimator, past.sums.spent_usd), past)
    return exits.OK


def collect(options: CollectionOptions, target: Target) -> int:
    """Make the calls that are to be made; return the exit code."""
    if options.max_cost is not None and not target.estimator.has_price:
        raise CalledWrongly(
            f"--max-cost needs a price, and there is none for {target.estimator.model or 'an unknown model'}; "
            f"name a table that has it with --price-file, in the form that `openai-gateway docs operations` shows"
        )
    with Journal(options.output, may_resume=options.may_resume) as journal:
        if journal.cut_bytes:
            click.echo(f"cut off a torn last line of {journal.cut_bytes:,} bytes; its call is made again", err=True)
        past = _read_past(options, target)
        plan = _make_plan(options, past)
        survey = plan.survey(target.estimator)
        # Only now, as what is wrong with the input or the settings has been told.
        if options.is_redo and _take_out_cut_off(options, journal, plan):
            past = _read_past(options, target, is_told=True)
            plan = plan.renew(past)
            survey = plan.survey(target.estimator)
        click.echo(
            describe_estimate(survey, target.estimator, options.max_cost, _choose_concurrency(options, target)),
            err=True,
        )
        budget = Budget(options.max_cost, target.estimator, past.sums.spent_usd)
        run = Run(journal, target.estimator, budget, RunProgress(past.sums, survey.to_do))
        may_begin = _may_begin(target, survey, budget, past)
        settings = add_run(read_settings(options.output), _make_settings(options, target, survey))

        def write_what_was_asked() -> None:
            write_settings(options.output, settings)
            if survey.has_agents:
                plan.write_inputs(derive_inputs_path(options.output))

        write_what_was_asked()
        if not may_begin:
            run.progress.stopping = COST
        elif survey.to_do:
            with target.open() as gateway:
                _run(options, target, gateway, survey, run, plan)
        return _finish(options, target, survey, run, write_what_was_asked)


def _take_out_cut_off(options: CollectionOptions, journal: Journal, plan: Plan) -> int:
    """Move the answers out that were cut off and that the plan asks for again; return how many."""
    wanted = Marks()
    for call in plan.all_calls():
        wanted.finish(call.row.task_index, call.rollout_index)

    def is_unwanted(entry: Entry) -> bool:
        is_cut_off = read_answer(bytes(entry.response)).finish_reason in CUT_OFF
        return is_cut_off and wanted.get(entry.task_index, entry.rollout_index) == DONE

    replaced = derive_replaced_path(options.output)
    count = journal.answers.take_out(is_unwanted, replaced)
    if count:
        click.echo(f"{to_plural(count, 'answer')} cut off before: asked for again, and kept in {replaced}", err=True)
    return count


def write_metrics(output: Path, found: Mapping[str, Any]) -> Path:
    """Write the sums over an output to the file beside it; return where."""
    path = derive_metrics_path(output)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(found, indent=2) + "\n")
        part.replace(path)
    except OSError as error:
        # Of a full disk it would not say which file it is about.
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    return path


def print_line(text: str) -> None:
    """Write to stdout, whose reader may have left: what was done is done all the same."""
    try:
        click.echo(text)
    except BrokenPipeError:
        # Python flushes it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _read_past(options: CollectionOptions, target: Target, *, is_told: bool = False) -> Past:
    """Return what earlier runs left; that it mixes settings is told unless it was already. Raises CalledWrongly."""
    if not options.may_resume:
        return Past()
    before = read_settings(options.output)
    now = _make_settings(options, target, Survey())
    differences = list(dict.fromkeys(found for each in before for found in find_differences(each, now)))
    past = Past().read(options.output, target.estimator, now.unheeded.union(*(each.unheeded for each in before)))
    if differences and past.answers:
        what = ", ".join(differences)
        if not options.may_mix and not options.is_redo:
            raise CalledWrongly(
                f"{options.output} was collected with other settings ({what}); set them as before, give another "
                "--output, or take both into one with --mix"
            )
        if not is_told:
            click.echo(f"note: {options.output} mixes answers of different settings: {what}", err=True)
    if any(each.shard != (str(options.shard) if options.shard else None) for each in before):
        raise CalledWrongly(f"{options.output} is of shard {before[-1].shard or 'none'}; give another --output")
    return past


def _make_settings(options: CollectionOptions, target: Target, survey: Survey) -> CollectionSettings:
    return CollectionSettings(
        model=target.estimator.model,
        params=options.additions.values,
        has_seeds=options.additions.has_seeds,
        extra_body=None if target.extra_body is None else {api: dict(body) for api, body in target.extra_body.items()},
        rows=survey.all_rows,
        repeats=options.num_repeats,
        shard=None if options.shard is None else str(options.shard),
        has_own_indices=survey.has_own_indices,
    )


def _make_plan(options: CollectionOptions, past: Past) -> Plan:
    return Plan(options.source, options.num_repeats, options.limit, past, options.additions, options.shard)


def _may_begin(target: Target, survey: Survey, budget: Budget, past: Past) -> bool:
    """Tell whether the first call's cost is allowed; one that alone is too dear, or has no price, is refused."""
    if survey.first is None or budget.limit_usd is None:
        return True
    estimator = target.estimator
    if survey.cost_usd is None:
        tier = estimator.find_tier(survey.first)
        raise CalledWrongly(
            f"--max-cost needs a price for the service tier {tier!r}; add it to the table of --price-file"
        )
    if budget.may_take(estimator.make_claim(survey.first)):
        return True
    if not past.sums.spent_usd:
        raise CalledWrongly(describe_too_dear(survey.first, estimator))
    return False


def _choose_concurrency(options: CollectionOptions, target: Target) -> int:
    return min(options.concurrency or target.cap or _DEFAULT_CONCURRENCY, target.cap or options.concurrency or 10**9)


def _run(options: CollectionOptions, target: Target, gateway: Gateway, survey: Survey, run: Run, plan: Plan) -> None:
    concurrency = _choose_concurrency(options, target)
    if options.concurrency is not None and options.concurrency > concurrency:
        click.echo(f"--concurrency lowered to the config's max_concurrent_requests, {concurrency}", err=True)
    view = ProgressView(run.progress, survey)
    run.go(gateway, plan, concurrency, view.show, view.tick_s)
    view.end()


def _finish(
    options: CollectionOptions, target: Target, survey: Survey, run: Run, write_what_was_asked: Callable[[], None]
) -> int:
    """Write and show the sums, say why not all is done, and return the exit code."""
    found = sum_up_run(survey, run.progress)
    files, error = [str(options.output)], None
    try:
        if not derive_settings_path(options.output).exists():
            # Somebody removed it in the run, with the output.
            write_what_was_asked()
        for path in _write_beside(options, target, survey, found):
            files.append(path)
    except (OSError, JournalError) as failed:
        error = failed
    print_line(f"{describe_sums(found, derive_failures_path(options.output))}\nfiles     {', '.join(files)}")
    reason = describe_stop(run, options.max_cost)
    if reason:
        click.echo(reason, err=True)
    if error is not None:
        click.echo(f"Not all files were written: {exits.describe_error(error)}", err=True)
    if run.progress.stopping == INTERRUPTED:
        return exits.INTERRUPTED
    is_all_done = survey.done + run.progress.answered == survey.calls
    return exits.OK if is_all_done and run.error is None and error is None else exits.FAILED


def _write_beside(
    options: CollectionOptions, target: Target, survey: Survey, found: Mapping[str, Any]
) -> Iterator[str]:
    """Write the files beside the output and yield the name of each. Raises OSError, JournalError."""
    yield write_metrics(options.output, found).name
    if survey.has_agents and (gym := write_gym_sums(options.output)) is not None:
        yield derive_inputs_path(options.output).name
        yield gym.name
    if options.report is not None:
        write_report(options.report, options.output, target.estimator, options.group_by)
        yield str(options.report)
