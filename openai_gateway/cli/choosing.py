"""How a command is told which config to use: `--config`, and NeMo Gym's `+key=value` arguments.

`config_options` gives a command its `config` and `overrides` parameters; `make_environ` makes of them the environment
that the gateway's processes read, and `load` the config that they will have.

See also: config (how files, env.yaml and overrides become one config).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

from openai_gateway.cli.exits import CalledWrongly
from openai_gateway.config import GatewayConfig, load_config
from openai_gateway.config.files import CONFIG_PATHS_VARIABLE
from openai_gateway.config.overrides import OVERRIDES_VARIABLE
from openai_gateway.config.redact import mask

_Command = TypeVar("_Command", bound=Callable[..., Any])
_OVERRIDE: Final = re.compile(r"\+{0,2}[^+=\s][^=]*=")


def config_options(command: _Command) -> _Command:
    """Add the parameters `config: tuple[str, ...]` and `overrides: tuple[str, ...]`."""
    named = click.option(
        "--config",
        multiple=True,
        metavar="FILE",
        help=f"Config file; may be repeated, or several with commas. Default: ${CONFIG_PATHS_VARIABLE}, else "
        "conf/openai_model.yaml, else the built-in one.",
    )
    given = click.argument("overrides", nargs=-1, metavar="[+KEY=VALUE]...", callback=_check)
    return named(given(command))


def make_environ(
    config: Sequence[str], overrides: Sequence[str], environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment in which `load`, and every process of the gateway, finds this config.

    What `environ` says already stays where nothing is given, and gives way where something is.
    """
    made = dict(environ)
    if config:
        made[CONFIG_PATHS_VARIABLE] = ",".join(config)
    if overrides:
        try:
            earlier = json.loads(environ.get(OVERRIDES_VARIABLE) or "[]")
            made[OVERRIDES_VARIABLE] = json.dumps([*earlier, *overrides])
        except (ValueError, TypeError):
            raise CalledWrongly(f"{OVERRIDES_VARIABLE} is no JSON list; unset it, or set it to []") from None
    return made


def load(environ: Mapping[str, str]) -> GatewayConfig:
    """Return the config that a gateway started in this environment has. Raises ConfigError."""
    return load_config(environ)


def _check(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for argument in given:
        if not _OVERRIDE.match(argument):
            # What stands in the wrong place may be a key.
            shown = mask(argument, ())[:40]
            raise click.UsageError(f"{shown!r} is no key=value such as ++policy_model_name=gpt-5-mini", ctx)
    return given
