"""`openai-gateway check`: tries the upstream of each server and says what works, and what to do about the rest.

Here is how findings are shown. See also: probe.examination (what is tried, and what a finding means).
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from openai_gateway.cli import choosing, exits
from openai_gateway.cli.exits import CalledWrongly
from openai_gateway.cli.screen import print_indented
from openai_gateway.config import GatewayConfig
from openai_gateway.config.redact import mask_url
from openai_gateway.probe.examination import FAILED, OK, UNKNOWN, Examination, Finding
from openai_gateway.probe.probes import FEW_TOKENS, TOOL_TOKENS
from openai_gateway.probe.redis_probe import examine_redis
from openai_gateway.wire.api import Api

_CURE_START: Final = "      -> "
_MARKS: Final = {OK: ("✓", "green"), FAILED: ("✗", "red"), UNKNOWN: ("?", "yellow")}
_PLAIN_MARKS: Final = {OK: "ok    ", FAILED: "FAILED", UNKNOWN: "?     "}
_COST: Final = (
    f"Up to 5 small calls a server, of {FEW_TOKENS} output tokens at most ({TOOL_TOKENS} for the function call): "
    "this costs a few tokens."
)


@click.command(name="check")
@choosing.config_options
@click.option("--server", help="Only this server (default: all).")
@click.option("--api", type=click.Choice([api.value for api in Api]), help="Only this API (default: both).")
@click.option("--timeout", default=60.0, show_default=True, type=click.FloatRange(1), help="Seconds for each call.")
@click.option("--json", "is_json", is_flag=True, help="Print the findings as JSON.")
def check_command(
    config: tuple[str, ...],
    overrides: tuple[str, ...],
    server: str | None,
    api: str | None,
    timeout: float,
    is_json: bool,
) -> int:
    """Try the upstream as the server would call it: name, TLS, key, model, both APIs, streams, function calls.

    Costs a few tokens. Each failure comes with what to do. Exit code 0: all is well; 1: something failed; 2: the
    config is wrong.

    \b
    Examples:
      openai-gateway check
      openai-gateway check --server judge_model --api chat
      openai-gateway check --config policy.yaml ++policy_model_name=gpt-5-mini
      openai-gateway check --json | jq .ok
    """
    chosen = choosing.load(choosing.make_environ(config, overrides))
    if server is not None and server not in chosen.servers:
        raise CalledWrongly(f"there is no server {server!r}; there are: {', '.join(chosen.servers)}")
    names = list(chosen.servers) if server is None else [server]
    return check_servers(chosen, names, [one for one in Api if api in (None, one)], timeout, is_json=is_json)


def check_servers(
    chosen: GatewayConfig, names: Sequence[str], apis: Sequence[Api], timeout_s: float, *, is_json: bool
) -> int:
    """Examine the upstreams of some servers, show what is found, and return the exit code."""
    if is_json:
        click.echo(_COST, err=True)
    else:
        print_indented(_COST)
    found: dict[str, list[Finding]] = {}
    for name in names:
        server = chosen.servers[name]
        if not is_json:
            click.echo(f"\n{name}: {server.openai_model} at {mask_url(server.openai_base_url)}")
            warning = server.prices.describe_age()
            if warning is not None:
                click.echo(f"  {warning}")
        findings: list[Finding] = []
        found[name] = findings
        examination = Examination(server, apis, timeout_s, _find_origins(chosen, name))
        for finding in itertools.chain(examine_redis(server), examination.run()):
            findings.append(finding)
            if not is_json:
                _print_finding(finding)
    failures = sum(finding.result == FAILED for findings in found.values() for finding in findings)
    if is_json:
        click.echo(json.dumps(_to_json(chosen, found), indent=2))
    else:
        click.echo(f"\n{'All is well.' if not failures else f'{failures} failed; what to do is below it.'}")
    return exits.FAILED if failures else exits.OK


def _find_origins(chosen: GatewayConfig, name: str) -> Callable[[str], str]:
    """Return what tells where a key of a server's config has its value from."""
    is_in_file = chosen.servers[name].openai_api_key_file is not None

    def origin_of(key: str) -> str:
        key = "openai_api_key_file" if key == "openai_api_key" and is_in_file else key
        return chosen.origins[f"{name}.responses_api_models.openai_model.{key}"]

    return origin_of


def _print_finding(finding: Finding) -> None:
    mark, colour = _MARKS[finding.result]
    try:
        mark.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        mark = _PLAIN_MARKS[finding.result]
    start = f"  {click.style(mark, fg=colour)} {finding.name:20} {finding.took_s * 1000:6.0f} ms  "
    print_indented(finding.detail, len(click.unstyle(start)), start)
    if finding.cure:
        print_indented(finding.cure, len(_CURE_START), _CURE_START)


def _to_json(chosen: GatewayConfig, found: dict[str, list[Finding]]) -> dict[str, Any]:
    servers = {
        name: {
            "base_url": mask_url(chosen.servers[name].openai_base_url),
            "model": chosen.servers[name].openai_model,
            "checks": [
                {
                    "check": finding.name,
                    "result": finding.result,
                    "ms": round(finding.took_s * 1000, 1),
                    "detail": finding.detail,
                    "cure": finding.cure or None,
                }
                for finding in findings
            ],
        }
        for name, findings in found.items()
    }
    is_ok = all(finding.result != FAILED for findings in found.values() for finding in findings)
    return {"ok": is_ok, "servers": servers}
