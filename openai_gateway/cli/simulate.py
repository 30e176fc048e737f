"""`openai-gateway simulate`: runs the simulator under gunicorn.

See also: simulator (what it answers), servers (how gunicorn is run).
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
import yaml

from openai_gateway.cli.servers import become_gunicorn, find_url, listen
from openai_gateway.simulator.settings import list_limits, load_settings

# The settings' names of options that have another one.
_SETTINGS: Final = {"latency": "latency_ms", "fail": "status"}


def _parse_settings(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    settings = {}
    for text in given:
        name, mark, value = text.partition("=")
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            mark = ""
        if not mark:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, with a value in YAML")
    return settings


def _describe_limits() -> str:
    lines = [textwrap.wrap(meaning, 54) for _, _, meaning in list_limits()]
    names = [name for name, _, _ in list_limits()]
    told = (f"  {name:<22}" + f"\n{' ' * 24}".join(wrapped) for name, wrapped in zip(names, lines, strict=True))
    return "\b\nSettings of limits, for --set or the file:\n" + "\n".join(told)


@click.command(name="simulate", epilog=_describe_limits())
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8010, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML settings file.")
@click.option("--api-key", help="The only key that is taken (default: any).")
@click.option("--latency", type=click.IntRange(0), help="Milliseconds before each answer (default: 0).")
@click.option(
    "--rpm", type=click.IntRange(1), help="Requests per minute; more get 429 with the real headers (default: no limit)."
)
@click.option("--tpm", type=click.IntRange(1), help="Tokens per minute, likewise (default: no limit).")
@click.option(
    "--set", "given_settings", metavar="NAME=VALUE", multiple=True, callback=_parse_settings, help="Any setting."
)
@click.option("--fail", type=click.IntRange(400, 599), help="Answer every call with this status, such as 429 or 503.")
def simulate_command(host: str, port: int, config: Path | None, given_settings: dict[str, Any], **given: Any) -> int:
    """Run the simulator: an OpenAI-like upstream that costs nothing.

    \b
    Examples:
      openai-gateway simulate                                  # answers at once, takes any key and model
      openai-gateway simulate --latency 800 --rpm 600          # slow, and 429 after 600 calls in a minute
      openai-gateway simulate --tpm 90000                      # 429 after 90,000 tokens in a minute
      openai-gateway simulate --rpm 3000 --set burst_s=5 --set dialect=azure --set window_s=1
      openai-gateway simulate --set in_flight=40               # 429 to the 41st call at a time
      openai-gateway simulate --fail 503                       # every call fails
      openai-gateway simulate --config conf/simulator.yaml --port 9000

    \b
    Call it, or put a gateway before it:
      curl http://127.0.0.1:8010/v1/responses -H 'authorization: Bearer any' \\
        -H 'content-type: application/json' -d '{"model": "m", "input": "Hello"}'
      openai-gateway serve ++policy_base_url=http://127.0.0.1:8010/v1 ++policy_api_key=any ++policy_model_name=m

    A call may script its own behaviour in its metadata, such as {"sim_status": "429", "sim_times": "2"};
    conf/simulator.yaml lists all of it, and `openai-gateway docs simulator` explains limits.
    What the simulator saw is at /sim/stats.
    """
    options = {_SETTINGS.get(name, name): value for name, value in given.items() if value is not None}
    return serve_simulator(host, port, config, {**given_settings, **options})


def serve_simulator(host: str, port: int, config: Path | None, settings: Mapping[str, Any]) -> int:
    """Become gunicorn with the simulator: file `config`, then `settings`. Returns only by raising what is wrong."""
    load_settings(config, settings)
    environ = {**os.environ, "OPENAI_GATEWAY_SIMULATOR_OVERRIDES": json.dumps(settings)}
    if config is not None:
        environ["OPENAI_GATEWAY_SIMULATOR_CONFIG"] = str(config)
    listener = listen(host, port)
    url = find_url(listener)
    click.echo(f"Simulator at {url}/v1 (Ctrl-C ends it); what it saw: {url}/sim/stats")
    limits = ("--worker-connections", "4096")
    become_gunicorn(listener, environ, "-k", "gevent", *limits, "openai_gateway.simulator.wsgi:app")
