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
from typing import Any, Final

import yaml

from openai_gateway.simulator.checks import (
    API_KEY,
    APIS_SERVED,
    BOOLEAN,
    FAULT,
    HEADER_VALUE,
    NAMES,
    STATUS,
    TEXT,
    Check,
    checks_of,
    number,
    or_null,
    setting,
)

_HOUR_MS: Final = 3_600_000
_MAX_EVENTS: Final = 100_000


class SettingsError(Exception):
    """Settings or metadata values that the simulator doesn't know; the message names each and what is wanted."""


@dataclass(frozen=True)
class Script:
    """What happens to a call.

    `status` and `fault` happen `times` times for each `key` (0: always), then the call succeeds; without `key`, calls
    with the same body count together. `after` is the number of deltas before a fault in a stream; a stream with
    fewer has it before its closing events. A `background` response is ready `latency_ms` after it was asked for.
    """

    latency_ms: int = setting(number(0, _HOUR_MS), 0)
    event_gap_ms: int = setting(number(0, _HOUR_MS), 0)
    events: int = setting(number(0, _MAX_EVENTS), 0)
    status: int = setting(STATUS, 0)
    times: int = setting(number(0), 0)
    key: str = setting(TEXT, "")
    retry_after: str = setting(HEADER_VALUE, "")
    should_retry: str = setting(HEADER_VALUE, "")
    error_code: str = setting(TEXT, "")
    fault: str = setting(FAULT, "")
    after: int = setting(number(0), 2)


@dataclass(frozen=True)
class Settings:
    """Settings of one simulator.

    `api_key` None takes any key, `models` None any model; `rpm` and `tpm` are enforced per minute, None not at all.
    """

    api_key: str | None = setting(or_null(API_KEY), None)
    models: tuple[str, ...] | None = setting(or_null(NAMES), None)
    rpm: int | None = setting(or_null(number(1)), None)
    tpm: int | None = setting(or_null(number(1)), None)
    apis: tuple[str, ...] = setting(APIS_SERVED, ("responses", "chat"))
    websocket: bool = setting(BOOLEAN, True)
    max_stored: int = setting(number(1), 10_000)
    script: Script = field(default_factory=Script)


_SCRIPT_CHECKS: Final = checks_of(Script)
_CHECKS: Final = {**checks_of(Settings), **_SCRIPT_CHECKS}


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
    values = _to_values({**given, **overrides}, _CHECKS)
    script = Script(**{name: value for name, value in values.items() if name in _SCRIPT_CHECKS})
    return Settings(script=script, **{name: value for name, value in values.items() if name not in _SCRIPT_CHECKS})


def script_of(settings: Settings, body: Mapping[str, Any]) -> Script:
    """Return what happens to a call with this body. Raises SettingsError."""
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        return settings.script
    own = {name[4:]: value for name, value in metadata.items() if name.startswith("sim_")}
    return dataclasses.replace(settings.script, **_to_values(own, _SCRIPT_CHECKS, "sim_")) if own else settings.script


def _to_values(given: Mapping[str, Any], checks: Mapping[str, Check], prefix: str = "") -> dict[str, Any]:
    values, complaints = {}, []
    for name, value in given.items():
        if name not in checks:
            near = get_close_matches(str(name), checks, 1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known are {', '.join(checks)}"
            complaints.append(f"unknown setting '{prefix}{name}'; {hint}")
            continue
        try:
            values[name] = checks[name].convert(value)
        except ValueError:
            complaints.append(f"'{prefix}{name}' must be {checks[name].wanted}, not {value!r}")
    if complaints:
        raise SettingsError("; ".join(complaints))
    return values
