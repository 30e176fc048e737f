"""How the simulator behaves: settings for all calls, and the `metadata` of one call, which wins.

Metadata keys are the fields of Script with `sim_` in front, such as `{"metadata": {"sim_status": "429"}}`; the faults
that `sim_fault` names are described in `simulated_body`. See also: setting_checks (what a value may be), simulation
(what a call meets).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import yaml

from openai_gateway.simulator.setting_checks import (
    API_KEY,
    APIS_SERVED,
    BOOLEAN,
    FAULT,
    HEADER_VALUE,
    NAMES,
    STATUS,
    TEXT,
    SettingCheck,
    changes,
    checks_of,
    fraction,
    number,
    one_of,
    or_null,
    seconds,
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


# Those that may change while it runs.
_LIMITS: Final = {
    "rpm": or_null(number(1)),
    "tpm": or_null(number(1)),
    "in_flight": or_null(number(1)),
    "others_share": fraction(1.0),
}
DIALECTS: Final = ("openai", "azure", "groq", "anthropic", "gemini", "none")


@dataclass(frozen=True)
class SimulatorSettings:
    """Settings of one simulator.

    `api_key` None takes any key, `models` None any model. Of limits, None is none.
    """

    api_key: str | None = setting(or_null(API_KEY), None)
    models: tuple[str, ...] | None = setting(or_null(NAMES), None)
    rpm: int | None = setting(_LIMITS["rpm"], None, "requests a minute")
    tpm: int | None = setting(_LIMITS["tpm"], None, "tokens a minute")
    rpd: int | None = setting(or_null(number(1)), None, "requests a day")
    in_flight: int | None = setting(_LIMITS["in_flight"], None, "calls at a time")
    dialect: str = setting(one_of(DIALECTS), "openai", f"how limits are told: {', '.join(DIALECTS)}")
    burst_s: float = setting(
        seconds(3600), 60.0, "a limit of a minute holds, when full, what flows in within this time"
    )
    fixed_window: bool = setting(
        BOOLEAN, False, "limits are full again at the end of each period, instead of refilled steadily"
    )
    window_s: float = setting(
        seconds(60), 0.0, "the limits of a minute hold in each window of this length, too, which nothing tells of"
    )
    refusals_charged: bool = setting(BOOLEAN, False, "a refused call counts as a request")
    output_tokens_charged: int | None = setting(
        or_null(number(0)),
        None,
        "tokens charged for the output of a call without a bound of its own; null: as many as its answer has",
    )
    unused_given_back: bool = setting(BOOLEAN, False, "tokens charged and not used are given back when the call ends")
    others_share: float = setting(_LIMITS["others_share"], 0.0, "share of each limit that another user takes, steadily")
    limit_changes: tuple[Mapping[str, Any], ...] = setting(
        changes(_LIMITS), (), "limits that change so many seconds after the first call: [{at_s: 60, rpm: 300}]"
    )
    apis: tuple[str, ...] = setting(APIS_SERVED, ("responses", "chat"))
    websocket: bool = setting(BOOLEAN, True)
    max_stored: int = setting(number(1), 10_000)
    script: Script = field(default_factory=Script)


def list_limits() -> list[tuple[str, Any, str]]:
    """Return the settings of limits: names, defaults, and what they mean."""
    fields = (found for found in dataclasses.fields(SimulatorSettings) if found.metadata.get("meaning"))
    return [(found.name, found.default, found.metadata["meaning"]) for found in fields]


_SCRIPT_CHECKS: Final = checks_of(Script)
_CHECKS: Final = {**checks_of(SimulatorSettings), **_SCRIPT_CHECKS}


def load_settings(path: Path | None, overrides: Mapping[str, Any]) -> SimulatorSettings:
    """Return the settings of a YAML file with `overrides` on top. Raises SettingsError, OSError."""
    given: Any = {}
    if path is not None:
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(given, dict):
            raise SettingsError(f"{path} holds no mapping of settings")
    values = _read_values({**given, **overrides}, _CHECKS)
    script = Script(**{name: value for name, value in values.items() if name in _SCRIPT_CHECKS})
    return SimulatorSettings(
        script=script, **{name: value for name, value in values.items() if name not in _SCRIPT_CHECKS}
    )


def script_of(settings: SimulatorSettings, body: Mapping[str, Any]) -> Script:
    """Return what happens to a call with this body. Raises SettingsError."""
    metadata = body.get("metadata")
    if not isinstance(metadata, dict):
        return settings.script
    own = {name[4:]: value for name, value in metadata.items() if name.startswith("sim_")}
    return dataclasses.replace(settings.script, **_read_values(own, _SCRIPT_CHECKS, "sim_")) if own else settings.script


def _read_values(given: Mapping[str, Any], checks: Mapping[str, SettingCheck], prefix: str = "") -> dict[str, Any]:
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
