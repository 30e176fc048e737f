"""`openai-gateway config`: shows the config that a server would run with, each value's origin, and no secret.

See also: config.load (which value wins), config.origins (where a value came from), config.redact (what is masked).
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click
import yaml

from openai_gateway.cli import choosing
from openai_gateway.cli.exits import OK
from openai_gateway.cli.screen import count_columns
from openai_gateway.config import GatewayConfig, ServerConfig
from openai_gateway.config.keys import KEYS
from openai_gateway.config.redact import find_secrets, mask, mask_url, reveal_all

_PARENTS: Final = ("responses_api_models", "openai_model")
_MOST_COLUMNS: Final = 56


@click.command(name="config")
@choosing.config_options
@click.option("--validate", is_flag=True, help="Only check it; prints one line.")
@click.option("--json", "is_json", is_flag=True, help="As JSON: each key's value and origin.")
def config_command(config: tuple[str, ...], overrides: tuple[str, ...], validate: bool, is_json: bool) -> int:
    """Show the resolved config, and where each value came from; secrets are masked. Calls nobody.

    An origin is a file, env.yaml, the command line, or default. A value that ${...} stands for has two: the place of
    the ${...}, and the place of the value.

    \b
    Examples:
      openai-gateway config
      openai-gateway config --validate && openai-gateway serve
      openai-gateway config --config policy.yaml ++policy_model_name=gpt-5-mini
      openai-gateway config --json | jq '.servers.policy_model.max_retries'
    """
    chosen = choosing.load(choosing.make_environ(config, overrides))
    if validate:
        return print_verdict(chosen)
    return print_json(chosen) if is_json else print_yaml(chosen)


def print_verdict(chosen: GatewayConfig) -> int:
    """Say in a line that a config can be used; return the exit code."""
    count = len(chosen.servers)
    servers = f"{count} {'server' if count == 1 else 'servers'}, {', '.join(chosen.servers)}"
    click.echo(f"ok: {servers}; at plain /v1: {chosen.default_server}")
    return OK


def print_json(chosen: GatewayConfig) -> int:
    """Print a config for programs; return the exit code."""
    click.echo(json.dumps(_to_json(chosen), indent=2))
    return OK


def print_yaml(chosen: GatewayConfig) -> int:
    """Print a config as YAML, origins as comments; return the exit code."""
    click.echo("\n".join(_to_yaml(chosen)))
    return OK


def _to_values(server: ServerConfig) -> dict[str, Any]:
    """Return a server's values in plain types, masked."""
    values = {key: getattr(server, key) for key in KEYS}
    values["openai_base_url"] = mask_url(server.openai_base_url)
    shown: dict[str, Any] = mask(values, {*reveal_all(values), *find_secrets(values)})
    return shown


def _to_json(chosen: GatewayConfig) -> dict[str, Any]:
    servers = {
        name: {
            key: {"value": value, "origin": chosen.origins[_dotted(name, key)]}
            for key, value in _to_values(server).items()
        }
        for name, server in chosen.servers.items()
    }
    return {"servers": servers, "default_server": chosen.default_server, "notes": list(chosen.notes)}


def _dotted(server: str, *keys: str) -> str:
    return ".".join([server, *_PARENTS, *keys])


def _to_yaml(chosen: GatewayConfig) -> Iterator[str]:
    yield _dim(f"# at plain /v1: {chosen.default_server}")
    yield from (_dim(f"# {note}") for note in chosen.notes)
    for name, server in chosen.servers.items():
        yield f"{name}:"
        yield from (f"{'  ' * depth}{parent}:" for depth, parent in enumerate(_PARENTS, 1))
        lines = list(_to_lines(name, _to_values(server), chosen))
        width = min(_MOST_COLUMNS, max(len(text) for text, _ in lines))
        for text, origin in lines:
            yield from _place_origin(text, origin, width)


def _place_origin(text: str, origin: str, width: int) -> Iterator[str]:
    """Give a line with its origin beside it, or below it where a terminal has no room beside."""
    comment = f"# {origin}"
    columns = count_columns(sys.stdout)
    if not origin:
        yield text
    elif max(width, len(text)) + 2 + len(comment) <= columns:
        yield f"{text:{width}}  {_dim(comment)}"
    else:
        yield text
        indent = " " * (len(text) - len(text.lstrip()) + 2)
        for line in textwrap.wrap(comment, columns - 1, initial_indent=indent, subsequent_indent=f"{indent}# "):
            yield _dim(line)


def _to_lines(name: str, values: dict[str, Any], chosen: GatewayConfig) -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield f"      {key}:", ""
            for inner, content in value.items():
                yield f"        {_dump({inner: content})}", chosen.origins[_dotted(name, key, inner)]
        else:
            yield f"      {_dump({key: value})}", chosen.origins[_dotted(name, key)]


def _dump(pair: dict[str, Any]) -> str:
    """Return `key: value` on one line."""
    text: str = yaml.safe_dump(pair, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    # What YAML would spread over several lines, JSON, which is YAML too, doesn't.
    return (text if text.count("\n") == 1 else json.dumps(pair)).strip()[1:-1]


def _dim(comment: str) -> str:
    return click.style(comment, dim=True)
