"""`openai-gateway bench`: a small load test of a gateway, and of its upstream beside it.

The load is `load`'s; here is what it comes to.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

from openai_gateway.accounting.tally import find_percentile
from openai_gateway.config.base_url import BadBaseUrl, parse_base_url
from openai_gateway.probe.endpoint import CALL_ERRORS, Endpoint, explain_error
from openai_gateway.probe.load import CallTimes, Load

_TOKENS: Final = 64
_TIMEOUT_S: Final = 600.0
_READY_S: Final = 30.0
_LINE_EVERY_S: Final = 5.0
_BUSY_SHARE: Final = 0.7
_PERCENTILES: Final = (50, 90, 99)
_LIMITS: Final = {"responses": "max_output_tokens", "chat": "max_completion_tokens"}


@click.command(name="bench")
@click.argument("url")
@click.option("--calls", default=200, show_default=True, type=click.IntRange(1, 1_000_000), help="Calls to make.")
@click.option("--concurrency", default=16, show_default=True, type=click.IntRange(1, 512), help="Calls at a time.")
@click.option("--stream", is_flag=True, help="Ask for streams; tells the time to the first token, too.")
@click.option("--api", default="responses", show_default=True, type=click.Choice(list(_LIMITS)), help="API to call.")
@click.option("--model", default="any", show_default=True, help="Model to name; a gateway puts its own in its place.")
@click.option("--direct", metavar="URL", help="The upstream: as many calls go to it, by turns; tells what is added.")
@click.option("--json", "is_json", is_flag=True, help="Print the result as JSON.")
def command(
    url: str, calls: int, concurrency: int, stream: bool, api: str, model: str, direct: str | None, is_json: bool
) -> None:
    """Measure calls/s and latency at URL, a base URL such as http://127.0.0.1:8000/v1.

    CALLS TO A REAL UPSTREAM COST: each asks for up to 64 output tokens. The key sent is $OPENAI_API_KEY ("any"
    without it), to the upstream $OPENAI_API_KEY_DIRECT if that is set. Connections are opened before the first call,
    and a call's time ends with its answer's last byte. Exit code 1 if a call failed.

    \b
    Without any cost, with the simulator as upstream:
      openai-gateway simulate --latency 50 &
      openai-gateway serve ++policy_base_url=http://127.0.0.1:8010/v1 ++policy_api_key=any ++policy_model_name=m &
      openai-gateway bench http://127.0.0.1:8000/v1 --direct http://127.0.0.1:8010/v1
    \b
    More examples:
      openai-gateway bench http://127.0.0.1:8000/v1 --stream --api chat --calls 1000 --concurrency 64
      openai-gateway bench http://127.0.0.1:8000/judge_model/v1 --json | jq .gateway.latency_ms.p99
    """
    key = os.environ.get("OPENAI_API_KEY", "any")
    targets = {"gateway": _to_target(url, key)}
    if direct is not None:
        targets["direct"] = _to_target(direct, os.environ.get("OPENAI_API_KEY_DIRECT", key))
    for target in targets.values():
        _await_answer(target)
    load = Load(list(targets.values()), api, {"model": model, "stream": stream, _LIMITS[api]: _TOKENS}, calls)
    shown = f"{load.total} calls, {concurrency} at a time, of up to {_TOKENS} output tokens"
    click.echo(f"{shown}: a real upstream charges for them.", err=True)
    with _progress(load.total) as show:
        is_whole = load.run(concurrency, show)
    tallies = dict(zip(targets, load.times, strict=True))
    result = _to_result(tallies, load)
    click.echo(json.dumps(result, indent=2) if is_json else "\n".join(_to_lines(result)))
    if not is_whole:
        raise click.ClickException("stopped before all calls were made")
    if any(tally.errors for tally in tallies.values()):
        raise click.exceptions.Exit(1)


def _to_target(given: str, key: str) -> Endpoint:
    try:
        url = parse_base_url(given)
    except BadBaseUrl as error:
        shown = repr(given[:60]) if error.may_be_shown else "what was given (not shown)"
        raise click.UsageError(f"{shown} is no URL such as http://127.0.0.1:8000/v1") from None
    whole = url.geturl() if url.path else url._replace(path="/v1").geturl()
    return Endpoint(whole, {"authorization": f"Bearer {key}"}, timeout_s=_TIMEOUT_S, ca_file=None)


def _await_answer(target: Endpoint) -> None:
    """Make sure that somebody answers before calls are paid for or timed: any answer to a free request will do."""
    connection = target.make_connection()
    connection.timeout = _READY_S
    is_connected = False
    try:
        connection.connect()
        is_connected = True
        target.call("/models", over=connection)
    except CALL_ERRORS as error:
        said, cure = explain_error(error, target.host, target.port, is_connected=is_connected, url_name="the URL")
        raise click.ClickException(f"{target.host}:{target.port}: {said}; {cure}") from None
    finally:
        connection.close()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Give a function to tell the number of calls that are over: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with click.progressbar(length=total, label="calls", file=sys.stderr, show_pos=True) as bar:
            yield lambda done: bar.update(done - bar.pos)
        return
    last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            click.echo(f"{done}/{total} calls", err=True)

    yield show


def _to_result(tallies: dict[str, CallTimes], load: Load) -> dict[str, Any]:
    by_name: dict[str, Any] = {name: _to_figures(tally) for name, tally in tallies.items()}
    result = {
        "calls": sum(tally.calls for tally in tallies.values()),
        "took_s": round(load.took_s, 3),
        "calls_per_s": round(sum(tally.calls for tally in tallies.values()) / load.took_s, 1),
        "generator_cpu_share": round(load.cpu_s / load.took_s, 3),
        **by_name,
    }
    if len(by_name) == 2:
        result["added"] = {
            kind: _subtract(by_name["gateway"][kind], by_name["direct"][kind])
            for kind in ("latency_ms", "first_token_ms")
        }
    return result


def _to_figures(tally: CallTimes) -> dict[str, Any]:
    return {
        "calls": tally.calls,
        "failed": len(tally.errors),
        "errors": dict(Counter(tally.errors).most_common()),
        "latency_ms": _to_percentiles(tally.took_s),
        "first_token_ms": _to_percentiles(tally.token_s),
    }


def _to_percentiles(times_s: Sequence[float]) -> dict[str, float] | None:
    """Return percentiles in milliseconds, None of no times."""
    counts = Counter(times_s).items()
    found = {f"p{percent}": find_percentile(counts, percent) for percent in _PERCENTILES}
    return {name: round(time_s * 1000, 2) for name, time_s in found.items() if time_s is not None} or None


def _subtract(mine: dict[str, float] | None, other: dict[str, float] | None) -> dict[str, float] | None:
    return {name: round(mine[name] - other[name], 2) for name in mine} if mine and other else None


def _to_lines(result: dict[str, Any]) -> Iterator[str]:
    columns = [name for name in ("gateway", "direct", "added") if name in result]
    yield " " * 18 + "".join(f"{name:>14}" for name in columns)
    for what in ("calls", "failed"):
        yield f"{what:18}" + "".join(f"{result[name][what]:>14}" for name in columns if name != "added")
    for kind, title in (("latency_ms", "latency"), ("first_token_ms", "first token")):
        for percent in (f"p{number}" for number in _PERCENTILES):
            if result["gateway"][kind] is not None:
                yield f"{title + ' ' + percent:18}" + "".join(
                    _to_cell(result[name][kind], percent, is_signed=name == "added") for name in columns
                )
    for name in columns:
        for error, count in result[name].get("errors", {}).items():
            yield f"failed, {name}: {count} x {error}"
    both = ", both together" if len(columns) > 1 else ""
    yield f"{result['calls']} calls in {result['took_s']:g} s: {result['calls_per_s']:g} calls/s{both}"
    share = result["generator_cpu_share"]
    yield f"This load generator used {share:.0%} of the one core that it can use." + (
        " It is near its own limit: the gateway may do more than this shows." if share > _BUSY_SHARE else ""
    )


def _to_cell(figures: dict[str, float] | None, percent: str, *, is_signed: bool) -> str:
    if figures is None:
        return f"{'-':>14}"
    text = f"{figures[percent]:+.1f} ms" if is_signed else f"{figures[percent]:.1f} ms"
    return f"{text:>14}"
