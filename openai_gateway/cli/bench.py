"""`openai-gateway bench`: a small load test of a gateway, and of its upstream beside it.

Here is what their times come to. See also: probe.bench_load (how calls are made).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from openai_gateway.accounting.tally import find_percentile
from openai_gateway.cli.exits import FAILED, OK, CalledWrongly, CommandFailed, Stopped
from openai_gateway.cli.screen import print_table, show_progress
from openai_gateway.config.base_url import BadBaseUrl, parse_base_url
from openai_gateway.probe.bench_load import CallTimes, Load
from openai_gateway.probe.probe_client import CALL_ERRORS, ProbeClient, explain_error
from openai_gateway.wire.api import Api

_TOKENS: Final = 64
_APIS: Final = tuple(api.value for api in Api)
_TIMEOUT_S: Final = 600.0
_READY_S: Final = 30.0
_BUSY_SHARE: Final = 0.7
_PERCENTILES: Final = (50, 90, 99)


@click.command(name="bench")
@click.argument("url")
@click.option("--calls", default=200, show_default=True, type=click.IntRange(1, 1_000_000), help="Calls to make.")
@click.option("--concurrency", default=16, show_default=True, type=click.IntRange(1, 512), help="Calls at a time.")
@click.option("--stream", is_flag=True, help="Ask for streams; tells the time to the first token, too.")
@click.option(
    "--api",
    default=Api.RESPONSES.value,
    show_default=True,
    type=click.Choice(_APIS),
    help="API to call.",
)
@click.option("--model", default="any", show_default=True, help="Model to name; a gateway puts its own in its place.")
@click.option("--direct", metavar="URL", help="The upstream: as many calls go to it, by turns; tells what is added.")
@click.option("--json", "is_json", is_flag=True, help="Print the result as JSON.")
def bench_command(url: str, direct: str | None, **given: Any) -> int:
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
    endpoints = {"gateway": _open_endpoint(url, key)}
    if direct is not None:
        endpoints["direct"] = _open_endpoint(direct, os.environ.get("OPENAI_API_KEY_DIRECT", key))
    api = next(api for api in Api if api == given["api"])
    body = {"model": given["model"], "stream": given["stream"], api.token_limit: _TOKENS}
    load = Load(list(endpoints.values()), api, body, given["calls"])
    return measure(endpoints, load, given["concurrency"], is_json=given["is_json"])


def measure(endpoints: Mapping[str, ProbeClient], load: Load, concurrency: int, *, is_json: bool) -> int:
    """Make a load's calls to the endpoints, print what they took, and return the exit code."""
    for endpoint in endpoints.values():
        _await_answer(endpoint)
    calls = "1 call" if load.total == 1 else f"{load.total} calls, {concurrency} at a time,"
    click.echo(f"{calls} of up to {_TOKENS} output tokens: a real upstream charges for them.", err=True)
    with show_progress(load.total, "calls") as show:
        is_whole = load.run(concurrency, show)
    by_name = dict(zip(endpoints, load.times, strict=True))
    result = _sum_up_times(by_name, load)
    if is_json:
        click.echo(json.dumps(result, indent=2))
    else:
        _print_result(result)
    if not is_whole:
        raise Stopped("stopped before all calls were made")
    return FAILED if any(times.errors for times in by_name.values()) else OK


def _open_endpoint(given: str, key: str) -> ProbeClient:
    try:
        url = parse_base_url(given)
    except BadBaseUrl as error:
        shown = repr(given[:60]) if error.may_be_shown else "what was given (not shown)"
        raise CalledWrongly(f"{shown} is no URL such as http://127.0.0.1:8000/v1") from None
    whole = url.geturl() if url.path else url._replace(path="/v1").geturl()
    return ProbeClient(whole, {"authorization": f"Bearer {key}"}, timeout_s=_TIMEOUT_S, ca_file=None)


def _await_answer(endpoint: ProbeClient) -> None:
    """Make sure that somebody answers before calls are paid for or timed: any answer to a free request will do."""
    connection = endpoint.make_connection()
    connection.timeout = _READY_S
    is_connected = False
    try:
        connection.connect()
        is_connected = True
        endpoint.call("/models", over=connection)
    except CALL_ERRORS as error:
        said, cure = explain_error(error, endpoint.host, endpoint.port, is_connected=is_connected, url_name="the URL")
        raise CommandFailed(f"{endpoint.host}:{endpoint.port}: {said}; {cure}") from None
    finally:
        connection.close()


def _sum_up_times(times: Mapping[str, CallTimes], load: Load) -> dict[str, Any]:
    by_name: dict[str, Any] = {name: _compute_figures(each) for name, each in times.items()}
    result = {
        "calls": sum(each.calls for each in times.values()),
        "took_s": round(load.took_s, 3),
        "calls_per_s": round(sum(each.calls for each in times.values()) / load.took_s, 1),
        "generator_cpu_share": round(load.cpu_s / load.took_s, 3),
        **by_name,
    }
    if len(by_name) == 2:
        result["added"] = {
            kind: _subtract(by_name["gateway"][kind], by_name["direct"][kind])
            for kind in ("latency_ms", "first_token_ms")
        }
    return result


def _compute_figures(times: CallTimes) -> dict[str, Any]:
    return {
        "calls": times.calls,
        "failed": len(times.errors),
        "errors": dict(Counter(times.errors).most_common()),
        "latency_ms": _compute_percentiles(times.took_s),
        "first_token_ms": _compute_percentiles(times.token_s),
    }


def _compute_percentiles(times_s: Sequence[float]) -> dict[str, float] | None:
    """Return percentiles in milliseconds, None of no times."""
    counts = Counter(times_s).items()
    found = {f"p{percent}": find_percentile(counts, percent) for percent in _PERCENTILES}
    return {name: round(time_s * 1000, 2) for name, time_s in found.items() if time_s is not None} or None


def _subtract(mine: dict[str, float] | None, other: dict[str, float] | None) -> dict[str, float] | None:
    return {name: round(mine[name] - other[name], 2) for name in mine} if mine and other else None


def _print_result(result: dict[str, Any]) -> None:
    columns = [name for name in ("gateway", "direct", "added") if name in result]
    rows = [[what, *(str(result[name].get(what, "")) for name in columns)] for what in ("calls", "failed")]
    for kind, title in (("latency_ms", "latency"), ("first_token_ms", "first token")):
        for percent in (f"p{number}" for number in _PERCENTILES):
            if result["gateway"][kind] is not None:
                cells = [_to_cell(result[name][kind], percent, is_signed=name == "added") for name in columns]
                rows.append([f"{title} {percent}", *cells])
    print_table(["", *columns], rows)
    for name in columns:
        for error, count in result[name].get("errors", {}).items():
            click.echo(f"failed, {name}: {count} x {error}")
    calls = "1 call" if result["calls"] == 1 else f"{result['calls']} calls"
    both = ", both together" if len(columns) > 1 else ""
    click.echo(f"{calls} in {result['took_s']:g} s: {result['calls_per_s']:g} calls/s{both}")
    share = result["generator_cpu_share"]
    click.echo(f"This load generator used {share:.0%} of the one core that it can use.")
    if share > _BUSY_SHARE:
        click.echo("It is near its own limit: the gateway may do more than this shows.")


def _to_cell(figures: dict[str, float] | None, percent: str, *, is_signed: bool) -> str:
    if figures is None:
        return "-"
    return f"{figures[percent]:+.1f} ms" if is_signed else f"{figures[percent]:.1f} ms"
