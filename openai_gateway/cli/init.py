"""`openai-gateway init`: asks for endpoint, key and model, writes them to env.yaml, and tries the endpoint.

The key is read without an echo, is never an option (options are seen by every user of the machine), and goes into a
file that only its owner may read.

See also: check (what is tried), config.files (who reads env.yaml).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click
import yaml

from openai_gateway.cli import choosing
from openai_gateway.cli.check import check_servers
from openai_gateway.cli.exits import OK, CalledWrongly
from openai_gateway.config.base_url import BadBaseUrl, parse_base_url
from openai_gateway.config.checks import find_doubt
from openai_gateway.config.files import ENV_YAML_VARIABLE
from openai_gateway.probe.probe_client import CALL_ERRORS, ProbeClient
from openai_gateway.probe.probes import Probe
from openai_gateway.wire.api import Api

_OPENAI: Final = "https://api.openai.com/v1"
_MODELS_S: Final = 10.0
_TRY_S: Final = 60.0
_MOST_SHOWN: Final = 8


@click.command(name="init")
@click.option("--base-url", metavar="URL", help="The endpoint's base URL; asked for if it is not given.")
@click.option("--model", metavar="NAME", help="The model to serve; asked for if it is not given.")
@click.option("--no-check", is_flag=True, help="Only write the file; call nobody.")
def init_command(base_url: str | None, model: str | None, no_check: bool) -> int:
    """Ask for endpoint, key and model, write them to env.yaml, and try them as `check` does (a few tokens).

    The key is asked for without showing it, and the file can be read by its owner only. A file that is there is left
    as it is. Where env.yaml goes: $OPENAI_GATEWAY_ENV_YAML, else this folder.

    \b
    Examples:
      openai-gateway init
      openai-gateway init --base-url http://127.0.0.1:8001/v1 --model llama
    Then:
      openai-gateway serve
    """
    path = Path(os.environ.get(ENV_YAML_VARIABLE) or "env.yaml")
    if path.exists():
        raise CalledWrongly(f"{path} is there already: edit it, or move it away; openai-gateway check tries it")
    url = (
        _parse_url(base_url)
        if base_url is not None
        else click.prompt("Base URL of the endpoint", default=_OPENAI, value_proc=_parse_url, err=True)
    )
    key = click.prompt("API key (not shown)", hide_input=True, value_proc=_parse_key, err=True)
    names = [] if no_check or model is not None else _list_models(url, key)
    if names:
        more = ", ..." if len(names) > _MOST_SHOWN else ""
        click.echo(f"The endpoint has {', '.join(names[:_MOST_SHOWN])}{more}", err=True)
    model = model or click.prompt("Model", default=names[0] if len(names) == 1 else None, err=True)
    write_env_yaml(path, url, key, model)
    click.echo(f"Wrote {path}, which only you can read.")
    return OK if no_check else try_it(path)


def write_env_yaml(path: Path, base_url: str, key: str, model: str) -> None:
    """Write what the shipped config asks for; nobody else may read it, from its first byte on."""
    values = {"policy_base_url": base_url, "policy_api_key": key, "policy_model_name": model}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)


def try_it(path: Path) -> int:
    """Try the endpoint that the config now leads to, and return the exit code."""
    chosen = choosing.load({**os.environ, ENV_YAML_VARIABLE: str(path)})
    code = check_servers(chosen, [chosen.default_server], list(Api), _TRY_S, is_json=False)
    click.echo("Now: openai-gateway serve" if code == OK else f"Mend {path}; then: openai-gateway check")
    return code


def _parse_url(given: str) -> str:
    try:
        url = parse_base_url(given.strip())
    except BadBaseUrl as error:
        raise click.BadParameter(str(error)) from None
    return url.geturl() if url.path or url.query else f"{url.geturl()}/v1"


def _parse_key(given: str) -> str:
    key = given.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise click.BadParameter("a key has visible ASCII characters only, and no Bearer before it")
    doubt = find_doubt(key)
    if doubt is not None:
        raise click.BadParameter(f"the key {doubt}")
    return key


def _list_models(base_url: str, key: str) -> list[str]:
    """Return the names of the endpoint's models, none if it doesn't tell: the check says why."""
    endpoint = ProbeClient(base_url, {"authorization": f"Bearer {key}"}, timeout_s=_MODELS_S, ca_file=None)
    try:
        return Probe(0.0, endpoint.call("/models")).model_names
    except CALL_ERRORS:
        return []
