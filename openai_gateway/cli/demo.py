"""`openai-gateway demo`: simulator and gateway as real gunicorn processes, and what the gateway is for, scene by scene.

Needs no key and no network. Afterwards both serve on, to be tried by hand.

See also: demo_scenes (what is shown), servers (how gunicorn is run).
"""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import requests
import yaml

from openai_gateway.cli.demo_scenes import CAP, KEY, MODEL, Stage, play
from openai_gateway.cli.exits import OK, CommandFailed, Stopped
from openai_gateway.cli.servers import run_server

# US dollars per million tokens, of a model that there is not.
_PRICES: Final = {"source": "made up for the demo", "models": {MODEL: {"input": 2.0, "output": 10.0}}}


@click.command(name="demo")
@click.option("--once", is_flag=True, help="End after that; exit code 0 only if all went well.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port of the gateway (default: a free one).")
def demo_command(once: bool, port: int) -> int:
    """Start simulator and gateway, show what the gateway does, and serve on until Ctrl-C.

    Shown are both APIs, the key that stays here, a rate limit that is waited out, a cap that holds, a client that
    leaves, and what it all cost. Takes about 10 seconds.

    \b
    Examples:
      openai-gateway demo
      openai-gateway demo --port 8000                  # then call http://127.0.0.1:8000/v1 as if it were OpenAI's
      openai-gateway demo --once && echo all went well
    """
    return play_demo(port, is_once=once)


def play_demo(port: int, *, is_once: bool) -> int:
    """Play the scenes, serve on until Ctrl-C unless it is only for once, and return the exit code."""
    _end_servers_on_signals()
    is_all_well = False
    try:
        with tempfile.TemporaryDirectory() as folder, _run_both(Path(folder), port) as stage:
            is_all_well = play(stage)
            if not is_once and is_all_well:
                _serve_on(stage.gateway)
    except KeyboardInterrupt:
        if not is_all_well:
            raise Stopped("stopped before everything had been shown") from None
        # A closed terminal takes no more words.
        with contextlib.suppress(OSError):
            click.echo("\nStopped.")
        return OK
    if not is_all_well:
        raise CommandFailed("not all went well; see above")
    click.echo("All went well.")
    return OK


@contextlib.contextmanager
def _run_both(folder: Path, port: int) -> Iterator[Stage]:
    click.echo("Starting the simulator and the gateway (gunicorn, gevent) ...")
    overrides = json.dumps({"api_key": KEY, "latency_ms": 80, "event_gap_ms": 30})
    simulator_environ = {"OPENAI_GATEWAY_SIMULATOR_CONFIG": "", "OPENAI_GATEWAY_SIMULATOR_OVERRIDES": overrides}
    with run_server("openai_gateway.simulator.wsgi:app", simulator_environ) as upstream, requests.Session() as session:
        # No proxy or netrc of the environment may come in between.
        session.trust_env = False
        usage_log = folder / "usage.jsonl"
        environ = _write_config(folder, upstream, usage_log)
        with run_server("openai_gateway.wsgi:app", environ, port=port) as url:
            click.echo(f"  simulator  {upstream}/v1   (holds the place of the paid endpoint)")
            click.echo(f"  gateway    {url}/v1\n")
            yield Stage(session, url, upstream, usage_log)


def _write_config(folder: Path, upstream: str, usage_log: Path) -> dict[str, str]:
    """Write the demo's config and return the environment in which the gateway reads nothing else."""
    prices = folder / "prices.yaml"
    prices.write_text(yaml.safe_dump({"read_on": time.strftime("%Y-%m-%d"), **_PRICES}))
    settings = {
        "openai_base_url": f"{upstream}/v1",
        "openai_api_key": KEY,
        "openai_model": MODEL,
        "max_concurrent_requests": CAP,
        # The share of calls that may be tried again is for busy gateways.
        "retry_ratio": None,
        "price_file": str(prices),
        "usage_log": str(usage_log),
    }
    config = folder / "demo.yaml"
    config.write_text(yaml.safe_dump({"policy_model": {"responses_api_models": {"openai_model": settings}}}))
    # An env.yaml of the working folder must not get into the demo.
    empty = folder / "env.yaml"
    empty.write_text("{}\n")
    return {
        "OPENAI_GATEWAY_CONFIG_PATHS": str(config),
        "OPENAI_GATEWAY_ENV_YAML": str(empty),
        "OPENAI_GATEWAY_SERVER": "",
        "OPENAI_GATEWAY_OVERRIDES": "[]",
    }


def _serve_on(url: str) -> None:
    click.echo(f"""Look at it:        {click.style(f"{url}/status", underline=True)}
Point a client at  {url}/v1  (any key, any model name):

  curl {url}/v1/responses \\
    -H 'content-type: application/json' -d '{{"input": "Hello"}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="any")
  print(client.responses.create(model="any", input="Hello").output_text)

Serving until Ctrl-C ...""")
    signal.pause()


def _end_servers_on_signals() -> None:
    """Have SIGTERM and a closed terminal's SIGHUP end the demo as Ctrl-C does: its servers would outlive it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # What nohup ignores stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise_interrupt)


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
