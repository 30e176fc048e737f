"""How the simulator behaves: settings for all calls, and the `metadata` of one call, which wins.

Metadata keys are the fields of Script with `sim_` in front, such as `{"metadata": {"sim_status": "429"}}`; the faults
that `sim_fault` names are described in `body`. What a call then meets is `simulation`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from openai_gateway.simulator.setting_types import WANTED, to_value


class SettingsError(Exception):
    """Settings or metadata values that the simulator doesn't know; the message names each and what is wanted."""


@dataclass(frozen=True)
class Script:
    """What happens to a call.

    `status` and `fault` happen `times` times for each `key` (0: always), then the call succeeds; without `key`, calls
    with the same body count together. `after` is the number of deltas before a fault in a stream; a stream with
    fewer has it before its closing events. A `background` response is ready `latency_ms` after it was asked for.
    """

    latency_ms: int = 0
    event_gap_ms: int = 0
    events: int = 0
    status: int = 0
    times: int = 0
    key: str = ""
    retry_after: str = ""
    should_retry: str = ""
    error_code: str = ""
    fault: str = ""
    after: int = 2


@dataclass(frozen=True)
class Settings:
    """Settings of one simulator.

    `api_key` None takes any key, `models` None any model; `rpm` and `tpm` are enforced per minute, None not at all.
    """

    api_key: str | None = None
    models: tuple[str, ...] | None = None
    rpm: int | None = None
    tpm: int | None = None
    apis: tuple[str, ...] = ("responses", "chat")
    max_stored: int = 10_000
    script: Script = field(default_factory=Script)


_SCRIPT_NAMES = tuple(item.name for item in dataclasses.fields(Script))
_GENERAL_NAMES = tuple(item.name for item in dataclasses.fields(Settings) if item.name != "script")


def load_settings(path: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Return the settings of a YAML file with `overrides` on top. Raises SettingsError, OSError."""
    given: Any = {}
    if path is not None:
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(given, dict):
            raise SettingsError(f"{path} holds no mapping of settings")
    values = _to_values({**given, **overrides}, (*_GENERAL_NAMES, *_SCRIPT_NAMES))
    script = Script(**{name: value for name, value in values.items() if name in _SCRIPT_NAMES})
    return Settings(script=script, **{name: value for name, value in values.items() if name in _GENERAL_NAMES})


def script_of(settings: Settings, body: Mapping[str, Any]) -> Script:
    """Return what happens to a call with this body. Raises SettingsError."""
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        return settings.script
    own = {name[4:]: value for name, value in metadata.items() if name.startswith("sim_")}
    return dataclasses.replace(settings.script, **_to_values(own, _SCRIPT_NAMES, "sim_")) if own else settings.script


def _to_values(given: Mapping[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    values, complaints = {}, []
    for name, value in given.items():
        if name not in names:
            near = get_close_matches(str(name), names, 1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known are {', '.join(names)}"
            complaints.append(f"unknown setting '{prefix}{name}'; {hint}")
            continue
        try:
            values[name] = to_value(name, value)
        except ValueError:
            complaints.append(f"'{prefix}{name}' must be {WANTED[name]}, not {value!r}")
    if complaints:
        raise SettingsError("; ".join(complaints))
    return values
