"""NeMo Gym's spelling of a collection's options, `+key=value` or `++key=value`, told from config overrides.

What an option means is `collect`'s; overrides are read by `config`.
"""

from __future__ import annotations

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
    "resume_from_cache": "resume",
}
_NUMBERS: Final = {"limit": MOST_ROWS, "num_repeats": MOST_REPEATS, "concurrency": MOST_CONCURRENT}
_NOT_OURS: Final = {
    "agent_name": "no agent is run here; leave it out",
    "responses_create_params": "parameters of all rows go into the config's extra_body_responses",
    "num_repeats_add_seed": "seeds go into the rows; leave it out",
    "prompt_config": "prompts go into the rows; leave it out",
    "skills": "no agent is run here; leave it out",
    "split": "rows are read from one file; leave it out",
    "disable_aggregation": "the sums cost nothing; leave it out",
    "upload_rollouts_to_wandb": "nothing is uploaded; leave it out",
}


def take_gym_options(arguments: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the options that are given in Gym's spelling by our names, and the other arguments. Raises UsageError."""
    options: dict[str, Any] = {}
    rest = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        key = name.lstrip("+")
        top = key.partition(".")[0]
        if not equals or len(name) - len(key) > 2:
            raise click.UsageError(f"what is {argument[:60]!r}? Options begin with --, others look like +key=value")
        if top in _NOT_OURS:
            raise click.UsageError(f"+{top} is no option of collect: {_NOT_OURS[top]}")
        if key not in _NAMES:
            rest.append(argument)
            continue
        ours = _NAMES[key]
        value = _parse(key, text)
        if value is not None:
            options[ours] = _check(key, ours, value)
    return options, rest


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
    if ours == "resume":
        if not isinstance(value, bool):
            raise click.UsageError(f"+{key} must be true or false")
        return value
    return str(value)
