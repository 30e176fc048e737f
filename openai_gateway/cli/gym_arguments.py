"""NeMo Gym's spelling of a collection's options, `+key=value` or `++key=value`, told from config overrides.

See also: collect (what an option means), config (which reads overrides).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final

import click

from openai_gateway.collect.plan import MOST_REPEATS, MOST_ROWS
from openai_gateway.config.override_value import BadValue, parse_value

MOST_CONCURRENT: Final = 4000
# Gym's name of an option, and ours.
_NAMES: Final = {
    "input_jsonl_fpath": "source",
    "output_jsonl_fpath": "output",
    "limit": "limit",
    "num_repeats": "num_repeats",
    "num_samples_in_parallel": "concurrency",
    "concurrency": "concurrency",
    "resume_from_cache": "resume",
    "agent_name": "agent",
    "num_repeats_add_seed": "seeds",
    "dry_run": "dry_run",
}
_NUMBERS: Final = {"limit": MOST_ROWS, "num_repeats": MOST_REPEATS, "concurrency": MOST_CONCURRENT}
_SWITCHES: Final = ("resume", "seeds", "dry_run")
_PARAMS: Final = "responses_create_params"
_NOT_OURS: Final = {
    "prompt_config": "prompts go into the rows; leave it out",
    "skills": "no agent is run here; leave it out",
    "split": "rows are read from one file; leave it out",
    "disable_aggregation": "the sums cost nothing; leave it out",
    "upload_rollouts_to_wandb": "nothing is uploaded; leave it out",
    "upload_rollouts": "nothing is uploaded; leave it out",
    "rollout_collection_driver": "no code of others is run here; leave it out",
}
_PARAMS_OF_ALL: Final = "params"


def take_gym_options(arguments: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the options that are given in Gym's spelling by our names, and the other arguments. Raises UsageError.

    `params` holds the parameters that `+responses_create_params={...}` gives for all rows.
    """
    options: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        key = name.lstrip("+")
        top, _, inner = key.partition(".")
        if not equals or len(name) - len(key) > 2:
            raise click.UsageError(f"what is {argument[:60]!r}? Options begin with --, others look like +key=value")
        if top in _NOT_OURS:
            raise click.UsageError(f"+{top} is no option of collect: {_NOT_OURS[top]}")
        if top == _PARAMS:
            options.setdefault(_PARAMS_OF_ALL, {}).update(_parse_params(key, inner, _parse(key, text)))
        elif key not in _NAMES:
            _check_name(key, inner)
            rest.append(argument)
        elif (value := _parse(key, text)) is not None:
            ours = _NAMES[key]
            options[ours] = _check(key, ours, value)
    return options, rest


def parse_param(text: str) -> tuple[str, Any]:
    """Return name and value of a parameter that is given as `NAME=VALUE`. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--param must look like temperature=0.5, not {text[:60]!r}")
    return name, _parse(name, value)


def _parse_params(key: str, inner: str, value: Any) -> dict[str, Any]:
    if inner:
        if "." in inner:
            raise click.UsageError(f"+{key} is nested; give +{_PARAMS}={{...}} whole")
        return {inner: value}
    if not isinstance(value, dict):
        raise click.UsageError(f"+{key} must be a mapping such as {{temperature: 0.5}}")
    return value


def _check_name(key: str, inner: str) -> None:
    """Raise UsageError if a key is almost one of an option, which as a config key would do nothing."""
    near = difflib.get_close_matches(key, [*_NAMES, *_NOT_OURS, _PARAMS], 1, 0.8) if not inner else []
    if near:
        raise click.UsageError(f"+{key} is unknown and does nothing; did you mean +{near[0]}?")


def _parse(key: str, text: str) -> Any:
    try:
        return parse_value(text)
    except BadValue as error:
        raise click.UsageError(f"the value of +{key} can't be read ({error})") from None


def _check(key: str, ours: str, value: Any) -> Any:
    if ours in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _NUMBERS[ours]:
            raise click.UsageError(f"+{key} must be a whole number from 1 to {_NUMBERS[ours]}, not {str(value)[:40]!r}")
        return value
    if ours in _SWITCHES:
        if not isinstance(value, bool):
            raise click.UsageError(f"+{key} must be true or false")
        return value
    return str(value)
