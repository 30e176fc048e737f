"""`openai-gateway serve`: says what is served, then becomes gunicorn with the gateway's settings.

See also: server.settings (gunicorn's settings), choosing (which config), servers (how gunicorn is run).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

import click

from openai_gateway import __version__
from openai_gateway.cli import choosing
from openai_gateway.cli.exits import CommandFailed
from openai_gateway.cli.servers import become_gunicorn, find_url, listen, start_companion
from openai_gateway.cli.simulated import make_overrides
from openai_gateway.config import GatewayConfig, ServerConfig
from openai_gateway.config.redact import mask_url
from openai_gateway.config.replay import FILE_NAME as REPLAY_CONFIG
from openai_gateway.server import kept_config

_SETTINGS: Final = "python:openai_gateway.server.settings"


@click.command(name="serve")
@choosing.config_options
@click.option("--host", envvar="HOST", default="127.0.0.1", help="Address to listen on (default: $HOST, 127.0.0.1).")
@click.option(
    "--port",
    envvar="PORT",
    default=8000,
    type=click.IntRange(0, 65535),
    help="Port; 0 takes a free one (default: $PORT, 8000).",
)
@click.option(
    "--workers",
    envvar="WEB_CONCURRENCY",
    default=1,
    type=click.IntRange(1, 256),
    help="Worker processes; caps are per worker, and one carries thousands of calls (default: $WEB_CONCURRENCY, 1).",
)
@click.option("--simulate", is_flag=True, help="Put the simulator behind it: no endpoint, key or cost.")
@click.option(
    "--replay",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Answer from what was recorded in FOLDER, and never call: no config or key.",
)
def serve_command(
    config: tuple[str, ...],
    overrides: tuple[str, ...],
    host: str,
    port: int,
    workers: int,
    simulate: bool,
    replay: Path | None,
) -> int:
    """Serve: gunicorn with gevent workers and the gateway's settings, until Ctrl-C or SIGTERM.

    \b
    Examples:
      openai-gateway serve
      openai-gateway serve --simulate
      openai-gateway serve --replay kept
      openai-gateway serve --config policy.yaml --config judge.yaml --port 9000
      openai-gateway serve ++policy_model.responses_api_models.openai_model.max_concurrent_requests=64
    As NeMo Gym is started:
      openai-gateway serve "+config_paths=[policy.yaml,judge.yaml]" ++policy_model_name=gpt-5-mini

    SIGTERM lets calls in flight finish within $GRACEFUL_TIMEOUT (900 s); SIGHUP reads the config again and loses no
    call. Any other setting of gunicorn goes into $GUNICORN_CMD_ARGS. $OPENAI_GATEWAY_SIMULATOR_CONFIG may name
    settings of the simulator, such as conf/simulator.yaml.
    """
    if replay is not None:
        if not config and not (replay / REPLAY_CONFIG).is_file():
            raise CommandFailed(f"{replay} has no {REPLAY_CONFIG}: copy it from the folder that was recorded")
        config = config or (str(replay / REPLAY_CONFIG),)
        overrides = ("++recordings=replay", f"++recordings_dir={replay.absolute()}", *overrides)
    environ = choosing.make_environ(config, overrides)
    return serve(environ, host, port, workers, is_simulated=simulate)


def serve(environ: dict[str, str], host: str, port: int, workers: int, *, is_simulated: bool) -> int:
    """Become gunicorn with the gateway, the simulator behind it if wanted. Returns only by raising what is wrong."""
    simulator = listen("127.0.0.1", 0) if is_simulated else None
    if simulator is not None:
        environ = choosing.make_environ((), make_overrides(environ, f"{find_url(simulator)}/v1"), environ)
    chosen = choosing.load(environ)
    listener = listen(host, port)
    if simulator is not None:
        start_companion("openai_gateway.simulator.wsgi:app", {}, simulator)
    click.echo(_describe(chosen, listener, workers, is_simulated=is_simulated))
    kept_config.keep(chosen)
    become_gunicorn(listener, environ, "-c", _SETTINGS, "-w", str(workers), "openai_gateway.wsgi:app")


def _describe(chosen: GatewayConfig, listener: socket.socket, workers: int, *, is_simulated: bool) -> str:
    url = find_url(listener)
    servers = "1 server" if len(chosen.servers) == 1 else f"{len(chosen.servers)} servers"
    processes = "1 worker" if workers == 1 else f"{workers} workers"
    lines = [f"openai_gateway {__version__}: {servers}, {processes}, pid {os.getpid()} (Ctrl-C ends it)"]
    for name, server in chosen.servers.items():
        lines += [
            "",
            f"  {name}",
            f"    model     {server.openai_model}",
            f"    upstream  {_describe_upstream(server, is_simulated=is_simulated)}",
            f"    cap       {_describe_cap(server, workers)}",
            f"    keys      {_describe_keys(server)}",
            f"    serves    {url}/v1" if name == chosen.default_server else f"    serves    {url}/{name}/v1",
        ]
        if name == chosen.default_server and len(chosen.servers) > 1:
            lines[-1] += f"  and  {url}/{name}/v1"
    return "\n".join([*lines, "", f"  status: {url}/status", ""])


def _describe_upstream(server: ServerConfig, *, is_simulated: bool) -> str:
    url = mask_url(server.openai_base_url)
    if server.recordings == "replay":
        return f"{url}  (never called: answers are those in {server.recordings_dir})"
    return f"{url}  (the simulator)" if is_simulated else url


def _describe_cap(server: ServerConfig, workers: int) -> str:
    cap, total = server.max_concurrent_requests, server.max_concurrent_requests_total
    caps = []
    if cap is not None:
        caps.append(f"{cap} calls at once" + (f" in each worker, {cap * workers} in all" if workers > 1 else ""))
    if total is not None:
        caps.append(f"{total} calls at once over all {'hosts' if server.limits_url else 'workers'}")
    return "; ".join(caps) or "none (max_concurrent_requests sets one)"


def _describe_keys(server: ServerConfig) -> str:
    if server.clients_file:
        return f"asked for: a client's api_key must be one of {server.clients_file}"
    if server.gateway_api_keys or server.gateway_api_keys_file:
        return "asked for: a client's api_key must be one of gateway_api_keys"
    return "none asked for: a client may give any (gateway_api_keys sets them)"
